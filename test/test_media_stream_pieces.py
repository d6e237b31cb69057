# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks of raw audio that are cut anywhere, have headers, or are no such audio at all."""

import io
import wave

import numpy as np
import pytest
from audio_signals import mp3_of, pcm_of, speech

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.media.audio.stream import NOISE_S, AudioDecoder

RATE = 16_000
FORMATS = [('s16', 1), ('s16', 2), ('s24', 1), ('s32', 1), ('f32', 1), ('s16', 6)]


def decode(chunks, name: str, channels: int) -> tuple:
    """Return (samples (n,), the sentences that were told)."""
    stream = AudioDecoder(AudioFormat(RATE, channels, f'{name.upper()}LE'))
    parts, told = [], set()
    for chunk in chunks:
        parts.append(stream.push(0, chunk)[1])
        told.add(stream.problem)
    return np.concatenate(parts), ' '.join(told)


def bytes_of(name: str, channels: int) -> bytes:
    return pcm_of(np.repeat(speech(0, 3)[:, None], channels, axis=1), name)


@pytest.mark.parametrize('name, channels', FORMATS)
def test_pieces_that_end_within_a_sample_give_the_same_audio(name, channels, rng):
    """As the buffers of GStreamer, and of a program that reads a pipe, do."""
    data = bytes_of(name, channels)
    whole, told = decode([data], name, channels)
    assert not told
    for size in (4096 - 1, 3201, 777):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        samples, told = decode(pieces, name, channels)
        assert np.array_equal(samples, whole)
        assert ('within a sample' in told) == (size % (channels * int(name[1:]) // 8) > 0)
    cuts = np.sort(rng.choice(len(data), 90, replace=False))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
    assert np.array_equal(decode(pieces, name, channels)[0], whole)


@pytest.mark.parametrize('name, channels', FORMATS[:5])
@pytest.mark.parametrize('change', ['cut off', 'a byte more'])
def test_a_piece_that_is_no_whole_number_of_samples_spoils_no_other(name, channels, change):
    data, step = bytes_of(name, channels), channels * int(name[1:]) // 8
    pieces = [data[i : i + 800 * step] for i in range(0, len(data), 800 * step)]
    loud = int(np.argmax([np.abs(speech(0, 3)[i : i + 800]).mean() for i in range(0, 48000, 800)]))
    pieces[loud] = pieces[loud][:-1] if change == 'cut off' else pieces[loud] + b'\x55'
    samples, _ = decode(pieces, name, channels)
    whole, lost = decode([data], name, channels)[0], int(change == 'cut off')
    assert np.array_equal(samples[: 800 * (loud + 1) - lost], whole[: 800 * (loud + 1) - lost])
    assert np.array_equal(samples[800 * (loud + 1) - lost :], whole[800 * (loud + 1) :])


def test_what_ends_within_a_sample_tells_what_a_sample_takes():
    _, told = decode([bytes(1600)], 's24', 2)
    assert '6 bytes each' in told and 'correct the format' in told


@pytest.mark.parametrize('is_each', [True, False])
def test_the_header_of_a_wav_file_is_not_heard(is_each):
    data, pieces = bytes_of('s16', 1), []
    for i in range(0, len(data), 3200):
        file = io.BytesIO()
        with wave.open(file, 'wb') as writer:
            writer.setparams((1, 2, RATE, 0, 'NONE', ''))
            writer.writeframes(data[i : i + 3200])
        pieces.append(file.getvalue() if is_each or not i else data[i : i + 3200])
    assert np.array_equal(decode(pieces, 's16', 1)[0], decode([data], 's16', 1)[0])


def doubt_of(data: bytes, sample_format: str, length: int = 3200) -> str:
    stream = AudioDecoder(AudioFormat(RATE, 1, sample_format))
    for i in range(0, len(data) - length + 1, length):
        try:
            stream.push(0, data[i : i + length])
        except InputError:
            pass
    return stream.doubt


@pytest.mark.parametrize('kind', ['mp3', 'other byte order', 's24'])
def test_bytes_that_are_no_samples_of_the_stated_format_are_told(kind):
    voice = np.tile(speech(0, 10), 3)
    data = {
        'mp3': lambda: mp3_of(voice, RATE),
        'other byte order': lambda: pcm_of(voice, 's16', True),
        's24': lambda: pcm_of(voice, 's24'),
    }[kind]()
    assert 'S16LE' in doubt_of(data, 'S16LE') and 'loud noise' in doubt_of(data, 'S16LE')


def test_no_sound_of_a_room_is_taken_for_a_wrong_format(rng):
    seconds = 2 * NOISE_S
    noise = rng.standard_normal(seconds * RATE)
    hum = np.sin(np.arange(seconds * RATE) * 0.02) * 0.9
    for sound in (np.tile(speech(0, 3), 2), 0.1 * noise, hum, np.cumsum(noise) / 200, 0 * noise):
        assert not doubt_of(pcm_of(np.clip(sound, -1, 0.999), 's16'), 'S16LE')
