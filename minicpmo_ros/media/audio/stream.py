# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes a driver's chunks, raw PCM or MP3 of any rate, into a running stream of 16 kHz mono.

In the order of the data: AudioFormat says what the bytes are; `to_float` reads raw samples;
ChannelMixer makes one channel of several; Resampler makes 16 kHz of any rate. AudioDecoder does
all of it for one source, and knows where in time its samples lie.
"""

import functools
import re
import sys
from dataclasses import dataclass

import numpy as np
import soxr

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ

CODINGS = ('wave', 'mp3')
# What AudioInfo's coding_format says of audio that is not compressed, in any case.
RAW_CODINGS = ('wave', 'wav', 'pcm', 'raw', '')
SAMPLE_FORMATS = ('u8', 's8', 's16', 's24', 's24_32', 's32', 'f32', 'f64')
LOUDEST = 8.0  # of floats, which are clipped to [-1, 1]: above, they are something else
MAX_CHANNELS = 64
RATES_HZ = (4000, 384_000)  # allowed, both inclusive
# Of MP3 that does not say its own; the usual for speech.
USUAL_BITRATE = 64_000
# Of MP3; a bitrate up to this is in kilobits, as ros-drivers' audio_capture says it.
MOST_KBIT = 320
ROUNDING_NS = 50_000_000
MEAN = 'mean'  # of all channels
AUDIBLE = 1e-6  # mean square, -60 dBFS; quieter audio says nothing about phases
CANCELLED = 0.01  # of the channels' power
SAMPLES_COMPARED = 512  # at least; shorter ones may cancel by chance
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
    'float64_le': 'f64le',
    'float64_be': 'f64be',
}


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
                return size * 8 / (bitrate or USUAL_BITRATE)
            step = sample_bytes(self.sample_format) * self.channels * self.sample_rate_hz
        except InputError:
            return 0.0
        return size / step if step > 0 else 0.0


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
def _parsed(sample_format: str) -> tuple:
    """Return (one of SAMPLE_FORMATS, whether it is big-endian, bytes of a sample).

    Read are names as GStreamer ('S16LE'), ALSA ('S16_LE') or this module write them.
    """
    lower = str(sample_format).strip().lower().replace('-', '_')
    match = _NAME.fullmatch(_OF_ALSA.get(lower, lower))
    if not match:
        raise InputError(
            f'The sample format is {sample_format!r}; allowed are {", ".join(SAMPLE_FORMATS)}, '
            'with LE or BE behind. Set it to what the driver sends.'
        )
    name = match[1]
    return name, match[2] == 'be', 4 if name == 's24_32' else int(name[1:]) // 8


def sample_bytes(sample_format: str) -> int:
    """Return the bytes of one sample of one channel; InputError for an unknown format."""
    return _parsed(sample_format)[2]


def to_float(data, sample_format: str, channels: int) -> np.ndarray:
    """Return the channels, (n, channels) float32 in [-1, 1].

    data: bytes or anything with a buffer, channels interleaved.
    sample_format: a name as GStreamer or ALSA write it; little-endian unless it says otherwise.
    Raises InputError when the three do not fit together, or a float is not finite.
    """
    name, is_big_endian, n_bytes = _parsed(sample_format)
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(
            f'The audio has {channels} channels; allowed are 1 to {MAX_CHANNELS}. '
            'Set the channels to what the driver sends.'
        )
    raw, step = np.frombuffer(data, np.uint8), n_bytes * channels
    if len(raw) % step:
        raise InputError(
            f'{len(raw)} bytes of audio are no whole number of samples: {sample_format} in '
            f'{channels} channels takes {step} bytes each. Correct the format or the channels.'
        )
    if name.startswith('s24'):
        parts = raw.reshape(-1, n_bytes)[:, :: -1 if is_big_endian else 1]
        wide = np.zeros((len(parts), 4), np.uint8)  # little-endian, the low byte zero
        wide[:, 1:] = parts[:, :3]
        values = wide.view('<i4')[:, 0]
    else:
        kind = {'u': 'u', 's': 'i', 'f': 'f'}[name[0]]
        values = raw.view(f'{"<>"[is_big_endian]}{kind}{n_bytes}')
    return scale_to_float(values.reshape(-1, channels))


def scale_to_float(values: np.ndarray) -> np.ndarray:
    """Return samples of any shape and of type u1, i1, i2, i4, f4 or f8 as float32 in [-1, 1].

    Raises InputError for floats that are not finite, or far beyond [-1, 1].
    """
    if values.dtype.kind == 'f':
        if not np.isfinite(values).all():
            raise InputError(
                'The audio contains NaN or infinite samples; floats in [-1, 1] are '
                'allowed. Look at the driver or filter that makes them.'
            )
        if (peak := np.abs(values).max(initial=0.0)) > LOUDEST:
            raise InputError(
                f'The audio contains floats up to {peak:.4g}; floats in [-1, 1] are allowed. The '
                'driver sends whole numbers as floats (divide them by 32768), or the stated '
                'sample format or byte order is wrong.'
            )
        return np.clip(values, -1, 1).astype(np.float32)
    if values.dtype == np.uint8:  # the one unsigned format: silence is 128
        return (values.astype(np.float32) - 128) / 128
    return values.astype(np.float32) / np.float32(-float(np.iinfo(values.dtype).min))


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


class ChannelMixer:
    """Mixes the channels of one stream into one: their mean, or channel number `channel`.

    The mean of channels wired in opposite phase is silence. If its power is less than a hundredth
    of the channels', the loudest channel is used from there on, and `problem` reports that.
    """

    def __init__(self, channel: int | None = None):
        self.channel = channel
        self.cancelled_channel = None  # used instead of the mean, which is silence
        self._powers, self._compared = 0.0, 0  # sums over the samples compared

    def mix(self, values: np.ndarray) -> np.ndarray:
        """Return (n,) float32 of channels (n, channels); InputError without the chosen one."""
        channels = values.shape[1]
        if self.channel is not None and self.channel >= channels:
            raise InputError(
                f'audio.channel is {self.channel}, but the audio has {channels} '
                f'channel{"s" * (channels > 1)}, counted from 0. Choose one of them, or {MEAN}.'
            )
        if channels == 1:
            return values[:, 0]
        if self.channel is not None:
            return values[:, self.channel]
        mean = values.mean(axis=1, dtype=np.float32)  # (n,)
        if self.cancelled_channel is None:
            self._compare(values, mean)
        taken = self.cancelled_channel
        return mean if taken is None or taken >= channels else values[:, taken]

    @property
    def problem(self) -> str:
        """What is wrong with the channels, a sentence; or ''."""
        if self.cancelled_channel is None:
            return ''
        return (
            'the channels of the audio cancel each other (one is wired in opposite phase): '
            f'channel {self.cancelled_channel} is taken instead of their mean. Set audio.channel '
            'to the one that you want'
        )

    def _compare(self, values: np.ndarray, mean: np.ndarray) -> None:
        powers = np.square(values).sum(axis=0, dtype=np.float64)  # (channels,)
        if powers.mean() < AUDIBLE * len(values):
            return
        self._powers = self._powers + np.append(powers, np.square(mean).sum(dtype=np.float64))
        self._compared += len(values)
        if self._compared < SAMPLES_COMPARED:
            return
        *channels, of_mean = self._powers
        if of_mean < CANCELLED * np.mean(channels):
            self.cancelled_channel = int(np.argmax(channels))
        self._powers, self._compared = 0.0, 0


class Resampler:
    """Turns a stream of one rate into another (soxr); output sample k lies at k / rate_out_hz.

    The result does not depend on the chunking. The filter needs audio from after a sample to make
    it, so output comes later than input (by about 40 ms; at 8 kHz by 115 ms): see `lag_ns`.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int = SAMPLE_RATE_HZ):
        for rate_hz in (rate_in_hz, rate_out_hz):
            if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
                raise InputError(
                    f'A sample rate of {rate_hz} Hz; allowed are {RATES_HZ[0]} to '
                    f'{RATES_HZ[1]} Hz. Set the rate to what the driver sends.'
                )
        self.rate_in_hz, self.rate_out_hz = rate_in_hz, rate_out_hz
        self._taken = self._given = 0
        self._soxr = None
        if rate_in_hz != rate_out_hz:
            self._soxr = soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, 'float32', 'HQ')

    @property
    def lag_ns(self) -> int:
        """How much earlier the next sample out lies than the next sample in, nanoseconds.

        Read before `push(chunk)`: what comes out begins at the chunk's stamp minus this.
        """
        return self._taken * 10**9 // self.rate_in_hz - self._given * 10**9 // self.rate_out_hz

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take samples (n,) float32 at rate_in_hz; return (m,) float32 at rate_out_hz."""
        return self._resample(np.asarray(samples, np.float32), last=False)

    def flush(self) -> np.ndarray:
        """End the stream; return what is still inside, (m,) float32."""
        return self._resample(np.empty(0, np.float32), last=True)

    def _resample(self, samples: np.ndarray, last: bool) -> np.ndarray:
        self._taken += len(samples)
        if self._soxr is not None:
            samples = self._soxr.resample_chunk(np.ascontiguousarray(samples), last=last)
        self._given += len(samples)
        return samples


class AudioDecoder:
    """Turns the chunks of one source into samples at 16 kHz; `channel` as in ChannelMixer."""

    def __init__(self, audio_format: AudioFormat, channel: int | None = None):
        self.format, self.mixer = audio_format, ChannelMixer(channel)
        self._mp3 = None
        if audio_format.coding == 'mp3':
            from minicpmo_ros.media.audio.mp3 import Mp3Stream  # PyAV takes 17 MiB

            self._mp3 = Mp3Stream(self._mixed)
        self._resampler = None if self._mp3 else Resampler(audio_format.sample_rate_hz)
        self._first_ns, self._has_given = None, False

    @property
    def problem(self) -> str:
        """What was wrong with a part of the last chunk, a sentence; or ''."""
        return self._mp3.problem if self._mp3 else ''

    @property
    def lag_ns(self) -> int:
        """How much earlier the next sample out lies than the next chunk in, nanoseconds."""
        decoding_ns = self._mp3.lag_ns if self._mp3 else 0
        return decoding_ns + (self._resampler.lag_ns if self._resampler else 0)

    def push(self, stamp_ns: int, data) -> tuple[int, np.ndarray]:
        """Take bytes recorded from stamp_ns on; return (stamp_ns, samples (n,) float32 at 16 kHz).

        Raises InputError for what is no audio of this format, and goes on with the next chunk.
        """
        early_ns = self._resampler.lag_ns if self._resampler else 0
        if self._mp3 is None:
            values = to_float(data, self.format.sample_format, self.format.channels)
            samples = self.mixer.mix(values)  # (n,)
        else:
            samples = self._mp3.push(data)
            early_ns += self._mp3.early_ns
        samples, begin_ns = self._resampled(samples), stamp_ns - early_ns
        if self._first_ns is None:
            self._first_ns = stamp_ns
        if not self._has_given and 0 < self._first_ns - begin_ns < ROUNDING_NS:
            begin_ns = self._first_ns  # nothing is before the first, it would be a second more
        self._has_given |= len(samples) > 0
        return begin_ns, samples

    def flush(self) -> np.ndarray:
        """End the stream, give what is still inside, (n,) float32; another may follow."""
        self._first_ns, self._has_given = None, False
        rest = self._resampled(self._mp3.flush() if self._mp3 else np.empty(0, np.float32))
        if self._resampler is None:
            return rest
        rest = np.concatenate([rest, self._resampler.flush()])
        self._resampler = Resampler(self._resampler.rate_in_hz)
        return rest

    def _mixed(self, values: np.ndarray) -> np.ndarray:
        return self.mixer.mix(scale_to_float(values))

    def _resampled(self, samples: np.ndarray) -> np.ndarray:
        rate_hz = self._mp3.rate_hz if self._mp3 else self.format.sample_rate_hz
        if self._resampler is None or rate_hz not in (None, self._resampler.rate_in_hz):
            if rate_hz is None:  # MP3 before its first frame
                return samples
            self._resampler = Resampler(rate_hz)
        return self._resampler.push(samples)  # (n,) at 16 kHz
