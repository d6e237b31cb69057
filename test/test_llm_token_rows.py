# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Token rows fed as embeddings are what llama.cpp reads from token ids."""

import gc
import os
import shutil
import tracemalloc
from dataclasses import replace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.llm.context import Context, ContextOptions
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.vocabulary import TokenRows
from minicpmo_ros.synthetic import model as synthetic


def logits_of_ids(model, ids):
    """Ask llama.cpp itself, without any row of ours."""
    context = Context(model, ContextOptions(n_ctx=256))
    tokens = (llama.llama_token * len(ids))(*ids)
    assert llama.llama_decode(context.pointer, llama.llama_batch_get_one(tokens, len(ids))) == 0
    pointer = llama.llama_get_logits_ith(context.pointer, len(ids) - 1)
    logits = np.ctypeslib.as_array(pointer, (model.vocabulary.size,)).copy()
    context.close()
    return logits


@pytest.mark.parametrize('precision', ['f32', 'f16', 'q8_0', 'q4_0', 'q4_K'])
def test_rows_give_the_logits_of_ids(tmp_path, rng, precision):
    synthetic.write_llm(tmp_path / 'llm.gguf', synthetic.SHAPES['tiny'], precision=precision)
    model = LanguageModel.load(tmp_path / 'llm.gguf')
    ids = rng.integers(0, model.vocabulary.size, 50).tolist()
    context = Context(model, ContextOptions(n_ctx=256))
    logits = context.read(model.token_rows.rows(ids), 0, want_logits=True)
    expected = logits_of_ids(model, ids)
    assert np.abs(expected).max() > 1
    np.testing.assert_array_equal(logits, expected)
    context.close()
    model.close()


def test_rows_have_the_order_asked_for(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    rows = model.token_rows.rows([5, 3, 5])  # (3, width)
    assert rows.shape == (3, model.width) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])
    assert model.token_rows.rows([]).shape == (0, model.width)
    model.close()


@pytest.mark.parametrize('bad', [-1, 640])
def test_ids_outside_the_table_are_refused(tiny_model_dir, bad):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    with pytest.raises(ValueError, match='0..639'):
        model.token_rows.rows([1, bad])
    model.close()


def test_a_file_without_the_table_is_refused(tiny_model_dir):
    path = tiny_model_dir / 'audio.gguf'
    with pytest.raises(ModelFileError, match='token_embd'):
        TokenRows(path, read_header(path))


def test_the_table_is_not_held_in_memory(tmp_path, rng):
    """Rows of a table with 64 MiB cost what they take themselves."""
    shape = replace(synthetic.SHAPES['tiny'], vocabulary=2**17)
    synthetic.write_llm(tmp_path / 'llm.gguf', shape, None)
    rows = TokenRows(tmp_path / 'llm.gguf', read_header(tmp_path / 'llm.gguf'))
    tracemalloc.start()
    rows.rows(rng.integers(0, 2**17, 1000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20 and not isinstance(rows, np.memmap)
    with open('/proc/self/maps') as file:
        assert str(tmp_path) not in file.read()


def test_a_file_that_is_cut_is_an_error_and_one_that_is_replaced_goes_on(tiny_model_dir, tmp_path):
    path = shutil.copy(tiny_model_dir / 'llm.gguf', tmp_path / 'llm.gguf')
    rows = TokenRows(path, read_header(path))
    expected = rows.rows([639, 3])
    shutil.copy(tiny_model_dir / 'audio.gguf', tmp_path / 'new')
    os.replace(tmp_path / 'new', path)
    np.testing.assert_array_equal(rows.rows([639, 3]), expected)
    path = shutil.copy(tiny_model_dir / 'llm.gguf', tmp_path / 'llm2.gguf')
    rows = TokenRows(path, read_header(path))
    os.truncate(path, 1000)
    with pytest.raises(ModelFileError, match='shorter while it was in use'):
        rows.rows([639])


def test_files_are_closed_with_their_tables(tiny_model_dir):
    path = tiny_model_dir / 'llm.gguf'
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(20):
        TokenRows(path, read_header(path))
    gc.collect()
    assert len(os.listdir('/proc/self/fd')) <= before + 1
