# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every misuse that would end the process raises, and a decode is all or nothing."""

import threading

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError, InputError
from minicpmo_ros.language.context import AbortFlag, Context, ContextOptions
from minicpmo_ros.language.model import LanguageModel
from minicpmo_ros.models import synthetic


@pytest.fixture(scope='module')
def model(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    yield model
    model.close()


@pytest.fixture
def context(model):
    context = Context(model, ContextOptions(n_ctx=512, n_batch=64, threads=1))
    yield context
    context.close()


@pytest.fixture
def rows(model, rng):
    return lambda n: rng.standard_normal((n, model.width)).astype(np.float32)


def divergence(a, b):
    """Kullback-Leibler divergence of the next-token distributions of two rows of logits."""
    p, q = (np.exp(x - x.max(), dtype=np.float64) for x in (a, b))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


# --- guards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change, named',
    [
        ({'n_ctx': 0}, 'n_ctx'),
        ({'n_ctx': 1 << 20}, 'n_ctx'),
        ({'n_batch': 0}, 'n_batch'),
        ({'n_batch': 4097}, 'n_batch'),
        ({'n_sequences': 0}, 'n_sequences'),
        ({'n_sequences': 100000}, 'n_sequences'),
        ({'kv_type': 'q4_0'}, 'kv_type'),
        ({'threads': 0}, 'threads'),
        ({'threads': 513}, 'threads'),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(model, change, named):
    with pytest.raises(InputError, match=named):
        Context(model, ContextOptions(**change))


def test_many_sequences_have_as_many_outputs(model):
    Context(model, ContextOptions(n_ctx=512, n_sequences=16)).close()


@pytest.mark.parametrize('n', [0, 65])
def test_rows_that_do_not_fit_a_batch_are_refused(context, rows, n):
    with pytest.raises(ValueError, match=f'{n} rows'):
        context.decode(rows(n), 0)


@pytest.mark.parametrize(
    'make', [lambda rows: rows[:, :-1], lambda rows: rows[0], lambda rows: rows.astype(np.float16)]
)
def test_rows_of_another_shape_or_type_are_refused(context, rows, make):
    with pytest.raises(ValueError, match='float32'):
        context.decode(make(rows(4)), 0)


@pytest.mark.parametrize('sequence', [-1, 2])
def test_sequences_out_of_range_are_refused(context, rows, sequence):
    for use in (
        lambda: context.decode(rows(1), sequence),
        lambda: context.remove(sequence, 0, 1),
        lambda: context.copy(sequence, 1, 1),
        lambda: context.copy(0, sequence, 1),
        lambda: context.next_position(sequence),
        lambda: context.shift(sequence, 2, -1),
    ):
        with pytest.raises(ValueError, match='sequence'):
            use()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_never_reach_the_cache(context, rows, bad):
    context.decode(rows(4), 0)
    spoilt = rows(5)
    spoilt[3, 7] = bad
    with pytest.raises(InputError, match='not finite'):
        context.decode(spoilt, 0)
    assert context.next_position(0) == 4
    assert np.isfinite(context.decode(rows(1), 0, want_logits=True)).all()


def test_a_copy_needs_an_empty_target_and_a_whole_source(context, rows):
    context.decode(rows(4), 0)
    for source, target, end in ((0, 0, 4), (0, 1, 5), (0, 1, 0), (1, 0, 1)):
        with pytest.raises(ValueError):
            context.copy(source, target, end)
    context.copy(0, 1, 3)
    assert context.next_position(1) == 3
    with pytest.raises(ValueError, match='not empty'):
        context.copy(0, 1, 4)


def test_no_shift_while_another_sequence_shares_cells(context, rows):
    context.decode(rows(20), 0)
    context.copy(0, 1, 20)
    context.remove(0, 4, 8)
    with pytest.raises(ValueError, match='share'):
        context.shift(0, 8, -4)
    context.remove(1, 0, -1)
    context.shift(0, 8, -4)
    assert context.next_position(0) == 16


@pytest.mark.parametrize('start, delta', [(4, -5), (4, 0), (4, 3)])
def test_positions_move_down_and_never_below_zero(context, rows, start, delta):
    context.decode(rows(8), 0)
    with pytest.raises(ValueError, match='move'):
        context.shift(0, start, delta)


@pytest.mark.parametrize('start, end', [(-1, 3), (3, 2), (0, -2)])
def test_only_ranges_are_removed(context, rows, start, end):
    context.decode(rows(8), 0)
    with pytest.raises(ValueError, match='range'):
        context.remove(0, start, end)


def test_no_position_beyond_what_the_model_knows(tmp_path, rng):
    shape = synthetic.Shape(**{**synthetic.SHAPES['tiny'].__dict__, 'context_length': 256})
    synthetic.write_llm(tmp_path / 'llm.gguf', shape)
    model = LanguageModel.load(tmp_path / 'llm.gguf')
    context = Context(model, ContextOptions(n_ctx=256))
    rows = rng.standard_normal((128, model.width)).astype(np.float32)
    context.decode(rows, 0)
    context.decode(rows, 0)
    context.remove(0, 0, 100)  # cells are free, positions are not
    with pytest.raises(ContextFullError, match='1 positions are needed, 0 are free'):
        context.decode(rows[:1], 0)


def test_a_closed_context_is_not_touched(context, rows):
    context.close()
    for use in (
        lambda: context.decode(rows(1), 0),
        context.clear,
        context.close,
        lambda: context.remove(0, 0, -1),
    ):
        if use == context.close:
            use()
            continue
        with pytest.raises(EngineError, match='closed'):
            use()


# --- what decode returns and leaves behind --------------------------------------------------


def test_a_full_context_refuses_and_stays_as_it_was(context, rows):
    for _ in range(7):
        context.decode(rows(64), 0)
    context.decode(rows(60), 0)
    with pytest.raises(ContextFullError) as caught:
        context.decode(rows(5), 0)
    assert (caught.value.needed, caught.value.available) == (5, 4)
    assert context.next_position(0) == 508
    context.remove(0, 100, 200)  # after an eviction the same rows go in
    assert context.decode(rows(5), 0, want_logits=True) is not None


@pytest.mark.parametrize('code', [-1, -2, -3])
def test_a_failed_decode_is_an_engine_error(context, rows, monkeypatch, code):
    context.decode(rows(4), 0)
    decode = llama.llama_decode  # rows of the failed batch may stay behind
    monkeypatch.setattr(llama, 'llama_decode', lambda *given: decode(*given) or code)
    with pytest.raises(EngineError, match=str(code)):
        context.decode(rows(4), 0)
    assert context.next_position(0) == 4


def test_logits_that_are_not_finite_are_an_engine_error(context, rows, monkeypatch):
    spoilt = np.full(context.model.vocabulary.size, np.nan, np.float32)
    monkeypatch.setattr(np.ctypeslib, 'as_array', lambda *_: spoilt)
    with pytest.raises(EngineError, match='not finite'):
        context.decode(rows(1), 0, want_logits=True)


def test_logits_are_a_copy(context, rows):
    first = context.decode(rows(4), 0, want_logits=True)
    kept = first.copy()
    context.decode(rows(4), 0, want_logits=True)
    np.testing.assert_array_equal(first, kept)


def test_the_same_rows_give_the_same_logits_and_others_do_not(context, rows):
    same, other = rows(10), rows(10)
    results = []
    for batch in (same, same, other):
        context.clear()
        results.append(context.decode(batch, 0, want_logits=True))
    np.testing.assert_array_equal(results[0], results[1])
    assert divergence(results[0], results[2]) > 0.01


def test_a_fork_reads_what_its_source_read(context, rows):
    shared, own = rows(40), rows(3)
    context.decode(shared, 0)
    context.copy(0, 1, 40)
    forked = context.decode(own, 1, want_logits=True)
    assert divergence(context.decode(own, 0, want_logits=True), forked) < 1e-4


def test_a_sequence_shifted_after_a_removal_goes_on(context, rows):
    context.decode(rows(60), 0)
    context.remove(0, 10, 30)
    context.shift(0, 30, -20)
    assert context.next_position(0) == 40
    assert np.isfinite(context.decode(rows(1), 0, want_logits=True)).all()


@pytest.mark.parametrize('kv_type, bound', [('f16', 1e-4), ('q8_0', 1e-2)])
def test_smaller_keys_and_values_say_nearly_the_same(model, rows, kv_type, bound):
    history, logits = rows(60), {}
    for kind in ('f32', kv_type):
        context = Context(model, ContextOptions(n_ctx=256, kv_type=kind))
        for _ in range(3):  # through shifts as well
            context.decode(history, 0)
            context.remove(0, 20, 40)
            context.shift(0, 40, -20)
        logits[kind] = context.decode(history[:1], 0, want_logits=True)
        context.close()
    assert 0 < divergence(logits['f32'], logits[kv_type]) < bound


# --- abort ------------------------------------------------------------------------------------


def test_an_aborted_decode_leaves_its_sequence_and_resumes_identically(model, rng):
    context = Context(model, ContextOptions(n_ctx=512, threads=1))
    first, second = (rng.standard_normal((64, model.width)).astype(np.float32) for _ in '12')
    context.decode(first, 0)
    expected = context.decode(second, 0, want_logits=True)
    context.remove(0, 64, -1)
    context.abort.set()
    with pytest.raises(CancelledError):
        context.decode(second, 0, want_logits=True)
    assert context.next_position(0) == 64
    context.abort.clear()
    np.testing.assert_array_equal(context.decode(second, 0, want_logits=True), expected)


def test_the_abort_is_seen_inside_a_decode(model, rows, monkeypatch):
    """The flag rises after our own check, as another thread would raise it."""
    context = Context(model, ContextOptions(n_ctx=512, threads=1))
    decode = llama.llama_decode

    def raise_flag_first(*arguments):
        context.abort.set()
        return decode(*arguments)

    monkeypatch.setattr(llama, 'llama_decode', raise_flag_first)
    with pytest.raises(CancelledError, match='stopped'):
        context.decode(rows(100), 0)
    assert context.next_position(0) == 0


def test_another_thread_aborts_a_long_decode(tmp_path, rng):
    """A model that takes seconds a batch ends its decode soon after the flag."""
    shape = synthetic.SHAPES['small']
    synthetic.write_llm(tmp_path / 'llm.gguf', shape)
    model = LanguageModel.load(tmp_path / 'llm.gguf')
    context = Context(model, ContextOptions(n_ctx=4096, threads=1))
    rows = rng.standard_normal((128, model.width)).astype(np.float32)
    started = threading.Event()

    def read_until_stopped():
        with pytest.raises(CancelledError):
            for _ in range(32):
                started.set()
                context.decode(rows, 0)
            raise AssertionError('the context was filled before the flag was seen')

    thread = threading.Thread(target=read_until_stopped)
    thread.start()
    started.wait()
    context.abort.set()
    thread.join(10)
    assert not thread.is_alive()
    assert context.next_position(0) % 128 == 0


def test_an_abort_flag_is_set_and_cleared():
    flag = AbortFlag()
    assert not flag.is_set
    flag.set()
    assert flag.is_set
    flag.clear()
    assert not flag.is_set
