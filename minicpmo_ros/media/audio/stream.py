# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes a driver's chunks, raw PCM or MP3 of any rate, into a running stream of 16 kHz mono.

In the order of the data: AudioFormat says what the bytes are; RawPieces makes whole samples of
chunks that are cut anywhere; `to_float` reads them; ChannelMixer makes one channel of several;
Resampler makes 16 kHz of any rate. AudioDecoder does all of it for one source, and knows where in
time its samples lie.
"""

import functools
import re
import sys
from dataclasses import dataclass

import numpy as np
import soxr

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.channels import ChannelMixer, NoiseWatch
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
MOST_KBIT = 320  # of MP3; up to this it is in kilobits, as ros-drivers' audio_capture says it
BITRATES = range(8_000, MOST_KBIT * 1000 + 1)  # that MP3 has
ROUNDING_NS = 50_000_000
MOST_HEADER_BYTES = 4096  # of a WAV file
LEAST_COMPARED = 16  # samples
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


class RawPieces:
    """Makes whole samples of chunks of raw audio that are cut anywhere, as GStreamer cuts them.

    The part of a sample at the end of a chunk is kept for the next one. If that one does not go
    on with it, because the chunk was cut off or has a byte too many, the part is dropped: samples
    that are put together wrongly are loud noise. The header of a WAV file is left out.
    """

    def __init__(self, audio_format: AudioFormat):
        self._format = audio_format
        self._step = max(1, sample_bytes(audio_format.sample_format) * audio_format.channels)
        self._rest = b''
        self.problem = ''  # what was wrong with the last chunk, a sentence

    def channels(self, data) -> np.ndarray:
        """Return the channels (n, channels) of a chunk as `to_float`, which raises InputError."""
        data, rest, self._rest, self.problem = _without_header(bytes(data)), self._rest, b'', ''
        apart = self._read(data)
        if rest:
            joined = self._read(rest + data)
            if _roughness(joined[0]) <= 2 * _roughness(apart[0]):
                apart = joined
        values, self._rest = apart
        if self._rest:
            self.problem = (
                f'{len(data)} bytes of audio end within a sample: {self._format.sample_format} in '
                f'{self._format.channels} channels takes {self._step} bytes each. The rest is put '
                'before the next chunk. If this is no audio, correct the format or the channels.'
            )
        return values if values is not None else self._to_float(data)  # which says what is wrong

    def _read(self, data: bytes) -> tuple:
        """Return (the channels, or None if they are no audio; the part of a sample at the end)."""
        whole = len(data) - len(data) % self._step
        try:
            return self._to_float(data[:whole]), data[whole:]
        except InputError:
            return None, b''

    def _to_float(self, data: bytes) -> np.ndarray:
        return to_float(data, self._format.sample_format, self._format.channels)


def _without_header(data: bytes) -> bytes:
    """Leave out the header of a WAV file."""
    if data[:4] != b'RIFF' or data[8:12] != b'WAVE':
        return data
    at = data.find(b'data', 12, MOST_HEADER_BYTES)
    return data if at < 0 else data[at + 8 :]


def _roughness(values: np.ndarray | None) -> float:
    """Return how far samples (n, channels) are from their neighbours; too few, or None: far."""
    if values is None or len(values) < LEAST_COMPARED:
        return np.inf
    return float(np.abs(np.diff(values, axis=0)).mean()) + 1e-9


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
        self._pieces = None if self._mp3 else RawPieces(audio_format)
        self._noise = NoiseWatch(audio_format.sample_rate_hz)
        self._first_ns, self._has_given = None, False

    @property
    def problem(self) -> str:
        """What was wrong with a part of the last chunk, a sentence; or ''."""
        return (self._mp3 or self._pieces).problem

    @property
    def doubt(self) -> str:
        """What seems wrong with the format or the channels for some time, a sentence; or ''."""
        if self._noise.is_noise:
            return (
                'the audio is loud noise without any sound in it: what is told of its format '
                f'({self.format.sample_format}, {self.format.coding_format}) is probably wrong. '
                'Set it to what the driver sends'
            )
        return self.mixer.problem

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
            samples = self.mixer.mix(self._pieces.channels(data))  # (n,)
            self._noise.push(samples)
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
