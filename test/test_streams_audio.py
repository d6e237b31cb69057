# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every second of sound gives its rows, the same whatever the chunking, or says why not."""

import math

import numpy as np
import pytest

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.media.audio.log_mel import clamp_and_scale, isolated_log_mel, raw_log_mel
from minicpmo_ros.streams import AudioSecond, Status
from minicpmo_ros.streams.audio import AudioPipeline

RATE = 16000
NS = 10**9
WIDTH = 8


class FakeEncoder:
    """Checks what it is given as the real one does; its rows tell the mel they came from."""

    max_seconds = 30
    scale = 1.0

    def __init__(self):
        self.mels, self.spent_s = [], 0.0

    def stream(self, isolated=False, max_seconds=None):
        return FakeStream(self, isolated, max_seconds)


class FakeStream:
    def __init__(self, encoder, isolated, max_seconds):
        self._encoder, self._isolated, self.seconds = encoder, isolated, 0
        self.max_seconds = max_seconds or encoder.max_seconds

    def restart(self):
        self.seconds = 0

    def take_over(self, other):
        self.seconds = other.seconds
        self._encoder.spent_s += 0.25

    def step(self, mel, between=None):
        assert mel.shape == ((100, 80) if self._isolated else (103, 80))
        assert mel.dtype == np.float32 and np.abs(mel).max() < 100
        assert self.seconds < self.max_seconds
        if between:
            between()
        self.seconds += 1
        self._encoder.spent_s += 1
        self._encoder.mels.append(mel)
        if self._encoder.scale is None:
            raise EngineError('the device is gone')
        return np.resize(mel, (25, WIDTH)).astype(np.float32) * self._encoder.scale


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture(scope='module')
def tiny_encoder(tiny_model_dir):
    from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
    from minicpmo_ros.ggml.runtime import Backend
    from minicpmo_ros.modelset.directory import ModelDirectory

    backend = Backend('cpu', threads=1)
    return AudioEncoder.load(ModelDirectory.open(tiny_model_dir).audio_path, backend)


def sound(seconds, rng) -> np.ndarray:
    """Noise that grows louder and softer."""
    t = np.arange(int(seconds * RATE)) / RATE
    return (rng.normal(0, 0.2, t.size) * np.abs(np.sin(1.7 * t + 0.3))).astype('f4')


def hear(pipeline, samples, length=None, begin_ns=0) -> list:
    length = length or len(samples)
    heard = [
        h
        for i in range(0, len(samples), length)
        for h in pipeline.push(begin_ns + i * NS // RATE, samples[i : i + length])
    ]
    return heard + pipeline.flush()


def test_rows_do_not_depend_on_chunking(tiny_encoder, rng):
    samples = sound(5.3, rng)
    whole = hear(AudioPipeline(tiny_encoder), samples)
    assert [h.second for h in whole] == [0, 1, 2, 3, 4, 5]
    assert {h.rows.shape for h in whole} == {(25, tiny_encoder.width)}
    assert {h.rows.dtype for h in whole} == {np.dtype(np.float16)}
    for length in (160, 1023, 16000, 40000):
        for a, b in zip(hear(AudioPipeline(tiny_encoder), samples, length), whole):
            assert np.array_equal(a.rows, b.rows)
            assert (a.second, a.level_dbfs, a.restarted) == (b.second, b.level_dbfs, b.restarted)


def test_rows_depend_on_the_sound_and_on_what_was_before(tiny_encoder, rng):
    samples = sound(3, rng)
    rows = [h.rows for h in hear(AudioPipeline(tiny_encoder), samples)]
    muted = [h.rows for h in hear(AudioPipeline(tiny_encoder), np.zeros_like(samples))]
    later = [h.rows for h in hear(AudioPipeline(tiny_encoder), samples[RATE:])]
    for n in range(3):
        assert np.abs(rows[n] - muted[n]).max() > 0.01
    assert np.abs(rows[1] - later[0]).max() > 0.001  # the same second, without a past


def test_encoder_reads_the_offline_spectrum(encoder, rng):
    samples = sound(6.0, rng)
    samples[:15900] *= 1e-5  # the loudest of second 0 is in what follows it
    hear(AudioPipeline(encoder), samples, 777)
    # What offline sees beyond the end is the look-ahead's silence.
    raw = raw_log_mel(np.pad(samples, (0, 400)))
    assert len(encoder.mels) == 6
    for n, mel in enumerate(encoder.mels):
        seen = raw[max(0, 100 * n - 2) : 100 * n + 101]
        maximum = raw[: 100 * n + 101].max()
        assert np.abs(mel[-len(seen) :] - clamp_and_scale(seen, maximum)).max() < 1e-6


def test_isolated_second_reads_its_own_spectrum_without_waiting(encoder, rng):
    samples = sound(3.0, rng)
    pipeline = AudioPipeline(encoder, isolated=True)
    assert len(pipeline.push(0, samples)) == 3
    for n, mel in enumerate(encoder.mels):
        assert np.array_equal(mel, isolated_log_mel(samples[RATE * n : RATE * (n + 1)]))


def test_second_is_encoded_200_samples_after_its_end(encoder, rng):
    pipeline = AudioPipeline(encoder)
    samples = sound(1.1, rng)
    assert pipeline.push(0, samples[: RATE + 199]) == []
    assert len(pipeline.push(None, samples[RATE + 199 : RATE + 200])) == 1


def test_flush_gives_the_waiting_second_and_the_stream_goes_on_exactly(encoder, rng):
    samples = sound(3.0, rng)
    pipeline = AudioPipeline(encoder)
    assert pipeline.push(0, samples[:RATE]) == []
    (first,) = pipeline.flush(close=False)
    rest = hear(pipeline, samples[RATE:], begin_ns=NS)
    assert [h.second for h in (first, *rest)] == [0, 1, 2]
    raw = raw_log_mel(np.pad(samples, (0, 400)))
    expected = clamp_and_scale(raw[98:201], raw[:201].max())
    # The frames before second 1 are those of the sound that came, not of the silence taken for it.
    assert np.abs(encoder.mels[1] - expected).max() < 1e-6


def test_stream_restarts_after_a_long_gap_or_a_step_back(tiny_encoder, rng):
    samples = sound(2.5, rng)
    pipeline = AudioPipeline(tiny_encoder)
    first = pipeline.push(0, samples)
    for begin_s in (10, 1):
        again = hear(pipeline, samples, begin_ns=begin_s * NS)[-3:]
        assert [h.second - begin_s for h in again] == [0, 1, 2]
        assert [h.restarted for h in again] == [True, False, False]
        assert [h.begins_stream for h in again] == [True, False, False]
        assert np.array_equal(again[0].rows, first[0].rows)
        assert np.array_equal(again[1].rows, first[1].rows)


def test_short_gap_is_silence_in_the_same_stream(encoder, rng):
    samples = sound(3, rng)
    pipeline = AudioPipeline(encoder)
    heard = pipeline.push(0, samples[:20000]) + hear(
        pipeline, samples[24800:], begin_ns=24800 * NS // RATE
    )
    filled = samples.copy()
    filled[20000:24800] = 0
    assert [h.gap_samples for h in heard] == [0, 4800, 0]
    assert [h.restarted for h in heard] == [True, False, False]
    for a, b in zip(heard, hear(AudioPipeline(FakeEncoder()), filled)):
        assert np.array_equal(a.rows, b.rows)


@pytest.mark.parametrize(
    'scale, words',
    [(np.nan, 'intact'), (1e6, 'intact'), (-1e6, 'intact'), (None, 'device is gone')],
)
def test_what_cannot_be_used_is_lost_and_the_encoder_begins_anew(encoder, scale, words, rng):
    pipeline = AudioPipeline(encoder)
    samples = sound(4.1, rng)
    (ok,) = pipeline.push(0, samples[:17000])
    encoder.scale = scale
    (lost,) = pipeline.push(None, samples[17000:33000])
    encoder.scale = 1.0
    again, then = pipeline.push(None, samples[33000:])[:2]
    assert (lost.status, lost.rows, lost.second) == (Status.LOST, None, 1)
    assert words in lost.reason
    assert [h.status for h in (ok, again, then)] == [Status.OK] * 3
    assert [h.restarted for h in (ok, lost, again, then)] == [True, False, True, False]
    assert not again.begins_stream, 'time has not jumped'


@pytest.mark.parametrize('amplitude', [0, 1e-4, 1.0, 1e30])
def test_any_finite_sound_is_encoded(tiny_encoder, amplitude):
    square = np.float32(amplitude) * np.sign(np.sin(np.arange(2 * RATE) / 9)).astype('f4')
    heard = hear(AudioPipeline(tiny_encoder), square)
    assert [h.status for h in heard] == [Status.OK] * 2
    level = 20 * math.log10(amplitude) if amplitude else -math.inf
    assert heard[1].level_dbfs == pytest.approx(level, abs=0.01)


def test_not_finite_samples_are_refused_and_change_nothing(encoder, rng):
    samples = sound(2, rng)
    pipeline = AudioPipeline(encoder)
    heard = pipeline.push(0, samples[:20000])
    with pytest.raises(InputError, match='NaN'):
        pipeline.push(None, np.full(100, np.inf, np.float32))
    heard += pipeline.push(None, samples[20000:]) + pipeline.flush()
    for a, b in zip(heard, hear(AudioPipeline(FakeEncoder()), samples)):
        assert np.array_equal(a.rows, b.rows)


def test_between_is_called_and_ends_the_push(encoder, rng):
    calls = []
    hear(AudioPipeline(encoder, between=lambda: calls.append(1)), sound(3, rng))
    assert len(calls) == 3

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hear(AudioPipeline(encoder, between=stop), sound(3, rng))


def test_a_second_that_is_too_late_is_not_encoded_and_the_next_one_begins_anew(encoder, rng):
    heard = hear(AudioPipeline(encoder, is_too_late=lambda second: second == 1), sound(4, rng))
    assert [h.second for h in heard] == [0, 1, 2, 3]
    assert [h.status.name for h in heard] == ['OK', 'OVERLOADED', 'OK', 'OK']
    assert heard[1].rows is None and heard[1].encode_ms == 0
    assert [h.remembered_s for h in heard] == [0, 0, 0, 1]


def test_encode_ms_counts_all_that_the_encoder_did(encoder, rng, monkeypatch):
    monkeypatch.setattr('minicpmo_ros.streams.audio.perf_counter', lambda: encoder.spent_s)
    heard = hear(AudioPipeline(encoder), sound(32, rng) + 0.1)
    assert [h.encode_ms for h in heard] == [1000] * 25 + [2000] * 5 + [1250] + [1000]


def test_timings_and_an_empty_second(encoder, rng):
    (heard,) = hear(AudioPipeline(encoder), sound(1, rng))
    assert heard.preprocess_ms > 0 and heard.encode_ms > 0
    empty = AudioSecond(7)
    assert (empty.status, empty.rows, empty.level_dbfs) == (Status.EMPTY, None, -math.inf)
