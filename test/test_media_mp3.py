# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MP3 is the same sound at the same time however it is cut, and damage moves nothing."""

import numpy as np
import pytest
from audio_signals import mp3_of, speech

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.mp3 import LONGEST_JUNK_BYTES, Mp3Stream

RATE = 16000


def mean(values):
    return values.mean(axis=1)  # (n,) of (n, channels)


def decoded(data, length=10**9, stream=None):
    """Push in pieces; give the samples and what was told."""
    stream, parts, problems = stream or Mp3Stream(mean), [], set()
    for i in range(0, len(data), length):
        parts.append(stream.push(data[i : i + length]))
        problems |= {stream.problem} - {''}
    return np.concatenate([*parts, stream.flush()]), problems


@pytest.fixture(scope='module')
def mp3():
    return mp3_of(speech(0, 6), RATE)


@pytest.mark.parametrize('length', [1, 79, 288, 4096])
def test_pieces_may_end_anywhere(mp3, length):
    whole, _ = decoded(mp3)
    pieces, problems = decoded(mp3, length)
    assert np.array_equal(pieces, whole) and not problems


@pytest.mark.parametrize('rate_hz, channels', [(16000, 1), (44100, 2), (48000, 1)])
@pytest.mark.parametrize('tagged', [False, True])
def test_sound_stays_where_it_was(rate_hz, channels, tagged):
    t = np.arange(3 * rate_hz) / rate_hz
    chirp = (0.3 * np.sin(2 * np.pi * (300 + 400 * t) * t)).astype('f4')
    stream = Mp3Stream(mean)
    data = mp3_of(np.tile(chirp, (channels, 1)), rate_hz, 128_000, tagged)
    samples, problems = decoded(data, 1000, stream)
    end = 2 * rate_hz
    likeness = np.correlate(samples[: end + 400], chirp[400:end], 'valid')  # (801,)
    assert np.argmax(likeness) == 400 and not problems
    assert abs(len(samples) - len(chirp)) < 2400


def test_lag_gives_the_time_of_the_output(mp3):
    # A source of a constant bit rate: its stamps are the place in the bytes.
    stream, given, frame_s = Mp3Stream(mean), 0, 576 / RATE
    for i in range(0, 40_000, 500):
        if i > 5000:
            begin_s = i * 8 / 64_000 - stream.lag_ns / 1e9
            assert abs(begin_s - given / RATE) < frame_s / 4
        given += len(stream.push(mp3[i : i + 500]))
    assert 0 <= stream.lag_ns <= 0.11e9  # the delay and a frame


def test_damage_is_silence_of_its_length(mp3, rng):
    whole, _ = decoded(mp3)
    damaged = bytearray(mp3)
    damaged[20_000:21_000] = rng.integers(0, 255, 1000).astype('u1').tobytes()
    samples, problems = decoded(bytes(damaged), 400)
    assert len(samples) == len(whole)
    assert len(problems) >= 1 and 'damaged' in ''.join(problems)
    assert np.array_equal(samples[: 2 * RATE], whole[: 2 * RATE])
    assert np.abs(samples[-2 * RATE :] - whole[-2 * RATE :]).max() < 1e-3


def test_a_stream_may_be_joined_anywhere(mp3):
    whole, _ = decoded(mp3)
    stream, parts = Mp3Stream(mean), []
    for i in range(10_123, len(mp3), 700):
        try:
            parts.append(stream.push(mp3[i : i + 700]))
        except InputError:
            assert not parts
    samples = np.concatenate(parts)
    assert np.abs(samples[-RATE:] - whole[-RATE:]).max() < 1e-3


@pytest.mark.parametrize('junk', [b'hello world ' * 1000, bytes(20_000), b'\xff' * 20_000])
def test_what_is_no_mp3_is_refused_and_not_kept(mp3, junk):
    stream = Mp3Stream(mean)
    told = 0
    for _ in range(50):
        try:
            stream.push(junk)
        except InputError as error:
            told += 'MP3' in str(error)
        assert stream.pending_bytes <= LONGEST_JUNK_BYTES
    assert told >= 20
    samples, _ = decoded(mp3, 400, stream)
    assert np.abs(samples).max() > 0.1


def test_another_rate_is_another_stream(mp3):
    stream = Mp3Stream(mean)
    stream.push(mp3)
    assert stream.rate_hz == RATE
    other = mp3_of(np.tile(speech(0, 6), 2), 48000)
    parts = []
    for i in range(0, len(other), 500):
        try:
            parts.append(stream.push(other[i : i + 500]))
        except InputError as error:
            assert '16000' in str(error) or 'damaged' in str(error)
    assert stream.rate_hz == 48000 and np.abs(np.concatenate(parts)).max() > 0.1


def test_empty_pieces_change_nothing(mp3):
    stream = Mp3Stream(mean)
    assert not len(stream.push(b''))
    assert len(stream.push(mp3)) > 5 * RATE
    assert not len(stream.push(b'')) and len(stream.push(mp3)) > 5 * RATE
