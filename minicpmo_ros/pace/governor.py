# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Lowers what is seen of the seconds where a machine is too slow, and raises it again.

Pure policy: measurements in, a Pace and its cause in words out; no clock. First the area of the
images goes down, as far as is needed at once, then their rate: a second for whose image there is
no time is better seen small, and its image better left out by rule than the second lost. What was
lowered comes back when several seconds in a row have told that there is time, at once as far as
there is. If that was too early, the next time takes twice as long: beside a load that comes and
goes, the pace stays low instead of losing seconds each time.

An image that takes too long is not even finished: encoded anew at the smallest area it is ready
before its second is lost.

    governor = Governor(area=1.0, latest_s=2.0)
    for every second:
        if not governor.leaves_out(second):
            encode the image at governor.pace.area; between two slices: governor.check(work_s)
            governor.note(work_s, late_s)
"""

import math
from dataclasses import dataclass

from minicpmo_ros.config import LLM

AREAS = (0.56, 0.39, 0.25)  # 336, 280 and 224 of 448 pixels a side
PERIODS_S = (2, 4)
# Work is taken to grow with the area; it grows a little faster (docs/measurements.md).
TARGET = 0.7  # of the time, that the work may take at a pace that is lowered to
MOST_BUSY = 0.92  # that it may take at a pace that is raised to
LATE_SHARE = 0.75  # of latest_s: an image that is later lowers the pace
CALM_S = 3  # of time to spare before the pace is raised
SOON_S = 30  # a pace that is lowered so soon again was raised too early
MOST_CALM_S = 60
PATIENCE_S = 1.2  # of work, or PATIENCE_SHARE of latest_s where that is more
PATIENCE_SHARE = 0.5


class GaveUp(Exception):
    """An image takes too long; it is to be encoded anew at the pace that holds now."""


@dataclass(frozen=True)
class Pace:
    """How much is seen of the seconds."""

    area: float = 1.0  # of an image, as a share of the full area
    period_s: int = 1  # one second in so many has its image encoded


class Governor:
    """See the module.

    `area`: what is seen where there is time for it. `latest_s`: how long after its second an image
    is of use.
    """

    def __init__(self, area: float = 1.0, latest_s: float = LLM.unit_deadline_s):
        self.latest_s, self.cause = latest_s, ''  # why less is seen than is wanted; '': it is not
        self._level = 0  # of the paces
        self._paces = []  # the first is what is wanted
        self.want(area)
        self._calm_s, self._needed_s = 0, CALM_S
        self._late_s = 0.0  # of the newest image
        self._raised_s = math.inf  # how long ago the pace was raised

    def want(self, area: float) -> None:
        """Set what is seen where there is time for it."""
        if self._paces and self._paces[0].area == area:
            return
        areas = (area, *(smaller for smaller in AREAS if smaller < area))
        self._smallest = len(areas) - 1  # the level of the smallest area
        self._paces = [Pace(each) for each in areas]
        self._paces += [Pace(areas[-1], period_s) for period_s in PERIODS_S]
        self._level = min(self._level, len(self._paces) - 1)

    @property
    def is_lowered(self) -> bool:
        """Whether less is seen than is wanted."""
        return self._level > 0

    @property
    def pace(self) -> Pace:
        """How the next second is seen."""
        return self._paces[self._level]

    def leaves_out(self, second: int) -> bool:
        """Return whether the rate leaves this second's image out."""
        return second % self.pace.period_s != 0

    def check(self, work_s: float) -> None:
        """Raise GaveUp, and lower the area to the smallest, if an image has taken too much."""
        patience_s = max(PATIENCE_S, PATIENCE_SHARE * self.latest_s)
        if work_s > patience_s and self._level < self._smallest:
            self._lower(math.inf, f'encoding an image takes more than {work_s:.1f} s')
            self._level = self._smallest
            raise GaveUp(self.cause)

    def note(self, work_s: float, late_s: float, area: float | None = None) -> None:
        """Take in what an image cost at the present pace, and how late it was ready.

        work_s: of encoding alone, without waiting for the device; 0: the last embedding was used
        again, so there is time. late_s: after its second was over. area: of the image; None: that
        of the pace.
        """
        period_s = self.pace.period_s
        full_s = work_s / (area or self.pace.area)
        self._raised_s += period_s
        if work_s > period_s:
            self._lower(
                full_s, f'encoding an image takes {work_s:.1f} s, there is time for {period_s} s'
            )
        elif late_s > LATE_SHARE * self.latest_s and late_s >= self._late_s:
            late = f'images are ready {late_s:.1f} s late, the device is busy'
            self._lower(full_s, self.cause or late)  # what has begun it says more
        elif late_s > self.latest_s / 2:  # it is catching up
            self._calm_s = 0
        else:
            self._raise(full_s, period_s)
        self._late_s = late_s

    def _lower(self, full_s: float, cause: str) -> None:
        self.cause = cause
        if self._raised_s <= SOON_S:
            self._needed_s, self._raised_s = min(2 * self._needed_s, MOST_CALM_S), math.inf
        elif self._level == 0:
            self._needed_s = CALM_S
        lower = max(self._level + 1, self._fitting(full_s, TARGET))
        self._level, self._calm_s = min(lower, len(self._paces) - 1), 0

    def _raise(self, full_s: float, period_s: int) -> None:
        level = self._fitting(full_s, MOST_BUSY)
        self._calm_s = self._calm_s + period_s if level < self._level else 0
        if self._calm_s >= self._needed_s:
            self._level, self._calm_s, self._raised_s = level, 0, 0
            self.cause = self.cause if level else ''

    def _fitting(self, full_s: float, share: float) -> int:
        """Return the best pace whose work takes at most this share of the time, or the lowest."""
        for level, pace in enumerate(self._paces):
            if full_s * pace.area <= share * pace.period_s:
                return level
        return len(self._paces) - 1
