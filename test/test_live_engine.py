# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every question ends once, nothing blocks a caller, and the engine outlives what goes wrong."""

import queue
import threading
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.alerts.reader import AlertAsker
from minicpmo_ros.alerts.rules import AlertRule
from minicpmo_ros.alerts.watch import AlertWatch
from minicpmo_ros.errors import (
    BusyError,
    CancelledError,
    ContextFullError,
    EngineError,
    Error,
    InputError,
    ModelFileError,
)
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import Answer, EvidenceOptions, Finish, Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions, UnitReport
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.sampling import SamplingOptions
from minicpmo_ros.streams.time import Instant

ANY = EvidenceOptions('none')  # most questions here are about other things
WAIT_S = 60  # for what must happen soon; never reached unless the test fails
SOUND = np.ones((25, 256), np.float16)
PICTURE = np.ones((64, 256), np.float16)


class FakeGeneration:
    """Says one letter for what was read, as often as the question says; some questions raise.

    A 'long' question is read in two parts before its first letter.
    """

    def __init__(self, session, question, between):
        self.session, self.question, self.between = session, question, between
        self.ids, self.answer, self.turn = [], None, None
        self.read = question.text != 'long'

    @property
    def has_token(self):
        return bool(self.ids)

    def next_read(self):
        return self

    def take(self, _):
        self.session.at_step(self)
        self.session.diary.append('step')
        if not self.read:
            self.read = True
            return ''
        if self.question.text == 'fail':
            raise InputError('this question fails')
        if self.question.text == 'bug':
            raise ZeroDivisionError
        if self.question.text == 'break':
            raise EngineError('llama.cpp broke')
        self.ids.append(0)
        if self.question.text == 'fail late' and len(self.ids) == 2:
            raise InputError('this question fails late')
        if len(self.ids) == (self.question.max_tokens or 3):
            self.end(Finish.STOP)
        return 'x'

    def end(self, finish, error=None):
        if self.answer is None:
            self.session.open.remove(self)
            self.answer = Answer(self.question.text, 'x' * len(self.ids), finish, error)
        return self.answer


class FakeSession:
    """A session that computes nothing, keeps a diary, and can be held at a gate."""

    def __init__(self):
        self.window = SimpleNamespace(
            seconds=[], spans=[], end=10, image_end_s=None, audio_end_s=None, camera_ends_s={}
        )
        self.context = SimpleNamespace(n_ctx=4096)
        self.smallest_context = 1024
        self.diary, self.evicted = [], 0
        self.decodes = []  # which seconds and questions were read together
        self.reads_apart = False
        self.open, self.n_places = [], 4
        self.options = SessionOptions(max_forks=4)
        self.room, self.prefill_ms = True, 0.0
        self.rebuild_error = None
        self.at_unit = self.at_step = lambda _: None

    def append(self, unit, reads=(), riders=()):
        self.at_unit(unit)
        if unit.restarted:
            self.reset()
        if unit.window is not None:
            self.window.seconds[:] = [s for s in self.window.seconds if s in unit.window]
        self.diary.append(unit.second)
        self.window.seconds.append(unit.second)
        self.decodes.append([unit.second, *(generation.question.text for generation in reads)])
        return UnitReport(unit.second, 94, self.prefill_ms, [None for _ in reads])

    def read(self, reads):
        self.decodes.append([generation.question.text for generation in reads])
        return [None for _ in reads]

    def appending(self, *what):
        return self.append(*what)
        yield  # it needs no decode

    def reading(self, reads):
        return self.read(reads)
        yield

    def can_append(self, unit):
        return self.room

    def ask(self, question, asked_s, between, tail=None):
        if question.text == 'unfit':
            raise InputError('it is unfit')
        if len(self.open) >= self.n_places:
            raise ContextFullError(300, 200, 'Wait.')
        self.diary.append(question.text)
        self.open.append(FakeGeneration(self, question, between))
        return self.open[-1]

    def reset(self):
        self.diary.append('reset')
        self.window.seconds.clear()

    def rebuild(self):
        self.diary.append('rebuild')
        if self.rebuild_error:
            raise self.rebuild_error
        self.window.seconds.clear()

    def close(self):
        self.diary.append('close')


class Gate:
    """Lets the engine's thread arrive, and holds it there until it is opened."""

    def __init__(self):
        self.arrived, self._open = threading.Event(), threading.Event()

    def __call__(self, _):
        self.arrived.set()
        assert self._open.wait(WAIT_S)

    def open(self):
        self._open.set()


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def make_engine():
    """Make engines and close them; every one must end in time."""
    engines = []

    def make(load, options=None, wait=True, alerts=None):
        states = queue.Queue()
        told = []

        def on_change(status):
            if told[-1:] != [status.state]:
                told.append(status.state)
                states.put(status.state)

        options = options or EngineOptions(evidence=ANY)
        engine = Engine(load, options, on_change=on_change, alerts=alerts)
        engine.states = states
        engines.append(engine)
        engine.start()
        assert states.get(timeout=WAIT_S) == 'loading'
        if wait:
            assert states.get(timeout=WAIT_S) == 'ready'
        return engine

    yield make
    for engine in engines:
        assert engine.close(WAIT_S)


@pytest.fixture
def engine(make_engine, session):
    return make_engine(lambda *_: session, EngineOptions(0.0, max_waiting=20, evidence=ANY))


class Asker:
    """Asks, and collects what comes back."""

    def __init__(self, engine, text='hello', **more):
        self.deltas, self.answers = [], queue.Queue()
        self.asking = engine.ask(Question(text, **more), self.deltas.append, self.answers.put)

    def result(self):
        answer = self.answers.get(timeout=WAIT_S)
        assert self.answers.empty()
        return answer


def ask_with(engine, session, at_step):
    """Ask; behind its first step at_step(asker, answering) is called at every one."""
    gate = Gate()
    session.at_step = gate
    asker = Asker(engine, max_tokens=1000)
    assert gate.arrived.wait(WAIT_S)
    session.at_step = partial(at_step, asker)
    gate.open()
    return asker


def until(condition):
    """Poll for what has no callback."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        threading.Event().wait(0.001)


def put(engine, seconds):
    for second in seconds:
        engine.put_audio(second, SOUND)
        engine.put_image(second, None)


# --- loading ----------------------------------------------------------------------------------


def test_while_loading_a_question_is_told_how_far_it_is(make_engine, session):
    gate = Gate()

    def load(on_progress, abort):
        assert on_progress(0.42)
        gate(None)
        return session

    engine = make_engine(load, wait=False)
    assert gate.arrived.wait(WAIT_S)
    with pytest.raises(BusyError, match='42%'):
        engine.ask(Question('hello'))
    assert engine.status().state == 'loading' and engine.status().progress == 0.42
    gate.open()
    assert engine.states.get(timeout=WAIT_S) == 'ready'
    assert Asker(engine).result().finish == Finish.STOP


@pytest.mark.parametrize(
    'error, reason, remedy',
    [
        (
            ModelFileError('llm.gguf', 'it is cut short', 'Fetch it again.'),
            'llm.gguf: it is cut short',
            'Fetch it again.',
        ),
        (InputError('n_ctx is 1.'), 'n_ctx is 1', 'parameters'),
        (EngineError('no memory'), 'no memory', 'log'),
        (ZeroDivisionError(), 'ZeroDivisionError', 'log'),
    ],
)
def test_a_failed_load_says_why_and_what_to_do(make_engine, error, reason, remedy):
    def load(*_):
        raise error

    engine = make_engine(load, wait=False)
    assert engine.states.get(timeout=WAIT_S) == 'failed'
    status = engine.status()
    assert reason in status.reason and remedy in status.remedy
    for told in (status.reason, status.remedy):
        assert told.endswith('.') and '..' not in told
    with pytest.raises(BusyError, match=reason):
        engine.ask(Question('hello'))
    put(engine, [1])  # ignored, not an error


def test_before_the_start_nothing_is_taken(session):
    engine = Engine(lambda *_: session)
    with pytest.raises(BusyError, match='Start'):
        engine.ask(Question('hello'))
    assert engine.status().state == 'unloaded' and engine.close()


def test_closing_ends_a_load(make_engine):
    loading = threading.Event()

    def load(on_progress, abort):
        while on_progress(0.5):
            loading.set()
        raise CancelledError('stopped')

    engine = make_engine(load, wait=False)
    assert loading.wait(WAIT_S)
    assert engine.close(2.0)
    assert engine.status().state == 'unloaded'


def test_units_that_come_while_loading_are_read_afterwards(make_engine, session):
    gate = Gate()
    engine = make_engine(
        lambda *_: gate(None) or session, EngineOptions(max_backlog=3), wait=False
    )
    put(engine, range(5))
    gate.open()
    until(lambda: engine.status().units_read == 3)
    assert session.diary == [2, 3, 4] and engine.status().units_dropped == 2


# --- questions --------------------------------------------------------------------------------


def test_an_answer_comes_in_pieces_and_once(engine):
    asker = Asker(engine)
    answer = asker.result()
    assert (answer.text, answer.finish) == ('xxx', Finish.STOP)
    assert asker.deltas == ['x', 'x', 'x']


def test_a_question_goes_before_units_that_wait(engine, session):
    gate = Gate()
    session.at_unit = gate
    put(engine, [1])
    assert gate.arrived.wait(WAIT_S)
    put(engine, [2, 3])
    asker = Asker(engine)
    gate.open()
    asker.result()
    until(lambda: engine.status().units_read == 3)
    assert session.diary[:3] == [1, 'hello', 'step'] and session.diary.count('step') == 3
    assert [entry for entry in session.diary if isinstance(entry, int)] == [1, 2, 3]


def test_no_unit_is_read_before_the_first_token(engine, session):
    session.at_step = lambda answering: answering.ids or put(engine, [1])
    Asker(engine, 'long').result()
    assert session.diary == ['long', 'step', 'step', 1, 'step', 'step']


def test_units_without_room_wait_for_the_end_of_the_answer(engine, session):
    session.room = False
    session.at_step = lambda answering: answering.ids or put(engine, [1])
    Asker(engine).result()
    until(lambda: engine.status().units_read == 1)
    assert session.diary == ['hello', 'step', 'step', 'step', 1]


def test_twenty_at_once_are_each_answered_or_refused(make_engine, session):
    engine = make_engine(lambda *_: session, EngineOptions(max_waiting=8, evidence=ANY))
    gate = Gate()
    session.at_step = gate
    askers, refused = [], []

    def ask():
        try:
            askers.append(Asker(engine))
        except BusyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(askers) in range(8, 13) and len(askers) + len(refused) == 20
    assert all('8 questions are waiting' in text for text in refused)
    assert engine.status().waiting <= 8
    gate.open()
    assert all(asker.result().finish == Finish.STOP for asker in askers)
    assert session.diary.count('hello') == len(askers)


@pytest.mark.parametrize(
    'text, kind', [('fail', InputError), ('unfit', InputError), ('bug', ZeroDivisionError)]
)
def test_an_error_is_that_questions_alone(engine, session, text, kind):
    answer = Asker(engine, text).result()
    assert answer.finish == Finish.ERROR and isinstance(answer.error, kind)
    assert Asker(engine).result().finish == Finish.STOP
    assert engine.status().state == 'ready' and 'rebuild' not in session.diary


def test_the_pieces_are_the_text_however_it_ends(engine):
    asker = Asker(engine, 'fail late')
    answer = asker.result()
    assert answer.finish == Finish.ERROR and answer.text == 'xx' == ''.join(asker.deltas)


def test_a_callback_that_raises_ends_nothing(engine):
    def fail(_):
        raise RuntimeError

    done = queue.Queue()
    engine.ask(Question('hello'), fail, lambda answer: done.put(answer) or fail(answer))
    assert done.get(timeout=WAIT_S).text == 'xxx'
    assert Asker(engine).result().finish == Finish.STOP


# --- several at once --------------------------------------------------------------------------


def ask_together(engine, session, *texts, **more):
    """Ask all of these while the engine is held at another question; return the Askers."""
    gate = Gate()
    session.at_step = gate
    Asker(engine, 'first', max_tokens=1)
    assert gate.arrived.wait(WAIT_S)
    askers = [Asker(engine, text, **more) for text in texts]
    session.at_step = lambda _: None
    gate.open()
    return askers


def test_four_are_read_in_one_decode_and_the_fifth_waits(engine, session):
    askers = ask_together(engine, session, *'abcde')
    assert [asker.result().text for asker in askers] == ['xxx'] * 5
    assert session.decodes == [['first'], *[list('abcd')] * 3, *[['e']] * 3]


def test_where_rows_cost_alike_questions_are_read_in_turn_and_answered_together(engine, session):
    """The second is read in two parts, and the first gets no second token before the last's."""
    session.reads_apart = True
    texts = ['a', 'long', 'c']
    askers = ask_together(engine, session, *texts)
    assert [asker.result().text for asker in askers] == ['xxx'] * 3
    assert session.decodes[1:] == [['a'], ['long'], ['long'], ['c'], texts, texts]


def test_a_unit_is_read_in_the_decode_of_the_answers(engine, session):
    def at_step(answering):
        if answering.question.text == 'd' and len(answering.ids) == 1:
            put(engine, [1])

    gate = Gate()
    session.at_step = gate
    Asker(engine, 'first', max_tokens=1)
    assert gate.arrived.wait(WAIT_S)
    askers = [Asker(engine, text) for text in 'abcd']
    session.at_step = at_step
    gate.open()
    for asker in askers:
        assert asker.result().finish == Finish.STOP
    assert session.decodes[1:] == [list('abcd'), list('abcd'), [1, *'abcd']]


def test_a_question_that_is_remembered_is_answered_alone(engine, session):
    gate = Gate()
    session.at_step = gate
    Asker(engine, 'first', max_tokens=1)
    assert gate.arrived.wait(WAIT_S)
    askers = [Asker(engine, text, remember=text == 'c', max_tokens=1) for text in 'abcde']
    session.at_step = lambda _: None
    gate.open()
    for asker in askers:
        assert asker.result().finish == Finish.STOP
    assert session.decodes[1:] == [['a', 'b'], ['c'], ['d', 'e']]


def test_without_space_beside_the_others_a_question_waits_for_one_to_end(engine, session):
    session.n_places = 2
    askers = ask_together(engine, session, *'abc')
    assert all(asker.result().finish == Finish.STOP for asker in askers)
    assert session.decodes[1:] == [['a', 'b']] * 3 + [['c']] * 3


def test_what_ends_one_of_four_ends_no_other(engine, session):
    gate = Gate()
    session.at_step = gate
    Asker(engine, 'first', max_tokens=1)
    assert gate.arrived.wait(WAIT_S)
    fails, stays, cancelled, late = (
        Asker(engine, 'fail late'),
        Asker(engine, 'stays'),
        Asker(engine, 'cancelled', max_tokens=1000),
        Asker(engine, 'late', max_tokens=1000, timeout_s=0.01),
    )
    session.at_step = lambda answering: (
        cancelled.asking.cancel() if len(answering.ids) == 2 else None
    )
    until(lambda: late.asking.is_overdue)
    gate.open()
    assert fails.result().finish == Finish.ERROR
    assert stays.result().text == 'xxx'
    assert cancelled.result().finish == late.result().finish == Finish.CANCELLED
    until(lambda: not engine.status().answering)
    assert session.open == [] and engine.status().questions_dropped == 1


def test_a_broken_context_ends_all_that_are_answered_and_the_next_is_answered(engine, session):
    askers = ask_together(engine, session, 'a', 'break', 'c', max_tokens=1000)
    for asker in askers:
        answer = asker.result()
        assert answer.finish == Finish.ERROR and isinstance(answer.error, EngineError)
    assert Asker(engine).result().finish == Finish.STOP
    assert engine.status().rebuilds == 1


def test_who_asks_without_pause_keeps_no_second_waiting(engine, session):
    """Four people whose answers are one token: a unit waits for the first tokens once."""
    left, lock, done = [400], threading.Lock(), threading.Event()

    def ask(_=None):
        with lock:
            left[0] -= 1
            if left[0] < 0:
                done.set()
                return
            if left[0] % 20 == 0:
                put(engine, [400 - left[0]])
        engine.ask(Question('q', max_tokens=1), on_done=ask)

    for _ in range(4):
        ask()
    assert done.wait(WAIT_S)
    until(lambda: not engine.status().answering and engine.status().waiting == 0)
    until(lambda: engine.status().units_read == 20)
    seconds = [i for i, entry in enumerate(session.diary) if isinstance(entry, int)]
    begun = [session.diary[a:b].count('q') for a, b in zip([0, *seconds], seconds)]
    assert max(begun[1:]) <= 20 + 4  # not held up by more than those that were running
    assert engine.status().units_dropped == 0


# --- cancelling -------------------------------------------------------------------------------


def test_cancelling_takes_effect_before_the_next_token(engine, session):
    def at_step(asker, answering):
        if len(answering.ids) == 4:
            asker.asking.cancel()
            asker.asking.cancel()  # twice is once

    asker = ask_with(engine, session, at_step)
    answer = asker.result()
    assert answer.finish == Finish.CANCELLED and answer.text == 'x' * 5
    asker.asking.cancel()  # after the end: nothing
    assert Asker(engine).result().finish == Finish.STOP


def test_cancelling_ends_a_step_that_takes_long(engine, session):
    def at_step(asker, answering):
        asker.asking.cancel()
        answering.between()
        raise AssertionError('it went on')

    answer = ask_with(engine, session, at_step).result()
    assert answer.finish == Finish.CANCELLED and answer.text == 'x'
    session.at_step = lambda _: None
    assert Asker(engine).result().finish == Finish.STOP


def test_a_waiting_question_can_be_taken_back_while_another_is_answered(engine, session):
    gate = Gate()
    session.at_step = gate
    first = Asker(engine)
    assert gate.arrived.wait(WAIT_S)
    second = Asker(engine, 'never begun')
    second.asking.cancel()
    gate.open()
    answer = second.result()
    assert (answer.finish, answer.text) == (Finish.CANCELLED, '')
    assert first.result().finish == Finish.STOP and 'never begun' not in session.diary


# --- failures of llama.cpp --------------------------------------------------------------------


def test_a_broken_context_is_rebuilt_and_the_loss_is_told(engine, session):
    put(engine, [1])
    until(lambda: engine.status().units == 1)
    answer = Asker(engine, 'break').result()
    assert answer.finish == Finish.ERROR and isinstance(answer.error, EngineError)
    assert Asker(engine).result().finish == Finish.STOP
    status = engine.status()
    assert (status.state, status.rebuilds, status.units) == ('ready', 1, 0)
    assert 'window was lost' in status.lost_window and 'llama.cpp broke' in status.lost_window
    assert not status.reason  # it has not failed


def test_a_unit_that_breaks_the_context_ends_the_answer_too(engine, session):
    def at_unit(unit):
        raise EngineError('llama.cpp broke')

    session.at_unit = at_unit
    session.at_step = lambda answering: len(answering.ids) or put(engine, [1])
    answer = Asker(engine, max_tokens=1000).result()
    assert answer.finish == Finish.ERROR
    until(lambda: engine.status().rebuilds == 1)


def test_when_rebuilding_fails_the_engine_is_failed_and_every_question_ends(engine, session):
    gate = Gate()
    session.at_step, session.rebuild_error = gate, EngineError('no memory')
    first = Asker(engine, 'break')
    assert gate.arrived.wait(WAIT_S)
    others = [Asker(engine) for _ in range(3)]
    gate.open()
    assert first.result().finish == Finish.ERROR
    for other in others:
        answer = other.result()
        assert answer.finish == Finish.ERROR and 'no memory' in str(answer.error)
    assert engine.states.get(timeout=WAIT_S) == 'failed'
    with pytest.raises(BusyError, match='no memory'):
        engine.ask(Question('hello'))


def test_a_bad_unit_is_refused_and_the_next_is_read(engine, session):
    def at_unit(unit):
        if unit.second == 1:
            raise InputError('not finite')

    session.at_unit = at_unit
    put(engine, [1, 2])
    until(lambda: engine.status().units_read == 1)
    assert engine.status().units_refused == 1 and session.diary == [2]


def test_a_second_that_is_too_large_is_counted_apart(engine, session):
    def at_unit(unit):
        if unit.second == 1:
            raise ContextFullError(640, 300, 'Raise n_ctx.')

    session.at_unit = at_unit
    put(engine, [1, 2])
    until(lambda: engine.status().units_read == 1)
    status = engine.status()
    assert (status.units_too_large, status.units_refused) == (1, 0) and session.diary == [2]


# --- units ------------------------------------------------------------------------------------


def test_a_slow_engine_drops_the_oldest_and_never_blocks_the_caller(make_engine, session):
    engine = make_engine(lambda *_: session, EngineOptions(max_backlog=4))
    gate = Gate()
    session.at_unit = gate
    put(engine, [0])
    assert gate.arrived.wait(WAIT_S)
    put(engine, range(1, 21))
    assert engine.status().units_dropped == 16
    gate.open()
    until(lambda: engine.status().units_read == 5)
    assert session.diary == [0, 17, 18, 19, 20]


def test_half_a_unit_is_read_after_its_deadline_without_further_news(make_engine, session):
    engine = make_engine(lambda *_: session, EngineOptions(unit_deadline_s=0.02))
    engine.put_image(3, PICTURE)
    until(lambda: engine.status().units_read == 1)
    engine.put_audio(3, SOUND)
    assert engine.status().late == 1 and session.diary == [3]


@pytest.mark.parametrize('behind_s', [4, 10, 50])
def test_a_sense_may_be_behind_the_other_by_as_much_as_the_deadline(session, behind_s):
    now, units, ended = [0.0], [], 80
    options = EngineOptions(unit_deadline_s=behind_s + 0.5, max_backlog=ended)
    engine = Engine(lambda *_: session, options, now=lambda: Instant(now[0]))
    session.at_unit = units.append
    engine.start()
    for second in range(ended):
        now[0] = float(second)
        engine.put_audio(second, SOUND)
        if second == 0:
            engine.put_image(0, PICTURE)  # one that never came would not be waited for so long
        elif second > behind_s:
            engine.put_image(second - behind_s, PICTURE)
    until(lambda: len(units) == ended - behind_s)
    assert engine.close(WAIT_S) and engine.status().late == 0
    assert all(u.image_rows is not None and u.audio_rows is not None for u in units)


def test_a_question_whose_time_has_passed_is_dropped_wherever_it_is(engine, session):
    """While it waits and while it is answered; what it had said is kept, and it is counted."""
    gate = Gate()
    session.at_step = gate
    at_hand = Asker(engine, max_tokens=1000, timeout_s=0.05)
    assert gate.arrived.wait(WAIT_S)
    waiting, patient = Asker(engine, timeout_s=0.01), Asker(engine)
    until(lambda: at_hand.asking.is_overdue)
    session.at_step = lambda _: None
    gate.open()
    for asker, text in ((at_hand, 'x'), (waiting, '')):
        answer = asker.result()
        assert answer.finish == Finish.CANCELLED and answer.text == text
        assert 'timeout_s' in answer.reason
    assert patient.result().finish == Finish.STOP
    assert engine.status().questions_dropped == 2


def test_a_reset_can_end_all_questions_and_says_so(engine, session):
    gate = Gate()
    session.at_step = gate
    askers = [Asker(engine, max_tokens=1000)]
    assert gate.arrived.wait(WAIT_S)
    askers += [Asker(engine) for _ in range(3)]
    engine.reset(CancelledError('all is forgotten'))
    gate.open()
    for asker in askers:
        answer = asker.result()
        assert answer.finish == Finish.CANCELLED and answer.reason == 'all is forgotten'
    assert engine.status().waiting == 0


def test_nothing_seen_or_heard_is_refused_in_words_and_the_next_question_is_answered(
    make_engine, session
):
    engine = make_engine(lambda *_: session, EngineOptions(unit_deadline_s=0.0))
    refused = Asker(engine).result()
    assert refused.finish == Finish.ERROR and 'Nothing has been seen' in refused.reason
    put(engine, [1])
    session.window.image_end_s = session.window.audio_end_s = 2
    until(lambda: engine.status().units_read == 1 and engine.status().image_end_s == 2)
    assert Asker(engine).result().finish == Finish.STOP


def test_a_sense_that_stopped_is_told_in_the_answer_and_in_the_status(make_engine, session):
    time_s = [100.0]
    engine = Engine(
        lambda *_: session, EngineOptions(0.0), now=lambda: Instant(time_s[0])
    )  # fmt: skip
    engine.start()
    try:
        until(lambda: engine.status().state == 'ready')
        session.window.image_end_s = session.window.audio_end_s = 2
        engine.put_image(1, PICTURE)
        until(lambda: engine.status().image_end_s == 2)
        answer = Asker(engine).result()
        assert not answer.stale and answer.reason == engine.status().stale == ''
        for second in range(2, 30):
            time_s[0] += 1
            session.window.audio_end_s = second + 1
            engine.put_audio(second, SOUND)
            until(lambda second=second: engine.status().audio_end_s == second + 1)
        answer = Asker(engine).result()
        assert answer.finish == Finish.STOP and answer.stale
        assert answer.reason == engine.status().stale == 'The newest image is 28 s old.'
    finally:
        assert engine.close(WAIT_S)


def test_a_reset_empties_the_window_and_what_is_on_its_way(engine, session):
    gate = Gate()
    session.at_unit = gate
    put(engine, [1])
    assert gate.arrived.wait(WAIT_S)
    put(engine, [2])
    engine.put_audio(3, SOUND)
    engine.reset()
    put(engine, [7])
    gate.open()
    until(lambda: engine.status().units_read == 2)
    assert session.diary == [1, 'reset', 7]


def test_what_comes_after_a_reset_is_read_after_it(engine, session):
    """Also where both come in the middle of a pass of the engine."""
    reset, again = session.reset, [True]

    def reset_twice():
        reset()
        if again:
            again.clear()
            engine.reset()
            put(engine, [7])

    session.reset = reset_twice
    engine.reset()
    until(lambda: engine.status().units_read == 1)
    assert session.diary == ['reset', 'reset', 7]


def test_a_jump_back_of_time_is_counted_and_starts_anew(engine, session):
    put(engine, [100, 101])
    until(lambda: engine.status().units_read == 2)
    put(engine, [0])
    until(lambda: engine.status().units_read == 3)
    status = engine.status()
    assert session.window.seconds == [0] and status.jumps >= 1
    assert (status.window_start_s, status.window_end_s, status.units) == (0, 1, 1)


# --- closing ----------------------------------------------------------------------------------


def test_closing_ends_the_answer_and_all_that_wait(make_engine, session):
    engine = make_engine(lambda *_: session)
    first_token = threading.Event()
    session.at_step = lambda answering: answering.ids and first_token.set()
    first = Asker(engine, max_tokens=1 << 30)
    assert first_token.wait(WAIT_S)
    others = [Asker(engine) for _ in range(3)]
    assert engine.close(2.0)
    assert first.result().finish == Finish.CANCELLED
    assert all(other.result().finish == Finish.CANCELLED for other in others)
    assert session.diary[-1] == 'close' and engine.status().state == 'unloaded'
    with pytest.raises(BusyError):
        engine.ask(Question('hello'))
    assert engine.close()


# --- with a real, tiny model --------------------------------------------------------------------


@pytest.fixture
def real_engine(make_engine, tiny_model_dir):
    def load(on_progress, abort):
        return Session.load(
            tiny_model_dir / 'llm.gguf',
            ENGLISH,
            None,
            ContextOptions(n_ctx=1024, threads=1),
            SessionOptions(max_tokens=100, max_question_tokens=40, max_forks=4),
            on_progress,
            abort,
        )

    return make_engine(load)


def test_a_stream_is_watched_and_asked_about(real_engine, rng):
    for second in range(30):
        real_engine.put_image(second, rng.standard_normal((64, 256)).astype(np.float16))
        real_engine.put_audio(second, rng.standard_normal((25, 256)).astype(np.float16))
        until(lambda: real_engine.status().units_read == second + 1)  # noqa: B023
    answer = Asker(real_engine, 'what', choices=('red', 'blue')).result()
    assert answer.text in ('red', 'blue') and answer.window_end_s == 30
    status = real_engine.status()
    assert status.units == answer.units and status.evicted == 30 - status.units > 0
    assert status.context_size == 1024 and 0 < status.positions < 1024 and status.prefill_ms > 0


def test_what_does_not_fit_beside_a_long_answer_is_dropped_oldest_first_and_counted(real_engine):
    """The window is full; 20 seconds pass during an answer, 8 may wait."""
    for first in range(0, 40, 8):
        put(real_engine, range(first, first + 8))
        until(lambda: real_engine.status().units_read == first + 8)  # noqa: B023
    assert real_engine.status().evicted > 0
    gate, answers = Gate(), queue.Queue()
    question = Question('x' * 40, grammar='root ::= "a" root')
    real_engine.ask(question, gate, answers.put)
    assert gate.arrived.wait(WAIT_S)
    put(real_engine, range(40, 60))
    assert real_engine.status().units_dropped == 12
    gate.open()
    answer = answers.get(timeout=WAIT_S)
    assert answer.window_end_s == 40 and answer.seconds[-1] == 39 and answer.answer_tokens == 100
    until(lambda: real_engine.status().units_read == 48)
    status = real_engine.status()
    assert (status.window_end_s, status.units_dropped, status.units_refused) == (60, 12, 0)


@pytest.mark.parametrize('seed', range(4))
def test_whatever_comes_in_whatever_order_each_question_ends_once(real_engine, seed):
    """Seconds, questions of all kinds, cancels, deadlines, resets, resizes, and few waits."""
    rng, askers, second, after_reset = np.random.default_rng(seed), [], 0, 0
    kinds = (
        dict(max_tokens=5),
        dict(max_tokens=40),
        dict(choices=('red', 'blue', 'a longer one'), max_tokens=5),
        dict(remember=True, max_tokens=3),
        dict(timeout_s=0.02, max_tokens=100),
        dict(grammar='root ::= [a-z]+ " " [a-z]+', max_tokens=20),
    )
    for _ in range(120):
        do = rng.random()
        if do < 0.5:
            image = rng.standard_normal((64, 256)).astype(np.float16)
            audio = rng.standard_normal((25, 256)).astype(np.float16)
            real_engine.put_image(second, image if do < 0.4 else None)
            real_engine.put_audio(second, audio)
            second += 1
        elif do < 0.85:
            with suppress(BusyError):
                text = 'x' * int(rng.integers(1, 40))
                askers.append(Asker(real_engine, text, **kinds[rng.integers(len(kinds))]))
        elif do < 0.95 and askers:
            askers[rng.integers(len(askers))].asking.cancel()
        elif do < 0.97:
            real_engine.reset(CancelledError('reset') if do < 0.96 else None)
            after_reset = second
        else:
            real_engine.resize(int(rng.choice([1024, 1280])), 1e9)
        if rng.random() < 0.1:
            until(lambda: not real_engine.status().waiting)
    for asker in askers:
        answer = asker.result()
        assert ''.join(asker.deltas) == answer.text
        if answer.finish == Finish.ERROR:
            assert 'answer holds' in answer.reason or 'room' in answer.reason, answer.reason
        assert list(answer.seconds) == sorted(answer.seconds)
    put(real_engine, [second])
    until(lambda: real_engine.status().window_end_s == second + 1)
    status = real_engine.status()
    assert status.rebuilds == status.units_refused == status.units_too_large == 0
    assert not status.answering and status.units <= second + 1 - after_reset
    assert Asker(real_engine, 'y', max_tokens=2).result().answer_tokens


def test_closing_ends_a_decode(real_engine, monkeypatch):
    """The flag rises while llama.cpp computes."""
    decode, inside, go_on = llama.llama_decode, threading.Event(), threading.Event()

    def held(*arguments):
        inside.set()
        assert go_on.wait(WAIT_S)
        return decode(*arguments)

    monkeypatch.setattr(llama, 'llama_decode', held)
    asker = Asker(real_engine)
    assert inside.wait(WAIT_S)
    closing = threading.Thread(target=real_engine.close)
    closing.start()
    until(lambda: real_engine.thread.abort.is_set)
    go_on.set()
    closing.join(WAIT_S)
    assert asker.result().finish == Finish.CANCELLED


def test_a_real_failure_is_survived(real_engine, monkeypatch):
    with monkeypatch.context() as patch:
        calls = []
        decode = llama.llama_decode
        patch.setattr(
            llama,
            'llama_decode',
            lambda *given: calls.append(1) or (-3 if len(calls) == 1 else decode(*given)),
        )
        assert Asker(real_engine).result().finish == Finish.ERROR
        assert Asker(real_engine).result().finish in (Finish.STOP, Finish.LENGTH)
    assert real_engine.status().rebuilds == 1


def test_a_piece_of_work_that_does_not_end_is_seen(engine, session):
    gate, begun = threading.Event(), threading.Event()

    def hang(_):
        begun.set()
        gate.wait(WAIT_S)

    assert engine.status().busy_s == 0.0
    session.at_step = hang
    done = threading.Event()
    engine.ask(Question('?'), on_done=lambda _: done.set())
    assert begun.wait(WAIT_S)
    first = engine.status().busy_s
    assert engine.status().busy_s > first > 0.0
    gate.set()
    assert done.wait(WAIT_S)
    until(lambda: engine.status().busy_s == 0.0)


def test_another_way_to_choose_tokens_holds_from_the_next_question_on(engine, session):
    session.options = SessionOptions()
    hot = SamplingOptions(temperature=2.0)
    engine.set_sampling(hot)
    done = threading.Event()
    engine.ask(Question('?'), on_done=lambda _: done.set())
    assert done.wait(WAIT_S)
    assert session.options == SessionOptions(sampling=hot)


def fed(engine, seconds, rng):
    """Give the engine seconds of both senses."""
    for second in seconds:
        engine.put_image(second, rng.standard_normal((64, 256)).astype(np.float16))
        engine.put_audio(second, rng.standard_normal((25, 256)).astype(np.float16))


def fresh_answer(engine, first) -> tuple:
    """Empty the window, show four seconds and ask; return what was seen and said."""
    engine.reset()
    read = engine.status().units_read
    fed(engine, range(first, first + 4), np.random.default_rng(5))
    until(lambda: engine.status().units_read == read + 4)
    answer = Asker(engine, 'what is it', max_tokens=8).result()
    return answer.finish, [second - first for second in answer.seconds], answer.text


def test_whatever_is_asked_seen_and_reset_every_question_ends_once_and_leaves_no_trace(
    real_engine, rng
):
    """A random history of a stream, and of all that can be done with questions."""
    expected, second, asked = fresh_answer(real_engine, 0), 100, []
    for _ in range(250):
        chance = rng.random()
        if chance < 0.35:
            if rng.random() < 0.05:
                second -= 60  # a recording that starts over
            fed(real_engine, [second], rng)
            second += 1
        elif chance < 0.75:
            fields = dict(max_tokens=int(rng.choice([1, 5, 40])), remember=rng.random() < 0.3)
            if rng.random() < 0.3:
                fields['choices'] = ('red', 'blue', 'a cat')
            if rng.random() < 0.1:
                fields['timeout_s'] = 0.01
            try:
                asked.append(Asker(real_engine, 'what is shown now', **fields))
            except BusyError:
                pass  # max_waiting
        elif chance < 0.9 and asked:
            asked[rng.integers(len(asked))].asking.cancel()
        elif chance < 0.93:
            real_engine.reset(CancelledError('anew') if rng.random() < 0.5 else None)
        elif chance < 0.96:
            real_engine.resize(int(rng.choice([1024, 512])), 1e9)
        elif asked:
            until(lambda: not asked[-1].answers.empty())
        status = real_engine.status()
        assert status.state == 'ready' and status.positions <= status.context_size
    answers = [asker.result() for asker in asked]
    for asker, answer in zip(asked, answers):
        assert ''.join(asker.deltas) == answer.text
        assert list(answer.seconds) == sorted(set(answer.seconds))
        assert answer.error is None or answer.finish in (Finish.ERROR, Finish.CANCELLED), answer
        assert answer.finish is not Finish.ERROR or isinstance(answer.error, Error), answer
    assert {Finish.STOP, Finish.CANCELLED} <= {answer.finish for answer in answers}
    real_engine.resize(1024, 1e9)
    until(lambda: real_engine.status().context_size == 1024)
    assert fresh_answer(real_engine, second + 10_000) == expected
    status = real_engine.status()
    assert status.waiting == 0 and not status.answering and status.rebuilds == 0


def fail_unforeseen(*_, **__):
    raise ZeroDivisionError('nobody has foreseen this')


@pytest.mark.parametrize('place', ['begin_second', 'end_second'])
def test_a_fault_of_standing_questions_costs_their_readings_only(
    make_engine, session, caplog, monkeypatch, place
):
    asker = AlertAsker(AlertWatch([AlertRule('fall', 'Does somebody lie there?')]))
    monkeypatch.setattr(asker.watch, place, fail_unforeseen)
    # A model that cannot read the rule, as it is too long: it has a problem, and is followed.
    too_many = range(session.options.max_question_tokens + 1)
    session.model = SimpleNamespace(vocabulary=SimpleNamespace(encode=lambda _: too_many))
    engine = make_engine(lambda *_: session, EngineOptions(0.0, evidence=ANY), alerts=asker)
    for second in range(3):
        engine.put_audio(second, SOUND)
        engine.put_image(second, PICTURE)
        until(lambda s=second: engine.status().units_read == s + 1)
    until(lambda: asker.failures == 3)
    assert 'nobody has foreseen' in asker.newest_failure and 'standing questions' in caplog.text
    assert engine.status().state == 'ready' and Asker(engine).result().finish == Finish.STOP
