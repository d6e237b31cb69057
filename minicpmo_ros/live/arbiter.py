# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One device, several workers: who computes next.

A worker holds the device while it computes and offers it between two slices of its work. A
person's question goes first, then the prefill of a live unit, then the encoders; whoever has
waited longer than the patience gets one slice out of turn, so that nobody waits for ever.
"""

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from enum import IntEnum


class Priority(IntEnum):
    """Whose work goes first: the higher."""

    ENCODER = 0
    UNIT = 1
    QUESTION = 2


class Turn:
    """One worker's claim to the device."""

    def __init__(self, arbiter: 'DeviceArbiter', priority: Priority, since_s: float):
        self._arbiter, self.priority, self.since_s = arbiter, priority, since_s

    def between(self) -> None:
        """Let whoever goes first compute, then go on; to be called between two slices."""
        self._arbiter._give_way(self)

    def release(self) -> None:
        """Give the device back."""
        self._arbiter._release(self)


class DeviceArbiter:
    """Grants the device to one worker at a time."""

    def __init__(self, patience_s: float = 0.3, clock: Callable[[], float] = time.monotonic):
        self.patience_s, self._clock = patience_s, clock
        self._granted = threading.Condition()
        self._holder = None
        self._waiting = []  # turns

    def acquire(self, priority: Priority) -> Turn:
        """Wait for the device; the turn must be released."""
        with self._granted:
            turn = Turn(self, priority, self._clock())
            if self._holder is None:
                self._holder = turn
            else:
                self._wait(turn)
        return turn

    @contextmanager
    def hold(self, priority: Priority):
        """Hold the device for a block; gives the `between` to be called inside it."""
        turn = self.acquire(priority)
        try:
            yield turn.between
        finally:
            turn.release()

    def _give_way(self, turn: Turn) -> None:
        with self._granted:
            if not self._waiting:
                return
            first = self._first()
            if first.priority > turn.priority or self._overdue(first):
                turn.since_s = self._clock()
                self._grant(first)
                self._wait(turn)

    def _release(self, turn: Turn) -> None:
        with self._granted:
            if self._holder is not turn:
                raise ValueError('this turn does not hold the device')
            self._holder = None
            if self._waiting:
                self._grant(self._first())

    def _first(self) -> Turn:
        overdue = [turn for turn in self._waiting if self._overdue(turn)]
        if overdue:
            return min(overdue, key=lambda turn: turn.since_s)
        return min(self._waiting, key=lambda turn: (-turn.priority, turn.since_s))

    def _overdue(self, turn: Turn) -> bool:
        return self._clock() - turn.since_s >= self.patience_s

    def _grant(self, turn: Turn) -> None:
        self._waiting.remove(turn)
        self._holder = turn
        self._granted.notify_all()

    def _wait(self, turn: Turn) -> None:
        self._waiting.append(turn)
        self._granted.wait_for(lambda: self._holder is turn)
