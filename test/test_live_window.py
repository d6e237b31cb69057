# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The window's bookkeeping: whole spans, no gaps, the prefix stays, positions are bounded."""

import pytest

from minicpmo_ros.errors import ContextFullError
from minicpmo_ros.live.window import GROUPS, Window


def put(window, second, n_rows):
    count = window.to_evict(n_rows)
    gone = window.evict(count) if count else None
    window.append(second, n_rows)
    return gone


def check(window):
    edge = window.prefix
    for span in window.spans:
        assert span.start == edge and span.end > span.start
        edge = span.end
    assert edge == window.end <= window.capacity


def test_spans_follow_each_other_behind_the_prefix():
    window = Window(prefix=20, capacity=1000)
    assert window.end == 20 and window.seconds == []
    window.append(7, 94)
    window.append(None, 30)
    window.append(8, 27)
    check(window)
    assert window.end == 171 and window.seconds == [7, 8]


def test_hundreds_of_units_stay_within_bounds_whole_and_in_order(rng):
    window = Window(prefix=20, capacity=1000)
    for second in range(500):
        n_rows = int(rng.choice([94, 27, 67]))
        lengths = {span.second: span.end - span.start for span in window.spans}
        put(window, second, n_rows)
        check(window)
        for span in window.spans[:-1]:
            assert span.end - span.start == lengths[span.second]
        seconds = window.seconds
        assert seconds == list(range(seconds[0], second + 1))
    assert len(window.seconds) > 8


def test_eviction_names_the_positions_that_go():
    window = Window(prefix=10, capacity=110)
    for second in range(10):
        window.append(second, 10)
    assert put(window, 10, 10) == (10, 20)
    check(window)
    assert window.seconds == list(range(1, 11))


def test_units_leave_in_groups():
    window = Window(prefix=0, capacity=40 * 10)
    evictions = sum(put(window, second, 10) is not None for second in range(140))
    assert evictions == 100 // (40 // GROUPS)


def test_a_long_span_pushes_out_as_many_as_it_needs():
    window = Window(prefix=10, capacity=110)
    for second in range(10):
        window.append(second, 10)
    assert put(window, 10, 55) == (10, 70)
    check(window)


def test_what_never_fits_is_refused_and_changes_nothing():
    window = Window(prefix=10, capacity=100)
    window.append(1, 50)
    with pytest.raises(ContextFullError, match='91 positions are needed, 90 are free'):
        window.to_evict(91)
    assert window.seconds == [1]
    assert window.to_evict(90) == 1


def test_booking_without_room_is_a_mistake():
    window = Window(prefix=10, capacity=100)
    with pytest.raises(ValueError):
        window.append(1, 91)
