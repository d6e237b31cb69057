# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Resampling is the same for every chunking, and knows where in time its output lies."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.stream import Resampler


def resampled(samples, rate_hz, length) -> np.ndarray:
    resampler = Resampler(rate_hz)
    parts = [resampler.push(samples[i : i + length]) for i in range(0, len(samples), length)]
    return np.concatenate([*parts, resampler.flush()])


@pytest.mark.parametrize('rate_hz', [8000, 16000, 22050, 44100, 48000])
def test_chunking_changes_nothing(rate_hz, rng):
    samples = rng.normal(0, 0.1, 3 * rate_hz).astype('f4')
    whole = resampled(samples, rate_hz, len(samples))
    assert abs(len(whole) - 48000) <= 1
    for length in (rate_hz // 100, 1024, 12345, rate_hz):
        assert np.array_equal(resampled(samples, rate_hz, length), whole)


@pytest.mark.parametrize('rate_hz', [8000, 16000, 44100, 48000])
def test_tone_stays_where_it_is(rate_hz):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz).astype('f4')
    expected = np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    got = resampled(tone, rate_hz, 1000)
    assert np.abs(got - expected)[1000:-1000].max() < 1e-4


@pytest.mark.parametrize('rate_hz', [8000, 16000, 44100, 48000])
def test_lag_gives_the_time_of_the_output(rate_hz, rng):
    resampler, length, given = Resampler(rate_hz), rate_hz // 50, 0
    for i in range(100):
        begin_ns = i * 20_000_000 - resampler.lag_ns
        assert abs(begin_ns - given * 10**9 / 16000) < 1000
        assert 0 <= resampler.lag_ns < 130_000_000
        given += len(resampler.push(rng.normal(0, 0.1, length).astype('f4')))


@pytest.mark.parametrize('rate_hz', [0, -8000, 1000, 10**7])
def test_impossible_rates_are_refused(rate_hz):
    with pytest.raises(InputError, match='Hz'):
        Resampler(rate_hz)
