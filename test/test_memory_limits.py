# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where memory grows short the window shrinks, then questions are refused; all comes back."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor

import llama_cpp.llama_cpp as llama
import pytest
from test_live_engine import WAIT_S, Asker, FakeSession, Gate, put, until
from test_live_session import (  # noqa: F401 (open_session: a fixture)
    SMALL,
    answer,
    divergence,
    fill,
    first_logits,
    open_session,
    unit,
)

from minicpmo_ros.errors import BusyError, EngineError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import EvidenceOptions
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.memory.limits import (
    CALM_LOOKS,
    FAILED_LOOKS,
    MARGIN_MIB,
    MOST_CALM_LOOKS,
    SOON_LOOKS,
    MemoryBounds,
    MemoryGuard,
    context_sizes,
    kv_mib_per_position,
)
from minicpmo_ros.memory.llm_formulas import LlmSizes, keys_and_values
from minicpmo_ros.memory.plan import PlanOptions
from minicpmo_ros.memory.proc import rss_mib
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.units import MIB


def kv_bytes_per_position(path, kv_type='f16') -> int:
    """Give what the keys and values of a position take, wherever they are."""
    return keys_and_values(LlmSizes.of(read_header(path)), 256, kv_type, 0).host // 256


SIZES = (4096, 2048, 1024, 512)
PER_POSITION = 1 / 8  # MiB: 512, 256, 128 and 64 in all
FREE_MIB = 10_000.0


# --- the guard ----------------------------------------------------------------------------------


@pytest.fixture
def guard():
    return MemoryGuard(SIZES, PER_POSITION)


def sizes_of(guard, figures, bounds):
    return [guard.look(used, FREE_MIB, bounds).n_ctx for used in figures]


def test_sizes_are_halves_that_llama_cpp_makes():
    assert context_sizes(4096, 700) == (4096, 2048, 1024)
    assert context_sizes(8192, 8000) == (8192,)
    assert context_sizes(768, 300) == (768, 512)  # 384 is rounded up
    assert context_sizes(256, 100) == (256,)


@pytest.mark.parametrize(
    'shares_memory,given,share',
    [
        (False, dict(device='cpu'), 1),
        (False, dict(device='cpu', n_ctx=300), 1),
        (False, dict(device='gpu'), 0),
        (True, dict(device='gpu'), 1),
        (True, dict(device='gpu', rpc_servers='brain:50052'), 0),
        (False, dict(device='gpu', gpu_layers=2), 1 / 2),  # a layer and the output of two layers
    ],
)
def test_a_position_takes_here_what_is_in_the_memory_of_this_machine(
    tiny_model_dir, shares_memory, given, share
):
    model = ModelDirectory.open(tiny_model_dir)
    found = kv_mib_per_position(model, PlanOptions(**given), shares_memory)
    whole = kv_bytes_per_position(tiny_model_dir / 'llm.gguf')
    assert MIB * found == pytest.approx(share * whole)


def test_only_so_much_is_given_up_as_is_short(guard):
    bounds = MemoryBounds(limit_mib=1000)
    assert guard.look(1000, FREE_MIB, bounds).n_ctx == 4096
    verdict = guard.look(1200, FREE_MIB, bounds)  # half of the context are 256 MiB
    assert verdict.n_ctx == 2048 and not verdict.refuses
    assert all(fact in verdict.reason for fact in ('1200', '1000', '2048', '4096'))
    assert guard.look(1150, FREE_MIB, bounds).n_ctx == 512  # 128 more would not do


def test_where_the_smallest_does_not_help_questions_are_refused(guard):
    bounds = MemoryBounds(limit_mib=1000)
    first, second = (guard.look(5000, FREE_MIB, bounds) for _ in range(2))
    assert (first.n_ctx, first.refuses, second.refuses) == (512, False, True)
    assert 'refused' in second.reason and 'memory_limit_mib' in second.remedy


def test_the_nearer_bound_counts(guard):
    bounds = MemoryBounds(limit_mib=1000, reserve_mib=300)
    verdict = guard.look(900, 299, bounds)
    assert verdict.n_ctx == 2048 and '299 MiB are available' in verdict.reason
    assert guard.look(1001, 900, bounds).n_ctx == 1024


def test_without_bounds_nothing_is_given_up(guard):
    assert guard.look(1e6, 0, MemoryBounds()).n_ctx == 4096


def test_it_comes_back_a_step_at_a_time_once_there_is_room_for_the_step(guard):
    bounds = MemoryBounds(limit_mib=1000)
    for _ in range(2):
        guard.look(5000, FREE_MIB, bounds)
    calm = [guard.look(900, FREE_MIB, bounds) for _ in range(CALM_LOOKS)]
    assert [v.refuses for v in calm] == [True] * (CALM_LOOKS - 1) + [False]
    # 512 -> 1024 costs 64 MiB, and a margin must be left.
    enough = 1000 - 64 - MARGIN_MIB
    assert sizes_of(guard, [enough + 1] * 10, bounds) == [512] * 10
    assert sizes_of(guard, [enough] * CALM_LOOKS, bounds) == [512] * (CALM_LOOKS - 1) + [1024]
    assert sizes_of(guard, [100] * 2 * CALM_LOOKS, bounds)[-1] == 4096
    assert guard.look(100, FREE_MIB, bounds).reason == ''


def test_a_moment_of_room_is_not_enough(guard):
    bounds = MemoryBounds(limit_mib=1000)
    guard.look(1001, FREE_MIB, bounds)
    assert sizes_of(guard, ([100] * (CALM_LOOKS - 1) + [950]) * 4, bounds) == [2048] * 12


def test_figures_at_the_edge_do_not_let_it_swing(guard):
    """What was freed is not room enough to take it back."""
    bounds, sizes = MemoryBounds(limit_mib=1000), []
    for _ in range(30):
        used = 600 + PER_POSITION * (sizes[-1] if sizes else 4096)  # 1112 with all of it
        sizes.append(guard.look(used, FREE_MIB, bounds).n_ctx)
    assert sizes == [2048] * 30


def beside_a_neighbour(period_looks, busy_looks, looks, takes_mib=400.0):
    """Run the guard of a 7B with q8_0 beside one that comes and goes; (cuts, growths, sizes)."""
    mib_per_position, sizes = 29.75 / 1024, context_sizes(8192, 1024)
    guard, n_ctx, seen = MemoryGuard(sizes, mib_per_position), 8192, []
    cuts = growths = 0
    for look in range(looks):
        available = 400.0 + (8192 - n_ctx) * mib_per_position
        available -= takes_mib if look % period_looks < busy_looks else 0
        verdict = guard.look(6000, available, MemoryBounds(0, 128))
        cuts, growths = cuts + (verdict.n_ctx < n_ctx), growths + (verdict.n_ctx > n_ctx)
        n_ctx = verdict.n_ctx
        guard.settle(n_ctx)
        seen.append(n_ctx)
    return cuts, growths, seen


@pytest.mark.parametrize('period', [6, 10, 15, 16, 30, 60, 150, 300])
def test_a_neighbour_that_comes_and_goes_does_not_let_the_window_swing(period):
    cuts, growths, _ = beside_a_neighbour(period, max(1, period // 3), 1800)
    assert cuts <= 9 and growths <= 2 * cuts


def test_a_window_comes_back_when_the_neighbour_has_left_for_good():
    _, _, beside = beside_a_neighbour(15, 5, 600)
    assert beside[-1] < 8192
    _, _, after = beside_a_neighbour(10**9, 600, 600 + MOST_CALM_LOOKS + 3 * CALM_LOOKS)
    assert after[0] < 8192 == after[-1]


def test_a_neighbour_that_comes_once_in_a_while_costs_the_window_only_while_it_is_there():
    period = 2 * SOON_LOOKS
    cuts, growths, seen = beside_a_neighbour(period, 30, 5 * period)
    assert 5 <= cuts <= 10 and growths >= 4
    assert sum(n_ctx == 8192 for n_ctx in seen) >= 0.9 * len(seen)


def test_questions_are_answered_again_as_soon_as_there_is_room(guard):
    bounds = MemoryBounds(limit_mib=1000)
    for _ in range(6):
        for _ in range(2):
            guard.look(5000, FREE_MIB, bounds)
        assert [guard.look(900, FREE_MIB, bounds).refuses for _ in range(CALM_LOOKS)][-1] is False


def test_a_step_back_that_failed_is_not_tried_at_every_look(guard):
    bounds = MemoryBounds(limit_mib=1000)
    guard.look(1001, FREE_MIB, bounds)
    assert sizes_of(guard, [100] * CALM_LOOKS, bounds)[-1] == 4096
    guard.settle(2048)
    sizes = sizes_of(guard, [100] * (FAILED_LOOKS + CALM_LOOKS), bounds)
    assert sizes == [2048] * (FAILED_LOOKS + CALM_LOOKS - 1) + [4096]
    guard.settle(4096)
    assert guard.look(100, FREE_MIB, bounds).reason == ''


# --- the session --------------------------------------------------------------------------------


def opened(open_session, n_ctx=1536, seconds=range(0), **options):  # noqa: F811
    return fill(open_session(n_ctx=n_ctx, **options), [unit(second) for second in seconds])


@pytest.mark.parametrize('kv_type', ['f16', 'q8_0'])
def test_what_stays_answers_as_if_the_context_had_never_been_larger(open_session, kv_type):  # noqa: F811
    """The same units let go in the same way, with and without another context."""
    shrunk = opened(open_session, seconds=range(12), kv_type=kv_type)
    never = opened(open_session, seconds=range(12), kv_type=kv_type)
    shrunk.resize(768)
    assert shrunk.context.n_ctx == 768
    assert shrunk.window.end <= shrunk.window.capacity < 768
    assert shrunk.window.seconds == list(range(12))[-len(shrunk.window.seconds) :]
    assert 3 <= len(shrunk.window.seconds) <= 6 and shrunk.evicted == 12 - len(
        shrunk.window.seconds
    )
    never.window.capacity = shrunk.window.capacity
    never.evict(never.window.spans_to_evict(0))
    assert never.window.spans == shrunk.window.spans
    for later in (12, 13):
        assert divergence(first_logits(shrunk), first_logits(never)) < 1e-5
        shrunk.append(unit(later))
        never.append(unit(later))


def test_growing_loses_nothing(open_session):  # noqa: F811
    session, small = (opened(open_session, 768, range(4)) for _ in range(2))
    session.resize(2048)
    assert session.window.seconds == [0, 1, 2, 3] and session.evicted == 0
    assert divergence(first_logits(session), first_logits(small)) < 1e-5
    fill(session, [unit(s) for s in range(4, 18)])
    assert session.window.seconds == list(range(18))


def test_what_may_not_be_copied_leaves_and_the_prompt_stays(open_session):  # noqa: F811
    session, fresh = (opened(open_session, seconds=range(8)) for _ in range(2))
    per_unit = 94 * kv_bytes_per_position(session.model.path)
    prefix_bytes = session.window.prefix / 94 * per_unit
    session.resize(1280, max_copy_bytes=1.1 * (prefix_bytes + 3 * per_unit))
    assert session.window.seconds == [5, 6, 7]
    session.resize(1024, max_copy_bytes=10.0)
    fresh.reset()
    assert session.window.seconds == [] and session.evicted == 8
    assert divergence(first_logits(session), first_logits(fresh)) < 1e-5


def test_the_smallest_context_still_reads_and_answers(open_session):  # noqa: F811
    session = opened(open_session, seconds=range(8))
    session.resize(session.smallest_context)
    fill(session, [unit(s) for s in range(8, 12)])
    assert session.window.seconds[-2:] == [10, 11]
    assert answer(session)[0].units == len(session.window.seconds)
    assert session.smallest_context == session.context.n_ctx < 1024


def test_a_context_that_cannot_be_made_leaves_the_former_one(open_session, monkeypatch):  # noqa: F811
    session, never = (opened(open_session, seconds=range(3)) for _ in range(2))
    real, calls = llama.llama_init_from_model, []

    def once(*arguments):
        calls.append(arguments)
        return None if len(calls) == 1 else real(*arguments)

    monkeypatch.setattr(llama, 'llama_init_from_model', once)
    with pytest.raises(EngineError, match='n_ctx'):
        session.resize(4096)
    assert session.context.n_ctx == 1536 and session.window.seconds == [0, 1, 2]
    assert divergence(first_logits(session), first_logits(never)) < 1e-5


def shrunken(path) -> tuple:
    """Shrink a context of 64 MiB in this process; return (MiB given back, seconds that stay)."""
    options = ContextOptions(n_ctx=32768, threads=1, kv_type='f32')
    model = LanguageModel.load(path)
    session = Session(model, ENGLISH, options, SMALL)
    fill(session, [unit(0), unit(1)])
    before_mib = rss_mib()
    session.resize(8192)
    return before_mib - rss_mib(), session.window.seconds


def test_shrinking_returns_the_memory_of_keys_and_values(tiny_model_dir):
    path = tiny_model_dir / 'llm.gguf'
    assert 32768 * kv_bytes_per_position(path, 'f32') == 64 * MIB
    # In a process of its own: in the heap of this one other tests may have left room for so much.
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        given_back_mib, seconds = pool.submit(shrunken, path).result()
    assert given_back_mib > 0.9 * 48
    assert seconds == [0, 1]


# --- the engine ---------------------------------------------------------------------------------


class Resizable(FakeSession):
    """Notes what it is made to be."""

    resize_error = None

    def resize(self, n_ctx, max_copy_bytes):
        self.diary.append(f'resize {n_ctx}')
        if self.resize_error:
            raise self.resize_error
        self.context.n_ctx = n_ctx


@pytest.fixture
def session():
    return Resizable()


@pytest.fixture
def engine(session):
    engine = Engine(lambda *_: session, EngineOptions(0.0, evidence=EvidenceOptions('none')))
    engine.start()
    until(lambda: engine.status().state == 'ready')
    yield engine
    assert engine.close(WAIT_S)


def test_the_size_changes_after_the_answer_and_before_the_next(engine, session):
    gate = Gate()
    session.at_step = gate
    first = Asker(engine, 'first')
    assert gate.arrived.wait(WAIT_S)
    second = Asker(engine, 'second')
    engine.resize(1024, 1e9)
    gate.open()
    assert first.result().text == second.result().text == 'xxx'
    assert session.diary[:6] == ['first', 'step', 'step', 'step', 'resize 1024', 'second']
    assert engine.status().context_size == 1024 and engine.status().resizes == 1


def test_units_are_read_before_and_after(engine, session):
    put(engine, [1])
    until(lambda: engine.status().units_read == 1)
    engine.resize(1024, 1e9)
    until(lambda: engine.status().resizes == 1)
    put(engine, [2])
    until(lambda: engine.status().units_read == 2)
    assert session.diary == [1, 'resize 1024', 2]


def test_a_size_that_is_not_to_be_had_is_told_and_nothing_ends(engine, session, caplog):
    session.resize_error = EngineError('no memory for it')
    engine.resize(8192, 1e9)
    until(lambda: engine.status().resizes == 1)
    assert 'no memory for it' in caplog.text and engine.status().context_size == 4096
    assert Asker(engine).result().text == 'xxx'


def test_while_questions_are_refused_the_reason_is_told_and_units_are_read(engine):
    engine.pause_questions('Memory is short.')
    with pytest.raises(BusyError, match='Memory is short'):
        Asker(engine)
    put(engine, [1])
    until(lambda: engine.status().units_read == 1)
    engine.pause_questions('')
    assert Asker(engine).result().text == 'xxx'


def test_memory_that_is_not_there_while_loading_is_told(make_failed):
    status = make_failed(MemoryError())
    assert 'memory' in status.reason and 'n_ctx' in status.remedy


@pytest.fixture
def make_failed():
    def make(error):
        failed, ended = [], threading.Event()

        def load(*_):
            raise error

        def on_change(status):
            if status.state == 'failed':
                failed.append(status)
                ended.set()

        engine = Engine(load, on_change=on_change)
        engine.start()
        assert ended.wait(WAIT_S)
        return failed[0]

    return make
