# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Token rows fed as embeddings are what llama.cpp reads from token ids."""

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.language.context import Context, ContextOptions
from minicpmo_ros.language.model import LanguageModel
from minicpmo_ros.language.token_rows import TokenRows
from minicpmo_ros.models import synthetic


def logits_of_ids(model, ids):
    """Ask llama.cpp itself, without any row of ours."""
    context = Context(model, ContextOptions(n_ctx=256))
    tokens = (llama.llama_token * len(ids))(*ids)
    assert llama.llama_decode(context._pointer, llama.llama_batch_get_one(tokens, len(ids))) == 0
    logits = context._logits(len(ids) - 1)
    context.close()
    return logits


@pytest.mark.parametrize('precision', ['f32', 'f16', 'q8_0', 'q4_0', 'q4_K'])
def test_rows_give_the_logits_of_ids(tmp_path, rng, precision):
    synthetic.write_llm(tmp_path / 'llm.gguf', synthetic.SHAPES['tiny'], precision=precision)
    model = LanguageModel.load(tmp_path / 'llm.gguf')
    ids = rng.integers(0, model.vocabulary.size, 50).tolist()
    context = Context(model, ContextOptions(n_ctx=256))
    logits = context.decode(model.token_rows.rows(ids), 0, want_logits=True)
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
    from minicpmo_ros.ggml.header import read_header

    path = tiny_model_dir / 'audio.gguf'
    with pytest.raises(ModelFileError, match='token_embd'):
        TokenRows(path, read_header(path))


def test_the_table_is_not_copied_into_memory(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    table = model.token_rows._table
    assert isinstance(table, np.memmap) and not table.flags.owndata
    model.close()
