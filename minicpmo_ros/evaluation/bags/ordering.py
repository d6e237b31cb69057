# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Time in a recording: stray stamps, two clocks, and audio put in order and resampled."""

import heapq
from collections import deque
from itertools import count

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import AUDIO_INFO, SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.units import NS

AROUND = 7  # messages before and behind one, that its stamp is compared with
FAR_NS = 600 * NS  # from them, and so many times as far as they are from each other:
TIMES = 20
APART_NS = 5 * NS  # of the clocks of two inputs
MOST_KEPT = 4096  # offsets of one input
BY_HAND = 'by audio_format (--audio-format 16000,1,S16LE: rate, channels, sample format).'
ORDER_S = 120  # that chunks wait for what was stored too late


class Stamped:
    """Messages of one input in the order of storing, without those whose stamps are strays.

    A driver's first message may be stamped 0 or since boot. Stamps are looked at relative to the
    moments of recording; where they jump and stay, as those of a clock that was set do, nothing
    is left out.
    """

    def __init__(self):
        self._offsets, self._waiting = deque(maxlen=2 * AROUND + 1), deque()
        self.count = self.strays = 0

    def push(self, stamp_ns: int, log_ns: int, item) -> list:
        """Take one; give (stamp_ns, item) of those that are believed by now."""
        self.count += 1
        self._offsets.append(stamp_ns - log_ns)
        self._waiting.append((stamp_ns - log_ns, stamp_ns, item))
        return self._given(AROUND)

    def finish(self) -> list:
        """Return the rest."""
        return self._given(0)

    def _given(self, kept: int) -> list:
        given = []
        while len(self._waiting) > kept:
            offset_ns, stamp_ns, item = self._waiting.popleft()
            if is_stray(offset_ns, self._offsets):
                self.strays += 1
            else:
                given.append((stamp_ns, item))
        return given


def is_stray(offset_ns: int, around) -> bool:
    """Return whether an offset is far from those around it, which are near each other."""
    if max(around) - min(around) < FAR_NS:
        return False
    ordered = sorted(around)
    low, middle, high = (ordered[len(ordered) * i // 4] for i in (1, 2, 3))
    return abs(offset_ns - middle) > max(FAR_NS, TIMES * (high - low))


class LogOffset:
    """How far an input's stamps are behind the moments at which they were recorded."""

    def __init__(self):
        self._kept, self._every, self._count = [], 1, 0
        self._low_ns = self._high_ns = None

    def add(self, stamp_ns: int, log_ns: int) -> None:
        """Take a message."""
        offset_ns = log_ns - stamp_ns
        self._low_ns = offset_ns if self._count == 0 else min(self._low_ns, offset_ns)
        self._high_ns = offset_ns if self._count == 0 else max(self._high_ns, offset_ns)
        if self._count % self._every == 0:
            self._kept.append(offset_ns)
            if len(self._kept) > MOST_KEPT:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._count += 1

    @property
    def spread_ns(self) -> int:
        """How much it changed."""
        return self._high_ns - self._low_ns if self._count else 0

    @property
    def median_ns(self) -> int | None:
        """The median; None where nothing came."""
        return sorted(self._kept)[len(self._kept) // 2] if self._kept else None


def two_clocks(image_topic: str, images: LogOffset, audio_topic: str, audio: LogOffset) -> str:
    """Return a sentence if the stamps of two topics are of different clocks, else ''."""
    if images.median_ns is None or audio.median_ns is None:
        return ''
    apart_ns = images.median_ns - audio.median_ns
    if abs(apart_ns) < APART_NS:
        return ''
    how = f'{round(abs(apart_ns) / NS)} s {"behind" if apart_ns > 0 else "before"}'
    return (
        f'The stamps of {image_topic} are {how} those of {audio_topic} that were recorded '
        'at the same time: their clocks differ, and images and audio of one moment do '
        'not meet in a window.'
    )


class AudioReading:
    """The chunks of one topic: put in order, resampled, kept where they are wanted."""

    def __init__(self, path, formats: set, channel: int | None, store):
        """formats: holds exactly one by the time that the first chunk has waited enough."""
        self._path, self.formats = path, formats
        self._channel, self._store = channel, store  # store(begin_ns, samples) keeps them
        self._waiting, self._number = [], count()
        self._stream = None
        self._newest_ns = self._passed_ns = self._end_ns = 0
        self._count = self._bad = self._late = self._unheard = 0
        self._why = None

    @property
    def is_heard(self) -> bool:
        """Whether the format was known of all that came."""
        return not self._unheard

    def push(self, stamp_ns: int, log_ns: int, data: bytes) -> None:
        """Take a chunk; stamp_ns 0: it ended when it was recorded."""
        key_ns = stamp_ns or log_ns
        self._count += 1
        if key_ns < self._passed_ns:
            self._late += 1
            return
        self._newest_ns = max(self._newest_ns, key_ns)
        heapq.heappush(self._waiting, (key_ns, next(self._number), stamp_ns, data))

    def refuse(self, why: InputError) -> None:
        """Count a chunk that holds no audio."""
        self._count, self._bad, self._why = self._count + 1, self._bad + 1, why

    def drain(self, keep, waits_ns: int) -> None:
        """Resample what need not wait any more; what nobody has told the format of is left out."""
        while self._waiting and self._newest_ns - self._waiting[0][0] >= waits_ns:
            if not self.formats:
                heapq.heappop(self._waiting)
                self._unheard += 1
                continue
            audio_format = self._the_format()
            key_ns, _, stamp_ns, data = heapq.heappop(self._waiting)
            self._passed_ns = key_ns
            begin_ns = stamp_ns or key_ns - int(audio_format.duration_s(len(data)) * NS)
            try:
                self._stream = self._stream or AudioDecoder(audio_format, self._channel)
                begin_ns, samples = self._stream.push(begin_ns, data)  # (n,) at 16 kHz
            except InputError as error:
                self._bad, self._why = self._bad + 1, error
                continue
            self._add(begin_ns, samples, keep)

    def finish(self, keep, losses: list) -> None:
        """Resample the rest, and tell what was lost."""
        self.drain(keep, 0)
        if self._stream is not None:
            self._add(self._end_ns, self._stream.flush(), keep)
            if problem := self._stream.doubt:
                losses.append(f'{problem[0].upper()}{problem[1:]}.')
        if self._bad:
            remedy = '' if self._stream else f' Or tell it {BY_HAND}'
            losses.append(
                f'{self._bad} of {self._count} chunks of audio cannot be read: {self._why}{remedy}'
            )
        if self._unheard:
            losses.append(
                f'{self._unheard} of {self._count} chunks of audio are not heard: no {AUDIO_INFO} '
                f'tells their format. Tell it {BY_HAND}'
            )
        if self._late:
            losses.append(
                f'{self._late} of {self._count} chunks of audio were stored more than {ORDER_S} s '
                'too late and are left out.'
            )

    def _add(self, begin_ns: int, samples: np.ndarray, keep) -> None:
        if not len(samples):
            return
        self._end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        if keep(begin_ns // NS, -(-self._end_ns // NS)):
            self._store(begin_ns, samples)

    def _the_format(self) -> AudioFormat:
        if len(self.formats) != 1:
            raise InputError(
                f'{self._path}: {len(self.formats)} formats of its audio are told, by '
                f'{AUDIO_INFO} or with the audio; one is needed. Leave the others out of '
                'the bag, or tell it by audio_format.'
            )
        return next(iter(self.formats))
