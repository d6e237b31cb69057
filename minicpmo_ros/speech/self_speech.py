# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the robot does not listen to: the time in which it speaks itself, by stamps.

A microphone hears the robot's own voice. So that its words are not taken for somebody's, the audio
of that time, and of TAIL_S after it in which the room still sounds, becomes silence. Only the
stamps of the speaker's states and of the audio count, so that a recording gives the same.
"""

import threading
from collections import deque

import numpy as np

from minicpmo_ros.units import NS

ALWAYS, HALF_DUPLEX = 'always', 'half_duplex'
LISTEN = (HALF_DUPLEX, ALWAYS)
TAIL_S = 0.8
KEPT = 256  # intervals
MS = 1_000_000  # ns


class SelfSpeech:
    """The intervals in which the robot speaks; thread-safe."""

    def __init__(self, tail_s: float = TAIL_S):
        self._tail_ns, self._lock = round(tail_s * NS), threading.Lock()
        self._intervals = deque(maxlen=KEPT)  # [begin_ns, end_ns with tail, or None: it speaks]

    def tell(self, stamp_ns: int, is_speaking: bool) -> None:
        """Take a state of the speaker: from this stamp on it speaks, or it is silent."""
        with self._lock:
            newest = self._intervals[-1] if self._intervals else None
            if newest is not None and stamp_ns < newest[0]:
                self._intervals.clear()  # time went back: a recording begins anew
                newest = None
            is_open = newest is not None and newest[1] is None
            if is_speaking and not is_open:
                self._intervals.append([stamp_ns, None])
            elif not is_speaking and is_open:
                newest[1] = stamp_ns + self._tail_ns

    def silence(self, begin_ns: int, samples: np.ndarray, rate_hz: int) -> np.ndarray:
        """Return samples (n,), the first recorded at begin_ns, with zeros for its own speech."""
        spans = self._spans(begin_ns, begin_ns + len(samples) * NS // rate_hz)
        if spans:
            samples = samples.copy()
        for first_ns, last_ns in spans:
            first = (first_ns - begin_ns) * rate_hz // NS
            samples[first : -((begin_ns - last_ns) * rate_hz // NS)] = 0
        return samples

    def duration_ms(self, begin_ns: int, end_ns: int) -> int:
        """Return how many milliseconds of a time became silence."""
        covered, until_ns = 0, begin_ns
        for first_ns, last_ns in self._spans(begin_ns, end_ns):
            covered += max(0, last_ns - max(first_ns, until_ns))  # tails may overlap
            until_ns = max(until_ns, last_ns)
        return covered // MS

    def _spans(self, begin_ns: int, end_ns: int) -> list:
        """Return (begin, end) of what of a time is its own speech."""
        with self._lock:
            spans = [
                (max(begin_ns, first), end_ns if last is None else min(end_ns, last))
                for first, last in self._intervals
            ]
        return [(first, last) for first, last in spans if first < last]
