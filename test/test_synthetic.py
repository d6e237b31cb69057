# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic models: published layouts, seeded bytes, files that llama.cpp takes."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from llama_cpp import llama_cpp

from minicpmo_ros.families import FAMILIES
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.llm.tokens import make_tokens
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset.gguf_layouts import NANO, SHAPES, TINY
from minicpmo_ros.quantize.rules import fitting_type
from minicpmo_ros.synthetic import model as synthetic
from minicpmo_ros.synthetic.model import RandomRows

TYPES = ('f32', 'f16', 'q8_0', 'q4_0', 'q4_K')


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        synthetic.write_model(tmp_path / name, 'nano', seed, 'q4_0')
    for file in ('llm.gguf', 'vision.gguf', 'audio.gguf', 'manifest.yaml'):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in 'abc')
        assert a == b != c


def test_true_shape_has_the_published_tensors():
    llm = {plan.name: plan.shape for plan in layouts.llm_tensors(SHAPES['2.6'])}
    vision = {plan.name: plan.shape for plan in layouts.vision_tensors(SHAPES['2.6'])}
    audio = {plan.name: plan.shape for plan in layouts.audio_tensors(SHAPES['2.6'])}
    assert (len(llm), len(vision), len(audio)) == (339, 455, 371)
    assert llm['blk.27.ffn_down.weight'] == (3584, 18944)
    assert llm['blk.0.attn_k.bias'] == (512,)
    assert vision['v.blk.26.ffn_down.weight'] == (4304, 1152)
    assert vision['v.patch_embd.weight'] == (1152, 3, 14, 14)
    assert vision['resampler.pos_embed_k'] == (4900, 3584)
    assert audio['encoder.conv2.weight'] == (1024, 1024, 3)
    assert audio['audio_projector.linear1.weight'] == (3584, 1024)
    assert 'encoder.blocks.0.attn.key.bias' not in audio


def test_large_vocabulary_has_the_published_ids():
    tokens = make_tokens(151700)
    assert len(tokens.texts) == len(tokens.types) == len(set(tokens.texts)) == 151700
    published = {
        '<|endoftext|>': 151643,
        '<|im_start|>': 151644,
        '<|im_end|>': 151645,
        '<image>': 151665,
        '</image>': 151666,
        '<point>': 151673,
        '<slice>': 151675,
        '<image_id>': 151677,
        '<unit>': 151679,
        '</unit>': 151680,
        '<asr>': 151681,
        '<|audio_start|>': 151685,
        '<|audio_end|>': 151687,
        '<|spk_bos|>': 151688,
        '<|tts_eos|>': 151692,
        '<|listen|>': 151693,
        '<|vad_end|>': 151697,
        '<reserved_53>': 151699,
        '<unk>': 128244,
    }
    assert {text: tokens.id_of(text) for text in published} == published


def test_too_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match='too small'):
        make_tokens(300)


@pytest.mark.parametrize('precision', TYPES)
def test_types_are_those_llama_cpp_would_choose(tmp_path, precision):
    synthetic.write_llm(tmp_path / 'llm.gguf', TINY, 1, precision)
    synthetic.write_vision(tmp_path / 'vision.gguf', TINY, 1, precision)
    llm, vision = (read_header(tmp_path / name).tensors for name in ('llm.gguf', 'vision.gguf'))
    wanted = GgmlType[precision.upper()]
    assert llm['blk.0.attn_q.weight'].type == wanted
    quantised = precision in ('q4_0', 'q4_K')
    assert llm['output.weight'].type == (GgmlType.Q6_K if quantised else wanted)
    assert llm['blk.0.attn_q.bias'].type == GgmlType.F32
    # 160 is no multiple of 256, 538 none of 32.
    fallback = {GgmlType.Q4_K: GgmlType.Q5_0}.get(wanted, wanted)
    assert vision['v.blk.0.attn_q.weight'].type == fallback
    second = vision['v.blk.0.ffn_up.weight']
    assert second.shape == (160, 538)
    assert second.type == (GgmlType.F32 if precision == 'f32' else GgmlType.F16)


def test_padded_feed_forward_is_quantised(tmp_path):
    synthetic.write_vision(tmp_path / 'v.gguf', TINY, 1, 'q8_0', pad_ffn=True)
    second = read_header(tmp_path / 'v.gguf').tensors['v.blk.0.ffn_up.weight']
    assert (second.shape, second.type) == ((160, 544), GgmlType.Q8_0)


def test_both_namings_carry_the_same_weights(tmp_path):
    raw = {}
    for naming in ('swapped', 'plain'):
        path = tmp_path / f'{naming}.gguf'
        synthetic.write_vision(path, NANO, 1, 'f16', naming)
        data, tensors = path.read_bytes(), read_header(path).tensors
        for name in layouts.FFN_NAMES[naming]:
            info = tensors[f'v.blk.1.{name}.weight']
            raw[naming, info.shape] = data[info.offset : info.offset + info.n_bytes]
    assert raw['swapped', (512, 128)] == raw['plain', (512, 128)]
    assert raw['swapped', (128, 512)] == raw['plain', (128, 512)]


def test_tiled_rows_are_all_different(monkeypatch):
    monkeypatch.setattr('minicpmo_ros.synthetic.model.POOL_VALUES', 4096)
    rows = RandomRows(1).matrix('x', (2000, 256), 1.0, GgmlType.Q4_0)
    assert rows.shape == (2000, 8, 18)
    assert len({row.tobytes() for row in rows}) == 2000


def test_fallback_goes_on_to_f16():
    assert fitting_type(GgmlType.Q4_K, 4304) == GgmlType.F16
    assert fitting_type(GgmlType.Q6_K, 896) == GgmlType.Q8_0


@pytest.fixture
def load_llm(tmp_path):
    """Give a function that writes an LLM and loads it into llama.cpp."""
    models = []

    def load(shape, precision):
        path = tmp_path / f'{shape.name}-{precision}.gguf'
        synthetic.write_llm(path, shape, 1, precision)
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False  # some machines announce AMX and lack it
        models.append(llama_cpp.llama_model_load_from_file(str(path).encode(), parameters))
        assert models[-1]
        return models[-1]

    yield load
    for model in models:
        llama_cpp.llama_model_free(model)


def _tokens(model, text, special=True):
    vocabulary, ids = llama_cpp.llama_model_get_vocab(model), (ctypes.c_int32 * 99)()
    raw = text.encode()
    n = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, 99, False, special)
    return list(ids[:n])


def _last_logits(model, ids):
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 256, 1, 1
    context = llama_cpp.llama_init_from_model(model, parameters)
    array = (ctypes.c_int32 * len(ids))(*map(int, ids))
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))) == 0
    n = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (n,)).copy()
    llama_cpp.llama_free(context)
    return logits


def test_special_tokens_are_single_and_text_is_encoded(load_llm):
    model = load_llm(TINY, 'f16')
    tokens = make_tokens(TINY.vocabulary)
    for text in FAMILIES['minicpm-o-2.6'].required_tokens:
        assert _tokens(model, text) == [tokens.id_of(text)]
        assert len(_tokens(model, text, special=False)) > 1
    assert _tokens(model, ' the') == [tokens.id_of('Ġthe')]
    assert _tokens(model, 'é') == [0xC3, 0xA9]
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    assert llama_cpp.llama_vocab_eos(vocabulary) == tokens.id_of('<|im_end|>')
    assert not llama_cpp.llama_vocab_get_add_bos(vocabulary)


@pytest.mark.parametrize('precision', TYPES)
@pytest.mark.parametrize('shape', [TINY, replace(NANO, llm_layers=2)], ids=['untied', 'tied'])
def test_logits_depend_on_what_was_seen_long_ago(load_llm, shape, precision, rng):
    model = load_llm(shape, precision)
    ids = rng.integers(0, 256, 120)
    other = ids.copy()
    other[20:84] = 32
    logits, changed = _last_logits(model, ids), _last_logits(model, other)
    assert 1 < logits.std() < 4
    assert np.linalg.norm(logits - changed) > 0.1 * np.linalg.norm(logits)
