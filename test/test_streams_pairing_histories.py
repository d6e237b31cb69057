# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Units of senses that come alone, stop, return, lag and step back; also at random."""

import numpy as np
import pytest

from minicpmo_ros.streams.pairing import UnitAssembler, UnitInbox
from minicpmo_ros.streams.time import Instant

DEADLINE_S = 2.0
STREAMS = ('image', 'audio')


class Rig:
    """An assembler and its inbox, fed with halves that know where they are from."""

    def __init__(self, deadline_s=DEADLINE_S):
        self.assembler = UnitAssembler(deadline_s, max(8, int(deadline_s) + 2))
        self.inbox = UnitInbox(self.assembler, 10**6)
        self.closed_s, self.given = {}, 0  # when each second's first unit came out

    def put(self, stream, second, at_s, epoch=0, empty=False):
        rows = None if empty else np.array([[STREAMS.index(stream), second, epoch]], np.float32)
        self.given += not empty
        if stream == 'image':
            self.assembler.add_image(second, rows, (0, 0), Instant(at_s))
        else:
            self.assembler.add_audio(second, rows, Instant(at_s))
        self.look(at_s)

    def look(self, at_s):
        before = len(self.inbox.units)
        self.inbox.collect(Instant(at_s))
        for unit in list(self.inbox.units)[before:]:
            self.closed_s.setdefault(unit.second, at_s)

    def run(self, events):
        """Feed (at_s, stream, second, epoch, empty), and look ten times a second between them."""
        events, now_s = sorted(events), 0.0
        for at_s, stream, second, epoch, empty in events:
            while now_s < at_s:
                self.look(now_s)
                now_s += 0.1
            self.put(stream, second, at_s, epoch, empty)
        for _ in range(200):
            now_s += 0.1
            self.look(now_s)

    @property
    def whole(self):
        return [u.second for u in self.inbox.units if None not in (id_of(u, 0), id_of(u, 1))]


def id_of(unit, index):
    rows = (unit.image_rows, unit.audio_rows)[index]
    return None if rows is None else tuple(rows[0])


def seconds(stream, numbers, lag_s=0.3, epoch=0, shift=0):
    """Give the events of a stream whose halves come `lag_s` after each second's end."""
    return [(n + 1 + lag_s, stream, n + shift, epoch, False) for n in numbers]


@pytest.mark.parametrize('deadline_s', [2.0, 10.0])
@pytest.mark.parametrize('stream', STREAMS)
def test_one_sense_alone_is_live(stream, deadline_s):
    rig = Rig(deadline_s)
    rig.run(seconds(stream, range(60)))
    assert [u.second for u in rig.inbox.units] == list(range(60)) and not rig.assembler.late
    lags_s = [rig.closed_s[n] - (n + 1.3) for n in range(60)]
    assert max(lags_s) <= 2.0 + 0.1  # nothing was known of the other yet
    assert max(lags_s[3:]) == 0.0


@pytest.mark.parametrize('deadline_s', [2.0, 10.0])
@pytest.mark.parametrize('other', STREAMS)
def test_a_sense_that_stops_is_waited_for_a_second_longer_than_the_deadline(other, deadline_s):
    (stream,) = {*STREAMS} - {other}
    rig = Rig(deadline_s)
    back = range(60, 90)
    rig.run(
        seconds(stream, range(90)) + seconds(other, range(20), 0.4) + seconds(other, back, 0.4)
    )
    lag_s = {n: rig.closed_s[n] - (n + 1.3) for n in range(90)}
    assert max(lag_s.values()) <= deadline_s + 0.1 + 0.01
    live_from = 20 + int(deadline_s) + 2
    assert max(lag_s[n] for n in range(live_from, 60)) == 0.0
    # When it is back, at most its first second is not paired.
    assert rig.whole == [*range(20), *range(61, 90)]
    assert not any(unit.restarted for unit in rig.inbox.units) and rig.assembler.late == 1


def test_a_hiccup_costs_a_sense_no_more_than_the_second_that_waited_too_long():
    rig = Rig()
    sound = [
        (max(at_s, 13.5) if second >= 10 else at_s, stream, second, *more)
        for at_s, stream, second, *more in seconds('audio', range(30), 0.1)
    ]
    rig.run(seconds('image', range(30), 0.2) + sound)  # silent from 11.1 to 13.5 s
    assert rig.whole == [n for n in range(30) if n != 10]


def test_a_sense_that_always_comes_too_late_is_not_waited_for():
    rig = Rig()
    rig.run(seconds('image', range(60)) + seconds('audio', range(50), 5.0))
    assert max(rig.closed_s[n] - (n + 1.3) for n in range(10, 60)) == 0.0
    assert not rig.assembler.jumps


@pytest.mark.parametrize('lag_s', [0.0, 0.5, 0.95, 1.2, 1.9])
@pytest.mark.parametrize('back', [2, 3, 5])
@pytest.mark.parametrize('stream', STREAMS)
def test_one_sense_alone_stepping_back_clears_nothing(stream, back, lag_s):
    (other,) = {*STREAMS} - {stream}
    rig = Rig()
    rig.run(
        seconds(stream, range(10), 0.2)
        + seconds(stream, range(10, 40), 0.2, shift=-back)
        + seconds(other, range(40), 0.3 + lag_s)
    )
    found = [unit.second for unit in rig.inbox.units]
    assert found == sorted(set(found)) and {*range(40)} <= {*found}
    assert not rig.assembler.jumps and not any(unit.restarted for unit in rig.inbox.units)


@pytest.mark.parametrize('rate', [2, 3])
def test_a_slow_camera_contradicts_audio_that_steps_back(rate):
    """An image every two or three seconds, the seconds between without."""
    pictures = [(n + 1.3, 'image', n, 0, n % rate > 0) for n in range(60)]
    rig = Rig()
    rig.run(pictures + seconds('audio', range(20)) + seconds('audio', range(20, 60), shift=-3))
    assert not rig.assembler.jumps


def test_a_loop_of_one_sense_whose_other_stopped_just_before_goes_on():
    rig = Rig()
    rig.run(
        seconds('image', range(18))
        + seconds('audio', range(20))
        + seconds('audio', range(20, 50), shift=-20, epoch=1)
    )
    new = [unit for unit in rig.inbox.units if unit.audio_rows is not None and id_of(unit, 1)[2]]
    assert [unit.second for unit in new] == list(range(30)) and rig.assembler.jumps == 1


@pytest.mark.parametrize('seed', range(150))
def test_random_histories(seed):
    """Both, one or no sense at a time, lags, gaps, empty halves, loops of both, steps of one."""
    rng = np.random.default_rng(seed)
    events, epoch, shift, now = [], 0, 0, 0
    lag_s = {stream: float(rng.uniform(0.05, 1.5)) for stream in STREAMS}
    loops = 0
    for _ in range(rng.integers(1, 6)):
        n = int(rng.integers(12, 30))
        on = {stream: rng.random() > 0.25 for stream in STREAMS}
        if loops == 0 and now > 20 and rng.random() < 0.4:
            # Loops: both at once, to a time far from what was on its way.
            epoch, shift, loops = 1, 1000 - now, 1
        for stream in STREAMS:
            for second in range(now, now + n):
                if on[stream] and rng.random() > 0.03:
                    at_s = second + 1 + lag_s[stream]
                    empty = rng.random() < 0.1
                    there = second + shift + (2000 if epoch == 0 else 0)
                    events.append((at_s, stream, there, epoch, bool(empty)))
        now += n
    rig = Rig()
    rig.run(events)
    units = list(rig.inbox.units)
    # In order, but where a jump is marked; each second once.
    for earlier, later in zip(units, units[1:], strict=False):
        assert later.second > earlier.second or later.restarted
    used = [half for u in units for half in (id_of(u, 0), id_of(u, 1)) if half is not None]
    assert len(used) == len(set(used))  # nothing twice
    for unit in units:
        halves = [half for half in (id_of(unit, 0), id_of(unit, 1)) if half is not None]
        assert halves and all(half[1] == unit.second for half in halves)
        assert len({half[2] for half in halves}) == 1  # of one time
    assert rig.assembler.jumps <= loops
    # What is not in a unit was late, or was pushed out by a jump.
    assert rig.given - len(used) <= rig.assembler.late + rig.inbox.dropped * 2
    # A second never waits longer than the deadline, and for the one before it, which may have
    # begun to wait later by as much as the streams' lags differ.
    first_s = {}
    for at_s, _, second, _, _ in events:
        first_s[second] = min(at_s, first_s.get(second, at_s))
    if not loops:
        late_s = [rig.closed_s[u.second] - first_s[u.second] for u in units]
        differ_s = abs(lag_s['image'] - lag_s['audio'])
        assert max(late_s, default=0.0) <= DEADLINE_S + differ_s + 0.11
    # Nothing is left: a later second of both closes alone, and makes nothing late.
    assert not rig.assembler.is_open_until(10**6)
    assert rig.assembler.time_until_due_s(Instant(0.0)) is None
    late, rig.assembler.wait_policy.wait_for = rig.assembler.late, 'both'
    for stream in STREAMS:
        rig.put(stream, 10**6, 10**6)
    assert len(rig.inbox.units) == len(units) + 1 and rig.whole[-1] == 10**6
    assert rig.assembler.late == late


@pytest.mark.parametrize('wrong', STREAMS)
@pytest.mark.parametrize('wild', [(1e8, -1e8), (1e8, 2e8, -1e8, 1e8), (-1e8, 1e8), (1e8, 50, -50)])
def test_a_stream_with_wild_stamps_takes_neither_sense_away_for_good(wrong, wild):
    rig, other, start = Rig(), STREAMS[wrong == STREAMS[0]], 10**9
    events = [(n + 1.3, other, start + n, 0, False) for n in range(60)]
    for n in range(60):
        shift = int(wild[n - 10]) if 0 <= n - 10 < len(wild) else 0
        events.append((n + 1.3, wrong, start + n + shift, 0, False))
    rig.run(events)
    assert set(range(start + 40, start + 60)) <= set(rig.whole)
