# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the bytes of a driver's audio are: as its messages say it, or as a person writes it."""

import functools
import re
import sys
from dataclasses import dataclass

from minicpmo_ros.errors import InputError

CODINGS = ('wave', 'mp3')
# What AudioInfo's coding_format says of audio that is not compressed, in any case.
RAW_CODINGS = ('wave', 'wav', 'pcm', 'raw', '')
SAMPLE_FORMATS = ('u8', 's8', 's16', 's24', 's24_32', 's32', 'f32', 'f64')
MAX_CHANNELS = 64
RATES_HZ = (4000, 384_000)  # allowed, both inclusive
# Of MP3 that does not say its own; the usual for speech.
USUAL_BITRATE = 64_000
MOST_KBIT = 320  # of MP3; up to this it is in kilobits, as ros-drivers' audio_capture says it
BITRATES = range(8_000, MOST_KBIT * 1000 + 1)  # that MP3 has
MEAN = 'mean'  # of all channels
# The arrays of mgonzs13's Audio message, and PortAudio's number of each in its `format`.
ARRAYS = {
    'float32_data': ('F32', 1),
    'int32_data': ('S32', 2),
    'int16_data': ('S16', 8),
    'int8_data': ('S8', 16),
    'uint8_data': ('U8', 32),
}
ORDER = 'LE' if sys.byteorder == 'little' else 'BE'  # of these arrays, which are this machine's
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
}
# NumPy's and sounddevice's 'int16' and 'float32', PyAudio's 'paInt16'; ALSA's 'float64_le'.
_OF_NUMPY = re.compile(r'(?:pa)?(u?)(int|float)(?=\d)')


@dataclass(frozen=True)
class AudioFormat:
    """What the bytes of a chunk are, as AudioInfo says it.

    MP3 tells its rate and channels itself; what is said here is not used then.
    """

    sample_rate_hz: int
    channels: int
    sample_format: str = 'S16LE'
    coding_format: str = 'wave'
    bitrate: int = 0  # of MP3, bits per second; 0: not known

    @classmethod
    def parse(cls, text: str) -> 'AudioFormat | None':
        """Read what a person writes, such as '16000,1,S16LE' or 'mp3'; '' is None.

        Raises InputError where it is neither, or says what no audio can have.
        """
        if not text.strip():
            return None
        if text.strip().lower() == 'mp3':
            return cls(0, 0, coding_format='mp3')
        parts = [part.strip() for part in text.split(',')]
        try:
            rate_hz, channels = (int(part) for part in parts[:2])
            (name,) = parts[2:]
        except ValueError as error:
            raise InputError(
                f'The format of the audio is {text!r}; rate in hertz, channels and sample format '
                'are expected, such as 16000,1,S16LE, or mp3.'
            ) from error
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1] or not 1 <= channels <= MAX_CHANNELS:
            raise InputError(
                f'The format of the audio is {text!r}; allowed are {RATES_HZ[0]} to '
                f'{RATES_HZ[1]} Hz and 1 to {MAX_CHANNELS} channels, such as 16000,1,S16LE.'
            )
        sample_bytes(name)
        return cls(rate_hz, channels, name)

    @property
    def coding(self) -> str:
        """'wave' or 'mp3'; raises InputError for another coding."""
        coding = self.coding_format.strip().lower()
        if coding in RAW_CODINGS:
            return 'wave'
        if coding in CODINGS:
            return coding
        raise InputError(
            f'The audio is coded as {self.coding_format!r}; allowed are {", ".join(CODINGS)}. '
            'Set the driver to one of them.'
        )

    def duration_s(self, size: int) -> float:
        """Return how long `size` bytes last, roughly for MP3; 0 if the format makes no sense."""
        try:
            if self.coding == 'mp3':
                bitrate = self.bitrate * (1000 if self.bitrate <= MOST_KBIT else 1)
                return size * 8 / (bitrate if bitrate in BITRATES else USUAL_BITRATE)
            step = sample_bytes(self.sample_format) * self.channels * self.sample_rate_hz
        except InputError:
            return 0.0
        is_rate = RATES_HZ[0] <= self.sample_rate_hz <= RATES_HZ[1]
        return size / step if is_rate and 1 <= self.channels <= MAX_CHANNELS else 0.0


def chunk_of(audio) -> tuple:
    """Return (bytes, AudioFormat) of mgonzs13's message Audio; InputError if it has no samples.

    Where several of its arrays have samples, the one that `format` names is taken.
    """
    info, data = audio.info, audio.audio_data
    filled = [name for name in ARRAYS if len(getattr(data, name))]
    if len(filled) > 1:
        filled = [name for name in filled if ARRAYS[name][1] == info.format]
    if not filled:
        raise InputError(
            f'audio came in without samples: format is {info.format}, and no array, or none '
            f'that belongs to it, holds any; known are {ARRAYS}'
        )
    sample_format = ARRAYS[filled[0]][0] + ORDER
    chunk = getattr(data, filled[0]).tobytes()
    return chunk, AudioFormat(info.rate, info.channels, sample_format)


@functools.lru_cache(maxsize=64)
def parse_sample_format(sample_format: str) -> tuple:
    """Return (one of SAMPLE_FORMATS, whether it is big-endian, bytes of a sample).

    Read are names as GStreamer ('S16LE'), ALSA ('S16_LE'), NumPy ('int16') or this module write
    them.
    """
    lower = str(sample_format).strip().lower().replace('-', '_')
    name = _OF_NUMPY.sub(
        lambda kind: 'f' if kind[2] == 'float' else kind[1] or 's', _OF_ALSA.get(lower, lower), 1
    )
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(
            f'The sample format is {sample_format!r}; allowed are {", ".join(SAMPLE_FORMATS)}, '
            'with LE or BE behind. Set it to what the driver sends.'
        )
    name = match[1]
    return name, match[2] == 'be', 4 if name == 's24_32' else int(name[1:]) // 8


def sample_bytes(sample_format: str) -> int:
    """Return the bytes of one sample of one channel; InputError for an unknown format."""
    return parse_sample_format(sample_format)[2]


def parse_channel(text: str) -> int | None:
    """Return the number of a channel, from 0, or None for 'mean'; else raise InputError."""
    lower = str(text).strip().lower()
    if lower == MEAN:
        return None
    if lower.isascii() and lower.isdigit():
        return int(lower)
    raise InputError(
        f'The audio channel is {text!r}; allowed are {MEAN} (of all channels) or the number of '
        'one, from 0.'
    )
