# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Compute graphs: described once per key, kept, and run in slices.

    weights = Weights.load(path, backend, {'w': Want((8, 4)), 'b': Want((8,), as_float=True)})

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
"""

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.ggml import products
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.library import GgmlType, lib
from minicpmo_ros.ggml.runtime import Backend, new_context, storage, trimmed
from minicpmo_ros.ggml.signatures import TensorStruct

__all__ = ['Builder', 'CompiledGraph', 'GraphCache']


class _Buffer:
    """The memory of intermediate results; its size is fixed by reserve()."""

    readable = True

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
            ends = [end for end, node in enumerate(nodes, 1) if products.weight_of(node)]
            self._products = list(
                zip(self._form_slices(ends), [nodes[end - 1] for end in ends] + [None])
            )
        for graph, product in self._products:
            self._backend.compute(graph)
            if product is not None:
                rows = products.input_rows(product)  # (n, k)
                self._backend.on_product(products.weight_of(product), rows)
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
