# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What llama.cpp will take for a language model and its context, from the header alone.

Weights by tensor; keys and values, output and compute buffers by the formulas of llama.cpp with
flash attention and one pool of cells for all sequences, as language/context.py opens it. A test
holds them to what llama.cpp itself plans. Layers on a GPU are placed as llama.cpp places them:
the last ones first, the output matrix behind them, the token table never.
"""

import re
from dataclasses import dataclass

from minicpmo_ros.ggml.header import Header, StringArray
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType, row_bytes
from minicpmo_ros.ggml.weights import is_repacked
from minicpmo_ros.language.context import KV_TYPES
from minicpmo_ros.language.token_rows import TABLE

CELLS_MULTIPLE = 256  # the context is rounded up to it
FLOAT, HALF = 4, 2  # bytes
OUTPUT = 'output.weight'


@dataclass(frozen=True)
class LlmFacts:
    """Sizes of one language model."""

    width: int
    layers: int
    ffn: int
    kv_width: int  # numbers of one position's keys in one layer, and as many values
    vocabulary: int
    context_length: int  # positions it was made for

    @classmethod
    def of(cls, header: Header) -> 'LlmFacts':
        """Read them; ModelFileError where one is missing."""
        architecture = header.require('general.architecture', str)

        def number(key, default=None):
            if default is not None and f'{architecture}.{key}' not in header.metadata:
                return default
            return header.require(f'{architecture}.{key}', int)

        width, heads = number('embedding_length'), number('attention.head_count')
        head_width = number('attention.key_length', width // heads)
        return cls(
            width,
            number('block_count'),
            number('feed_forward_length'),
            head_width * number('attention.head_count_kv', heads),
            len(header.require('tokenizer.ggml.tokens', StringArray)),
            number('context_length'),
        )


@dataclass(frozen=True)
class Split:
    """Bytes in the memory of the machine and in that of the GPU."""

    host: int = 0
    device: int = 0


def layers_on_gpu(facts: LlmFacts, gpu_layers: int) -> int:
    """Count the layers, the output as one more, that go to the GPU; -1: all."""
    every = facts.layers + 1
    return every if gpu_layers < 0 else min(gpu_layers, every)


def weights(header: Header, facts: LlmFacts, on_gpu: int, mapped: bool) -> Split:
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


def cells(n_ctx: int) -> int:
    """Round a context up as llama.cpp does."""
    return -(-n_ctx // CELLS_MULTIPLE) * CELLS_MULTIPLE


def position_bytes(facts: LlmFacts, kv_type: str) -> int:
    """Give the bytes of one position's keys and values in one layer."""
    return 2 * row_bytes(KV_TYPES[kv_type], facts.kv_width)


def keys_and_values(facts: LlmFacts, n_ctx: int, kv_type: str, on_gpu: int) -> Split:
    """Give the cache; a layer's part lies where the layer does."""
    layer = cells(n_ctx) * position_bytes(facts, kv_type)
    there = max(0, on_gpu - 1)  # without the output
    return Split(layer * (facts.layers - there), layer * there)


def output(facts: LlmFacts, n_sequences: int) -> int:
    """Give the buffer that logits are read from."""
    return FLOAT * facts.vocabulary * n_sequences


def compute(facts: LlmFacts, n_ctx: int, n_ubatch: int, n_outputs: int) -> int:
    """Give the buffer of intermediate results: of the widest layer, or of the logits.

    Exact for keys and values in f16, up to 9 % too much for q8_0.
    """
    in_layer = n_ubatch * (3 * facts.ffn + 4 * facts.width) * FLOAT
    mask = cells(n_ctx) * n_ubatch * HALF
    logits = n_outputs * facts.vocabulary * FLOAT + 2 * n_ubatch * facts.width * FLOAT
    return max(in_layer + mask, logits)


def work(facts: LlmFacts, n_ubatch: int) -> int:
    """Give what the CPU puts the rows of the widest product into, at most in f16."""
    return n_ubatch * max(facts.ffn, facts.width) * HALF


def gpu_inputs(facts: LlmFacts, n_ctx: int, n_ubatch: int) -> int:
    """Give the machine's side of a GPU's compute buffer: embeddings and the mask."""
    return n_ubatch * (facts.width * FLOAT + cells(n_ctx) * FLOAT)
