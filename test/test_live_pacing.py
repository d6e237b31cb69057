# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Stream time without a clock that anybody must agree with."""

from minicpmo_ros.live.pacing import NS, StreamClock


def test_nothing_is_over_before_anything_arrived():
    clock = StreamClock()
    assert clock.last_over(1e9) is None
    assert not clock.is_silent(1e9)


def test_a_second_is_over_the_grace_period_after_its_end():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, now_s=7.0)
    assert clock.last_over(7.0) == 98
    assert clock.last_over(7.5) == 99
    assert clock.last_over(8.49) == 99
    assert clock.last_over(8.5) == 100


def test_a_source_is_silent_after_the_grace_period_and_until_the_next_arrival():
    clock = StreamClock(grace_s=0.5)
    clock.arrive(100 * NS, now_s=7.0)
    assert not clock.is_silent(7.49)
    assert clock.is_silent(7.5)
    clock.arrive(101 * NS, now_s=8.0)
    assert not clock.is_silent(8.1)


def test_a_jump_back_of_the_source_is_followed():
    clock = StreamClock()
    clock.arrive(100 * NS, now_s=7.0)
    clock.arrive(50 * NS, now_s=7.1)
    assert clock.last_over(7.1) == 48
