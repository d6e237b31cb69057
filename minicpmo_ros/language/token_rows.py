# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Embedding rows of tokens, straight from the model file.

Fed to llama.cpp as embeddings they give what it computes from the token ids, so that text,
pictures and sound can share one batch. The table stays on disk, mapped into memory.
"""

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml import library
from minicpmo_ros.ggml.header import Header

TABLE = 'token_embd.weight'


class TokenRows:
    """The token embedding table of a language model file."""

    def __init__(self, path, header: Header):
        info = header.tensors.get(TABLE)
        if info is None or len(info.shape) != 2:
            raise ModelFileError(
                path, f'it has no matrix {TABLE}', 'Use the GGUF file of a language model.'
            )
        self.size, self.width = info.shape
        self._type = info.type
        data = np.memmap(path, np.uint8, 'r', info.offset, (info.n_bytes,))
        self._table = data.reshape(self.size, -1)  # (vocabulary, bytes of a row)

    def rows(self, ids) -> np.ndarray:
        """Return the rows of token ids: (n, width) float32."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.size:
            raise ValueError(f'token ids must be in 0..{self.size - 1}')
        if not ids.size:
            return np.zeros((0, self.width), np.float32)
        return library.dequantize(self._table[ids], self._type)
