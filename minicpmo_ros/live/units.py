# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pairing the picture and the sound of each second into units, in order.

A unit closes when both halves have come, or a deadline after the first of them. What comes after
that is late: counted, never put in behind. A half may come empty, and a second with two empty
halves makes no unit; a half with content takes an empty one back, as when a source was paused.

A stream whose seconds go back behind what it has shown (a recording that loops) is in a new time.
The first unit of that closes when the other stream has followed, so that the window is given up
once and for both. A stream alone in going back, while the other goes on, is late.

No threads, no clock: the caller says what time it is.
"""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from minicpmo_ros.live.pacing import Instant

OTHER = {'picture': 'sound', 'sound': 'picture'}


@dataclass(frozen=True)
class Unit:
    """One second as the language model reads it, [second, second + 1) of the stream."""

    second: int
    picture_rows: np.ndarray | None = None  # overview, then tiles: (queries * pictures, width)
    tiles: tuple = (0, 0)  # columns and rows of the grid; no tiles: (0, 0)
    sound_rows: np.ndarray | None = None  # (tokens, width)
    restarted: bool = False  # time went back: earlier units are another time's


@dataclass
class _Halves:
    """A second still open; a half is a key of `came` even when it came empty."""

    first: Instant
    came: dict = field(default_factory=dict)  # stream: (rows or None, tiles)


@dataclass
class _Time:
    """The seconds between two jumps."""

    open: dict = field(default_factory=dict)  # _Halves by second
    newest: dict = field(default_factory=dict)  # by stream: its newest second with content
    alive: dict = field(default_factory=dict)  # by stream: whether its last half had content
    closed: int | None = None  # second of the newest unit

    def add(self, stream: str, second: int, half: tuple, now: Instant) -> bool:
        """Take a half; False where it is late."""
        has_content = half[0] is not None
        is_late = self.closed is not None and second <= self.closed
        is_late |= second <= self.newest.get(stream, second - 1)
        self.alive[stream] = has_content
        if has_content:
            self.newest[stream] = max(second, self.newest.get(stream, second))
            self.take_back(stream, second)
        if not is_late:
            self.open.setdefault(second, _Halves(now)).came[stream] = half
        return not is_late

    def only(self, stream: str) -> '_Time':
        """Give a time with nothing but what this stream has shown in this one."""
        halves = {
            second: _Halves(halves.first, {stream: halves.came[stream]})
            for second, halves in self.open.items()
            if stream in halves.came
        }
        return _Time(halves, {stream: self.newest[stream]}, {stream: self.alive[stream]})

    def take_back(self, stream: str, second: int) -> None:
        """Forget what a stream has told of later seconds: it is not there yet."""
        for later in [number for number in self.open if number > second]:
            self.open[later].came.pop(stream, None)
            if not self.open[later].came:
                del self.open[later]


class UnitAssembler:
    """Open seconds, in memory until they close."""

    def __init__(self, unit_deadline_s: float = 2.0, max_pending: int = 8):
        self.unit_deadline_s, self.max_pending = unit_deadline_s, max_pending
        self.late = 0  # halves that came after their unit was closed, or twice
        self.jumps = 0  # times both streams, or the only one, went back
        self.clear()

    def add_picture(
        self, second: int, rows: np.ndarray | None, tiles: tuple, now: Instant
    ) -> None:
        """Take the picture of a second, or the news that it has none."""
        self._add('picture', second, (rows, tiles), now)

    def add_sound(self, second: int, rows: np.ndarray | None, now: Instant) -> None:
        """Take the sound of a second, or the news that it has none."""
        self._add('sound', second, (rows, (0, 0)), now)

    def due(self, now: Instant) -> list:
        """Close what is complete or has waited long enough; return the units, in order."""
        units, open_seconds = [], self._time.open
        for second in sorted(open_seconds):
            halves = open_seconds[second]
            waits = (
                len(halves.came) < 2
                and now.waited_s(halves.first) < self.unit_deadline_s
                and len(open_seconds) <= self.max_pending
            )
            if waits:
                break
            del open_seconds[second]
            picture_rows, tiles = halves.came.get('picture', (None, (0, 0)))
            sound_rows, _ = halves.came.get('sound', (None, None))
            if picture_rows is not None and sound_rows is not None:
                self._straggler = None
            if picture_rows is not None or sound_rows is not None:
                self._time.closed = second
                units.append(Unit(second, picture_rows, tiles, sound_rows, self._restarted))
                self._restarted = False
        return units

    def patience_s(self, now: Instant) -> float | None:
        """Return after how long `due` may close something without new halves; None: never.

        Where simulated time is slower than the steady clock, nothing may be due then yet.
        """
        if not self._time.open:
            return None
        first = self._time.open[min(self._time.open)].first
        return max(0.0, self.unit_deadline_s - now.waited_s(first))

    def clear(self) -> None:
        """Forget open seconds, and what has been seen."""
        self._time = _Time()
        self._restarted = False  # the next unit is the first after a jump
        self._next_time = None  # a _Time that one stream has gone back to
        self._leader = None  # that stream
        self._not_following = 0  # seconds that the other has shown since
        self._straggler = None  # the other, where it was not waited for

    def _add(self, stream: str, second: int, half: tuple, now: Instant) -> None:
        time = self._time_of(stream, second, half)
        if not time.add(stream, second, half, now):
            self.late += 1
        if time is self._next_time and len(time.open) > 2 * self.max_pending:
            self._jump_alone()  # the other has not shown anything for so long

    def _time_of(self, stream: str, second: int, half: tuple) -> _Time:
        """Give the time a half belongs to: the present one, or the one gone back to."""
        goes_back = second < self._time.newest.get(stream, second)
        if self._next_time is None:
            if goes_back:
                self._go_back(stream, second)
            return self._next_time or self._time
        if stream == self._leader:
            return self._of_leader(stream, second)
        self._not_following += 1
        if goes_back:
            self._jump()
        elif half[0] is None:
            self._jump_alone()
        elif self._not_following >= self.max_pending:
            self._leave_behind()
        return self._time

    def _go_back(self, stream: str, second: int) -> None:
        time, other = self._time, OTHER[stream]
        if stream == self._straggler:
            self._straggler = None
            time.take_back(stream, second)
            del time.newest[stream]
            return
        self._next_time, self._leader, self._not_following = _Time(), stream, 0
        there = time.newest.get(other)
        if there is not None and abs(there - second) < abs(there - time.newest[stream]):
            self._next_time = time.only(other)  # which is in the time gone back to already
            self._jump()
        elif not time.alive.get(other, False):
            self._jump_alone()

    def _of_leader(self, stream: str, second: int) -> _Time:
        reached = max(self._next_time.open, default=second)
        if second > max(reached + 1, self._time.newest[stream]):
            # It was a wrong stamp: the stream is where it was.
            self.late += len(self._next_time.open)
            self._next_time = None
            return self._time
        if second < self._next_time.newest.get(stream, second):
            self._next_time = _Time()
        return self._next_time

    def _jump(self) -> None:
        self._time, self._next_time = self._next_time, None
        self._restarted, self._straggler = True, None
        self.jumps += 1

    def _jump_alone(self) -> None:
        """Jump, because the other stream shows nothing that would be lost."""
        self._jump()
        self._straggler = OTHER[self._leader]

    def _leave_behind(self) -> None:
        """Let the leader be late for the time that the other stays in."""
        self.late += len(self._next_time.open)
        self._time.newest[self._leader] = max(self._next_time.newest.values(), default=0)
        self._next_time = None


class UnitInbox:
    """Closed units that wait to be read, oldest first; a newer one pushes the oldest out."""

    def __init__(self, assembler: UnitAssembler, max_units: int):
        self.assembler, self.max_units = assembler, max_units
        self.units = deque()
        self.dropped = 0  # units pushed out unread

    def collect(self, now: Instant) -> None:
        """Take in what has become due."""
        for unit in self.assembler.due(now):
            if unit.restarted:  # what waits is another time's
                self.dropped += len(self.units)
                self.units.clear()
            self.units.append(unit)
            if len(self.units) > self.max_units:
                self._drop_oldest()

    def clear(self) -> None:
        """Forget all that is open or waits."""
        self.assembler.clear()
        self.units.clear()

    def _drop_oldest(self) -> None:
        oldest = self.units.popleft()
        self.dropped += 1
        if oldest.restarted and self.units:  # the next one is the first of its time, then
            self.units.appendleft(replace(self.units.popleft(), restarted=True))
