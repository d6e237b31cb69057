# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Typed building blocks of a compute graph, in NumPy's shapes without leading ones.

Every operation checks its operands first and raises ValueError: ggml would end the process
instead. Nodes are float32 where nothing else is said. Graphs are built, allocated and run
by graph.py, which hands a Builder to the function that describes one.
"""

import math

from minicpmo_ros.errors import EngineError
from minicpmo_ros.ggml.library import GgmlType, lib
from minicpmo_ros.ggml.runtime import Backend, Tensor, Tensors, new_context

_PRECISION_F32 = 10
_LEAVES_PER_NODE = 2  # weights and inputs take places in a graph too
_INTEGERS = (GgmlType.I32, GgmlType.I64)


class _Memory:
    """Keeps the context alive for the nodes described in it."""

    unreadable = frozenset()

    def __init__(self, backend: Backend, max_nodes: int):
        self.backend = backend
        size = _LEAVES_PER_NODE * max_nodes
        self.context = new_context(
            backend, self, max_nodes, lib.graph_overhead_custom(size, False)
        )
        self.graph = lib.new_graph_custom(self.context, size, False)


def _require(condition: bool, operation: str, *tensors) -> None:
    if not condition:
        operands = ', '.join(f'{t.type.name}{list(t.shape)}' for t in tensors)
        raise ValueError(f'{operation} cannot be applied to {operands}')


def _sides(tensor: Tensor) -> tuple:
    """The shape with four dimensions."""
    return (1,) * (4 - len(tensor.shape)) + tensor.shape


def _dense_rows(tensor: Tensor) -> bool:
    return tensor.strides[-1] == tensor.type.block_bytes


class Builder:
    """Describes one graph of at most max_nodes nodes (views and inputs count)."""

    def __init__(self, backend: Backend, max_nodes: int):
        self.backend, self.memory = backend, _Memory(backend, max_nodes)
        self.inputs, self.outputs = {}, {}  # name -> (Tensor, upper bound of ids), Tensor
        self.cuts = []  # numbers of nodes at which a slice ends
        self._free_nodes = max_nodes

    # Where data comes in and out.

    def input(
        self, name: str, shape: tuple, ggml_type: GgmlType = GgmlType.F32, below: int | None = None
    ) -> Tensor:
        """An array given to every run; ids (I32) are checked to lie in [0, below)."""
        if name in self.inputs or not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(f'the input {name} cannot have the shape {shape}, or exists')
        if (ggml_type in _INTEGERS) != (below is not None):
            raise ValueError(f'the input {name}: `below` is for ids, and ids need it')
        create = getattr(lib, f'new_tensor_{len(shape)}d')
        tensor = self._op(create, int(ggml_type), *map(int, reversed(shape)))
        lib.set_input(tensor.handle)
        self.inputs[name] = (tensor, below)
        return tensor

    def output(self, name: str, x: Tensor) -> None:
        """Give x a name in the results of a run."""
        if name in self.outputs:
            raise ValueError(f'the output {name} exists')
        if not x.is_contiguous:
            x = self.contiguous(x)
        _require(x.owner is self.memory, 'output', x)
        lib.set_output(x.handle)
        self._expand(x)
        self.outputs[name] = x

    def cut(self, x: Tensor) -> None:
        """End a slice once x is computed: a run with `between` pauses here."""
        self._expand(x)
        self.cuts.append(lib.graph_n_nodes(self.memory.graph))

    def store(self, target: Tensor, x: Tensor) -> None:
        """Copy x into a stored tensor or a slice of one of the same shape, converting.

        Nodes made later may read what was stored.
        """
        _require(target.shape == x.shape, 'store', target, x)
        self._expand(self._op(lib.cpy, x, target))

    def store_rows(self, target: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """Put rows x (n, d) into target (m, d) at ids (n,); the target to read from."""
        _require(
            len(target.shape) == 2
            and x.shape == (ids.shape[0], target.shape[1])
            and ids.type in _INTEGERS
            and x.type == GgmlType.F32
            and _dense_rows(x),
            'store_rows',
            target,
            x,
            ids,
        )
        return self._op(lib.set_rows, target, x, ids)

    # Layers.

    def linear(self, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., k) times weight (n, k) of any type, plus bias (n,): (..., n)."""
        y = self.matmul(weight, x)
        return y if bias is None else self.add(y, bias)

    def matmul(self, a: Tensor, x: Tensor) -> Tensor:
        """x (..., m, k) times a (..., n, k) transposed: (..., m, n)."""
        outer_a, outer_x = _sides(a)[:2], _sides(x)[:2]
        _require(
            a.shape[-1] == x.shape[-1]
            and _dense_rows(a)
            and _dense_rows(x)
            and x.type == GgmlType.F32
            and all(many % one == 0 for many, one in zip(outer_x, outer_a)),
            'matmul',
            a,
            x,
        )
        return self._op(lib.mul_mat, a, x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """Normalise the last axis, then scale and shift by float32 weight and bias."""
        _require(x.type == GgmlType.F32 and _dense_rows(x), 'layer_norm', x)
        return self.add(self.multiply(self._op(lib.norm, x, epsilon), weight), bias)

    def gelu_erf(self, x: Tensor) -> Tensor:
        """The exact GELU."""
        return self._elementwise(lib.gelu_erf, x)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The tanh approximation of GELU (on a CPU from a float16 table: 2e-4 relative)."""
        return self._elementwise(lib.gelu, x)

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return self._elementwise(lib.relu, x)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        """Each number times a constant."""
        return self._elementwise(lib.scale, x, factor)

    def _elementwise(self, operation, x: Tensor, *numbers) -> Tensor:
        _require(x.type == GgmlType.F32 and x.is_contiguous, operation.__name__, x)
        return self._op(operation, x, *numbers)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, where b is repeated along axes that divide those of a."""
        return self._broadcast(lib.add, a, b)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """a * b, where b is repeated along axes that divide those of a."""
        return self._broadcast(lib.mul, a, b)

    def _broadcast(self, operation, a: Tensor, b: Tensor) -> Tensor:
        _require(
            a.type == b.type == GgmlType.F32
            and _dense_rows(a)
            and _dense_rows(b)
            and all(many % one == 0 for many, one in zip(_sides(a), _sides(b))),
            operation.__name__,
            a,
            b,
        )
        return self._op(operation, a, b)

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of table (m, d) at ids (n,) int32 as float32 (n, d)."""
        _require(
            len(table.shape) == 2 and len(ids.shape) == 1 and ids.type == GgmlType.I32,
            'rows',
            table,
            ids,
        )
        return self._op(lib.get_rows, table, ids)

    def taps(self, x: Tensor, kernel: int, stride: int, count: int) -> Tensor:
        """Windows of a convolution over x (t, c): (count, kernel * c), window i at i * stride.

        With the kernel reordered to (out, kernel * c), linear() of this is the convolution,
        exact in float32, where ggml's own goes through float16.
        """
        _require(len(x.shape) == 2, 'taps', x)
        windows = self.slice(x, 0, 0, count, stride)
        for offset in range(1, kernel):
            windows = self.concatenate(windows, self.slice(x, 0, offset, count, stride), -1)
        return windows

    def mean_pool(self, x: Tensor, size: int) -> Tensor:
        """Means of size consecutive rows of x (t, d), what is left over dropped."""
        _require(len(x.shape) == 2, 'mean_pool', x)
        if size == 1:
            return x
        count = x.shape[0] // size
        total = self.slice(x, 0, 0, count, size)
        for offset in range(1, size):
            total = self.add(total, self.slice(x, 0, offset, count, size))
        return self.scale(total, 1 / size)

    def heads(self, x: Tensor, n_heads: int, batch: int = 1) -> Tensor:
        """x (batch * t, n_heads * d) seen as (batch, n_heads, t, d)."""
        rows, width = _sides(x)[2:]
        t, d = rows // batch, width // n_heads
        return self.transpose(self.reshape(x, (batch, t, n_heads, d)), (0, 2, 1, 3))

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kind: str = 'flash',
        mask: Tensor | None = None,
        v_transposed: bool = False,
        n_padding: int = 0,
    ) -> Tensor:
        """Attention of q (b, h, t, d) over k, v (b, h, m, d): (b * t, h * d).

        kind 'flash' is one fused operation (k and v float16 on a GPU); 'mul_mat' writes the
        scores out and takes v also as (b, h, d, m), v_transposed, which saves a copy.
        mask: (t, m) float16, added to the scaled scores. n_padding: the last so many numbers of
        each head are zeros and no part of it, nor of the result: (b * t, h * (d - n_padding)).
        """
        b, h, t, d = _sides(q)
        m, factor = _sides(k)[2], 1 / math.sqrt(d - n_padding)
        _require(_sides(k) == (b, h, m, d), 'attention', q, k, v)
        if mask is not None:
            _require(
                mask.type == GgmlType.F16 and _sides(mask) == (1, 1, t, m) and mask.is_contiguous,
                'attention with a mask',
                q,
                k,
                mask,
            )
        if kind == 'flash':
            _require(not v_transposed, 'flash attention', q, k, v)
            y = self._fused_attention(q, k, v, mask, factor)  # (b, t, h, d)
            return self.reshape(self._unpadded(y, n_padding), (b * t, h * (d - n_padding)))
        _require(not n_padding, 'attention with padding', q)
        if not v_transposed:
            v = self.contiguous(self.transpose(v, (0, 1, 3, 2)))
        y = self._written_attention(q, k, v, mask, factor)  # (b, t, h, d)
        return self.reshape(y, (b * t, h * _sides(v)[2]))

    def _fused_attention(self, q: Tensor, k: Tensor, v: Tensor, mask, factor: float) -> Tensor:
        """Attention over v (b, h, m, d) in one operation: (b, t, h, d)."""
        _require(
            _sides(v) == _sides(k)
            and v.type == k.type
            and q.type == GgmlType.F32
            and all(map(_dense_rows, (q, k, v))),
            'flash attention',
            q,
            k,
            v,
        )
        y = self._op(lib.flash_attn_ext, q, k, v, mask, factor, 0.0, 0.0)
        lib.prec_set_acc(y.handle, _PRECISION_F32)
        return y

    def _written_attention(self, q: Tensor, k: Tensor, v: Tensor, mask, factor: float) -> Tensor:
        """Attention over v (b, h, d, m) with the scores written out: (b, t, h, d)."""
        scores = self.matmul(k, q)  # (b, h, t, m)
        lib.prec_set_acc(scores.handle, _PRECISION_F32)
        weights = self._op(lib.soft_max_ext, scores, mask, factor, 0.0)
        y = self.matmul(v, weights)  # (b, h, t, d)
        return self.contiguous(self.transpose(y, (0, 2, 1, 3)))

    def padded(self, x: Tensor, n_zeros: int) -> Tensor:
        """Append zeros to the last axis of x (..., d), contiguous float32: (..., d + n_zeros)."""
        _require(x.type == GgmlType.F32 and x.is_contiguous and n_zeros >= 0, 'padded', x)
        return self._op(lib.pad, x, n_zeros, 0, 0, 0) if n_zeros else x

    def _unpadded(self, x: Tensor, n_zeros: int) -> Tensor:
        if not n_zeros:
            return x
        return self.contiguous(self.slice(x, -1, 0, x.shape[-1] - n_zeros))

    # Shapes.

    def reshape(self, x: Tensor, shape: tuple) -> Tensor:
        """The same numbers in another shape of 2 to 4 dimensions; x is contiguous."""
        _require(
            x.is_contiguous and math.prod(shape) == math.prod(x.shape) and 2 <= len(shape) <= 4,
            f'reshape to {shape}',
            x,
        )
        operation = getattr(lib, f'reshape_{len(shape)}d')
        return self._op(operation, x, *map(int, reversed(shape)))

    def transpose(self, x: Tensor, axes: tuple) -> Tensor:
        """A view of x with permuted axes, as numpy.transpose has them; four are given."""
        _require(sorted(axes) == [0, 1, 2, 3], f'transpose to {axes}', x)
        places = [0] * 4  # ggml wants to know where each of its axes goes
        for target, source in enumerate(axes):
            places[3 - source] = 3 - target
        return self._op(lib.permute, x, *places)

    def slice(self, x: Tensor, axis: int, start: int, count: int, step: int = 1) -> Tensor:
        """A view of x[start:start + count * step:step] along one axis."""
        rank = len(x.shape)
        axis %= rank
        last = axis == rank - 1
        _require(
            0 <= start
            and count > 0
            and start + (count - 1) * step < x.shape[axis]
            and step > 0
            and not (last and (step > 1 or x.type.block_size > 1))
            and _dense_rows(x),
            f'slice [{start}:+{count}:{step}] of axis {axis}',
            x,
        )
        shape, strides = list(x.shape), list(x.strides)
        offset = start * strides[axis]
        shape[axis], strides[axis] = count, strides[axis] * step
        while len(shape) < 4:
            shape.insert(0, 1)
            strides.insert(0, shape[1] * strides[0])
        return self._op(lib.view_4d, x, *shape[::-1], *strides[2::-1], offset)

    def concatenate(self, a: Tensor, b: Tensor, axis: int) -> Tensor:
        """Join two tensors along an axis."""
        rank = len(a.shape)
        axis %= rank
        _require(
            len(b.shape) == rank
            and a.type == b.type
            and a.type.block_size == 1
            and all(i == axis or a.shape[i] == b.shape[i] for i in range(rank)),
            f'concatenate along {axis}',
            a,
            b,
        )
        return self._op(lib.concat, a, b, rank - 1 - axis)

    def repeat(self, x: Tensor, shape: tuple) -> Tensor:
        """x repeated to a shape whose axes are multiples of its own; float32."""
        wanted = (1,) * (4 - len(shape)) + tuple(shape)
        _require(
            x.type == GgmlType.F32
            and all(many % one == 0 for many, one in zip(wanted, _sides(x))),
            f'repeat to {shape}',
            x,
        )
        return self._op(lib.repeat_4d, x, *wanted[::-1])

    def cast(self, x: Tensor, ggml_type: GgmlType) -> Tensor:
        """A contiguous copy in another float type."""
        return self._op(lib.cast, x, int(ggml_type))

    def contiguous(self, x: Tensor) -> Tensor:
        """A contiguous copy."""
        return self._op(lib.cont, x)

    def _expand(self, x: Tensor) -> None:
        """Put everything that leads to x into the graph now: order matters for stores."""
        lib.build_forward_expand(self.memory.graph, x.handle)

    def _op(self, operation, *arguments) -> Tensor:
        if not self._free_nodes:
            raise EngineError('a graph has more nodes than its max_nodes')
        self._free_nodes -= 1
        handles = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                owner = argument.owner
                if owner is not self.memory and not (
                    isinstance(owner, Tensors) and owner.backend is self.backend
                ):
                    raise ValueError('a tensor of another graph or another device')
                argument = argument.handle
            handles.append(argument)
        return Tensor(operation(self.memory.context, *handles), self.memory)
