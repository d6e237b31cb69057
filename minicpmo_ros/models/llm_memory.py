# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a language model will occupy, from its header alone: weights, keys and values, computing.

The formulas are llama.cpp's with flash attention and one pool of cells for all sequences, as
language/context.py opens it; llama.cpp itself is not needed. A test holds them to what it plans.
"""

from dataclasses import dataclass

from minicpmo_ros.ggml.header import Header, StringArray
from minicpmo_ros.ggml.types import GgmlType, row_bytes

MIB = 2**20
CELLS_MULTIPLE = 256  # the context is rounded up to it
OUTPUTS = 8  # rows of a decode that may have logits, at the least
FLOAT, HALF = 4, 2  # bytes


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
        )


def kv_mib_per_position(facts: LlmFacts, kv_type: str = 'f16') -> float:
    """Give what keys and values of one position take in all layers, MiB."""
    return facts.layers * position_bytes(facts, kv_type) / MIB


def cells(n_ctx: float) -> int:
    """Round a context up as llama.cpp does."""
    return -(-int(n_ctx) // CELLS_MULTIPLE) * CELLS_MULTIPLE


def position_bytes(facts: LlmFacts, kv_type: str) -> int:
    """Give the bytes of one position's keys and values in one layer."""
    return 2 * row_bytes(GgmlType[kv_type.upper()], facts.kv_width)


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
