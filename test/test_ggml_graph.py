# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Graphs compute what NumPy does, in slices too; misuse is an exception, never an abort."""

import gc
import math
import threading

import numpy as np
import pytest

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.library import GgmlType, lib
from minicpmo_ros.ggml.runtime import Backend, Tensors

F32, F16, I32 = GgmlType.F32, GgmlType.F16, GgmlType.I32
N, D, HEADS = 6, 8, 2


@pytest.fixture
def backend():
    with_two_threads = Backend('cpu', threads=2)
    yield with_two_threads
    with_two_threads.close()


@pytest.fixture
def stored(backend, rng):
    """A few weights and a cache; arrays by name in `stored.arrays`."""
    shapes = {'w': (D, D), 'gain': (D,), 'shift': (D,), 'table': (20, D)}
    tensors = Tensors(
        backend,
        {
            **{name: (shape, F32) for name, shape in shapes.items()},
            'cache': ((20, D), F16),
            'turned': ((HEADS, 4, 20), F32),
        },
    )
    tensors.arrays = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    for name, array in tensors.arrays.items():
        tensors[name].write(array)
    return tensors


def compute(backend, describe, between=None, **inputs):
    graphs = GraphCache(backend, lambda g, _: describe(g), [0], max_nodes=64)
    return graphs.run(0, inputs, between)


def rows(rng, n=N, d=D):
    return rng.standard_normal((n, d)).astype(np.float32)


def reference_attention(q, k, v):
    """(h, t, d), (h, m, d) -> (t, h * d)."""
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.concatenate(list(weights / weights.sum(-1, keepdims=True) @ v), -1)


def heads(x):
    return x.reshape(len(x), HEADS, -1).transpose(1, 0, 2)


def test_a_layer_is_what_numpy_says(backend, stored, rng):
    x, p = rows(rng), stored.arrays

    def describe(g):
        y = g.linear(stored['w'], g.input('x', (N, D)), stored['shift'])
        g.output('linear', y)
        g.output('norm', g.layer_norm(y, stored['gain'], stored['shift'], 1e-5))
        g.output('gelu', g.gelu_erf(y))
        g.output('tanh', g.gelu_tanh(y))
        g.output('relu', g.relu(y))
        g.output('half', g.scale(y, 0.5))

    got = compute(backend, describe, x=x)
    y = x @ p['w'].T + p['shift']
    norm = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
    gelu = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    for name, wanted in {
        'linear': y,
        'norm': norm * p['gain'] + p['shift'],
        'gelu': gelu,
        'relu': np.maximum(y, 0),
        'half': y / 2,
    }.items():
        np.testing.assert_allclose(got[name], wanted, atol=5e-6, err_msg=name)
    assert 1e-5 < np.abs(got['tanh'] - gelu).max() < 5e-3


@pytest.mark.parametrize('kind', ['flash', 'mul_mat'])
def test_attention_is_what_numpy_says(backend, rng, kind):
    q, k, v = rows(rng), rows(rng, 10), rows(rng, 10)

    def describe(g):
        q, k, v = (
            g.heads(g.input(name, (n, D)), HEADS) for name, n in (('q', N), ('k', 10), ('v', 10))
        )
        g.output('y', g.attention(q, k, v, kind))
        g.output('masked', g.attention(q, k, v, kind, g.input('mask', (N, 10), F16)))

    mask = np.zeros((N, 10), np.float16)
    mask[:, 7:] = -np.inf
    got = compute(backend, describe, q=q, k=k, v=v, mask=mask)
    q, k, v = map(heads, (q, k, v))
    np.testing.assert_allclose(got['y'], reference_attention(q, k, v), atol=1e-5)
    np.testing.assert_allclose(
        got['masked'], reference_attention(q, k[:, :7], v[:, :7]), atol=1e-5
    )


@pytest.mark.parametrize('kind', ['flash', 'mul_mat'])
def test_a_batch_is_bitwise_its_members(backend, rng, kind):
    x = rows(rng, 2 * N)

    def describe(batch):
        def build(g):
            q = g.heads(g.input('x', (batch * N, D)), HEADS, batch)
            g.output('y', g.attention(q, q, q, kind))

        return build

    both = compute(backend, describe(2), x=x)['y']
    for i in range(2):
        one = compute(backend, describe(1), x=x[i * N : (i + 1) * N])['y']
        np.testing.assert_array_equal(both[i * N : (i + 1) * N], one)


def test_windows_and_means_are_what_numpy_says(backend, rng):
    x = rows(rng, 9)

    def describe(g):
        x = g.input('x', (9, D))
        g.output('taps', g.taps(x, 3, 2, 4))
        g.output('mean', g.mean_pool(x, 4))
        g.output('columns', g.slice(x, 1, 2, 3))
        g.output('steps', g.slice(x, 0, 1, 3, 3))

    got = compute(backend, describe, x=x)
    np.testing.assert_array_equal(
        got['taps'], np.stack([x[2 * i : 2 * i + 3].ravel() for i in range(4)])
    )
    np.testing.assert_allclose(got['mean'], x[:8].reshape(2, 4, D).mean(1), atol=1e-6)
    np.testing.assert_array_equal(got['columns'], x[:, 2:5])
    np.testing.assert_array_equal(got['steps'], x[1::3])


def test_what_is_stored_is_read_by_what_comes_later(backend, stored, rng):
    x, ids = rows(rng), np.array([3, 1, 17, 4, 0, 9], np.int32)

    def describe(g):
        x, ids = g.input('x', (N, D)), g.input('ids', (N,), I32, below=20)
        cache = g.store_rows(stored['cache'], x, ids)
        g.output('rows', g.rows(cache, ids))
        turned = g.transpose(g.heads(x, HEADS), (0, 1, 3, 2))
        g.store(g.slice(stored['turned'], -1, 5, N), turned)
        g.output('turned', g.contiguous(g.slice(stored['turned'], -1, 5, N)))

    got = compute(backend, describe, x=x, ids=ids)
    np.testing.assert_array_equal(got['rows'], x.astype(np.float16))
    np.testing.assert_array_equal(got['turned'], heads(x).transpose(0, 2, 1))
    np.testing.assert_array_equal(stored['cache'].read()[ids], x.astype(np.float16))


def deep(stored, layers=5):
    def describe(g, n):
        x = g.input('x', (n, D))
        for _ in range(layers):
            x = g.add(x, g.gelu_erf(g.linear(stored['w'], x, stored['shift'])))
            x = g.layer_norm(x, stored['gain'], stored['shift'], 1e-5)
            g.cut(x)
        g.output('y', g.linear(stored['w'], x))

    return describe


def test_slices_give_the_whole_bit_for_bit(backend, stored, rng):
    graphs, x = GraphCache(backend, deep(stored), [N], max_nodes=64), rows(rng)
    pauses = []
    whole = graphs.run(N, {'x': x})['y']
    sliced = graphs.run(N, {'x': x}, lambda: pauses.append(backend.lock.locked()))['y']
    np.testing.assert_array_equal(whole, sliced)
    assert pauses == [False] * 5, 'once a layer, with the device free'
    assert graphs.get(N).n_slices == 6


def test_an_exception_between_slices_leaves_things_clean(backend, stored, rng):
    graphs, x = GraphCache(backend, deep(stored), [N], max_nodes=64), rows(rng)
    whole = graphs.run(N, {'x': x})['y']

    def stop():
        raise KeyError('stop')

    for _ in range(3):
        with pytest.raises(KeyError):
            graphs.run(N, {'x': x + 1}, stop)
    np.testing.assert_array_equal(graphs.run(N, {'x': x})['y'], whole)


def test_the_buffer_never_moves_and_larger_graphs_are_refused(backend, stored, rng):
    graphs = GraphCache(backend, deep(stored), [40], max_nodes=64, keep=50)
    size, x = graphs.size_bytes, rows(rng, 40)
    first = {n: graphs.run(n, {'x': x[:n]})['y'] for n in (40, 1, 17, 39)}
    with pytest.raises(EngineError, match='were reserved'):
        graphs.run(400, {'x': rows(rng, 400)})
    for n in range(1, 41):
        y = graphs.run(n, {'x': x[:n]})['y']
        np.testing.assert_allclose(y.reshape(n, D), first[40][:n], atol=1e-5)
        assert graphs.size_bytes == size
    for n, y in first.items():  # graphs made before the others still hold
        np.testing.assert_array_equal(graphs.run(n, {'x': x[:n]})['y'], y)


def test_a_result_that_is_used_further_stays(backend, stored, rng):
    """Though a view that has been read for the last time, its memory is not given away."""
    x = rows(rng)

    def describe(g):
        y = g.scale(g.input('x', (N, D)), 2.0)
        view = g.reshape(y, (2 * N, D // 2))
        g.output('view', view)
        y = g.reshape(g.scale(view, 0.5), (N, D))
        for _ in range(4):
            y = g.linear(stored['w'], y)
        g.output('y', y)

    got = compute(backend, describe, x=x)
    np.testing.assert_array_equal(got['view'], 2 * x.reshape(2 * N, D // 2))


def test_only_some_graphs_are_kept(backend, stored, rng):
    built = []

    def describe(g, n):
        built.append(n)
        deep(stored)(g, n)

    graphs = GraphCache(backend, describe, [N], max_nodes=64, keep=2)
    for n in (6, 5, 6, 4, 6, 5):
        graphs.run(n, {'x': rows(rng, n)})
    assert built == [6, 6, 5, 4, 5], 'the first for the reservation'


MISUSE = {
    'matmul of unequal rows': lambda g, t: g.linear(t['w'], g.input('x', (N, 4))),
    'bias of another width': lambda g, t: g.add(g.input('x', (N, 5)), t['shift']),
    'norm of halves': lambda g, t: g.layer_norm(t['cache'], t['gain'], t['shift'], 1e-5),
    'gelu of a view': lambda g, t: g.gelu_erf(g.slice(t['table'], 1, 0, 4)),
    'scale of a view': lambda g, t: g.scale(g.slice(t['table'], 0, 0, 4, 2), 2.0),
    'reshape of another count': lambda g, t: g.reshape(t['w'], (3, 5)),
    'reshape of a view': lambda g, t: g.reshape(g.slice(t['w'], 1, 0, 4), (2, 16)),
    'slice outside': lambda g, t: g.slice(t['table'], 0, 18, 3),
    'slice with steps in a row': lambda g, t: g.slice(t['table'], 1, 0, 2, 2),
    'slice before': lambda g, t: g.slice(t['table'], 0, -1, 2),
    'odd axes': lambda g, t: g.transpose(t['w'], (0, 1, 1, 2)),
    'concatenation of unequals': lambda g, t: g.concatenate(t['w'], t['table'], 1),
    'concatenation of types': lambda g, t: g.concatenate(t['table'], t['cache'], 1),
    'rows by numbers': lambda g, t: g.rows(t['table'], g.input('x', (N,))),
    'store of another shape': lambda g, t: g.store(t['cache'], g.input('x', (N, D))),
    'store_rows without ids': lambda g, t: g.store_rows(
        t['cache'], g.input('x', (N, D)), g.input('y', (N,))
    ),
    'attention of other heads': lambda g, t: g.attention(
        g.heads(g.input('x', (N, D)), 2), *[g.heads(t['table'], 4)] * 2
    ),
    'mask of another shape': lambda g, t: g.attention(
        *[g.heads(g.input('x', (N, D)), 2)] * 3, mask=g.input('m', (N, 3), F16)
    ),
    'mask of floats': lambda g, t: g.attention(
        *[g.heads(g.input('x', (N, D)), 2)] * 3, mask=g.input('m', (N, N))
    ),
    'repeat to no multiple': lambda g, t: g.repeat(t['w'], (12, D)),
    'ids without a bound': lambda g, t: g.input('x', (N,), I32),
    'input twice': lambda g, t: [g.input('x', (N,)) for _ in range(2)],
    'input of no size': lambda g, t: g.input('x', (0, 4)),
    'output of a weight': lambda g, t: g.output('y', t['w']),
}


@pytest.mark.parametrize('name', MISUSE)
def test_misuse_in_a_graph_is_refused(backend, stored, name):
    with pytest.raises(ValueError):
        GraphCache(backend, lambda g, _: MISUSE[name](g, stored), [0], max_nodes=64)


def test_too_many_nodes_are_refused(backend, stored):
    with pytest.raises(EngineError, match='max_nodes'):
        GraphCache(backend, deep(stored), [N], max_nodes=20)


def test_a_tensor_of_another_device_or_graph_is_refused(backend, stored):
    other, kept = Backend('cpu'), []
    alien = Tensors(other, {'w': ((D, D), F32)})
    with pytest.raises(ValueError, match='another'):
        compute(backend, lambda g: g.linear(alien['w'], g.input('x', (N, D))))
    graphs = GraphCache(backend, lambda g, _: kept.append(g.input('x', (N, D))), [0], 8)
    with pytest.raises(ValueError, match='another'):
        compute(backend, lambda g: g.relu(kept[0]))
    del graphs
    other.close()


GOOD_X, GOOD_IDS = np.ones((N, D), np.float32), np.zeros(N, np.int32)


@pytest.mark.parametrize(
    'change, reason',
    [
        ({'x': None}, 'missing'),
        ({'x': np.ones((N, D))}, 'float64'),
        ({'x': np.ones((N, D - 1), np.float32)}, 'expected'),
        ({'x': [1, 2, 3]}, 'expected'),
        ({'x': np.full((N, D), np.nan, np.float32)}, 'NaN'),
        ({'x': np.full((N, D), np.inf, np.float32)}, 'NaN or infinite'),
        ({'ids': np.full(N, 20, np.int32)}, r'lie in \[0, 20\)'),
        ({'ids': np.full(N, -1, np.int32)}, 'lie in'),
        ({'z': GOOD_X}, 'unknown'),
    ],
)
def test_inputs_that_do_not_fit_are_refused(backend, stored, change, reason):
    def describe(g):
        ids = g.input('ids', (N,), I32, below=20)
        g.output('y', g.add(g.input('x', (N, D)), g.rows(stored['table'], ids)))

    inputs = {'x': GOOD_X, 'ids': GOOD_IDS, **change}
    with pytest.raises(ValueError, match=reason):
        compute(backend, describe, **{k: v for k, v in inputs.items() if v is not None})


def test_inputs_may_be_strided(backend, stored, rng):
    x = rows(rng, 2 * N)[::2]
    y = compute(backend, lambda g: g.output('y', g.scale(g.input('x', (N, D)), 2.0)), x=x)['y']
    np.testing.assert_array_equal(y, 2 * x)


def test_an_unused_input_is_refused(backend):
    def describe(g):
        g.input('unused', (N, D))
        g.output('y', g.scale(g.input('x', (N, D)), 2.0))

    with pytest.raises(ValueError, match='unused'):
        compute(backend, describe)


def test_a_graph_does_not_run_within_itself(backend, stored, rng):
    graphs, x = GraphCache(backend, deep(stored), [N], max_nodes=64), rows(rng)
    with pytest.raises(EngineError, match='running already'):
        graphs.run(N, {'x': x}, lambda: graphs.run(N, {'x': x}))


def test_two_graphs_take_turns_on_one_device(backend, stored, rng):
    """Each thread waits in its pause until the other has computed a slice."""
    x, barrier = rows(rng), threading.Barrier(2, timeout=60)
    caches = [GraphCache(backend, deep(stored), [N], max_nodes=64) for _ in range(2)]
    wanted, got = caches[0].run(N, {'x': x})['y'], [None, None]

    def work(i):
        got[i] = caches[i].run(N, {'x': x}, barrier.wait)['y']

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for y in got:
        np.testing.assert_array_equal(y, wanted)


def test_a_closed_device_is_refused_everywhere(stored, backend, rng):
    graphs, x = GraphCache(backend, deep(stored), [N], max_nodes=64), rows(rng)
    compiled = graphs.get(N)
    backend.close()
    backend.close()
    for use in (
        lambda: compiled.run({'x': x}),
        lambda: graphs.run(5, {'x': x}),
        lambda: stored['w'].read(),
        lambda: stored['w'].write(np.zeros((D, D), 'f')),
        lambda: Tensors(backend, {'a': ((4,), F32)}),
        lambda: graphs.size_bytes,
        lambda: GraphCache(backend, deep(stored), [N], max_nodes=64),
    ):
        with pytest.raises(EngineError, match='closed'):
            use()


def test_closing_between_slices_ends_the_run(stored, backend, rng):
    graphs = GraphCache(backend, deep(stored), [N], max_nodes=64)
    with pytest.raises(EngineError, match='closed'):
        graphs.run(N, {'x': rows(rng)}, backend.close)


def test_memory_goes_with_its_last_user(backend, stored, rng):
    """Without waiting for the garbage collector: caches are hundreds of MiB."""
    gc.collect()
    gc.disable()
    try:
        before = backend.n_owned
        graphs = GraphCache(backend, deep(stored), [N], max_nodes=64)
        graphs.run(N, {'x': rows(rng)}, lambda: None)
        more = Tensors(backend, {'a': ((4, 4), F32)})
        assert more['a'].read().size == 16 and backend.n_owned > before
        del graphs, more
        assert backend.n_owned == before
    finally:
        gc.enable()


def test_closing_frees_what_is_still_in_use(backend, stored):
    graphs = GraphCache(backend, deep(stored), [N], max_nodes=64)
    graphs.get(N)
    assert backend.n_owned
    backend.close()
    assert not backend.n_owned


def test_new_tensors_are_zero(backend):
    for _ in range(3):  # memory is used again
        tensors = Tensors(backend, {'a': ((4, 100), F32)})
        assert not tensors['a'].read().any()
        tensors['a'].write(np.ones((4, 100), np.float32))
        del tensors


def test_want_of_memory_is_said(backend, stored, monkeypatch):
    for function in ('backend_alloc_ctx_tensors_from_buft', 'gallocr_reserve'):
        with monkeypatch.context() as patch:
            patch.setattr(lib, function, lambda *_: None)
            with pytest.raises(EngineError, match='no memory left'):
                Tensors(backend, {'a': ((4,), F32)})
                GraphCache(backend, deep(stored), [N], max_nodes=64)


def test_bad_devices_are_refused():
    with pytest.raises(ValueError, match='tpu'):
        Backend('tpu')
    for threads in (0, 1000):
        with pytest.raises(InputError, match=f'threads is {threads}; 1 to 512'):
            Backend(threads=threads)


def test_wrong_arithmetic_is_noticed(monkeypatch):
    monkeypatch.setattr('minicpmo_ros.ggml.runtime.Tensor.read', lambda self: np.zeros((3, 4)))
    with pytest.raises(EngineError, match='computes wrongly'):
        Backend('cpu')
