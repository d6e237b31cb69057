# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Random matrices as GGUF bytes, in any precision, at the speed of the disk.

A large matrix is tiled from a pool of really quantised rows; each repetition rolls the rows by one
block, so that no two rows are equal (equal rows would tie the logits).
"""

import math
import zlib

import numpy as np

from minicpmo_ros.ggml.library import quantize
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.types import block_size

POOL_VALUES = 1_000_000  # matrices up to this size are drawn number by number


def encode(values: np.ndarray, kind: Type) -> np.ndarray:
    """Return float32 values (rows, columns) as bytes (rows, blocks, bytes a block)."""
    n_rows, n_columns = values.shape
    return quantize(values, kind).reshape(n_rows, n_columns // block_size(kind), -1)


class RandomRows:
    """Draws normal matrices; the same seed and key give the same bytes."""

    def __init__(self, seed: int):
        self._seed = seed
        self._pools: dict = {}  # (type, columns, std, rows): encoded rows

    def generator(self, key: str) -> np.random.Generator:
        """Return the random numbers of one tensor."""
        return np.random.default_rng([self._seed, zlib.crc32(key.encode())])

    def values(self, key: str, shape: tuple, std: float, mean: float = 0.0) -> np.ndarray:
        """Draw float32 values of one tensor."""
        drawn = self.generator(key).standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(std) + np.float32(mean)

    def matrix(self, key: str, shape: tuple, std: float, kind: Type) -> np.ndarray:
        """Draw a matrix (rows, columns) as bytes (rows, blocks, bytes a block)."""
        if math.prod(shape) <= POOL_VALUES:
            return encode(self.values(key, shape, std), kind)
        return self._tile(key, shape[0], self._pool(shape, std, kind))

    def _pool(self, shape: tuple, std: float, kind: Type) -> np.ndarray:
        n_rows, n_columns = shape
        n_blocks = n_columns // block_size(kind)
        # Rows times rolls must not be less than the rows that are wanted.
        n_pool = min(n_rows, max(POOL_VALUES // n_columns, -(-n_rows // n_blocks) + 1))
        key = (kind, n_columns, round(std, 6), n_pool)
        if key not in self._pools:
            self._pools[key] = encode(self.values(str(key), (n_pool, n_columns), std), kind)
        return self._pools[key]

    def _tile(self, key: str, n_rows: int, pool: np.ndarray) -> np.ndarray:
        n_pool, n_blocks, size = pool.shape
        out = np.empty((n_rows, n_blocks, size), np.uint8)
        random = self.generator(key)
        start, first_roll = int(random.integers(n_pool)), int(random.integers(n_blocks))
        for repeat, at in enumerate(range(0, n_rows, n_pool)):
            here = out[at : at + n_pool]
            rows = np.roll(pool, -start, axis=0)[: len(here)] if start else pool[: len(here)]
            roll = (first_roll + repeat) % n_blocks
            here[:, roll:] = rows[:, : n_blocks - roll]
            here[:, :roll] = rows[:, n_blocks - roll :]
        return out
