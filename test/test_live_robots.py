# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several robots on one engine: each gets what it would get alone, and none costs the others."""

import queue
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from benchmarks.soak import question
from benchmarks.streams import open_core, read_seconds, units_of
from minicpmo_ros.errors import (
    BusyError,
    CancelledError,
    ContextFullError,
    EngineError,
    InputError,
)
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.engine_thread import (
    FLOOD_CHARGE,
    FLOOD_S,
    SLACK_S,
    EngineThread,
    Shares,
    read_together,
)
from minicpmo_ros.live.question import (
    EvidenceOptions,
    Finish,
    PendingQuestion,
    Question,
    QuestionQueue,
)
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.shared_context import SharedContext
from minicpmo_ros.live.status import HALVES_AT_ONCE, EngineOptions, Flood
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.streams.time import Instant

ROOT = Path(__file__).parents[1]
OPTIONS = SessionOptions(max_tokens=24, max_question_tokens=40, max_forks=2)
WAIT_S = 60  # for what must happen soon; never reached unless the test fails
N_CTX = 1024


def unit(model, second, seed):
    rng = np.random.default_rng([seed, second])
    audio, image = (
        rng.normal(size=(n, model.width)).astype(np.float16).astype(np.float32) for n in (25, 64)
    )
    return Unit(second, image, (0, 0), audio)


@pytest.fixture
def open_shared(model):
    """Give a function that opens so many sessions in one context."""
    opened = []

    def make(n, options=OPTIONS, **context_options):
        context_options = ContextOptions(
            **{'n_ctx': N_CTX, 'threads': 1, **context_options}, n_windows=n
        )
        shared = SharedContext(model, context_options, options.max_forks)
        opened.append(shared)
        return [Session(model, ENGLISH, options=options, shared=shared) for _ in range(n)]

    yield make
    for shared in opened:
        shared.close()


def say(session, text):
    return session.ask(Question(text)).complete()


class Robot:
    """An engine of one of several robots, and what has come of it."""

    def __init__(self, load, thread=None, **options):
        self.load = load
        self.states, self._change = queue.Queue(), threading.Condition()
        options = EngineOptions(0.0, evidence=EvidenceOptions('none'), **options)
        self.engine = Engine(load, options, on_change=self._note, thread=thread)
        self.engine.start()

    def _note(self, _):
        with self._change:
            self._change.notify_all()

    def until(self, condition):
        with self._change:
            assert self._change.wait_for(lambda: condition(self.engine.status()), WAIT_S)

    def put(self, unit):
        self.engine.put_image(unit.second, unit.image_rows, unit.tiles)
        self.engine.put_audio(unit.second, unit.audio_rows)

    def ask(self, text, **fields):
        answers = queue.Queue()
        self.engine.ask(Question(text, **fields), on_done=answers.put)
        return answers


@pytest.fixture
def make_robots(model):
    """Give a function that opens robots on one thread, in one context."""
    robots = []

    def make(n, options=OPTIONS, n_ctx=N_CTX, model=model, **engine_options):
        thread, group = EngineThread(), SimpleNamespace(shared=None)

        def load(_, abort):
            if group.shared is None or not group.shared.is_open:
                context_options = ContextOptions(n_ctx=n_ctx, threads=1, n_windows=n)
                group.shared = SharedContext(model, context_options, options.max_forks, abort)
            session = Session(model, ENGLISH, options=options, shared=group.shared)
            session.model = SimpleNamespace(
                **{
                    name: getattr(model, name)
                    for name in ('vocabulary', 'width', 'token_rows', 'on_gpu')
                },
                close=lambda: None,  # it is the fixture's
            )
            return session

        made = [Robot(load, thread, **engine_options) for _ in range(n)]
        robots.extend(made)
        for robot in made:
            robot.until(lambda status: status.state in ('ready', 'failed'))
        return made

    yield make
    for robot in robots:
        assert robot.engine.close(WAIT_S)


def test_windows_of_one_context_know_nothing_of_each_other(model, open_shared):
    together, alone = open_shared(3), [open_shared(1)[0] for _ in range(3)]
    for second in range(14):  # each window holds nine: units leave
        for seed, sessions in enumerate(zip(together, alone)):
            if second % (seed + 1) == 0:
                for session in sessions:
                    session.append(unit(model, second, seed))
    assert together[0].evicted == alone[0].evicted > 0
    for one, other in zip(together, alone):
        assert one.window.seconds == other.window.seconds
        assert say(one, 'what').text == say(other, 'what').text
    assert all(together[0].context.next_position(fork) == 0 for fork in (3, 4, 5))


def test_what_sessions_read_together_is_what_they_read_apart(model, open_shared):
    together, alone = open_shared(2), [open_shared(1)[0] for _ in range(2)]
    pairs = (together, alone)
    for sessions in pairs:
        for seed, session in enumerate(sessions):
            session.append(unit(model, 0, seed))
    asked = [[one.ask(Question('what do you see')) for one in pair] for pair in pairs]
    found = [None, None]

    def steps(i, session, generation):
        reads = [generation.next_read()]
        report = yield from session.appending(unit(model, 1, i), reads)
        found[i] = report.logits[0].copy()

    waiting = [steps(i, *each) for i, each in enumerate(zip(together, asked[0]))]
    read_together(together[0].context, [(each, next(each)) for each in waiting])
    for i, (session, generation) in enumerate(zip(alone, asked[1])):
        report = session.append(unit(model, 1, i), [generation.next_read()])
        assert np.abs(report.logits[0] - found[i]).max() < 1e-3 * np.abs(found[i]).max()
        assert together[i].window.spans == session.window.spans


def test_rows_that_are_not_finite_are_their_own_robots_alone(model, open_shared):
    good, bad = open_shared(2)
    broken = unit(model, 0, 1)
    broken.image_rows[3, 5] = np.nan
    raised = []

    def steps(session, one):
        try:
            yield from session.appending(one)
        except InputError as error:
            raised.append((session, error))

    waiting = [steps(good, unit(model, 0, 0)), steps(bad, broken)]
    read_together(good.context, [(each, next(each)) for each in waiting])
    assert [session for session, _ in raised] == [bad]
    assert good.window.seconds == [0] and bad.window.seconds == []
    assert bad.context.next_position(bad.sequence) == bad.window.prefix


def test_a_robot_leaves_a_fork_to_each_of_the_others(open_shared):
    first, second, third = open_shared(3, replace(OPTIONS, max_forks=4))
    forks = [first.fork(10), first.fork(10)]
    assert not first.can_fork(10) and second.can_fork(10) and third.can_fork(10)
    forks.append(second.fork(10))
    assert not second.can_fork(10)  # it would be the last one, and the third has none
    with pytest.raises(ContextFullError):
        second.fork(10)
    forks.append(third.fork(10))
    assert not third.can_fork(10)
    for fork in forks:
        fork.drop()
    assert first.can_fork(10) and second.can_fork(10) and third.can_fork(10)


def test_another_size_is_that_of_all_windows(model, open_shared):
    sessions = open_shared(2)
    for second in range(8):
        for seed, session in enumerate(sessions):
            session.append(unit(model, second, seed))
    before = [say(session, 'what').text for session in sessions]
    sessions[1].resize(2048)
    assert [session.context.n_ctx for session in sessions] == [2048] * 2
    assert [session.window.seconds for session in sessions] == [list(range(8))] * 2
    assert [say(session, 'what').text for session in sessions] == before
    sessions[0].resize(512)
    assert all(session.window.seconds == sessions[0].window.seconds for session in sessions)
    assert 0 < len(sessions[0].window.seconds) < 8


def test_a_robot_that_leaves_frees_its_cells_and_the_last_one_the_context(model, open_shared):
    first, second = open_shared(2)
    second.append(unit(model, 0, 1))
    before = say(second, 'what').text
    first.append(unit(model, 0, 0))
    fork, context = first.fork(10), first.context
    assert not first.shared.remove(first)
    assert context.next_position(first.sequence) == context.next_position(fork.sequence) == 0
    assert say(second, 'what').text == before
    third = Session(model, ENGLISH, options=OPTIONS, shared=second.shared)
    assert third.sequence == first.sequence and third.window.seconds == []
    with pytest.raises(ValueError, match='all 2 windows'):
        Session(model, ENGLISH, options=OPTIONS, shared=second.shared)
    assert not second.shared.remove(second) and second.shared.remove(third)
    with pytest.raises(EngineError, match='closed'):
        context.next_position(0)


def test_nanos_answers_are_those_of_each_robot_alone():
    """Two streams of held-out clips; both ask at the same time, while the window is full."""
    core = open_core(ModelDirectory.open(ROOT / 'models' / 'nano'), 6)
    stream = read_seconds(ROOT / 'demo' / 'clips' / 'questions.json', 16)
    streams = [stream[:24], stream[24:48]]
    units = [list(units_of(core, each)) for each in streams]
    options = SessionOptions(max_tokens=40, max_question_tokens=40, max_forks=4)
    path, said = ROOT / 'models' / 'nano' / 'llm.gguf', {}
    shared = []

    def load_shared(_, abort):
        if shared:
            return Session(shared[0].model, ENGLISH, options=options, shared=shared[0].shared)
        context_options = ContextOptions(n_ctx=512, threads=1, n_windows=2)
        shared.append(Session.load(path, ENGLISH, None, context_options, options, abort=abort))
        return shared[0]

    def load_alone(_, abort):
        context_options = ContextOptions(n_ctx=512, threads=1)
        return Session.load(path, ENGLISH, None, context_options, options, abort=abort)

    thread = EngineThread()
    robots = {
        'together': [Robot(load_shared, thread) for _ in streams],
        'alone': [Robot(load_alone) for _ in streams],
    }
    try:
        for way, pair in robots.items():
            for robot in pair:
                robot.until(lambda status: status.state == 'ready')
            said[way] = []
            for second in range(24):
                for robot, mine in zip(pair, units):
                    robot.put(mine[second])
                for robot in pair:
                    robot.until(lambda status, n=second + 1: status.units_read == n)
                if second > 8 and second % 2:
                    asked = [
                        robot.ask(question(shown, second, number)[0])
                        for number in (second // 2, second // 2 + 1)
                        for robot, shown in zip(pair, streams)
                    ]
                    said[way] += [answers.get(timeout=WAIT_S).text for answers in asked]
            assert all(robot.engine.status().evicted > 0 for robot in pair)
    finally:
        core.close()
        for pair in robots.values():
            for robot in pair:
                assert robot.engine.close(WAIT_S)
    assert len(said['alone']) == 32 and len(set(said['alone'])) > 5
    assert said['together'] == said['alone']


def test_units_and_answers_of_all_robots_are_read_in_one_decode(make_robots, model, monkeypatch):
    first, second = make_robots(2)
    decoded, decode = [], llama.llama_decode

    def noting(context, batch):
        decoded.append({batch.seq_id[row][0] for row in range(batch.n_tokens)})
        return decode(context, batch)

    monkeypatch.setattr(llama, 'llama_decode', noting)
    with first.engine.thread.wake:  # the thread waits until all has been asked
        answers = [robot.ask('what') for robot in (first, second)]
    for each in answers:
        assert each.get(timeout=WAIT_S).finish in (Finish.STOP, Finish.LENGTH)
    assert any(len(sequences) == 2 for sequences in decoded)
    decoded.clear()
    with first.engine.thread.wake:
        for seed, robot in enumerate((first, second)):
            robot.put(unit(model, 0, seed))
    for robot in (first, second):
        robot.until(lambda status: status.units_read == 1)
    assert {0} in decoded and {1} in decoded  # 128 rows a batch: a unit each


def test_an_error_of_the_context_costs_all_robots_their_windows_and_ends_none(
    make_robots, model, monkeypatch
):
    robots = make_robots(2)
    for seed, robot in enumerate(robots):
        robot.put(unit(model, 0, seed))
        robot.until(lambda status: status.units_read == 1)
    with monkeypatch.context() as patch:
        decode, codes = llama.llama_decode, [-3]
        patch.setattr(
            llama, 'llama_decode', lambda *given: codes.pop() if codes else decode(*given)
        )
        answer = robots[0].ask('what').get(timeout=WAIT_S)
        assert answer.finish == Finish.ERROR
        for robot in robots:
            robot.until(lambda status: status.rebuilds == 1)
    for seed, robot in enumerate(robots):
        status = robot.engine.status()
        assert (status.state, status.units) == ('ready', 0) and 'code -3' in status.lost_window
        robot.put(unit(model, 1, seed))
        robot.until(lambda status: status.units == 1)


def test_a_robot_that_is_closed_and_opened_again_does_not_disturb_the_other(make_robots, model):
    first, second = make_robots(2)
    for seed, robot in enumerate((first, second)):
        robot.put(unit(model, 0, seed))
        robot.until(lambda status: status.units_read == 1)
    before = second.ask('what').get(timeout=WAIT_S).text
    endless = first.ask('what', grammar='root ::= [a-z] root')
    going_on = second.ask('what')
    assert first.engine.close(WAIT_S)
    assert endless.get(timeout=WAIT_S).finish in (Finish.CANCELLED, Finish.LENGTH)
    assert going_on.get(timeout=WAIT_S).text == before
    assert first.engine.status().state == 'unloaded'
    again = Robot(first.load, first.engine.thread)
    try:
        again.until(lambda status: status.state == 'ready')
        again.put(unit(model, 0, 0))
        again.until(lambda status: status.units_read == 1)
        assert second.ask('what').get(timeout=WAIT_S).text == before
        assert second.engine.status().units == 1
    finally:
        assert again.engine.close(WAIT_S)


def test_an_engine_that_cannot_load_fails_alone(make_robots, model):
    (robot,) = make_robots(1)

    def load(*_):
        raise InputError('its system prompt is too long')

    other = Robot(load, robot.engine.thread)
    other.until(lambda status: status.state == 'failed')
    assert 'too long' in other.engine.status().reason
    assert robot.ask('what').get(timeout=WAIT_S).text
    assert other.engine.close(WAIT_S)


class Asking:
    """Stands for an engine in Shares; `needs_device` as it is set."""

    needs_device = True


def spend(shares, engines, costs, ticks):
    """Let engines use the device by turns; return what each was given, as a share."""
    given = dict.fromkeys(engines, 0.0)
    for _ in range(ticks):
        for engine in shares.in_turn(engines):
            if engine.needs_device:
                shares.charge(engine, costs[engine])
                given[engine] += costs[engine]
    return [each / sum(given.values()) for each in given.values()]


def test_who_floods_gets_no_more_of_the_device_than_the_others():
    shares, engines = Shares(), [Asking() for _ in range(4)]
    costs = dict(zip(engines, (0.5, 0.01, 0.01, 0.01)))
    assert spend(shares, engines, costs, 1) == pytest.approx([0.5 / 0.53, *[0.01 / 0.53] * 3])
    flooding, *others = spend(shares, engines, costs, 2000)
    assert flooding == pytest.approx(0.25, abs=0.03)
    assert max(others) - min(others) < 0.01


def test_who_sends_more_than_a_robot_may_gets_a_part_of_a_share_until_it_stops():
    shares, engines = Shares(), [Asking() for _ in range(4)]
    costs = dict.fromkeys(engines, 0.01)
    counts = dict.fromkeys(engines, 0)
    shares.watch({**counts, engines[0]: 1}, 100.0)
    flooding, *others = spend(shares, engines, costs, 2000)
    assert flooding == pytest.approx(1 / FLOOD_CHARGE / (3 + 1 / FLOOD_CHARGE), abs=0.01)
    assert max(others) - min(others) < 0.01
    shares.watch({**counts, engines[0]: 1}, 100.0 + FLOOD_S)
    assert spend(shares, engines, costs, 2000)[0] == pytest.approx(0.25, abs=0.02)
    shares.watch(dict.fromkeys(engines, 2), 200.0)  # where all do, all are equal
    assert spend(shares, engines, costs, 2000)[0] == pytest.approx(0.25, abs=0.02)


def test_what_a_live_robot_sends_is_no_excess_and_a_flood_is():
    flood = Flood()
    for n in range(10_000):
        flood.note_half(Instant(n / 2))  # image and audio of a second
    for _ in range(HALVES_AT_ONCE):  # what a network has held back comes at once
        flood.note_half(Instant(5000.0))
    assert flood.count == 0
    for n in range(100):
        flood.note_half(Instant(5000.0 + n / 100))
    assert flood.count > 90
    queue = QuestionQueue(2, 1)
    pending = PendingQuestion(Question('a'), None, None, threading.Condition())
    queue.put(pending)
    queue.put(pending)
    assert queue.n_refused == 0
    with pytest.raises(BusyError):
        queue.put(pending)
    assert queue.n_refused == 1


def test_nobody_saves_up_while_nothing_is_asked():
    shares, engines = Shares(), [Asking(), Asking()]
    first, second = engines
    second.needs_device = False
    spend(shares, engines, {first: 0.01, second: 0.0}, 1000)  # ten seconds
    second.needs_device = True
    costs = {first: 0.01, second: 0.01}
    assert spend(shares, engines, costs, 100) == pytest.approx([0.5, 0.5], abs=0.1)
    assert 10 * SLACK_S < 10


def test_an_idle_device_is_anybodys():
    shares, engines = Shares(), [Asking(), Asking()]
    first, second = engines
    second.needs_device = False
    for _ in range(100):
        assert first in shares.in_turn(engines)
        shares.charge(first, 1.0)


def test_a_cancelled_decode_lets_go_of_all_riders(model, open_shared):
    sessions = open_shared(2)
    rider = sessions[0].prompt.question(model.vocabulary.encode('red'))
    waiting = [session.appending(unit(model, 0, 0), (), [rider]) for session in sessions]
    before = [session.shared.n_free(session) for session in sessions]
    sessions[0].context.abort.set()
    with pytest.raises(CancelledError):
        read_together(sessions[0].context, [(each, next(each)) for each in waiting])
    sessions[0].context.abort.clear()
    assert [session.shared.n_free(session) for session in sessions] == before
    assert all(session.window.seconds == [] for session in sessions)
