# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Stream time without a clock that anybody must agree with, and stamps that lie."""

import pytest

from minicpmo_ros.streams.time import Arrival, Instant, StampGuard, StreamClock
from minicpmo_ros.units import NS

START = Instant(0.0)


def simulated(steady_s, simulated_s, jumps=0):
    return Instant(steady_s, int(simulated_s * NS), jumps)


def test_nothing_is_over_before_anything_arrived():
    clock = StreamClock()
    assert clock.last_over(Instant(1e9)) is None
    assert not clock.is_silent(Instant(1e9))


def test_a_second_is_over_the_grace_period_after_its_end():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, Instant(7.0))
    assert clock.last_over(Instant(7.0)) == 98
    assert clock.last_over(Instant(7.5)) == 99
    assert clock.last_over(Instant(8.49)) == 99
    assert clock.last_over(Instant(8.5)) == 100


def test_a_source_is_silent_after_the_grace_period_and_until_the_next_arrival():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, Instant(7.0))
    assert not clock.is_silent(Instant(7.49))
    assert clock.is_silent(Instant(7.5))
    clock.arrive(101 * NS, Instant(8.0))
    assert not clock.is_silent(Instant(8.1))


def test_long_pieces_of_sound_are_waited_for():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, Instant(7.0), length_ns=10 * NS)
    assert not clock.is_silent(Instant(17.4)) and clock.is_silent(Instant(17.5))
    assert clock.last_over(Instant(18.5)) == 100


def test_a_jump_back_of_the_source_is_followed():
    clock = StreamClock()
    clock.arrive(100 * NS, Instant(7.0))
    clock.arrive(50 * NS, Instant(7.1))
    assert clock.last_over(Instant(7.1)) == 48


@pytest.mark.parametrize('rate', [0.1, 0.5, 1.0])
def test_slow_simulated_time_is_what_passes(rate):
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, simulated(7.0, 3.0))
    for passed_s, over in ((0.4, 98), (1.4, 99), (1.6, 100)):
        now = simulated(7.0 + passed_s / rate, 3.0 + passed_s)
        assert clock.last_over(now) == over and clock.is_silent(now) == (over > 98)


def test_quick_simulated_time_leaves_a_computer_its_grace_period():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, simulated(7.0, 3.0))
    assert not clock.is_silent(simulated(7.4, 7.0)) and clock.last_over(simulated(7.4, 7.0)) == 98
    assert clock.is_silent(simulated(7.5, 8.0)) and clock.last_over(simulated(7.5, 8.0)) == 103


def test_a_paused_simulation_pauses_the_stream():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, simulated(7.0, 3.0))
    assert not clock.is_silent(simulated(1e6, 3.4)) and clock.last_over(simulated(1e6, 3.4)) == 98


def test_a_source_that_stayed_silent_is_where_simulated_time_went_back_to():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(104 * NS, simulated(7.0, 104.1))
    now = simulated(9.0, 101.1, jumps=1)
    assert clock.is_silent(now) and clock.time_ns(now) == 101 * NS


def test_without_a_clock_any_more_the_steady_one_goes_on():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, simulated(7.0, 3.0))
    assert clock.is_silent(Instant(7.5)) and clock.last_over(Instant(8.5)) == 100


def test_a_stamp_stands_still_when_time_does_not():
    clock = StreamClock()
    clock.arrive(100 * NS, Instant(7.0))
    clock.arrive(100 * NS, Instant(7.6))
    assert not clock.stands_still(100 * NS, Instant(7.9))
    assert clock.stands_still(100 * NS, Instant(8.0))
    assert not clock.stands_still(101 * NS, Instant(8.0))


def feed(guard, *stamps_s, at=START):
    """Give (stamp, whether it is the first after a jump) of what is believed at once."""
    return shown([a for s in stamps_s for a in guard.sort(Arrival(int(s * NS), at, s))])


def shown(arrivals):
    return [(arrival.content, arrival.jumped_from_ns is not None) for arrival in arrivals]


def test_a_stream_that_goes_on_is_believed_at_once():
    guard = StampGuard()
    given = [5, 5.1, 5.1, 4.7, 6, 15.9]  # equal, a little back, a gap
    assert feed(guard, *given) == [(s, False) for s in given] and guard.strays == 0


@pytest.mark.parametrize('there', [1.0, 1e9], ids=['back', 'ahead'])
def test_a_jump_is_believed_when_nothing_contradicts_it(there):
    guard = StampGuard()
    feed(guard, 100, 100.1)
    assert feed(guard, there, there + 0.1, at=Instant(5.0)) == []
    assert guard.settle(Instant(5.4)) == []
    assert shown(guard.settle(Instant(5.5))) == [(there, True), (there + 0.1, False)]
    assert feed(guard, there + 0.2) == [(there + 0.2, False)] and guard.strays == 0


def test_a_source_that_was_away_is_no_jump():
    guard = StampGuard()
    feed(guard, 100, at=Instant(0.0))
    assert feed(guard, 1100, at=Instant(1000.0)) == [(1100, False)]  # it lived on
    assert feed(guard, 1101, at=Instant(5000.0)) == [(1101, False)]  # it was paused


@pytest.mark.parametrize('stray', [1.0, 1e9], ids=['1970', 'future'])
def test_of_two_publishers_with_clocks_apart_one_is_followed(stray):
    guard = StampGuard()
    believed = []
    for i in range(50):
        now = Instant(0.1 * i)
        believed += feed(guard, 100 + 0.1 * i, stray + 0.1 * i, at=now)
        believed += shown(guard.settle(now))
    assert [s for s, _ in believed] == [100 + 0.1 * i for i in range(50)]
    assert guard.strays == 49


def test_what_is_kept_back_is_bounded():
    guard = StampGuard(max_kept=3)
    feed(guard, 100)
    assert feed(guard, 1, 1.1, 1.2, 1.3) == [(1, True), (1.1, False), (1.2, False), (1.3, False)]
    guard = StampGuard(one_a_second=True)
    feed(guard, 100)
    assert feed(guard, *(1 + i / 240 for i in range(240)), 2.0) == []
    assert shown(guard.settle(Instant(9.0))) == [(1 + 239 / 240, True), (2.0, False)]


def test_what_jumped_before_the_clock_told_it_counts_from_when_it_is_believed():
    guard = StampGuard()
    guard.sort(Arrival(100 * NS, simulated(0, 100), 'old'))
    guard.sort(Arrival(0, simulated(0.1, 100.1), 'new'))
    now = simulated(0.6, 0.5, jumps=1)
    (believed,) = guard.settle(now)
    clock = StreamClock()
    clock.arrive(believed.stamp_ns, believed.at)
    assert clock.time_ns(simulated(1.1, 1.0, jumps=1)) == NS // 2


def test_a_recording_whose_clock_comes_behind_its_first_input_is_not_silent_at_once():
    """Another one was played before it: simulated time leaps ahead."""
    guard = StampGuard(one_a_second=True)
    guard.sort(Arrival(100 * NS, simulated(0, 100), 'old'))
    for offset_s in (0.0, 0.5):
        guard.sort(Arrival(int((5000 + offset_s) * NS), simulated(1 + offset_s, 100), offset_s))
    now = simulated(1.8, 5000.8)
    (believed,) = guard.settle(now)
    clock = StreamClock()
    clock.arrive(believed.stamp_ns, believed.at)
    assert not clock.is_silent(now) and clock.last_over(now) < 5000


def test_a_jump_waits_for_simulated_time_too():
    guard = StampGuard()
    guard.sort(Arrival(100 * NS, simulated(0, 100), 'old'))
    guard.sort(Arrival(0, simulated(1, 0, 1), 'new'))
    assert guard.settle(simulated(60, 0.1, 1)) == []
    assert shown(guard.settle(simulated(60, 0.6, 1))) == [('new', True)]
