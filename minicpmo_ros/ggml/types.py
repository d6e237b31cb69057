# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The types of a GGUF file's tensors and metadata values, as it numbers them; needs no library.

A row of a block format is stored in blocks of `block_size` numbers, each taking `block_bytes`.
The sizes are those of ggml.h of ggml 0.25; the library is asked for them once in a test.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np


class GgmlType(IntEnum):
    """Every tensor type that ggml 0.25 stores in files."""

    # number in files, numbers in a block, bytes of a block
    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36

    block_size: int  # numbers in one block; rows are whole blocks
    block_bytes: int

    def __new__(cls, number: int, block_size: int, block_bytes: int):
        """Make a member, a number with two attributes."""
        member = int.__new__(cls, number)
        member._value_, member.block_size, member.block_bytes = number, block_size, block_bytes
        return member


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


def row_bytes(ggml_type: int, n: int) -> int:
    """Bytes of a row of n numbers; ValueError if n is not a whole number of blocks."""
    ggml_type = GgmlType(ggml_type)
    if n % ggml_type.block_size:
        raise ValueError(
            f'a row of {n} numbers is not a whole number of {ggml_type.block_size}-number blocks '
            f'of {ggml_type.name}'
        )
    return n // ggml_type.block_size * ggml_type.block_bytes


class ValueType(IntEnum):
    """The types of metadata values, as GGUF numbers them."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's codes; NumPy's are the same, but for truth values, which are bytes.
SCALARS = {
    ValueType.UINT8: 'B',
    ValueType.INT8: 'b',
    ValueType.UINT16: 'H',
    ValueType.INT16: 'h',
    ValueType.UINT32: 'I',
    ValueType.INT32: 'i',
    ValueType.FLOAT32: 'f',
    ValueType.BOOL: '?',
    ValueType.UINT64: 'Q',
    ValueType.INT64: 'q',
    ValueType.FLOAT64: 'd',
}
DTYPES = {kind: np.dtype('<' + code) for kind, code in SCALARS.items() if code != '?'}
DTYPES[ValueType.BOOL] = np.dtype('u1')


class StringArray:
    """A read-only list of texts, decoded when asked for (vocabularies have 150 000)."""

    def __init__(self, data: bytes, starts: np.ndarray):
        self._data, self.starts = data, starts  # of every 8-byte length, and the end: (n + 1,)

    def __len__(self) -> int:
        """How many texts."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        """One text; bytes that are no UTF-8 are replaced."""
        n = len(self)
        if not -n <= index < n:
            raise IndexError(index)
        index %= n
        start, end = self.starts[index] + 8, self.starts[index + 1]
        return self._data[start:end].decode('utf-8', 'replace')

    def raw(self) -> Iterator[bytes]:
        """Yield the bytes of one text after another."""
        starts = self.starts.tolist()
        for start, end in zip(starts, starts[1:]):
            yield self._data[start + 8 : end]
