# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Bounded reader of GGUF headers (format: ggml/docs/gguf.md, versions 2 and 3).

Model files are checked here before the C library sees them. Every length is compared
with what is left of the file before it is believed, so that a damaged or hostile file
ends in a ModelFileError and never in a hang, a huge allocation or a crash. Nothing is
read but the header; no library is needed.
"""

import mmap
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.types import GgmlType, block_size, row_bytes

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take about 20 MiB
MAX_METADATA = 4096
MAX_TENSORS = 65536
MAX_KEY_BYTES = 65535  # the format's own limit
MAX_NAME_BYTES = 63  # ggml's names are 64 bytes with the final zero
MAX_ELEMENTS = 1 << 40
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 20
DEFAULT_ALIGNMENT = 32
FETCH_AGAIN = 'Fetch or convert the file again'

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: 'B',
    1: 'b',
    2: 'H',
    3: 'h',
    4: 'I',
    5: 'i',
    6: 'f',
    7: '?',
    10: 'Q',
    11: 'q',
    12: 'd',
}
_DTYPES = {
    0: '<u1',
    1: '<i1',
    2: '<u2',
    3: '<i2',
    4: '<u4',
    5: '<i4',
    6: '<f4',
    7: '<u1',
    10: '<u8',
    11: '<i8',
    12: '<f8',
}
_KINDS = {
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    bool: 'true or false',
    np.ndarray: 'a list of numbers',
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies; shape in NumPy order (row-major), offset from the file's start."""

    name: str
    shape: tuple
    type: GgmlType
    offset: int
    n_bytes: int


class StringArray:
    """A read-only list of texts, decoded when asked for (vocabularies have 150 000)."""

    def __init__(self, data: bytes, starts: np.ndarray):
        self._data, self._starts = data, starts  # of every 8-byte length, and the end: (n + 1,)

    def __len__(self) -> int:
        """How many texts."""
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        """One text; bytes that are no UTF-8 are replaced."""
        n = len(self)
        if not -n <= index < n:
            raise IndexError(index)
        index %= n
        start, end = self._starts[index] + 8, self._starts[index + 1]
        return self._data[start:end].decode('utf-8', 'replace')

    def raw(self) -> Iterator[bytes]:
        """Give the bytes of one text after another."""
        starts = self._starts.tolist()
        for start, end in zip(starts, starts[1:]):
            yield self._data[start + 8 : end]


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    metadata maps keys to int, float, bool, str, NumPy arrays (lists of numbers) and
    StringArray (lists of texts); tensors keeps the file's order. spans maps keys to where
    their entries lie in the file, (start, end): what is copied from there keeps its exact type.
    """

    path: Path
    version: int
    metadata: dict
    tensors: dict
    data_offset: int
    alignment: int
    size_bytes: int
    spans: dict

    def require(self, key: str, kind: type):
        """The value of a key as int, float, str, bool, np.ndarray or StringArray."""
        if key not in self.metadata:
            raise ModelFileError(
                self.path,
                f'its header has no {key}',
                'Use a file made for this purpose, or convert it again',
            )
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            wanted = _KINDS.get(kind, 'a list of texts')
            raise ModelFileError(self.path, f'{key} in its header is not {wanted}', FETCH_AGAIN)
        return value

    def get(self, key: str, kind: type, default=None):
        """Give the value of a key that may be missing; where it is there, as `require` does."""
        return self.require(key, kind) if key in self.metadata else default


def read_header(path) -> Header:
    """Read and check the header of a GGUF file; ModelFileError says what is wrong with it."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise ModelFileError(
            path, f'it cannot be opened ({reason})', 'Check the path and its permissions'
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path, 'it is not a regular file', 'Give the path of a GGUF file')
        if status.st_size < 24:
            raise ModelFileError(path, f'it has only {status.st_size} bytes', FETCH_AGAIN)
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as data:
            return _Reader(path, data, status.st_size).header()
    finally:
        os.close(descriptor)


class _Reader:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, path: Path, data, size_bytes: int):
        self.path, self.data, self.size_bytes = path, data, size_bytes
        self.position = 0
        self.spans = {}
        self.end = min(size_bytes, MAX_HEADER_BYTES)

    def refuse(self, problem: str):
        raise ModelFileError(self.path, problem, FETCH_AGAIN)

    def claim(self, n_bytes: int, what: str) -> int:
        """Step over n_bytes that must still lie in the header; where they start."""
        start = self.position
        if n_bytes > self.end - start:
            if self.end < self.size_bytes:
                self.refuse(f'its header is longer than {MAX_HEADER_BYTES >> 20} MiB ({what})')
            self.refuse(f'it ends in the middle of {what}')
        self.position = start + n_bytes
        return start

    def scalar(self, code: str, what: str):
        fields = struct.Struct('<' + code)
        return fields.unpack_from(self.data, self.claim(fields.size, what))[0]

    def text(self, what: str, limit: int = MAX_HEADER_BYTES) -> bytes:
        n_bytes = self.scalar('Q', what)
        if n_bytes > limit:
            self.refuse(f'{what} is {n_bytes} bytes long, at most {limit} are allowed')
        start = self.claim(n_bytes, what)
        return self.data[start : start + n_bytes]

    def name(self, what: str, limit: int) -> str:
        """A key or a tensor's name: UTF-8 without zero bytes (C would end it there)."""
        raw = self.text(what, limit)
        try:
            name = raw.decode('utf-8')
        except UnicodeDecodeError:
            self.refuse(f'{what} is not UTF-8: {raw[:40]!r}')
        if not name or '\0' in name:
            self.refuse(f'{what} is empty or holds a zero byte: {raw[:40]!r}')
        return name

    def header(self) -> Header:
        if self.data[self.claim(4, 'the magic') : 4] != b'GGUF':
            self.refuse('it does not begin as a GGUF file does')
        version = self.scalar('I', 'the version')
        if version not in (2, 3):
            self.refuse(f'its GGUF version is {version}, 2 and 3 are known')
        n_tensors = self.scalar('Q', 'the number of tensors')
        n_metadata = self.scalar('Q', 'the number of metadata entries')
        if n_tensors > MAX_TENSORS or n_metadata > MAX_METADATA:
            self.refuse(
                f'it claims {n_tensors} tensors and {n_metadata} metadata entries, '
                f'at most {MAX_TENSORS} and {MAX_METADATA} are allowed'
            )
        metadata = self.metadata(n_metadata)
        alignment = self.alignment(metadata)
        claims = self.tensors(n_tensors)
        data_offset = -(-self.position // alignment) * alignment
        tensors = self.placed(claims, data_offset, alignment)
        return Header(
            self.path,
            version,
            metadata,
            tensors,
            data_offset,
            alignment,
            self.size_bytes,
            self.spans,
        )

    def metadata(self, count: int) -> dict:
        metadata = {}
        for _ in range(count):
            start = self.position
            key = self.name('a metadata key', MAX_KEY_BYTES)
            if key in metadata:
                self.refuse(f'the key {key} occurs twice')
            metadata[key] = self.value(self.scalar('I', f'the type of {key}'), key)
            self.spans[key] = (start, self.position)
        return metadata

    def value(self, kind: int, key: str):
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], key)
        if kind == _STRING:
            return self.text(key).decode('utf-8', 'replace')
        if kind != _ARRAY:
            self.refuse(f'{key} has the unknown type {kind}')
        element = self.scalar('I', key)
        count = self.scalar('Q', key)
        if element == _STRING:
            return self.strings(count, key)
        if element not in _DTYPES:
            self.refuse(
                f'the elements of {key} have the type {element}, '
                'only numbers and texts are allowed'
            )
        dtype = np.dtype(_DTYPES[element])
        start = self.claim(count * dtype.itemsize, key)
        values = np.frombuffer(self.data[start : self.position], dtype)  # (count,)
        return values != 0 if element == 7 else values

    def strings(self, count: int, key: str) -> StringArray:
        """Walk over texts without decoding them: 0.1 us each."""
        if count > (self.end - self.position) // 8:  # an empty text takes 8 bytes
            self.claim(count * 8, key)
        data, start, position = self.data, self.position, self.position
        unpack = struct.Struct('<Q').unpack_from
        starts = array('q')  # 8 bytes each; a list would take the file's size eight times
        keep = starts.append
        try:
            for _ in range(count):
                keep(position)
                position += 8 + unpack(data, position)[0]
        except (struct.error, IndexError, OverflowError):  # beyond the file, or beyond any file
            position = self.size_bytes + 1
        self.claim(position - start, key)
        keep(position)
        offsets = np.frombuffer(starts, np.int64) - start  # (count + 1,)
        return StringArray(data[start:position], offsets)

    def alignment(self, metadata: dict) -> int:
        alignment = metadata.get('general.alignment', DEFAULT_ALIGNMENT)
        if (
            type(alignment) is not int
            or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            self.refuse(
                f'its alignment is {alignment!r}, a power of two from {MIN_ALIGNMENT} '
                f'to {MAX_ALIGNMENT} is allowed'
            )
        return alignment

    def tensors(self, count: int) -> dict:
        """Name -> (shape, type, offset in the data section, bytes), each checked by itself."""
        claims = {}
        for _ in range(count):
            name = self.name("a tensor's name", MAX_NAME_BYTES)
            if name in claims:
                self.refuse(f'the tensor {name} occurs twice')
            n_dims = self.scalar('I', name)
            if not 1 <= n_dims <= 4:
                self.refuse(f'the tensor {name} has {n_dims} dimensions, 1 to 4 are allowed')
            shape = tuple(self.scalar('Q', name) for _ in range(n_dims))[::-1]
            number = self.scalar('I', name)
            offset = self.scalar('Q', name)
            claims[name] = (shape, *self.storage(name, shape, number), offset)
        return claims

    def storage(self, name: str, shape: tuple, number: int) -> tuple:
        """The type and the bytes of a tensor, whose shape is believed only after this."""
        try:
            ggml_type = GgmlType(number)
        except ValueError:
            self.refuse(f'the tensor {name} has the unknown type {number}')
        n_elements = 1
        for side in shape:  # Python's integers do not overflow
            n_elements *= side
        if not 0 < n_elements <= MAX_ELEMENTS:
            self.refuse(f'the tensor {name} claims the shape {shape}')
        if shape[-1] % block_size(ggml_type):
            self.refuse(
                f'the tensor {name} of type {ggml_type.name} has rows of {shape[-1]} '
                f'numbers, not a multiple of {block_size(ggml_type)}'
            )
        return ggml_type, n_elements // shape[-1] * row_bytes(ggml_type, shape[-1])

    def placed(self, claims: dict, data_offset: int, alignment: int) -> dict:
        """Tensors at their places: aligned, inside the file, each behind the one before it."""
        tensors, end, before = {}, 0, ''
        for name, (shape, ggml_type, n_bytes, offset) in claims.items():
            if offset % alignment:
                self.refuse(f'the tensor {name} lies at {offset}, not a multiple of {alignment}')
            start = data_offset + offset
            if start + n_bytes > self.size_bytes:
                self.refuse(
                    f'it has {self.size_bytes} bytes, but the tensor {name} ends at '
                    f'{start + n_bytes}: it is cut short'
                )
            if offset < end:
                self.refuse(f'the tensors {before} and {name} overlap, or are out of order')
            if offset != -(-end // alignment) * alignment:  # llama.cpp allows none
                self.refuse(f'there is a gap before the tensor {name}')
            tensors[name] = TensorInfo(name, shape, ggml_type, start, n_bytes)
            end, before = offset + n_bytes, name
        return tensors
