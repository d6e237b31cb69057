# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Videos become bags: one picture a second, as StreamingBench shows them, and all the sound.

The picture of second i is the one that is shown 0.1 s before its end, and is stamped so. Sound is
mixed to mono at 16 kHz; where a file has less of it than its stamps say, there is silence.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.clips import NS, write_clip
from minicpmo_ros.evaluation.streamingbench import START_S
from minicpmo_ros.media.files import probe, read_audio, read_video
from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.resample import Resampler

SHOWN_NS = 9 * NS // 10  # of a second
HOLE = SAMPLE_RATE_HZ // 10  # samples; less is the coding's own unrest


def write_video(video, bag, start_s: int = START_S, jpeg_quality: int = 92) -> None:
    """Write an MCAP bag whose stamps are start_s and the video's own time.

    Raises InputError for what is no video or is damaged; no bag is left then.
    """
    facts = probe(video)
    if not facts.width and not facts.sample_rate_hz:
        raise InputError(f'{video}: it has no pictures and no sound.')
    pictures = _one_a_second(read_video(video), jpeg_quality) if facts.width else ()
    samples = _sound(video) if facts.sample_rate_hz else np.zeros(0, np.float32)
    write_clip(Path(bag), start_s, pictures, samples)


def _one_a_second(frames, quality: int) -> Iterator[tuple]:
    """Give (offset_ns, JPEG bytes) of the newest frame at SHOWN_NS of every second."""
    shown, due_ns, stamp_ns = None, SHOWN_NS, -1
    for stamp_ns, picture in frames:
        while stamp_ns > due_ns:
            if shown is not None:
                yield due_ns, _jpeg(shown, quality)
            due_ns += NS
        shown = picture
    if stamp_ns >= due_ns - SHOWN_NS:  # the last second has begun
        yield due_ns, _jpeg(shown, quality)


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=quality)
    return file.getvalue()


def _sound(video) -> np.ndarray:
    """Give all the sound of a file, (n,) float32 at 16 kHz from its first instant on."""
    rate_hz, chunks = read_audio(video)
    resampler, parts, taken = Resampler(rate_hz), [], 0
    for stamp_ns, samples in chunks:
        hole = stamp_ns * rate_hz // NS - taken
        if hole * SAMPLE_RATE_HZ > HOLE * rate_hz:
            samples = np.concatenate([np.zeros(hole, np.float32), samples])
        taken += len(samples)
        parts.append(resampler.push(samples))
    return np.concatenate([*parts, resampler.flush()]) if parts else np.zeros(0, np.float32)
