# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips out of bags of any length: only what the asked windows need is held in memory.

Of each second the newest picture is kept, as the eyes take it; sound is resampled as a stream
while it is read, so that a window's samples do not depend on what else was asked. Messages may be
stored out of order by up to ORDER_S.
"""

import heapq
import re
from collections import Counter
from itertools import count

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import Bag
from minicpmo_ros.evaluation.clip import (
    ARRAY_DEFINITIONS,
    ARRAYS,
    DEFINITIONS,
    NS,
    PICTURE,
    PLAIN_ARRAYS,
    PLAIN_SOUND,
    RAW_PICTURE,
    SAMPLE_RATE_HZ,
    SOUND,
    SOUND_INFO,
    Clip,
    Shot,
    Sources,
    type_store,
)
from minicpmo_ros.media.sound import AudioFormat, SoundStream
from minicpmo_ros.media.sound_arrays import chunk_of

PICTURES = (PICTURE, RAW_PICTURE)
SOUNDS = (SOUND, ARRAYS, PLAIN_SOUND, PLAIN_ARRAYS)  # of one recording, the first is taken
STAMPED = (*PICTURES, SOUND, ARRAYS)
KINDS = (*PICTURES, *SOUNDS, SOUND_INFO)
# Types of other packages that may be what somebody asks about; ours are about such.
SENSED = re.compile(r'^(?!minicpmo_ros/).*(audio|sound|image|video|ffmpeg|theora)', re.IGNORECASE)
ORDER_S = 120  # of sound that waits for what was stored too late


def read_clip(path, windows=None, sources: Sources | None = None) -> Clip:
    """Read a bag, as bags.Bag finds it; InputError where no picture and no sound is in it.

    windows: of ((start_s, end_s), relative) as questions have them; None: all that is there, with
    all pictures. sources: InputError where the bag has no such, or several and none is named.
    """
    first_s = None
    try:
        while True:
            reading = _Reading(path, windows, sources or Sources(), first_s)
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

    def __init__(self, path, windows, sources: Sources, first_s: int | None):
        self._path, self._windows, self._sources = path, windows, sources
        self._is_relative = any(relative for _, relative in windows or ())
        self._guessed = self.first_s = first_s
        self._seconds = None  # that are kept; made once first_s is known
        self._found = {}  # of every kind of sound, and of PICTURE for all pictures: the topic
        self._shots = {}  # (second, number) or second alone: (stamp_ns, is raw, Shot)
        self._formats, self._formats_are_own = set(), False  # told by AudioInfo
        self._sound = {kind: _Sound(path, self._formats) for kind in (SOUND, PLAIN_SOUND)}
        self._sound.update({kind: _Sound(path, set()) for kind in (ARRAYS, PLAIN_ARRAYS)})
        self._unreadable = Counter()

    def clip(self) -> Clip:
        """Read it all."""
        bag, stores = Bag(self._path), {}
        for message in bag.messages(KINDS):
            if not self._is_wanted(message):
                continue
            is_arrays = message.kind in (ARRAYS, PLAIN_ARRAYS)
            if is_arrays not in stores:
                known = ARRAY_DEFINITIONS if is_arrays else DEFINITIONS
                stores[is_arrays] = type_store(bag.definitions, known)
            try:
                told = stores[is_arrays].deserialize_cdr(message.data, message.kind)
            except Exception:  # of damaged bytes almost anything comes
                self._unreadable[message.topic] += 1
                continue
            self._take(message, told)
        self._check_sources(bag.topics)
        losses = [*bag.losses, *_unread(bag.topics)]
        losses += [f'{n} messages of {name} are damaged.' for name, n in self._unreadable.items()]
        sound = self._sound[next((kind for kind in SOUNDS if kind in self._found), SOUND)]
        chunks = sound.finish(self._keep, losses)
        if not self._found:
            raise InputError(
                f'{self._path}: it has neither pictures ({", ".join(PICTURES)}) nor sound '
                f'({", ".join(SOUNDS)}) that can be read. ' + ' '.join(losses)
            )
        shots = sorted(self._shots.values(), key=lambda entry: entry[:2])
        return Clip(tuple(shot for *_, shot in shots), tuple(chunks), tuple(losses), self.first_s)

    def _is_wanted(self, message) -> bool:
        """Tell whether a message is on the topic that was named for its kind, if one was."""
        if message.kind in PICTURES and self._sources.image_topic:
            return _camera(message.topic) == _camera(self._sources.image_topic)
        if message.kind in SOUNDS and self._sources.audio_topic:
            return message.topic == self._sources.audio_topic
        return True

    def _check_sources(self, there: dict) -> None:
        """Refuse names of topics that no picture or sound is on; there: {topic: kind}."""
        for name, wanted, what, kinds in (
            ('image_topic', self._sources.image_topic, 'what is seen', PICTURES),
            ('audio_topic', self._sources.audio_topic, 'what is heard', SOUNDS),
        ):
            found = sorted(topic for topic, kind in there.items() if kind in kinds)
            if wanted and _camera(wanted) not in map(_camera, found):
                told = f'on {", ".join(found)}. Name one of these' if found else 'not in the bag'
                raise InputError(f'{self._path}: {name} is {wanted}, but {what} is {told}.')

    def _take(self, message, told) -> None:
        if message.kind == SOUND_INFO:
            self._take_info(message.topic, told)
            return
        is_picture = message.kind in PICTURES
        name = _camera(message.topic) if is_picture else message.topic
        known = self._found.setdefault(PICTURE if is_picture else message.kind, name)
        if known != name:
            what = 'image_topic' if is_picture else 'audio_topic'
            raise InputError(
                f'{self._path}: {message.kind} is on {", ".join(sorted((known, name)))}; '
                f'one topic of it is allowed. Choose by {what}, or leave the others out.'
            )
        stamp_ns = 0
        if message.kind in STAMPED:
            stamp_ns = told.header.stamp.sec * NS + told.header.stamp.nanosec
        if is_picture:
            self._take_picture(stamp_ns or message.log_ns, message.kind, told)
        else:
            self._take_sound(stamp_ns, message, told)

    def _take_info(self, topic: str, told) -> None:
        """Note a format; the one that belongs to the named topic displaces others."""
        is_own = topic == f'{self._sources.audio_topic}_info'
        if is_own and not self._formats_are_own:
            self._formats.clear()
            self._formats_are_own = True
        if is_own or not self._formats_are_own:
            self._formats.add(
                AudioFormat(
                    told.sample_rate,
                    told.channels,
                    told.sample_format,
                    told.coding_format,
                    told.bitrate,
                )
            )

    def _take_sound(self, stamp_ns: int, message, told) -> None:
        sound = self._sound[message.kind]
        part = told.audio if message.kind in STAMPED else told
        if message.kind in (ARRAYS, PLAIN_ARRAYS):
            try:
                data, audio_format = chunk_of(part)
            except InputError as error:
                sound.refuse(error)
                return
            sound.formats.add(audio_format)
        else:
            data = part.data.tobytes()
        sound.push(stamp_ns, message.log_ns, data)
        sound.drain(self._keep, ORDER_S * NS)

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

    def __init__(self, path, formats: set):
        self._path, self.formats = path, formats  # the only one of it is the sound's
        self._waiting, self._number = [], count()
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

    def refuse(self, why: InputError) -> None:
        """Count a chunk that holds no sound."""
        self._count, self._bad, self._why = self._count + 1, self._bad + 1, why

    def drain(self, keep, waits_ns: int) -> None:
        """Resample what need not wait any more."""
        while self._waiting and self._newest_ns - self._waiting[0][0] >= waits_ns:
            if self._stream is None or len(self.formats) != 1:
                self._stream = SoundStream(self._the_format())
            key_ns, _, stamp_ns, data = heapq.heappop(self._waiting)
            self._passed_ns = key_ns
            begin_ns = stamp_ns or key_ns - int(self._stream.format.duration_s(len(data)) * NS)
            try:
                begin_ns, samples = self._stream.push(begin_ns, data)  # (n,) at 16 kHz
            except InputError as error:
                self._bad, self._why = self._bad + 1, error
                continue
            self._add(begin_ns, samples, keep)

    def finish(self, keep, losses: list) -> list:
        """Resample the rest; give (stamp_ns, samples) of what was kept, and tell what was lost."""
        self.drain(keep, 0)
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

    def _the_format(self) -> AudioFormat:
        if len(self.formats) != 1:
            raise InputError(
                f'{self._path}: {len(self.formats)} formats of its sound are told, by '
                f'{SOUND_INFO} or with the sound; one is needed. Leave the others out of the bag.'
            )
        return next(iter(self.formats))


def _camera(topic: str) -> str:
    """Give the name that a camera's raw and compressed pictures have in common."""
    return topic.removesuffix('/compressed')


def _unread(topics: dict) -> list:
    """Say which pictures and sounds of a bag, {topic: kind}, are not read."""
    return [
        f'{topic}: {kind} is not read; read are {", ".join(KINDS)}.'
        for topic, kind in sorted(topics.items())
        if kind not in KINDS and SENSED.match(kind)
    ]
