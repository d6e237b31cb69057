# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where llama.cpp will put a language model and its context, from the header alone.

Weights by tensor; the rest by the formulas of llm_memory.py. Layers on a GPU are placed as
llama.cpp places them: the last ones first, the output matrix behind them, the token table never.
"""

import re
from dataclasses import dataclass

from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.ggml.weights import is_repacked
from minicpmo_ros.language.token_rows import TABLE
from minicpmo_ros.models.llm_memory import FLOAT, HALF, LlmFacts, cells, position_bytes

OUTPUT = 'output.weight'


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


def keys_and_values(facts: LlmFacts, n_ctx: int, kv_type: str, on_gpu: int) -> Split:
    """Give the cache; a layer's part lies where the layer does."""
    layer = cells(n_ctx) * position_bytes(facts, kv_type)
    there = max(0, on_gpu - 1)  # without the output
    return Split(layer * (facts.layers - there), layer * there)


def work(facts: LlmFacts, n_ubatch: int) -> int:
    """Give what the CPU puts the rows of the widest product into, at most in f16."""
    return n_ubatch * max(facts.ffn, facts.width) * HALF


def gpu_inputs(facts: LlmFacts, n_ctx: int, n_ubatch: int) -> int:
    """Give the machine's side of a GPU's compute buffer: embeddings and the mask."""
    return n_ubatch * (facts.width * FLOAT + cells(n_ctx) * FLOAT)
