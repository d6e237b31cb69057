# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Reads video and audio files with PyAV, as lazy streams of stamped frames and chunks.

Stamps are nanoseconds of presentation since the start of the file. Images and audio have the same
origin, so their offset is kept. Only local files are opened: no network address and no playlist.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.ggml.foreign import HEAD_BYTES, recognize
from minicpmo_ros.media.audio.stream import ChannelMixer, Resampler, scale_to_float
from minicpmo_ros.media.image.tiling import check_size
from minicpmo_ros.units import NS

UNREADABLE = (av.error.FFmpegError, OSError, ValueError)  # what PyAV raises of a source
# Containers that hold their streams themselves; playlists and scripts point elsewhere.
FORMATS = (
    'mov',
    'mp4',
    'matroska',
    'webm',
    'avi',
    'mpegts',
    'mpeg',
    'flv',
    'asf',
    'ogg',
    'mjpeg',
    'h264',
    'hevc',
    'm4v',
    'wav',
    'w64',
    'flac',
    'mp3',
    'aac',
    'aiff',
    'au',
    'amr',
    'caf',
)
TELLING = ('matroska', 'mov')  # of them, those whose length is in the header or not known
CUT = ('mpegts', 'mpeg')  # those whose stamps have no origin: parts keep those that they had
JOINED = (*CUT, 'matroska', 'ogg', 'flac')  # those of which several are one file, put together
JUMP_S, BACK_S = 60, Fraction(1, 2)  # of stamps of parts, what no recording has by itself
SHORT_NS, SHORT = 2 * NS, 0.05  # by which a file may end before its header says; share of it
_BOX = struct.Struct('>I4s')  # of MP4: its length with this head, and its name


@dataclass(frozen=True)
class FileFacts:
    """What a file contains; 0 if it has no such stream or does not say."""

    duration_ns: int
    width: int  # of the stored image, before any rotation
    height: int
    frame_rate_hz: float
    sample_rate_hz: int
    channels: int
    told_ns: int = 0  # its length by its own header, not as reckoned by its bytes


def probe(path) -> FileFacts:
    """Read what a file contains. Raises InputError if it is no video or audio file."""
    with _open(path) as container:
        video, audio = _first(container, 'video'), _first(container, 'audio')
        duration_ns = max(0, (container.duration or 0) * 1000)
        return FileFacts(
            duration_ns=duration_ns,
            width=video.width if video else 0,
            height=video.height if video else 0,
            frame_rate_hz=float(video.average_rate or 0) if video else 0.0,
            sample_rate_hz=audio.rate if audio else 0,
            channels=audio.channels if audio else 0,
            told_ns=duration_ns if _is_of(container, TELLING) else 0,
        )


def read_video(path, on_damage: Callable | None = None):
    """Return an iterator of (stamp_ns, image (H, W, 3) uint8 RGB) in order of presentation.

    Images are upright. One that is shown for more than a second until the end comes again there.
    Raises InputError at once for a file without images, and on the way where the file turns out to
    be damaged; on_damage: is called with that sentence for each packet that cannot be decoded,
    which is then left out, and where nothing more can be read.
    """
    container = _open(path)
    stream = _require(container, 'video', path)
    frames = _decode(container, stream, path, on_damage)
    return _named(path, _images(container, frames, stream))


def read_audio(
    path, mixer: ChannelMixer | None = None, on_damage: Callable | None = None
) -> tuple:
    """Return (rate_hz, iterator of (stamp_ns, samples (n,) float32 mono)), chunks as stored.

    mixer: makes one channel of all; None: a new one, of their mean.
    Raises InputError as `read_video` does; on_damage: as there.
    """
    container = _open(path)
    stream = _require(container, 'audio', path)
    frames = _decode(container, stream, path, on_damage)
    chunks = _chunks(container, frames, mixer or ChannelMixer(), stream.rate)
    return stream.rate, _named(path, chunks)


def why_short(path, end_ns: int, told_ns: int) -> str:
    """Return what is to be said of a file that ends then, and by its header later; or ''."""
    if told_ns - end_ns <= max(SHORT_NS, SHORT * told_ns):
        return ''
    return (
        f'{path}: it ends after {end_ns / NS:.1f} s, and its header says {told_ns / NS:.1f} s. '
        'Its copy may not be complete; what is there is used.'
    )


def samples_of(frame, mixer: ChannelMixer) -> np.ndarray:
    """Return the samples of a decoded frame as one channel, (n,) float32 in [-1, 1]."""
    values = frame.to_ndarray()  # (channels, n), or interleaved (1, n * channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    return mixer.mix(scale_to_float(values.T))


def _images(container, frames, stream):
    interval_s = 1 / (stream.average_rate or Fraction(25))
    next_s = shown_s = Fraction(0)
    for frame in frames:
        check_size(frame.width, frame.height)
        at_s = _time_s(container, frame, next_s)
        next_s, shown_s = at_s + interval_s, (frame.duration or 0) * frame.time_base
        image = frame.to_ndarray(format='rgb24')
        upright = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
        yield _ns(at_s), upright
    if shown_s > 1:  # the last slide
        yield _ns(at_s + shown_s) - 1, upright


def _chunks(container, frames, mixer: ChannelMixer, rate_hz: int):
    next_s, resampler = Fraction(0), None
    for frame in frames:
        samples = samples_of(frame, mixer)  # (n,)
        at_s = _time_s(container, frame, next_s)
        next_s = at_s + Fraction(len(samples), frame.sample_rate)
        if frame.sample_rate == rate_hz:
            resampler = None
        else:  # parts of several recordings, one behind the other
            if resampler is None or resampler.rate_in_hz != frame.sample_rate:
                resampler = Resampler(frame.sample_rate, rate_hz)
            at_s -= Fraction(resampler.lag_ns, NS)
            samples = resampler.push(samples)
        early = max(0, -int(at_s * rate_hz))  # before the start: not to be heard
        if early < len(samples):
            yield _ns(max(at_s, Fraction(0))), np.ascontiguousarray(samples[early:])


def _open(path):
    if not Path(path).is_file():
        what = 'it is no file' if Path(path).exists() else 'there is no such file'
        raise InputError(f'{path}: {what}. Give a video or audio file.')
    try:
        container = av.open(
            str(Path(path).resolve()),
            options={'protocol_whitelist': 'file', 'format_whitelist': ','.join(FORMATS)},
        )
        if not container.streams:
            raise ValueError('there is nothing in it')
        return container
    except UNREADABLE as error:
        raise InputError(f'{path}: {_why_unreadable(path, error)}') from error


def _why_unreadable(path, error: Exception) -> str:
    with Path(path).open('rb') as file:
        if known := recognize(file.read(HEAD_BYTES)):
            return f'{known[0]}. {known[1]}.'
        if _lacks_index(file):
            return (
                'it is an MP4 whose index (moov) is missing: its recording was not ended, or its '
                'copy is not complete. Copy it again, or repair it by another recording of the '
                'same camera (untrunc).'
            )
    why = 'its format is another' if isinstance(error, av.error.ArgumentError) else in_words(error)
    return (
        f'not a video or audio file that can be read ({why}). Convert it to MP4, Matroska or WAV.'
    )


def _lacks_index(file) -> bool:
    """Return whether a file begins as MP4 does and has no box with the index, or not all of it."""
    file.seek(0)
    at, end, is_mp4 = 0, file.seek(0, 2), False
    while at + _BOX.size <= end:
        file.seek(at)
        length, name = _BOX.unpack(file.read(_BOX.size))
        is_mp4 |= name == b'ftyp'
        if length == 1:  # the true one follows
            (length,) = struct.unpack('>Q', file.read(8).ljust(8, b'\0'))
        if not is_mp4 or (name == b'moov' and at + length <= end):
            return False
        at += max(length or end, _BOX.size)  # 0: to the end of the file
    return is_mp4


def _is_of(container, formats: tuple) -> bool:
    return bool({*container.format.name.split(',')} & {*formats})


def _first(container, kind: str):
    """Return the first stream of a kind, or None; the cover of a song is no video."""
    cover = av.stream.Disposition.attached_pic
    streams = getattr(container.streams, kind)
    return next((stream for stream in streams if not stream.disposition & cover), None)


def _require(container, kind: str, path):
    stream = _first(container, kind)
    if stream is None or stream.codec_context is None:
        container.close()
        raise InputError(
            f'{path}: the file has no {kind} that can be decoded. Give one that '
            'has, or do not ask for it.'
        )
    return stream


def _decode(container, stream, path, on_damage: Callable | None):
    """Yield decoded frames and close the container at the end, however it comes."""
    with container:
        try:
            for packet in _packets(container, stream):
                try:
                    frames = packet.decode()
                except UNREADABLE as error:
                    if on_damage is None:
                        raise
                    on_damage(f'{path}: {_damage(stream, error)}')
                else:
                    yield from frames
        except UNREADABLE as error:
            if on_damage is None:
                raise InputError(_damage(stream, error)) from error
            on_damage(f'{path}: the {stream.type} ends where it is damaged ({in_words(error)}).')


def _damage(stream, error: Exception) -> str:
    return f'the {stream.type} is damaged ({in_words(error)}).'


def _named(path, pieces: Iterator) -> Iterator:
    """Yield pieces of a file; what is wrong with them is told with its name."""
    try:
        yield from pieces
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def _packets(container, wanted) -> Iterator:
    """Yield the packets of a stream; where the time of joined parts begins anew, it goes on."""
    if not _is_of(container, JOINED):
        yield from container.demux(wanted)
        return
    streams = [_first(container, kind) for kind in ('video', 'audio')]
    time = _JoinedTime(JUMP_S if _is_of(container, CUT) else math.inf)
    for packet in container.demux([stream for stream in streams if stream is not None]):
        if packet.dts is not None:
            length_s = (packet.duration or 0) * packet.time_base
            shift_s = time.shift_s(packet.stream.index, packet.dts * packet.time_base, length_s)
            shift = round(shift_s / packet.time_base)
            packet.dts += shift
            packet.pts = None if packet.pts is None else packet.pts + shift
        if packet.stream.index == wanted.index:
            yield packet


class _JoinedTime:
    """Moves the stamps of parts that were joined, so that each part follows on the one before.

    All streams are moved by the same, so that what is heard stays with what is seen. A part begins
    where stamps go back, or ahead by `jump_s`.
    """

    def __init__(self, jump_s: float):
        self._jump_s = jump_s
        self._ends = {}  # stream: where its packets so far end, moved
        self._shift_s = self._before_s = Fraction(0)  # of this part and of the one before
        self._arrived = set()  # streams of which this part has come

    def shift_s(self, stream: int, at_s: Fraction, length_s: Fraction) -> Fraction:
        """Take when a packet begins, and how long it is; return by what it is to be moved."""
        end_s, shift_s = self._ends.get(stream), self._shift_s
        if end_s is not None:
            before_s, follows_s = self._before_s, max(self._ends.values()) - at_s
            is_before = abs(at_s + before_s - end_s) < abs(at_s + shift_s - end_s)
            if is_before and stream not in self._arrived:  # it is of the part before
                shift_s = before_s
            elif at_s + shift_s <= end_s - BACK_S or shift_s >= follows_s + self._jump_s:
                self._before_s, self._shift_s, self._arrived = shift_s, follows_s, {stream}
                shift_s = follows_s
            else:
                self._arrived.add(stream)
        self._ends[stream] = max(at_s + shift_s + length_s, end_s or at_s + shift_s)
        return shift_s


def _time_s(container, frame, otherwise_s: Fraction) -> Fraction:
    """Return the exact time of a frame since the start of the file, seconds."""
    if frame.pts is None:
        return otherwise_s
    # Files cut out of a longer recording start late; an encoder's delay makes them start early,
    # which is not the start that is presented. Stamps that run over begin below 0.
    earliest_us = container.start_time or 0
    begin_us = earliest_us if _is_of(container, CUT) else max(0, earliest_us)
    return frame.pts * frame.time_base - Fraction(begin_us, av.time_base)


def _ns(seconds: Fraction) -> int:
    return int(seconds * NS)
