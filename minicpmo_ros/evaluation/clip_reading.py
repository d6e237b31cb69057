# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips out of bags of any length: only what the asked windows need is held in memory.

Of each second the newest picture is kept, as the eyes take it; sound is resampled as a stream
while it is read, so that a window's samples do not depend on what else was asked. Messages may be
stored out of order by up to ORDER_S.
"""

import heapq
from collections import Counter
from itertools import count

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import Bag
from minicpmo_ros.evaluation.clip import (
    NS,
    PICTURE,
    PLAIN_SOUND,
    RAW_PICTURE,
    SAMPLE_RATE_HZ,
    SOUND,
    SOUND_INFO,
    Clip,
    Shot,
    type_store,
)
from minicpmo_ros.media.sound import AudioFormat, SoundStream

KINDS = (PICTURE, RAW_PICTURE, SOUND, PLAIN_SOUND, SOUND_INFO)
ORDER_S = 120  # of sound that waits for what was stored too late


def read_clip(path, windows=None) -> Clip:
    """Read a bag, as bags.Bag finds it; InputError where no picture and no sound is in it.

    windows: of ((start_s, end_s), relative) as questions have them; None: all that is there, with
    all pictures.
    """
    first_s = None
    try:
        while True:
            reading = _Reading(path, windows, first_s)
            try:
                return reading.clip()
            except _BeginsEarlier:  # only windows that count from the begin make it matter
                first_s = reading.first_s
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror or error}).') from error


class _BeginsEarlier(Exception):
    """A stamp before the second that relative windows were counted from."""


class _Reading:
    """One pass over a bag."""

    def __init__(self, path, windows, first_s: int | None):
        self._path, self._windows = path, windows
        self._is_relative = any(relative for _, relative in windows or ())
        self._guessed = self.first_s = first_s
        self._seconds = None  # that are kept; made once first_s is known
        self._topics = {}  # kind: its topic
        self._shots = {}  # (second, number) or second alone: (stamp_ns, is raw, Shot)
        self._sound = {kind: _Sound(path) for kind in (SOUND, PLAIN_SOUND)}
        self._unreadable, self._formats = Counter(), set()

    def clip(self) -> Clip:
        """Read it all."""
        bag, types = Bag(self._path), None
        for message in bag.messages(KINDS):
            types = types or type_store(bag.definitions)
            try:
                told = types.deserialize_cdr(message.data, message.kind)
            except Exception:  # of damaged bytes almost anything comes
                self._unreadable[message.topic] += 1
                continue
            self._take(message, told)
        losses = list(bag.losses)
        losses += [f'{n} messages of {name} are damaged.' for name, n in self._unreadable.items()]
        sound = self._sound[SOUND if SOUND in self._topics else PLAIN_SOUND]
        chunks = sound.finish(self._formats, self._keep, losses)
        if not self._topics.keys() - {SOUND_INFO}:
            raise InputError(
                f'{self._path}: it has neither pictures ({PICTURE}, {RAW_PICTURE}) nor sound '
                f'({SOUND}, {PLAIN_SOUND}) that can be read. ' + ' '.join(losses)
            )
        shots = sorted(self._shots.values(), key=lambda entry: entry[:2])
        return Clip(tuple(shot for *_, shot in shots), tuple(chunks), tuple(losses), self.first_s)

    def _take(self, message, told) -> None:
        known = self._topics.setdefault(message.kind, message.topic)
        if known != message.topic:
            raise InputError(
                f'{self._path}: {message.kind} is on {", ".join(sorted((known, message.topic)))}; '
                'one topic of it is allowed. Leave the others out of the bag.'
            )
        if message.kind == SOUND_INFO:
            self._formats.add(
                AudioFormat(
                    told.sample_rate,
                    told.channels,
                    told.sample_format,
                    told.coding_format,
                    told.bitrate,
                )
            )
        elif message.kind in self._sound:
            data = (told.audio if message.kind == SOUND else told).data
            stamp_ns = _stamp_ns(0, told) if message.kind == SOUND else 0
            sound = self._sound[message.kind]
            sound.push(stamp_ns, message.log_ns, data.tobytes())
            sound.drain(self._formats, self._keep, ORDER_S * NS)
        else:
            self._take_picture(_stamp_ns(message.log_ns, told), message.kind, told)

    def _take_picture(self, stamp_ns: int, kind: str, told) -> None:
        second = stamp_ns // NS
        if not self._keep(second, second + 1):
            return
        is_raw = kind == RAW_PICTURE
        key = second if self._windows is not None else (second, len(self._shots))
        held = self._shots.get(key)
        if held is None or held[:2] <= (stamp_ns, is_raw):
            shot = (
                Shot.of_raw(stamp_ns, told)
                if is_raw
                else Shot.of_compressed(stamp_ns, told.format, told.data.tobytes())
            )
            self._shots[key] = (stamp_ns, is_raw, shot)

    def _keep(self, start_s: int, end_s: int) -> bool:
        """Tell whether a window has any of the seconds [start_s, end_s), which are there."""
        if self.first_s is None or start_s < self.first_s:
            self.first_s, self._seconds = start_s, None
            if self._is_relative and self._guessed is not None:
                raise _BeginsEarlier
            self._guessed = start_s
        if self._windows is None:
            return True
        if self._seconds is None:
            self._seconds = set()
            for (begin, end), relative in self._windows:
                shift_s = self.first_s if relative else 0
                self._seconds.update(range(begin + shift_s, end + shift_s))
        return any(second in self._seconds for second in range(start_s, end_s))


class _Sound:
    """The chunks of one topic: put in order, resampled, kept where they are wanted."""

    def __init__(self, path):
        self._path, self._waiting, self._number = path, [], count()
        self._stream, self._chunks = None, []
        self._newest_ns = self._passed_ns = self._end_ns = 0
        self._count = self._bad = self._late = 0
        self._why = None

    def push(self, stamp_ns: int, log_ns: int, data: bytes) -> None:
        """Take a chunk; stamp_ns 0: it ended when it was recorded."""
        key_ns = stamp_ns or log_ns
        self._count += 1
        if key_ns < self._passed_ns:
            self._late += 1
            return
        self._newest_ns = max(self._newest_ns, key_ns)
        heapq.heappush(self._waiting, (key_ns, next(self._number), stamp_ns, data))

    def drain(self, formats: set, keep, waits_ns: int) -> None:
        """Resample what need not wait any more."""
        while self._waiting and self._newest_ns - self._waiting[0][0] >= waits_ns:
            if self._stream is None or len(formats) != 1:
                self._stream = SoundStream(self._the_one_of(formats))
            key_ns, _, stamp_ns, data = heapq.heappop(self._waiting)
            self._passed_ns = key_ns
            begin_ns = stamp_ns or key_ns - int(self._stream.format.duration_s(len(data)) * NS)
            try:
                begin_ns, samples = self._stream.push(begin_ns, data)  # (n,) at 16 kHz
            except InputError as error:
                self._bad, self._why = self._bad + 1, error
                continue
            self._add(begin_ns, samples, keep)

    def finish(self, formats: set, keep, losses: list) -> list:
        """Resample the rest; give (stamp_ns, samples) of what was kept, and tell what was lost."""
        self.drain(formats, keep, 0)
        if self._stream is not None:
            self._add(self._end_ns, self._stream.flush(), keep)
        if self._bad:
            losses.append(
                f'{self._bad} of {self._count} chunks of sound cannot be read: {self._why}'
            )
        if self._late:
            losses.append(
                f'{self._late} of {self._count} chunks of sound were stored more than {ORDER_S} s '
                'too late and are left out.'
            )
        return self._chunks

    def _add(self, begin_ns: int, samples: np.ndarray, keep) -> None:
        if not len(samples):
            return
        self._end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        if keep(begin_ns // NS, -(-self._end_ns // NS)):
            self._chunks.append((begin_ns, samples))

    def _the_one_of(self, formats: set) -> AudioFormat:
        if len(formats) != 1:
            raise InputError(
                f'{self._path}: {len(formats)} formats of its sound are told by {SOUND_INFO}, one '
                'is needed.'
            )
        return next(iter(formats))


def _stamp_ns(log_ns: int, message) -> int:
    stamp_ns = message.header.stamp.sec * NS + message.header.stamp.nanosec
    return stamp_ns or log_ns
