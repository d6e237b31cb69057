# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds of an earlier life of the session, read again before the live ones.

The order in the window is that of the stamps: what is restored is older than the first live second
and is read before it, oldest first, with the evictions that there were: what has left the window
is read again, too, as later seconds were read in its sight. Meanwhile live seconds wait in their
queue, and none of them is lost for the sake of an old one: as many seconds are restored as there
is time for until that queue is full, the newest. How long one takes, and how fast live ones come,
is measured with the first. For the first live second is waited, as only its stamp tells how old
the others are. Stamps of a simulation that begins anew at 0 do not tell it: seconds of the one
before are known by how long the file has not been written.

A window that was lost within a life, because llama.cpp failed, is read again in the same way, but
at once. What fails again before a live second was read is not tried a third time.

No threads and no clock; the caller holds the lock of the engine.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from minicpmo_ros.errors import InputError
from minicpmo_ros.sessions.keeper import StoredSession
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.units import NS

MEASURED = 3  # seconds; the first ones after loading take longer


class Restoring:
    """`max_backlog`: live units that may wait. `max_age_s`: of the newest second, at most.

    While it `is_idle`, nothing is to be restored and nothing of the window was: then live units
    need not pass here.
    """

    def __init__(self, max_backlog: int, max_age_s: float):
        self._max_backlog, self._max_age_s = max_backlog, max_age_s
        self.told = ''  # what has been restored, or why not
        self._may_resume = True  # a live second was read since the last time
        self._clear()

    @property
    def is_at_work(self) -> bool:
        """Whether there is something to be read or told now."""
        return self._session is not None and not self._waits

    def is_recorded(self, unit: Unit) -> bool:
        """Return whether a unit that is read now is in the black box already."""
        return unit.is_restored and self._session is not None and self._session.is_black_box

    def offer(self, session: StoredSession | None, on_refused: Callable[[], object]) -> None:
        """Wait for the first live second, then read what the black box has, or `on_refused()`."""
        if session is None:
            return
        self._session, self._waits, self._on_refused = session, True, on_refused
        self.is_idle = False
        self.told = (
            f'{len(session.seconds)} seconds of {session.reader.path} wait for the first live one.'
        )

    def resume(self, session: StoredSession | None, newest: Unit | None) -> None:
        """Read the black box again now, because the window was lost.

        `newest`: the newest live unit that was read. If seconds are being restored already, the
        next of them goes on.
        """
        if session is None or self._session is not None:
            return
        if not self._may_resume:
            self.told = (
                f'{len(session.seconds)} seconds of {session.reader.path} are not read again: '
                'llama.cpp failed twice, without a live second between.'
            )
            return
        self._clear()
        self._may_resume, self._session, self._live = False, session, newest
        self.is_idle = False
        self._left, self._ending = deque(session.stored), 'llama.cpp had failed.'
        self.told = f'{len(session.seconds)} seconds of {session.reader.path} are being read.'

    def load(self, session: StoredSession, next_live: int | None, on_done: Callable) -> None:
        """Read a saved session now; `on_done(units, what was left out)` at its end.

        `next_live`: live seconds begin here; None: they may begin anywhere. InputError where the
        saved ones would not be older.
        """
        newest = session.seconds[-1]
        if next_live is not None and newest >= next_live:
            raise InputError(
                f'{session.reader.path} ends with second {newest}, live seconds go on at '
                f'{next_live}, and the window holds seconds in order. Deactivate the encoders and '
                'call ~/reset before, or load it where time is later.'
            )
        self.clear()
        self._session, self._on_done, self.is_idle = session, on_done, False
        self._left = deque(session.stored)
        self.told = f'{len(session.seconds)} seconds of {session.reader.path} are being read.'

    def _begin(self, live: Unit) -> None:
        """Decide, by the first live unit, whether the black box is read."""
        self._waits, session = False, self._session
        newest = session.seconds[-1]
        gap_s = live.second - newest - 1
        why = ''
        if gap_s < 0:
            why = f'the first live second is {live.second}, the newest of them {newest}'
        elif gap_s > self._max_age_s:
            why = (
                f'the newest of them ends {gap_s} s before the first live second; '
                f'memory.black_box_max_age_s is {self._max_age_s:g}'
            )
        elif session.age_s > self._max_age_s:
            why = (
                f'they were written {session.age_s:.0f} s ago by the clock of this machine; '
                f'memory.black_box_max_age_s is {self._max_age_s:g}'
            )
        if why:
            self._on_refused()
            self._clear()
            path = session.reader.path
            self.told = f'{len(session.seconds)} seconds of {path} are not read: {why}.'
            return
        self._left, self._live = deque(session.stored), live
        self._ending = f'The newest ended {gap_s} s before the first live second.'
        self.told = f'{len(session.seconds)} seconds of {session.reader.path} are being read.'

    def peek(self, live) -> Unit | None:
        """Return the restored unit to be read now, or None; `live`: the live units that wait."""
        if self._waits and live:
            self._begin(live[0])
        self._has_live |= len(live) > 0
        while self._left:
            self._leave_out(len(live))
            if not self._left:
                break
            if self._next is None or self._next.second != self._left[0].second:
                self._next = self._session.reader.read(self._left[0])
            if self._next is not None:
                return self._aged(self._next)
            self._left.popleft()  # damaged, or forgotten meanwhile
            self._n_lost += 1
        self._finish()
        return None

    def take(self, unit: Unit) -> Unit:
        """Return a unit as it is to be read: what `peek` gave, or a live one.

        A live one that is not later than the restored ones begins a new time.
        """
        if unit.is_restored:
            self._left.popleft()
            self._next = None
            self._n_lost += 1  # until it has been read
        elif self._seconds and unit.second <= max(self._seconds):
            self.told = (
                f'The restored seconds are gone: live ones go on at {unit.second}, before the '
                'newest of them.'
            )
            return replace(unit, restarted=True)
        return unit

    def note_read(self, unit: Unit, spent_s: float, window) -> None:
        """Note that a unit was read, in so many seconds of work; `window`: the seconds in it."""
        if unit.restarted:
            self._seconds.clear()
        self._may_resume |= not unit.is_restored
        if unit.is_restored:
            self._seconds.add(unit.second)
            self._spent_s.append(spent_s)
            self._n_lost -= 1
        self._seconds.intersection_update(window)
        self.is_idle = self._session is None and not self._seconds

    def _finish(self) -> None:
        """Tell what became of it, once nothing is left."""
        session = self._session
        if session is None or self._left or self._waits:
            return
        self._session, on_done = None, self._on_done
        told = [f'{len(self._seconds)} seconds of {session.reader.path} were read again.']
        told += [self._ending] * bool(self._ending)
        left_out = [session.told] * bool(session.told)
        if self._n_left_out:
            left_out.append(
                f'{self._n_left_out} older ones were left out: live seconds came meanwhile.'
            )
        if self._n_lost:
            left_out.append(f'{self._n_lost} could not be read and were left out.')
        self.told = ' '.join(told + left_out)
        session.close()
        self._live = self._next = self._on_done = None
        if on_done is not None:
            on_done(len(self._seconds), ' '.join(left_out))

    def clear(self) -> None:
        """Forget what is left, and what was told."""
        session, on_done = self._session, self._on_done
        self._clear()
        self.told, self._may_resume = '', True
        if session is not None:
            session.close()
        if on_done is not None:
            on_done(0, 'It was interrupted: the window was reset.')

    def count(self, seconds) -> int:
        """Return how many of the seconds in the window were restored."""
        return len(self._seconds.intersection(seconds))

    def _clear(self) -> None:
        self._session = self._on_done = self._on_refused = self._live = self._next = None
        self.is_idle = True
        self._waits = self._has_live = False
        self._left, self._seconds = deque(), set()  # StoredSeconds to be read; seconds that were
        self._spent_s, self._n_first = [], None  # of each; live ones that waited
        self._ending = ''  # of what is told
        self._n_left_out = self._n_lost = 0

    def _leave_out(self, n_waiting: int) -> None:
        """Leave out the oldest for which there is no time before live seconds would be lost."""
        if not self._has_live:
            return
        if self._n_first is None:
            self._n_first = n_waiting
        room = self._max_backlog - 1 - n_waiting
        most = len(self._left) if room > 0 else 0
        if len(self._spent_s) >= MEASURED:
            per_s = max(1.0, (n_waiting - self._n_first) / (1 + sum(self._spent_s)))
            most = min(most, int(room / per_s / max(1e-6, median(self._spent_s))))
        while len(self._left) > max(0, most):
            self._left.popleft()
            self._n_left_out += 1

    def _aged(self, unit: Unit) -> Unit:
        """Return a unit as if it had come when its second ended, by the first live one."""
        if self._live is None or self._live.arrived is None:
            return unit
        arrived, age_s = self._live.arrived, self._live.second - unit.second
        then_ns = arrived.simulated_ns
        then_ns = None if then_ns is None else then_ns - age_s * NS
        arrived = replace(arrived, steady_s=arrived.steady_s - age_s, simulated_ns=then_ns)
        return replace(unit, arrived=arrived)
