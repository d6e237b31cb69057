# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Raw PCM bytes of any common sample format and channel count, to mono float32 in [-1, 1]."""

import re
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError

SAMPLE_FORMATS = ('u8', 's8', 's16', 's24', 's24_32', 's32', 'f32', 'f64')
MAX_CHANNELS = 64
# What AudioInfo's coding_format says of sound that is not compressed, in any case.
RAW_CODINGS = ('wave', 'wav', 'pcm', 'raw', '')
# A name, then the byte order. 's24' is packed in three bytes, 's24_32' the low three of four.
_NAME = re.compile(r'(s24_32|s24|[us]8|s16|s32|f32|f64)_?(le|be)?')
# Where ALSA's names differ from GStreamer's: its S24_LE is the one of four bytes.
_OF_ALSA = {
    's24_le': 's24_32le',
    's24_be': 's24_32be',
    's24_3le': 's24le',
    's24_3be': 's24be',
    'float_le': 'f32le',
    'float_be': 'f32be',
    'float64_le': 'f64le',
    'float64_be': 'f64be',
}


@dataclass(frozen=True)
class SampleFormat:
    """One of SAMPLE_FORMATS in its byte order."""

    name: str
    is_big_endian: bool = False

    @classmethod
    def parse(cls, text: str) -> 'SampleFormat':
        """Read a name as GStreamer ('S16LE'), ALSA ('S16_LE') or this module write it."""
        lower = str(text).strip().lower().replace('-', '_')
        match = _NAME.fullmatch(_OF_ALSA.get(lower, lower))
        if not match:
            raise InputError(
                f'The sample format is {text!r}; allowed are {", ".join(SAMPLE_FORMATS)}, with '
                'LE or BE behind. Set it to what the driver sends.'
            )
        return cls(match[1], match[2] == 'be')

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return 4 if self.name == 's24_32' else int(self.name[1:]) // 8

    def read(self, raw: np.ndarray) -> np.ndarray:
        """View samples, (n sample_bytes,) uint8, as (n,) of a type scale_to_float takes."""
        order = '>' if self.is_big_endian else '<'
        if not self.name.startswith('s24'):
            kind = {'u': 'u', 's': 'i', 'f': 'f'}[self.name[0]]
            return raw.view(f'{order}{kind}{self.sample_bytes}')
        parts = raw.reshape(-1, self.sample_bytes)[:, :: -1 if self.is_big_endian else 1]
        wide = np.zeros((len(parts), 4), np.uint8)  # little-endian, the low byte zero
        wide[:, 1:] = parts[:, :3]
        return wide.view('<i4')[:, 0]


def to_float_mono(data, sample_format: str, channels: int) -> np.ndarray:
    """Give the mean of the channels, (n,) float32 in [-1, 1].

    data: bytes or anything with a buffer, channels interleaved.
    sample_format: as SampleFormat.parse reads it; little-endian unless it says otherwise.
    Raises InputError when the three do not fit together, or a float is not finite.
    """
    parsed = SampleFormat.parse(sample_format)
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(
            f'The sound has {channels} channels; allowed are 1 to {MAX_CHANNELS}. '
            'Set the channels to what the driver sends.'
        )
    raw = np.frombuffer(data, np.uint8)
    step = parsed.sample_bytes * channels
    if len(raw) % step:
        raise InputError(
            f'{len(raw)} bytes of sound are no whole number of samples: {sample_format} in '
            f'{channels} channels takes {step} bytes each. Correct the format or the channels.'
        )
    return mix_to_mono(scale_to_float(parsed.read(raw).reshape(-1, channels)))


def scale_to_float(values: np.ndarray) -> np.ndarray:
    """Scale samples of any shape and of type u1, i1, i2, i4, f4 or f8 to float32 in [-1, 1]."""
    if values.dtype.kind == 'f':
        if not np.isfinite(values).all():
            raise InputError(
                'The sound contains NaN or infinite samples; floats in [-1, 1] are '
                'allowed. Look at the driver or filter that makes them.'
            )
        return np.clip(values, -1, 1).astype(np.float32)
    if values.dtype == np.uint8:  # the one unsigned format: silence is 128
        return (values.astype(np.float32) - 128) / 128
    return values.astype(np.float32) / np.float32(-float(np.iinfo(values.dtype).min))


def mix_to_mono(values: np.ndarray) -> np.ndarray:
    """Give the mean (n,) float32 of channels (n, channels)."""
    return values[:, 0] if values.shape[1] == 1 else values.mean(axis=1, dtype=np.float32)
