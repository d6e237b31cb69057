# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Many forks of one window are read together, and each reads what it would have read alone."""

import random
from dataclasses import replace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from test_live_session import divergence, fill, rows, unit

from minicpmo_ros.errors import CancelledError, ContextFullError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.session import LIVE, Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.window import Read
from minicpmo_ros.llm.context import Context, Piece
from minicpmo_ros.llm.context_options import ContextOptions
from minicpmo_ros.streams.pairing import Unit

N_FORKS = 4
OPTIONS = SessionOptions(max_tokens=24, max_question_tokens=40, max_forks=N_FORKS)
ASKED = ('what', 'what do you see', 'hear the one', 'red or blue')


@pytest.fixture
def open_session(model):
    sessions = []

    def make(model=model, options=OPTIONS, n_ctx=1024, **context_options):
        context_options = ContextOptions(n_ctx=n_ctx, threads=1, **context_options)
        sessions.append(Session(model, ENGLISH, context_options, options))
        return sessions[-1]

    yield make
    for session in sessions:
        session.context.close()


def question_rows(session, text):
    return session.prompt.question(session.model.vocabulary.encode(text))


def logits_apart(session, question):
    """Give the logits (vocabulary,) behind the rows of a question on a fork of its own."""
    fork = session.fork(len(question))
    (found,) = session.read([Read(fork, question)])
    fork.drop()
    return found[0].copy()


def finish_all(generations, tick):
    """Let all answers be given together; `tick(reads)` returns the logits of what they read."""
    while running := [each for each in generations if each.answer is None]:
        for generation, found in zip(running, tick([each.next_read() for each in running])):
            generation.take(found)
    return [each.answer.text for each in generations]


# --- several sequences in one decode -----------------------------------------------------------


def test_riders_see_the_unit_they_ride_with_as_if_asked_after_it(open_session):
    apart, riding = fill(open_session(), [unit(0)]), fill(open_session(), [unit(0)])
    questions = [question_rows(apart, text) for text in ASKED]
    for second in range(1, 30):  # evicts units, too
        apart.append(unit(second))
        found = riding.append(unit(second), riders=questions).riders
        if second % 7 == 0:
            for question, logits in zip(questions, found):
                assert divergence(logits_apart(apart, question), logits) < 1e-4
    assert riding.evicted == apart.evicted > 10
    assert len({int(logits.argmax()) for logits in found}) > 1
    blank = fill(open_session(), [unit(s, None) for s in range(28)])
    other = blank.append(unit(29, None), riders=questions).riders[0]
    assert divergence(other, found[0]) > 1e-3


def test_riders_leave_the_window_as_if_they_had_never_been(open_session):
    ridden, never = open_session(), open_session()
    for second in range(12):
        ridden.append(unit(second), riders=[question_rows(ridden, text) for text in ASKED])
        never.append(unit(second))
    assert ridden.window.spans == never.window.spans
    for sequence in range(1, 1 + N_FORKS):
        assert ridden.context.next_position(sequence) == 0
    question = question_rows(never, 'what')
    assert divergence(logits_apart(never, question), logits_apart(ridden, question)) < 1e-4


def test_more_riders_than_forks_are_read_in_groups_and_those_without_room_are_told(open_session):
    session = fill(open_session(), [unit(0)])
    questions = [question_rows(session, text) for text in (*ASKED, *ASKED, 'the one')]
    found = session.append(unit(1), riders=questions).riders
    for first, again in zip(found[:4], found[4:8]):
        assert divergence(first, again) < 1e-4
    assert divergence(logits_apart(session, questions[8]), found[8]) < 1e-4
    held = [session.fork(20) for _ in range(N_FORKS)]
    assert session.append(unit(2), riders=questions[:2]).riders == [None, None]
    held.pop().drop()
    longer = rows(session.context.n_ctx - session.window.prefix - 3 * 20 - 93, 1)
    longer = longer.astype(np.float32)
    found = session.append(unit(3), riders=[questions[0], longer, questions[1]]).riders
    assert found[1] is None  # and keeps nobody else from being read
    for riding, asked in zip((found[0], found[2]), questions):
        assert divergence(logits_apart(session, asked), riding) < 1e-4


def test_answers_given_together_are_those_given_one_by_one(open_session):
    questions = [
        Question(text, grammar=f'root ::= [a-z]{{{n}}}', seed=n) for n, text in enumerate(ASKED, 9)
    ]
    alone, together = (fill(open_session(), [unit(0), unit(1)]) for _ in '12')
    texts = [finish_all([alone.ask(question)], alone.read)[0] for question in questions]
    assert finish_all([together.ask(each) for each in questions], together.read) == texts
    # And while units come in between.
    generations, seconds = [together.ask(each) for each in questions], iter(range(2, 9))

    def tick(reads):
        second = next(seconds, None)
        if second is None:
            return together.read(reads)
        return together.append(unit(second), reads, [question_rows(together, 'x')]).logits

    assert finish_all(generations, tick) == texts
    assert [each.answer.window_end_s for each in generations] == [2] * 4
    assert together.window.seconds[-1] == 8


def test_a_question_that_comes_and_goes_leaves_the_others_alone(open_session):
    session = fill(open_session(), [unit(0)])
    kept = Question('what', grammar='root ::= [a-z]{20}')
    (text,) = finish_all([session.ask(kept)], session.read)
    first = session.ask(kept)
    other = session.ask(Question('hear', grammar='root ::= [ab]{20}'))
    for _ in range(4):
        for each, found in zip(
            (first, other), session.read([first.next_read(), other.next_read()])
        ):
            each.take(found)
    assert other.end(Finish.CANCELLED).answer_tokens == 4
    session.append(unit(1))
    assert finish_all([first], session.read) == [text]


def test_more_rows_than_llama_reads_at_once_are_cut_at_tiles(open_session, monkeypatch):
    session, counts, decode = open_session(n_batch=40), [], llama.llama_decode
    monkeypatch.setattr(
        llama,
        'llama_decode',
        lambda pointer, batch: counts.append(batch.n_tokens) or decode(pointer, batch),
    )
    found = session.append(unit(0), riders=[question_rows(session, 'what')] * 2).riders
    assert counts[:-1] == [32] * (len(counts) - 1) and len(counts) > 3
    assert divergence(logits_apart(session, question_rows(session, 'what')), found[1]) < 1e-4


def test_more_logits_than_one_batch_may_have_are_all_returned(open_session):
    session = fill(open_session(), [unit(0)])
    piece = question_rows(session, 'what do you see')
    fork = session.fork(len(piece))
    (every,) = session.read([Read(fork, piece, len(piece))])
    assert every.shape == (len(piece), session.model.vocabulary.size) and len(piece) > 8
    every = every.copy()
    fork.drop()
    for n in (1, 3, len(piece)):
        assert divergence(logits_apart(session, piece[:n]), every[n - 1]) < 1e-4


# --- what would end the process, or spoil the cache, is refused ---------------------------------


@pytest.fixture
def context(model):
    context = Context(model, ContextOptions(n_ctx=512, n_batch=64, n_sequences=3, threads=1))
    yield context
    context.close()


def test_rows_of_several_sequences_need_one_position_to_stand_at(context):
    few, more = (rows(n, n).astype(np.float32) for n in (3, 5))
    context.decode([Piece(few, (0,))])
    for unfit, told in (
        ([Piece(more, (0, 1))], 'same position'),
        ([Piece(more, (1, 1))], 'same position'),
        ([Piece(more, ())], 'same position'),
        ([Piece(more, (1, 2)), Piece(few, (2,)), Piece(few, (1, 2))], 'same position'),
        ([Piece(more, (3,))], 'sequence 3'),
        ([Piece(more, (1,), 6)], 'logits of 6'),
        ([Piece(more, (1,), -1)], 'logits of -1'),
        ([Piece(more, (1,)), Piece(more[:0], (2,))], '0 rows'),
    ):
        with pytest.raises(ValueError, match=told):
            context.decode(unfit)
    assert [context.next_position(n) for n in range(3)] == [3, 0, 0]
    context.copy(0, 1, 3)
    (shared, own) = context.decode([Piece(more, (0, 1), 1), Piece(few, (1,), 1)])
    assert [context.next_position(n) for n in range(3)] == [8, 11, 0]
    assert shared.shape == own.shape == (1, context.model.vocabulary.size)


def test_a_decode_that_fails_in_its_middle_leaves_all_sequences_as_they_were(context, monkeypatch):
    few, many = (rows(n, n).astype(np.float32) for n in (3, 90))
    context.decode([Piece(few, (0,)), Piece(few, (1,))])
    decode, calls = llama.llama_decode, []
    for at in (1, 2, 3):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(
                llama,
                'llama_decode',
                lambda *given, at=at: calls.append(1) or (decode(*given) or len(calls) == at),
            )
            with pytest.raises(ContextFullError):
                context.decode([Piece(few, (1,), 1), Piece(many, (0,)), Piece(many, (2,), 1)])
        assert [context.next_position(n) for n in range(3)] == [3, 3, 0]


def test_a_fork_reads_no_more_than_it_has_reserved_and_nothing_once_dropped(open_session):
    session = fill(open_session(), [unit(0)])
    fork = session.fork(20)
    session.read([Read(fork, rows(20, 1).astype(np.float32))])
    with pytest.raises(ValueError, match='reserved'):
        session.read([Read(fork, rows(1, 1).astype(np.float32))])
    fork.drop()
    with pytest.raises(ValueError, match='dropped'):
        session.read([Read(fork, rows(1, 1).astype(np.float32))])
    held = [session.fork(20) for _ in range(N_FORKS)]
    with pytest.raises(ValueError, match='4 questions'):
        session.fork(20)
    session.rebuild()
    with pytest.raises(ValueError, match='dropped'):
        session.read([Read(held[0], rows(1, 1).astype(np.float32))])
    assert not session.can_fork(session.context.n_ctx)
    with pytest.raises(ContextFullError, match='wait'):
        session.fork(session.context.n_ctx)


# --- the rules of room, eviction, cancel, rebuild: random schedules ------------------------------


class Reference:
    """What every sequence should hold, as plain rows; read in a context of its own."""

    def __init__(self, session):
        self.session, self.units = session, {}  # rows of each second
        self.forks = {}  # {fork: [(second or None, rows) that it holds]}
        self.context = Context(session.model, ContextOptions(n_ctx=1280, threads=1))

    def window(self):
        """Give what the window holds: [(second or None, rows)]."""
        seconds = self.session.window.seconds
        return [(None, self.session.prompt.prefix), *((s, self.units[s]) for s in seconds)]

    def check(self, held, logits):
        self.context.clear()
        expected = self.context.read(np.concatenate([rows for _, rows in held]), 0, True)
        assert divergence(expected, logits) < 1e-4

    def check_positions(self):
        for fork, held in self.forks.items():  # what was evicted from it since the last time
            lost, fork.evicted = [span.second for span in fork.evicted], []
            self.forks[fork] = [(s, rows) for s, rows in held if s not in lost]
        holders = {fork.sequence: held for fork, held in self.forks.items()}
        holders[LIVE] = self.window()
        for sequence in range(1 + N_FORKS):
            n_rows = sum(len(rows) for _, rows in holders.get(sequence, ()))
            assert self.session.context.next_position(sequence) == n_rows
        if not self.forks:
            assert self.session.window.end <= self.session.window.capacity


class Schedule:
    """Random steps of a session with a reference beside it."""

    def __init__(self, session, seed):
        self.session, self.random = session, random.Random(seed)
        self.reference, self.second = Reference(session), 0
        self.waited = self.cut = 0

    def run(self, n_steps):
        steps = [self.append] * 8 + [self.fork] * 4 + [self.read] * 4 + [self.drop] * 3
        steps += [self.reset, self.fail, self.cancel, self.resize, self.rebuild]
        for _ in range(n_steps):
            self.random.choice(steps)()
            self.reference.check_positions()

    def rows(self, n):
        return rows(n, self.random.randrange(1 << 30)).astype(np.float32)

    def reads(self):
        """Choose rows for some forks."""
        grows = {
            fork: fork.end - self.session.context.next_position(fork.sequence)
            for fork in self.reference.forks
        }
        return [
            Read(fork, self.rows(self.random.randint(1, n)))
            for fork, n in grows.items()
            if n and self.random.random() < 0.7
        ]

    def took(self, reads, logits):
        self.cut += any(fork.evicted for fork in self.reference.forks)
        for fork, read, _ in reads:
            self.reference.forks[fork].append((None, read))
        self.reference.forks = {
            fork: [(s, rows) for s, rows in held if s not in [e.second for e in fork.evicted]]
            for fork, held in self.reference.forks.items()
        }
        for (fork, *_), found in zip(reads, logits, strict=True):
            self.reference.check(self.reference.forks[fork], found[-1])

    def unit(self):
        return unit(self.second, *([None, True] if self.random.random() < 0.3 else []))

    def append(self):
        reads, each = self.reads(), self.unit()
        riders = [self.rows(self.random.randint(1, 30)) for _ in range(self.random.randint(0, 5))]
        if not self.session.can_append(each):  # forks hold a window that was emptied
            with pytest.raises(ContextFullError):
                self.session.append(each, reads, riders)
            return
        report = self.session.append(each, reads, riders)
        self.reference.units[self.second] = self.session.prompt.unit(
            each.image_rows, *each.tiles, each.audio_rows
        )
        for rider, found in zip(riders, report.riders, strict=True):
            if found is not None:
                self.reference.check([*self.reference.window(), (None, rider)], found)
        self.took(reads, report.logits)
        self.second += 1

    def read(self):
        if reads := self.reads():
            self.took(reads, self.session.read(reads))

    def fork(self):
        n_positions = self.random.choice((1, 20, 60, 220))
        if self.session.can_fork(n_positions):
            fork = self.session.fork(n_positions)
            self.reference.forks[fork] = self.reference.window()
        else:
            self.waited += 1
            with pytest.raises((ContextFullError, ValueError)):
                self.session.fork(n_positions)

    def drop(self):
        forks = list(self.reference.forks)
        for fork in self.random.sample(forks, min(len(forks), self.random.choice((1, 1, 9)))):
            del self.reference.forks[fork]
            fork.drop()
            fork.drop()

    def reset(self):
        if self.random.random() < 0.2:
            self.session.reset()

    def fail(self):
        """Let a decode end early, as a full context or an abort would end it."""
        reads, each, decode = self.reads(), self.unit(), llama.llama_decode
        if not self.session.can_append(each):
            return
        before = len(self.session.window.spans), self.session.evicted
        code = self.random.choice((1, 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llama, 'llama_decode', lambda *given: decode(*given) or code)
            with pytest.raises((ContextFullError, CancelledError)):
                self.session.append(each, reads, [self.rows(9)])
        assert len(self.session.window.spans) - before[0] <= self.session.evicted - before[1]

    def cancel(self):
        reads = self.reads()
        self.session.context.abort.set()
        if reads:
            with pytest.raises(CancelledError):
                self.session.read(reads)
        self.session.context.abort.clear()

    def resize(self):
        size = self.random.choice((512, 768))
        if self.reference.forks:
            with pytest.raises(ValueError, match='answered'):
                self.session.resize(size)
        else:
            self.session.resize(size)

    def rebuild(self):
        if self.random.random() < 0.2:
            forks, self.reference.forks = self.reference.forks, {}
            self.session.rebuild()
            for fork in forks:
                fork.drop()


@pytest.mark.parametrize('policy', ['recent', 'long'])
def test_whatever_happens_each_sequence_holds_what_it_was_given(open_session, one_layer, policy):
    evicted = waited = cut = 0
    for seed in range(2):
        session = open_session(one_layer, replace(OPTIONS, window_policy=policy), n_ctx=768)
        schedule = Schedule(session, seed)
        schedule.run(70)
        for fork in schedule.reference.forks:
            fork.drop()
        schedule.reference.forks.clear()
        schedule.reference.check_positions()
        session.append(Unit(schedule.second, None, (0, 0), rows(25, 1)))
        evicted, waited = evicted + session.evicted, waited + schedule.waited
        cut += schedule.cut
    assert evicted > 10 and waited > 0 and cut > 0
