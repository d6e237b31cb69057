# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Audio that comes late, in bursts or out of order goes where it belongs, and none is lost."""

import numpy as np
import pytest

from minicpmo_ros.streams.segmenter import SecondSplitter

RATE, NS = 16_000, 10**9
BEGIN_S = 1000.3  # of the recording
LEFT_OUT = ('gap_samples', 'drift_samples', 'overlap_samples')


def recording(seconds: float) -> np.ndarray:
    """Samples that tell their place: k + 1 at index k, exact in float32."""
    return np.arange(1, int(seconds * RATE) + 1, dtype=np.float32)


def push_all(splitter, chunks) -> list:
    """Return the seconds of all (stamp_s, samples)."""
    seconds = [s for stamp, part in chunks for s in splitter.push(round(stamp * NS), part)]
    return seconds + splitter.flush()


def split(chunks) -> tuple:
    """Give all that is heard of (stamp_s, samples), (n,), and how many samples were done what."""
    seconds = push_all(SecondSplitter(), chunks)
    assert [s.second for s in seconds] == list(range(seconds[0].second, seconds[-1].second + 1))
    assert sum(s.begins_stream for s in seconds) == 1
    heard = np.concatenate([s.samples for s in seconds])
    return heard, {what: sum(getattr(s, what) for s in seconds) for what in LEFT_OUT}


def holds(chunks, samples) -> None:
    heard, counts = split(chunks)
    assert np.array_equal(heard[heard > 0], samples)  # each once, in order
    assert not any(counts.values()), counts


def stamped_on_arrival(samples, length, rng, stall_s, every_s=4.0, apart_s=2e-4):
    """A driver that stamps when it publishes, is held up at times, and then sends what it kept."""
    chunks, free_s, newest_s = [], 0.0, 0.0
    stall_at_s = rng.exponential(every_s)
    for i in range(0, len(samples), length):
        ready_s = BEGIN_S + min(i + length, len(samples)) / RATE
        is_last = i + 4 * RATE > len(samples)  # what follows a burst says where it belongs
        if ready_s - BEGIN_S > stall_at_s and not is_last:
            free_s, stall_at_s = ready_s + stall_s, stall_at_s + rng.exponential(every_s)
        newest_s = max(ready_s, free_s, newest_s + apart_s) + rng.random() * 1e-4
        chunks.append((newest_s, samples[i : i + length]))
    return chunks


@pytest.mark.parametrize('length', [160, 320, 1024, 1600])
@pytest.mark.parametrize('stall_s', [0.05, 0.15, 0.25, 0.5, 1.0])
@pytest.mark.parametrize('apart_s', [2e-5, 1e-3])
def test_a_driver_that_stamps_on_arrival_and_is_held_up_loses_nothing(
    length, stall_s, apart_s, rng
):
    samples = recording(30)
    for _ in range(2):
        holds(stamped_on_arrival(samples, length, rng, stall_s, apart_s=apart_s), samples)


@pytest.mark.parametrize('stall_s', [0.15, 0.3, 0.5, 1.0, 1.6])
@pytest.mark.parametrize('length', [320, 800])
def test_a_driver_that_polls_its_device_and_is_held_up_loses_nothing(length, stall_s, rng):
    """Each chunk is some milliseconds late by itself, the first one too."""
    samples = recording(14)
    for _ in range(20):
        chunks, now_s = [], 0.0
        while len(chunks) * length < len(samples):
            stalled = any(0 <= now_s - at_s < stall_s for at_s in (3.0, 6.0, 9.0))
            while not stalled and (len(chunks) + 1) * length <= min(now_s * RATE, len(samples)):
                part = samples[len(chunks) * length :][:length]
                chunks.append((BEGIN_S + now_s, part))
                now_s += rng.random() * 2e-4
            now_s += 0.01 + rng.exponential(0.01)
        holds(chunks, samples)


@pytest.mark.parametrize('late_s', [0.03, 0.06, 0.09])
def test_a_stream_whose_first_chunk_is_late_alone_begins_earlier(late_s):
    samples = recording(5)
    chunks = [(BEGIN_S + late_s * (not i) + i / RATE, samples[i : i + 1600])
              for i in range(0, len(samples), 1600)]  # fmt: skip
    holds(chunks, samples)
    (first, *_) = push_all(SecondSplitter(), chunks)
    assert np.argmax(first.samples > 0) == round(BEGIN_S % 1 * RATE)


@pytest.mark.parametrize('length', [320, 1024])
def test_a_burst_that_catches_up_slowly_loses_nothing(length, rng):
    samples = recording(20)  # after a stall, twice as fast as recorded
    chunks = stamped_on_arrival(samples, length, rng, 0.6, apart_s=length / RATE / 2)
    holds(chunks, samples)


@pytest.mark.parametrize('length', [160, 800, 1600])
def test_what_a_driver_lost_in_a_stall_is_silence_of_its_length(length, rng):
    """The buffer of the sound card has half a second; of a second the rest is gone."""
    samples, lost = recording(10), slice(5 * RATE, 5 * RATE + RATE // 2)
    chunks = []
    for i in range(0, len(samples), length):
        if lost.start <= i < lost.stop:
            continue
        ready_s = BEGIN_S + (i + length) / RATE
        late = lost.start <= i < lost.start + RATE
        chunks.append((max(ready_s, BEGIN_S + 6.0 + i * 1e-8) if late else ready_s,
                       samples[i : i + length]))  # fmt: skip
    heard, counts = split(chunks)
    kept = np.concatenate([part for _, part in chunks])
    assert np.array_equal(heard[heard > 0], kept)
    assert abs(counts['gap_samples'] + counts['drift_samples'] - RATE // 2) <= 2 * length
    # All after it is where it was recorded, to a chunk.
    assert abs(np.argmax(heard == samples[-1]) - np.argmax(heard == samples[0])
               - len(samples)) < 2 * length  # fmt: skip


def shuffled(samples, length, rng, longest_s, share):
    """Chunks with true stamps, of which a share comes up to `longest_s` late."""
    stamps = BEGIN_S + np.arange(0, len(samples), length) / RATE
    late_s = rng.uniform(0, longest_s, len(stamps)) * (rng.random(len(stamps)) < share)
    late_s[0] = 0.0  # where a stream begins, nothing is known of what is missing
    order = np.argsort(stamps + late_s, kind='stable')
    return [(stamps[k], samples[k * length : (k + 1) * length]) for k in order]


@pytest.mark.parametrize('length', [160, 800, 1600, 3200])
@pytest.mark.parametrize('share', [0.02, 0.2, 0.6])
def test_chunks_out_of_order_go_where_they_belong(length, share, rng):
    samples = recording(20)
    for _ in range(3):
        holds(shuffled(samples, length, rng, 0.25, share), samples)


@pytest.mark.parametrize('length', [160, 1600])
def test_a_chunk_too_late_for_its_second_is_left_out_and_moves_nothing(length):
    samples = recording(8)
    chunks = [(BEGIN_S + i / RATE, samples[i : i + length]) for i in range(0, 8 * RATE, length)]
    chunks.insert(6 * RATE // length, chunks.pop(3 * RATE // length))
    heard, counts = split(chunks)
    assert counts['overlap_samples'] == length
    assert np.array_equal(heard[heard > 0], np.delete(samples, slice(3 * RATE, 3 * RATE + length)))
    assert heard[-1 - np.argmax(heard[::-1] > 0)] == samples[-1]
    positions = np.flatnonzero(np.isin(heard, samples[[0, -1]]))
    assert abs(positions[1] - positions[0] - len(samples)) <= max(length, 320)


@pytest.mark.parametrize('length', [160, 1600])
def test_chunks_with_one_stamp_for_several_are_all_heard(length):
    """A driver that stamps by the transfer, not by the chunk."""
    samples = recording(10)
    starts = range(0, len(samples), length)
    chunks = [(BEGIN_S + (k // 4 * 4 * length) / RATE, samples[i : i + length])
              for k, i in enumerate(starts)]  # fmt: skip
    heard, counts = split(chunks)
    assert np.array_equal(heard[heard > 0], samples) and not counts['overlap_samples']


@pytest.mark.parametrize('length', [160, 800, 3200])
@pytest.mark.parametrize('held_up_s', [0.1, 0.5, 1.3, 1.9])
@pytest.mark.parametrize('begin_s', [1000.0, BEGIN_S, 1000.95])
def test_a_stream_whose_first_chunks_come_in_a_burst_begins_earlier(length, held_up_s, begin_s):
    """The driver was held up as it began; the seconds before its first stamp are heard whole."""
    samples = recording(5)
    ready_s = begin_s + np.arange(length, len(samples) + 1, length) / RATE
    stamps = np.maximum(ready_s, begin_s + held_up_s + np.arange(len(ready_s)) * 1e-5)
    chunks = [(stamp, samples[i * length : (i + 1) * length]) for i, stamp in enumerate(stamps)]
    holds(chunks, samples)
    seconds = push_all(SecondSplitter(), chunks)
    (newest,) = [s for s in seconds if samples[-1] in s.samples]
    newest_s = newest.second + np.argmax(newest.samples == samples[-1]) / RATE
    assert abs(newest_s - stamps[-1] - length / RATE) < 0.02


def test_a_recording_that_comes_all_at_once_begins_two_seconds_earlier_at_most():
    samples = recording(6)
    chunks = [(BEGIN_S + i * 1e-6, samples[i : i + 800]) for i in range(0, len(samples), 800)]
    heard, counts = split(chunks)
    assert push_all(SecondSplitter(), chunks)[0].second == int(BEGIN_S - 2)
    assert counts['overlap_samples'] + np.count_nonzero(heard) == len(samples)


def test_a_stream_begins_no_earlier_than_the_one_before_it_has_ended():
    samples = recording(4)
    chunks = [(BEGIN_S + i / RATE, samples[i : i + 800]) for i in range(0, len(samples), 800)]
    later_s = BEGIN_S + 6.9  # 2.9 s after its end, and in a burst
    chunks += [(max(later_s, later_s - 1.9 + i / RATE), samples[i : i + 800])
               for i in range(0, len(samples), 800)]  # fmt: skip
    for after_s in (0.0, 1.0, 1.9):
        held_up = [(stamp - (stamp >= later_s) * after_s, part) for stamp, part in chunks]
        numbers = [s.second for s in push_all(SecondSplitter(), held_up)]
        assert numbers == sorted(set(numbers))
