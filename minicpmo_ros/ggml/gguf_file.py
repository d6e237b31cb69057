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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.foreign import FETCH_AGAIN, HEAD_BYTES, describe
from minicpmo_ros.ggml.types import (
    DTYPES,
    SCALARS,
    GgmlType,
    StringArray,
    ValueType,
    row_bytes,
)

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take about 20 MiB
MAX_METADATA = 4096
MAX_TENSORS = 65536
MAX_KEY_BYTES = 65535  # the format's own limit
MAX_NAME_BYTES = 63  # ggml's names are 64 bytes with the final zero
MAX_ELEMENTS = 1 << 40
# GGUF allows 8; ggml ends the process over a mapped file whose tensors lie at less than 32.
MIN_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
DEFAULT_ALIGNMENT = 32

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


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    metadata maps keys to int, float, bool, str, NumPy arrays (lists of numbers) and
    StringArray (lists of texts); tensors keeps the file's order. spans maps keys to where
    their entries lie in the file, (start, end): what is copied from there keeps its exact type.
    value_types maps keys to that type; a list's is (ValueType.ARRAY, that of its elements).
    """

    path: Path
    version: int
    metadata: dict
    tensors: dict
    data_offset: int
    alignment: int
    size_bytes: int
    spans: dict
    value_types: dict

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
        """Return the value of a key that may be missing; where it is there, as `require` does."""
        return self.require(key, kind) if key in self.metadata else default


def read_header(path) -> Header:
    """Read and check the header of a GGUF file; ModelFileError says what is wrong with it."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _unopened(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path, 'it is not a regular file', 'Give the path of a GGUF file')
        head = os.pread(descriptor, HEAD_BYTES, 0)
        if head[:4] != b'GGUF':
            raise ModelFileError(path, *describe(head, status.st_size))
        if status.st_size < 24:
            raise ModelFileError(path, f'it has only {status.st_size} bytes', FETCH_AGAIN)
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as data:
            return _Reader(path, data, status.st_size).header()
    except OSError as error:
        raise ModelFileError(
            path,
            f'it cannot be read ({error.strerror or error})',
            'Look at the disk (dmesg), then fetch the file again',
        ) from error
    finally:
        os.close(descriptor)


def _unopened(path: Path, error: Exception) -> ModelFileError:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return ModelFileError(
            path,
            f'it is a link to {os.readlink(path)}, which is not there',
            'Fetch the file again, or correct the link',
        )
    reason = getattr(error, 'strerror', None) or str(error)
    return ModelFileError(
        path, f'it cannot be opened ({reason})', 'Check the path and its permissions'
    )


class _Reader:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, path: Path, data, size_bytes: int):
        self.path, self.data, self.size_bytes = path, data, size_bytes
        self.position = 0
        self.spans, self.value_types = {}, {}
        self.end = min(size_bytes, MAX_HEADER_BYTES)

    def refuse(self, problem: str, remedy: str = FETCH_AGAIN):
        raise ModelFileError(self.path, problem, remedy)

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
        self.claim(4, 'the magic')
        version = self.scalar('I', 'the version')
        if version in (2 << 24, 3 << 24):
            self.refuse(
                'it is a big-endian GGUF file, for machines with the other order of bytes',
                'Fetch the file without -be in its name, or turn it with gguf-convert-endian',
            )
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
            self.value_types,
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
        try:
            self.value_types[key] = ValueType(kind)
        except ValueError:
            self.refuse(f'{key} has the unknown type {kind}')
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], key)
        if kind == ValueType.STRING:
            return self.text(key).decode('utf-8', 'replace')
        return self.array(key)

    def array(self, key: str):
        element = self.scalar('I', key)
        count = self.scalar('Q', key)
        if element in DTYPES or element == ValueType.STRING:
            self.value_types[key] = (ValueType.ARRAY, ValueType(element))
        if element == ValueType.STRING:
            return self.strings(count, key)
        if element not in DTYPES:
            self.refuse(
                f'the elements of {key} have the type {element}, '
                'only numbers and texts are allowed'
            )
        dtype = DTYPES[element]
        start = self.claim(count * dtype.itemsize, key)
        values = np.frombuffer(self.data[start : self.position], dtype)  # (count,)
        return values != 0 if element == ValueType.BOOL else values

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
            self.value_types.get('general.alignment', ValueType.UINT32) != ValueType.UINT32
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
            self.refuse(
                f'the tensor {name} has the type {number}, which this llama.cpp does not have: a '
                'type of a fork (ik_llama.cpp), of a newer or a much older release, or damage',
                'Take the file of another quantisation, such as Q4_K_M or Q8_0',
            )
        n_elements = 1
        for side in shape:  # Python's integers do not overflow
            n_elements *= side
        if not 0 < n_elements <= MAX_ELEMENTS:
            self.refuse(f'the tensor {name} claims the shape {shape}')
        if shape[-1] % ggml_type.block_size:
            self.refuse(
                f'the tensor {name} of type {ggml_type.name} has rows of {shape[-1]} '
                f'numbers, not a multiple of {ggml_type.block_size}'
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
