# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much memory tensors and graphs will take, before there is any.

    weights = DescribedTensors(backend, {'w': ((8, 4), GgmlType.F16)})
    n_bytes = weights.size_bytes + buffer_bytes(backend, build, largest=[100], max_nodes=32)

Described as they will be loaded and computed, and measured by the allocators that will place
them: what is forecast is what is taken, without formulas that a change of a graph could leave
behind.
"""

import ctypes
from collections.abc import Callable, Hashable, Iterable, Mapping

from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.library import lib
from minicpmo_ros.ggml.runtime import Backend, Tensors, declare_all
from minicpmo_ros.ggml.signatures import TensorStruct

_SOMEWHERE = 1 << 20  # a place that is never looked at; a graph leaves alone what has one


class DescribedTensors(Tensors):
    """Named tensors without memory: graphs over them can be measured, not run."""

    readable = False

    def __init__(self, backend: Backend, shapes: Mapping, buffer_type: int | None = None):
        self.backend = backend
        context, self._handles = declare_all(backend, self, shapes)
        self.size_bytes = lib.backend_alloc_ctx_tensors_from_buft_size(
            context, buffer_type or backend.buffer_type
        )
        for handle in self._handles.values():
            TensorStruct.from_address(handle).data = _SOMEWHERE


def buffer_bytes(
    backend: Backend,
    build: Callable[[Builder, Hashable], None],
    largest: Iterable,
    max_nodes: int,
) -> tuple:
    """Give the size of the buffer of a GraphCache with these arguments, and of the CPU's own.

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
