# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever a microphone does, its worker goes on, and every second is told once and in order."""

from types import SimpleNamespace

import numpy as np
import pytest
from audio_worker import WAVE, AudioWorker

from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.units import NS

CHUNK = bytes(3200)  # 100 ms of WAVE


def tone(begin: int, count: int) -> bytes:
    """Samples of a tone at 16 kHz, 16 bits."""
    values = 0.3 * np.sin(np.arange(begin, begin + count) * 0.17)  # (count,)
    return (values * 32767).astype('<i2').tobytes()


@pytest.fixture
def worker(graph, tiny_model_dir, monkeypatch):
    worker = AudioWorker(tiny_model_dir, monkeypatch)
    yield worker
    worker.close()


@pytest.mark.parametrize('wrong', [('S16LE', 'flac'), ('S13LE', 'wave')])
def test_sound_in_a_refused_format_is_lost_second_by_second_and_may_start_over(worker, wrong):
    for _ in range(2):
        for tenth in range(30):
            worker.wait(0.1)
            worker.hear(1000 * NS + tenth * NS // 10, CHUNK, AudioFormat(16_000, 1, *wrong))
        for _ in range(10):
            worker.wait(0.1)
            worker.turn()
    lost = [(1000 + i, AudioEmbedding.LOST) for i in range(3)]
    assert [s for s in worker.seconds if s[1] == AudioEmbedding.LOST] == 2 * lost
    assert any(wrong[0] in text or wrong[1] in text for text in worker.told)
    for tenth in range(15):
        worker.wait(0.1)
        worker.hear(2000 * NS + tenth * NS // 10, CHUNK, WAVE)
    assert (2000, AudioEmbedding.OK) in worker.seconds


def turns(worker, seconds: float) -> None:
    """Let time pass in which nothing comes."""
    for _ in range(round(seconds * 10)):
        worker.wait(0.1)
        worker.turn()


@pytest.mark.parametrize('stall_s', [0.3, 0.7, 1.0])
@pytest.mark.parametrize('stamped', [True, False])
def test_a_driver_that_is_held_up_is_heard_whole(worker, stall_s, stamped):
    """It stamps when it publishes, or never, stalls, and then sends what it kept."""
    begin_s, kept, held_until = 1000.37, [], 0.0
    for k in range(200):
        worker.wait(0.05)
        worker.turn()
        now_s = begin_s + (k + 1) * 0.05
        kept.append(tone(k * 800, 800))
        if k in (43, 95, 150):
            held_until = now_s + stall_s
        while kept and now_s >= held_until - 1e-6:
            now_ns = int(now_s * NS)
            worker.hear(now_ns if stamped else None, kept.pop(0), arrived_ns=now_ns)
    turns(worker, 3.0)
    heard = [second for second, status in worker.seconds if status == AudioEmbedding.OK]
    assert heard == list(range(1000, 1011))
    assert worker.node.filled_samples == worker.node.left_out_samples == 0
    assert sum(m.restarted for m in worker.published if m.status == AudioEmbedding.OK) == 1


def test_audio_that_has_come_and_is_not_read_yet_is_no_silence(worker, monkeypatch):
    """Simulated time and the worker go on while the thread that reads `audio` is held up."""
    source, unread = SimpleNamespace(read_until=worker.instant), []
    monkeypatch.setattr(worker.node, 'input', source)
    for k in range(60):
        worker.wait(0.1, 1000.0 + (k + 1) / 10)
        unread.append((1000 * NS + k * NS // 10, tone(k * 1600, 1600)))
        if not 13 <= k < 42:
            while unread:
                worker.hear(*unread.pop(0))
            source.read_until = worker.instant
        worker.turn()
    assert worker.seconds == [(1000 + i, AudioEmbedding.OK) for i in range(5)]
    assert worker.node.filled_samples == worker.node.left_out_samples == 0


def test_a_player_that_is_held_up_while_simulated_time_begins_is_heard_whole(worker):
    """Its first chunk is read before /clock, and neither goes on for three seconds."""
    worker.wait(0.1)
    worker.hear(1000 * NS, tone(0, 1600))
    for _ in range(30):
        worker.wait(0.1, 1000.1)
        worker.turn()
    for k in range(1, 30):
        worker.wait(0.1, 1000.0 + (k + 1) / 10)
        worker.hear(1000 * NS + k * NS // 10, tone(k * 1600, 1600))
    assert worker.seconds == [(1000 + i, AudioEmbedding.OK) for i in range(2)]
    assert worker.node.filled_samples == worker.node.left_out_samples == 0


@pytest.mark.parametrize('stamped', [True, False])
@pytest.mark.parametrize('other', [AudioFormat(48_000, 2), AudioFormat(8_000, 1)])
def test_a_format_that_is_told_late_costs_one_chunk(worker, other, stamped):
    old, new = AudioFormat(16_000, 1), other
    for k in range(60):
        worker.wait(0.1)
        worker.turn()
        sent, told = (old if k < 27 else new), (old if k < 28 else new)
        values = np.repeat(np.frombuffer(tone(k * 1600, 1600), '<i2'), sent.channels)
        step = sent.sample_rate_hz / 16_000
        values = values.repeat(int(step)) if step > 1 else values[:: int(1 / step)]
        now_ns = 1000 * NS + (k + 1) * NS // 10
        worker.hear(
            now_ns - NS // 10 if stamped else None, values.tobytes(), told, arrived_ns=now_ns
        )
    turns(worker, 3.0)
    assert [s for s, status in worker.seconds if status == 0] == list(range(1000, 1006))
    chunk = 1600 * 6  # of the new format, heard in the old one
    assert worker.node.left_out_samples <= chunk and worker.node.filled_samples <= 1600 * 2


FORMATS = (
    WAVE,
    AudioFormat(48_000, 2),
    AudioFormat(8_000, 1, 'F32LE'),
    AudioFormat(16_000, 1, 'S16LE', 'flac'),
    AudioFormat(16_000, 1, 'S16LE', 'mp3'),
)


def chunk_of(rng, audio_format, seconds: float) -> bytes:
    if audio_format.coding_format != 'wave':
        return rng.bytes(800)
    count = int(audio_format.sample_rate_hz * min(seconds, 0.5)) * audio_format.channels
    values = rng.normal(0, 0.1, count)
    data = values.astype('<f4') if 'F32' in audio_format.sample_format else values * 32767
    data = data.astype('<i2') if data.dtype == float else data
    return data.tobytes() + b'\1' * (rng.random() < 0.02)


def live_a_while(worker, rng) -> int:
    """Let a microphone do what it wants; give how often it or time did something odd."""
    stamp_ns, simulated_s, jumps, odd = int(rng.integers(0, 4 * NS)), None, 0, 0
    simulated_s = 5000.0 if rng.random() < 0.3 else None
    is_stamped, audio_format = rng.random() < 0.8, FORMATS[rng.integers(0, len(FORMATS))]
    for _ in range(rng.integers(20, 120)):
        passed_s = rng.choice([0.02, 0.1, 0.1, 0.1, 0.3])
        if rng.random() < 0.1:
            passed_s, odd = rng.choice([1.0, 3.0, 30.0]), odd + 1
        stamp_ns += int(passed_s * NS)
        if simulated_s is not None:
            simulated_s += passed_s
            if rng.random() < 0.01:
                simulated_s, jumps, odd = simulated_s - rng.choice([3, 100]), jumps + 1, odd + 1
        if rng.random() < 0.03:
            stamp_ns += int(rng.choice([-100, -3, -1.2, -0.6, 0.3, 1.5, 5, 50, 1000]) * NS)
            odd += 1
        if rng.random() < 0.02:
            audio_format, odd = FORMATS[rng.integers(0, len(FORMATS))], odd + 1
        worker.wait(passed_s, simulated_s, jumps)
        if rng.random() < 0.9:
            data = chunk_of(rng, audio_format, passed_s)
            worker.hear(stamp_ns if is_stamped else None, data, audio_format)
        else:
            worker.turn()
    return odd


def test_whatever_comes_the_worker_goes_on_and_tells_each_second_once_and_in_order(worker):
    for seed in range(50):
        worker.begin()
        odd = live_a_while(worker, np.random.default_rng(seed))
        numbers = [second for second, _ in worker.seconds]
        steps = np.diff(numbers)
        assert (steps != 0).all(), (seed, numbers)
        assert (steps != 1).sum() <= 2 * odd, (seed, odd, numbers)
        for message in worker.published:
            assert (message.status == AudioEmbedding.OK) == (message.tokens > 0)
