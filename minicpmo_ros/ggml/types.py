# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Number formats of ggml tensors, as a GGUF file numbers them; needs no library.

A row of a block format is stored in blocks of `block_size(type)` numbers, each block
taking `type_size(type)` bytes. The sizes are those of ggml.h of ggml 0.25; the library
is asked for them once in a test.
"""

from enum import IntEnum


class GgmlType(IntEnum):
    """Every tensor type that ggml 0.25 stores in files."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40


# type: (numbers in a block, bytes of a block)
_BLOCKS = {
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.BF16: (1, 2),
    GgmlType.F64: (1, 8),
    GgmlType.I8: (1, 1),
    GgmlType.I16: (1, 2),
    GgmlType.I32: (1, 4),
    GgmlType.I64: (1, 8),
    GgmlType.Q4_0: (32, 18),
    GgmlType.Q4_1: (32, 20),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q8_1: (32, 36),
    GgmlType.Q2_K: (256, 84),
    GgmlType.Q3_K: (256, 110),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
    GgmlType.Q8_K: (256, 292),
    GgmlType.IQ2_XXS: (256, 66),
    GgmlType.IQ2_XS: (256, 74),
    GgmlType.IQ3_XXS: (256, 98),
    GgmlType.IQ1_S: (256, 50),
    GgmlType.IQ4_NL: (32, 18),
    GgmlType.IQ3_S: (256, 110),
    GgmlType.IQ2_S: (256, 82),
    GgmlType.IQ4_XS: (256, 136),
    GgmlType.IQ1_M: (256, 56),
    GgmlType.TQ1_0: (256, 54),
    GgmlType.TQ2_0: (256, 66),
    GgmlType.MXFP4: (32, 17),
    GgmlType.NVFP4: (64, 36),
}


# ggml stores these types and ends the process when it is to multiply with them.
NO_WEIGHTS = frozenset(
    {
        GgmlType.I8,
        GgmlType.I16,
        GgmlType.I32,
        GgmlType.I64,
        GgmlType.F64,
        GgmlType.Q8_1,
        GgmlType.Q8_K,
    }
)


def block_size(ggml_type: int) -> int:
    """Numbers in one block; rows are whole blocks."""
    return _BLOCKS[ggml_type][0]


def type_size(ggml_type: int) -> int:
    """Bytes of one block."""
    return _BLOCKS[ggml_type][1]


def row_bytes(ggml_type: int, n: int) -> int:
    """Bytes of a row of n numbers; ValueError if n is not a whole number of blocks."""
    block, size = _BLOCKS[ggml_type]
    if n % block:
        raise ValueError(
            f'a row of {n} numbers is not a whole number of {block}-number blocks '
            f'of {GgmlType(ggml_type).name}'
        )
    return n // block * size
