# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What media_player can play: a video or sound file, or a bag, as streams of offsets and data."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.clips import Sources, read_clip
from minicpmo_ros.media.files import probe, read_audio, read_video
from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ

NS = 1_000_000_000
BAG_SUFFIXES = ('.mcap', '.db3')
USUAL_RATE_HZ = 25  # of pictures, where a file does not say


@dataclass(frozen=True)
class Playable:
    """Two streams; offsets count from the first instant, a whole second in a bag's time."""

    pictures: Iterator | None  # of (offset_ns, format, compressed bytes)
    sound: Iterator | None  # of (offset_ns, samples (n,) float32 mono)
    rate_hz: int  # of the samples
    picture_ns: int  # how long one picture is shown
    origin_ns: int | None = None  # when a bag's first instant was recorded


def open_playable(path: str, jpeg_quality: int = 90, sources: Sources | None = None) -> Playable:
    """Open a file or bag; InputError for what cannot be read or has neither stream."""
    if Path(path).is_dir() or Path(path).suffix in BAG_SUFFIXES:
        return _open_bag(path, sources)
    facts = probe(path)
    if not facts.width and not facts.sample_rate_hz:
        raise InputError(f'{path}: no pictures and no sound in it')
    rate_hz, sound = read_audio(path) if facts.sample_rate_hz else (0, None)
    pictures = _jpegs(read_video(path), jpeg_quality) if facts.width else None
    return Playable(pictures, sound, rate_hz, int(NS / (facts.frame_rate_hz or USUAL_RATE_HZ)))


def _open_bag(path: str, sources: Sources | None) -> Playable:
    clip = read_clip(path, sources=sources)
    origin_ns = clip.first_s * NS
    pictures = ((shot.stamp_ns - origin_ns, *shot.compressed()) for shot in clip.pictures)
    return Playable(
        pictures if clip.pictures else None,
        _stamped(clip.sound, origin_ns) if clip.sound else None,
        SAMPLE_RATE_HZ,
        NS // USUAL_RATE_HZ,
        origin_ns,
    )


def _stamped(chunks, origin_ns: int):
    """Give chunks with offsets; one without a stamp follows on the one before."""
    end_ns = 0
    for stamp_ns, samples in chunks:
        begin_ns = end_ns if stamp_ns is None else stamp_ns - origin_ns
        end_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        yield begin_ns, samples


def _jpegs(frames, quality: int):
    for stamp_ns, picture in frames:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, 'JPEG', quality=quality)
        yield stamp_ns, 'jpeg', file.getvalue()
