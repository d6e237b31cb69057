# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A device to compute on, and tensors that live in its memory.

Everything made on a Backend belongs to it: it is freed when its Python object dies, at the
latest by Backend.close(), in reverse order of creation. Using it afterwards raises
EngineError. Shapes are in NumPy order everywhere (ggml counts its dimensions backwards) and
come without leading dimensions of one.
"""

import contextlib
import ctypes
import struct
import threading
import weakref
from collections.abc import Mapping

import numpy as np

from minicpmo_ros.config import COMPUTING
from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.ggml.devices import Devices
from minicpmo_ros.ggml.library import GgmlType, lib, row_bytes
from minicpmo_ros.ggml.signatures import InitParams, TensorStruct

_USAGE_WEIGHTS = 1
MAX_THREADS = 512  # of ggml
_SOMEWHERE = 1 << 20  # a place that is never looked at; a graph leaves alone what has one
_TENSOR_START = struct.Struct('@iP8q')  # type, buffer, sides, strides of struct ggml_tensor
_TYPES = {int(ggml_type): ggml_type for ggml_type in GgmlType}

_DTYPES = {
    GgmlType.F32: np.dtype('f4'),
    GgmlType.F16: np.dtype('f2'),
    GgmlType.BF16: np.dtype('u2'),
    GgmlType.I32: np.dtype('i4'),
    GgmlType.I64: np.dtype('i8'),
}


def storage(shape: tuple, ggml_type: GgmlType) -> tuple:
    """Shape and dtype of the array that holds a tensor; blocks are bytes, bf16 is uint16."""
    if ggml_type in _DTYPES:
        return tuple(shape), _DTYPES[ggml_type]
    return (*shape[:-1], row_bytes(ggml_type, shape[-1])), np.dtype('u1')


class Backend:
    """One device with a compute stream of its own.

    device, rpc_servers: see Devices, of which it takes the first. Several threads may use one
    backend; their computations follow one another.
    """

    def __init__(
        self,
        device: str = COMPUTING.device,
        threads: int = 1,
        rpc_servers: str = COMPUTING.rpc_servers,
    ):
        if not 1 <= threads <= MAX_THREADS:
            raise InputError(f'threads is {threads}; 1 to {MAX_THREADS} are allowed')
        self._devices = Devices(device, rpc_servers)  # which keep a connection open
        found = self._devices.handles[0]
        handle = lib.backend_dev_init(found, None)
        if not handle:
            raise EngineError(
                f'the device {device} cannot be started. See the log for the '
                'reason, or set the device to cpu'
            )
        self._handle, self._device = handle, found
        self._finalizer = weakref.finalize(self, lib.backend_free, handle)
        self._owned, self._owned_lock = [], threading.Lock()
        self.lock = threading.Lock()  # held while the device is computing or copying
        self.name = lib.backend_name(handle).decode()
        self.description = lib.backend_dev_description(found).decode()
        self.is_cpu = self._devices.is_cpu
        self.threads = threads
        # Sees (name of a weight, rows (n, k) it is multiplied with) of every such product;
        # graphs are then computed product by product, which is slow.
        self.on_product = None
        self._set_threads(threads)
        _check_arithmetic(self)

    def _set_threads(self, threads: int) -> None:
        registry = lib.backend_dev_backend_reg(self._device)
        address = lib.backend_reg_get_proc_address(registry, b'ggml_backend_set_n_threads')
        if address:  # a GPU has none
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(self._handle, threads)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return not self._finalizer.alive

    @property
    def buffer_type(self) -> int:
        """Handle of the memory that every operation can use."""
        self.require_open()
        return lib.backend_get_default_buffer_type(self._handle)

    def extra_buffer_types(self) -> list:
        """Handles of memories with a layout of their own: CPU_REPACK on a CPU.

        AMX is left out: virtual machines announce its instructions and do not have them, and the
        first product would end the process.
        """
        registry = lib.backend_dev_backend_reg(self._device)
        address = lib.backend_reg_get_proc_address(registry, b'ggml_backend_dev_get_extra_bufts')
        if not address:
            return []
        pointers = ctypes.POINTER(ctypes.c_void_p)
        listed = ctypes.CFUNCTYPE(pointers, ctypes.c_void_p)(address)(self._device)
        found = []
        while listed and listed[len(found)]:
            found.append(listed[len(found)])
        return [kind for kind in found if lib.backend_buft_name(kind) != b'AMX']

    def require_open(self) -> None:
        """EngineError after close()."""
        if self.closed:
            raise EngineError(f'the device {self.name} has been closed')

    def supports(self, node: int) -> bool:
        """Whether the device can compute this node of a graph."""
        return lib.backend_dev_supports_op(self._device, node)

    def compute(self, graph: int) -> None:
        """Compute an allocated graph to its end; EngineError if the device fails."""
        with self.lock:
            self.require_open()
            status = lib.backend_graph_compute(self._handle, graph)
        if status != 0:
            raise EngineError(f'computing on {self.name} failed with status {status}')

    def own(self, owner, release, *arguments) -> weakref.finalize:
        """Call release(*arguments) when owner dies or the backend is closed."""
        finalizer = weakref.finalize(owner, release, *arguments)
        with self._owned_lock:
            self._owned = [other for other in self._owned if other.alive]
            self._owned.append(finalizer)
        return finalizer

    @property
    def n_owned(self) -> int:
        """Return how many objects on the device are not freed."""
        with self._owned_lock:
            return sum(other.alive for other in self._owned)

    def close(self) -> None:
        """Free the device and everything made on it; a computation under way ends first."""
        with self.lock, self._owned_lock:
            while self._owned:
                self._owned.pop()()
            self._finalizer()
            self._devices = None


class AsGpu(Backend):
    """Stands for a GPU that is not here: graphs take the form they have there.

    Sizes are those of tensors in main memory; a GPU aligns them to 128 bytes instead of 32.
    """

    def __init__(self):
        super().__init__('cpu')
        self.is_cpu = False

    def extra_buffer_types(self) -> list:
        """Handles of no memories: a GPU has no layouts of its own."""
        return []


def _check_arithmetic(backend: Backend) -> None:
    """Multiply two small matrices and compare: a wrong build shows here, not in answers."""
    weights = np.arange(256, dtype=np.float32).reshape(4, 64) / 256 - 0.5  # (4, 64)
    inputs = np.cos(np.arange(192, dtype=np.float32)).reshape(3, 64)  # (3, 64)
    tensors = Tensors(backend, {'w': ((4, 64), GgmlType.F32), 'x': ((3, 64), GgmlType.F32)})
    tensors['w'].write(weights)
    tensors['x'].write(inputs)
    context = new_context(backend, tensors, 1, lib.graph_overhead_custom(8, False))
    product = Tensor(lib.mul_mat(context, tensors['w'].handle, tensors['x'].handle), tensors)
    graph = lib.new_graph_custom(context, 8, False)
    lib.build_forward_expand(graph, product.handle)
    buffer = lib.backend_alloc_ctx_tensors_from_buft(context, backend.buffer_type)
    if not buffer:
        raise EngineError(f'{backend.name} has no memory left')
    backend.own(tensors, lib.backend_buffer_free, buffer)
    backend.compute(graph)
    if not np.allclose(product.read(), inputs @ weights.T, atol=2e-2):
        raise EngineError(
            f'{backend.name} computes wrongly. Build llama-cpp-python on this '
            'machine, or set the device to cpu'
        )


def new_context(backend: Backend, owner, n_tensors: int, extra_bytes: int = 0) -> int:
    """A ggml context for the descriptions of n_tensors, freed with its owner."""
    backend.require_open()
    size = n_tensors * lib.tensor_overhead() + extra_bytes + 4096
    context = lib.init(InitParams(size, None, True))
    if not context:
        raise EngineError(f'no memory for {n_tensors} tensor descriptions')
    backend.own(owner, lib.free, context)
    return context


class Tensor:
    """A typed array known to ggml: a stored one, or a node of a graph being built."""

    __slots__ = ('handle', 'owner', 'shape', 'strides', 'type')

    def __init__(self, handle: int, owner):
        # Graphs have a thousand nodes: this is three times as fast as the struct's fields.
        number, _, *fields = _TENSOR_START.unpack(ctypes.string_at(handle, _TENSOR_START.size))
        rank = 4
        while rank > 1 and fields[rank - 1] == 1:
            rank -= 1
        self.handle, self.owner = handle, owner  # the owner keeps the handle valid
        self.type = _TYPES[number]
        self.shape = tuple(fields[:rank][::-1])
        self.strides = tuple(fields[4 : 4 + rank][::-1])  # bytes

    @property
    def is_contiguous(self) -> bool:
        """True if the rows follow one another without gaps."""
        return lib.is_contiguous(self.handle)

    def write(self, array: np.ndarray) -> None:
        """Copy an array of just this shape and type into the tensor."""
        shape, dtype = self._storage()
        if trimmed(array.shape) != trimmed(shape) or array.dtype != dtype:
            raise ValueError(
                f'an array {array.shape} of {array.dtype} does not fit a tensor {shape} of {dtype}'
            )
        array = np.ascontiguousarray(array)
        with self._open_backend():
            lib.backend_tensor_set(self.handle, array.ctypes.data, 0, array.nbytes)

    def read(self) -> np.ndarray:
        """The tensor's content as a new array (blocks as bytes, bf16 as uint16)."""
        if self.handle in self.owner.unreadable:
            raise ValueError('this tensor is in a layout that cannot be read back')
        array = np.empty(*self._storage())
        with self._open_backend():
            lib.backend_tensor_get(self.handle, array.ctypes.data, 0, array.nbytes)
        return array

    @contextlib.contextmanager
    def _open_backend(self):
        with self.owner.backend.lock:
            self.owner.backend.require_open()
            yield

    def _storage(self) -> tuple:
        self.owner.backend.require_open()
        if not TensorStruct.from_address(self.handle).buffer or not self.is_contiguous:
            raise ValueError('only contiguous tensors with memory can be read and written')
        return storage(self.shape, self.type)


def trimmed(shape: tuple) -> tuple:
    """A shape without leading ones, which ggml does not know."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


class Tensors:
    """Named tensors in the memory of a backend, zero at first.

    shapes: name -> (shape, GgmlType). layouts: name -> buffer type, for tensors in a layout of
    their own, which cannot be read back. clear: False where all are written before they are
    read; zeroing a gigabyte takes half a second. EngineError if the memory is not to be had.
    """

    def __init__(
        self,
        backend: Backend,
        shapes: Mapping,
        layouts: Mapping | None = None,
        clear: bool = True,
    ):
        self.backend, self.size_bytes, layouts = backend, 0, layouts or {}
        self._handles, self._buffers, self.unreadable = {}, [], set()
        for layout in dict.fromkeys([None, *layouts.values()]):
            group = {name: kind for name, kind in shapes.items() if layouts.get(name) == layout}
            context, handles = _declare_all(backend, self, group)
            self._handles.update(handles)
            if layout is not None:
                self.unreadable.update(handles.values())
            if group:
                self.place(context, handles, layout or backend.buffer_type)
        if clear:
            self.clear()

    def place(self, context: int, handles: dict, buffer_type: int) -> None:
        """Give described tensors memory of this type; EngineError if it is not to be had."""
        buffer = lib.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise EngineError(f'{self.backend.name} has no memory left for {len(handles)} tensors')
        self.backend.own(self, lib.backend_buffer_free, buffer)
        self.size_bytes += lib.backend_buffer_get_size(buffer)
        lib.backend_buffer_set_usage(buffer, _USAGE_WEIGHTS)
        self._buffers.append(buffer)

    def clear(self) -> None:
        """Set all numbers to zero."""
        with self.backend.lock:
            self.backend.require_open()
            for buffer in self._buffers:
                lib.backend_buffer_clear(buffer, 0)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that name."""
        return Tensor(self._handles[name], self)  # made anew: no cycle keeps the buffer

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._handles


class DescribedTensors(Tensors):
    """Named tensors without memory: graphs over them can be measured, not run."""

    def place(self, context: int, handles: dict, buffer_type: int) -> None:
        """Count the bytes that they would take."""
        self.size_bytes += lib.backend_alloc_ctx_tensors_from_buft_size(context, buffer_type)
        for handle in handles.values():
            TensorStruct.from_address(handle).data = _SOMEWHERE


def _declare_all(backend: Backend, owner, shapes: Mapping) -> tuple:
    """Describe named tensors; a context that is freed with its owner, and handles by name."""
    context = new_context(backend, owner, len(shapes))
    return context, {
        name: _declare(context, name, shape, GgmlType(ggml_type))
        for name, (shape, ggml_type) in shapes.items()
    }


def _declare(context: int, name: str, shape: tuple, ggml_type: GgmlType) -> int:
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f'{name} cannot have the shape {shape}')
    row_bytes(ggml_type, shape[-1])  # whole blocks, or ValueError
    create = getattr(lib, f'new_tensor_{len(shape)}d')
    handle = create(context, ggml_type, *map(int, reversed(shape)))
    lib.set_name(handle, name.encode()[:63])
    return handle
