# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Cuts a stamped audio stream into the seconds of its stamps.

Second n holds the samples of [n, n + 1) s. The first stamp, rounded down to 1 / 16000 s, positions
sample 0, or if the first chunks come in a burst, the end of that; if it was late, the first that
was not. The start of the first second is zero-padded. From there on samples are counted and the
stamps are checked against the count. Stamps may be recording times, or arrival times at a driver
that is sometimes delayed: its chunks then arrive late and in a burst, but none is missing.
Relative to the count, a chunk that begins

- within 20 ms of it: is appended, stamps jitter;
- within 0.2 s: is appended; but if all chunks of a second are late by over 20 ms, or half of them
  early, then clocks drift or a little was lost, and the next second's edge corrects it: zeros are
  inserted or samples dropped;
- up to 2 s later: ends a gap, which is filled with zeros at once;
- over 0.2 s earlier: repeats earlier audio, which is dropped;
- over 2 s later, or over 0.5 s before the chunk before it (a recording that starts over): begins
  a new stream, and the open second is padded with zeros.

A chunk that is over 0.2 s late or steps back, without silence before it, is doubtful: it waits for
the next ones. If these arrive faster than they were recorded, a burst is catching up, and more are
waited for; once the burst reaches the count, all are appended. If they go on at their pace, the
stamps are believed. If the next chunk continues the stream, the doubtful one was a glitch or came
early, and waits for its place.

A chunk stamped before the last one is inserted at its place if that second is still open and the
stamps leave room there; a second with room waits 0.3 s longer. Otherwise it is a copy or too late,
and is dropped. A chunk with the last one's stamp and content is dropped. All of this is counted
for each second.
"""

from collections import Counter, defaultdict

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.log_mel import MARGIN, SAMPLE_RATE_HZ
from minicpmo_ros.streams import AudioSecond
from minicpmo_ros.streams.held_audio import (
    DRIFT,
    GAP,
    PADDED,
    TOLERANCE,
    HeldAudio,
    StampOffsets,
    samples_in,
)
from minicpmo_ros.streams.time import LIMITS
from minicpmo_ros.units import NS

JUMP = samples_in(LIMITS.jump_s)
LONGEST_GAP = samples_in(LIMITS.longest_gap_s)
LONGEST_STEP_BACK = samples_in(LIMITS.step_back_s)
SETTLED = samples_in(LIMITS.settled_s)
LONGEST_BURST = samples_in(LIMITS.longest_burst_s)
LONGEST_START = samples_in(LIMITS.longest_start_s)
LATEST = samples_in(LIMITS.late_piece_s)


class SecondSplitter:
    """Takes 16 kHz mono chunks of any length and returns whole seconds.

    A second is returned as soon as the `look_ahead_samples` after it have arrived, too.
    """

    def __init__(self, look_ahead_samples: int = MARGIN):
        self._look_ahead_samples = look_ahead_samples
        self.held = None  # HeldAudio, from the oldest second that was not returned yet
        self._first_second = self._newest = None  # of the stream; that was returned
        self._first_stamp, self._is_first, self._starts_in_burst = 0, False, False  # the newest
        self._stamps = None
        self._ended_with_padding = True  # the last second was padded with zeros
        self._waiting = []  # (stamp, samples) of doubtful chunks
        self.counts = defaultdict(Counter)  # by second: what was dropped, as in AudioSecond

    def push(self, stamp_ns: int | None, samples: np.ndarray) -> list[AudioSecond]:
        """Take samples (n,) float32, the first of them recorded at stamp_ns.

        stamp_ns None: they follow the last ones (or begin at 0). After a pause pass a stamp, or
        the pause is not noticed.
        Raises InputError, and changes nothing, if samples are not finite.
        """
        samples = _checked(samples)
        if not len(samples):
            return []
        if stamp_ns is None:
            ended = self._place_waiting() + self._place(None, samples)
            self._is_first = self._starts_in_burst = False
        else:
            ended = self._take_in(stamp_ns * SAMPLE_RATE_HZ // NS, samples)
        if self._starts_in_burst or (self._is_first and len(samples) < SAMPLE_RATE_HZ // 2):
            return ended  # the next chunk tells whether the stream began earlier
        look_ahead = self._look_ahead_samples
        is_whole = len(self.held) >= SAMPLE_RATE_HZ + look_ahead
        if is_whole and self.held.has_hole(SAMPLE_RATE_HZ):
            look_ahead = max(look_ahead, LATEST)
        return ended + self._take_whole(look_ahead)

    def cut(self, stamp_ns: int) -> None:
        """Discard the samples held that are later than this; they count as overlap_samples."""
        waiting = sum(len(samples) for _, samples in self._take_waiting())
        if self.held is not None and not self._ended_with_padding:
            cut = self.held.cut(stamp_ns * SAMPLE_RATE_HZ // NS)
            self._stamps.last -= cut
            self._count('overlap_samples', waiting + cut)

    def peek(self, end_ns: int | None = None) -> tuple | None:
        """Return (AudioSecond, its end_ns): the open second as if silence followed end_ns.

        It ends where its audio does if that is earlier, or end_ns is None. None: no audio of an
        open second is held. Nothing is changed; chunks in doubt are left out.
        """
        begin = self.held.begin if self.held is not None else 0
        end = begin + min(len(self.held or ()), SAMPLE_RATE_HZ)
        if end_ns is not None:
            end = min(end, end_ns * SAMPLE_RATE_HZ // NS)
        if end <= begin:
            return None
        samples, number = np.zeros(SAMPLE_RATE_HZ, np.float32), begin // SAMPLE_RATE_HZ
        samples[: end - begin] = self.held.first(end - begin)
        silence = np.zeros(self._look_ahead_samples, np.float32)
        is_first = number == self._first_second
        return AudioSecond(number, samples, silence, is_first), end * NS // SAMPLE_RATE_HZ

    def flush(self, close: bool = True) -> list[AudioSecond]:
        """Return the seconds that wait for more audio, as if silence followed.

        close: return the open second too, padded with zeros; audio that comes for it later is
        dropped. The stream may go on either way.
        """
        ended = self._place_waiting() if close else []
        if close and self.held is not None:
            self._append_zeros(-self.held.end % SAMPLE_RATE_HZ, PADDED)
            self._stamps = StampOffsets(self._stamps.last)
            self._ended_with_padding = True
        return ended + self._take_whole(look_ahead_samples=0)

    def _take_in(self, stamp: int, samples: np.ndarray) -> list[AudioSecond]:
        """Place a chunk, or keep it waiting while its place is doubtful."""
        if self._waiting:
            return self._resolve_doubtful(stamp, samples)
        if self._ended_with_padding or not self._is_doubtful(stamp):
            return self._place(stamp, samples)
        self._waiting.append((stamp, samples))
        return []

    def _resolve_doubtful(self, stamp: int, samples: np.ndarray) -> list[AudioSecond]:
        """Decide, by a new chunk, where the doubtful ones belong."""
        first, (last, last_samples) = self._waiting[0][0], self._waiting[-1]
        length = sum(len(waiting) for _, waiting in self._waiting)
        offset, later = self._offset(stamp), stamp - last - len(last_samples)
        late = offset - length  # if they lie between
        if late <= JUMP and abs(late - self._stamps.usual) < min(JUMP, length / 2):
            # They were a glitch, or a burst that has caught up: they lie between.
            for _, waiting in self._take_waiting():
                self._append_over_edges(waiting, self.held.end)
            return self._place(stamp, samples)
        if stamp == last and _known(last_samples, samples) == len(samples):
            self._count('overlap_samples', len(samples))
        elif abs(offset) <= JUMP and 0 < first - stamp - len(samples) // 2 <= LONGEST_STEP_BACK:
            return self._place_before_waiting(stamp, samples)
        elif first <= stamp and length < LONGEST_BURST and not self._is_at_pace(stamp):
            self._waiting.append((stamp, samples))
        elif first <= stamp and (
            length >= LONGEST_BURST
            or -JUMP <= later <= JUMP
            or (later > JUMP and self._is_doubtful(stamp))
        ):
            return self._place_waiting() + self._take_in(stamp, samples)
        else:
            for waiting in self._take_waiting():
                self._insert(*waiting)
            return self._take_in(stamp, samples)
        return []

    def _is_at_pace(self, stamp: int) -> bool:
        """Return whether the newest waiting chunks came at their pace, and not in a burst."""
        if len(self._waiting) == 1:
            begin, samples = self._waiting[0]
            return stamp - begin >= LIMITS.burst * len(samples)
        after, length = stamp, 0
        for begin, samples in reversed(self._waiting):
            length += len(samples)
            if after - begin - len(samples) > max(JUMP // 4, len(samples) // 2):  # delayed again
                return False
            if length >= SETTLED:
                return LIMITS.burst * length <= stamp - begin <= length + TOLERANCE
            after = begin
        return False

    def _place_before_waiting(self, stamp: int, samples: np.ndarray) -> list[AudioSecond]:
        """Continue the stream; the waiting chunks came early."""
        ended = self._place(stamp, samples)
        return ended if self._is_doubtful(self._waiting[0][0]) else ended + self._place_waiting()

    def _take_waiting(self) -> list:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _place_waiting(self) -> list[AudioSecond]:
        """Believe the stamps of the waiting chunks; for a burst, the stamp of its end."""
        ended, waiting = [], self._take_waiting()
        left = sum(len(samples) for _, samples in waiting[:-1])
        for _, samples in waiting:
            ended += self._place(waiting[-1][0] - left, samples)
            left -= len(samples)
        return ended

    def _place(self, stamp: int | None, samples: np.ndarray) -> list[AudioSecond]:
        """Place a chunk by its stamp; return the seconds of the stream that it ends, if any."""
        ended = []
        if self.held is None:
            self._begin(stamp or 0)
        elif stamp is not None and self._is_elsewhere(stamp):
            waiting = self._take_waiting()
            ended = self.flush()
            self._waiting = waiting
            self._begin(stamp)
        elif stamp is not None:
            known = self._align(stamp, samples)
            stamp, samples = stamp + known, samples[known:]
        if stamp is not None and len(samples):
            self._stamps.samples = samples
        self._append_over_edges(samples, self.held.end if stamp is None else stamp)
        self._ended_with_padding = False
        return ended

    def _offset(self, stamp: int) -> int:
        """Return by how many samples a stamp is later than the count of samples."""
        return stamp - (self.held.end - self._stamps.samples_to_drop)

    def _is_elsewhere(self, stamp: int) -> bool:
        steps_back = stamp < self._stamps.last - LONGEST_STEP_BACK
        return steps_back or self._offset(stamp) > LONGEST_GAP

    def _is_doubtful(self, stamp: int) -> bool:
        return self._is_elsewhere(stamp) or self._offset(stamp) > JUMP

    def _begin(self, stamp: int) -> None:
        self._stamps = StampOffsets(stamp)
        self._first_stamp, self._is_first, self._starts_in_burst = stamp, True, False
        self._first_second = stamp // SAMPLE_RATE_HZ
        # What was dropped after the last whole second is reported with the first of this stream.
        unreported = Counter()
        for counts in self.counts.values():
            unreported.update(counts)
        self.counts.clear()
        self.counts[self._first_second] = unreported
        begin = self._first_second * SAMPLE_RATE_HZ
        if self.held is None:
            self.held = HeldAudio()
        self.held.move_to(begin)
        self._append_zeros(stamp - begin, PADDED)

    def _align(self, stamp: int, samples: np.ndarray) -> int:
        """Fill the gap before a chunk; return how many of its samples are known or placed."""
        stamps = self._stamps
        if stamp < stamps.last:
            return self._insert(stamp, samples)
        is_copy = stamp == stamps.last and stamps.samples is not None
        known = _known(stamps.samples, samples) if is_copy else 0
        offset = self._offset(stamp)
        is_burst = self._is_burst(stamp)
        if offset < -TOLERANCE and not known:
            # The first chunks were late themselves: the stream began earlier.
            if is_burst or self._starts_in_burst:
                offset += self._begin_earlier(-offset)
            elif offset >= -JUMP and self._newest_is_before_stream():
                offset += self.held.cut_padding(-offset, PADDED)
        self._starts_in_burst = is_burst and (self._is_first or self._starts_in_burst)
        self._is_first = False
        if is_copy:
            stamps.copies += 1
            if stamps.copies > LIMITS.most_copies or not known:
                return 0  # the stamps stand still, or several chunks share one
            self._count('overlap_samples', known)
            return known
        known = min(len(samples), -offset) if offset < -JUMP else 0
        self._count('overlap_samples', known)
        if known == len(samples):
            return known
        if offset > JUMP:
            self._append_zeros(offset, GAP)
        if abs(offset) > JUMP:  # it is corrected now
            stamps.forget()
            offset = 0
        stamps.offsets.append((stamp, offset))
        stamps.last, stamps.copies = stamp, 0
        return known

    def _insert(self, stamp: int, samples: np.ndarray) -> int:
        """Insert a late chunk; return how many of its samples are not to be appended.

        Mostly all; but if it extends beyond the end, the new samples are to be appended.
        """
        inserted = self.held.insert(stamp, samples)
        if inserted is not None:
            self._stamps.move_behind(inserted.stamp, inserted.grown)
            self._count('overlap_samples', inserted.left_out)
            return len(samples)
        offset = self._offset(stamp)
        known = len(samples) if offset > -JUMP else min(len(samples), -offset)
        self._count('overlap_samples', known)
        return known

    def _newest_is_before_stream(self) -> bool:
        """Return whether no second of this stream was returned yet."""
        return self._newest is None or self._newest < self._first_second

    def _is_burst(self, stamp: int) -> bool:
        last = self._stamps.samples
        return last is not None and stamp - self._stamps.last < len(last) // 4

    def _begin_earlier(self, count: int) -> int:
        """Move the begin of a stream by up to so many samples; return by how many it was moved.

        While no second of it was returned, the stream may begin in a second before its first one.
        """
        first = self._first_second
        if self._newest_is_before_stream():
            begin = self.held.begin + self.held.padding(PADDED)
            most = begin - (self._first_stamp - LONGEST_START)
            if count > most:
                count, self._is_first, self._starts_in_burst = most, False, False
            while count > self.held.padding(PADDED) and self._newest != first - 1:
                self.held.prepend_padding(SAMPLE_RATE_HZ, PADDED)
                self.counts[first - 1] = self.counts.pop(first)
                first = self._first_second = first - 1
        return self.held.cut_padding(count, PADDED)

    def _append_over_edges(self, samples: np.ndarray, stamp: int) -> None:
        """Append samples, and correct the drift at each second's edge that they pass."""
        stamps = self._stamps
        while len(samples):
            skipped = min(stamps.samples_to_drop, len(samples))
            stamps.samples_to_drop -= skipped
            self._count(DRIFT, -skipped)
            part, samples = np.split(samples[skipped:], [self._space_left()])
            self.held.append(part, stamp + skipped)
            stamp += skipped + len(part)
            if len(part) and self._space_left() == SAMPLE_RATE_HZ:
                drift = stamps.take_drift()
                self._append_zeros(max(0, drift), DRIFT)
                stamps.samples_to_drop += max(0, -drift)

    def _append_zeros(self, count: int, reason: str) -> None:
        self.held.append(np.zeros(count, np.float32), reason=reason)

    def _space_left(self) -> int:
        """Return how many samples the open second still takes."""
        return SAMPLE_RATE_HZ - self.held.end % SAMPLE_RATE_HZ

    def _count(self, reason: str, samples: int) -> None:
        if samples:
            self.counts[self.held.end // SAMPLE_RATE_HZ][reason] += samples

    def _take_whole(self, look_ahead_samples: int) -> list:
        """Return and remove the whole seconds that are followed by this many samples."""
        seconds = []
        while self.held is not None and len(self.held) >= SAMPLE_RATE_HZ + look_ahead_samples:
            number = self._newest = self.held.begin // SAMPLE_RATE_HZ
            samples, counts = self.held.take(SAMPLE_RATE_HZ)
            counts.update(self.counts.pop(number, {}))
            look_ahead = np.zeros(self._look_ahead_samples, np.float32)
            follows = self.held.first(self._look_ahead_samples)
            look_ahead[: len(follows)] = follows
            seconds.append(
                AudioSecond(
                    number,
                    samples,
                    look_ahead,
                    begins_stream=number == self._first_second,
                    **counts,
                )
            )
        return seconds


def _known(before: np.ndarray, samples: np.ndarray) -> int:
    """Return how many leading samples equal those of the chunk before; 0: another chunk."""
    length = min(len(before), len(samples))
    return length if np.array_equal(before[:length], samples[:length]) else 0


def _checked(samples) -> np.ndarray:
    samples = np.array(samples, np.float32)  # a copy: the caller may reuse the buffer
    if samples.ndim != 1:
        raise InputError(
            f'The audio has the shape {samples.shape}; one row of mono samples is '
            'allowed. Mix the channels first.'
        )
    if not np.isfinite(samples).all():
        raise InputError(
            'The audio contains NaN or infinite samples; floats in [-1, 1] are '
            'allowed. Check the driver or filter that produces them.'
        )
    return samples
