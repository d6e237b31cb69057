# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where a machine is too slow, less is seen of the seconds before one is lost, and more again."""

import pytest

from minicpmo_ros.pace.governor import GaveUp, Governor, Pace

FULL, SMALLEST = Pace(1.0, 1), Pace(0.25, 1)


def live(governor, full_s, seconds, first=0, late_s=0.0):
    """See seconds on a machine that takes full_s for an image of the full area; give the paces."""
    paces = []
    for second in range(first, first + seconds):
        paces.append(governor.pace)
        if not governor.leaves_out(second):
            governor.note(full_s * governor.pace.area, late_s)
    return paces


def test_a_machine_with_time_sees_everything():
    governor = Governor()
    assert set(live(governor, 0.887, 1000)) == {FULL}  # an Orin Nano's vision, of every second
    assert governor.cause == ''


def test_the_area_goes_down_as_far_as_is_needed_at_once():
    for full_s, area in ((1.1, 0.56), (1.6, 0.39), (2.4, 0.25)):
        governor = Governor()
        governor.note(full_s, full_s)
        assert governor.pace == Pace(area, 1)
        assert governor.cause == f'encoding an image takes {full_s:.1f} s, there is time for 1 s'


def test_the_rate_goes_down_when_the_smallest_area_is_too_much():
    governor = Governor()
    governor.note(5.0, 5.0)
    assert governor.pace == Pace(0.25, 2)
    assert [second for second in range(8) if not governor.leaves_out(second)] == [0, 2, 4, 6]
    governor.note(9.0, 0.0)
    assert governor.pace == Pace(0.25, 4)
    governor.note(90.0, 0.0)
    assert governor.pace == Pace(0.25, 4)  # there is nothing else to lower


def test_all_comes_back_within_ten_seconds_of_the_loads_end():
    for slow_s in (1.2, 2.4, 3.6, 9.0):
        governor = Governor()
        live(governor, slow_s, 60)
        assert governor.pace != FULL and governor.cause
        paces = live(governor, slow_s / 4 if slow_s < 4 else 0.5, 10, 60)
        assert governor.pace == FULL and governor.cause == '', (slow_s, paces)


def test_under_a_steady_load_the_pace_is_steady():
    for full_s in (1.05, 1.2, 1.7, 2.4, 3.4, 6.0):
        paces = live(Governor(), full_s, 600)
        assert len(set(paces[10:])) == 1, full_s
        assert paces[10].area * full_s <= 0.92 * paces[10].period_s


def test_what_takes_as_long_at_every_area_lowers_the_rate():
    governor = Governor()
    for second in range(600):
        if not governor.leaves_out(second):
            governor.note(1.5, 0.0)
    assert governor.pace == Pace(0.25, 2)


def test_beside_a_load_that_comes_and_goes_the_pace_is_raised_ever_less_often():
    governor, raised = Governor(), []
    for second in range(1200):
        before = governor.pace
        live(governor, 2.4 if second % 12 < 3 else 0.5, 1, second)
        if governor.pace.area > before.area:
            raised.append(second)
    assert len(raised) >= 2 and raised[1] - raised[0] > 12  # not in every pause
    assert len([second for second in raised if second >= 600]) < 0.2 * 600 / 12


def test_lateness_lowers_the_pace_and_names_the_device():
    governor = Governor(latest_s=2.0)
    governor.note(0.3, 1.4)
    assert governor.pace == FULL
    governor.note(0.3, 1.6)
    assert governor.pace == Pace(0.56, 1)
    assert governor.cause == 'images are ready 1.6 s late, the device is busy'


def test_lateness_that_slow_encoding_has_left_behind_has_its_cause():
    governor = Governor(latest_s=2.0)
    with pytest.raises(GaveUp):
        governor.check(1.3)
    governor.note(0.5, 1.8)
    assert governor.pace.period_s == 2 and 'encoding an image takes' in governor.cause


def test_catching_up_is_no_reason_to_lower_further():
    governor = Governor(latest_s=2.0)
    governor.note(1.9, 1.9)
    level = governor.pace
    governor.note(0.5, 1.7)
    governor.note(0.5, 1.2)
    assert governor.pace == level


def test_an_image_that_takes_too_long_is_given_up_for_the_smallest_area():
    governor = Governor(latest_s=2.0)
    governor.check(1.19)
    with pytest.raises(GaveUp, match='more than 1.3 s'):
        governor.check(1.3)
    assert governor.pace == SMALLEST and 'more than 1.3 s' in governor.cause
    governor.check(50.0)  # nothing smaller is there to be had


def test_a_machine_that_only_just_keeps_up_is_never_given_up():
    Governor(latest_s=3.0).check(1.49)
    with pytest.raises(GaveUp):
        Governor(latest_s=3.0).check(1.51)


def test_a_smaller_area_that_is_wanted_is_the_most():
    governor = Governor(area=0.4)
    assert governor.pace == Pace(0.4, 1)
    governor.note(1.1, 1.1)
    assert governor.pace == Pace(0.25, 1)
    assert live(governor, 0.3, 10)[-1] == Pace(0.4, 1)
    assert Governor(area=0.25).pace == SMALLEST


def test_a_still_scene_is_time_to_spare():
    governor = Governor()
    governor.note(2.4, 2.4)
    for _ in range(3):
        governor.note(0.0, 0.0)  # the last embedding was used again
    assert governor.pace == FULL


def test_what_is_wanted_may_change_at_any_time():
    governor = Governor()
    governor.note(1.1, 1.1)
    governor.want(0.4)
    assert governor.pace.area < 0.4
    assert live(governor, 0.3, 5)[-1] == Pace(0.4, 1)
    governor.want(1.0)
    assert governor.pace == FULL and not governor.is_lowered
