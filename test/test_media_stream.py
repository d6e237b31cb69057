# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever the driver's format, the same 16 kHz come out; wrong formats are refused in words."""

import numpy as np
import pytest
from audio_signals import mp3_of, pcm_of, speech

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.media.audio.stream import AudioDecoder

RATE = 16000
WAVE = AudioFormat(RATE, 1)


def heard(audio_format, data, length=3200):
    stream = AudioDecoder(audio_format)
    parts = [stream.push(i, data[i : i + length])[1] for i in range(0, len(data), length)]
    return np.concatenate([*parts, stream.flush()])


@pytest.mark.parametrize('coding', ['wave', 'WAVE', 'raw', 'PCM', 'wav', ''])
def test_names_of_raw_sound(coding):
    data = pcm_of(speech(0, 1), 's16')
    assert np.array_equal(heard(AudioFormat(RATE, 1, 'S16LE', coding), data), heard(WAVE, data))


def test_mp3_says_itself_what_it_is():
    data = mp3_of(np.repeat(speech(0, 4), 3)[None].repeat(2, 0), 48000, 128_000)
    for said in (AudioFormat(0, 0, '', 'mp3'), AudioFormat(16000, 1, 'S16LE', 'MP3')):
        samples = heard(said, data, 1000)
        assert abs(len(samples) - 4 * RATE) < 1200
        likeness = np.corrcoef(samples[: 3 * RATE], speech(0, 4)[: 3 * RATE])
        assert likeness[0, 1] > 0.9


@pytest.mark.parametrize(
    'said, words',
    [
        (AudioFormat(0, 1), '0 Hz'),
        (AudioFormat(RATE, 0), '0 channels'),
        (AudioFormat(RATE, 1, 'S13BE'), 'S13BE'),
        (AudioFormat(RATE, 1, '', 'opus'), 'opus'),
        (AudioFormat(RATE, 1, 'F32LE'), 'NaN'),
    ],
)
def test_wrong_formats_are_refused_in_words(said, words):
    with pytest.raises(InputError, match=words):
        AudioDecoder(said).push(0, b'\xff' * 1600)


def test_durations_are_known_before_decoding():
    assert AudioFormat(48000, 2, 'S24LE').duration_s(48000 * 6) == 1
    for bitrate in (128_000, 128):
        assert AudioFormat(0, 0, '', 'mp3', bitrate=bitrate).duration_s(16_000) == 1
    for senseless in (
        AudioFormat(0, 1),
        AudioFormat(1, 1),  # a second chunk of it would seem to last for minutes
        AudioFormat(RATE, 255),
        AudioFormat(RATE, 1, 'x'),
        AudioFormat(RATE, 1, '', 'x'),
    ):
        assert senseless.duration_s(1000) == 0
    for bitrate in (1, 2**32 - 1):
        assert AudioFormat(0, 0, '', 'mp3', bitrate=bitrate).duration_s(8_000) == 1


@pytest.mark.parametrize('said, data', [
    (AudioFormat(44100, 1), pcm_of(np.repeat(speech(0, 3), 3), 's16')),
    (AudioFormat(0, 0, '', 'mp3'), mp3_of(speech(0, 3), RATE)),
])  # fmt: skip
def test_after_a_flush_another_stream_may_follow(said, data):
    stream = AudioDecoder(said)
    first = np.concatenate([stream.push(0, data)[1], stream.flush()])
    assert stream.lag_ns == 0
    again = np.concatenate([stream.push(9, data)[1], stream.flush()])
    assert np.array_equal(again, first)


@pytest.mark.parametrize('length', [50, 96, 1000, 8000])
@pytest.mark.parametrize('said, data', [
    (AudioFormat(44100, 1, 'U8'), pcm_of(np.repeat(speech(0, 3), 3), 'u8')),
    (AudioFormat(48000, 1, 'S16LE'), pcm_of(np.repeat(speech(0, 3), 3), 's16')),
    (AudioFormat(0, 0, '', 'mp3'), mp3_of(speech(0, 3), RATE)),
    (AudioFormat(0, 0, '', 'mp3', 64), mp3_of(np.repeat(speech(0, 3), 3), 44100)),
])  # fmt: skip
def test_stamps_go_with_the_samples(said, data, length):
    begin_ns, stream, given = 7 * 10**9, AudioDecoder(said), 0
    for i in range(0, len(data), length):
        stamp_ns, samples = stream.push(
            begin_ns + int(said.duration_s(i) * 1e9), data[i:][:length]
        )
        expected_ns = begin_ns + given * 10**9 // RATE
        if len(samples):
            assert (given or stamp_ns >= begin_ns) and abs(stamp_ns - expected_ns) < 2_000_000
        given += len(samples)
    assert given > 2.8 * RATE
