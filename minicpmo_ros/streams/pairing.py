# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pairs the image and the audio of each second into units, in order.

A unit closes when both halves have come, or a deadline after the first of them. A half that comes
later is late: it is counted and never inserted. A half may be empty, and a second with two empty
halves makes no unit; a half with content overrides an earlier empty half, as after a pause.

How long a stream is waited for (`_WaitPolicy`): one that never came, once and for 2 s at most; one
that comes, until the deadline; one that missed the deadline of two seconds in a row, not at all,
so that a robot with one sense is live. It is waited for again once a half comes in time, or would
have come in time. A stream that has shown a later second is past this one, and not waited for:
the half was lost, or came before a reset.

    NEW ---- a half ----> PRESENT <---- a half in time ---- ABSENT
     |                       |                                ^
     +-- a second missed ----+-- two seconds missed in a row -+

A stream whose seconds go back behind its newest one (a recording that loops) is in a new time.
The first unit of the new time closes when the other stream has followed, so that the window is
cleared once, for both. If a stream goes back alone while the other goes on, it is late.

    TOGETHER -- a stream goes back --> APART: its halves are kept apart. Then
      to TOGETHER in the new time: the other goes back too; or it is absent, or shows nothing for
                  the deadline and a second
      to TOGETHER in the old time: the other shows max_pending seconds more; or the stream returns
                  to where it was, after a wrong stamp

A time in which no stream is any more, because its newest unit had a wrong stamp, is left, too.

No threads and no clock: the caller passes the time.
"""

import math
import re
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from minicpmo_ros.config import LLM
from minicpmo_ros.errors import InputError
from minicpmo_ros.streams.time import LIMITS, OTHER, Instant

MOST_CAMERAS, CAMERA = 8, re.compile(r'[A-Za-z]\w{0,31}(/\w{1,32})*', re.ASCII)
# What a second waits for: the streams that come, always both, or only one of them.
WAIT_FOR = {'auto': None, 'both': ('image', 'audio'), 'image': ('image',), 'audio': ('audio',)}


@dataclass(frozen=True)
class Unit:
    """One second as the language model reads it, [second, second + 1) of the stream."""

    second: int
    image_rows: np.ndarray | None = None  # overview, then tiles: (queries * images, width)
    # Columns and rows of the grid; no tiles: (0, 0). Of several cameras their names as well.
    tiles: tuple = (0, 0)
    audio_rows: np.ndarray | None = None  # (tokens, width)
    level_dbfs: float = math.inf  # of the audio, as AudioSecond; inf: not known
    restarted: bool = False  # time went back: earlier units belong to another time
    arrived: Instant | None = None  # when its first half came
    # Of one that is read again from a file: the seconds in the window when it was first read.
    window: tuple | None = None

    @property
    def cameras(self) -> tuple:
        """Names of the cameras whose images are in the rows, in equal shares; (): one camera."""
        return self.tiles[2:]

    @property
    def is_restored(self) -> bool:
        """Whether it is read again from a file."""
        return self.window is not None


def check_cameras(names: tuple) -> tuple:
    """Return the names of cameras; raise InputError if they are none, or too many."""
    wrong = [name for name in names if not CAMERA.fullmatch(name)]
    if wrong or len(set(names)) < len(names) or len(names) > MOST_CAMERAS:
        raise InputError(
            f'cameras are {", ".join(map(repr, names))}; up to {MOST_CAMERAS} different names of '
            'letters, digits, _ and / are allowed, such as front, left'
        )
    return names


def cameras_of(text: str) -> tuple:
    """Return the names in a text, separated by commas; raise InputError as `check_cameras`."""
    return check_cameras(tuple(name.strip() for name in text.split(',') if name.strip()))


class _Time:
    """The seconds between two jumps.

    `open`: by second, when its first half came and, by stream, the halves (rows or None, tiles or
    level) that have come. `newest`: by stream, its newest second with content. `closed`: the
    second of the newest unit, or None.
    """

    def __init__(self, open_seconds: dict | None = None, newest: dict | None = None):
        self.open, self.newest, self.closed = open_seconds or {}, newest or {}, None

    def add(self, stream: str, second: int, half: tuple, now: Instant) -> bool:
        """Take a half; return False if it is late."""
        has_content = half[0] is not None
        is_late = self.closed is not None and second <= self.closed
        is_late |= second <= self.newest.get(stream, second - 1)
        if has_content:
            self.newest[stream] = max(second, self.newest.get(stream, second))
            self.discard_after(stream, second)
        if not is_late:
            self.open.setdefault(second, (now, {}))[1][stream] = half
        return not is_late

    def only(self, stream: str) -> '_Time':
        """Return a time that holds only this stream's halves of this one."""
        own = {
            second: (first, {stream: came[stream]})
            for second, (first, came) in self.open.items()
            if stream in came
        }
        return _Time(own, {stream: self.newest[stream]})

    def discard_after(self, stream: str, second: int) -> None:
        """Drop this stream's halves for later seconds: it has gone back before them."""
        for later in [number for number in self.open if number > second]:
            _, came = self.open[later]
            came.pop(stream, None)
            if not came:
                del self.open[later]


class _WaitPolicy:
    """Decides which streams are waited for, and how long; see the module."""

    def __init__(self, unit_deadline_s: float):
        self._deadline_s = unit_deadline_s
        self.wait_for = LLM.wait_for  # a key of WAIT_FOR
        self._states = dict.fromkeys(OTHER, 'new')
        self._missed = dict.fromkeys(OTHER, 0)

    def waits_s(self, stream: str) -> float:
        """Return how long a second waits for this stream."""
        chosen = WAIT_FOR[self.wait_for]
        if chosen is not None:
            return self._deadline_s if stream in chosen else 0.0
        most_s = {'new': LIMITS.never_came_s, 'present': self._deadline_s, 'absent': 0.0}
        return min(self._deadline_s, most_s[self._states[stream]])

    def is_absent(self, stream: str) -> bool:
        """Return whether the stream is not waited for."""
        return self.waits_s(stream) == 0.0

    def note_useful(self, stream: str) -> None:
        """Note that a half came that was, or would have been, in time."""
        self._states[stream], self._missed[stream] = 'present', 0

    def note_missed(self, stream: str) -> None:
        """Note that a second waited for the stream in vain."""
        self._missed[stream] += 1
        if self._states[stream] == 'new' or self._missed[stream] >= LIMITS.most_missed:
            self._states[stream] = 'absent'


class UnitAssembler:
    """Collects the halves of open seconds until they close."""

    def __init__(self, unit_deadline_s: float = LLM.unit_deadline_s, max_pending: int = 8):
        self.unit_deadline_s, self.max_pending = unit_deadline_s, max_pending
        self.late = 0  # halves, not empty, that came twice or after their unit had closed
        self.jumps = 0  # how often both streams, or the only one, went back
        self.wait_policy = _WaitPolicy(unit_deadline_s)  # survives `clear`
        self.clear()

    @property
    def closed_second(self) -> int | None:
        """The second of the newest unit; a half for it or an earlier one is late."""
        return self._time.closed

    def add_image(self, second: int, rows: np.ndarray | None, tiles: tuple, now: Instant) -> None:
        """Take the image rows of a second; None: it has no image."""
        self._add('image', second, (rows, tiles), now)

    def add_audio(
        self, second: int, rows: np.ndarray | None, now: Instant, level_dbfs: float = math.inf
    ) -> None:
        """Take the audio rows of a second, None: it has no audio; and how loud it is."""
        self._add('audio', second, (rows, level_dbfs), now)

    def due(self, now: Instant) -> list:
        """Close seconds that are complete or have waited enough; return the units in order."""
        if self._next_time is not None and self._time_left_to_follow_s(now) <= 0:
            self._jump_alone()
        units, open_seconds = [], self._time.open
        for second in sorted(open_seconds):
            (first, came), is_full = open_seconds[second], len(open_seconds) > self.max_pending
            if self._time_left_s(second, now) > 0 and not is_full:
                break
            self._close(second, first, came, is_full)
            image_rows, tiles = came.get('image', (None, (0, 0)))
            audio_rows, level_dbfs = came.get('audio', (None, math.inf))
            if image_rows is not None and audio_rows is not None:
                self._stream_not_waited_for = None
            if image_rows is not None or audio_rows is not None:
                self._time.closed = second
                restarted, self._restarted = self._restarted, False
                unit = Unit(second, image_rows, tiles, audio_rows, level_dbfs, restarted, first)
                units.append(unit)
        return units

    def is_open_until(self, second: int) -> bool:
        """Return whether this second or one before it waits for a half."""
        return any(number <= second for number in self._time.open)

    def time_until_due_s(self, now: Instant) -> float | None:
        """Return when `due` may next close a second without new halves; None: never.

        If simulated time is slower than the steady clock, nothing may be due by then yet.
        """
        times_s = []
        if self._time.open:
            times_s.append(self._time_left_s(min(self._time.open), now))
        if self._next_time is not None:
            times_s.append(self._time_left_to_follow_s(now))
        soonest_s = min(times_s, default=math.inf)
        return None if soonest_s == math.inf else max(0.0, soonest_s)

    def clear(self) -> None:
        """Forget the open seconds and all that the streams have shown."""
        self._time = _Time()
        self._restarted = False  # the next unit is the first after a jump
        self._next_time = None  # a _Time that one stream has gone back to
        self._leader = None  # that stream
        self._seconds_since_jump = 0  # that the other stream has shown
        self._stream_not_waited_for = None  # the one that the jump did not wait for
        self._closed = {}  # second: Instant of its first half, of the newest that are closed

    def _time_left_s(self, second: int, now: Instant) -> float:
        """Return how much longer an open second waits, in seconds."""
        first, came = self._time.open[second]
        waits_s = max(map(self.wait_policy.waits_s, self._lacking(second, came)), default=0.0)
        return waits_s - now.waited_s(first)

    def _lacking(self, second: int, came: dict) -> list:
        """Return the streams whose half of this second may still come."""
        later = [halves for number, (_, halves) in self._time.open.items() if number > second]
        shown = set().union(*later)  # streams that have gone on
        return [stream for stream in OTHER.keys() - came.keys() if stream not in shown]

    def _time_left_to_follow_s(self, now: Instant) -> float:
        """Return how much longer the other stream has to follow to the new time, in seconds."""
        if self._seconds_since_jump or not self._next_time.open:
            return math.inf
        if self.wait_policy.is_absent(OTHER[self._leader]):
            return 0.0
        first, _ = self._next_time.open[min(self._next_time.open)]
        return self.unit_deadline_s + LIMITS.alone_s - now.waited_s(first)

    def _close(self, second: int, first: Instant, came: dict, is_full: bool) -> None:
        del self._time.open[second]
        self._closed[second] = first
        if len(self._closed) > self.max_pending:
            del self._closed[min(self._closed)]
        for stream in self._lacking(second, came):
            if not is_full and not self.wait_policy.is_absent(stream):
                self.wait_policy.note_missed(stream)

    def _add(self, stream: str, second: int, half: tuple, now: Instant) -> None:
        time = self._time_of(stream, second, half)
        is_of_use = time.add(stream, second, half, now)
        is_late = not is_of_use and half[0] is not None and time is self._time
        if is_late and self._is_nobodys_time():
            self._next_time = _Time()
            self._jump()
            time, is_of_use = self._time, self._time.add(stream, second, half, now)
        if not is_of_use:
            self.late += half[0] is not None  # of an empty one nothing is lost
            first = self._closed.get(second)
            is_of_use = first is not None and now.waited_s(first) < self.unit_deadline_s
        if is_of_use and time is self._time:
            self.wait_policy.note_useful(stream)
        if time is self._next_time and len(time.open) > 2 * self.max_pending:
            # Either the other stream has shown that it stays, or it has shown nothing for long.
            self._abandon_jump() if self._seconds_since_jump else self._jump_alone()

    def _is_nobodys_time(self) -> bool:
        """Return whether all streams are long behind the newest unit, as after a wrong stamp."""
        closed, newest = self._time.closed, self._time.newest.values()
        return closed is not None and all(end < closed - self.max_pending for end in newest)

    def _time_of(self, stream: str, second: int, half: tuple) -> _Time:
        """Return the time a half belongs to: the present one, or the one gone back to."""
        goes_back = second < self._time.newest.get(stream, second)
        if self._next_time is None:
            if goes_back:
                self._go_back(stream, second)
            return self._next_time or self._time
        if stream == self._leader:
            return self._of_leader(stream, second)
        self._seconds_since_jump += half[0] is not None
        if goes_back:
            self._jump()
        elif self._seconds_since_jump >= self.max_pending:
            self._abandon_jump()
        return self._time

    def _go_back(self, stream: str, second: int) -> None:
        time, other = self._time, OTHER[stream]
        if stream == self._stream_not_waited_for:
            self._stream_not_waited_for = None
            time.discard_after(stream, second)
            del time.newest[stream]
            return
        self._next_time, self._leader, self._seconds_since_jump = _Time(), stream, 0
        there = time.newest.get(other)
        if there is None:
            self._jump_alone()
        elif abs(there - time.newest[stream]) > self.max_pending >= abs(there - second):
            self._next_time = time.only(other)  # it is in the new time already
            self._jump()

    def _of_leader(self, stream: str, second: int) -> _Time:
        reached = max(self._next_time.open, default=second)
        if second > max(reached + 1, self._time.newest[stream]):
            # The stamp was wrong: the stream is where it was.
            self.late += len(self._next_time.open)
            self._next_time = None
            return self._time
        if second < self._next_time.newest.get(stream, second):
            self._next_time = _Time()
        return self._next_time

    def _jump(self) -> None:
        self._time, self._next_time = self._next_time, None
        self._restarted, self._stream_not_waited_for = True, None
        self._closed.clear()
        self.jumps += 1

    def _jump_alone(self) -> None:
        """Jump without the other stream, which shows nothing that would be lost."""
        self._jump()
        self._stream_not_waited_for = OTHER[self._leader]

    def _abandon_jump(self) -> None:
        """Abandon the jump; count the leader's halves as late."""
        self.late += len(self._next_time.open)
        self._time.newest[self._leader] = max(self._next_time.newest.values(), default=0)
        self._next_time = None


class UnitInbox:
    """Queue of closed units to be read, oldest first; when it is full, the oldest is dropped."""

    def __init__(self, assembler: UnitAssembler, max_units: int):
        self.assembler, self.max_units = assembler, max_units
        self.units = deque()
        self.dropped = 0  # units dropped unread

    def collect(self, now: Instant) -> None:
        """Queue the units that have become due."""
        for unit in self.assembler.due(now):
            if unit.restarted:  # the queued units belong to another time
                self.dropped += len(self.units)
                self.units.clear()
            self.units.append(unit)
            if len(self.units) > self.max_units:
                self._drop_oldest()

    def clear(self) -> None:
        """Forget all open seconds and queued units."""
        self.assembler.clear()
        self.units.clear()

    def _drop_oldest(self) -> None:
        oldest = self.units.popleft()
        self.dropped += 1
        if oldest.restarted and self.units:  # now the next one is the first of its time
            self.units.appendleft(replace(self.units.popleft(), restarted=True))
