# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Sound without stamps stays in step with the clock for hours, whatever is lost or late."""

import numpy as np
import pytest

from minicpmo_ros.streams.pairing import UnitAssembler
from minicpmo_ros.streams.segmenter import SecondSplitter
from minicpmo_ros.streams.time import Instant, SampleClock
from minicpmo_ros.units import NS

RATE = 16000


def spoken(recorded_s, arrived_s, lengths_s):
    """Give when each piece is said to begin, seconds."""
    counted, begins = SampleClock(), []
    for arrived, length in zip(arrived_s, lengths_s):
        begin_ns = counted.begin_ns(int(arrived * NS), int(length * NS))
        counted.end_ns = begin_ns + int(length * NS)
        begins.append(begin_ns / NS)
    return np.array(begins)


@pytest.mark.parametrize('speed', [1.017, 0.983])
def test_an_hour_of_drift_with_losses_and_delays_stays_in_step(speed, rng):
    # 0.1 s by the card's clock; all are late, some very, and in the second half many are lost.
    begins_s = np.arange(0, 3600, 0.1 / speed)
    lost = rng.random(len(begins_s)) < 0.05 * (begins_s > 1800)
    begins_s = begins_s[~lost]
    late_s = rng.uniform(0, 0.06, len(begins_s)) + 0.4 * (rng.random(len(begins_s)) < 0.05)
    arrived_s = np.maximum.accumulate(begins_s + 0.1 / speed + late_s)
    said_s = spoken(begins_s, arrived_s, np.full(len(begins_s), 0.1))
    off_s = np.abs(said_s - begins_s)
    assert off_s[begins_s < 1800].max() < 0.4 and off_s.max() < 1.5
    assert (np.diff(said_s) > -0.2).all()


def test_lateness_alone_moves_nothing(rng):
    begins_s = np.arange(0, 600, 0.1)
    arrived_s = begins_s + 0.1 + rng.uniform(0, 0.09, len(begins_s))
    arrived_s[0] = 0.1
    said_s = spoken(begins_s, arrived_s, np.full(len(begins_s), 0.1))
    assert np.abs(said_s - begins_s).max() < 1e-3


def test_a_file_that_comes_at_once_is_counted():
    begins_s = np.arange(0, 60, 0.1)
    said_s = spoken(begins_s, 5 + begins_s / 100, np.full(600, 0.1))
    assert np.abs(np.diff(said_s) - 0.1).max() < 1e-6


def test_after_silence_the_time_of_arrival_counts():
    counted = SampleClock()
    counted.end_ns = counted.begin_ns(10 * NS, NS) + NS
    assert counted.begin_ns(50 * NS, NS) == 10 * NS
    counted.restart()
    assert counted.begin_ns(50 * NS, NS) == 49 * NS


def test_what_drifts_is_cut_into_seconds_without_a_restart():
    splitter, counted, seconds, begin_s = SecondSplitter(), SampleClock(), [], 100.0
    for _ in range(3000):
        begin_ns = counted.begin_ns(int((begin_s + 0.1 / 1.017) * NS), NS // 10)
        counted.end_ns = begin_ns + NS // 10
        seconds += splitter.push(begin_ns, np.ones(RATE // 10, np.float32))
        begin_s += 0.1 / 1.017
    assert [s.second for s in seconds] == list(range(seconds[0].second, seconds[-1].second + 1))
    assert sum(s.begins_stream for s in seconds) == 1
    assert abs(seconds[-1].second + 1 - begin_s) < 1.3
    assert 4.5 * RATE < sum(s.overlap_samples - s.drift_samples for s in seconds) < 5.5 * RATE


@pytest.mark.parametrize('back_s', [3, 3600])
def test_a_clock_that_is_set_back_takes_the_sound_with_it_into_whole_units(back_s):
    """A board without a battery for its clock, until the network tells the time."""
    splitter, counted, assembler, units = SecondSplitter(), SampleClock(), UnitAssembler(), []
    rows = np.ones((1, 4), np.float16)
    for tenth in range(600):
        clock_s = 10_000 + tenth / 10 - (tenth >= 200) * back_s
        begin_ns = counted.begin_ns(int((clock_s + 0.1) * NS), NS // 10)
        counted.end_ns = begin_ns + NS // 10
        at = Instant(tenth / 10)
        for heard in splitter.push(begin_ns, np.ones(RATE // 10, np.float32)):
            assembler.add_audio(heard.second, rows, at)
        if tenth % 10 == 9:
            assembler.add_image(int(clock_s), rows, (0, 0), at)
        units += assembler.due(at)
    newest = units[-30:]
    assert all(u.image_rows is not None and u.audio_rows is not None for u in newest)
    assert newest[-1].second >= 10_057 - back_s
    assert sum(unit.restarted for unit in units) == 1 == assembler.jumps
