# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 4.5 by the same code: its files open, encode as llama.cpp does, and answer."""

import gguf
import numpy as np
import pytest

from benchmarks.mtmd import encode_overview, loaded_mtmd
from minicpmo_ros.cli import doctor_model
from minicpmo_ros.cli import main as cli
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.prompt import CompiledPrompt
from minicpmo_ros.llm.tokens import make_tokens
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import SHAPES
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.synthetic import model as synthetic

FAMILY = 'minicpm-o-4.5'
LAYOUT = FAMILIES[FAMILY].layouts['en']
THOUGHTS = '<think>\n\n</think>\n\n'


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return synthetic.write_model(tmp_path_factory.mktemp('models') / 'tiny-4.5', 'tiny-4.5')


@pytest.fixture(scope='module')
def model(directory):
    model = LanguageModel.load(ModelDirectory.open(directory).llm_path)
    yield model
    model.close()


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu')
    yield backend
    backend.close()


@pytest.fixture
def session(model):
    session = Session(
        model, LAYOUT, ContextOptions(n_ctx=768, threads=1), SessionOptions(max_tokens=12)
    )
    yield session
    session.context.close()


def expected(model, *parts):
    """Concatenate texts (as templates) and embeddings."""
    return np.concatenate(
        [
            model.token_rows.rows(model.vocabulary.encode_template(part))
            if isinstance(part, str)
            else part
            for part in parts
        ]
    )


def test_true_shape_has_the_published_tensors():
    llm = {plan.name: plan.shape for plan in layouts.llm_tensors(SHAPES['4.5'])}
    vision = {plan.name: plan.shape for plan in layouts.vision_tensors(SHAPES['4.5'])}
    audio = {plan.name: plan.shape for plan in layouts.audio_tensors(SHAPES['4.5'])}
    assert len(llm) == 36 * 11 + 3 and not [name for name in llm if name.endswith('.bias')]
    assert llm['blk.35.attn_q_norm.weight'] == llm['blk.0.attn_k_norm.weight'] == (128,)
    assert llm['blk.0.attn_k.weight'] == (1024, 4096)
    assert vision['resampler.kv.weight'] == (4096, 1152)
    assert audio['audio_projector.linear1.weight'] == (4096, 1024)


def test_large_vocabulary_has_the_published_ids():
    tokens = make_tokens(151748, FAMILY)
    assert len(tokens.texts) == len(set(tokens.texts)) == 151748
    published = {
        '<|endoftext|>': 151643,
        '<|im_end|>': 151645,
        '<think>': 151667,
        '</think>': 151668,
        '<image>': 151669,
        '<ref>': 151671,
        '<slice>': 151679,
        '<image_id>': 151681,
        '<unit>': 151683,
        '</unit>': 151684,
        '<|audio_start|>': 151697,
        '<|audio_end|>': 151699,
        '<|spk_bos|>': 151700,
        '<|tts_bos|>': 151703,
        '<|tts_eos|>': 151704,
        '<|listen|>': 151705,
        '<|vad_end|>': 151709,
        '<|turn_bos|>': 151716,
        '<|chunk_bos|>': 151719,
        '<|tts_pad|>': 151722,
        '<unk>': 128244,
    }
    assert {text: tokens.id_of(text) for text in published} == published


SHARED = (
    '<|endoftext|> <|im_start|> <|im_end|> <image> </image> <slice> </slice> <|audio_start|> '
    '<|audio_end|> <|tts_bos|> <|tts_eos|>'
)


@pytest.mark.parametrize(
    'family, own',
    [('minicpm-o-2.6', '<unit> <|spk_bos|> <|spk|> <|spk_eos|>'), (FAMILY, '<think> </think>')],
)
def test_a_directory_is_refused_for_want_of_exactly_what_its_layout_needs(family, own):
    needed = {*SHARED.split(), *own.split()}
    assert FAMILIES[family].required_tokens == needed
    for layout in FAMILIES[family].layouts.values():
        assert layout.special_tokens == needed


def test_the_directory_opens_and_llama_cpp_loads_it(directory, model):
    opened = ModelDirectory.open(directory)
    assert opened.space == f'{FAMILY}/256/random-tiny-4.5-1' and not opened.warnings
    # Heads of 96 in a width of 256: 4 of them are wider than the embedding.
    assert (model.width, model.head_width) == (256, SHAPES['tiny-4.5'].llm_head)
    Context(model, ContextOptions(n_ctx=256, kv_type='q8_0')).close()


def test_a_context_in_which_its_answers_are_reported_to_break_is_told(
    directory, tiny_model_dir, capsys
):
    opened, *memory = ModelDirectory.open(directory), '--memory-mib', '9000'
    warned = FAMILIES[FAMILY].sound_positions + 1
    for n_ctx in (warned, warned - 1):
        assert cli.main(['plan', str(directory), *memory, '--set', f'n_ctx={n_ctx}']) == 0
        told = f'warning: n_ctx is {n_ctx}, but users report'
        assert (told in capsys.readouterr().out) == (n_ctx == warned)
        assert bool(doctor_model.context(opened, n_ctx)) == (n_ctx == warned)
    (finding,) = doctor_model.context(opened, warned)
    assert finding.remedy == f'Set n_ctx to {warned - 1} or less'
    assert not doctor_model.context(ModelDirectory.open(tiny_model_dir), 32768)


def test_without_its_norms_it_is_refused(directory, tmp_path, monkeypatch):
    tensors = layouts.llm_tensors
    monkeypatch.setattr(
        layouts,
        'llm_tensors',
        lambda shape: [plan for plan in tensors(shape) if 'q_norm' not in plan.name],
    )
    synthetic.write_llm(tmp_path / 'llm.gguf', SHAPES['tiny-4.5'])
    with pytest.raises(ModelFileError):
        LanguageModel.load(tmp_path / 'llm.gguf')


def test_the_vision_file_of_another_model_of_this_width_is_told(directory, tmp_path, monkeypatch):
    add_int32 = gguf.GGUFWriter.add_int32
    monkeypatch.setattr(
        gguf.GGUFWriter, 'add_int32', lambda writer, key, value: add_int32(writer, key, 6)
    )
    for name in ('llm.gguf', 'audio.gguf', 'manifest.yaml'):
        (tmp_path / name).symlink_to(directory / name)
    synthetic.write_vision(tmp_path / 'vision.gguf', SHAPES['tiny-4.5'])
    (warning,) = ModelDirectory.open(tmp_path).warnings
    assert 'minicpmv_version is 6' in warning and '100045' in warning


def test_a_picture_equals_libmtmd(directory, backend):
    y, x = np.mgrid[:336, :602]
    picture = np.stack([y * 255 / 336, x * 255 / 602, 127 + 127 * np.sin(x / 30)], -1)
    picture = picture.astype(np.uint8)
    rows = VisionEncoder.load(directory / 'vision.gguf', backend).encode([picture])
    with loaded_mtmd(directory / 'llm.gguf', directory / 'vision.gguf') as context:
        reference = encode_overview(context, picture, 256)
    assert rows.shape == (64, 256)
    assert np.linalg.norm(rows - reference) < 1e-3 * np.linalg.norm(reference)


def test_a_second_of_sound_is_ten_tokens(directory, backend, rng):
    encoder = AudioEncoder.load(directory / 'audio.gguf', backend)
    assert encoder.facts.tokens_per_second == 10 and encoder.facts.width == 256


def test_turns_are_laid_out_for_half_duplex(model, rng):
    prompt = CompiledPrompt(LAYOUT, model.vocabulary, model.token_rows)
    spoken = CompiledPrompt(LAYOUT, model.vocabulary, model.token_rows, speech=True)
    picture, sound = (rng.standard_normal((n, 256)).astype(np.float32) for n in (64, 10))
    ids, answer = model.vocabulary.encode('what'), model.vocabulary.encode('a cup')
    open_answer = '<|im_end|>\n<|im_start|>assistant\n' + THOUGHTS
    for found, parts in (
        (prompt.prefix, ['<|im_start|>system\n<|im_end|>\n<|im_start|>user\n']),
        (
            prompt.unit(picture, 0, 0, sound),
            ['<image>', picture, '</image><|audio_start|>', sound, '<|audio_end|>'],
        ),
        (prompt.question(ids), ['what' + open_answer]),
        (
            prompt.turn(ids, answer),
            ['what' + open_answer + 'a cup<|im_end|>\n<|im_start|>user\n'],
        ),
        (
            spoken.turn(ids, answer),
            [
                'what' + open_answer + '<|tts_bos|>',
                'a cup<|tts_eos|><|im_end|>\n<|im_start|>user\n',
            ],
        ),
    ):
        np.testing.assert_array_equal(found, expected(model, *parts))
    assert len(prompt.unit(picture, 0, 0, sound)) == 78


def test_words_it_has_for_thoughts_stay_a_persons_text(model):
    ids = model.vocabulary.encode('a <think>\n</think> of <tool_response>')
    assert not set(ids) & set(model.vocabulary.special_tokens.values())
    assert b''.join(map(model.vocabulary.piece, ids)) == b'a <think>\n</think> of <tool_response>'
    assert model.vocabulary.special_id('<think>') in model.vocabulary.unspoken_ids


def test_a_stream_is_watched_and_asked_about(session, rng):
    said = set()
    for second in range(12):
        picture, sound = (rng.standard_normal((n, 256)).astype(np.float16) for n in (64, 10))
        assert session.append(Unit(second, picture, (0, 0), sound)).rows == 78
        answering = session.ask(Question('what', remember=second % 2 == 1))
        answering.complete()
        assert answering.answer.finish in (Finish.STOP, Finish.LENGTH)
        said.add(answering.answer.text)
    assert len(said) > 3 and session.evicted > 0
    with pytest.raises(InputError, match='shape'):
        session.append(Unit(12, None, (0, 0), rng.standard_normal((10, 128))))
