# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pairing the picture and the sound of each second into units, in order.

A unit closes when both halves have come, or a deadline after the first of them. What comes after
that is late: counted, never put in behind. A half may come empty, and a second with two empty
halves makes no unit. A stream whose seconds go back (a recording that loops) starts everything
anew. No threads, no clock: the caller says what time it is.
"""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np


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

    first_s: float
    came: dict = field(default_factory=dict)


class UnitAssembler:
    """Open seconds, in memory until they close."""

    def __init__(self, unit_deadline_s: float = 2.0, max_pending: int = 8):
        self.unit_deadline_s, self.max_pending = unit_deadline_s, max_pending
        self.late = 0  # halves that came after their unit was closed, or twice
        self.jumps = 0  # times a stream went back
        self._open = {}
        self._newest = {}  # second by stream
        self._closed = None  # second of the newest closed unit
        self._restarted = False  # the next unit is the first after a jump

    def add_picture(
        self, second: int, rows: np.ndarray | None, tiles: tuple, now_s: float
    ) -> None:
        """Take the picture of a second, or the news that it has none."""
        self._add('picture', second, (rows, tiles), now_s)

    def add_sound(self, second: int, rows: np.ndarray | None, now_s: float) -> None:
        """Take the sound of a second, or the news that it has none."""
        self._add('sound', second, rows, now_s)

    def due(self, now_s: float) -> list:
        """Close what is complete or has waited long enough; return the units, in order."""
        units = []
        for second in sorted(self._open):
            halves = self._open[second]
            waits = (
                len(halves.came) < 2
                and now_s - halves.first_s < self.unit_deadline_s
                and len(self._open) <= self.max_pending
            )
            if waits:
                break
            del self._open[second]
            self._closed = second
            picture_rows, tiles = halves.came.get('picture', (None, (0, 0)))
            sound_rows = halves.came.get('sound')
            if picture_rows is not None or sound_rows is not None:
                units.append(Unit(second, picture_rows, tiles, sound_rows, self._restarted))
                self._restarted = False
        return units

    def next_deadline_s(self) -> float | None:
        """Return when `due` may close something without new halves; None: never."""
        if not self._open:
            return None
        return self._open[min(self._open)].first_s + self.unit_deadline_s

    def clear(self) -> None:
        """Forget open seconds, and what has been seen."""
        self._open.clear()
        self._newest.clear()
        self._closed = None

    def _add(self, stream: str, second: int, half, now_s: float) -> None:
        newest = self._newest.get(stream)
        if newest is not None and second < newest:
            self.clear()
            self.jumps += 1
            self._restarted = True
        elif second == newest or (self._closed is not None and second <= self._closed):
            self.late += 1
            self._newest[stream] = second
            return
        self._newest[stream] = second
        self._open.setdefault(second, _Halves(now_s)).came[stream] = half


class UnitInbox:
    """Closed units that wait to be read, oldest first; a newer one pushes the oldest out."""

    def __init__(self, assembler: UnitAssembler, max_units: int):
        self.assembler, self.max_units = assembler, max_units
        self.units = deque()
        self.dropped = 0  # units pushed out unread

    def collect(self, now_s: float) -> None:
        """Take in what has become due."""
        for unit in self.assembler.due(now_s):
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
