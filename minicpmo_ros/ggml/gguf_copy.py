# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The parts of copying a GGUF file tensor by tensor, in memory that does not grow with it.

gguf.GGUFWriter wants each tensor as one array, and gguf.GGUFReader takes five seconds and 300 MiB
for the metadata of the published vocabulary. Here metadata is copied as it lies in the file, each
entry with its exact type, and tensors go by in blocks of rows.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import Header, TensorInfo
from minicpmo_ros.ggml.types import GgmlType, row_bytes

GGUF_VERSION = 3
BLOCK_VALUES = 1 << 18  # of one block of rows: 1 MiB as float32; larger ones are slower
_UINT32 = 4  # GGUF's number of the value type


def byte_count(shape: tuple, ggml_type: GgmlType) -> int:
    """Return how many bytes a tensor of this shape takes."""
    return math.prod(shape[:-1]) * row_bytes(ggml_type, shape[-1])


def opening(header: Header, changed: Mapping[str, int], tensors: Sequence[tuple]) -> bytes:
    """Return everything that comes before the tensors of a copy.

    changed: keys that get a value of their own (unsigned, 32 bits) or are added.
    tensors: (name, shape in NumPy order, type), in the order they will be written.
    """
    entries = _metadata(header, changed)
    out = [struct.pack('<4sIQQ', b'GGUF', GGUF_VERSION, len(tensors), len(entries)), *entries]
    offset = 0
    for name, shape, ggml_type in tensors:
        out.append(_text(name))
        out.append(struct.pack(f'<I{len(shape)}Q', len(shape), *shape[::-1]))
        out.append(struct.pack('<IQ', ggml_type, offset))
        n_bytes = byte_count(shape, ggml_type)
        offset += n_bytes + -n_bytes % header.alignment
    return b''.join(out)


def _metadata(header: Header, changed: Mapping[str, int]) -> list:
    entries = {}
    with open(header.path, 'rb') as file:
        for key, (start, end) in header.spans.items():
            file.seek(start)
            entries[key] = file.read(end - start)
    for key, value in changed.items():
        entries[key] = _text(key) + struct.pack('<II', _UINT32, value)
    return list(entries.values())


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack('<Q', len(raw)) + raw


def align(file, alignment: int) -> None:
    """Write zeros up to where a tensor may begin."""
    file.write(bytes(-file.tell() % alignment))


def row_blocks(path: Path, file, info: TensorInfo) -> Iterator[np.ndarray]:
    """Read a tensor in blocks of rows: (n, bytes of a row) uint8."""
    n_rows = math.prod(info.shape[:-1])
    n_bytes = row_bytes(info.type, info.shape[-1])
    step = max(1, BLOCK_VALUES // info.shape[-1])
    file.seek(info.offset)
    for start in range(0, n_rows, step):
        n = min(step, n_rows - start)
        rows = np.fromfile(file, np.uint8, n * n_bytes)
        if rows.size != n * n_bytes:
            raise ModelFileError(
                path,
                'it became shorter while it was read',
                'Leave model files in place while they are copied',
            )
        yield rows.reshape(n, n_bytes)
