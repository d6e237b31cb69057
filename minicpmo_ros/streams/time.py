# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The time of a stream: what dates an input, which stamps are believed, when a second is over.

All doubt about stamps is here and, for the place of samples in a second, in segmenter.py. Every
threshold is in LIMITS. What arrives passes four questions, each with states of its own:

1. What dates the input? (InputClock, one for images and one for audio; SampleClock without stamps)

    HEADER --- the two clocks differ for 3 s, or the stamps stand still ---> ARRIVAL
    ARRIVAL -- they agree for 10 s ---> HEADER

2. Is this stamp believed? (StampGuard)

    BELIEVED: not over 0.5 s before the newest stamp, nor over 10 s after what is expected
    DOUBTFUL: any other; it is held back. Then
      to BELIEVED: nothing continues the stream for the grace period, so it has jumped
      dropped:     something continues the stream; it was a single wrong stamp

3. Has the source stopped? (StreamClock)

    RUNNING --- nothing new for the grace period ---> SILENT --- an arrival ---> RUNNING

4. Which seconds are over? While RUNNING, second n is over when something of second n + 1 has
   arrived and the grace period has passed in the stamps; while SILENT, the time that has passed
   since the newest arrival decides. A second is waited for, never given up early.

Stream time is the newest stamp plus the time since its arrival, so no clock has to agree with any
other, and none is read here. If time is simulated, simulated time counts: a paused simulation
pauses the stream. But nothing is given up before the grace period has passed by the steady clock
as well, because simulated time may run faster than the computer can follow.
"""

import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise

from minicpmo_ros.units import NS

OTHER = {'image': 'audio', 'audio': 'image'}  # of a sense
MODES = ('auto', 'header', 'arrival')  # of what dates an input


@dataclass(frozen=True)
class TimeLimits:
    """Every threshold for doubt about time; seconds, unless the comment says otherwise."""

    # All streams.
    grace_s: float = 0.5  # a second is waited for so long after its end; silence is longer
    step_back_s: float = 0.5  # stamps that go back by more are of another time
    step_ahead_s: float = 10.0  # stamps further ahead than expected are doubtful
    longest_empty_s: int = 10  # a longer gap is a jump, its seconds are not published
    standstill_s: float = 1.0  # a stamp that has not changed for this long is not believed
    stall_s: float = 1.0  # an open second with audio waits this long for its rest
    # What dates an input: header or arrival.
    offset_window_s: float = 2.0  # of arrivals that an offset is taken of
    offset_tolerance_s: float = 1.0  # between images and audio
    # How long offsets must differ. A recording that loops takes both inputs back, within a second
    # or so of each other; beside an input of now, this one cannot be of a recording.
    different_s: float = 3.0
    different_from_now_s: float = 1.5
    alike_s: float = 10.0  # how long they must agree again
    still: float = 0.05  # of real time; recordings are hardly played that slowly
    forgotten_s: float = 5.0  # after which the last report of the other input is ignored
    # A source without stamps, whose samples are counted.
    count_watched_s: float = 5.0  # over which the smallest delay is the error of the count
    count_tolerance_s: float = 0.1  # a greater error is corrected
    count_early_s: float = 2.0  # what is earlier comes faster than real time, as from a file
    # Chunks of audio against the count of samples.
    jitter_s: float = 0.02
    jump_s: float = 0.2
    longest_gap_s: float = 2.0  # is filled with silence; a longer one begins a new stream
    drift_watched_s: float = 0.9  # by the stamps; a burst alone says nothing about drift
    shortest_piece_s: float = 0.002  # that is missed
    late_piece_s: float = 0.3  # how much of the next second is waited for if one is missing
    most_copies: int = 2  # of one chunk that are dropped; with more the stamps stand still
    burst: float = 0.9  # the stamps of a burst span less of its length than this
    settled_s: float = 0.2  # of audio at its pace ends a burst
    longest_burst_s: float = 5.0
    longest_start_s: float = 2.0  # before its first stamp a stream in a burst may begin
    # Pairing images and audio, beside the deadline of a unit.
    never_came_s: float = 2.0  # how long a stream is waited for that has never come
    most_missed: int = 2  # seconds in a row, until a stream is no longer waited for
    alone_s: float = 1.0  # beyond the deadline, for a stream to follow the other to a new time


LIMITS = TimeLimits()
STEP_BACK_NS, STEP_AHEAD_NS = int(LIMITS.step_back_s * NS), int(LIMITS.step_ahead_s * NS)


@dataclass(frozen=True)
class Instant:
    """A moment by the steady clock and, if time is simulated, by simulated time."""

    steady_s: float
    simulated_ns: int | None = None
    jumps: int = 0  # how often simulated time has gone back so far

    def ns_since(self, earlier: 'Instant') -> int:
        """Return the stream time passed since `earlier`; negative if simulated time went back."""
        if self.simulated_ns is None or earlier.simulated_ns is None:
            return int((self.steady_s - earlier.steady_s) * NS)
        return self.simulated_ns - earlier.simulated_ns

    def waited_s(self, earlier: 'Instant') -> float:
        """Return the time passed since `earlier` by the clock that has passed less."""
        steady_s = self.steady_s - earlier.steady_s
        if None in (self.simulated_ns, earlier.simulated_ns) or self.jumps != earlier.jumps:
            return steady_s
        return min(steady_s, (self.simulated_ns - earlier.simulated_ns) / NS)


class StreamClock:
    """Computes stream time from stamps and the instants of their arrival.

    `grace_s`: how long a second is waited for after its end, and after how long without input the
    source counts as silent; for chunks of audio, longer by the length of a chunk.
    """

    def __init__(self, grace_s: float = LIMITS.grace_s):
        self._grace_ns = self._grace_of_piece_ns = int(grace_s * NS)
        self._newest_ns = None  # stream time of the newest arrival
        self._arrived, self._is_silent = None, False  # its Instant; at the last look

    def arrive(self, end_ns: int, now: Instant, length_ns: int = 0) -> None:
        """Note that the stream reached `end_ns` at `now`, with a chunk of this length."""
        self._grace_of_piece_ns = self._grace_ns + length_ns
        if end_ns != self._newest_ns:
            self._newest_ns, self._arrived, self._is_silent = end_ns, now, False

    def is_silent(self, now: Instant) -> bool:
        """Return whether nothing new has arrived for the grace period."""
        if self._newest_ns is None:
            return False
        has_begun = self._arrived.simulated_ns is None and now.simulated_ns is not None
        if has_begun and not self._is_silent:
            self._arrived = now  # simulated time has begun since: it counts from here
        self._is_silent = now.waited_s(self._arrived) * NS >= self._grace_of_piece_ns
        return self._is_silent

    def stands_still(self, end_ns: int, now: Instant) -> bool:
        """Return whether a stamp repeats the newest one although time has passed."""
        return end_ns == self._newest_ns and now.waited_s(self._arrived) >= LIMITS.standstill_s

    def time_ns(self, now: Instant) -> int:
        """Return the stream time; requires an arrival."""
        return self._newest_ns + now.ns_since(self._arrived)

    def last_over(self, now: Instant) -> int | None:
        """Return the newest second whose grace period is over; None before any arrival."""
        if self._newest_ns is None:
            return None
        if not self.is_silent(now):  # the next arrival may still belong to an earlier second
            return (self._newest_ns - self._grace_of_piece_ns) // NS - 1
        return (self.time_ns(now) - self._grace_of_piece_ns) // NS - 1


@dataclass(frozen=True)
class Arrival:
    """An input with its stamp."""

    stamp_ns: int | None  # None: the source provides none
    at: Instant
    content: object
    jumped_from_ns: int | None = None  # where the stream was before it jumped to this stamp

    def moved_to(self, now: Instant) -> 'Arrival':
        """Return it as if it came at `now`, if simulated time began or jumped in between."""
        leapt_s = now.ns_since(self.at) / NS - (now.steady_s - self.at.steady_s)
        is_of_now = self.at.jumps >= now.jumps and leapt_s <= LIMITS.step_ahead_s
        is_of_now &= (self.at.simulated_ns is None) == (now.simulated_ns is None)
        return self if is_of_now else replace(self, at=now)


class StampGuard:
    """Holds back inputs with doubtful stamps until it is clear whether the stream has jumped.

    A looping recording or a clock that was set stays where it jumps to; a single wrong stamp, or a
    second publisher with another clock, does not. Inputs that are dropped are counted (`strays`).
    `one_a_second`: hold back only the newest of each second.
    """

    def __init__(self, one_a_second: bool = False, max_kept: int = 200):
        self._one_a_second, self._max_kept = one_a_second, max_kept
        self._newest = None  # the Arrival with the newest stamp
        self._held_back = []
        self.strays = 0  # dropped

    @property
    def holds_back_input(self) -> bool:
        """Whether inputs are held back."""
        return bool(self._held_back)

    def sort(self, arrival: Arrival) -> list[Arrival]:
        """Take an arrival; return those that are believed now, in order."""
        if arrival.stamp_ns is None:
            return [arrival]
        if self._newest is None or self._is_near(arrival):
            self.strays += len(self._held_back)
            self._held_back.clear()
            if self._newest is None or arrival.stamp_ns > self._newest.stamp_ns:
                self._newest = arrival
            return [arrival]
        kept = self._held_back
        if self._one_a_second and kept and kept[-1].stamp_ns // NS == arrival.stamp_ns // NS:
            kept[-1] = replace(arrival, at=kept[-1].at)
        else:
            kept.append(arrival)
        return self._jump(arrival.at) if len(kept) > self._max_kept else []

    def settle(self, now: Instant) -> list[Arrival]:
        """Return the inputs held back, if nothing has contradicted them for long enough."""
        if self._held_back and now.waited_s(self._held_back[0].at) >= LIMITS.grace_s:
            return self._jump(now)
        return []

    def _is_near(self, arrival: Arrival) -> bool:
        newest_ns = self._newest.stamp_ns
        expected_ns = newest_ns + max(0, arrival.at.ns_since(self._newest.at))
        return newest_ns - STEP_BACK_NS <= arrival.stamp_ns <= expected_ns + STEP_AHEAD_NS

    def _jump(self, now: Instant) -> list[Arrival]:
        # What came before /clock showed the jump would count from the time before it.
        (first, *others), self._held_back = [a.moved_to(now) for a in self._held_back], []
        from_ns, self._newest = self._newest.stamp_ns, None
        believed = self.sort(replace(first, jumped_from_ns=from_ns))
        for arrival in others:
            believed += self.sort(arrival)
        return believed


class SampleClock:
    """Stamps for audio whose publisher gives none: a sample count, checked by arrivals.

    The first chunk was recorded just before it arrived; from there on the samples are counted. But
    messages get lost, and a sound card's clock differs from the computer's. A chunk may arrive
    late for many reasons but never early, so the smallest delay in five seconds is the error of
    the count. A source that is over 2 s early sends audio faster than real time (a file): it is
    only counted. If the arrivals go back, the clock was set, and the count restarts by it.
    `end_ns` is the end of the newest chunk, or None.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Forget the source: it fell silent, or its time has jumped."""
        self.end_ns = None
        self._arrived_ns = 0  # of the newest chunk
        self._watch()

    def begin_ns(self, arrived_ns: int, duration_ns: int) -> int:
        """Return the begin of a chunk without a stamp that arrived at this time."""
        at_arrival_ns = arrived_ns - duration_ns
        if arrived_ns < self._arrived_ns - STEP_BACK_NS:
            self.restart()
        self._arrived_ns = arrived_ns
        if self.end_ns is None:
            return at_arrival_ns
        late_ns = at_arrival_ns - self.end_ns
        self._least_late_ns = min(self._least_late_ns, late_ns)
        self._watched_ns += duration_ns
        if self._watched_ns < LIMITS.count_watched_s * NS:
            return self.end_ns
        off_ns = self._least_late_ns
        self._watch()
        is_off = abs(off_ns) > LIMITS.count_tolerance_s * NS
        return self.end_ns + (is_off and off_ns >= -LIMITS.count_early_s * NS) * off_ns

    def _watch(self) -> None:
        self._watched_ns, self._least_late_ns = 0, NS**2


@dataclass(frozen=True)
class Offset:
    """Stamps minus arrivals of one input, as it was when its newest message came."""

    offset_ns: int
    at_s: float  # steady


class InputClock:
    """Decides whether one input, 'image' or 'audio', is dated by header stamps or by arrival.

    Images and audio are paired by their stamps. A driver that stamps since boot, in TAI, by a
    wrapping counter or on another host would make the robot blind or deaf. A header's clock is
    measured by its offset: stamp minus arrival, the largest in two seconds, because a message may
    be late for many reasons but never early. The offsets of the two inputs are compared with each
    other, not with the wall clock: a recording that is played is old for both, and keeps its
    stamps. Stamps are not believed if the offsets differ by over a second for a while in which
    both inputs came, and this input is further from the machine's clock; nor if the stamps
    (nearly) stand still. With simulated time, header stamps are always used; a difference is
    reported, and mode arrival corrects it. Thread-safe.
    """

    def __init__(self, name: str, mode: str = 'auto'):
        self.name, self.mode = name, mode
        self._lock = threading.Lock()
        self._recent = deque()  # (steady_s, stamp_ns, stamp minus arrival)
        self._other = None  # Offset
        self._changed_s = None  # since when the offsets say something else than what is taken
        self.takes_arrival = mode == 'arrival'
        self.problem = ''  # what is wrong with the stamps, and what is done about it, a sentence

    @property
    def offset(self) -> Offset | None:
        """This input's offset; with arrivals by choice, or before anything came: 0 or None."""
        with self._lock:
            return self._offset()

    def is_believed(self, stamp_ns: int, arrived_ns: int, now_s: float, simulated=False) -> bool:
        """Take a header stamp that came now; return whether to use it.

        arrived_ns: by the node's clock, 0 where simulated time is not known; now_s: steady.
        """
        with self._lock:
            if arrived_ns:
                self._recent.append((now_s, stamp_ns, stamp_ns - arrived_ns))
                # One older than the window stays, so that all of it is known.
                oldest_s = now_s - LIMITS.offset_window_s
                while len(self._recent) > 1 and self._recent[1][0] <= oldest_s:
                    self._recent.popleft()
                if self.mode != 'arrival':
                    self._decide(now_s, simulated)
            return not self.takes_arrival

    def on_other_offset(self, offset_ns: int, now_s: float) -> None:
        """Take the offset of the other input, of which something came just now."""
        with self._lock:
            self._other = Offset(offset_ns, now_s)

    def _offset(self) -> Offset | None:
        if not self._recent:
            return None
        newest_s = self._recent[-1][0]
        if self.mode == 'arrival':
            return Offset(0, newest_s)
        begun_s = newest_s - LIMITS.offset_window_s
        return Offset(max(off for at_s, _, off in self._recent if at_s > begun_s), newest_s)

    def _decide(self, now_s: float, simulated: bool) -> None:
        why = self._why_not()
        if bool(why) == bool(self.problem):
            self._changed_s = None
            return
        if self._changed_s is None:
            self._changed_s = now_s
        other_s = min(now_s, self._other.at_s) if self._other is not None else now_s
        if self._is_still():
            other_s, needed_s = now_s, 0.0  # it is known of all of the window
        elif not why:
            needed_s = LIMITS.alike_s
        else:
            is_now = abs(self._other.offset_ns) <= LIMITS.offset_tolerance_s * NS
            needed_s = LIMITS.different_from_now_s if is_now else LIMITS.different_s
        if other_s - self._changed_s < needed_s:
            return
        self._changed_s = None
        self.takes_arrival = bool(why) and self.mode == 'auto' and not simulated
        self.problem = why and f'{why}: {self._remedy()}'

    def _why_not(self) -> str:
        """Return why the stamps are not believed, or ''."""
        if self._is_still():
            return f'the stamps of the {self.name} input stand still, or nearly so'
        if self._other is None:
            return ''
        own_ns, other_ns = self._offset().offset_ns, self._other.offset_ns
        difference_ns, tolerance_ns = own_ns - other_ns, LIMITS.offset_tolerance_s * NS
        is_further = abs(own_ns) >= abs(other_ns) or abs(own_ns) > tolerance_ns
        # Half of it, once they differed: what lies at the limit does not go to and fro.
        if abs(difference_ns) <= tolerance_ns / (2 if self.problem else 1) or not is_further:
            return ''
        where = 'ahead of' if difference_ns > 0 else 'behind'
        return (
            f'the stamps of the {self.name} input are {abs(difference_ns) / NS:.1f} s {where} '
            f'those of the {OTHER[self.name]} input'
        )

    def _is_still(self) -> bool:
        (first_s, first_ns, first), (last_s, last_ns, last) = self._recent[0], self._recent[-1]
        advanced_ns = last_ns - first_ns
        passed_s = min(last_s - first_s, (advanced_ns - last + first) / NS)  # if not paused
        if len(self._recent) <= 2 or abs(advanced_ns) >= LIMITS.still * passed_s * NS:
            return False
        # One gap longer than all others is a pause, and what comes behind it a burst.
        gaps_s = sorted(late[0] - early[0] for early, late in pairwise(self._recent))
        passed_s -= gaps_s[-1] - gaps_s[-2]
        return passed_s >= max(LIMITS.offset_window_s, abs(advanced_ns) / NS / LIMITS.still)

    def _remedy(self) -> str:
        do_so = 'both stamp by one clock (chrony, PTP, or a parameter of the driver)'
        other = f', or set {self.name}.stamps to header'
        if self._is_still():
            do_so, other = 'the driver stamp each message by its clock', ''
        if self.takes_arrival:
            return f'the times of arrival are taken. Let {do_so}{other}'
        return f'set {self.name}.stamps to arrival, or let {do_so}'
