# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Tensors of a GGUF file in the memory of a device, in the types they are stored in.

The caller says which tensors he wants and of which shapes (a dict of Want); everything is
checked against the header before anything is loaded, and a ModelFileError names the tensor
that is missing or different. Data goes from the mapped file to the device without a copy
in between, unless a tensor has to be changed on its way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ModelFileError, in_words
from minicpmo_ros.ggml.gguf_file import FETCH_AGAIN, Header, TensorInfo, read_header
from minicpmo_ros.ggml.library import GgmlType, dequantize, lib
from minicpmo_ros.ggml.runtime import (
    Backend,
    DescribedTensors,
    Tensors,
    new_context,
    storage,
    trimmed,
)
from minicpmo_ros.ggml.types import NO_WEIGHTS

# Types whose interleaved kernels pay on a CPU: q4_0 became 1.4 times as fast on x86, q4_K slower.
REPACKED = frozenset({GgmlType.Q4_0})


@dataclass(frozen=True)
class Want:
    """What is expected of one tensor of a file.

    shape: in NumPy order, leading ones don't matter.
    as_float: store it as float32 whatever the file has (norms, biases, position tables).
    matmul: only ever the left side of Builder.linear, so that it may be repacked.
    transform: (name, info, array) -> array of the same type, where the tensor is to be
        reordered or padded. Blocks come and go as (..., bytes) uint8 with whole blocks,
        bf16 as uint16.
    stored: the shape after transform, where that differs from shape.
    """

    shape: tuple
    as_float: bool = False
    matmul: bool = False
    stored: tuple | None = None
    transform: Callable[[str, TensorInfo, np.ndarray], np.ndarray] | None = None


def load_weights(
    source,
    backend: Backend,
    wanted: Mapping,
    extra: Mapping | None = None,
    repack: bool = False,
    between: Callable[[], None] | None = None,
) -> Tensors:
    """Load wanted (name -> Want) from a path or a Header.

    extra: name -> float32 array computed by the caller (folded weights).
    repack: put matmul weights of the REPACKED types into the CPU's interleaved layout.
    between: called after every tensor, and may raise: then nothing is loaded.
    Errors: ModelFileError for the file, EngineError for the device's memory.
    """
    header = source if isinstance(source, Header) else read_header(source)
    extra = {name: np.asarray(array, np.float32) for name, array in (extra or {}).items()}
    computed = {name: array.shape for name, array in extra.items()}
    shapes, layouts = _kinds(header, backend, wanted, computed, repack)
    tensors = Tensors(backend, shapes, layouts, clear=False)  # all are written below
    for name, array in extra.items():
        tensors[name].write(array)
    data = _map(header)
    for name, want in wanted.items():  # one by one: only one transformed copy at a time
        array = _prepare(data, header.tensors[name], want)
        # Matrices would take a second to look through; what they spoil shows in results.
        if want.as_float and not np.isfinite(array).all():
            raise ModelFileError(
                header.path, f'its tensor {name} holds NaN or infinite numbers', FETCH_AGAIN
            )
        tensors[name].write(array)
        if between is not None:
            between()
    return tensors


def describe_weights(
    header: Header,
    backend: Backend,
    wanted: Mapping,
    extra: Mapping | None = None,
    repack: bool = False,
) -> DescribedTensors:
    """Describe what load_weights makes, without memory and data; extra: name -> shape."""
    return DescribedTensors(backend, *_kinds(header, backend, wanted, extra or {}, repack))


def _kinds(
    header: Header, backend: Backend, wanted: Mapping, extra: Mapping, repack: bool
) -> tuple:
    """Check the header; return name -> (shape, type), and name -> layout of those repacked."""
    check(header, wanted)
    shapes = {name: (shape, GgmlType.F32) for name, shape in extra.items()}
    shapes.update((name, _stored(header.tensors[name], want)) for name, want in wanted.items())
    return shapes, _repackable(backend, shapes, wanted) if repack else {}


def check(header: Header, wanted: Mapping) -> None:
    """ModelFileError for the first wanted tensor that is missing or of no use here."""
    for name, want in wanted.items():
        info = header.tensors.get(name)
        if info is None:
            raise ModelFileError(
                header.path,
                f'it has no tensor {name}',
                'Use a file made for this purpose, or convert it again',
            )
        if trimmed(info.shape) != trimmed(want.shape):
            raise ModelFileError(
                header.path,
                f'its tensor {name} has the shape {info.shape}, {tuple(want.shape)} is expected',
                FETCH_AGAIN,
            )
        if info.type in NO_WEIGHTS:
            raise ModelFileError(
                header.path,
                f'its tensor {name} has the type {info.type.name}, which is not one of weights',
                FETCH_AGAIN,
            )


def read_floats(header: Header, name: str) -> np.ndarray:
    """One tensor of a file as float32 in its own shape, for folding and for small tables."""
    info = header.tensors.get(name)
    if info is None:
        raise ModelFileError(header.path, f'it has no tensor {name}', FETCH_AGAIN)
    return _as_floats(_view(_map(header), info), info).reshape(info.shape)


def _map(header: Header) -> np.ndarray:
    """The file's bytes; ModelFileError if it is no longer the file the header describes."""
    try:
        data = np.memmap(header.path, np.uint8, 'r')
    except (OSError, ValueError) as error:
        raise ModelFileError(
            header.path,
            f'it can no longer be read ({in_words(error)})',
            'Leave model files in place while they load',
        ) from error
    if len(data) != header.size_bytes:
        raise ModelFileError(
            header.path,
            'its size has changed since its header was read',
            'Leave model files in place while they load',
        )
    return data


def _view(data: np.ndarray, info: TensorInfo) -> np.ndarray:
    """A tensor as it lies in the file."""
    shape, dtype = storage(info.shape, info.type)
    return data[info.offset : info.offset + info.n_bytes].view(dtype).reshape(shape)


def _as_floats(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    rows = array.reshape(-1, array.shape[-1]).view(np.uint8)  # (rows, bytes)
    return dequantize(rows, info.type)  # (rows, k)


def _stored(info: TensorInfo, want: Want) -> tuple:
    """Shape and type in the device's memory."""
    return want.stored or want.shape, GgmlType.F32 if want.as_float else info.type


def _prepare(data: np.ndarray, info: TensorInfo, want: Want) -> np.ndarray:
    """A tensor's data as it is to be stored."""
    array = _view(data, info)
    if want.transform:
        array = np.ascontiguousarray(want.transform(info.name, info, array))
    if want.as_float and info.type != GgmlType.F32:
        array = _as_floats(array, info).reshape(want.stored or want.shape)
    return array


def _repackable(backend: Backend, shapes: Mapping, wanted: Mapping) -> dict:
    """Name -> buffer type, for the weights that the device can multiply in that layout."""
    supported, apart = {}, {}
    for name, want in wanted.items():
        kind = shapes[name]
        if not want.matmul or kind[1] not in REPACKED:
            continue
        for buffer_type in backend.extra_buffer_types()[:1]:
            if kind not in supported:
                supported[kind] = _multiplies(backend, *kind, buffer_type)
            if supported[kind]:
                apart[name] = buffer_type
    return apart


def is_repacked(backend: Backend, shape: tuple, ggml_type: GgmlType) -> bool:
    """Whether this CPU multiplies by such a matrix in an interleaved layout of its own."""
    few_rows = (shape[0] % 64 + 64, shape[1])  # the layouts interleave up to 64 rows
    layouts = backend.extra_buffer_types()[:1]
    return any(_multiplies(backend, few_rows, ggml_type, layout) for layout in layouts)


def _multiplies(backend: Backend, shape: tuple, ggml_type: GgmlType, buffer_type: int) -> bool:
    """Ask the device about one product with a weight of this kind in that memory."""
    probe = Tensors(backend, {'w': (shape, ggml_type)}, {'w': buffer_type})
    context = new_context(backend, probe, 2)
    vector = lib.new_tensor_1d(context, GgmlType.F32, shape[-1])
    return backend.supports(lib.mul_mat(context, probe['w'].handle, vector))
