# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Reads video and audio files with PyAV, as lazy streams of stamped frames and chunks.

Stamps are nanoseconds of presentation since the start of the file. Images and audio have the same
origin, so their offset is kept. Only local files are opened: no network address and no playlist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.media.audio.stream import ChannelMixer, scale_to_float
from minicpmo_ros.media.image.tiling import check_size

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
            told_ns=duration_ns if {*container.format.name.split(',')} & {*TELLING} else 0,
        )


def read_video(path, on_damage: Callable | None = None):
    """Return an iterator of (stamp_ns, image (H, W, 3) uint8 RGB) in order of presentation.

    Images are upright. Raises InputError at once for a file without images, and on the way where
    the file turns out to be damaged; on_damage: is called with that sentence for each packet that
    cannot be decoded, which is then left out.
    """
    container = _open(path)
    stream = _require(container, 'video', path)
    return _images(container, _decode(container, stream, path, on_damage), stream)


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
    return stream.rate, _chunks(container, frames, mixer or ChannelMixer())


def samples_of(frame, mixer: ChannelMixer) -> np.ndarray:
    """Return the samples of a decoded frame as one channel, (n,) float32 in [-1, 1]."""
    values = frame.to_ndarray()  # (channels, n), or interleaved (1, n * channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    return mixer.mix(scale_to_float(values.T))


def _images(container, frames, stream):
    interval_s = 1 / (stream.average_rate or Fraction(25))
    next_s = Fraction(0)
    for frame in frames:
        check_size(frame.width, frame.height)
        at_s = _time_s(container, frame, next_s)
        next_s = at_s + interval_s
        image = frame.to_ndarray(format='rgb24')
        upright = np.rot90(image, round(frame.rotation / 90))
        yield _ns(at_s), np.ascontiguousarray(upright)


def _chunks(container, frames, mixer: ChannelMixer):
    next_s = Fraction(0)
    for frame in frames:
        samples = samples_of(frame, mixer)  # (n,)
        at_s = _time_s(container, frame, next_s)
        next_s = at_s + Fraction(len(samples), frame.sample_rate)
        early = max(0, -int(at_s * frame.sample_rate))  # before the start: not to be heard
        if early < len(samples):
            yield _ns(max(at_s, Fraction(0))), np.ascontiguousarray(samples[early:])


def _open(path):
    if not Path(path).is_file():
        what = 'it is no file' if Path(path).exists() else 'there is no such file'
        raise InputError(f'{path}: {what}. Give a video or audio file.')
    try:
        return av.open(
            str(Path(path).resolve()),
            options={'protocol_whitelist': 'file', 'format_whitelist': ','.join(FORMATS)},
        )
    except UNREADABLE as error:
        raise InputError(
            f'{path}: not a video or audio file that can be read '
            f'({in_words(error)}). Convert it to MP4, Matroska or WAV.'
        ) from error


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
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except UNREADABLE as error:
                    if on_damage is None:
                        raise
                    on_damage(_damage(path, stream, error))
                else:
                    yield from frames
        except UNREADABLE as error:
            raise InputError(_damage(path, stream, error)) from error


def _damage(path, stream, error: Exception) -> str:
    return f'{path}: the {stream.type} is damaged ({in_words(error)}).'


def _time_s(container, frame, otherwise_s: Fraction) -> Fraction:
    """Return the exact time of a frame since the start of the file, seconds."""
    if frame.pts is None:
        return otherwise_s
    # Files cut out of a longer recording start late; an encoder's delay makes them start early,
    # which is not the start that is presented.
    origin_s = Fraction(max(0, container.start_time or 0), av.time_base)
    return frame.pts * frame.time_base - origin_s


def _ns(seconds: Fraction) -> int:
    return int(seconds * 10**9)
