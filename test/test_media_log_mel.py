# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The log-mel spectrum equals the official one, offline and as a stream."""

from pathlib import Path

import numpy as np
import pytest

from minicpmo_ros.media.audio import log_mel

GOLDEN = np.load(Path(__file__).with_name('golden') / 'log_mel.npz')
SAMPLES = GOLDEN['pcm'].astype(np.float32) / 32768  # 2.35 s, with digital silence inside


def stream_in_chunks(samples, length) -> np.ndarray:
    stream = log_mel.LogMelStream()
    parts = [stream.push(samples[i : i + length]) for i in range(0, len(samples), length)]
    frames = np.concatenate([*parts, stream.flush()])
    assert not len(frames) or stream.maximum == frames.max()
    return frames


def test_filter_bank_is_the_official_one():
    assert log_mel.filter_bank().shape == (80, 201)
    assert np.abs(log_mel.filter_bank() - GOLDEN['filter_bank']).max() < 1e-8


def test_whole_clip_equals_transformers():
    assert np.abs(log_mel.log_mel(SAMPLES) - GOLDEN['whole']).max() < 1e-6


def test_isolated_second_equals_transformers():
    assert np.abs(log_mel.isolated_log_mel(SAMPLES[8000:24000]) - GOLDEN['second']).max() < 1e-6


@pytest.mark.parametrize('length', [1, 160, 201, 333, 1024, 16000, 37600])
def test_streaming_equals_offline(length):
    raw = stream_in_chunks(SAMPLES, length)
    assert raw.shape == (235, 80)
    offline = log_mel.clamp_and_scale(raw, raw.max())
    assert np.abs(offline - GOLDEN['whole']).max() < 1e-6


@pytest.mark.parametrize('count', [0, 1, 100, 159, 160, 200, 201, 359, 360, 400, 560, 1600, 1601])
def test_clips_of_any_length_have_a_frame_per_160_samples(count):
    raw = stream_in_chunks(SAMPLES[:count], 50) if count else log_mel.raw_log_mel(SAMPLES[:0])
    assert raw.shape == (count // 160, 80)
    if count > 200:
        padded = np.pad(SAMPLES[:count], 200, mode='reflect')
        starts = range(0, count // 160 * 160, 160)
        expected = np.concatenate([log_mel.raw_frames(padded[i : i + 400]) for i in starts])
        assert np.abs(raw - expected).max() < 1e-6


def test_frame_comes_with_the_200th_sample_after_its_centre():
    stream = log_mel.LogMelStream()
    for given in range(1000, len(SAMPLES), 1000):
        stream.push(SAMPLES[given - 1000 : given])
        frames = (given - 200) // 160 + 1
        missing = 160 * frames + 200 - given
        following = SAMPLES[given : given + missing]
        assert stream.peek(following[:-1]).shape == (0, 80)
        assert stream.peek(following).shape == (1, 80)


def test_peek_changes_nothing(rng):
    stream, other = log_mel.LogMelStream(), log_mel.LogMelStream()
    loud = rng.normal(0, 0.5, 400).astype('f4')
    for i in range(0, 3000, 500):
        stream.peek(loud)
        assert np.array_equal(stream.push(SAMPLES[i : i + 500]), other.push(SAMPLES[i : i + 500]))
        assert stream.maximum == other.maximum


def test_silence_is_minus_one_and_a_half():
    silence = np.zeros(16000, np.float32)
    assert (log_mel.log_mel(silence) == -1.5).all()
    assert (log_mel.isolated_log_mel(silence) == -1.5).all()


def test_only_the_maximum_decides_the_clamp():
    raw = np.array([[-10, -6, 2]], np.float32)
    assert log_mel.clamp_and_scale(raw, 2).tolist() == [[-0.5, -0.5, 1.5]]
    assert log_mel.clamp_and_scale(raw, -2).tolist() == [[-1.5, -0.5, 1.5]]
