# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Compute graphs: described once per key, kept, and run in slices.

    weights = load_weights(path, backend, {'w': Want((8, 4)), 'b': Want((8,), as_float=True)})

    def build(g, n_rows):  # g: Builder; the key is whatever tells one graph from another
        x = g.input('x', (n_rows, 4))
        y = g.gelu_erf(g.linear(weights['w'], x, weights['b']))
        g.cut(y)  # a slice ends here
        g.output('y', g.scale(y, 2.0))

    graphs = GraphCache(backend, build, largest=[100], max_nodes=32)
    y = graphs.run(50, {'x': np.ones((50, 4), np.float32)}, between=pause)['y']  # (50, 8)

All graphs of a cache share one buffer, which is reserved once for the largest keys. ggml
would silently move it for a larger graph and leave the kept ones dangling; such a graph is
refused instead. Leading dimensions of one are not there in results.

`buffer_bytes` measures that buffer before there is one, by the allocator that will make it: what
is forecast is what is taken, without formulas that a change of a graph could leave behind.
"""

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.library import GgmlType, lib
from minicpmo_ros.ggml.runtime import Backend, new_context, storage, trimmed
from minicpmo_ros.ggml.signatures import TensorStruct

_WEIGHT = '.weight'  # every matrix of a model file ends in this

__all__ = ['Builder', 'CompiledGraph', 'GraphCache', 'ProductWatch', 'buffer_bytes']


class _Buffer:
    """The memory of intermediate results; its size is fixed by reserve()."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.busy = threading.Lock()
        self._allocator = lib.gallocr_new(backend.buffer_type)
        backend.own(self, lib.gallocr_free, self._allocator)
        # Measuring on the allocator itself would free a buffer that is too small.
        self._measure = lib.gallocr_new(backend.buffer_type)
        backend.own(self, lib.gallocr_free, self._measure)

    @property
    def size_bytes(self) -> int:
        self.backend.require_open()
        return lib.gallocr_get_buffer_size(self._allocator, 0)

    def reserve(self, builder: Builder) -> None:
        if not lib.gallocr_reserve(self._allocator, builder.memory.graph):
            raise EngineError(f'{self.backend.name} has no memory left for a compute buffer')

    def allocate(self, builder: Builder) -> None:
        """Give the graph's nodes their places."""
        needed, reserved = ctypes.c_size_t(), self.size_bytes
        lib.gallocr_reserve_n_size(
            self._measure, builder.memory.graph, None, None, ctypes.addressof(needed)
        )
        if needed.value > reserved:
            raise EngineError(
                f'a graph needs {needed.value} bytes, {reserved} were reserved for the largest'
            )
        done = lib.gallocr_alloc_graph(self._allocator, builder.memory.graph)
        if not done or self.size_bytes != reserved:
            raise EngineError('the compute buffer has moved under the graphs in it')


class CompiledGraph:
    """An allocated graph with its slices; made by a GraphCache."""

    def __init__(self, builder: Builder, buffer: _Buffer):
        self._memory, self._buffer = builder.memory, buffer
        self._inputs, self._outputs = builder.inputs, builder.outputs
        self._backend = builder.backend
        if not self._outputs:
            raise ValueError('a graph without outputs')
        self._refuse_unsupported()
        buffer.allocate(builder)
        for name, (tensor, _) in self._inputs.items():
            if not TensorStruct.from_address(tensor.handle).data:
                raise ValueError(f'the input {name} is not used')
        self._slices = self._form_slices(builder.cuts)
        self._products = None  # formed when they are first watched

    @property
    def n_slices(self) -> int:
        """How many pieces a run with `between` is computed in."""
        return len(self._slices)

    def run(self, inputs: Mapping, between: Callable[[], None] | None = None) -> dict:
        """Compute; inputs and results are arrays by name.

        between: called after every slice but the last, while the device is free for
            others. Whatever it raises ends the run and leaves the graph ready for another.
        Errors: ValueError for inputs that don't fit (missing, shape, dtype, NaN, ids out of
        range); EngineError if the device fails, is closed, or this buffer is in use.
        """
        arrays = {name: self._checked(name, inputs) for name in self._inputs}
        if len(inputs) != len(arrays):
            raise ValueError(f'unknown inputs: {sorted(set(inputs) - set(arrays))}')
        if not self._buffer.busy.acquire(blocking=False):
            raise EngineError('this graph is running already; one thread at a time')
        try:
            for name, array in arrays.items():
                self._inputs[name][0].write(array)
            if self._backend.on_product is not None:
                self._compute_watched(between)
            elif between is None:
                self._backend.compute(self._memory.graph)
            else:
                self._compute_slices(between)
            return {name: tensor.read() for name, tensor in self._outputs.items()}
        finally:
            self._buffer.busy.release()

    def _compute_slices(self, between: Callable[[], None]) -> None:
        for graph in self._slices[:-1]:
            self._backend.compute(graph)
            between()
        self._backend.compute(self._slices[-1])

    def _compute_watched(self, between: Callable[[], None] | None) -> None:
        if self._products is None:
            nodes = self._nodes()
            ends = [end for end, node in enumerate(nodes, 1) if _weight_of(node)]
            self._products = list(
                zip(self._form_slices(ends), [nodes[end - 1] for end in ends] + [None])
            )
        for graph, product in self._products:
            self._backend.compute(graph)
            if product is not None:
                rows = _input_rows(product)  # (n, k)
                self._backend.on_product(_weight_of(product), rows)
            if between is not None:
                between()

    def _checked(self, name: str, inputs: Mapping) -> np.ndarray:
        tensor, below = self._inputs[name]
        if name not in inputs:
            raise ValueError(f'the input {name} is missing')
        array = np.asarray(inputs[name])
        shape, dtype = storage(tensor.shape, tensor.type)
        if trimmed(array.shape) != trimmed(shape) or array.dtype != dtype:
            raise ValueError(
                f'the input {name} is {array.shape} of {array.dtype}, '
                f'{shape} of {dtype} is expected'
            )
        if tensor.type == GgmlType.F32 and not np.isfinite(array).all():
            raise ValueError(f'the input {name} holds NaN or infinite numbers')
        if below is not None and not (array.min() >= 0 and array.max() < below):
            raise ValueError(f'the ids {name} must lie in [0, {below})')
        return array

    def _nodes(self) -> list:
        graph = self._memory.graph
        return [lib.graph_node(graph, i) for i in range(lib.graph_n_nodes(graph))]

    def _refuse_unsupported(self) -> None:
        for node in self._nodes():
            if not self._backend.supports(node):
                raise EngineError(
                    f'{self._backend.name} cannot compute '
                    f'{lib.op_desc(node).decode()} as this model needs it. '
                    'Set the device to cpu'
                )

    def _form_slices(self, cuts: list) -> list:
        """Graphs of consecutive nodes; they share the tensors, hence the places, of the whole."""
        nodes = self._nodes()
        ends = sorted({end for end in cuts if 0 < end < len(nodes)}) + [len(nodes)]
        if len(ends) == 1:
            return [self._memory.graph]
        spans = list(zip([0, *ends], ends))
        overhead = sum(lib.graph_overhead_custom(end - start, False) for start, end in spans)
        context = new_context(self._backend, self, 0, overhead)
        slices = []
        for start, end in spans:
            piece = lib.new_graph_custom(context, end - start, False)
            for node in nodes[start:end]:
                lib.graph_add_node(piece, node)
            slices.append(piece)
        return slices


class GraphCache:
    """Graphs by key, built by build(builder, key) when first asked for.

    largest: keys of the graphs that need most memory; the shared buffer is made for them.
    max_nodes: of one graph, views and inputs counted.
    keep: how many graphs stay; the one not used for longest goes.
    """

    def __init__(
        self,
        backend: Backend,
        build: Callable[[Builder, Hashable], None],
        largest: Iterable,
        max_nodes: int,
        keep: int = 4,
    ):
        self._backend, self._build = backend, build
        self._max_nodes, self._keep = max_nodes, keep
        self._graphs = OrderedDict()
        self._buffer = _Buffer(backend)
        for key in largest:
            self._buffer.reserve(self._described(key))

    @property
    def size_bytes(self) -> int:
        """Size of the shared buffer, which never changes."""
        return self._buffer.size_bytes

    def get(self, key: Hashable) -> CompiledGraph:
        """The graph of a key, from the cache or new."""
        self._backend.require_open()
        if key not in self._graphs:
            while len(self._graphs) >= self._keep:
                self._graphs.popitem(last=False)
            self._graphs[key] = CompiledGraph(self._described(key), self._buffer)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def run(
        self, key: Hashable, inputs: Mapping, between: Callable[[], None] | None = None
    ) -> dict:
        """Run the graph of a key; see CompiledGraph.run()."""
        return self.get(key).run(inputs, between)

    def _described(self, key: Hashable) -> Builder:
        builder = Builder(self._backend, self._max_nodes)
        self._build(builder, key)
        return builder


def buffer_bytes(
    backend: Backend,
    build: Callable[[Builder, Hashable], None],
    largest: Iterable,
    max_nodes: int,
) -> tuple:
    """Return the size of the buffer of a GraphCache with these arguments, and of the CPU's own.

    The latter holds rows on their way into a product, and grows when a graph first needs it.
    """
    needed = [_graph_bytes(backend, build, key, max_nodes) for key in largest]  # (buffer, work)
    return tuple(map(max, zip(*needed)))


def _graph_bytes(backend: Backend, build: Callable, key: Hashable, max_nodes: int) -> tuple:
    builder = Builder(backend, max_nodes)
    build(builder, key)
    graph, needed = builder.memory.graph, ctypes.c_size_t()
    allocator = lib.gallocr_new(backend.buffer_type)
    try:
        lib.gallocr_reserve_n_size(allocator, graph, None, None, ctypes.addressof(needed))
    finally:
        lib.gallocr_free(allocator)
    work = lib.graph_plan(graph, backend.threads, None).work_size if backend.is_cpu else 0
    return needed.value, work


def _weight_of(node: int) -> str:
    """Return the name of the weight that a node multiplies with, '' for all other nodes."""
    if lib.op_desc(node) != b'MUL_MAT':
        return ''
    weight = TensorStruct.from_address(TensorStruct.from_address(node).src[0])
    name = weight.name.decode('utf-8', 'replace')
    return name if name.endswith(_WEIGHT) else ''


def _input_rows(node: int) -> np.ndarray:
    """Return what was multiplied in a product that was just computed: (n, k) float32, a copy.

    Intermediate results share memory: it is there only until the nodes behind it run.
    """
    handle = TensorStruct.from_address(node).src[1]
    tensor = TensorStruct.from_address(handle)
    if tensor.type != GgmlType.F32:
        raise ValueError(f'a product with {GgmlType(tensor.type).name}, F32 is expected')
    data = np.empty(lib.nbytes(handle), np.uint8)
    lib.backend_tensor_get(handle, data.ctypes.data, 0, data.nbytes)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    rows = np.lib.stride_tricks.as_strided(data.view(np.float32), shape, strides)
    return np.array(rows).reshape(-1, shape[-1])


_EVALUATED = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class ProductWatch:
    """llama.cpp's eval callback: hands every product with weights to on_product(name, rows).

    What on_product raises ends the computation and is kept in `error`.
    """

    def __init__(self, on_product: Callable[[str, np.ndarray], None]):
        self._on_product, self.error = on_product, None
        self.callback = _EVALUATED(self._evaluated)  # C holds its address: kept as long as this

    def _evaluated(self, node: int, is_question: bool, _) -> bool:
        """Asked: whether the node is wanted; told: that it is done, and whether to go on."""
        try:
            name = _weight_of(node)
            if name and not is_question:
                self._on_product(name, _input_rows(node))
            return bool(name)
        except Exception as error:  # must not cross C
            self.error = error
            return False
