# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Opens a bag, a video or an audio file for playing: two streams in the order of their stamps.

A bag needs little memory, however long it is: it is looked through once for what must be known
before (where it begins, which stamps there are, what is damaged), and each stream then reads it
for itself, as far as it is taken.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.bags import SUFFIXES, is_bag
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO_INFO,
    IMAGE,
    RAW_IMAGE,
    ClipImage,
    Sources,
)
from minicpmo_ros.evaluation.bags.clip_reading import Reading
from minicpmo_ros.media.audio.format import parse_channel
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import ChannelMixer
from minicpmo_ros.media.files import probe, read_audio, read_video
from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.units import NS

IMAGES_WAIT = 32  # until so many more have come: what was stored later than that is left out
LONGEST_GAP_S = 60  # between stamps; a longer one is a clock jump, or not worth waiting for
USUAL_RATE_HZ = 25  # of images, if a file does not say


@dataclass(frozen=True)
class Outline:
    """What a bag has."""

    first_s: int
    seen_ns: array  # stamps of the images that are given
    heard_ns: array  # of the chunks of audio
    kind: str  # of the messages with audio; '' where there is none
    losses: tuple  # sentences


class _InOrder:
    """Puts what comes by its stamps in order."""

    def __init__(self):
        self._waiting, self._number, self._given_ns, self.late = [], count(), None, 0

    def push(self, stamp_ns: int, item) -> Iterator:
        """Take one; give (stamp_ns, item) of those that need not wait any more."""
        heapq.heappush(self._waiting, (stamp_ns, next(self._number), item))
        return self.give(IMAGES_WAIT)

    def give(self, waiting: int) -> Iterator:
        """Yield all but so many."""
        while len(self._waiting) > waiting:
            stamp_ns, _, item = heapq.heappop(self._waiting)
            if self._given_ns is not None and stamp_ns < self._given_ns:
                self.late += 1
                continue
            self._given_ns = stamp_ns
            yield stamp_ns, item


class _Stamps:
    """Takes what a Reading finds, and keeps the stamps alone."""

    def __init__(self):
        self._order, self.seen_ns, self.heard_ns = _InOrder(), array('q'), array('q')
        self.ended = None

    def put_image(self, stamp_ns: int, _is_raw: bool, _message) -> None:
        self.seen_ns.extend(at_ns for at_ns, _ in self._order.push(stamp_ns, None))

    def add_audio(self, begin_ns: int, _samples: np.ndarray) -> None:
        self.heard_ns.append(begin_ns)

    def finish(self, losses: list, first_s: int, _end_s: int) -> None:
        self.seen_ns.extend(at_ns for at_ns, _ in self._order.give(0))
        if late := self._order.late:
            losses = [*losses, f'{late} images were stored too late and are left out.']
        self.ended = (first_s, tuple(losses))

    def close(self) -> None:
        """Do nothing."""


class _Passing:
    """Takes what a Reading finds, and holds it until it is taken."""

    def __init__(self):
        self._order, self.images, self.audio = _InOrder(), deque(), deque()

    def put_image(self, stamp_ns: int, is_raw: bool, message) -> None:
        self.images.extend(self._order.push(stamp_ns, (is_raw, message)))

    def add_audio(self, begin_ns: int, samples: np.ndarray) -> None:
        self.audio.append((begin_ns, samples))

    def end(self) -> None:
        self.images.extend(self._order.give(0))


def outline_of(path, sources: Sources | None = None) -> Outline:
    """Read a bag once for its outline; raises InputError as read_clip does."""
    stamps = _Stamps()
    reading = Reading(path, None, sources or Sources(), kept=stamps)
    try:
        reading.read()
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror or error}).') from error
    first_s, losses = stamps.ended
    return Outline(first_s, stamps.seen_ns, stamps.heard_ns, reading.heard, losses)


def images_of(path, sources: Sources | None = None) -> Iterator[ClipImage]:
    """Yield the images in the order of their stamps."""
    passing = _Passing()
    for _ in Reading(path, None, sources or Sources(), kept=passing).steps((IMAGE, RAW_IMAGE)):
        yield from _images(passing)
    passing.end()
    yield from _images(passing)


def _images(passing: _Passing) -> Iterator[ClipImage]:
    while passing.images:
        stamp_ns, (is_raw, message) = passing.images.popleft()
        if is_raw:
            yield ClipImage.of_raw(stamp_ns, message)
        else:
            yield ClipImage.of_compressed(stamp_ns, message.format, message.data.tobytes())


def audio_of(path, kind: str, sources: Sources | None = None) -> Iterator[tuple]:
    """Yield (stamp_ns, samples (n,) float32 at 16 kHz) of the audio of a kind."""
    passing = _Passing()
    for _ in Reading(path, None, sources or Sources(), kept=passing).steps((kind, AUDIO_INFO)):
        while passing.audio:
            yield passing.audio.popleft()
    yield from passing.audio


@dataclass(frozen=True)
class MediaSource:
    """Two streams; offsets count from the first instant, a whole second in a bag's time."""

    images: Iterator | None  # of (offset_ns, format, compressed bytes)
    audio: Iterator | None  # of (offset_ns, samples (n,) float32 mono)
    rate_hz: int  # of the samples
    image_ns: int  # how long one image is shown
    mixer: ChannelMixer | None = None  # of the channels of a file's audio
    origin_ns: int | None = None  # when a bag's first instant was recorded
    shift_ns: int = 0  # added to the images' stamps if their clock differs from the audio's
    notes: tuple = ()  # sentences on how it is played
    told_ns: int = 0  # how long a file is by its own header; 0: it does not say


def open_source(
    path: str,
    jpeg_quality: int = 90,
    sources: Sources | None = None,
    on_damage: Callable | None = None,
    fps: float = 0,
) -> MediaSource:
    """Open a file or bag; raise InputError if it is unreadable or has neither stream.

    fps: the most images a second, 0: all; others are not encoded.
    on_damage: as read_video of media.files takes it, also for raw images of a bag.
    """
    if is_bag(path) or Path(path).suffix in SUFFIXES:
        return _open_bag(path, sources, on_damage, fps)
    facts = probe(path)
    if not facts.width and not facts.sample_rate_hz:
        raise InputError(f'{path}: no images and no audio in it')
    mixer = ChannelMixer(parse_channel((sources or Sources()).audio_channel))
    rate_hz, audio = read_audio(path, mixer, on_damage) if facts.sample_rate_hz else (0, None)
    told_ns, images = facts.told_ns, None
    if facts.width:
        frames = _thinned(read_video(path, on_damage), fps)
        images = _thinned(_jpegs(frames, jpeg_quality, told_ns), fps)
    image_ns = int(NS / (facts.frame_rate_hz or USUAL_RATE_HZ))
    return MediaSource(images, audio, rate_hz, image_ns, mixer, told_ns=told_ns)


def _open_bag(
    path: str, sources: Sources | None, on_damage: Callable | None, fps: float
) -> MediaSource:
    outline = outline_of(path, sources)
    heard_ns, seen_ns = list(outline.heard_ns), list(outline.seen_ns)
    shift_ns, origin_ns = shift_between(seen_ns, heard_ns), outline.first_s * NS
    notes = tuple(f'{path}: {loss}' for loss in outline.losses)
    if shift_ns:
        origin_ns = min(min(heard_ns), min(seen_ns) + shift_ns) // NS * NS
        notes += (
            f'{path}: images and audio are stamped by different clocks, {-shift_ns / NS:.1f} s '
            'apart; they are played as if both had begun at once',
        )
    begin_ns = origin_ns - shift_ns
    seen = _thinned(
        ((image.stamp_ns - begin_ns, image) for image in images_of(path, sources)), fps
    )
    images = _compressed(path, seen, on_damage)
    chunks = audio_of(path, outline.kind, sources)
    return MediaSource(
        images if seen_ns else None,
        _stamped(chunks, origin_ns) if heard_ns else None,
        SAMPLE_RATE_HZ,
        NS // USUAL_RATE_HZ,
        origin_ns=origin_ns,
        shift_ns=shift_ns,
        notes=notes,
    )


def _thinned(images: Iterator, fps: float) -> Iterator:
    """Leave out what is more than so many images a second, of (offset_ns, ...); fps 0: nothing."""
    step_ns, next_ns = int(NS / fps) if fps else 0, 0
    for image in images:
        offset_ns = image[0]
        if offset_ns >= next_ns:
            next_ns = offset_ns - offset_ns % step_ns + step_ns if step_ns else 0
            yield image


def _compressed(path, images: Iterator, on_damage: Callable | None) -> Iterator:
    for offset_ns, image in images:
        try:
            given = image.compressed()
        except InputError as error:
            if on_damage is None:
                raise
            on_damage(f'{path}: {error}')
        else:
            yield offset_ns, *given


def shift_between(seen_ns: list, heard_ns: list) -> int:
    """Return what to add to the stamps of images so that they are of one time with the audio's.

    0 where they are already. Single stamps that are far from the others count for nothing.
    """
    if not seen_ns or not heard_ns:
        return 0
    (seen, seen_end), (heard, heard_end) = _longest_run(seen_ns), _longest_run(heard_ns)
    apart_ns = max(seen - heard_end, heard - seen_end)
    return heard - seen if apart_ns > LONGEST_GAP_S * NS else 0


def _longest_run(stamps_ns: list) -> tuple:
    """Return (first, last) of the most stamps that follow each other without a long gap."""
    runs = [[]]
    for stamp_ns in sorted(stamps_ns):
        if runs[-1] and stamp_ns - runs[-1][-1] > LONGEST_GAP_S * NS:
            runs.append([])
        runs[-1].append(stamp_ns)
    longest = max(runs, key=len)
    return longest[0], longest[-1]


def _stamped(chunks, origin_ns: int):
    """Return chunks with offsets; one without a stamp follows on the one before."""
    end_ns = 0
    for stamp_ns, samples in chunks:
        begin_ns = end_ns if stamp_ns is None else stamp_ns - origin_ns
        end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        yield begin_ns, samples


def _jpegs(frames, quality: int, told_ns: int) -> Iterator[tuple]:
    """Yield the images; one that is shown for long, as slides are, again every second."""
    shown_ns, data = 0, b''
    for stamp_ns, image in frames:
        is_shown = stamp_ns <= max(shown_ns + LONGEST_GAP_S * NS, told_ns)  # else it is a jump
        if data and is_shown:
            for again_ns in range(shown_ns + NS, stamp_ns, NS):
                yield again_ns, 'jpeg', data
        shown_ns, data = stamp_ns, encode_jpeg(image, quality)
        yield stamp_ns, 'jpeg', data
