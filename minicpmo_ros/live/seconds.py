# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Cuts a stamped stream of sound into the seconds of its stamps.

Second n holds the samples of [n, n + 1) s. Sample 0 of a stream lies where its first stamp says,
rounded down to 1 / 16000 s; what its first second lacks in front is zeros. From there on samples
are counted and the stamps watched. A chunk that begins, compared with the count of samples,

- within 20 ms of it: follows on, stamps jitter;
- within 0.2 s: follows on; but where the median of a second's chunks is off by over 20 ms, clocks
  drift or a little was lost, and the next edge of a second corrects it: zeros or left-out samples;
- up to 2 s later: ends a gap, which is filled with zeros on the spot;
- over 0.2 s earlier: contains what was heard already, which is left out;
- over 2 s later, or over 0.5 s before the chunk before it (a recording that starts over): begins
  the stream anew, and the open second is filled up with zeros.

One stamp that is over 0.2 s late or steps back, without silence before it, may be a glitch: its
chunk waits for the next one.
If that agrees, or none comes before the flush, the stamp was true; if that goes on where the
stream was, the chunk takes its place between them or, where it has none there, is left out.

A chunk not stamped later than the one before is a copy or out of order and is left out, but
for stamps that stand still, which are not believed. All of this is counted, second by second.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.log_mel import MARGIN, SAMPLE_RATE_HZ

NS = 10**9
TOLERANCE = SAMPLE_RATE_HZ // 50  # 20 ms; these in samples
JUMP = SAMPLE_RATE_HZ // 5  # 0.2 s
LONGEST_GAP = 2 * SAMPLE_RATE_HZ
LONGEST_STEP_BACK = SAMPLE_RATE_HZ // 2
COPIES = 2  # of one chunk that are left out; with more of them the stamps stand still


@dataclass(frozen=True)
class SampledSecond:
    """One second of sound, and what was done to make it one."""

    second: int  # covers [second, second + 1) s of the stamps
    samples: np.ndarray  # (16000,) float32
    look_ahead: np.ndarray  # (200,) float32: what follows; zeros where nothing does
    restarted: bool = False  # the stream, the first or a later one, begins in this second
    padded_samples: int = 0  # zeros before the begin or after the end of a stream
    gap_samples: int = 0  # zeros for sound that never came
    drift_samples: int = 0  # zeros put in (> 0) or samples left out (< 0) at the second's begin
    overlap_samples: int = 0  # left out: their time was heard already or is wrong


@dataclass
class _Stamps:
    """How a stream's stamps lie to its count of samples, since the last edge; in samples."""

    last: int  # stamp of the last chunk that was used
    copies: int = 0  # chunks since that had the same stamp
    offsets: list = field(default_factory=list)  # of each chunk's stamp, minus the count
    to_skip: int = 0  # samples still to be left out because of a drift

    def take_drift(self) -> int:
        """Give the median offset, or 0 within the tolerance; start collecting anew."""
        median = int(np.median(self.offsets)) if self.offsets else 0
        self.offsets.clear()
        return median if abs(median) > TOLERANCE else 0


class SecondSplitter:
    """Takes 16 kHz mono chunks of any length; gives whole seconds.

    A second is given as soon as `look_ahead_samples` of what follows are there too.
    """

    def __init__(self, look_ahead_samples: int = MARGIN):
        self._look_ahead_samples = look_ahead_samples
        self._held = []  # arrays, from the start of the oldest second not given on
        self._held_samples = 0
        self._end = None  # where the next sample goes, in samples since stamp 0
        self._first_second = None  # of the stream
        self._stamps = None
        self._is_closed = True  # what was heard ended with silence
        self._doubtful = None  # (stamp, samples) of a chunk that waits to be confirmed
        self._counts = defaultdict(Counter)  # by second: the ..._samples of SampledSecond

    def push(self, stamp_ns: int | None, samples: np.ndarray) -> list[SampledSecond]:
        """Take samples (n,) float32, the first of them recorded at stamp_ns.

        stamp_ns None: they follow on the last ones (begin at 0 if there are none); after a
        pause give a stamp again, or it is not known.
        Raises InputError, and changes nothing, for samples that are not finite.
        """
        samples = _checked(samples)
        if not len(samples):
            return []
        stamp = None if stamp_ns is None else stamp_ns * SAMPLE_RATE_HZ // NS
        ended = self._settle(stamp) if self._doubtful else []
        if not self._is_closed and stamp is not None and self._is_doubtful(stamp):
            self._doubtful = stamp, samples
        else:
            ended += self._put(stamp, samples)
        return ended + self._take_whole(self._look_ahead_samples)

    def flush(self, close: bool = True) -> list[SampledSecond]:
        """Give the seconds that wait for what follows, as if silence did.

        close: the open second too, filled up with zeros; sound that comes for it later is left
        out. The stream may go on either way.
        """
        ended = self._settle(None) if close and self._doubtful else []
        if close and self._end is not None:
            self._append_zeros(-self._end % SAMPLE_RATE_HZ, 'padded_samples')
            self._stamps = _Stamps(self._stamps.last)
            self._is_closed = True
        return ended + self._take_whole(look_ahead_samples=0)

    def _settle(self, stamp: int | None) -> list[SampledSecond]:
        """Say by the next chunk's stamp (None: there is none) where the doubtful one belongs."""
        (begin, samples), self._doubtful = self._doubtful, None
        length = len(samples)
        fits_between = stamp is not None and (
            abs(self._offset(stamp) - length) < min(JUMP, length / 2)
        )
        later = 0 if stamp is None else stamp - begin - length
        if fits_between:
            self._append_over_edges(samples)
        elif later >= -JUMP and (later <= JUMP or self._is_doubtful(stamp)):
            return self._put(begin, samples)
        else:
            self._count('overlap_samples', length)
        return []

    def _put(self, stamp: int | None, samples: np.ndarray) -> list[SampledSecond]:
        """Put a chunk where its stamp says; give the seconds of the stream that ends with it."""
        ended = []
        if self._end is None:
            self._begin(stamp or 0)
        elif stamp is not None and self._is_elsewhere(stamp):
            ended = self.flush()
            self._begin(stamp)
        elif stamp is not None:
            samples = self._align(stamp, samples)
        self._append_over_edges(samples)
        self._is_closed = False
        return ended

    def _offset(self, stamp: int) -> int:
        """Say by how many samples a stamp is later than the count of samples."""
        return stamp - (self._end - self._stamps.to_skip)

    def _is_elsewhere(self, stamp: int) -> bool:
        steps_back = stamp < self._stamps.last - LONGEST_STEP_BACK
        return steps_back or self._offset(stamp) > LONGEST_GAP

    def _is_doubtful(self, stamp: int) -> bool:
        return self._is_elsewhere(stamp) or self._offset(stamp) > JUMP

    def _begin(self, stamp: int) -> None:
        self._stamps = _Stamps(stamp)
        self._first_second = stamp // SAMPLE_RATE_HZ
        # What was left out after the last whole second is told with the first of this stream.
        untold = Counter()
        for counts in self._counts.values():
            untold.update(counts)
        self._counts.clear()
        self._counts[self._first_second] = untold
        self._end = self._first_second * SAMPLE_RATE_HZ
        self._append_zeros(stamp - self._end, 'padded_samples')

    def _align(self, stamp: int, samples: np.ndarray) -> np.ndarray:
        """Fill a gap before a chunk; give the part of the chunk that is new."""
        stamps, offset = self._stamps, self._offset(stamp)
        if stamp <= stamps.last:
            stamps.copies += stamp == stamps.last
            if stamps.copies > COPIES:
                return samples
            known = len(samples) if offset > -JUMP else min(len(samples), -offset)
        else:
            known = min(len(samples), -offset) if offset < -JUMP else 0
        self._count('overlap_samples', known)
        if known == len(samples):
            return samples[:0]
        if offset > JUMP:
            self._append_zeros(offset, 'gap_samples')
        if abs(offset) > JUMP:  # and now settled
            stamps.offsets.clear()
            offset = 0
        stamps.offsets.append(offset)
        stamps.last, stamps.copies = stamp, 0
        return samples[known:]

    def _append_over_edges(self, samples: np.ndarray) -> None:
        """Append samples, and correct a drift at every edge of a second they pass."""
        stamps = self._stamps
        while len(samples):
            skipped = min(stamps.to_skip, len(samples))
            stamps.to_skip -= skipped
            self._count('drift_samples', -skipped)
            part, samples = np.split(samples[skipped:], [self._room()])
            self._append(part)
            if len(part) and self._room() == SAMPLE_RATE_HZ:
                drift = stamps.take_drift()
                self._append_zeros(max(0, drift), 'drift_samples')
                stamps.to_skip += max(0, -drift)

    def _append_zeros(self, count: int, reason: str) -> None:
        while count:
            part = min(count, self._room())
            self._count(reason, part)
            self._append(np.zeros(part, np.float32))
            count -= part

    def _append(self, samples: np.ndarray) -> None:
        self._held.append(samples)
        self._held_samples += len(samples)
        self._end += len(samples)

    def _room(self) -> int:
        """Say how many samples the open second still takes."""
        return SAMPLE_RATE_HZ - self._end % SAMPLE_RATE_HZ

    def _count(self, reason: str, samples: int) -> None:
        if samples:
            self._counts[self._end // SAMPLE_RATE_HZ][reason] += samples

    def _take_whole(self, look_ahead_samples: int) -> list:
        """Take the whole seconds that this many samples follow."""
        if self._held_samples < SAMPLE_RATE_HZ + look_ahead_samples:
            return []
        seconds, held = [], np.concatenate(self._held)
        while len(held) >= SAMPLE_RATE_HZ + look_ahead_samples:
            number = (self._end - len(held)) // SAMPLE_RATE_HZ
            samples, held = np.split(held, [SAMPLE_RATE_HZ])
            look_ahead = np.zeros(self._look_ahead_samples, np.float32)
            follows = held[: self._look_ahead_samples]
            look_ahead[: len(follows)] = follows
            seconds.append(
                SampledSecond(
                    number,
                    samples,
                    look_ahead,
                    restarted=number == self._first_second,
                    **self._counts.pop(number, {}),
                )
            )
        self._held, self._held_samples = [held.copy()], len(held)
        return seconds


def _checked(samples) -> np.ndarray:
    samples = np.array(samples, np.float32)  # a copy: the caller may use his buffer again
    if samples.ndim != 1:
        raise InputError(
            f'The sound has the shape {samples.shape}; one row of mono samples is '
            'allowed. Mix the channels first.'
        )
    if not np.isfinite(samples).all():
        raise InputError(
            'The sound contains NaN or infinite samples; floats in [-1, 1] are '
            'allowed. Look at the driver or filter that makes them.'
        )
    return samples
