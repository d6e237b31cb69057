# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A window of nano's that seconds leave all the time: 8-bit keys and values, and a short soak."""

from pathlib import Path

import llama_cpp.llama_cpp as llama
import pytest

from benchmarks.soak import Lockstep, Soak, question, soak_apart
from benchmarks.streams import open_core, read_seconds, units_of
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.question import Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.modelset.directory import ModelDirectory

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
    return session.ask(Question(text)).complete().text


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
        kv_type: llama.llama_state_seq_get_size(core.session.context.pointer, 0)
        for kv_type, core in cores.items()
    }
    assert cores['f16'].session.window.end == cores['q8_0'].session.window.end
    assert 0.5 < sizes['q8_0'] / sizes['f16'] < 0.56  # 34 bytes for 32 numbers, and positions


def test_questions_asked_together_are_answered_as_one_by_one(cores):
    """The window is full, more ask than are answered together, and one answer is longer."""
    session = Session.load(
        NANO / 'llm.gguf',
        ENGLISH,
        None,
        ContextOptions(n_ctx=1024, threads=1),
        SessionOptions(max_tokens=40, max_question_tokens=40, max_forks=4),
    )
    robot = Lockstep(session)
    try:
        stream = read_seconds(ROOT / 'demo' / 'clips' / 'questions.json', 10)[:26]
        for unit in units_of(cores['f16'], stream):
            robot.read(unit)
        assert robot.engine.status().evicted > 0
        texts = [question(stream, len(stream) - 1, number)[0] for number in range(12)]
        alone = [robot.ask(text) for text in texts]
        assert len(set(alone)) > 3
        assert robot.ask_together(texts) == alone
        assert session.context.next_position(1) == session.context.next_position(4) == 0
    finally:
        assert robot.engine.close(20)


def test_a_stream_soaks_neither_memory_nor_answers():
    """A minute and a half of what `make soak` does for an hour."""
    found = soak_apart(
        Soak('long', 'q8_0', seconds=90, every=2, units=5, clips=12, model=str(NANO))
    )
    assert found['evicted'] >= 90 - 5 and found['most positions'] < found['context']
    assert found['memory']['Rss']['growth'] < 2
    assert found['questions'] >= 36 and found['same answers'] >= 80
