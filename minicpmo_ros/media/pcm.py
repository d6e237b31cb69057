# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Raw PCM bytes of any common sample format and channel count, to mono float32 in [-1, 1]."""

import numpy as np

from minicpmo_ros.errors import InputError

# Name: (NumPy type of one sample or None for packed 24 bit, bytes of one sample)
_FORMATS = {
    'u8': ('u1', 1),
    's16': ('<i2', 2),
    's24': (None, 3),
    's32': ('<i4', 4),
    'f32': ('<f4', 4),
    'f64': ('<f8', 8),
}
SAMPLE_FORMATS = tuple(_FORMATS)
MAX_CHANNELS = 64
# What AudioInfo's coding_format says of sound that is not compressed.
RAW_CODINGS = ('wave', 'pcm', 'raw', '')


def to_float_mono(data, sample_format: str, channels: int) -> np.ndarray:
    """Give the mean of the channels, (n,) float32 in [-1, 1].

    data: bytes or anything with a buffer, channels interleaved, little-endian.
    sample_format: one of SAMPLE_FORMATS, with or without 'LE' (GStreamer's names), any case.
    Raises InputError when the three do not fit together, or a float is not finite.
    """
    name = str(sample_format).lower()
    name = name[:-2] if name.endswith('le') else name
    if name not in _FORMATS:
        raise InputError(
            f'The sample format is {sample_format!r}; allowed are '
            f'{", ".join(SAMPLE_FORMATS)}. Set it to what the driver sends.'
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(
            f'The sound has {channels} channels; allowed are 1 to {MAX_CHANNELS}. '
            'Set the channels to what the driver sends.'
        )
    kind, sample_bytes = _FORMATS[name]
    raw = np.frombuffer(data, np.uint8)
    if len(raw) % (sample_bytes * channels):
        raise InputError(
            f'{len(raw)} bytes of sound are no whole number of samples: {name} in {channels} '
            f'channels takes {sample_bytes * channels} bytes each. Correct the format or the '
            'channels.'
        )
    values = raw.view(kind) if kind else _unpack_24_bit(raw)
    return mix_to_mono(scale_to_float(values.reshape(-1, channels)))


def scale_to_float(values: np.ndarray) -> np.ndarray:
    """Scale samples of any shape and of type u1, i2, i4, f4 or f8 to float32 in [-1, 1]."""
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


def _unpack_24_bit(raw: np.ndarray) -> np.ndarray:
    """Widen packed 24-bit samples (3 n,) uint8 to (n,) int32, the low byte zero."""
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return wide.view('<i4')[:, 0]
