# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much memory a language model takes, and where, from the header of its file alone.

The formulas are llama.cpp's with fused or plain attention and one pool of cells for all
sequences, as llm/context.py opens it. A test compares them with what it plans. Layers on a GPU are
placed as llama.cpp places them: the last ones first, the output matrix behind them, the token
table never.
"""

import re
from dataclasses import dataclass

from minicpmo_ros.ggml.gguf_file import Header, StringArray
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType, row_bytes
from minicpmo_ros.ggml.weights import is_repacked
from minicpmo_ros.llm.context_options import cells
from minicpmo_ros.llm.vocabulary import TABLE

OUTPUTS = 8  # rows of a decode that may have logits, at the least
FLOAT, HALF = 4, 2  # bytes
OUTPUT = 'output.weight'


@dataclass(frozen=True)
class LlmSizes:
    """The sizes of a language model that its memory depends on."""

    width: int
    layers: int
    ffn: int
    kv_width: int  # numbers of one position's keys in one layer, and as many values
    vocabulary: int
    context_length: int  # positions it was made for
    heads: int
    query_width: int  # numbers of one position's queries in one layer

    @classmethod
    def of(cls, header: Header) -> 'LlmSizes':
        """Read them from a header; ModelFileError if one is missing."""
        architecture = header.require('general.architecture', str)

        def number(key, default=None):
            if default is None:
                return header.require(f'{architecture}.{key}', int)
            return header.get(f'{architecture}.{key}', int, default)

        width, heads = number('embedding_length'), number('attention.head_count')
        head_width = number('attention.key_length', width // heads)
        return cls(
            width,
            number('block_count'),
            number('feed_forward_length'),
            head_width * number('attention.head_count_kv', heads),
            len(header.require('tokenizer.ggml.tokens', StringArray)),
            number('context_length'),
            heads,
            head_width * heads,
        )


def position_bytes(facts: LlmSizes, kv_type: str) -> int:
    """Return the bytes of one position's keys and values in one layer."""
    return 2 * row_bytes(GgmlType[kv_type.upper()], facts.kv_width)


def output(facts: LlmSizes, n_sequences: int) -> int:
    """Return the bytes of the buffer that logits are read from."""
    return FLOAT * facts.vocabulary * n_sequences


def compute(
    facts: LlmSizes, n_ctx: int, n_ubatch: int, n_outputs: int, is_fused: bool = True
) -> int:
    """Return the bytes of intermediate results: of the widest layer, or of the logits.

    Exact for keys and values in f16, up to 9 % too much for q8_0. Plain attention has the scores
    of every head and row with every cell in it.
    """
    in_layer = n_ubatch * (3 * facts.ffn + 4 * facts.width) * FLOAT
    mask = cells(n_ctx) * n_ubatch * HALF
    logits = n_outputs * facts.vocabulary * FLOAT + 2 * n_ubatch * facts.width * FLOAT
    if is_fused:
        return max(in_layer + mask, logits)
    states = 3 * facts.width + 2 * facts.query_width + 2 * facts.kv_width
    attention = n_ubatch * (cells(n_ctx) * (facts.heads + 1) + states) * FLOAT
    return max(in_layer + mask, attention, logits)


@dataclass(frozen=True)
class Split:
    """Bytes in the memory of the machine and in that of the GPU."""

    host: int = 0
    device: int = 0


def layers_on_gpu(facts: LlmSizes, gpu_layers: int) -> int:
    """Count the layers, the output as one more, that go to the GPU; -1: all."""
    every = facts.layers + 1
    return every if gpu_layers < 0 else min(gpu_layers, every)


def weights(header: Header, facts: LlmSizes, on_gpu: int, mapped: bool) -> Split:
    """Sum up the tensors; `mapped`: pages of the file that the CPU needs count whole."""
    first = facts.layers + 1 - on_gpu  # layer on the GPU
    host = device = 0
    for name, info in header.tensors.items():
        match = re.match(r'blk\.(\d+)\.', name)
        layer = int(match[1]) if match else -1 if name == TABLE else facts.layers
        if layer >= first:
            device += info.n_bytes
        else:
            host += info.n_bytes
    if on_gpu and OUTPUT not in header.tensors:
        device += header.tensors[TABLE].n_bytes  # tied: the GPU has a table of its own
    if mapped and not on_gpu:
        host = header.size_bytes
    return Split(host, device)


def repacked_bytes(header: Header, backend: Backend) -> int:
    """Sum up the matrices that the CPU would reorder; with a mapped file they are held twice."""
    known, total = {}, 0
    for name, info in header.tensors.items():
        if name == TABLE or len(info.shape) != 2 or info.type in (GgmlType.F32, GgmlType.F16):
            continue
        kind = info.shape, info.type
        if kind not in known:
            known[kind] = is_repacked(backend, *kind)
        total += info.n_bytes * known[kind]
    return total


def keys_and_values(facts: LlmSizes, n_ctx: int, kv_type: str, on_gpu: int) -> Split:
    """Return the bytes of the cache; the keys and values of a layer lie where the layer does."""
    layer = cells(n_ctx) * position_bytes(facts, kv_type)
    there = max(0, on_gpu - 1)  # without the output
    return Split(layer * (facts.layers - there), layer * there)


def work(facts: LlmSizes, n_ubatch: int) -> int:
    """Return the bytes that the CPU puts the rows of the widest product into, at most f16."""
    return n_ubatch * max(facts.ffn, facts.width) * HALF


def gpu_inputs(facts: LlmSizes, n_ctx: int, n_ubatch: int) -> int:
    """Return the host bytes of a GPU's compute buffer: embeddings and the mask."""
    return n_ubatch * (facts.width * FLOAT + cells(n_ctx) * FLOAT)
