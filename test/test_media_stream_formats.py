# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every sample format gives the same sound, and what cannot be sound is refused in words."""

import array

import numpy as np
import pytest
from audio_signals import pcm_of as encode

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.stream import ChannelMixer, to_float


def to_float_mono(data, sample_format, channels):
    return ChannelMixer().mix(to_float(data, sample_format, channels))


WAVE = np.sin(np.arange(400) / 7).astype(np.float64) * 0.9


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize(
    'name, error',
    [
        ('u8', 1 / 256),
        ('s8', 1 / 256),
        ('s16', 1 / 32768),
        ('s24', 2e-7),
        ('s24_32', 2e-7),
        ('s32', 1e-7),
        ('f32', 1e-7),
        ('f64', 1e-7),
    ],
)
def test_every_format_gives_the_same_samples(name, error, big_endian):
    order = 'BE' if big_endian else 'LE'
    names = [name.upper() + order, name + order.lower()]
    names += [] if big_endian else [name]
    names += {
        's16': [f'S16_{order}', f'int16{order.lower()}'],
        's24': [f'S24_3{order}'],
        's24_32': [f'S24_{order}', f's24-32{order}'],
        's32': [f'S32_{order}'],
        'f32': [f'FLOAT_{order}'],
        'f64': [f'FLOAT64_{order}'],
    }.get(name, [name.upper()])
    if not big_endian:  # of NumPy and sounddevice, and of PyAudio
        numpy_name = {'u': 'uint', 's': 'int', 'f': 'float'}[name[0]] + name[1:]
        names += [numpy_name, f'pa{numpy_name.title()}']
    for written in names:
        samples = to_float_mono(encode(WAVE, name, big_endian), written, 1)
        assert samples.dtype == np.float32
        assert np.abs(samples - WAVE).max() <= error


@pytest.mark.parametrize('name', ['u8', 's8', 's16', 's24', 's24_32', 's32', 'f32', 'f64'])
def test_extremes_stay_in_range_and_silence_is_zero(name):
    samples = to_float_mono(encode([-1, 0, 1 - 2**-7], name), name, 1)
    assert samples[0] == -1 and samples[1] == 0 and 0.99 < samples[2] <= 1


@pytest.mark.parametrize('channels', [1, 2, 6])
def test_channels_are_averaged(channels):
    weights = np.arange(1, channels + 1) / channels
    interleaved = (WAVE[:, None] * weights).ravel()
    samples = to_float_mono(encode(interleaved, 'f64'), 'f64', channels)
    assert np.abs(samples - WAVE * weights.mean()).max() < 1e-6


def test_any_buffer_is_taken():
    data = encode(WAVE, 's16')
    for same in (
        bytearray(data),
        memoryview(data),
        array.array('B', data),
        np.frombuffer(data, np.int16),
        list_as_array(data),
    ):
        assert np.array_equal(to_float_mono(same, 's16', 1), to_float_mono(data, 's16', 1))
    assert to_float_mono(b'', 's16', 2).shape == (0,)


def list_as_array(data) -> array.array:
    return array.array('h', np.frombuffer(data, np.int16).tolist())


@pytest.mark.parametrize(
    'data, name, channels, words',
    [
        (b'abc', 's16', 1, '3 bytes'),
        (bytes(10), 's16', 2, '4 bytes each'),
        (bytes(4), 's16', 0, '0 channels'),
        (bytes(4), 's16', -1, '-1 channels'),
        (bytes(4), 's16', 1000, '1000 channels'),
        (bytes(4), 's12', 1, 's16'),
        (bytes(4), '', 1, 's16'),
        (bytes(4), 'S18LE', 1, 'S18LE'),
        (bytes(4), 'S16ME', 1, 'S16ME'),
        (bytes(4), 'u16', 1, 'u8, s8, s16'),
        (bytes(6), 'S24_LE', 1, '4 bytes each'),
        (np.float32([0, np.nan]).tobytes(), 'f32', 1, 'NaN'),
        (np.float64([0, -np.inf]).tobytes(), 'f64', 1, 'NaN'),
        (np.float32([0.1, -20_000]).tobytes(), 'f32', 1, r'up to 2e\+04.*divide them by 32768'),
        (np.float32([0.3, 0.2]).byteswap().tobytes(), 'f32', 1, 'byte order is wrong'),
    ],
)
def test_what_does_not_fit_is_refused_in_words(data, name, channels, words):
    with pytest.raises(InputError, match=words):
        to_float_mono(data, name, channels)


def test_floats_beyond_full_scale_are_clipped():
    assert to_float_mono(encode([3, -7.5], 'f32'), 'f32', 1).tolist() == [1, -1]
