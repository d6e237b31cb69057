# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns of speech: found in noise, bounded, and the same however the audio comes."""

import sys

import numpy as np
import pytest

from benchmarks.voice_sounds import SPEECH_RMS, conversation, noise, say
from minicpmo_ros.errors import InputError
from minicpmo_ros.voice.detector import FRAME, SileroOnnx, WakeWord, load_detector
from minicpmo_ros.voice.turns import (
    BLOCKS,
    FRAME_NS,
    FRAME_S,
    FrameSplitter,
    TurnDetector,
    TurnEvent,
    TurnFinder,
    TurnKind,
    TurnOptions,
    TurnState,
)

NS, RATE = 10**9, 16000
DEFAULTS = TurnOptions()
SHORT = TurnOptions(end_silence_s=0.5, patience_s=1.0, max_speech_s=3.0)


def turns_of(detector, *parts):
    """Feed (probability, seconds) one after the other; return what is told."""
    told = []
    for probability, seconds in parts:
        for _ in range(round(seconds / FRAME_S)):
            detector.clock_ns = getattr(detector, 'clock_ns', 0) + FRAME_NS
            event = detector.push(detector.clock_ns, probability)
            told += [event] if event else []
    return told


def kinds(events):
    return [event.kind for event in events]


def test_a_turn_starts_after_some_speech_and_ends_after_silence():
    started, ended = turns_of(TurnDetector(SHORT), (0.0, 1.0), (0.9, 1.0), (0.1, 2.0))
    assert (started.kind, ended.kind) == (TurnKind.STARTED, TurnKind.ENDED)
    assert started.turn == ended.turn == 0
    assert started.start_ns == ended.start_ns == pytest.approx(1.0 * NS, abs=FRAME_NS)
    assert ended.end_ns == pytest.approx(2.0 * NS, abs=FRAME_NS)
    assert ended.stamp_ns - ended.end_ns == pytest.approx(0.5 * NS, abs=FRAME_NS)
    assert 0.5 < ended.probability < 0.9 and ended.addressed


def test_a_knock_is_not_told_and_a_cough_is_discarded():
    knock = turns_of(TurnDetector(SHORT), (0.9, 0.1), (0.1, 2.0))
    assert knock == []
    patient = TurnOptions(start_speech_s=0.1, min_speech_s=0.3)
    cough = turns_of(TurnDetector(patient), (0.9, 0.2), (0.1, 2.0))
    assert kinds(cough) == [TurnKind.STARTED, TurnKind.DISCARDED] and '0.19 s' in cough[1].reason


def test_a_pause_to_think_ends_no_turn_and_doubtful_frames_no_pause():
    parts = (0.9, 0.5), (0.1, 0.4), (0.9, 0.5), (0.5, 1.5), (0.9, 0.2), (0.1, 0.6)
    assert kinds(turns_of(TurnDetector(SHORT), *parts)) == [TurnKind.STARTED, TurnKind.ENDED]


def test_a_turn_is_bounded_and_the_next_one_needs_silence_before_it():
    detector = TurnDetector(SHORT)
    endless = turns_of(detector, (0.9, 20.0))
    assert (
        kinds(endless) == [TurnKind.STARTED, TurnKind.ENDED]
        and 'max_speech_s' in endless[1].reason
    )
    assert detector.state is TurnState.TOO_LONG
    assert turns_of(detector, (0.1, 0.4), (0.9, 0.5)) == []
    rested = turns_of(detector, (0.1, 0.6), (0.9, 0.5), (0.1, 0.6))
    assert kinds(rested) == [TurnKind.STARTED, TurnKind.ENDED] and rested[0].turn == 1


def test_after_a_question_of_the_robot_there_is_more_patience_for_one_reply():
    parts = (0.9, 0.5), (0.1, 0.7), (0.9, 0.5), (0.1, 1.2)
    impatient, patient = TurnDetector(SHORT), TurnDetector(SHORT)
    patient.expect_reply(0)
    assert len(turns_of(impatient, *parts)) == 4 and len(turns_of(patient, *parts)) == 2
    late = TurnDetector(SHORT)
    late.expect_reply(-16 * NS)
    assert len(turns_of(late, *parts)) == 4


def test_who_interrupts_the_robot_must_be_surer_and_speak_longer():
    def told(*parts):
        detector, events = TurnDetector(SHORT), []
        for probability, seconds in parts:
            for _ in range(round(seconds / FRAME_S)):
                detector.clock_ns = getattr(detector, 'clock_ns', 0) + FRAME_NS
                event = detector.push(detector.clock_ns, probability, robot_speaks=True)
                events += [event] if event else []
        return events

    assert told((0.65, 1.0), (0.1, 1.0)) == [] != turns_of(TurnDetector(SHORT), (0.65, 1.0))
    assert told((0.9, 0.25), (0.1, 1.0)) == [] != turns_of(TurnDetector(SHORT), (0.9, 0.25))
    alarm = told((0.9, 0.45), (0.1, 1.0))
    assert kinds(alarm) == [TurnKind.STARTED, TurnKind.DISCARDED]
    assert 'interrupt_speech_s' in alarm[1].reason
    # Once it has started, it goes on by the rules of any turn.
    turn = told((0.9, 0.4), (0.62, 0.4), (0.1, 1.0))
    assert kinds(turn) == [TurnKind.STARTED, TurnKind.ENDED]
    assert turn[0].stamp_ns - turn[0].start_ns == pytest.approx(0.3 * NS, abs=FRAME_NS)


def test_audio_that_stops_discards_the_turn_at_hand():
    detector = TurnDetector(SHORT)
    assert detector.stop(0, 'gone') is None
    turns_of(detector, (0.9, 1.0))
    event = detector.stop(NS, 'gone')
    assert (event.kind, event.reason) == (TurnKind.DISCARDED, 'gone')
    assert detector.state is TurnState.QUIET


@pytest.mark.parametrize(
    'end_s, decided_s, until_s',
    [
        (7.30, 7.90, 7.60),  # the second goes on: some silence behind the speech is heard
        (7.30, 7.40, 7.40),  # never more than was decided by
        (7.70, 8.30, 8.00),  # it was over: all of it is heard, and no part of the next
        (7.98, 8.58, 8.28),  # the speech may reach into the next
    ],
)
def test_what_an_answer_must_have_heard(end_s, decided_s, until_s):
    event = TurnEvent(TurnKind.ENDED, 0, int(decided_s * NS), 0, int(end_s * NS), 1.0)
    assert event.heard_until_ns == pytest.approx(until_s * NS, abs=2)


def test_frames_are_cut_alike_from_any_chunks(rng):
    samples = rng.normal(0, 0.1, 5 * RATE).astype(np.float32)
    _, wanted = FrameSplitter().push(3 * NS, samples)
    splitter, found, at = FrameSplitter(), [], 0
    while at < len(samples):
        n = int(rng.integers(1, 3000))
        jitter = int(rng.uniform(-0.01, 0.01) * NS) * bool(at)
        _, frames = splitter.push(3 * NS + at * NS // RATE + jitter, samples[at : at + n])
        found, at = found + frames, at + n
    assert [end for end, _ in found] == [end for end, _ in wanted]
    np.testing.assert_array_equal([f for _, f in found], [f for _, f in wanted])


def test_a_short_gap_is_silence_a_repetition_is_dropped_and_a_jump_is_told(rng):
    samples, splitter = rng.normal(0, 0.1, RATE).astype(np.float32), FrameSplitter()
    assert splitter.push(0, samples)[0], 'the begin'
    is_jump, frames = splitter.push(2 * NS, samples)
    assert not is_jump and not frames[5][1].any() and frames[-1][0] <= 3 * NS
    is_jump, frames = splitter.push(2 * NS + NS // 2 + 1, samples)
    assert not is_jump and frames[-1][0] <= 3.5 * NS + 10
    assert splitter.push(60 * NS, samples)[0] and splitter.push(20 * NS, samples)[0]


@pytest.fixture(scope='module')
def silero():
    return SileroOnnx()


def find(silero, samples, chunk=4000, options=DEFAULTS):
    silero.reset()
    finder, told = TurnFinder(silero, options), []
    for i in range(0, len(samples), chunk):
        told += finder.push(NS + i * NS // RATE, samples[i : i + chunk])
    return told


@pytest.mark.parametrize('snr_db', [20, 0])
def test_each_question_in_noise_is_one_turn_of_its_own(silero, rng, snr_db):
    samples, spans = conversation(rng, 4)
    loud = SPEECH_RMS * 10 ** (-snr_db / 20)
    samples = samples + loud * noise(rng, 'pink', len(samples) / RATE + 1)[: len(samples)]
    ended = [event for event in find(silero, samples) if event.kind is TurnKind.ENDED]
    assert len(ended) == len(spans)
    for event, (begin, end) in zip(ended, spans):
        assert event.start_ns / NS - 1 == pytest.approx(begin / RATE, abs=0.3)
        assert event.end_ns / NS - 1 == pytest.approx(end / RATE, abs=0.3)


def test_the_same_audio_gives_the_same_turns_in_any_chunks(silero, rng):
    samples, _ = conversation(rng, 2)
    assert find(silero, samples, 160) == find(silero, samples, 5000) != []


@pytest.mark.parametrize('word, voice', [('color', 'en-us'), ('count', 'slt'), ('What?', 'rms')])
def test_the_end_of_speech_is_found_alike_wherever_it_lies_in_a_frame(silero, word, voice):
    spoken, late = say(word, voice), []
    for begin in range(RATE, RATE + FRAME, 64):
        samples = np.zeros(begin + len(spoken) + RATE, np.float32)
        samples[begin : begin + len(spoken)] = spoken
        ended = find(silero, samples)[-1]
        assert ended.kind is TurnKind.ENDED
        late.append((ended.stamp_ns / NS - 1) - (begin + len(spoken)) / RATE)
        assert ended.stamp_ns - ended.end_ns == pytest.approx(0.6 * NS, abs=FRAME_NS)
    assert max(late) - min(late) < FRAME_S and max(late) < 0.6 + FRAME_S


def test_a_turn_goes_on_while_its_speech_is_quiet():
    detector, told = TurnDetector(SHORT), []
    for n in range(80):  # 2.6 s that the detector takes for speech, nearly all of it faint
        powers = np.full(BLOCKS, 1.0 if n < 15 else 1e-4, np.float32)
        told.append(detector.push((n + 1) * FRAME_NS, 0.9, powers=powers))
    assert detector.state is TurnState.SPEAKING
    assert kinds([event for event in told if event]) == [TurnKind.STARTED]


def test_noise_alone_is_no_turn(silero, rng):
    for kind in ('white', 'fan', 'beeps', 'knocks'):
        assert find(silero, 0.05 * noise(rng, kind, 10)) == [], kind


def test_a_library_that_is_missing_is_told_with_what_to_do(monkeypatch):
    for name in ('onnxruntime', 'pymicro_wakeword'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match='onnxruntime.*requirements-voice.txt'):
        load_detector()
    with pytest.raises(InputError, match='okay_nabu.*requirements-voice.txt'):
        WakeWord('okay_nabu')


def test_with_a_wake_word_only_what_is_addressed_to_the_robot_counts(silero):
    pause = np.zeros(2 * RATE, np.float32)
    parts = (
        say('What is on the table?', 'en-us'),  # to somebody else
        say('Okay nabu. What is on the table?', 'en-us'),
        say('And what is under it?', 'en-us'),  # at once
        np.zeros(20 * RATE, np.float32),
        say('What is on the table?', 'en-us'),  # to somebody else again
        np.zeros(20 * RATE, np.float32),
        say('Okay nabu.', 'en-us'),  # the word alone, and then the question
        say('What is on the table?', 'en-us'),
    )
    samples = np.concatenate([piece for part in parts for piece in (pause, part)] + [pause])
    silero.reset()
    finder = TurnFinder(silero, TurnOptions(end_silence_s=1.2), WakeWord('okay_nabu'))
    ended = [e for e in finder.push(0, samples) if e.kind is TurnKind.ENDED]
    assert [e.addressed for e in ended] == [False, True, True, False, False, True]
    assert finder.wakes == 2


@pytest.mark.parametrize(
    'said, is_addressed',
    (
        ('Okay nabu', False),  # the word alone: what comes next is meant
        ('Okay nabu. Go on', True),
        ('Okay nabu what is this', True),
        ('Okay nabu, what do you see?', True),
    ),
)
def test_a_wake_word_counts_once_and_a_command_at_once_behind_it_is_heard(
    silero, said, is_addressed
):
    pause = np.zeros(2 * RATE, np.float32)
    silero.reset()
    finder = TurnFinder(silero, TurnOptions(), WakeWord('okay_nabu'))
    told = finder.push(0, np.concatenate([pause, say(said, 'en-us'), pause]))
    assert [e.addressed for e in told if e.kind is TurnKind.ENDED] == [is_addressed]
    assert finder.wakes == 1


class Loudness:
    """In place of a detector and of a wake word: what is loud is speech, and is not the word."""

    def reset(self):
        """Nothing is kept."""

    def probability(self, frame):
        return 0.9 * bool(np.abs(frame).max() > 0.1)

    def hears(self, samples):
        return False


@pytest.mark.parametrize('listen', ('half_duplex', 'barge_in'))
def test_follow_up_and_patience_begin_when_the_robot_has_said_its_answer(listen):
    """A long answer is said for longer than follow_up_s after it was generated."""
    options = TurnOptions(follow_up_s=8.0, reply_s=10.0, end_silence_s=0.6, patience_s=1.2)
    finder, spoken = TurnFinder(Loudness(), options, Loudness()), (2 * NS, 30 * NS)
    finder.robot_sounds = lambda stamp_ns: spoken[0] <= stamp_ns < spoken[1]
    if listen == 'barge_in':
        finder.robot_speaks = finder.robot_sounds

    def hear(begin_s, end_s, is_loud=False):
        samples = np.full(round((end_s - begin_s) * RATE), 0.5 * is_loud, np.float32)
        told = finder.push(round(begin_s * NS), samples)
        return [event for event in told if event.kind is TurnKind.ENDED]

    hear(0, 3)
    finder.answered(is_question=True)  # generated at 3 s, said until 30 s
    hear(3, 36), hear(36, 37, is_loud=True)
    (reply,) = hear(37, 50)
    assert reply.addressed
    assert reply.stamp_ns - reply.end_ns == pytest.approx(1.2 * NS, abs=FRAME_NS)
    hear(50, 51, is_loud=True)
    (late,) = hear(51, 60)
    assert not late.addressed
    assert late.stamp_ns - late.end_ns == pytest.approx(0.6 * NS, abs=FRAME_NS)


@pytest.mark.parametrize('listen', ('always', 'barge_in'))
def test_who_speaks_into_an_answer_is_addressed_by_the_wake_word_alone(listen):
    class Word(Loudness):
        is_said = False

        def hears(self, samples):
            return self.is_said and samples.any()

    word, options = Word(), TurnOptions(follow_up_s=8.0)
    finder = TurnFinder(Loudness(), options, word)
    finder.robot_sounds = lambda stamp_ns: 3 * NS <= stamp_ns < 30 * NS
    if listen == 'barge_in':
        finder.robot_speaks = finder.robot_sounds

    def is_addressed(begin_s, with_word=False):
        """Say something for a second, with silence before and behind it."""
        told, word.is_said = [], False
        quiet_s = finder.stamp_ns / NS
        for at_s, end_s, loudness in (
            (quiet_s, begin_s, 0.0),
            (begin_s, begin_s + 0.3, 0.5),
            (begin_s + 0.3, begin_s + 1, 0.5),
            (begin_s + 1, begin_s + 2, 0.0),
        ):
            word.is_said = with_word and at_s == begin_s
            samples = np.full(round((end_s - at_s) * RATE), loudness, np.float32)
            told += finder.push(round(at_s * NS), samples)
        (ended,) = [event for event in told if event.kind is TurnKind.ENDED]
        return ended.addressed

    assert is_addressed(1, with_word=True)
    finder.answered(is_question=False)  # said from 3 s to 30 s
    assert is_addressed(6), 'shortly after the word'
    assert not is_addressed(12) and not is_addressed(20), 'a bystander'
    assert is_addressed(24, with_word=True)
    assert is_addressed(34), 'after the answer'
    assert not is_addressed(44)
