# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One channel out of several: their mean, the one chosen, never the silence of opposite ones."""

import numpy as np
import pytest
from audio_signals import mp3_of, pcm_of, speech

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import AudioFormat, parse_channel
from minicpmo_ros.media.audio.stream import AudioDecoder, ChannelMixer

RATE = 16_000


def array_microphone(rng) -> np.ndarray:
    """Give (n, 6): processed voice, four raw microphones, and what the loudspeaker plays."""
    voice, music = speech(0, 2), 0.5 * rng.standard_normal(2 * RATE).astype('f4')  # (n,)
    raw = [0.4 * voice + 0.15 * music + 0.02 * rng.standard_normal(len(voice)) for _ in range(4)]
    return np.stack([voice, *raw, music], axis=1).clip(-1, 1).astype(np.float32)


def heard(values, channel=None, length=480):
    stream = AudioDecoder(AudioFormat(RATE, values.shape[1], 'F32LE'), channel)
    data, step = pcm_of(values, 'f32'), 4 * values.shape[1] * length
    parts = [stream.push(0, data[i : i + step])[1] for i in range(0, len(data), step)]
    return np.concatenate(parts), stream.mixer.problem


@pytest.mark.parametrize('channel', [0, 3, 5])
def test_the_chosen_channel_of_an_array_is_heard_and_no_other(rng, channel):
    values = array_microphone(rng)
    samples, problem = heard(values, channel)
    assert np.array_equal(samples, values[:, channel]) and not problem


def test_the_mean_is_heard_where_none_is_chosen(rng):
    values = array_microphone(rng)
    samples, problem = heard(values)
    assert np.allclose(samples, values.mean(axis=1), atol=1e-6) and not problem


@pytest.mark.parametrize('length', [160, 1600, 32_000])
@pytest.mark.parametrize('order', [(1, -1), (1, -1, 1, -1), (-1, 0.98)])
def test_channels_in_opposite_phase_are_told_and_one_is_heard(order, length):
    values = np.stack([speech(0, 2) * k for k in order], axis=1)  # (n, channels)
    samples, problem = heard(values, length=length)
    assert 'cancel each other' in problem and 'audio.channel' in problem
    # All but what was too quiet or short to tell.
    begin = np.argmax(np.abs(speech(0, 2)) > 0.01) + 1600
    assert np.array_equal(samples[begin:], values[begin:, int(problem.split('channel ')[1][0])])


@pytest.mark.parametrize('channels', [2, 4, 6])
@pytest.mark.parametrize('kind', ['square', 'stuck', 'overdriven'])
def test_a_channel_at_full_scale_is_told_and_left_out(channels, kind, rng):
    voice = 0.5 * speech(0, 4)
    bad = {
        'square': np.sign(np.sin(np.arange(len(voice)) * 0.9)),
        'stuck': np.ones(len(voice)),
        'overdriven': np.clip(9 * rng.standard_normal(len(voice)), -1, 1),
    }[kind]
    values = np.stack([voice] * (channels - 1) + [bad], axis=1).astype(np.float32)
    samples, problem = heard(values)
    assert f'channel {channels - 1} is at full scale' in problem and 'audio.channel' in problem
    assert np.allclose(samples[RATE:], voice[RATE:], atol=1e-6)
    mended = np.stack([voice] * channels, axis=1).astype(np.float32)
    assert not heard(np.concatenate([values, mended]))[1]


def test_loud_speech_in_all_channels_is_no_broken_microphone():
    voice = np.clip(40 * speech(0, 4), -1, 1)
    values = np.stack([voice, voice, 0.9 * voice], axis=1).astype(np.float32)
    assert (
        'full scale' not in heard(values * 0.5)[1]
        and 'full scale' not in heard(np.stack([voice] * 3, axis=1).astype(np.float32))[1]
    )


@pytest.mark.parametrize('kind', ['same', 'one silent', 'unlike', 'silence'])
def test_channels_that_do_not_cancel_are_never_told_to(kind, rng):
    voice = speech(0, 2)
    channels = {
        'same': (voice, voice),
        'one silent': (voice, 0 * voice),
        'unlike': (voice, 0.1 * rng.standard_normal(len(voice))),
        'silence': (1e-4 * voice, -1e-4 * voice),
    }[kind]
    values = np.stack(channels, axis=1).astype(np.float32)  # (n, 2)
    samples, problem = heard(values)
    assert not problem and np.allclose(samples, values.mean(axis=1), atol=1e-6)


def test_a_channel_of_mp3_is_heard_too():
    left, right = speech(0, 2), 0 * speech(0, 2)
    data = mp3_of(np.stack([left, right]), RATE, 128_000)
    levels = []
    for channel in (0, 1):
        stream = AudioDecoder(AudioFormat(0, 0, '', 'mp3'), channel)
        levels.append(np.abs(stream.push(0, data)[1]).max())
    assert levels[0] > 0.1 > 100 * levels[1]


def test_a_channel_that_is_not_there_is_refused_with_the_number_of_those_that_are():
    with pytest.raises(InputError, match='audio.channel is 6, but the audio has 6 channels'):
        heard(np.zeros((100, 6), np.float32), 6)
    assert ChannelMixer(0).mix(np.ones((3, 1), np.float32)).shape == (3,)


def test_what_a_channel_may_be_called():
    assert [parse_channel(text) for text in ('mean', ' Mean', '0', '31')] == [None, None, 0, 31]
    for text in ('', '-1', 'left', '1.0', '0,1', '²'):
        with pytest.raises(InputError, match='allowed are mean'):
            parse_channel(text)
