# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Planted faults, and that nano's answers to held-out questions or its numbers show them.

Nearly all leave every shape right, so that nothing but the result can tell. The numbers in
docs/nano_faults.md are what `python test/test_nano_faults.py` prints.
"""

import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from whisper_files import random_mel, random_tensors, step_mel
from whisper_files import write as write_audio

from minicpmo_ros.encoders.siglip import encoder as siglip
from minicpmo_ros.encoders.siglip import model as siglip_model
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.encoders.whisper.stream import AudioStream
from minicpmo_ros.errors import EngineError, ModelFileError
from minicpmo_ros.evaluation import runner
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.llm import prompt
from minicpmo_ros.modelset.directory import ModelDirectory

ROOT = Path(__file__).parents[1]
NANO = ROOT / 'models' / 'nano'
LONGEST_S = 3  # windows that are asked about: 72 questions on 12 clips


@dataclass(frozen=True)
class Told:
    """What was answered."""

    questions: tuple
    texts: tuple
    chances: np.ndarray  # (questions, vocabulary) of the first token of each answer

    @property
    def right(self) -> float:
        return np.mean([q.is_right(text) for q, text in zip(self.questions, self.texts)])

    def same(self, other: 'Told') -> float:
        return np.mean([a == b for a, b in zip(self.texts, other.texts)])

    def moved(self, other: 'Told') -> float:
        """Mean share of the first token's chances that went elsewhere, 0 to 1."""
        return np.abs(self.chances - other.chances).sum(1).mean() / 2


def answer(model_dir=NANO) -> Told:
    """Answer the questions on short windows as the code, and its faults, now are."""
    questions = QuestionSet.read(ROOT / 'demo' / 'clips' / 'questions.json').up_to(LONGEST_S)
    core = runner.Core(ModelDirectory.open(model_dir), runner.CoreOptions(device='cpu'))
    read, chances = core.session.read, []

    def recording(reads):
        logits = read(reads)
        for (_, rows, n_logits), found in zip(reads, logits):
            if n_logits and len(rows) > 1:  # the end of a question, not a token of the answer
                weights = np.exp(found[-1] - found[-1].max())
                chances.append(weights / weights.sum())
        return logits

    core.session.read = recording
    try:
        (answers,) = runner.answer_all(core, questions, [runner.Variant()])
    finally:
        core.close()
    return Told(questions.questions, tuple(answers.of(questions)), np.array(chances))


def embed() -> dict:
    """Give what the encoders make of a clip: {'picture': (n, width), 'sound': (n, width)}."""
    clip = runner.read_clip(ROOT / 'demo' / 'clips' / '000.mcap')
    core = runner.Core(ModelDirectory.open(NANO), runner.CoreOptions(device='cpu'))
    try:
        seen, heard = core.see(clip), core.hear(clip)
    finally:
        core.close()
    rows = {'picture': [s.rows for s in seen], 'sound': [rows for _, rows in heard]}
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def distance(found, right) -> float:
    return np.linalg.norm(found - right) / np.linalg.norm(right)


def from_golden(directory: Path) -> float:
    """Give how far the sound encoder is from transformers' in float32."""
    backend = Backend('cpu')
    path = write_audio(directory / 'audio.gguf', random_tensors())
    stream = AudioEncoder.load(path, backend, kv_type='f32').stream()
    rows = np.concatenate([stream.step(step_mel(random_mel(), i)) for i in range(4)])
    with np.load(ROOT / 'test' / 'golden' / 'whisper.npz') as arrays:
        right = arrays['tokens']
    backend.close()
    return distance(rows, right)


# The faults: each takes a MonkeyPatch and the path for a changed model, which is given back.


def copy_of_nano(path: Path) -> Path:
    return Path(shutil.copytree(NANO, path))


def no_assistant_role(patch, path):
    layout = replace(ENGLISH, answer_open='<|im_end|>\n')
    patch.setitem(FAMILIES['minicpm-o-2.6'].layouts, 'en', layout)


def half_units(patch, path):
    right = prompt.CompiledPrompt.unit

    def half(self, *parts):
        rows = right(self, *parts)
        return rows[: len(rows) // 2]

    patch.setattr(prompt.CompiledPrompt, 'unit', half)


def sound_of_the_second_before(patch, path):
    right = runner.assemble

    def shifted(seen, heard):
        rows = [rows for _, rows in heard]
        return right(seen, [(s, r) for (s, _), r in zip(heard, rows[-1:] + rows[:-1])])

    patch.setattr(runner, 'assemble', shifted)


def resampler_axes_swapped(patch, path):
    right = siglip.sines

    def swapped(width, grid):
        return tuple(np.roll(sines, width // 2, axis=1) for sines in right(width, grid))

    patch.setattr(siglip, 'sines', swapped)


def patch_positions_off_by_one(patch, path):
    right = siglip.sine_grid

    def shifted(width, rows, columns):
        table = right(width, rows + 1, columns + 1).reshape(rows + 1, columns + 1, width)
        return np.ascontiguousarray(table[1:, 1:]).reshape(-1, width)

    patch.setattr(siglip, 'sine_grid', shifted)


def sound_positions_off_by_one(patch, path):
    right = AudioEncoder.load

    def load(*arguments, **options):
        encoder = right(*arguments, **options)
        table = encoder.weights['encoder.positional_embedding']
        rows = table.read()
        table.write(np.concatenate([rows[1:], rows[-1:]]))
        return encoder

    patch.setattr(AudioEncoder, 'load', load)


def token_positions_off_by_one(patch, path):
    right = llama.llama_decode

    def decode(context, batch):
        for i in range(batch.n_tokens):
            batch.pos[i] += batch.pos[i] > 0
        return right(context, batch)

    patch.setattr(llama, 'llama_decode', decode)


def wrong_rope_base(patch, path):
    file = copy_of_nano(path) / 'llm.gguf'
    content, key = file.read_bytes(), b'qwen2.rope.freq_base' + struct.pack('<I', 6)
    right, wrong = (key + struct.pack('<f', base) for base in (1e6, 1e4))
    assert content.count(right) == 1
    file.write_bytes(content.replace(right, wrong))
    return path


def exchange(file: Path, pairs, turned=False) -> None:
    """Exchange the numbers of pairs of matrices of one size, turned where sides differ."""
    tensors, content = read_header(file).tensors, bytearray(file.read_bytes())
    for names in pairs:
        infos = [tensors[name] for name in names]
        arrays = [
            np.frombuffer(bytes(content[i.offset : i.offset + i.n_bytes]), np.float16).reshape(
                i.shape
            )
            for i in infos
        ]
        for info, array in zip(infos, arrays[::-1]):
            array = array.T if turned else array
            assert array.shape == info.shape
            content[info.offset : info.offset + info.n_bytes] = array.tobytes()
    file.write_bytes(content)


def vision_ffn_swapped(patch, path):
    names = [[f'v.blk.{i}.ffn_{kind}.weight' for kind in ('up', 'down')] for i in range(4)]
    exchange(copy_of_nano(path) / 'vision.gguf', names, turned=True)
    return path


def vision_ffn_names_taken_literally(patch, path):
    right = siglip_model.VisionFacts

    def literal(**facts):
        return right(**{**facts, 'ffn_names': ('ffn_up', 'ffn_down')})

    patch.setattr(siglip_model, 'VisionFacts', literal)


def tanh_gelu(patch, path):
    patch.setattr(Builder, 'gelu_erf', Builder.gelu_tanh)


def no_look_ahead(patch, path):
    right = AudioStream.step

    def blind(stream, mel, between=None):
        return right(stream, np.concatenate([mel[:-1], 0 * mel[-1:]]), between)

    patch.setattr(AudioStream, 'step', blind)


# Fault: (most of 72 answers that may stay the same, least share of right ones that must be lost).
BY_ANSWERS = {
    sound_of_the_second_before: (0.8, 0.15),
    resampler_axes_swapped: (0.98, 0.02),
    vision_ffn_swapped: (0.7, 0.25),
    wrong_rope_base: (0.75, 0.2),
    half_units: (0.75, 0.2),
}
# Fault: (least that the chances of the first token must move, most answers that may stay).
BY_CHANCES = {no_assistant_role: (0.04, 0.98)}
# Fault: which embeddings of nano it moves. The answers hardly notice these.
BY_NUMBERS = {
    patch_positions_off_by_one: 'picture',
    sound_positions_off_by_one: 'sound',
    tanh_gelu: 'sound',
    no_look_ahead: 'sound',
}
GOLDEN_LIMIT = 1e-5  # of test_encoders_whisper.py::test_streaming_equals_offline in float32
PICTURE_LIMIT = 1e-3  # of test_encoders_siglip.py::test_equals_libmtmd


@pytest.fixture(scope='session')
def unharmed_answers():
    return answer()


@pytest.fixture(scope='session')
def unharmed_embeddings():
    return embed()


def test_unharmed_nano_is_right(unharmed_answers, tmp_path):
    assert len(unharmed_answers.texts) == 72
    assert unharmed_answers.right > 0.83
    assert from_golden(tmp_path) < GOLDEN_LIMIT


@pytest.mark.parametrize('fault', BY_ANSWERS, ids=lambda fault: fault.__name__)
def test_answers_show(fault, unharmed_answers, monkeypatch, tmp_path):
    told = answer(fault(monkeypatch, tmp_path / 'nano') or NANO)
    most_same, least_lost = BY_ANSWERS[fault]
    assert told.same(unharmed_answers) < most_same
    assert unharmed_answers.right - told.right > least_lost


@pytest.mark.parametrize('fault', BY_CHANCES, ids=lambda fault: fault.__name__)
def test_chances_show(fault, unharmed_answers, monkeypatch, tmp_path):
    told = answer(fault(monkeypatch, tmp_path / 'nano') or NANO)
    least_moved, most_same = BY_CHANCES[fault]
    assert told.moved(unharmed_answers) > least_moved
    assert told.same(unharmed_answers) < most_same


@pytest.mark.parametrize('fault', BY_NUMBERS, ids=lambda fault: fault.__name__)
def test_numbers_show(fault, unharmed_embeddings, monkeypatch, tmp_path):
    fault(monkeypatch, tmp_path)
    name = BY_NUMBERS[fault]
    moved = distance(embed()[name], unharmed_embeddings[name])
    if name == 'sound':
        assert from_golden(tmp_path) > 10 * GOLDEN_LIMIT
        assert moved > 2e-4  # of the same file on the same machine: anything is the fault's
    else:
        assert moved > 10 * PICTURE_LIMIT


def test_llama_cpp_refuses_token_positions_off_by_one(monkeypatch, tmp_path):
    token_positions_off_by_one(monkeypatch, tmp_path)
    with pytest.raises(EngineError):
        answer()


def test_a_feed_forward_taken_by_its_names_is_refused(monkeypatch, tmp_path):
    """The published files name the first layer ffn_down."""
    vision_ffn_names_taken_literally(monkeypatch, tmp_path)
    with pytest.raises(ModelFileError, match='ffn_up'):
        answer()


def print_table() -> None:
    """Print: fault, same answers, right answers, chances moved, embeddings, against golden."""
    answers, embeddings = answer(), embed()
    print(f'| none | 1 | {answers.right:.3f} | 0 | | |')
    for fault in [*BY_ANSWERS, *BY_CHANCES, *BY_NUMBERS]:
        with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
            told = answer(fault(patch, Path(path) / 'nano') or NANO)
            row = [f'{told.same(answers):.3f}', f'{told.right:.3f}', f'{told.moved(answers):.4f}']
            if fault in BY_NUMBERS:
                name = BY_NUMBERS[fault]
                row.append(f'{name} {distance(embed()[name], embeddings[name]):.1e}')
                row.append(f'{from_golden(Path(path)):.1e}' if name == 'sound' else '')
        print('|', ' | '.join([fault.__name__, *row]), '|')


if __name__ == '__main__':
    print_table()
