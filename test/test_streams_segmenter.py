# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds are what the stamps say, whatever the chunking, and nothing is lost uncounted."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.streams.segmenter import LATEST, LONGEST_START, SecondSplitter

RATE = 16000
NS = 10**9


def ns(seconds: float) -> int:
    return round(seconds * NS)


def ramp(seconds: float) -> np.ndarray:
    """Samples that tell their place: k + 1 at index k, exact in float32."""
    return np.arange(1, int(seconds * RATE) + 1, dtype=np.float32)


def feed(splitter, stamps_and_chunks, close=True) -> list:
    seconds = [s for stamp, chunk in stamps_and_chunks for s in splitter.push(stamp, chunk)]
    return seconds + (splitter.flush() if close else [])


def chunked(samples, length, begin_ns=0):
    """Cut samples into chunks of `length` samples, stamped where they lie."""
    return [
        (begin_ns + i * NS // RATE, samples[i : i + length])
        for i in range(0, len(samples), length)
    ]


def counts(seconds, what) -> list:
    return [getattr(s, what) for s in seconds]


@pytest.mark.parametrize('length', [1, 160, 441, 1024, 16000, 16001, 160000])
def test_seconds_do_not_depend_on_chunking(length, rng):
    samples = rng.normal(0, 0.1, int(2.7 * RATE if length == 1 else 10 * RATE)).astype('f4')
    begin_ns = 1_700_000_000 * NS + 250_000_000
    one = feed(SecondSplitter(), [(begin_ns, samples)])
    many = feed(SecondSplitter(), chunked(samples, length, begin_ns))
    assert len(one) == len(many)
    for a, b in zip(one, many):
        assert (a.second, a.begins_stream, a.padded_samples) == (
            b.second,
            b.begins_stream,
            b.padded_samples,
        )
        assert np.array_equal(a.samples, b.samples)
        assert np.array_equal(a.look_ahead, b.look_ahead)
        assert b.gap_samples == b.drift_samples == b.overlap_samples == 0


def test_first_second_is_padded_in_front_and_last_behind():
    seconds = feed(SecondSplitter(), [(ns(7.25), ramp(1.5))])
    assert counts(seconds, 'second') == [7, 8]
    assert counts(seconds, 'padded_samples') == [4000, 4000]
    assert counts(seconds, 'begins_stream') == [True, False]
    whole = np.concatenate([s.samples for s in seconds])
    assert np.array_equal(whole, np.pad(ramp(1.5), 4000))


@pytest.mark.parametrize('stamp_ns', [999_999_999, 1_000_000_000, 1_999_970_000, -1])
def test_second_is_floor_of_stamp(stamp_ns):
    seconds = feed(SecondSplitter(), [(stamp_ns, ramp(0.5))])
    assert seconds[0].second == stamp_ns // NS


def test_second_comes_with_its_look_ahead_and_no_later():
    splitter = SecondSplitter()
    samples = ramp(1.1)
    assert splitter.push(0, samples[:16199]) == []
    (second,) = splitter.push(None, samples[16199:16200])
    assert np.array_equal(second.samples, samples[:16000])
    assert np.array_equal(second.look_ahead, samples[16000:16200])


def test_flush_without_close_gives_only_the_look_ahead_zeros():
    splitter = SecondSplitter()
    samples = ramp(3)
    assert splitter.push(0, samples[:16100]) == []
    (second,) = splitter.flush(close=False)
    assert np.array_equal(second.look_ahead, np.pad(samples[16000:16100], (0, 100)))
    assert splitter.flush(close=False) == []
    rest = feed(splitter, [(None, samples[16100:])])
    assert counts(rest, 'second') == [1, 2]
    assert np.array_equal(np.concatenate([s.samples for s in rest]), samples[16000:])


def test_without_stamps_time_is_the_count_of_samples():
    chunks = [(ns(3), ramp(0.5))] + [(None, ramp(0.5))] * 5
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'second') == [3, 4, 5]
    assert counts(feed(SecondSplitter(), [(None, ramp(1))] * 2), 'second') == [0, 1]


@pytest.mark.parametrize('length', [160, 1600, 8000])
@pytest.mark.parametrize('speed', [1.017, 0.983])
def test_drift_is_corrected_at_edges_and_counted(speed, length):
    # A sound card that gives `speed` x 16000 samples a second of the stamps.
    samples = ramp(60)
    chunks = [
        (int(i * NS / (RATE * speed)), samples[i : i + length])
        for i in range(0, len(samples), length)
    ]
    seconds = feed(SecondSplitter(), chunks)
    drift = counts(seconds, 'drift_samples')
    assert abs(sum(drift) - 60 * RATE * (1 / speed - 1)) < RATE * 0.06
    assert sum(map(bool, drift)) > 20
    assert not any(counts(seconds, 'gap_samples') + counts(seconds, 'overlap_samples'))
    assert counts(seconds, 'second') == list(range(seconds[-1].second + 1))
    for s in seconds[:-1]:  # each within a chunk and two seconds' drift of where it belongs
        middle = s.samples[8000] / (RATE * speed)
        assert abs(middle - (s.second + 0.5)) < 0.02 + 2 * 0.017 + length / RATE
        inside = s.samples[max(0, s.drift_samples) :]
        assert (np.diff(inside[inside > 0]) == 1).all()  # never cut but at an edge


def test_jitter_of_stamps_changes_nothing(rng):
    # A few ms on every stamp, and every fifth 60 ms late, as on a busy machine.
    samples = ramp(20)
    jitter = rng.uniform(-15e6, 15e6, 200).astype(int) + 60_000_000 * (np.arange(200) % 5 == 3)
    jitter[0] = 0
    chunks = [
        (stamp + int(late), chunk)
        for late, (stamp, chunk) in zip(jitter, chunked(samples, 1600, ns(5)))
    ]
    seconds = feed(SecondSplitter(), chunks)
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), samples)


def test_gap_is_filled_with_silence_and_counted():
    samples = ramp(3)
    lost = slice(int(0.9 * RATE), int(1.2 * RATE))
    chunks = [(0, samples[: lost.start]), (ns(1.2), samples[lost.stop :])]
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'gap_samples') == [1600, 3200, 0]
    expected = samples.copy()
    expected[lost] = 0
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), expected)
    assert counts(seconds, 'begins_stream') == [True, False, False]


@pytest.mark.parametrize('begin', [8.0, 1_700_000_000.5, 0.9])
def test_long_gap_or_jump_back_restarts(begin):
    # 5 s later, a clock that was set, and a recording that starts over.
    splitter = SecondSplitter()
    before = feed(splitter, [(ns(2.0), ramp(1.25))], close=False)
    seconds = before + feed(splitter, [(ns(begin), ramp(1))])
    assert counts(seconds, 'second')[:3] == [2, 3, int(begin)]
    assert counts(seconds, 'begins_stream')[:3] == [True, False, True]
    assert seconds[1].padded_samples == 12000
    assert not seconds[1].look_ahead.any()
    assert not any(counts(seconds, 'gap_samples'))
    where = round(begin % 1 * RATE)
    assert seconds[2].samples[where] == 1


@pytest.mark.parametrize('length', [160, 4800, 16000])
def test_copies_are_left_out_and_swapped_chunks_go_where_they_belong(length):
    samples = ramp(4)
    chunks = chunked(samples, length)
    twice = [chunk for chunk in chunks for _ in range(2)]
    seconds = feed(SecondSplitter(), twice)
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), samples)
    assert sum(counts(seconds, 'overlap_samples')) + length * (len(samples) % length == 0) >= (
        len(samples) - length
    )
    if length < 8000:
        swapped = chunks[:3] + [chunks[4], chunks[3]] + chunks[5:]
        seconds = feed(SecondSplitter(), swapped)
        assert not sum(counts(seconds, 'overlap_samples'))
        assert np.array_equal(np.concatenate([s.samples for s in seconds]), samples)


def test_longer_copy_gives_what_is_new_in_it():
    seconds = feed(SecondSplitter(), [(0, ramp(1)), (0, ramp(2))])
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), ramp(2))


def test_drift_that_outlasts_a_chunk_is_corrected_once():
    # 2900 samples too many, found 100 samples after the begin of a second.
    stamps = [0, 100 + 16000] + [100 + 16000 * i - 3000 for i in range(2, 7)]
    chunks = [(-(-stamp * NS // RATE), ramp(1)) for stamp in stamps]
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'drift_samples') == [0, 0, 0, -2900, 0, 0, 0]


def test_drift_before_a_gap_ends_with_the_gap():
    late = [0, 1000, 1000, 1000, 1000, 1000, 6000, 6000, 6000]
    chunks = [((1600 * i + late[i]) * NS // RATE + 1, ramp(0.1)) for i in range(9)]
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'gap_samples') == [6000, 0]
    assert counts(seconds, 'drift_samples') == [0, 0]


def test_drift_ends_with_the_sound():
    splitter = SecondSplitter()
    feed(splitter, [(ns(0.00625), ramp(1)), (ns(0.82), ramp(1))])
    (again,) = feed(splitter, [(ns(3), ramp(1))])[-1:]
    assert np.array_equal(again.samples, ramp(1)) and again.drift_samples == 0


def test_what_is_left_out_before_a_restart_is_told_once():
    splitter = SecondSplitter()
    seconds = feed(splitter, [(0, ramp(1)), (0, ramp(1)), (ns(10), ramp(1)), (ns(11), ramp(1))])
    assert counts(seconds, 'second') == [0, 10, 11]
    assert counts(seconds, 'overlap_samples') == [0, 16000, 0]


@pytest.mark.parametrize('length', [160, 1600, 16000])
@pytest.mark.parametrize('wrong', [1e6, 3, 1, 0.3, -3, -1e6])
def test_one_wrong_stamp_costs_nothing(wrong, length):
    samples = ramp(6)
    chunks = chunked(samples, length, ns(1e6 + 100.3))
    middle = len(chunks) // 2
    chunks[middle] = chunks[middle][0] + ns(wrong), chunks[middle][1]
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'begins_stream') == [True] + [False] * 6
    whole = np.concatenate([s.samples for s in seconds])
    assert np.array_equal(whole, np.pad(samples, (4800, 11200)))


@pytest.mark.parametrize('jump', [3600, 2.1, -0.7, -3600])
def test_a_jump_is_believed_with_the_second_chunk_of_it_and_nothing_is_lost(jump):
    samples = ramp(4)
    chunks = chunked(samples, 1600)
    chunks[20:] = [(stamp + ns(jump), chunk) for stamp, chunk in chunks[20:]]
    splitter = SecondSplitter()
    before = feed(splitter, chunks[:21], close=False)
    assert counts(before, 'second') == [0]
    seconds = before + feed(splitter, chunks[21:])
    again = counts(seconds, 'begins_stream').index(True, 1)
    assert seconds[again].second == int((2 + jump) // 1)
    whole = np.concatenate([s.samples for s in seconds])
    assert np.array_equal(whole[whole > 0], samples)


def test_a_jump_that_nothing_contradicts_is_believed_at_the_flush():
    splitter = SecondSplitter()
    seconds = feed(splitter, [(0, ramp(1)), (ns(50), ramp(1))])
    assert counts(seconds, 'second') == [0, 50]
    assert counts(seconds, 'begins_stream') == [True, True]


def test_after_silence_a_jump_is_believed_at_once():
    splitter = SecondSplitter()
    feed(splitter, [(0, ramp(1.5))])
    seconds = feed(splitter, [(ns(50), ramp(1.5))], close=False)
    assert counts(seconds, 'second') == [50] and seconds[0].begins_stream


def test_sound_now_and_then_is_all_heard():
    # Utterances of a voice detector, pushed faster than they were spoken.
    chunks = [(ns(10 * i), ramp(1)) for i in range(20)]
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'second') == list(range(0, 200, 10))


def test_a_second_source_with_another_clock_is_left_out():
    samples = ramp(5)
    mine, other = chunked(samples, 1600), chunked(-samples, 1600, ns(5000))
    seconds = feed(SecondSplitter(), [chunk for pair in zip(mine, other) for chunk in pair][:-1])
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), samples)
    assert sum(counts(seconds, 'overlap_samples')) == 49 * 1600


@pytest.mark.parametrize('speed', [1.017, 0.983])
def test_an_hour_of_drift_stays_in_step(speed):
    # Sample k tells when it was recorded; every second holds what belongs to it, to 60 ms.
    splitter, late, sums = SecondSplitter(), [], 0
    for i in range(0, int(3600 * RATE * speed), 8000):
        recorded_s = np.arange(i, i + 8000) / (RATE * speed)
        for s in splitter.push(int(recorded_s[0] * NS), (recorded_s % 64).astype(np.float32)):
            assert s.gap_samples == 0 and s.begins_stream == (s.second == 0)
            late.append((s.samples[8000] - (s.second + 0.5) + 32) % 64 - 32)
            sums += s.drift_samples - s.overlap_samples
    assert len(late) >= 3598 and np.abs(late).max() < 0.06
    assert abs(sums - 3600 * RATE * (1 - speed)) < RATE


def test_overlapping_windows_are_cut():
    samples = ramp(6)
    windows = [(i * NS // RATE, samples[i : i + 16000]) for i in range(0, 80001, 8000)]
    seconds = feed(SecondSplitter(), windows)
    assert np.array_equal(np.concatenate([s.samples for s in seconds]), samples)
    assert sum(counts(seconds, 'overlap_samples')) == 10 * 8000


def test_stamps_that_stand_still_do_not_make_deaf():
    chunks = [(ns(4), ramp(0.1))] * 50
    seconds = feed(SecondSplitter(), chunks)
    assert counts(seconds, 'second') == [4, 5, 6, 7, 8]
    assert sum(counts(seconds, 'overlap_samples')) == 2 * 1600


def test_sound_for_a_closed_second_is_left_out():
    splitter = SecondSplitter()
    (first,) = feed(splitter, [(0, ramp(0.3))])
    assert first.padded_samples == 0.7 * RATE
    seconds = feed(splitter, [(ns(0.4), ramp(2))])
    assert counts(seconds, 'second') == [1, 2]
    assert seconds[0].overlap_samples == 0.6 * RATE
    assert seconds[0].samples[0] == 0.6 * RATE + 1


def test_not_finite_samples_are_refused_and_change_nothing():
    splitter = SecondSplitter()
    splitter.push(0, ramp(0.5))
    bad = ramp(0.5)
    bad[7] = np.nan
    with pytest.raises(InputError, match='NaN'):
        splitter.push(ns(0.5), bad)
    with pytest.raises(InputError, match='shape'):
        splitter.push(ns(0.5), ramp(1).reshape(2, -1))
    seconds = feed(splitter, [(ns(0.5), ramp(0.5))])
    assert np.array_equal(seconds[0].samples, np.tile(ramp(0.5), 2))


def test_an_hour_with_a_gap_in_every_second_keeps_nothing(rng):
    splitter = SecondSplitter()
    for second in range(3600):
        given = splitter.push(second * NS, ramp(0.7))
        assert len(given) == (second > 1)
    assert len(splitter.held) < 2 * RATE
    assert len(splitter.counts) < 3


def test_any_stamps_give_whole_seconds_in_order_and_every_sample_is_accounted_for(rng):
    for _ in range(50):
        splitter, seconds, pushed, stamp_ns = SecondSplitter(), [], 0, ns(rng.uniform(0, 9))
        for _ in range(60):
            chunk = ramp(rng.choice([0.01, 0.1, 0.5, 1.3]))
            kind = rng.random()
            stamp_ns += ns(
                len(chunk) / RATE
                + (0 if kind < 0.7 else rng.normal(0, 0.1) if kind < 0.85 else rng.normal(0, 1.5))
            )
            seconds += splitter.push(None if kind > 0.97 else stamp_ns, chunk)
            pushed += len(chunk)
            assert len(splitter.held) < 16_000 + LATEST + LONGEST_START
        seconds += splitter.flush() + splitter.push(ns(10**6), ramp(1)) + splitter.flush()
        pushed += 16000
        assert {s.samples.shape for s in seconds} == {(16000,)}
        for before, after in zip(seconds, seconds[1:]):
            assert after.begins_stream or after.second == before.second + 1
        put_in = sum(
            sum(counts(seconds, what))
            for what in ('padded_samples', 'gap_samples', 'drift_samples')
        )
        left_out = sum(counts(seconds, 'overlap_samples'))
        assert 16000 * len(seconds) == pushed + put_in - left_out


def test_the_zeros_counted_are_those_in_the_samples_however_late_chunks_come():
    for seed in range(120):
        rng, splitter = np.random.default_rng(seed), SecondSplitter()
        chunks = chunked(ramp(5), int((160, 1600, 3200)[seed % 3]), ns(rng.uniform(0, 3)))
        late_s = rng.uniform(0, 0.5, len(chunks)) * (rng.random(len(chunks)) < 0.1)
        stamped = [(stamp + ns(s), chunk) for (stamp, chunk), s in zip(chunks, late_s)]
        for s in feed(splitter, stamped):
            zeros = s.padded_samples + s.gap_samples + max(0, s.drift_samples)
            assert (16_000 - np.count_nonzero(s.samples) == zeros) or s.drift_samples < 0


def test_caller_may_reuse_his_buffer():
    splitter, buffer = SecondSplitter(), ramp(0.5)
    splitter.push(0, buffer)
    buffer[:] = 0
    (second,) = splitter.push(ns(0.5), ramp(0.6))
    assert np.array_equal(second.samples[:8000], ramp(0.5))
