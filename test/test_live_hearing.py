# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A question about what was said rests on the audio up to its stamp, or is refused in words."""

import numpy as np
import pytest
from test_live_engine import PICTURE, SOUND, Asker, FakeSession, until
from test_live_session import WHAT, answer, first_logits, unit
from test_live_session import open_session as open_session  # noqa: F401

from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.voice import hearing
from minicpmo_ros.voice.hearing import OpenSecond, Tail

NS = 10**9
OPEN = OpenSecond(2, int(2.4 * NS), np.full((25, 256), 2, np.float16), previous=1)


class Session(FakeSession):
    """Keeps the tails it was asked with, and says where its audio ends as the real one does."""

    def __init__(self):
        super().__init__()
        self.tails = []

    def append(self, unit, reads=(), riders=()):
        if unit.audio_rows is not None:
            self.window.audio_end_s = unit.second + 1
        if unit.image_rows is not None:
            self.window.image_end_s = unit.second + 1
        return super().append(unit, reads, riders)

    def ask(self, question, asked_s, between, tail=None):
        self.tails.append(tail)
        return super().ask(question, asked_s, between)


class Ear:
    """The encoder's side: keeps what it is asked for until a test replies."""

    def __init__(self):
        self.asked = []

    def __call__(self, until_ns, timeout_s, take):
        self.asked.append((until_ns, take))


@pytest.fixture
def open_engine(monkeypatch):
    """Give a function that returns (engine, session, ear); a question waits `deadline_s`."""
    engines = []

    def open_one(deadline_s=20.0, listen=None):
        session, ear = Session(), listen or Ear()
        monkeypatch.setattr(hearing, 'SPARE_S', deadline_s - 10)
        options = EngineOptions(unit_deadline_s=10.0)
        engine = Engine(lambda *_: session, options, listen=ear)
        engines.append(engine)
        engine.start()
        until(lambda: engine.status().state == 'ready')
        return engine, session, ear

    yield open_one
    for engine in engines:
        assert engine.close(20)


def show(engine, seconds, picture=PICTURE):
    for second in seconds:
        engine.put_image(second, picture)
        engine.put_audio(second, SOUND)
    until(lambda: engine.status().window_end_s > max(seconds))


def test_it_waits_for_the_open_second_and_others_do_not_wait_for_it(open_engine):
    engine, session, ear = open_engine()
    show(engine, [0, 1])
    spoken = Asker(engine, '')
    assert Asker(engine, 'other').result().finish == Finish.STOP
    assert session.diary.count('') == 0 and ear.asked[0][0] == 0
    ear.asked[0][1](OPEN)
    assert spoken.result().finish == Finish.STOP
    tail = session.tails[-1]
    assert (tail.unit.second, tail.end_ns) == (2, OPEN.end_ns)
    assert tail.unit.audio_rows is OPEN.rows and tail.unit.image_rows is PICTURE
    assert session.window.seconds == [0, 1], 'the window knows nothing of it'


def test_it_waits_for_the_seconds_before_the_open_one(open_engine):
    engine, session, ear = open_engine()
    show(engine, [0])
    spoken = Asker(engine, '', heard_until=OPEN.end_ns)
    ear.asked[0][1](OPEN)
    assert Asker(engine, 'other').result().finish == Finish.STOP
    assert '' not in session.diary, 'second 1 has not come'
    show(engine, [1])
    assert spoken.result().finish == Finish.STOP
    assert session.diary.index(1) < session.diary.index('')


def test_a_second_that_was_read_whole_meanwhile_is_not_read_twice(open_engine):
    engine, session, ear = open_engine()
    show(engine, [0, 1])
    spoken = Asker(engine, '')
    show(engine, [2])
    ear.asked[0][1](OPEN)
    assert spoken.result().finish == Finish.STOP and session.tails == [None]


def test_an_old_image_is_not_shown_as_new(open_engine):
    engine, session, ear = open_engine()
    show(engine, [0, 1])
    show(engine, range(2, 12), picture=None)
    late = OpenSecond(12, int(12.5 * NS), OPEN.rows, previous=11)
    spoken = Asker(engine, '')
    ear.asked[0][1](late)
    assert spoken.result().finish == Finish.STOP
    assert session.tails[-1].unit.image_rows is None


def test_audio_that_does_not_come_is_told_with_facts(open_engine):
    engine, _, ear = open_engine(deadline_s=0.2)
    show(engine, [0, 1])
    silent = Asker(engine, '', heard_until=7 * NS + NS // 4)
    ear.asked[0][1](OpenSecond(reason='The microphone has reached 2.100 s.'))
    failed = silent.result()
    assert failed.finish == Finish.ERROR
    for fact in ('7.250 s', 'ends at 2 s', 'reached 2.100 s', 'check the microphone'):
        assert fact in failed.reason, fact


def test_a_second_that_ended_meanwhile_and_is_not_read_in_time_is_not_passed_over(open_engine):
    engine, session, ear = open_engine(deadline_s=0.2)
    show(engine, [0, 1])
    spoken = Asker(engine, '', heard_until=OPEN.end_ns)
    ear.asked[0][1](OpenSecond(3, 3 * NS, previous=2))  # second 2 is whole, and on its way
    failed = spoken.result()
    assert failed.finish == Finish.ERROR and 'ends at 2 s' in failed.reason
    assert session.tails == []


@pytest.mark.parametrize('text, until_ns', [('', 0), ('', NS), ('where?', NS)])
def test_audio_that_was_asked_for_is_not_passed_over_for_notes(open_engine, text, until_ns):
    engine, session, ear = open_engine()
    show(engine, [0, 1])
    asked = Asker(engine, text, heard_until=until_ns, memory='only')
    ear.asked[0][1](OPEN)
    refused = asked.result()
    assert refused.finish == Finish.ERROR and 'memory is only' in refused.reason
    assert session.tails == []


def test_without_an_encoder_whole_seconds_are_answered_and_told_so(open_engine):
    def nobody(until_ns, timeout_s, take):
        take(OpenSecond(reason='Nobody offers read_audio.'))

    engine, session, _ = open_engine(listen=nobody)
    nothing = Asker(engine, '').result()
    assert nothing.finish == Finish.ERROR and 'no audio in the window' in nothing.reason
    show(engine, [0, 1])
    told = Asker(engine, '').result()
    assert told.finish == Finish.STOP and 'Only whole seconds were read' in told.reason
    assert not told.stale
    exact = Asker(engine, '', heard_until=2 * NS).result()
    assert exact.finish == Finish.STOP and not exact.reason
    assert session.tails == [None, None]


def test_the_first_words_after_a_start_are_answered(open_engine):
    engine, session, ear = open_engine()
    spoken = Asker(engine, '')
    ear.asked[0][1](OpenSecond(0, NS // 2, OPEN.rows))
    assert spoken.result().finish == Finish.STOP
    assert session.tails[-1].unit == Unit(0, None, (0, 0), OPEN.rows)


def test_an_open_second_counts_as_if_it_were_in_the_window(open_session):  # noqa: F811
    session, whole = open_session(n_ctx=2048), open_session(n_ctx=2048)
    for second in range(2):
        session.append(unit(second))
        whole.append(unit(second))
    wanted = first_logits(session), session.window.end
    tail = Tail(unit(2), int(2.4 * NS))
    generation = session.ask(WHAT, tail=tail)
    (found,) = session.read([generation.next_read()])
    found = found[0].copy()
    generation.end(Finish.CANCELLED)
    whole.append(unit(2))
    np.testing.assert_allclose(found, first_logits(whole), atol=1e-3)
    assert np.abs(found - wanted[0]).max() > 0.1, 'it was read'
    assert session.window.end == wanted[1]
    np.testing.assert_array_equal(first_logits(session), wanted[0])


def test_an_answer_says_that_it_rests_on_a_part_of_a_second(open_session):  # noqa: F811
    session = open_session()
    session.append(unit(4))
    generation = session.ask(Question(''), tail=Tail(unit(5), 5 * NS + NS // 4))
    found = generation.end(Finish.CANCELLED)
    assert (found.window_start_s, found.window_end_s, found.audio_end_s) == (4, 5.25, 5.25)
    assert found.image_end_s == 5 and found.seconds == (4,)
    assert answer(session)[0].audio_end_s == 5
