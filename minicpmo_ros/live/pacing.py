# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The time of a stream: when a second of it is over, and which stamps are believed.

A reader can tell that second n is over when something of second n + 1 arrives. From a source
that stopped nothing arrives; then the time that has passed since says it. Stream time is the
newest stamp plus what has passed since it arrived, so no clock need agree with any other. What
passes is simulated time where there is one: a paused simulation pauses the stream. But nothing
is given up before the grace period has passed by the steady clock as well, because simulated
time may run quicker than a computer can follow.
"""

from dataclasses import dataclass, replace

NS = 1_000_000_000
GRACE_S = 0.5
# Further from where a stream is, a stamp is doubted.
STEP_BACK_NS = NS // 2
STEP_AHEAD_NS = 10 * NS
STANDSTILL_S = 1.0  # a stamp that has been the same for so long is not believed


@dataclass(frozen=True)
class Instant:
    """A moment by the steady clock and, where time is simulated, by that time."""

    steady_s: float
    simulated_ns: int | None = None
    jumps: int = 0  # how often simulated time has gone back until now

    def ns_since(self, earlier: 'Instant') -> int:
        """Give what has passed for the streams; negative where simulated time went back."""
        if self.simulated_ns is None or earlier.simulated_ns is None:
            return int((self.steady_s - earlier.steady_s) * NS)
        return self.simulated_ns - earlier.simulated_ns

    def waited_s(self, earlier: 'Instant') -> float:
        """Give what has passed by both clocks: by the one that has less of it."""
        steady_s = self.steady_s - earlier.steady_s
        if None in (self.simulated_ns, earlier.simulated_ns) or self.jumps != earlier.jumps:
            return steady_s
        return min(steady_s, (self.simulated_ns - earlier.simulated_ns) / NS)


class StreamClock:
    """Stream time, from stamps and the instants of their arrival.

    `grace_s`: how long after its end a second is waited for, and after how long without
    anything the source counts as silent; of sound that comes in pieces, a piece's length longer.
    """

    def __init__(self, grace_s: float = GRACE_S):
        self._grace_ns = int(grace_s * NS)
        self._patience_ns = self._grace_ns
        self._newest_ns = None  # stream time of the newest arrival
        self._arrived = None  # its Instant

    def arrive(self, end_ns: int, now: Instant, length_ns: int = 0) -> None:
        """Note that at `now` the stream has reached `end_ns` with a piece of this length."""
        self._patience_ns = self._grace_ns + length_ns
        if end_ns != self._newest_ns:
            self._newest_ns, self._arrived = end_ns, now

    def is_silent(self, now: Instant) -> bool:
        """Say whether nothing new has arrived for the grace period."""
        return (
            self._newest_ns is not None
            and now.waited_s(self._arrived) * NS >= self._patience_ns
        )  # fmt: skip

    def stands_still(self, end_ns: int, now: Instant) -> bool:
        """Say whether a stamp is the newest one again although time has gone on."""
        return end_ns == self._newest_ns and now.waited_s(self._arrived) >= STANDSTILL_S

    def time_ns(self, now: Instant) -> int:
        """Give the stream time; only after an arrival."""
        return self._newest_ns + now.ns_since(self._arrived)

    def last_over(self, now: Instant) -> int | None:
        """Give the newest second that ended the grace period ago; None before any arrival."""
        if self._newest_ns is None:
            return None
        if not self.is_silent(now):  # what is to come may still belong to an earlier second
            return (self._newest_ns - self._patience_ns) // NS - 1
        return (self.time_ns(now) - self._patience_ns) // NS - 1


@dataclass(frozen=True)
class Arrival:
    """Something that came, with its stamp."""

    stamp_ns: int | None  # None: the source gives none
    at: Instant
    content: object
    jumped_from_ns: int | None = None  # the stream was there and goes on here

    def moved_to(self, now: Instant) -> 'Arrival':
        """Give it as if it came at `now`, where simulated time went back or began in between."""
        is_of_now = self.at.jumps >= now.jumps
        is_of_now &= (self.at.simulated_ns is None) == (now.simulated_ns is None)
        return self if is_of_now else replace(self, at=now)


class StampGuard:
    """Doubts a stamp far from where its stream is, until it is clear that the stream went there.

    A recording that loops or a clock that was set stays where it jumps to; one wrong stamp, or a
    second publisher with another idea of time, does not. So what comes with a stamp over 0.5 s
    earlier, or 10 s later than expected, is kept back. If for the grace period nothing came
    where the stream was, it has jumped; otherwise what was kept is left out and counted.
    `one_a_second`: keep only the newest of each second.
    """

    def __init__(self, one_a_second: bool = False, max_kept: int = 200, grace_s: float = GRACE_S):
        self._one_a_second, self._max_kept, self._grace_s = one_a_second, max_kept, grace_s
        self._newest = None  # the Arrival that is furthest in the stream
        self._kept = []
        self.strays = 0  # left out

    @property
    def is_doubting(self) -> bool:
        """Say whether something is kept back."""
        return bool(self._kept)

    def sort(self, arrival: Arrival) -> list[Arrival]:
        """Take an arrival; give those that are believed now, in order."""
        if arrival.stamp_ns is None:
            return [arrival]
        if self._newest is None or self._is_near(arrival):
            self.strays += len(self._kept)
            self._kept.clear()
            if self._newest is None or arrival.stamp_ns > self._newest.stamp_ns:
                self._newest = arrival
            return [arrival]
        kept = self._kept
        if self._one_a_second and kept and kept[-1].stamp_ns // NS == arrival.stamp_ns // NS:
            kept[-1] = replace(arrival, at=kept[-1].at)
        else:
            kept.append(arrival)
        return self._jump(arrival.at) if len(kept) > self._max_kept else []

    def settle(self, now: Instant) -> list[Arrival]:
        """Give what was kept, if nothing has contradicted it for long enough."""
        if self._kept and now.waited_s(self._kept[0].at) >= self._grace_s:
            return self._jump(now)
        return []

    def _is_near(self, arrival: Arrival) -> bool:
        newest_ns = self._newest.stamp_ns
        expected_ns = newest_ns + max(0, arrival.at.ns_since(self._newest.at))
        return newest_ns - STEP_BACK_NS <= arrival.stamp_ns <= expected_ns + STEP_AHEAD_NS

    def _jump(self, now: Instant) -> list[Arrival]:
        # What came before /clock had told of the jump would count from the time before it.
        (first, *others), self._kept = [a.moved_to(now) for a in self._kept], []
        from_ns, self._newest = self._newest.stamp_ns, None
        believed = self.sort(replace(first, jumped_from_ns=from_ns))
        for arrival in others:
            believed += self.sort(arrival)
        return believed
