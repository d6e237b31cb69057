# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A window of nano's that seconds leave all the time: 8-bit keys and values, and a short soak."""

from pathlib import Path

import llama_cpp.llama_cpp as llama
import pytest

from benchmarks.soak import Soak, question, soak_apart
from benchmarks.streams import open_core, read_seconds, units_of
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.models.directory import ModelDirectory

ROOT = Path(__file__).parents[1]
NANO = ROOT / 'models' / 'nano'


@pytest.fixture
def cores():
    model = ModelDirectory.open(NANO)
    cores = {kv_type: open_core(model, 6, kv_type=kv_type) for kv_type in ('f16', 'q8_0')}
    yield cores
    for core in cores.values():
        core.close()


def say(session, text):
    answering = session.ask(Question(text))
    while answering.answer is None:
        answering.step()
    return answering.end(Finish.ERROR).text


def test_8_bit_keys_and_values_answer_as_16_bit_ones_in_half_the_memory(cores):
    stream = read_seconds(ROOT / 'demo' / 'clips' / 'questions.json', 16)[:45]
    said = {kv_type: [] for kv_type in cores}
    for unit in units_of(cores['f16'], stream):
        for kv_type, core in cores.items():
            core.session.append(unit)
            if unit.second > 6 and unit.second % 2:
                text, _ = question(stream, unit.second, unit.second // 2)
                said[kv_type].append(say(core.session, text))
    same = [a == b for a, b in zip(said['f16'], said['q8_0'])]
    assert cores['q8_0'].session.evicted > 30 and len(same) >= 19 and len(set(said['f16'])) > 5
    assert sum(same) >= 0.9 * len(same)
    sizes = {
        kv_type: llama.llama_state_seq_get_size(core.session.context._pointer, 0)
        for kv_type, core in cores.items()
    }
    assert cores['f16'].session.window.end == cores['q8_0'].session.window.end
    assert 0.5 < sizes['q8_0'] / sizes['f16'] < 0.56  # 34 bytes for 32 numbers, and positions


def test_a_stream_soaks_neither_memory_nor_answers():
    """A minute and a half of what `make soak` does for an hour."""
    found = soak_apart(
        Soak('long', 'q8_0', seconds=90, every=2, units=5, clips=12, model=str(NANO))
    )
    assert found['evicted'] >= 90 - 5 and found['most positions'] < found['context']
    assert found['memory']['Rss']['growth'] < 2
    assert found['questions'] >= 36 and found['same answers'] >= 80
