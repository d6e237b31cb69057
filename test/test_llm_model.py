# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Loading can be watched and stopped, and refuses what llama.cpp would compute wrongly."""

import resource

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import CancelledError, ModelFileError
from minicpmo_ros.ggml import library
from minicpmo_ros.llm import model as language_model
from minicpmo_ros.llm.context import Context
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.llm.model import LanguageModel, ModelOptions
from minicpmo_ros.modelset.gguf_layouts import SHAPES
from minicpmo_ros.synthetic import model as synthetic


@pytest.mark.parametrize('use_mmap', [True, False])
@pytest.mark.parametrize('repack', [True, False])
def test_every_way_of_holding_weights_loads(tiny_model_dir, use_mmap, repack):
    options = ModelOptions(use_mmap=use_mmap, repack=repack)
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf', options)
    assert (model.width, model.context_length, model.head_width) == (256, 32768, 64)
    assert model.size_bytes > 1 << 20
    model.close()


@pytest.mark.parametrize('use_mmap', [True, False])
def test_what_is_reordered_for_the_cpu_is_chosen_by_us_and_computes_the_same(
    tmp_path, monkeypatch, use_mmap
):
    """llama.cpp would use AMX wherever it is announced; a machine without it is ended by that."""
    path, lines, told = tmp_path / 'llm.gguf', [], []
    synthetic.write_llm(path, SHAPES['tiny'], 1, 'q4_0')
    load = llama.llama_model_load_from_file

    def spied(path, parameters):
        told.append(parameters.use_extra_bufts)
        return load(path, parameters)

    monkeypatch.setattr(llama, 'llama_model_load_from_file', spied)
    library.set_log(lambda level, text: lines.append(text))
    try:
        found = {}
        for repack in (False, True):
            lines.clear()
            model = LanguageModel.load(path, ModelOptions(use_mmap=use_mmap, repack=repack))
            assert any('CPU_REPACK model buffer' in line for line in lines) == repack
            context = Context(model, ContextOptions(256, threads=1))
            rows = np.random.default_rng(1).standard_normal((9, model.width)).astype(np.float32)
            found[repack] = context.read(rows, 0, want_logits=True)
            context.close()
            model.close()
    finally:
        library.set_log(None)
    assert not any(told)
    distance = np.linalg.norm(found[True] - found[False]) / np.linalg.norm(found[False])
    assert distance < 0.2


def locked_bytes() -> int:
    """Give what this process has locked in memory."""
    with open('/proc/self/status') as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith('VmLck'))


@pytest.mark.parametrize('use_mmap', [True, False])
def test_locked_weights_stay_in_memory(tiny_model_dir, use_mmap):
    path = tiny_model_dir / 'llm.gguf'
    allowed, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if allowed != resource.RLIM_INFINITY and allowed < 2 * path.stat().st_size:
        pytest.skip(f'only {allowed} bytes may be locked here')
    before = locked_bytes()
    model = LanguageModel.load(path, ModelOptions(use_mmap=use_mmap, use_mlock=True))
    assert locked_bytes() - before >= 0.9 * model.size_bytes
    model.close()
    if use_mmap:  # what was read is freed; how much of that the allocator keeps is its affair
        assert locked_bytes() == before


def test_progress_rises_to_one(tiny_model_dir):
    seen = []
    LanguageModel.load(
        tiny_model_dir / 'llm.gguf', on_progress=lambda fraction: seen.append(fraction) or True
    ).close()
    assert seen == sorted(seen) and 0 <= seen[0] and seen[-1] == 1


def test_loading_stops_when_told(tiny_model_dir):
    seen = []
    with pytest.raises(CancelledError):
        LanguageModel.load(
            tiny_model_dir / 'llm.gguf', on_progress=lambda fraction: seen.append(fraction)
        )  # returns None
    assert len(seen) == 1


def test_an_encoder_is_no_language_model(tiny_model_dir):
    with pytest.raises(ModelFileError, match='architecture is whisper'):
        LanguageModel.load(tiny_model_dir / 'audio.gguf')


@pytest.mark.parametrize(
    'method, problem',
    [('add_rope_freq_base', 'rope.freq_base'), ('add_tokenizer_pre', 'tokenizer.ggml.pre')],
)
def test_what_llama_cpp_would_guess_must_be_there(tmp_path, monkeypatch, method, problem):
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda *_: None)
    synthetic.write_llm(tmp_path / 'llm.gguf', synthetic.SHAPES['tiny'])
    with pytest.raises(ModelFileError, match=problem):
        LanguageModel.load(tmp_path / 'llm.gguf')


def test_attention_without_biases_is_refused(tmp_path, monkeypatch):
    tensors = synthetic.layouts.llm_tensors
    monkeypatch.setattr(
        synthetic.layouts,
        'llm_tensors',
        lambda shape: [plan for plan in tensors(shape) if not plan.name.endswith('.bias')],
    )
    synthetic.write_llm(tmp_path / 'llm.gguf', synthetic.SHAPES['tiny'])
    with pytest.raises(ModelFileError, match='biases'):
        LanguageModel.load(tmp_path / 'llm.gguf')


def test_a_file_llama_cpp_refuses_is_an_error_not_a_crash(tmp_path, monkeypatch):
    """Even one that our own checks let through."""
    monkeypatch.setattr(gguf.GGUFWriter, 'add_feed_forward_length', _add_ffn_in_eight_bytes)
    monkeypatch.setattr(language_model.llm_layout, 'read_facts', lambda *_: None)
    synthetic.write_llm(tmp_path / 'llm.gguf', synthetic.SHAPES['tiny'])
    with pytest.raises(ModelFileError, match='llama.cpp refused'):
        LanguageModel.load(tmp_path / 'llm.gguf')


def _add_ffn_in_eight_bytes(writer, length):
    """The number is right, but llama.cpp wants four bytes."""
    writer.add_uint64('qwen2.feed_forward_length', length)
