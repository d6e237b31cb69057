# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One device, several workers: who computes next.

A worker holds the device while it computes and offers it between two slices of its work. Shares
are kept in seconds of work, not in slices. There are two sides:

* The live seconds: UNIT (reading a second into the window) goes before ENCODER, and of two
  encoders the one whose second must be ready earlier.
* Who asked: QUESTION (until the first token of an answer), then ANSWER (the rest of it).

Between the two sides:

* A QUESTION goes before live work, unless that is about to miss its deadline. Then each has half
  of the time: a first token takes at most twice as long as alone, and a slice.
* Live work goes before an ANSWER: the seconds stay in time, and the answer slows down by what
  they take. The answer keeps a share of the time (`answer_share`) for itself, however much live
  work there is; what live work then cannot do in time is left undone (`is_too_late`).

What live work takes while somebody waits for an answer is booked as a debt to the answer, in
proportion to the shares, and what the answer computes while live work waits pays it off.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from enum import IntEnum

from minicpmo_ros.config import LLM

ANSWER_SHARE = 0.2
QUESTION_SHARE = 0.5  # while live work is about to miss its deadline


class Priority(IntEnum):
    """What is computed; see the module."""

    ENCODER = 0
    UNIT = 1
    ANSWER = 2
    QUESTION = 3

    @property
    def is_live(self) -> bool:
        """Whether it is work on the live seconds."""
        return self in (Priority.ENCODER, Priority.UNIT)


class Turn:
    """One worker's claim to the device.

    `start_by_s`: when live work must go on at the latest to be ready in time, by the arbiter's
    clock. `live_s`: how long it has waited for live work, or done some itself.
    """

    def __init__(self, arbiter: 'DeviceArbiter', priority: Priority, start_by_s: float):
        self._arbiter, self.priority, self.start_by_s = arbiter, priority, start_by_s
        self.is_asked = not priority.is_live  # somebody waits for it, whatever it does now
        self.unit_waits = False  # an answer's: for the same worker, who says so
        self.since_s = 0.0  # when it began to wait, or its slice
        self.live_s = 0.0

    def between(self) -> None:
        """Let whoever goes first compute, then go on; to be called between two slices."""
        self._arbiter._give_way(self)

    def become(self, priority: Priority) -> None:
        """Go on with work of another kind."""
        self._arbiter._become(self, priority)

    def release(self) -> None:
        """Give the device back."""
        self._arbiter._release(self)


class DeviceArbiter:
    """Grants the device to one worker at a time.

    `unit_deadline_s`: how long after its end a live second is of use; the engine sets it.
    """

    def __init__(
        self,
        answer_share: float = ANSWER_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.answer_share, self.unit_deadline_s = answer_share, LLM.unit_deadline_s
        self.closed_second = None  # of the newest unit that was closed; the engine sets it
        self._clock = clock
        self._granted = threading.Condition()
        self._holder = None
        self._waiting = []  # turns
        self._debt_s = 0.0  # of live work to the answer; negative: the other way round

    @property
    def waiting(self) -> list:
        """Return the priorities of the turns that wait."""
        with self._granted:
            return [turn.priority for turn in self._waiting]

    def acquire(self, priority: Priority, start_by_s: float = math.inf) -> Turn:
        """Wait for the device; the turn must be released."""
        with self._granted:
            turn = Turn(self, priority, start_by_s)
            if not priority.is_live:
                self._debt_s = 0.0
            if self._holder is None:
                self._grant(turn)
            else:
                self._wait(turn)
        return turn

    @contextmanager
    def hold(self, priority: Priority, start_by_s: float = math.inf):
        """Hold the device for a block; gives the `between` to be called inside it."""
        turn = self.acquire(priority, start_by_s)
        try:
            yield turn.between
        finally:
            turn.release()

    def lets_unit(self, turn: Turn) -> bool:
        """Return whether the holder of an answer's turn is to read a unit before it goes on."""
        with self._granted:
            self._book(turn)
            return turn.priority is Priority.ANSWER and self._debt_s <= 0

    def is_too_late(self, second: int, waited_s: float) -> bool:
        """Return whether a second that ended so long ago is of no use any more.

        It is not when the window went on without it, nor, whatever the window did, when it is
        older than twice the deadline: who is so far behind would stay so.
        """
        closed = self.closed_second
        is_closed = closed is not None and second <= closed
        return waited_s >= self.unit_deadline_s * (1 if is_closed else 2)

    def _become(self, turn: Turn, priority: Priority) -> None:
        with self._granted:
            self._book(turn)
            turn.priority = priority

    def _give_way(self, turn: Turn) -> None:
        with self._granted:
            self._book(turn)
            if not self._waiting:
                return
            first = self._first([*self._waiting, turn])
            goes_on_with_unit = turn.unit_waits and first.priority is Priority.ENCODER
            if first is not turn and not goes_on_with_unit:
                self._waiting.remove(first)
                self._grant(first)
                self._wait(turn)

    def _release(self, turn: Turn) -> None:
        with self._granted:
            if self._holder is not turn:
                raise ValueError('this turn does not hold the device')
            self._book(turn)
            self._holder = None
            if self._waiting:
                first = self._first(self._waiting)
                self._waiting.remove(first)
                self._grant(first)

    def _first(self, turns: list) -> Turn:
        """Return the one of these that goes first."""
        live = [turn for turn in turns if turn.priority.is_live]
        asking = [turn for turn in turns if not turn.priority.is_live]
        if not live or not asking:
            return min(turns, key=lambda t: (-t.priority, t.start_by_s, t.since_s))
        first_live, first_asking = self._first(live), self._first(asking)
        is_urgent = first_live.start_by_s <= self._clock()
        goes_first = first_asking.priority is Priority.ANSWER or is_urgent
        return first_live if goes_first and self._debt_s <= 0 else first_asking

    def _book(self, turn: Turn) -> None:
        """Book what the holder has computed since the last time, where the other side waits."""
        now_s = self._clock()
        begun_s, turn.since_s = turn.since_s, now_s
        is_live, is_question = turn.priority.is_live, turn.priority is Priority.QUESTION
        others = [t for t in self._waiting if t.priority.is_live != is_live]
        kinds = {t.priority for t in others}
        since_s = [max(t.since_s, t.start_by_s if is_question else -math.inf) for t in others]
        if is_live and turn.is_asked:  # an answer reads a unit
            since_s.append(begun_s)
            turn.live_s += now_s - begun_s
        elif turn.unit_waits:
            since_s.append(begun_s)
        if not since_s:
            return
        waited_s = max(0.0, now_s - max(begun_s, min(since_s)))
        if is_live:
            share = QUESTION_SHARE if Priority.QUESTION in kinds else self.answer_share
            self._debt_s += waited_s * share / (1 - share)
        else:
            self._debt_s -= waited_s

    def _grant(self, turn: Turn) -> None:
        self._holder = turn
        self._granted.notify_all()
        turn.since_s = self._clock()

    def _wait(self, turn: Turn) -> None:
        waits_from_s = turn.since_s = self._clock()
        self._waiting.append(turn)
        self._granted.wait_for(lambda: self._holder is turn)
        if not turn.priority.is_live:
            turn.live_s += self._clock() - waits_from_s
