# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Samples that wait for their second to be complete, in pieces that keep their stamps.

So a late piece can still be inserted between its neighbours: into the silence that was filled in
for it, or in front of pieces that were appended too early. Beside them stand the offsets of their
stamps from the count of samples. Stamps, positions and lengths are in samples since stamp 0.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.streams.time import LIMITS

# Reasons of zeros, by the name of their count in AudioSecond.
PADDED = 'padded_samples'
GAP = 'gap_samples'  # for audio that has not come
DRIFT = 'drift_samples'


def samples_in(seconds: float) -> int:
    """Return how many samples a time takes."""
    return round(seconds * SAMPLE_RATE_HZ)


SHORTEST = samples_in(LIMITS.shortest_piece_s)
TOLERANCE = samples_in(LIMITS.jitter_s)
DRIFT_WATCHED = samples_in(LIMITS.drift_watched_s)


@dataclass(frozen=True)
class _Piece:
    samples: np.ndarray  # (n,) float32
    stamp: int | None = None  # None: zeros that stand for time without audio
    reason: str = ''  # of zeros: the name of their count

    def part(self, begin: int, end: int | None = None) -> '_Piece':
        stamp = None if self.stamp is None else self.stamp + begin
        return _Piece(self.samples[begin:end], stamp, self.reason)


@dataclass(frozen=True)
class Inserted:
    """The effect of inserting a piece."""

    grown: int  # by how many samples all later pieces have moved
    stamp: int  # of the piece; what is stamped later lies behind it
    left_out: int  # samples of it that belong to seconds returned already


class HeldAudio:
    """Pieces in order; `end` is the position of the next sample."""

    def __init__(self, begin: int = 0):
        self.end = begin
        self._pieces, self._count = [], 0

    def __len__(self) -> int:
        """Count the samples held."""
        return self._count

    @property
    def begin(self) -> int:
        """Where the oldest sample lies."""
        return self.end - self._count

    def append(self, samples: np.ndarray, stamp: int | None = None, reason: str = '') -> None:
        """Add samples (n,); stamp None: they are zeros, and reason says why."""
        if len(samples):
            self._pieces.append(_Piece(samples, stamp, reason))
            self._count += len(samples)
            self.end += len(samples)

    def move_to(self, end: int) -> None:
        """Continue at another position; nothing may be held."""
        assert not self._count
        self.end = end

    def insert(self, stamp: int, samples: np.ndarray) -> Inserted | None:
        """Insert samples (n,) by their stamp; return None if there is no room or they are known.

        Samples before the oldest one held are dropped.
        """
        later = next((i for i, p in enumerate(self._pieces) if (p.stamp or stamp) > stamp), None)
        if later is None:
            return None
        stamped = [piece for piece in self._pieces[:later] if piece.stamp is not None]
        if stamped and stamped[-1].stamp == stamp:
            return None
        free = max(self.begin, stamped[-1].stamp + len(stamped[-1].samples) if stamped else 0)
        early = 0 if stamped else max(0, free - stamp)  # samples of seconds that were given on
        room = self._pieces[later].stamp - free
        if early >= len(samples) or room < (len(samples) - early) / 2:
            return None
        piece = _Piece(samples[early:], stamp + early)
        before = self._pieces[later - 1] if later else None
        if before is None or before.stamp is not None:
            self._pieces.insert(later, piece)
            return self._grow(piece, 0, early)
        replaced = min(len(before.samples), len(piece.samples))
        begin = min(max(0, piece.stamp - free), len(before.samples) - replaced)
        parts = [before.part(0, begin), piece, before.part(begin + replaced)]
        self._pieces[later - 1 : later] = [part for part in parts if len(part.samples)]
        return self._grow(piece, replaced, early)

    def _grow(self, piece: _Piece, replaced: int, early: int) -> Inserted:
        grown = len(piece.samples) - replaced
        self._count += grown
        self.end += grown
        return Inserted(grown, piece.stamp, early)

    def has_hole(self, count: int) -> bool:
        """Return whether a piece is missing in the oldest `count` samples that may still come.

        Either zeros stand for it; or between two pieces the stamps advance by half a piece or more
        beyond the samples, and no later piece has made up for it.
        """
        at, least = self.end, None
        for piece in reversed(self._pieces):
            at -= len(piece.samples)
            if piece.reason == GAP and at < self.begin + count:
                return True
            if piece.stamp is None:
                continue
            late = piece.stamp - at
            is_ahead = least is not None and least - late >= len(piece.samples) // 2 >= SHORTEST
            if is_ahead and at < self.begin + count:
                return True
            least = late if least is None else min(least, late)
        return False

    def padding(self, reason: str) -> int:
        """Return how many zeros of a reason are in front."""
        is_padded = bool(self._pieces) and self._pieces[0].reason == reason
        return len(self._pieces[0].samples) if is_padded else 0

    def prepend_padding(self, count: int, reason: str) -> None:
        """Put `count` zeros of a reason in front; `begin` lies earlier by as much."""
        self._count += count
        if padding := self.padding(reason):
            count += padding
            del self._pieces[0]
        self._pieces.insert(0, _Piece(np.zeros(count, np.float32), reason=reason))

    def cut_padding(self, count: int, reason: str) -> int:
        """Remove up to `count` zeros of a reason from the front; return how many were removed.

        All later pieces move to earlier positions.
        """
        count = min(count, self.padding(reason))
        if count:
            rest = self._pieces.pop(0).part(count)
            self._pieces[:0] = [rest] if len(rest.samples) else []
            self._count -= count
            self.end -= count
        return count

    def cut(self, end: int) -> int:
        """Remove the samples after `end`; return how many were removed."""
        cut = min(max(0, self.end - end), self._count)
        self._count -= cut
        self.end -= cut
        left = cut
        while left:
            piece = self._pieces.pop()
            if len(piece.samples) > left:
                self._pieces.append(piece.part(0, len(piece.samples) - left))
            left -= min(left, len(piece.samples))
        return cut

    def take(self, count: int) -> tuple[np.ndarray, Counter]:
        """Remove the oldest samples; return them, (count,), and how many are zeros, by reason."""
        samples, zeros, left = self.first(count), Counter(), count
        while left:
            piece = self._pieces.pop(0)
            taken = min(left, len(piece.samples))
            if piece.reason:
                zeros[piece.reason] += taken
            if taken < len(piece.samples):
                self._pieces.insert(0, piece.part(taken))
            left -= taken
        self._count -= count
        return samples, zeros

    def first(self, count: int) -> np.ndarray:
        """Return the oldest samples, at most `count`, (n,); they stay."""
        found, left = [np.empty(0, np.float32)], count
        for piece in self._pieces:
            if left <= 0:
                break
            found.append(piece.samples[:left])
            left -= len(found[-1])
        return np.concatenate(found)


@dataclass
class StampOffsets:
    """The offsets of a stream's stamps from its sample count since the last edge; in samples.

    They show drift. A temporary delay is none: a driver that was held up stamps late.
    """

    last: int  # stamp of the last chunk that was used
    samples: np.ndarray | None = None  # of that chunk
    copies: int = 0  # chunks since that had the same stamp
    offsets: list = field(default_factory=list)  # of each chunk: (stamp, it minus the count)
    was: int = 0  # the usual offset before these
    samples_to_drop: int = 0  # samples still to be dropped because of a drift

    def take_drift(self) -> int:
        """Return the drift of the stamps, or 0; start collecting anew.

        Chunks may be late for many reasons, so a lasting delay is that of the least late one.
        """
        if not self.offsets or self.last + len(self.samples) - self.offsets[0][0] < DRIFT_WATCHED:
            return 0
        values = [offset for _, offset in self.offsets]
        least, median = min(values), int(np.median(values))
        drift = least if least > TOLERANCE else median if median < -TOLERANCE else 0
        self.forget(median - drift)
        return drift

    @property
    def usual(self) -> int:
        """The median offset of the recent chunks, samples."""
        return int(np.median([offset for _, offset in self.offsets])) if self.offsets else self.was

    def forget(self, usual: int = 0) -> None:
        """Start collecting anew."""
        self.offsets.clear()
        self.was = usual

    def move_behind(self, stamp: int, count: int) -> None:
        """Note that chunks stamped later lie `count` samples later now."""
        self.offsets = [
            (at, offset - count * (at > stamp)) for at, offset in self.offsets
        ]  # fmt: skip
