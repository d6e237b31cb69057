# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The window's bookkeeping: whole spans, no gaps, the prefix stays, positions are bounded."""

import numpy as np
import pytest

from minicpmo_ros.errors import ContextFullError
from minicpmo_ros.live.window import GROUPS, LONGEST_STILL_S, POLICIES, Window
from minicpmo_ros.streams.pairing import Unit

ROWS = 94  # of a plain unit


def put(window, second, n_rows):
    """Append as a session does; return the gaps that were closed."""
    gaps = window.remove(window.spans_to_evict(n_rows))
    window.append(second, n_rows)
    return gaps


def window_of(n_units, policy='recent'):
    return Window(30, 30 + n_units * ROWS, policy)


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


@pytest.mark.parametrize('policy', POLICIES)
def test_thousands_of_units_stay_within_bounds_whole_and_in_order(rng, policy):
    window = Window(20, 1000, policy)
    for second in range(2000):
        lengths = {span.second: span.rows for span in window.spans}
        put(window, None if second % 29 == 5 else second, int(rng.choice([94, 27, 67])))
        check(window)
        assert all(span.rows == lengths[span.second] for span in window.spans[:-1] if span.second)
        seconds = window.seconds
        assert seconds == sorted(set(seconds)) and len(window.spans) >= min(9, second)
        if policy == 'recent':
            kept = range(seconds[0], second + 1)
            assert seconds == [each for each in kept if each % 29 != 5]


def test_eviction_names_the_positions_that_go():
    window = Window(prefix=10, capacity=110)
    for second in range(10):
        window.append(second, 10)
    assert put(window, 10, 10) == [(10, 20)]
    check(window)
    assert window.seconds == list(range(1, 11))


def test_gaps_are_named_newest_first_and_neighbours_together():
    window = Window(prefix=10, capacity=110)
    for second in range(10):
        window.append(second, 10)
    assert window.remove([window.spans[i] for i in (1, 4, 5, 9)]) == [
        (100, 110),
        (50, 70),
        (20, 30),
    ]
    check(window)
    assert window.seconds == [0, 2, 3, 6, 7, 8]


def test_units_leave_in_groups():
    window = Window(prefix=0, capacity=40 * 10)
    evictions = sum(put(window, second, 10) != [] for second in range(140))
    assert evictions == 100 // (40 // GROUPS)


@pytest.mark.parametrize('policy, most', [('recent', GROUPS), ('long', 20)])
@pytest.mark.parametrize('n_units', [16, 80])
def test_a_cell_is_moved_a_bounded_number_of_times(policy, most, n_units):
    window, moves = window_of(n_units, policy), {}
    for second in range(900):
        before = {span.second: span.start for span in window.spans}
        put(window, second, ROWS)
        for span in window.spans[:-1]:
            moves[span.second] = moves.get(span.second, 0) + (span.start != before[span.second])
    assert 1 < max(moves.values()) <= most


def documented(seconds, room):
    """Thin seconds of one size as the module says of a window that holds `room` of them."""
    kept = []
    for second in reversed(seconds):
        stride = 1 if len(kept) < room / 8 else 2 if len(kept) < room * 3 / 16 else 4
        if second % stride == 0:
            kept.append(second)
    return kept[::-1]


@pytest.mark.parametrize('n_units', [16, 80])
def test_thinning_keeps_exactly_the_documented_seconds(n_units):
    window, thinnings = window_of(n_units, 'long'), 0
    for second in range(900):
        if put(window, second, ROWS):
            oldest, *_ = kept = window.seconds[:-1]
            told = documented(range(oldest, second), n_units)
            assert window.end <= window.capacity - n_units * ROWS / 24 + ROWS
            if second > 4 * n_units:
                thinnings += 1
                assert kept == told and oldest % 4 == 0
            else:  # filling up: thinned as told up to some second, whole from there on
                extra = sorted(set(kept) - set(told))
                assert set(kept) >= set(told)
                assert not extra or kept[kept.index(extra[0]) :] == list(range(extra[0], second))
    assert thinnings > 20


def test_no_more_is_thinned_than_room_is_needed():
    window = window_of(80, 'long')
    for second in range(300):
        before = len(window.spans)
        put(window, second, ROWS)
        assert len(window.spans) >= before - 2 * 80 / 24 - 1
        assert second < 80 or len(window.spans) >= 70


def test_a_long_window_reaches_three_times_as_far_back_as_a_plain_one():
    """At every moment, once both are full."""
    windows = [window_of(36, policy) for policy in POLICIES]
    for second in range(600):
        for window in windows:
            put(window, second, ROWS)
        if second > 4 * 36:
            plain, long = (second - window.seconds[0] for window in windows)
            assert long >= 3 * plain, (second, plain, long)


def test_where_seconds_are_missing_the_first_of_each_four_stays():
    """A source of odd seconds only is thinned like any other."""
    window = window_of(16, 'long')
    for second in range(1, 400, 2):
        put(window, second, ROWS)
    old = window.seconds[:8]
    assert all(second % 4 == 1 for second in old) and old[-1] - old[0] == 4 * 7


def test_turns_are_not_thinned_and_leave_when_they_are_the_oldest():
    window, turns_seen = window_of(36, 'long'), set()
    for second in range(600):
        put(window, second, ROWS)
        if second % 50 == 7:
            put(window, None, 30)
        neighbours = [span.second for span in window.spans]
        turns = [i for i, each in enumerate(neighbours) if each is None]
        turns_seen.add(len(turns))
        said = [each for each in range(7, second + 1, 50) if each >= window.seconds[0]]
        assert len(turns) in (len(said), len(said) + 1)  # one may be the oldest span itself
    assert max(turns_seen) >= 2


@pytest.mark.parametrize('policy', POLICIES)
def test_a_long_span_pushes_out_as_many_as_it_needs(policy):
    window = Window(10, 110, policy)
    for second in range(10):
        window.append(second, 10)
    gaps = put(window, 10, 55)
    check(window)
    if policy == 'recent':
        assert gaps == [(10, 70)]


@pytest.mark.parametrize('policy', POLICIES)
def test_what_never_fits_is_refused_and_changes_nothing(policy):
    window = Window(10, 100, policy)
    window.append(1, 50)
    with pytest.raises(ContextFullError, match='91 positions are needed, 90 are free'):
        window.spans_to_evict(91)
    assert window.seconds == [1]
    assert window.spans_to_evict(90) == window.spans


def test_an_unknown_policy_is_a_mistake():
    with pytest.raises(ValueError, match='recent, long'):
        Window(10, 100, 'short')


STILL_ROWS = 28  # of a second whose image is left out


def stream_of(policy, changed: list, n_seconds: int, n_units=36) -> Window:
    """A window after a stream in which the image changes in these seconds, sorted."""
    window, shown = Window(30, 30 + n_units * ROWS, policy, still=True), None
    for second in range(n_seconds):
        shown = rows(second) if second in changed else shown
        unit = Unit(second, shown, (0, 0), rows(-1 - second))
        is_still = window.is_still(unit)
        n_rows = STILL_ROWS if is_still else ROWS
        window.remove(window.spans_to_evict(n_rows))
        assert window.is_still(unit) == is_still  # its image did not leave for it
        window.append_unit(unit, n_rows, is_still)
        check(window)
        if second % 5 == 0:
            check_images(window, changed)
    return window


def check_images(window, changed):
    """Behind the newest image that was read, each still second shows that image."""
    read = None
    for span in window.spans:
        if span.is_still:
            assert read is not None and span.second - read < LONGEST_STILL_S
            assert read >= max(second for second in changed if second <= span.second)
        else:
            read = span.second


def rows(key) -> np.ndarray:
    return np.random.default_rng(abs(key)).standard_normal((4, 8)).astype(np.float16)


def reach(window) -> int:
    return window.seconds[-1] - window.seconds[0]


@pytest.mark.parametrize('policy', POLICIES)
def test_a_window_of_a_still_scene_reaches_three_times_as_far(policy):
    moving, still = (stream_of(policy, list(range(n)), 600) for n in (600, 1))
    # `long` thins the still seconds out as well, but keeps the image that each of them shows.
    assert reach(still) > (2.8 if policy == 'recent' else 1.5) * reach(moving)


@pytest.mark.parametrize('policy', POLICIES)
def test_a_still_second_is_never_without_its_image(rng, policy):
    changed = [0, *np.flatnonzero(rng.random(600) < 0.15)]
    window = stream_of(policy, changed, 600)
    assert any(span.is_still for span in window.spans)


@pytest.mark.parametrize(
    'unit',
    [
        Unit(3, rows(0), (1, 1), rows(1)),
        Unit(3, rows(2), (0, 0), rows(1)),
        Unit(3, rows(0), (0, 0), None),
        Unit(3, None, (0, 0), rows(1)),
        Unit(18, rows(0), (0, 0), rows(1)),
        Unit(1, rows(0), (0, 0), rows(1)),
    ],
)
def test_only_the_same_image_soon_after_it_and_with_audio_is_still(unit):
    window = Window(0, 10 * ROWS, still=True)
    window.append_unit(Unit(2, rows(0), (0, 0), None), ROWS)
    assert window.is_still(Unit(17, rows(0), (0, 0), rows(1)))
    assert not window.is_still(unit)
    window.remove(window.spans)
    assert not window.is_still(Unit(3, rows(0), (0, 0), rows(1)))
