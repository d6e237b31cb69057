# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Units come out once, in order, whole when both halves came in time."""

import numpy as np
import pytest

from minicpmo_ros.live.units import UnitAssembler, UnitInbox

PICTURE, SOUND = np.ones((64, 8), np.float16), np.ones((25, 8), np.float16)
NO_TILES = (0, 0)


@pytest.fixture
def assembler():
    return UnitAssembler(unit_deadline_s=0.5, max_pending=8)


def seconds(units):
    return [unit.second for unit in units]


def test_a_unit_closes_when_both_halves_are_there(assembler):
    assembler.add_picture(7, PICTURE, (2, 1), 0.0)
    assert assembler.due(0.4) == []
    assembler.add_sound(7, SOUND, 0.4)
    (unit,) = assembler.due(0.4)
    assert unit.second == 7 and unit.tiles == (2, 1) and not unit.restarted
    assert unit.picture_rows is PICTURE and unit.sound_rows is SOUND
    assert assembler.due(9) == []


@pytest.mark.parametrize('half', ['picture', 'sound'])
def test_one_half_alone_closes_at_the_deadline(assembler, half):
    if half == 'picture':
        assembler.add_picture(7, PICTURE, NO_TILES, 1.0)
    else:
        assembler.add_sound(7, SOUND, 1.0)
    assert assembler.next_deadline_s() == 1.5
    assert assembler.due(1.49) == []
    (unit,) = assembler.due(1.5)
    assert (unit.picture_rows is None) == (half == 'sound')
    assert (unit.sound_rows is None) == (half == 'picture')
    assert assembler.next_deadline_s() is None


def test_an_empty_half_is_not_waited_for(assembler):
    assembler.add_picture(7, None, NO_TILES, 0.0)
    assembler.add_sound(7, SOUND, 0.1)
    (unit,) = assembler.due(0.1)
    assert unit.picture_rows is None and unit.sound_rows is SOUND


def test_two_empty_halves_make_no_unit(assembler):
    assembler.add_picture(7, None, NO_TILES, 0.0)
    assembler.add_sound(7, None, 0.0)
    assert assembler.due(9) == [] and assembler.next_deadline_s() is None


def test_late_halves_are_counted_and_never_reordered(assembler):
    assembler.add_sound(7, SOUND, 0.0)
    assembler.add_sound(8, SOUND, 0.4)
    assert seconds(assembler.due(0.9)) == [7, 8]
    assembler.add_picture(7, PICTURE, NO_TILES, 1.0)
    assembler.add_picture(8, PICTURE, NO_TILES, 1.0)
    assert assembler.due(9) == [] and assembler.late == 2 and assembler.jumps == 0


def test_a_half_that_comes_twice_is_late(assembler):
    assembler.add_sound(7, SOUND, 0.0)
    assembler.add_sound(7, SOUND, 0.1)
    assert assembler.late == 1 and assembler.jumps == 0


def test_a_later_second_waits_for_an_earlier_one(assembler):
    assembler.add_sound(7, SOUND, 0.0)
    for second in (8, 9):
        assembler.add_picture(second, PICTURE, NO_TILES, 0.1)
        assembler.add_sound(second, SOUND, 0.1)
    assert assembler.due(0.2) == []
    assert seconds(assembler.due(0.5)) == [7, 8, 9]


def test_a_stream_far_behind_the_other_is_late_and_no_jump(assembler):
    for second in range(20):
        assembler.add_picture(second, PICTURE, NO_TILES, second)
        if second >= 5:
            assembler.add_sound(second - 5, SOUND, second)
        assembler.due(second + 0.5)
    assert assembler.jumps == 0 and assembler.late == 15


def test_a_stream_that_goes_back_starts_anew(assembler):
    for second in (100, 101):
        assembler.add_picture(second, PICTURE, NO_TILES, 0.0)
        assembler.add_sound(second, SOUND, 0.0)
    assert seconds(assembler.due(0.0)) == [100, 101]
    assembler.add_sound(0, SOUND, 1.0)
    assembler.add_picture(0, PICTURE, NO_TILES, 1.0)
    assembler.add_sound(1, SOUND, 1.0)
    assembler.add_picture(1, PICTURE, NO_TILES, 1.0)
    first, second = assembler.due(1.0)
    assert (first.second, first.restarted) == (0, True)
    assert (second.second, second.restarted) == (1, False)
    assert assembler.jumps == 1 and assembler.late == 0


def test_a_loop_heals_though_old_halves_are_on_their_way(assembler):
    assembler.add_sound(100, SOUND, 0.0)
    assembler.add_picture(0, PICTURE, NO_TILES, 0.0)  # a recording of 101 s, then its loop
    assembler.add_sound(101, SOUND, 0.0)
    seen = []
    for second in range(8):
        assembler.add_picture(second + 1, PICTURE, NO_TILES, second)
        assembler.add_sound(second, SOUND, second)
        seen += seconds(assembler.due(second + 0.6))
    assert seen[-4:] == [5, 6, 7, 8]


def test_open_seconds_are_bounded():
    assembler = UnitAssembler(unit_deadline_s=1e9, max_pending=3)
    for second in range(10):
        assembler.add_sound(second, SOUND, 0.0)
    assert seconds(assembler.due(0.0)) == list(range(7))


def test_clear_forgets_everything(assembler):
    assembler.add_sound(7, SOUND, 0.0)
    assembler.due(9)
    assembler.clear()
    assembler.add_sound(3, SOUND, 10.0)
    (unit,) = assembler.due(11.0)
    assert unit.second == 3 and not unit.restarted and assembler.late == assembler.jumps == 0


def fill(inbox, second_range):
    for second in second_range:
        inbox.assembler.add_picture(second, PICTURE, NO_TILES, 0.0)
        inbox.assembler.add_sound(second, SOUND, 0.0)
        inbox.collect(0.0)


def test_a_full_inbox_drops_the_oldest_and_counts(assembler):
    inbox = UnitInbox(assembler, max_units=3)
    fill(inbox, range(10))
    assert seconds(inbox.units) == [7, 8, 9] and inbox.dropped == 7


def test_after_a_jump_only_the_new_time_waits(assembler):
    inbox = UnitInbox(assembler, max_units=3)
    fill(inbox, [100, 101])
    fill(inbox, [0])
    assert seconds(inbox.units) == [0] and inbox.units[0].restarted and inbox.dropped == 2


def test_the_mark_of_a_jump_outlives_the_unit_that_bore_it(assembler):
    inbox = UnitInbox(assembler, max_units=3)
    fill(inbox, [100])
    fill(inbox, range(5))
    assert seconds(inbox.units) == [2, 3, 4]
    assert [unit.restarted for unit in inbox.units] == [True, False, False]
