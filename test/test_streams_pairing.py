# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Units come out once, in order, whole when both halves came in time."""

import numpy as np
import pytest

from minicpmo_ros.streams.pairing import UnitAssembler, UnitInbox
from minicpmo_ros.streams.time import Instant
from minicpmo_ros.units import NS

IMAGE, AUDIO = np.ones((64, 8), np.float16), np.ones((25, 8), np.float16)
NO_TILES = (0, 0)
START = Instant(0.0)


@pytest.fixture
def assembler():
    return UnitAssembler(unit_deadline_s=0.5, max_pending=8)


def seconds(units):
    return [unit.second for unit in units]


def test_a_unit_closes_when_both_halves_are_there(assembler):
    assembler.add_image(7, IMAGE, (2, 1), Instant(0.0))
    assert assembler.due(Instant(0.4)) == []
    assembler.add_audio(7, AUDIO, Instant(0.4))
    (unit,) = assembler.due(Instant(0.4))
    assert unit.second == 7 and unit.tiles == (2, 1) and not unit.restarted
    assert unit.image_rows is IMAGE and unit.audio_rows is AUDIO
    assert assembler.due(Instant(9)) == []


@pytest.mark.parametrize('half', ['image', 'audio'])
def test_one_half_alone_closes_at_the_deadline(assembler, half):
    if half == 'image':
        assembler.add_image(7, IMAGE, NO_TILES, Instant(1.0))
    else:
        assembler.add_audio(7, AUDIO, Instant(1.0))
    assert assembler.time_until_due_s(Instant(1.0)) == 0.5
    assert assembler.due(Instant(1.49)) == []
    (unit,) = assembler.due(Instant(1.5))
    assert (unit.image_rows is None) == (half == 'audio')
    assert (unit.audio_rows is None) == (half == 'image')
    assert assembler.time_until_due_s(Instant(9.0)) is None


def test_an_empty_half_is_not_waited_for(assembler):
    assembler.add_image(7, None, NO_TILES, Instant(0.0))
    assembler.add_audio(7, AUDIO, Instant(0.1))
    (unit,) = assembler.due(Instant(0.1))
    assert unit.image_rows is None and unit.audio_rows is AUDIO


def test_two_empty_halves_make_no_unit(assembler):
    assembler.add_image(7, None, NO_TILES, Instant(0.0))
    assembler.add_audio(7, None, Instant(0.0))
    assert assembler.due(Instant(9)) == [] and assembler.time_until_due_s(Instant(9.0)) is None


def test_late_halves_are_counted_and_never_reordered(assembler):
    assembler.add_audio(7, AUDIO, Instant(0.0))
    assembler.add_audio(8, AUDIO, Instant(0.4))
    assert seconds(assembler.due(Instant(0.9))) == [7, 8]
    assembler.add_image(7, IMAGE, NO_TILES, Instant(1.0))
    assembler.add_image(8, IMAGE, NO_TILES, Instant(1.0))
    assert assembler.due(Instant(9)) == [] and assembler.late == 2 and assembler.jumps == 0


def test_a_half_that_comes_twice_is_late(assembler):
    assembler.add_audio(7, AUDIO, Instant(0.0))
    assembler.add_audio(7, AUDIO, Instant(0.1))
    assert assembler.late == 1 and assembler.jumps == 0


def test_a_later_second_waits_for_an_earlier_one(assembler):
    for second in (7, 8, 9):
        assembler.add_audio(second, AUDIO, Instant(0.0))
    assert assembler.due(Instant(0.2)) == []
    assembler.add_image(7, IMAGE, NO_TILES, Instant(0.3))
    assert seconds(assembler.due(Instant(0.3))) == [7]
    assert seconds(assembler.due(Instant(0.5))) == [8, 9]


@pytest.mark.parametrize('lost', (AUDIO, None))
def test_a_stream_that_has_shown_a_later_second_is_not_waited_for(assembler, lost):
    """Its half was lost, or came before a reset: the next seconds do not wait behind this one."""
    assembler.add_audio(7, lost, Instant(0.0))
    assert assembler.due(Instant(0.1)) == []
    for second in (8, 9):
        assembler.add_image(second, IMAGE, NO_TILES, Instant(0.1))
        assembler.add_audio(second, AUDIO, Instant(0.1))
    assert seconds(assembler.due(Instant(0.2))) == ([8, 9] if lost is None else [7, 8, 9])


def test_a_stream_far_behind_the_other_is_late_and_no_jump(assembler):
    for second in range(20):
        assembler.add_image(second, IMAGE, NO_TILES, Instant(second))
        if second >= 5:
            assembler.add_audio(second - 5, AUDIO, Instant(second))
        assembler.due(Instant(second + 0.5))
    assert assembler.jumps == 0 and assembler.late == 15


def test_a_stream_that_goes_back_starts_anew(assembler):
    for second in (100, 101):
        assembler.add_image(second, IMAGE, NO_TILES, Instant(0.0))
        assembler.add_audio(second, AUDIO, Instant(0.0))
    assert seconds(assembler.due(Instant(0.0))) == [100, 101]
    assembler.add_audio(0, AUDIO, Instant(1.0))
    assembler.add_image(0, IMAGE, NO_TILES, Instant(1.0))
    assembler.add_audio(1, AUDIO, Instant(1.0))
    assembler.add_image(1, IMAGE, NO_TILES, Instant(1.0))
    first, second = assembler.due(Instant(1.0))
    assert (first.second, first.restarted) == (0, True)
    assert (second.second, second.restarted) == (1, False)
    assert assembler.jumps == 1 and assembler.late == 0


def test_a_loop_heals_though_old_halves_are_on_their_way(assembler):
    assembler.add_audio(100, AUDIO, Instant(0.0))
    assembler.add_image(0, IMAGE, NO_TILES, Instant(0.0))  # a recording of 101 s, then its loop
    assembler.add_audio(101, AUDIO, Instant(0.0))
    seen = []
    for second in range(8):
        assembler.add_image(second + 1, IMAGE, NO_TILES, Instant(second))
        assembler.add_audio(second, AUDIO, Instant(second))
        seen += seconds(assembler.due(Instant(second + 0.6)))
    assert seen[-4:] == [5, 6, 7, 8]


def put(assembler, pictures, sounds, at=START):
    """Give the halves of these seconds, picture first; collect the units."""
    for second in pictures:
        assembler.add_image(second, IMAGE, NO_TILES, at)
    for second in sounds:
        assembler.add_audio(second, AUDIO, at)
    return assembler.due(at)


def test_a_stream_may_be_a_whole_loop_ahead_of_the_other(assembler):
    units = put(assembler, range(100, 103), range(100, 103))
    units += put(assembler, range(100, 104), [])  # the sound is still on its way
    units += put(assembler, [], range(100, 104))
    assert seconds(units) == [100, 101, 102, 100, 101, 102, 103]
    assert [unit.restarted for unit in units] == [False] * 3 + [True] + [False] * 3
    assert all(u.image_rows is not None and u.audio_rows is not None for u in units)
    assert assembler.jumps == 1 and assembler.late == 0


@pytest.mark.parametrize('behind', range(4))
def test_a_loop_clears_once_however_far_one_stream_is_behind(assembler, behind):
    """The sound goes back while pictures of the time before are still on their way."""
    put(assembler, range(100, 105 - behind), range(100, 105))
    units = put(assembler, [], range(behind))  # the sound is in the new time
    units += put(assembler, range(105 - behind, 105), [])  # these are not
    for second in range(4):
        units += put(assembler, [second], [second] if second >= behind else [])
    new = [unit for unit in units if unit.second < 100]
    assert seconds(new) == [0, 1, 2, 3] and [u.restarted for u in new] == [True] + [False] * 3
    assert all(u.image_rows is not None and u.audio_rows is not None for u in new)
    assert assembler.jumps == 1 and assembler.late == 0


def test_a_pause_in_which_seconds_passed_empty_is_no_jump(assembler):
    put(assembler, [4], [4])
    for second in (5, 6, 7):  # the source was paused, and seconds went by without it
        assembler.add_image(second, None, NO_TILES, Instant(0.0))
        assembler.add_audio(second, None, Instant(0.0))
    assembler.add_image(8, None, NO_TILES, Instant(0.0))
    units = put(assembler, [4, 5, 6, 7], [5, 6, 7, 8])  # what was told of 8 is not true any more
    units += put(assembler, [8], [])
    assert seconds(units) == [5, 6, 7, 8] and not any(unit.restarted for unit in units)
    assert assembler.jumps == 0
    assert all(u.image_rows is not None and u.audio_rows is not None for u in units)


def test_a_stream_alone_in_going_back_is_late_and_the_window_stays(assembler):
    """A microphone that lost four seconds and goes on with their stamps."""
    put(assembler, range(100, 110), range(100, 110))
    units = []
    for second in range(110, 140):
        at = Instant(float(second))
        units += put(assembler, [second], [second - 100], at)
        units += assembler.due(Instant(second + 0.9))
    assert seconds(units) == list(range(110, 140)) and assembler.jumps == 0
    assert assembler.late == 30


def test_one_wrong_stamp_changes_nothing(assembler):
    put(assembler, [100], [100])
    units = put(assembler, [101], [3, 101]) + put(assembler, [102], [102])
    assert seconds(units) == [101, 102] and not any(unit.restarted for unit in units)


@pytest.mark.parametrize('silent', ['dead', 'empty', 'never'])
def test_a_stream_goes_back_alone_where_the_other_shows_nothing(assembler, silent):
    if silent != 'never':
        put(assembler, [98], [98])
    if silent == 'empty':
        assembler.add_image(99, None, NO_TILES, Instant(0.0))
    put(assembler, [], range(99, 102))
    assembler.due(Instant(1.0))
    units = []
    for second in range(30):
        units += put(assembler, [], [second], Instant(float(second)))
        units += assembler.due(Instant(second + 0.9))
    assert units[0].restarted and assembler.jumps == 1
    assert seconds(units)[-10:] == list(range(20, 30))
    if silent != 'dead':  # of one that just stopped it cannot be known for some seconds
        assert seconds(units) == list(range(30))
    # And it may come back later, even with a half of the time before.
    units = put(assembler, [102, 30, 31], [30, 31], Instant(31.0))
    assert seconds(units) == [30, 31] and assembler.jumps == 1
    assert all(unit.image_rows is not None for unit in units)


def test_one_sense_that_starts_a_minute_late_joins(assembler):
    units = []
    for second in range(70):
        at = Instant(float(second))
        units += put(assembler, [second] if second >= 60 else [], [second], at)
        units += assembler.due(Instant(second + 0.6))
    assert seconds(units) == list(range(70)) and assembler.late == 0
    assert [u.second for u in units if u.image_rows is not None] == list(range(60, 70))


def test_a_deadline_waits_for_simulated_time_and_for_steady_time(assembler):
    def at(steady_s, simulated_s):
        return Instant(steady_s, int(simulated_s * NS))

    assembler.add_audio(7, AUDIO, at(0, 0))
    assert assembler.due(at(100, 0.4)) == []  # paused, or slow
    assert assembler.due(at(0.4, 100)) == []  # quicker than an encoder
    assert seconds(assembler.due(at(0.5, 0.5))) == [7]


def test_open_seconds_are_bounded():
    assembler = UnitAssembler(unit_deadline_s=1e9, max_pending=3)
    for second in range(10):
        assembler.add_audio(second, AUDIO, Instant(0.0))
    assert seconds(assembler.due(Instant(0.0))) == list(range(7))


def test_clear_forgets_everything(assembler):
    assembler.add_audio(7, AUDIO, Instant(0.0))
    assembler.due(Instant(9))
    assembler.clear()
    assembler.add_audio(3, AUDIO, Instant(10.0))
    (unit,) = assembler.due(Instant(11.0))
    assert unit.second == 3 and not unit.restarted and assembler.late == assembler.jumps == 0


def fill(inbox, second_range):
    for second in second_range:
        inbox.assembler.add_image(second, IMAGE, NO_TILES, Instant(0.0))
        inbox.assembler.add_audio(second, AUDIO, Instant(0.0))
        inbox.collect(Instant(0.0))


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
