# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Real sound for tests, and encoders of it that share nothing with the package."""

from functools import lru_cache
from pathlib import Path

import av
import numpy as np

SCENE = Path(__file__).parent / 'data' / 'scene.mp4'


@lru_cache
def speech(begin_s: int = 0, seconds: int = 10) -> np.ndarray:
    """Give speech of the demo scene, (n,) float32 at 16 kHz."""
    from minicpmo_ros.media.audio.stream import Resampler
    from minicpmo_ros.media.files import read_audio

    rate_hz, chunks = read_audio(SCENE)
    resampler = Resampler(rate_hz)
    samples = np.concatenate([*(resampler.push(c) for _, c in chunks), resampler.flush()])
    samples = samples[begin_s * 16000 : (begin_s + seconds) * 16000]
    samples.setflags(write=False)
    return samples


def pcm_of(values, name: str, big_endian: bool = False) -> bytes:
    """Encode floats in [-1, 1) of any shape in C order as 'u8', 's16', 's24', 'f32', ..."""
    order, values = '>' if big_endian else '<', np.asarray(values, np.float64).ravel()
    if name[0] == 'f':
        return values.astype(f'{order}f{int(name[1:]) // 8}').tobytes()
    bits = 24 if name == 's24_32' else int(name[1:])
    whole = np.clip(np.rint(values * 2 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if name == 'u8':
        return (whole + 128).astype('u1').tobytes()
    if bits != 24:
        return whole.astype(f'{order}i{bits // 8}').tobytes()
    parts = whole.astype('<i4').view('u1').reshape(-1, 4)[:, : 4 if name == 's24_32' else 3]
    return parts[:, :: -1 if big_endian else 1].tobytes()


def mp3_of(samples, rate_hz: int, bit_rate: int = 64_000, tagged: bool = False) -> bytes:
    """Encode (n,) or (channels, n) float32 by LAME, as a driver does or as a file."""
    import io

    samples = np.atleast_2d(np.asarray(samples, np.float32))
    layout = {1: 'mono', 2: 'stereo'}[len(samples)]
    file = io.BytesIO()
    options = {'write_xing': str(int(tagged)), 'id3v2_version': '0'}
    with av.open(file, 'w', format='mp3', options=options) as container:
        stream = container.add_stream('libmp3lame', rate=rate_hz, layout=layout)
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), 'fltp', layout)
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
