# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Stamps for sound that comes without: the count of its samples, held to the times of arrival.

The first piece was recorded just before it arrived; from there on the pieces follow each other.
But messages are lost, and a sound card's clock is not the computer's. A piece may arrive late for
many reasons, too early for none, so the least lateness of five seconds tells how far the count is
off. Where that is over 0.1 s, the count goes by as much. A source that is over 2 s early gives
sound faster than time (a file): it is counted only. Where the arrivals themselves go back by over
0.5 s the clock was set, and the count begins anew by it.
"""

from minicpmo_ros.live.pacing import NS, STEP_BACK_NS

WATCHED_NS = 5 * NS
TOLERANCE_NS = NS // 10
MOST_EARLY_NS = 2 * NS


class CountedTime:
    """The time of one source of sound; `end_ns` is where its newest piece ended, or None."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Forget the source: it fell silent, or its time is another one now."""
        self.end_ns = None
        self._arrived_ns = 0  # of the newest piece
        self._watch()

    def begin_ns(self, arrived_ns: int, duration_ns: int) -> int:
        """Give when a piece without a stamp began that has arrived at this time."""
        at_arrival_ns = arrived_ns - duration_ns
        if arrived_ns < self._arrived_ns - STEP_BACK_NS:
            self.restart()
        self._arrived_ns = arrived_ns
        if self.end_ns is None:
            return at_arrival_ns
        late_ns = at_arrival_ns - self.end_ns
        self._least_late_ns = min(self._least_late_ns, late_ns)
        self._watched_ns += duration_ns
        if self._watched_ns < WATCHED_NS:
            return self.end_ns
        off_ns = self._least_late_ns
        self._watch()
        is_off = off_ns > TOLERANCE_NS or -MOST_EARLY_NS <= off_ns < -TOLERANCE_NS
        return self.end_ns + is_off * off_ns

    def _watch(self) -> None:
        self._watched_ns, self._least_late_ns = 0, NS**2
