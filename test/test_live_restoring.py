# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a file gives back comes before the live seconds, and costs none of them."""

import queue
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from test_live_engine import ANY, WAIT_S, FakeSession, until

from minicpmo_ros.alerts.reader import AlertAsker
from minicpmo_ros.alerts.rules import make_rule
from minicpmo_ros.alerts.watch import AlertWatch
from minicpmo_ros.errors import BusyError, EngineError, InputError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import Question
from minicpmo_ros.live.restoring import Restoring
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.sessions.black_box import BlackBox
from minicpmo_ros.sessions.keeper import SessionKeeper, StoredSession
from minicpmo_ros.sessions.session_file import newest_run
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.streams.time import Instant

SOUND, SPACE, WIDTH = np.ones((25, 256), np.float16), 'model', 256


class Reader:
    """A file that is there, but for the seconds that are damaged."""

    def __init__(self, damaged=()):
        self.path, self.damaged, self.closed = Path('FILE'), damaged, False

    def read(self, stored):
        if stored.second in self.damaged:
            return None
        return Unit(stored.second, None, (0, 0), SOUND, window=tuple(range(stored.second + 1)))

    def close(self):
        self.closed = True


def stored_of(seconds, damaged=(), is_black_box=True, age_s=0.0):
    stored = [SimpleNamespace(second=second) for second in seconds]
    return StoredSession(Reader(damaged), stored, '', is_black_box, age_s)


def live_of(second):
    return Unit(second, None, (0, 0), SOUND, arrived=Instant(1000.0, 10**12))


@pytest.mark.parametrize('cost_s', (0.01, 0.1, 0.3, 0.5, 0.9))
@pytest.mark.parametrize('max_backlog, per_s', ((3, 1), (8, 1), (16, 1), (16, 2)))
def test_as_many_seconds_are_restored_as_cost_no_live_one_and_the_newest(
    cost_s, max_backlog, per_s
):
    if cost_s * per_s >= 1:
        return  # it would never be live
    restoring, live, read = Restoring(max_backlog, 300.0), deque([live_of(100)]), []
    restoring.offer(stored_of(range(40, 90)), lambda: None)
    now_s, n_live, most = 0.0, 1, 0
    while len(read) < 200:
        unit = restoring.peek(live)
        unit = restoring.take(unit if unit is not None else live.popleft())
        read.append(unit)
        now_s += cost_s
        while n_live <= now_s * per_s:
            live.append(live_of(100 + n_live))
            n_live += 1
        most = max(most, len(live))
        restoring.note_read(unit, cost_s, [unit.second for unit in read])
        if not live and not restoring.is_at_work:
            now_s = n_live / per_s
            live.append(live_of(100 + n_live))
            n_live += 1
    seconds = [unit.second for unit in read]
    assert seconds == sorted(set(seconds))
    assert most <= max_backlog  # nothing had to be dropped
    restored = [unit.second for unit in read if unit.is_restored]
    assert seconds[len(restored) :] == list(range(100, 100 + len(read) - len(restored)))
    newest = restored[3:]  # the first are read to learn what one costs
    if max_backlog > 3:  # else there is hardly time for any
        assert newest[-1] == 89 and (per_s > 1 or 90 - newest[0] - len(newest) <= 4)
    n_expected = min(50, int((max_backlog - 2) / per_s / cost_s))
    assert len(restored) >= n_expected - 3
    assert ('were left out' in restoring.told) == (len(restored) < 50)


@pytest.mark.parametrize(
    'first, age_s, reason',
    (
        (500, 410, '410 s before'),
        (89, 1, 'the newest of them 89'),
        (20, 1, 'is 20'),
        (95, 86_400, 'written 86400 s ago'),  # in the simulation of yesterday
    ),
)
def test_what_is_too_old_or_of_a_later_time_is_not_read_and_forgotten(first, age_s, reason):
    restoring, refused = Restoring(8, 300.0), []
    restoring.offer(stored_of(range(40, 90), age_s=age_s), lambda: refused.append(True))
    assert restoring.peek(deque()) is None and not restoring.is_at_work and not refused
    assert restoring.peek(deque([live_of(first)])) is None
    assert refused == [True] and reason in restoring.told and 'not read' in restoring.told


def test_what_cannot_be_read_is_left_out_and_told():
    restoring, live = Restoring(8, 300.0), deque([live_of(100)])
    restoring.offer(stored_of(range(90, 95), damaged=(90, 92)), lambda: None)
    read = []
    while (unit := restoring.peek(live)) is not None:
        read.append(restoring.take(unit).second)
        if unit.second != 93:  # that one the session refuses
            restoring.note_read(unit, 0.01, read)
    assert read == [91, 93, 94] and restoring.count([91, 93, 94, 100]) == 2
    assert '2 seconds' in restoring.told and '3 could not be read' in restoring.told
    assert '5 s before the first live' in restoring.told and not restoring.is_at_work


def test_a_restored_second_is_as_old_as_its_stamp_says():
    restoring = Restoring(8, 300.0)
    restoring.offer(stored_of([40, 50]), lambda: None)
    unit = restoring.peek(deque([live_of(100)]))
    assert (unit.arrived.steady_s, unit.arrived.simulated_ns) == (940.0, 940 * 10**9)


def test_a_saved_session_must_be_older_than_what_is_live():
    restoring = Restoring(8, 300.0)
    with pytest.raises(InputError, match='live seconds go on at 89'):
        restoring.load(stored_of(range(40, 90)), 89, None)
    assert not restoring.is_at_work and not restoring.told
    done = []
    session = stored_of(range(40, 43), is_black_box=False)
    restoring.load(session, None, lambda *result: done.append(result))
    while (unit := restoring.peek(deque())) is not None:
        restoring.note_read(restoring.take(unit), 5.0, range(100))  # slow, but none is live
    assert done == [(3, '')] and session.reader.closed
    earlier = restoring.take(live_of(42))
    assert earlier.restarted and 'are gone' in restoring.told
    assert not restoring.take(live_of(43)).restarted
    restoring.note_read(earlier, 0.1, [42])
    assert not restoring.take(live_of(10)).restarted


@pytest.mark.parametrize('policy', ('recent', 'long'))
def test_the_window_is_built_again_with_the_evictions_that_there_were(
    model, tmp_path, rng, policy
):
    options = SessionOptions(window_policy=policy, max_tokens=8, max_question_tokens=32)
    width, box = model.width, None

    def open_session():
        return Session(model, ENGLISH, ContextOptions(n_ctx=1024), options)

    session, box = open_session(), BlackBox(tmp_path / 'box', 60, SPACE, width)
    for second in range(40):
        image = rng.normal(size=(64, width)).astype(np.float16) if second % 3 else None
        audio = rng.normal(size=(25, width)).astype(np.float16)
        session.append(Unit(second, image, (0, 0), audio))
        box.append(Unit(second, image, (0, 0), audio), tuple(session.window.seconds))
    again = open_session()
    for stored in newest_run(box.reader.scan()[0]):
        again.append(box.reader.read(stored))
        assert set(again.window.seconds) <= set(stored.window)
    assert again.window.spans == session.window.spans and session.evicted
    asked = Question('what?', temperature=0.0)
    assert answer_of(again, asked) == answer_of(session, asked)
    box.close()
    for one in (session, again):
        one.context.close()


def answer_of(session, question):
    generation = session.ask(question)
    while generation.answer is None:
        generation.take(session.read([generation.next_read()])[0])
    return generation.answer.text


# In an engine.


class Robot:
    """An engine with a black box, over a session that computes nothing."""

    def __init__(self, path, n_seconds=30, options=None, **more):
        self.session, self.ready = FakeSession(), queue.Queue()
        self.keeper = SessionKeeper(path, n_seconds, lambda: (SPACE, WIDTH))
        self.engine = Engine(
            lambda *_: self.session,
            options or EngineOptions(0.0, evidence=ANY),
            on_change=lambda status: status.state == 'ready' and self.ready.put(True),
            black_box=self.keeper if n_seconds else None,
            **more,
        )
        self.engine.start()
        assert self.ready.get(timeout=WAIT_S)

    def hear(self, *seconds):
        """Hear seconds, each when the one before is read."""
        for second in seconds:
            n = self.engine.status().units_read
            self.engine.put_audio(second, SOUND)
            until(lambda n=n: self.engine.status().units_read > n)

    def close(self):
        assert self.engine.close(WAIT_S) and self.keeper.close(WAIT_S)


def test_an_engine_reads_the_black_box_before_the_first_live_second(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(*range(10, 16))
    assert robot.engine.status().restored == 0
    robot.close()
    asked = []
    robot = Robot(tmp_path / 'box', alerts=Alerts(asked))
    assert 'wait for the first live one' in robot.engine.status().restoring
    assert not robot.session.diary
    robot.hear(20, 21)
    status = robot.engine.status()
    assert robot.session.diary == [*range(10, 16), 20, 21] == list(status.seconds)
    assert (status.restored, status.units_read) == (6, 2)
    assert '6 seconds' in status.restoring and '4 s before the first' in status.restoring
    assert asked == [20, 21]  # no standing question is about the past
    robot.close()
    robot = Robot(tmp_path / 'box')
    robot.hear(22)
    assert robot.session.diary == [*range(10, 16), 20, 21, 22]
    robot.close()


class Alerts(AlertAsker):
    """Says which units standing questions are asked about."""

    def __init__(self, asked):
        super().__init__(AlertWatch([make_rule({'id': 'ball', 'question': 'Is there a ball?'})]))
        self.seconds = asked

    def begin(self, unit):
        self.seconds.append(unit.second)
        return []  # the session computes nothing


def test_after_a_reset_nothing_is_restored(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2, 3)
    assert robot.engine.reset() == ''
    until(lambda: robot.engine.status().units == 0)
    robot.close()
    robot = Robot(tmp_path / 'box')
    assert robot.engine.status().restoring == ''
    robot.hear(4)
    assert robot.session.diary == [4]
    robot.close()


def test_a_reset_before_the_first_live_second_forgets_too(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2, 3)
    robot.close()
    robot = Robot(tmp_path / 'box')
    assert 'wait for' in robot.engine.status().restoring
    robot.engine.reset()
    assert robot.engine.status().restoring == ''
    robot.hear(4)
    robot.close()
    robot = Robot(tmp_path / 'box')
    robot.hear(5)
    assert robot.session.diary == [4, 5]
    robot.close()


def test_time_that_goes_back_empties_the_black_box(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(100, 101)
    robot.hear(50, 51)  # the only stream goes back: a new time
    robot.close()
    robot = Robot(tmp_path / 'box')
    robot.hear(60)
    assert robot.session.diary == [50, 51, 60]
    robot.close()


def test_what_was_refused_as_too_old_is_not_restored_by_the_next_either(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2)
    robot.close()
    for first, read in ((1000, [1000]), (1001, [1000, 1001])):
        robot = Robot(tmp_path / 'box')
        robot.hear(first)
        assert robot.session.diary == read
        robot.close()


def test_a_loaded_session_replaces_the_window_and_outlives_the_process(tmp_path):
    saved, done = tmp_path / 'saved', queue.Queue()
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2, 3)
    robot.keeper.save(saved, [2, 3], lambda *result: done.put(result))
    assert done.get(timeout=WAIT_S) == (2, '')
    robot.hear(4, 5)

    def load():
        robot.keeper.load(saved, lambda *result: done.put(result))
        session, _ = done.get(timeout=WAIT_S)
        robot.engine.load_session(session, lambda *result: done.put(result))
        return done.get(timeout=WAIT_S)

    assert load() == (2, '')
    assert robot.session.diary == [1, 2, 3, 4, 5, 'reset', 2, 3]
    assert robot.engine.status().restored == 2
    robot.hear(6)
    robot.close()
    with pytest.raises(BusyError):
        robot.engine.load_session(stored_of([1], is_black_box=False), None)
    robot = Robot(tmp_path / 'box')
    robot.hear(7)
    assert robot.session.diary == [2, 3, 6, 7]
    robot.close()


def test_a_context_that_breaks_while_seconds_are_restored_goes_on_with_the_next(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2, 3)
    robot.close()
    robot = Robot(tmp_path / 'box')

    def at_unit(unit):
        if unit.second == 2 and 'rebuild' not in robot.session.diary:
            raise EngineError('llama.cpp broke')

    robot.session.at_unit = at_unit
    robot.hear(10)
    assert robot.session.diary == [1, 'rebuild', 3, 10]
    assert '1 could not be read' in robot.engine.status().restoring
    robot.close()


def break_once(robot, second):
    """Let llama.cpp fail when the robot reads a second for the first time."""
    broken = []

    def at_unit(unit):
        if unit.second == second and not broken:
            broken.append(second)
            raise EngineError('llama.cpp broke')

    robot.session.at_unit = at_unit


def hear_and_lose(robot, second):
    """Hear a second that is lost, and wait until the context is rebuilt."""
    n = robot.engine.status().rebuilds
    robot.engine.put_audio(second, SOUND)
    until(lambda: robot.engine.status().rebuilds > n)


def test_a_window_that_llama_cpp_lost_is_read_again_at_once(tmp_path):
    asked = []
    robot = Robot(tmp_path / 'box', alerts=Alerts(asked))
    robot.hear(1, 2, 3)
    break_once(robot, 4)
    hear_and_lose(robot, 4)
    until(lambda: robot.engine.status().restored == 3)  # before another second has come
    status = robot.engine.status()
    assert robot.session.diary == [1, 2, 3, 'rebuild', 1, 2, 3] and status.units_read == 3
    assert '3 seconds' in status.restoring and 'llama.cpp had failed' in status.restoring
    assert 'window was lost' in status.lost_window
    robot.hear(5)
    assert robot.session.diary[-1] == 5 and list(robot.engine.status().seconds) == [1, 2, 3, 5]
    assert asked == [1, 2, 3, 4, 5]  # no standing question is asked twice
    break_once(robot, 6)
    hear_and_lose(robot, 6)
    until(lambda: robot.engine.status().restored == 4)
    robot.close()
    robot = Robot(tmp_path / 'box')  # and nothing of it is twice in the file
    robot.hear(7)
    assert robot.session.diary == [1, 2, 3, 5, 7]
    robot.close()


def test_an_answer_that_breaks_the_context_costs_no_second(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2, 3)
    done = queue.Queue()
    robot.engine.ask(Question('break'), on_done=done.put)
    assert isinstance(done.get(timeout=WAIT_S).error, EngineError)
    until(lambda: robot.engine.status().restored == 3)
    assert robot.session.diary[-4:] == ['rebuild', 1, 2, 3]
    robot.close()


def test_a_context_that_breaks_again_before_a_live_second_is_not_filled_for_ever(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2)

    def at_unit(unit):
        if not unit.is_restored and unit.second < 7:
            raise EngineError('llama.cpp broke')

    robot.session.at_unit = at_unit
    for second in (4, 5, 6):
        hear_and_lose(robot, second)
    until(lambda: 'failed twice' in robot.engine.status().restoring)
    assert robot.session.diary == [1, 2, 'rebuild', 1, 2, 'rebuild', 'rebuild']
    robot.hear(7, 8)
    break_once(robot, 9)
    hear_and_lose(robot, 9)  # it was well again, and what the window then had is back
    until(lambda: robot.engine.status().restored >= 2)
    robot.hear(10)
    assert list(robot.engine.status().seconds)[-3:] == [7, 8, 10]
    robot.close()


def test_after_a_reset_nothing_is_read_again_and_without_a_black_box_nothing_is_told(tmp_path):
    robot = Robot(tmp_path / 'box')
    robot.hear(1, 2)
    robot.engine.reset()
    until(lambda: robot.engine.status().units == 0)
    break_once(robot, 3)
    hear_and_lose(robot, 3)
    robot.hear(4)
    assert robot.session.diary == [1, 2, 'reset', 'rebuild', 4]
    robot.close()
    robot = Robot(tmp_path / 'none', n_seconds=0)
    robot.hear(1)
    break_once(robot, 2)
    hear_and_lose(robot, 2)
    robot.hear(3)
    assert robot.session.diary == [1, 'rebuild', 3] and not robot.engine.status().restoring
    robot.close()


def test_after_a_failed_decode_a_model_answers_as_if_it_had_not_failed(
    model, tmp_path, monkeypatch
):
    """A real context: llama.cpp's decode fails once, in the middle of a live second."""
    options = SessionOptions(max_tokens=8, max_question_tokens=32)

    def open_session():
        return Session(model, ENGLISH, ContextOptions(n_ctx=1024), options)

    rng = np.random.default_rng(3)
    sounds = [rng.normal(size=(25, model.width)).astype(np.float16) for _ in range(8)]
    ready, keeper = (
        queue.Queue(),
        SessionKeeper(tmp_path / 'box', 30, lambda: (SPACE, model.width)),
    )
    session = open_session()
    session.close = session.context.close  # the model is others', too
    engine = Engine(
        lambda *_: session, EngineOptions(0.0, evidence=ANY),
        on_change=lambda status: status.state == 'ready' and ready.put(True), black_box=keeper,
    )  # fmt: skip
    engine.start()
    assert ready.get(timeout=WAIT_S)

    def hear(second):
        n = engine.status().units_read
        engine.put_audio(second, sounds[second])
        until(lambda: engine.status().units_read > n)

    for second in range(5):
        hear(second)
    decode, failed = llama.llama_decode, []

    def failing(*given):
        code = decode(*given)
        return code if failed else failed.append(True) or -3

    monkeypatch.setattr(llama, 'llama_decode', failing)
    engine.put_audio(5, sounds[5])
    until(lambda: engine.status().restored == 5)
    hear(6)
    found = queue.Queue()
    asked = Question('what?', temperature=0.0)
    engine.ask(asked, on_done=found.put)
    never = open_session()
    for second in (0, 1, 2, 3, 4, 6):
        never.append(Unit(second, None, (0, 0), sounds[second]))
    assert found.get(timeout=WAIT_S).text == answer_of(never, asked)
    assert engine.close(WAIT_S) and keeper.close(WAIT_S)
    never.context.close()
