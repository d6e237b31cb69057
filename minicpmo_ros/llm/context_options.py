# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The sizes and kinds of a llama.cpp context, and which of them cannot be."""

from collections.abc import Callable
from dataclasses import dataclass

import llama_cpp.llama_cpp as llama
import numpy as np

from minicpmo_ros.config import EVALUATION, LLM
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.runtime import MAX_THREADS
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.llm.model import LanguageModel

# Keys that live through shifts must survive rotation: in 4 bits they do not.
KV_TYPES = {'f32': GgmlType.F32, 'f16': GgmlType.F16, 'q8_0': GgmlType.Q8_0}
CELLS_MULTIPLE = 256  # llama.cpp rounds a context up to it
ATTENTION = ('auto', 'fused', 'plain')


@dataclass(frozen=True)
class ContextOptions:
    """Sizes of a context."""

    n_ctx: int = LLM.n_ctx  # positions of all sequences of a window together; see `cells`
    n_batch: int = LLM.n_ubatch  # rows that llama.cpp reads at once; a decode may have more
    n_sequences: int = 2
    n_outputs: int = 8  # rows read at once that may have logits; at least n_sequences
    kv_type: str = LLM.kv_type  # of keys and values: f32, f16, q8_0
    attention: str = LLM.attention  # auto, fused, plain; see `is_fused`
    threads: int = EVALUATION.threads
    offload_kv: bool = True  # use the accelerator where there is one, also for keys and values
    # Sees (name of a weight, rows (n, k) it is multiplied with) of every such product: slow.
    on_product: Callable[[str, np.ndarray], None] | None = None
    n_windows: int = 1  # each with n_ctx positions, in one pool of cells


def is_fused(attention: str, kv_type: str, on_gpu: bool) -> bool:
    """Whether attention is fused; InputError for what cannot be.

    On a CPU llama.cpp's fused attention sums the values of a generated token in f16 where keys and
    values are f16: the longer the context, the farther from exact. Plain attention is exact and
    no slower, and takes a larger compute buffer; but it does not read quantised values. So `auto`
    is plain on a CPU but for quantised ones, and fused on a GPU, where sums are f32. With several
    windows, plain attention computes, and has room for, the scores of each row with the cells of
    all of them; fused attention leaves out those of the others.
    """
    is_quantised = kv_type == 'q8_0'
    if attention not in ATTENTION:
        raise InputError(f'attention is {attention}, allowed are {", ".join(ATTENTION)}.')
    if attention == 'plain' and is_quantised:
        raise InputError(
            f'attention is plain and kv_type {kv_type}: plain attention does not read quantised '
            'values. Use attention fused or auto, or kv_type f16.'
        )
    return attention == 'fused' or attention == 'auto' and (is_quantised or on_gpu)


def cells(n_ctx: float) -> int:
    """Round a context up as llama.cpp does."""
    return -(-int(n_ctx) // CELLS_MULTIPLE) * CELLS_MULTIPLE


def check_n_ctx(n_ctx: int, context_length: int) -> None:
    """Raise InputError for more positions than a model was made for."""
    if not 1 <= n_ctx <= context_length:
        raise InputError(f'n_ctx is {n_ctx}, this model allows 1 to {context_length}.')


def check_options(options: ContextOptions, model: LanguageModel) -> None:
    """Raise InputError for a context that llama.cpp would not make, or end the process over."""
    check_n_ctx(options.n_ctx, model.context_length)
    if not 1 <= options.n_batch <= options.n_ctx:
        raise InputError(f'n_batch is {options.n_batch}, 1 to n_ctx ({options.n_ctx}) is allowed.')
    if not 1 <= options.n_sequences <= llama.llama_max_parallel_sequences():
        raise InputError(
            f'n_sequences is {options.n_sequences}, 1 to '
            f'{llama.llama_max_parallel_sequences()} is allowed.'
        )
    if options.n_outputs < 1:
        raise InputError(f'n_outputs is {options.n_outputs}, at least 1 is needed.')
    if options.kv_type not in KV_TYPES:
        raise InputError(f'kv_type is {options.kv_type}, allowed are {", ".join(KV_TYPES)}.')
    if options.kv_type == 'q8_0' and model.head_width % 32:
        raise InputError(
            f'kv_type q8_0 needs heads of a multiple of 32, this model has '
            f'{model.head_width}. Use f16.'
        )
    if not 1 <= options.threads <= MAX_THREADS:
        raise InputError(f'threads is {options.threads}, 1 to {MAX_THREADS} is allowed.')
