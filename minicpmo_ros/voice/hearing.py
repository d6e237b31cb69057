# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a question about audio waits for: the audio up to a stamp, also of the open second.

An empty question asks about what was just said, and its last word lies in a second that may not
have ended. Whoever encodes the audio is asked for that second as it is so far (OpenSecond), which
becomes the question's tail: a unit that is read behind the window on the question's own fork. The
window gets the whole second later, as always.

    ASKED -- the open second comes --> PAIRING -- the seconds before it are read --> HEARD
      |                                   |
      +---------- the deadline -----------+--> OVERDUE: refused, unless heard_until is 0
"""

import time
from dataclasses import dataclass, field

import numpy as np

from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.units import NS

SPARE_S = 1.0  # beyond the deadline of a unit: the second may just have begun


@dataclass(frozen=True)
class OpenSecond:
    """The second of audio that has not ended; second None: it could not be read, by `reason`."""

    second: int | None = None
    end_ns: int = 0  # its audio is read up to here
    rows: np.ndarray | None = None  # (tokens, width); None: nothing of it is needed
    previous: int = -1  # newest second told before; -1: none
    reason: str = ''  # a sentence


@dataclass(frozen=True)
class Tail:
    """A unit that a question reads on its fork, behind the window; the audio ends at `end_ns`."""

    unit: Unit
    end_ns: int

    @property
    def audio_end_s(self) -> float:
        """Where its audio ends, in seconds of the stamps."""
        return self.end_ns / NS


@dataclass
class Hearing:
    """The audio that one question waits for; used under the lock of the engine."""

    until_ns: int  # 0: what has come by now
    timeout_s: float
    found: OpenSecond | None = None
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def is_overdue(self) -> bool:
        """Whether it has waited long enough."""
        return time.monotonic() - self.begun_s >= self.timeout_s

    def has_window(self, audio_end_s: int | None) -> bool:
        """Return whether the window alone has the audio; audio_end_s: where it ends there."""
        return (audio_end_s or 0) * NS >= self.until_ns

    def why_refused(self, audio_end_s: int | None) -> str:
        """Return why the question cannot be answered: its audio has not come; or ''."""
        is_enough = self._is_read and (self.found.rows is not None or not self.is_overdue)
        if not self.until_ns or self.has_window(audio_end_s) or is_enough:
            return ''
        ends = 'holds no audio' if audio_end_s is None else f'ends at {audio_end_s} s'
        reason = (self.found and self.found.reason) or 'No open second was read.'
        return (
            f'The audio has not reached heard_until, {self.until_ns / NS:.3f} s, within '
            f'{self.timeout_s:g} s: the window {ends}. {reason} Ask with the stamps of the audio, '
            'and check the microphone.'
        )

    def note(self) -> str:
        """Return what an answer lacks without the open second, a sentence; or ''."""
        if self.until_ns or self._is_read:
            return ''
        reason = self.found.reason if self.found else 'streaming_encoder did not reply in time.'
        return reason and f'Only whole seconds were read. {reason}'

    def tail(self, audio_end_s: int | None, image: tuple | None) -> Tail | None:
        """Return what is to be read behind the window; None: that has it all.

        image: (second, rows, tiles) of the newest image that is not old; None: there is none.
        """
        found = self.found
        if found is None or found.rows is None or (audio_end_s or 0) > found.second:
            return None
        rows, tiles = (None, (0, 0)) if image is None else image[1:]
        return Tail(Unit(found.second, rows, tiles, found.rows), found.end_ns)

    @property
    def _is_read(self) -> bool:
        return self.found is not None and self.found.second is not None


def hear(pending, listen, unit_deadline_s: float, wake) -> None:
    """Ask for the audio that a question is about; `wake` is notified when it comes.

    `listen(until_ns, timeout_s, take)` calls `take(OpenSecond)` once, in any thread.
    """
    timeout_s = unit_deadline_s + SPARE_S
    hearing = pending.hearing = Hearing(pending.question.heard_until, timeout_s)

    def take(found: OpenSecond) -> None:
        with wake:
            hearing.found = found
            wake.notify_all()

    listen(hearing.until_ns, timeout_s, take)
