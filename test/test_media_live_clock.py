# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a live stream counts becomes the time at which it was captured."""

import numpy as np
import pytest

from minicpmo_ros.media.live_clock import LiveClock
from minicpmo_ros.units import NS

STEP_NS = NS // 25
ORIGIN_NS = 1_750_000_000 * NS


def stamps_of(clock, counts_ns, delays_ns):
    """Give the stamps of what was captured at ORIGIN_NS + count, and came so much later."""
    found = []
    for count_ns, delay_ns in zip(counts_ns, delays_ns, strict=True):
        clock.note(count_ns, ORIGIN_NS + count_ns + delay_ns)
        found.append(clock.stamp_ns(count_ns))
    return np.array(found)


def test_delays_of_a_network_are_not_in_the_stamps(rng):
    counts_ns = np.arange(500) * STEP_NS
    delays_ns = (rng.exponential(0.05, 500) * NS).astype(np.int64) + 10_000_000
    stamps_ns = stamps_of(LiveClock(), counts_ns.tolist(), delays_ns.tolist())
    errors_ns = stamps_ns - ORIGIN_NS - counts_ns
    # The first ones cannot be known better than by their arrival; then the smallest delay is.
    assert np.abs(errors_ns[50:] - 10_000_000).max() < 10_000_000
    assert (np.diff(stamps_ns) >= 0).all()


def test_a_known_latency_is_taken_off():
    counts_ns = [n * STEP_NS for n in range(100)]
    late = stamps_of(LiveClock(150_000_000), counts_ns, [150_000_000] * 100)
    assert (late - ORIGIN_NS == counts_ns).all()


def test_a_burst_at_the_start_is_dated_by_what_follows_it():
    """A server sends what it has kept, then goes on as it comes."""
    clock = LiveClock()
    for n in range(50):  # two seconds, all at once
        clock.note(n * STEP_NS, ORIGIN_NS + 2 * NS)
    clock.note(50 * STEP_NS, ORIGIN_NS + 2 * NS)
    assert clock.stamp_ns(0) == ORIGIN_NS


@pytest.mark.parametrize('drift', [-2e-4, -2e-5, 2e-5, 2e-4])
def test_drift_is_followed_for_hours(drift, rng):
    clock, worst_ns, before_ns = LiveClock(), 0, 0
    for n in range(72_000):  # an image every 100 ms, for two hours
        count_ns = n * 100_000_000
        captured_ns = ORIGIN_NS + int(count_ns * (1 + drift))
        clock.note(count_ns, captured_ns + int(rng.exponential(0.002) * NS))
        stamp_ns = clock.stamp_ns(count_ns)
        assert stamp_ns >= before_ns
        before_ns, worst_ns = stamp_ns, max(worst_ns, abs(stamp_ns - captured_ns))
    assert worst_ns < 20_000_000 and not clock.jumps


@pytest.mark.parametrize('ahead_s', [-3600, -3, 3, 3600])
def test_a_count_that_jumps_does_not_take_the_stamps_with_it(ahead_s):
    clock, stamp_ns = LiveClock(), 0
    for n in range(600):
        jumped_ns = ahead_s * NS if n >= 200 else 0
        clock.note(4000 * NS + n * STEP_NS + jumped_ns, ORIGIN_NS + n * STEP_NS)
        stamp_ns = clock.stamp_ns(4000 * NS + n * STEP_NS + jumped_ns)
    assert stamp_ns == ORIGIN_NS + 599 * STEP_NS
    assert clock.jumps == (ahead_s < 0)


def test_what_is_late_is_told(rng):
    clock = LiveClock()
    assert clock.note(0, ORIGIN_NS) == 0
    assert clock.note(STEP_NS, ORIGIN_NS + STEP_NS + 7) == 7
    assert clock.note(2 * STEP_NS, ORIGIN_NS + 2 * STEP_NS - 5) == 0
    assert clock.note(3 * STEP_NS, ORIGIN_NS + 3 * STEP_NS) == 5
