# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every misuse that would end the process raises, and a decode is all or nothing."""

import threading

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError, InputError
from minicpmo_ros.ggml.library import llama_log
from minicpmo_ros.llm.context import AbortFlag, Context, ContextOptions, is_fused
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.synthetic import model as synthetic


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


def test_no_rows_are_refused(context, rows):
    with pytest.raises(ValueError, match='0 rows'):
        context.read(rows(0), 0)


@pytest.mark.parametrize(
    'make', [lambda rows: rows[:, :-1], lambda rows: rows[0], lambda rows: rows.astype(np.float16)]
)
def test_rows_of_another_shape_or_type_are_refused(context, rows, make):
    with pytest.raises(ValueError, match='float32'):
        context.read(make(rows(4)), 0)


@pytest.mark.parametrize('sequence', [-1, 2])
def test_sequences_out_of_range_are_refused(context, rows, sequence):
    for use in (
        lambda: context.read(rows(1), sequence),
        lambda: context.remove(sequence, 0, 1),
        lambda: context.copy(sequence, 1, 1),
        lambda: context.copy(0, sequence, 1),
        lambda: context.next_position(sequence),
        lambda: context.close_gap(2, 3, sequence, {}),
    ):
        with pytest.raises(ValueError, match='sequence'):
            use()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_never_reach_the_cache(context, rows, bad):
    context.read(rows(4), 0)
    spoilt = rows(5)
    spoilt[3, 7] = bad
    with pytest.raises(InputError, match='not finite'):
        context.read(spoilt, 0)
    assert context.next_position(0) == 4
    assert np.isfinite(context.read(rows(1), 0, want_logits=True)).all()


def test_a_copy_needs_an_empty_target_and_a_whole_source(context, rows):
    context.read(rows(4), 0)
    for source, target, end in ((0, 0, 4), (0, 1, 5), (0, 1, 0), (1, 0, 1)):
        with pytest.raises(ValueError):
            context.copy(source, target, end)
    context.copy(0, 1, 3)
    assert context.next_position(1) == 3
    with pytest.raises(ValueError, match='not empty'):
        context.copy(0, 1, 4)


def test_no_gap_is_closed_while_a_sequence_that_is_not_named_may_share_cells(context, rows):
    context.read(rows(20), 0)
    context.copy(0, 1, 20)
    with pytest.raises(ValueError, match='share'):
        context.close_gap(4, 8, 0, {})
    context.close_gap(4, 8, 0, {1: 20})
    assert context.next_position(0) == context.next_position(1) == 16
    context.remove(1, 0, -1)
    context.close_gap(4, 8, 0, {})
    assert context.next_position(0) == 12


@pytest.mark.parametrize('start, end', [(4, 4), (6, 4), (-1, 4), (4, 9)])
def test_a_gap_is_a_part_of_its_sequence(context, rows, start, end):
    context.read(rows(8), 0)
    with pytest.raises(ValueError, match='gap'):
        context.close_gap(start, end, 0, {})


@pytest.mark.parametrize('start, end', [(-1, 3), (3, 2), (0, -2)])
def test_only_ranges_are_removed(context, rows, start, end):
    context.read(rows(8), 0)
    with pytest.raises(ValueError, match='range'):
        context.remove(0, start, end)


def test_no_position_beyond_what_the_model_knows(tmp_path, rng):
    shape = synthetic.Shape(**{**synthetic.SHAPES['tiny'].__dict__, 'context_length': 256})
    synthetic.write_llm(tmp_path / 'llm.gguf', shape)
    model = LanguageModel.load(tmp_path / 'llm.gguf')
    context = Context(model, ContextOptions(n_ctx=256))
    rows = rng.standard_normal((128, model.width)).astype(np.float32)
    context.read(rows, 0)
    context.read(rows, 0)
    context.remove(0, 0, 100)  # cells are free, positions are not
    with pytest.raises(ContextFullError, match='1 positions are needed, 0 are free'):
        context.read(rows[:1], 0)


def test_a_closed_context_is_not_touched(context, rows):
    context.close()
    for use in (
        lambda: context.read(rows(1), 0),
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
        context.read(rows(64), 0)
    context.read(rows(60), 0)
    with pytest.raises(ContextFullError) as caught:
        context.read(rows(5), 0)
    assert (caught.value.needed, caught.value.available) == (5, 4)
    assert context.next_position(0) == 508
    context.remove(0, 100, 200)  # after an eviction the same rows go in
    assert context.read(rows(5), 0, want_logits=True) is not None


@pytest.mark.parametrize('code', [-1, -2, -3])
def test_a_failed_decode_is_an_engine_error(context, rows, monkeypatch, code):
    context.read(rows(4), 0)
    decode = llama.llama_decode  # rows of the failed batch may stay behind
    monkeypatch.setattr(llama, 'llama_decode', lambda *given: decode(*given) or code)
    with pytest.raises(EngineError, match=str(code)):
        context.read(rows(4), 0)
    assert context.next_position(0) == 4


def test_logits_that_are_not_finite_are_an_engine_error(context, rows, monkeypatch):
    spoilt = np.full(context.model.vocabulary.size, np.nan, np.float32)
    monkeypatch.setattr(np.ctypeslib, 'as_array', lambda *_: spoilt)
    with pytest.raises(EngineError, match='not finite'):
        context.read(rows(1), 0, want_logits=True)


def test_logits_are_a_copy(context, rows):
    first = context.read(rows(4), 0, want_logits=True)
    kept = first.copy()
    context.read(rows(4), 0, want_logits=True)
    np.testing.assert_array_equal(first, kept)


def test_the_same_rows_give_the_same_logits_and_others_do_not(context, rows):
    same, other = rows(10), rows(10)
    results = []
    for batch in (same, same, other):
        context.clear()
        results.append(context.read(batch, 0, want_logits=True))
    np.testing.assert_array_equal(results[0], results[1])
    assert divergence(results[0], results[2]) > 0.01


def test_a_fork_reads_what_its_source_read(context, rows):
    shared, own = rows(40), rows(3)
    context.read(shared, 0)
    context.copy(0, 1, 40)
    forked = context.read(own, 1, want_logits=True)
    assert divergence(context.read(own, 0, want_logits=True), forked) < 1e-4


def test_a_sequence_shifted_after_a_removal_goes_on(context, rows):
    context.read(rows(60), 0)
    context.close_gap(10, 30, 0, {})
    assert context.next_position(0) == 40
    assert np.isfinite(context.read(rows(1), 0, want_logits=True)).all()


@pytest.mark.parametrize('kv_type, bound', [('f16', 1e-4), ('q8_0', 1e-2)])
def test_smaller_keys_and_values_say_nearly_the_same(model, rows, kv_type, bound):
    history, logits = rows(60), {}
    for kind in ('f32', kv_type):
        context = Context(model, ContextOptions(n_ctx=256, kv_type=kind))
        for _ in range(3):  # through shifts as well
            context.read(history, 0)
            context.close_gap(20, 40, 0, {})
        logits[kind] = context.read(history[:1], 0, want_logits=True)
        context.close()
    assert 0 < divergence(logits['f32'], logits[kv_type]) < bound


# --- abort ------------------------------------------------------------------------------------


def test_an_aborted_decode_leaves_its_sequence_and_resumes_identically(model, rng):
    context = Context(model, ContextOptions(n_ctx=512, threads=1))
    first, second = (rng.standard_normal((64, model.width)).astype(np.float32) for _ in '12')
    context.read(first, 0)
    expected = context.read(second, 0, want_logits=True)
    context.remove(0, 64, -1)
    context.abort.set()
    with pytest.raises(CancelledError):
        context.read(second, 0, want_logits=True)
    assert context.next_position(0) == 64
    context.abort.clear()
    np.testing.assert_array_equal(context.read(second, 0, want_logits=True), expected)


def test_the_abort_is_seen_inside_a_decode_and_is_no_error_in_the_log(model, rows, monkeypatch):
    """The flag rises after our own check, as another thread would raise it."""
    logged = []
    monkeypatch.setattr(llama_log, 'sink', lambda level, text: logged.append(level))
    context = Context(model, ContextOptions(n_ctx=512, threads=1))
    decode = llama.llama_decode

    def raise_flag_first(*arguments):
        context.abort.set()
        return decode(*arguments)

    monkeypatch.setattr(llama, 'llama_decode', raise_flag_first)
    with pytest.raises(CancelledError, match='stopped'):
        context.read(rows(100), 0)
    assert context.next_position(0) == 0
    assert 'debug' in logged and not {'warning', 'error'} & set(logged)


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
                context.read(rows, 0)
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


@pytest.mark.parametrize(
    'attention, kv_type, on_gpu, expected',
    [
        ('auto', 'f16', False, False),
        ('auto', 'f32', False, False),
        ('auto', 'q8_0', False, True),
        ('auto', 'f16', True, True),
        ('plain', 'f16', True, False),
        ('fused', 'f16', False, True),
    ],
)
def test_attention_is_plain_where_fused_is_inexact(attention, kv_type, on_gpu, expected):
    assert is_fused(attention, kv_type, on_gpu) == expected


@pytest.mark.parametrize(
    'attention, kv_type, told', [('plain', 'q8_0', 'quantised'), ('flash', 'f16', 'auto, fused')]
)
def test_attention_that_cannot_be_is_refused_with_the_way_out(model, attention, kv_type, told):
    with pytest.raises(InputError, match=told):
        Context(model, ContextOptions(n_ctx=512, kv_type=kv_type, attention=attention))


def test_generated_tokens_on_a_cpu_are_as_exact_as_f32(model, rng):
    """Plain attention over f16 is what auto takes; fused sums in f16 and is ten times farther."""
    rows = rng.standard_normal((700, model.width)).astype(np.float32)

    def logits(**options):
        context = Context(model, ContextOptions(n_ctx=768, threads=1, **options))
        for start in range(0, 640, 128):
            context.read(rows[start : start + 128], 0)
        found = [context.read(row[None], 0, want_logits=True) for row in rows[640:]]
        context.close()
        return np.array(found)

    exact = logits(kv_type='f32', attention='plain')
    errors = {
        attention: np.linalg.norm(logits(attention=attention) - exact) / np.linalg.norm(exact)
        for attention in ('auto', 'plain', 'fused')
    }
    assert errors['auto'] == errors['plain'] < 2e-3
    assert errors['fused'] > 2 * errors['plain']
