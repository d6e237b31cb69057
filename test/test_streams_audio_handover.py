# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Past 30 s: what the encoder knows then, where it begins anew, what that costs and what it says.

The sound is a steady voice of noise; a pause is cut into it. The encoders are real, with random
weights, so that rows depend on all that was heard.
"""

import math

import numpy as np
import pytest
from whisper_files import random_tensors, write

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import EngineError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.streams import AudioSecond, Status
from minicpmo_ros.streams.audio import AudioPipeline, Handover, Pauses, RollingEncoder
from minicpmo_ros.streams.pairing import UnitAssembler
from minicpmo_ros.streams.time import Instant

RATE, NS = 16000, 10**9
LAYERS = 2


@pytest.fixture(scope='module')
def backend():
    backend = Backend('cpu', threads=1)
    yield backend
    backend.close()


@pytest.fixture(scope='module')
def encoder(tmp_path_factory, backend):
    """Give a small encoder with the 30 s of the published ones."""
    tensors = random_tensors(d=32, layers=LAYERS, ffn=32, width=32, seconds=30)
    path = write(tmp_path_factory.mktemp('audio') / 'a.gguf', tensors, heads=2)
    return AudioEncoder.load(path, backend)


def voice(seconds, *pauses, floor=1e-3):
    """Give noise, louder and softer by 6 dB, at `floor` of it in the pauses (start_s, end_s)."""
    t = np.arange(int(seconds * RATE)) / RATE
    samples = np.random.default_rng(5).normal(0, 0.1, t.size) * (1.5 + 0.5 * np.sin(9 * t))
    samples[(t % 1 > 0.3) & (t % 1 < 0.35)] = 0  # where it is silent the spectrum is clamped
    for start_s, end_s in pauses:
        samples[int(start_s * RATE) : int(end_s * RATE)] *= floor
    return samples.astype(np.float32)


def hear(encoder, samples, begin_s=0, **options):
    """Give the AudioSeconds of the samples from begin_s on."""
    pipeline = AudioPipeline(encoder, **options)
    return pipeline.push(begin_s * NS, samples[begin_s * RATE :]) + pipeline.flush()


def restarts(heard):
    return [h.second for h in heard if h.restarted]


def assert_same(heard, wanted):
    """Assert that the same seconds were heard alike."""
    assert [h.second for h in heard] == [w.second for w in wanted] and heard
    for h, w in zip(heard, wanted):
        assert (
            np.abs(h.rows.astype('f4') - w.rows.astype('f4')).max() < 2e-3 * np.abs(w.rows).max()
        )


def test_the_second_stream_has_heard_the_overlap_as_a_fresh_one(encoder):
    samples = voice(58)
    samples[: 25 * RATE] *= 5  # the maximum of what was before the overlap is forgotten
    heard = hear(encoder, samples)
    assert len(heard) == 58 and {h.status for h in heard} == {Status.OK}
    assert restarts(heard) == [0], 'nothing is lost'
    assert [h.remembered_s for h in heard] == [*range(30), *range(5, 30), *range(5, 8)]
    assert_same(heard[30:55], hear(encoder, samples, 25)[5:30])
    assert_same(heard[55:], hear(encoder, samples, 50)[5:])
    first = hear(encoder, samples, 30)[0]
    assert np.abs(heard[30].rows.astype('f4') - first.rows.astype('f4')).max() > 0.01


def test_without_an_overlap_the_encoder_begins_anew_and_says_so(encoder):
    samples = voice(61)
    heard = hear(encoder, samples, handover=Handover(overlap_s=0))
    assert restarts(heard) == [0, 30, 60]
    assert_same(heard[30:60], hear(encoder, samples, 30)[:30])


def test_isolated_seconds_end_as_the_published_ones_do(encoder):
    samples = voice(59, (21.5, 22.5))
    assert restarts(hear(encoder, samples, isolated=True)) == [0, 29, 58]


def test_it_begins_anew_in_a_pause(encoder):
    samples = voice(44, (11.7, 12.3), (23.8, 24.2))
    heard = hear(encoder, samples)
    assert restarts(heard) == [0, 24], 'at 12 s there is room enough'
    assert not any(h.begins_stream for h in heard[1:]), 'and time has not jumped'
    assert_same(heard[24:], hear(encoder, samples, 24))


def test_in_a_pause_of_the_overlap_the_second_stream_takes_over_at_once(encoder):
    samples = voice(36, (26.7, 27.3))
    heard = hear(encoder, samples)
    assert restarts(heard) == [0] and heard[27].remembered_s == 2
    assert_same(heard[27:], hear(encoder, samples, 25)[2:])


@pytest.mark.parametrize(
    'pause, floor, is_pause',
    [
        ((23.8, 24.2), 1e-3, True),
        ((23.8, 24.2), 0.0, True),
        ((23.8, 24.2), 10**-1.2, True),  # 24 dB
        ((23.8, 24.2), 10**-0.8, False),  # 16 dB: noise, or a soft voice
        ((24.0, 24.4), 1e-3, False),  # the utterance before reaches to the edge
        ((23.6, 24.0), 1e-3, False),  # the one after begins at the edge
        ((24.2, 24.8), 1e-3, False),  # no edge in it
    ],
)
def test_a_pause_is_quiet_on_both_sides_of_the_edge(pause, floor, is_pause):
    pauses, samples = Pauses(Handover().pause_below_db), voice(26, pause, floor=floor)
    found = [n for n in range(26) if pauses.push(samples[n * RATE : (n + 1) * RATE])]
    assert found == ([24] if is_pause else [])


def test_the_measure_of_a_pause_is_how_loud_it_has_been_lately():
    pauses, samples = Pauses(20.0), voice(40, (20, 40), floor=10**-1.5)
    found = [n for n in range(40) if pauses.push(samples[n * RATE : (n + 1) * RATE])]
    assert found == list(range(21, 30)), '10 s later 30 dB less are what it is like here'
    silent = Pauses(20.0)
    assert [silent.push(np.zeros(RATE, np.float32)) for _ in range(3)] == [False, True, True]


def test_a_failure_in_the_overlap_loses_all_and_says_so(encoder):
    samples, failing = voice(34), []

    def between():
        if failing:
            raise EngineError('the device is gone')

    pipeline = AudioPipeline(encoder, between=between)
    heard = pipeline.push(0, samples[: 27 * RATE + 200])
    failing.append(True)
    heard += pipeline.push(None, samples[27 * RATE + 200 : 28 * RATE + 200])
    failing.clear()
    heard += pipeline.push(None, samples[28 * RATE + 200 :]) + pipeline.flush()
    assert [h.second for h in heard if h.status == Status.LOST] == [27]
    assert restarts(heard) == [0, 28]
    assert_same(heard[28:], hear(encoder, samples, 28))


def test_a_handover_that_fails_is_said_to_have_lost_what_was_heard(encoder, monkeypatch):
    def fail(_self, _other):
        raise EngineError('no memory left')

    monkeypatch.setattr('minicpmo_ros.encoders.whisper.stream.AudioStream.take_over', fail)
    heard = hear(encoder, voice(31))
    assert restarts(heard) == [0, 30] and {h.status for h in heard} == {Status.OK}


def test_a_jump_of_time_begins_both_streams_anew(encoder):
    samples = voice(40)
    pipeline = AudioPipeline(encoder)
    pipeline.push(100 * NS, samples[: 27 * RATE])  # in the overlap
    heard = pipeline.push(10 * NS, samples[10 * RATE :]) + pipeline.flush()
    heard = [h for h in heard if h.second < 100]
    assert [h.second for h in heard if h.begins_stream] == restarts(heard) == [10]
    assert_same(heard[:10], hear(encoder, samples, 10)[:10])
    assert_same(heard[-1:], hear(encoder, samples, 10)[-1:])


def test_ten_minutes_cost_a_fifth_more_and_no_memory(encoder, backend):
    calls = []
    pipeline = AudioPipeline(encoder, between=lambda: calls.append(1))
    streams = pipeline.streams
    assert streams[1].size_bytes < streams[0].size_bytes / 3
    sizes, owned, heard = set(), set(), []
    samples = voice(60)
    for minute in range(10):
        heard += pipeline.push(60 * minute * NS, samples)
        sizes.add(sum(stream.size_bytes for stream in streams))
        owned.add(backend.n_owned)
    assert len(heard) == 599 and restarts(heard) == [0]
    assert len(sizes) == 1 and len(owned) <= 2, 'what the handover makes goes with it'
    doubled = (len(calls) - LAYERS * 599) / (LAYERS + 1)  # one call more between the streams
    assert doubled == 23 * 5 and doubled <= 0.2 * 599


def test_between_is_called_between_the_streams_too(encoder):
    calls = []
    pipeline = AudioPipeline(encoder, between=lambda: calls.append(1))
    counts = []
    for n in range(27):
        pipeline.push(n * NS, voice(1))
        pipeline.flush(close=False)
        counts.append(len(calls))
    assert np.diff([0, *counts]).tolist() == [LAYERS] * 25 + [2 * LAYERS + 1] * 2


def test_an_encoder_of_few_positions_hands_over_too(tmp_path, backend):
    for seconds, restarted in ((4, [0]), (1, list(range(9)))):
        tensors = random_tensors(d=32, layers=1, ffn=32, width=32, seconds=seconds)
        path = write(tmp_path / f'{seconds}.gguf', tensors, heads=2)
        assert restarts(hear(AudioEncoder.load(path, backend), voice(9))) == restarted


def test_the_larger_maximum_of_before_does_not_reach_the_second_stream(encoder):
    encoders = RollingEncoder(encoder, False, Handover())
    loud, soft = voice(1) * 10, voice(1) * 0.01
    ahead = np.zeros(200, np.float32)
    for n in range(26):
        sampled = AudioSecond(n, loud if n < 25 else soft, ahead, begins_stream=n == 0)
        encoders.prepare_for(sampled)
        mels = encoders.mel_frames(sampled)
        encoders.step(mels, None)
    now, after = mels
    assert now.min() > after.min() + 0.5, 'a quiet detail under 80 dB of the loudest is cut off'


@pytest.mark.parametrize('pauses, restarted', [((), [0]), (((21.5, 22.5),), [0, 22])])
def test_the_window_lives_through_it(tiny_model_dir, backend, pauses, restarted):
    """Whatever the encoder does: only time that goes back clears the language model's window."""
    encoder = AudioEncoder.load(tiny_model_dir / 'audio.gguf', backend)
    heard = hear(encoder, voice(33, *pauses))
    assert restarts(heard) == restarted
    assembler = UnitAssembler(max_pending=math.inf)
    for h in heard:
        assembler.add_audio(h.second, h.rows, Instant(0.0))
    session = Session.load(
        tiny_model_dir / 'llm.gguf',
        ENGLISH,
        context_options=ContextOptions(n_ctx=2048, threads=1),
        options=SessionOptions(max_tokens=16, max_question_tokens=64),
    )
    for unit in assembler.due(Instant(math.inf)):
        session.append(unit)
    seconds = session.window.seconds
    session.close()
    assert list(seconds) == list(range(33))
