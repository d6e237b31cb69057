# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The robot does not hear itself through a room, and hears who speaks meanwhile."""

import sys

import numpy as np
import pytest

from benchmarks.voice_sounds import ROOMS, echo_of, own_speech, say
from minicpmo_ros.errors import InputError
from minicpmo_ros.speech.self_speech import BLOCK, EchoRemover, ResidueGate, RoomFilter
from minicpmo_ros.voice.detector import FRAME, load_detector
from minicpmo_ros.voice.turns import TurnFinder, TurnKind, TurnOptions

NS, RATE = 10**9, 16000
BEGIN_NS = 1_700_000_000 * NS
QUESTION_AT_S = 20


@pytest.fixture(scope='module')
def speech():
    """Give a minute of the robot's own speech, (n,) float32."""
    return own_speech(60)[0]


def listened(speech, heard, rng=None, chunk=640, learns_room=False):
    """Give what is left of what was heard; the stamps jitter if `rng` is given."""
    remover, parts = EchoRemover(40, learns_room), []
    for at in range(0, len(heard), chunk):
        jitter_ns = 0 if rng is None or not at else int(rng.uniform(-0.03, 0.03) * NS)
        stamp_ns = BEGIN_NS + at * NS // RATE
        remover.play(stamp_ns + jitter_ns, speech[at : at + chunk])
        parts.append(remover.hear(stamp_ns - jitter_ns // 2, heard[at : at + chunk])[1])
    return np.concatenate(parts)


def turns(samples):
    finder = TurnFinder(load_detector(), TurnOptions())
    finder.robot_speaks = lambda stamp_ns: True
    return finder.push(BEGIN_NS, samples) + finder.stop('the end')


@pytest.mark.parametrize('learns_room', [False, True])
@pytest.mark.parametrize('room', ROOMS)
def test_a_minute_of_its_own_words_louder_than_a_person_is_no_turn(speech, rng, room, learns_room):
    heard = echo_of(rng, speech, room)
    clean = listened(speech, heard, rng, learns_room=learns_room)
    assert len(clean) == len(heard)
    assert turns(heard) and turns(clean) == []
    quieter_db = 10 * np.log10(np.mean(heard[RATE:] ** 2) / np.mean(clean[RATE:] ** 2))
    assert quieter_db > 20


@pytest.mark.parametrize('room', ROOMS)
def test_a_question_into_its_words_is_one_turn_where_it_was_asked(speech, rng, room):
    heard = echo_of(rng, speech, room)[: (QUESTION_AT_S + 6) * RATE]
    question = say('Please tell me what I said.', 'en-gb+f3')
    begin = QUESTION_AT_S * RATE
    heard[begin : begin + len(question)] += question
    started = [
        e for e in turns(listened(speech, heard, learns_room=True)) if e.kind is TurnKind.STARTED
    ]
    assert len(started) == 1
    late_s = (started[0].stamp_ns - BEGIN_NS) / NS - QUESTION_AT_S
    assert 0 < late_s < len(question) / RATE


def test_a_room_that_changes_or_is_not_linear_makes_no_turn(speech, rng):
    moved = echo_of(rng, speech, 'long')
    moved[30 * RATE :] = echo_of(rng, speech, 'short')[30 * RATE :]
    clipped = echo_of(rng, np.clip(3 * speech, -0.4, 0.4), 'long')
    for heard in (moved, clipped):
        assert turns(heard) and turns(listened(speech, heard, learns_room=True)) == []


def test_a_room_is_learned_from_the_echo_and_lost_with_it(speech, rng):
    room, heard = RoomFilter(), echo_of(rng, speech, 'long')
    other = rng.normal(0, 0.1, len(heard)).astype(np.float32)
    known = []
    for at in range(0, 40 * RATE, BLOCK):
        near = heard if at < 20 * RATE else other  # what is heard has nothing to do with it
        room.subtract(near[at : at + BLOCK], speech[at : at + BLOCK])
        known.append(room.is_learned)
    assert not known[0] and known[15 * RATE // BLOCK] and not known[-1]


def gated(clean, chunk=640):
    """Give what a window hears of what the echo remover left."""
    gate = ResidueGate(load_detector(), FRAME)
    gate.reset()
    return np.concatenate([gate.listen(clean[i : i + chunk]) for i in range(0, len(clean), chunk)])


def test_a_window_hears_nothing_of_its_words_and_the_question_into_them(speech, rng):
    heard = echo_of(rng, speech, 'short')[: (QUESTION_AT_S + 6) * RATE]
    question, begin = say('Please tell me what I said.', 'en-gb+f3'), QUESTION_AT_S * RATE
    clean = listened(speech, heard)
    assert clean.any() and not gated(clean).any()
    heard[begin : begin + len(question)] += question
    clean = listened(speech, heard)
    window = gated(clean)
    assert not window[:begin].any() and not window[begin + len(question) + RATE :].any()
    asked = slice(begin, begin + len(question))
    assert np.sum(window[asked] ** 2) > 0.7 * np.sum(clean[asked] ** 2)
    np.testing.assert_array_equal(gated(clean, 250), window)


@pytest.mark.parametrize('chunk', [100, 160, 1000, 7000])
def test_where_the_robot_is_silent_everything_is_heard_a_block_late(rng, chunk):
    samples = rng.normal(0, 0.1, RATE).astype(np.float32)
    remover = EchoRemover(40)
    heard = np.concatenate([
        remover.hear(BEGIN_NS + at * NS // RATE, samples[at : at + chunk])[0]
        for at in range(0, RATE, chunk)
    ])  # fmt: skip
    np.testing.assert_array_equal(heard, np.concatenate([np.zeros(BLOCK), samples[:-BLOCK]]))


def test_chunks_of_any_length_give_the_same(speech, rng):
    heard = echo_of(rng, speech, 'short')[: 5 * RATE]
    whole = listened(speech, heard, chunk=1600)
    np.testing.assert_array_equal(listened(speech, heard, chunk=250), whole)


def test_a_jump_of_the_stamps_begins_anew(rng):
    samples, remover = rng.normal(0, 0.1, RATE).astype(np.float32), EchoRemover(40)
    remover.hear(BEGIN_NS, samples)
    heard, clean = remover.hear(BEGIN_NS + 60 * NS, samples)
    assert len(heard) == len(clean) == RATE and not heard[:BLOCK].any()
    remover.play(BEGIN_NS + 60 * NS, samples)
    remover.play(BEGIN_NS, samples)  # a recording that is played again
    heard, _ = remover.hear(BEGIN_NS, samples)
    np.testing.assert_array_equal(heard[BLOCK:], samples[:-BLOCK])


def test_blocks_that_come_in_a_burst_sound_one_after_the_other(speech, rng):
    heard, remover = echo_of(rng, speech, 'short')[: 4 * RATE], EchoRemover(40)
    for at in range(0, len(heard), 640):
        comes = RATE if RATE <= at < 2 * RATE else at  # what sounds from 1 to 2 s, all at once
        remover.play(BEGIN_NS + comes * NS // RATE, speech[at : at + 640])
    np.testing.assert_array_equal(remover.hear(BEGIN_NS, heard)[1], listened(speech, heard))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pywebrtc_audio', None)
    with pytest.raises(InputError, match='half_duplex.*requirements-voice.txt'):
        EchoRemover(40)
