# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Dates what a camera or a microphone sends, by its own count and by when it arrives.

A live stream counts its time exactly, from an origin that nobody else knows, by a clock that
drifts against this machine's. What it sends arrives late, now more, now less, and never before it
was captured. So the smallest delay between count and arrival tells the origin: it is taken at once
when it is smaller than before, and followed slowly when the smallest of a few seconds has grown,
which is drift. Where it has grown by much, the count began anew.

Stamps never go back while the count does not. No clock is read here.
"""

import math

from minicpmo_ros.units import NS

WATCHED_NS = 5 * NS  # over which the smallest delay is looked for
DRIFT_NS = 5_000_000  # the most that is followed of it at a time: 1 ms a second
JUMP_NS = NS // 2  # more is no drift
FAR_NS = 10 * NS  # a delay that has grown by so much is not waited out


class LiveClock:
    """The origin of one stream's count.

    `latency_ns`: how long before its arrival what comes without delay was captured.
    """

    def __init__(self, latency_ns: int = 0):
        self._latency_ns = latency_ns
        self._origin_ns = None  # time of the count's zero
        self._least_ns = self._since_ns = 0  # of the delays that are watched
        self.jumps = 0  # how often the count began anew

    def note(self, count_ns: int, arrived_ns: int) -> int:
        """Take a count and the time of its arrival; return how late it is, in nanoseconds."""
        delay_ns = arrived_ns - count_ns
        if self._origin_ns is None:
            self._begin(delay_ns, arrived_ns)
        elif delay_ns - self._origin_ns > FAR_NS:
            self.jumps += 1
            self._begin(delay_ns, arrived_ns)
        self._origin_ns = min(self._origin_ns, delay_ns)
        self._least_ns = min(self._least_ns, delay_ns)
        late_ns = delay_ns - self._origin_ns
        if arrived_ns - self._since_ns >= WATCHED_NS:
            self._follow(arrived_ns)
        return late_ns

    def stamp_ns(self, count_ns: int) -> int:
        """Return when this count was captured; requires an arrival."""
        return count_ns + self._origin_ns - self._latency_ns

    def _begin(self, delay_ns: int, arrived_ns: int) -> None:
        self._origin_ns = self._least_ns = delay_ns
        self._since_ns = arrived_ns

    def _follow(self, arrived_ns: int) -> None:
        grown_ns = self._least_ns - self._origin_ns
        if grown_ns > JUMP_NS:
            self.jumps += 1
            self._origin_ns = self._least_ns
        else:
            self._origin_ns += min(grown_ns, DRIFT_NS)
        self._least_ns, self._since_ns = math.inf, arrived_ns
