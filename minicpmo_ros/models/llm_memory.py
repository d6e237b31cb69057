# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a language model will occupy, from its header alone: weights, keys and values, computing.

The formulas are llama.cpp's for flash attention; what Python and the encoders take is not in it.
"""

from dataclasses import dataclass

from minicpmo_ros.ggml.header import Header, StringArray
from minicpmo_ros.ggml.types import GgmlType, block_size, type_size

MIB = 2**20
STEP = 256  # positions that llama.cpp rounds a context up to
OUTPUTS = 8  # rows of a decode that may have logits


@dataclass(frozen=True)
class LlmMemory:
    """Of one language model in one context, MiB."""

    weights_mib: float
    kv_mib: float
    compute_mib: float

    @property
    def total_mib(self) -> float:
        """All of it."""
        return self.weights_mib + self.kv_mib + self.compute_mib


def llm_memory(
    header: Header, n_ctx: int, n_ubatch: int = 128, kv_type: str = 'f16', held_twice: bool = False
) -> LlmMemory:
    """Forecast for a GGUF file; `held_twice`: repacked beside the mapped file."""
    architecture = header.require('general.architecture', str)
    width = header.require(f'{architecture}.embedding_length', int)
    ffn = header.require(f'{architecture}.feed_forward_length', int)
    vocabulary = len(header.require('tokenizer.ggml.tokens', StringArray))
    cells = rounded(n_ctx)
    layers_bytes = 4 * n_ubatch * (3 * ffn + 4 * width) + 2 * cells * n_ubatch
    output_bytes = 4 * vocabulary * min(n_ubatch, OUTPUTS) + 8 * n_ubatch * width
    compute_bytes = max(layers_bytes, output_bytes) + 4 * vocabulary * OUTPUTS
    return LlmMemory(
        header.size_bytes * (2 if held_twice else 1) / MIB,
        cells * kv_mib_per_position(header, kv_type),
        compute_bytes / MIB,
    )


def kv_mib_per_position(header: Header, kv_type: str = 'f16') -> float:
    """Give what keys and values of one position take in all layers, MiB."""
    architecture = header.require('general.architecture', str)

    def number(key: str) -> int:
        return header.require(f'{architecture}.{key}', int)

    heads = number('attention.head_count')
    kv_heads = header.metadata.get(f'{architecture}.attention.head_count_kv', heads)
    head_width = header.metadata.get(
        f'{architecture}.attention.key_length', number('embedding_length') // heads
    )
    kind = GgmlType[kv_type.upper()]
    per_number = type_size(kind) / block_size(kind)
    return number('block_count') * kv_heads * head_width * 2 * per_number / MIB


def rounded(n_ctx: float) -> int:
    """Round a number of positions up to what llama.cpp makes of it."""
    return -(-int(n_ctx) // STEP) * STEP
