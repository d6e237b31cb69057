# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes a driver's chunks, raw PCM or MP3 of any rate, into a running stream of 16 kHz mono.

In the order of the data: RawPieces makes whole samples of chunks that are cut anywhere; `to_float`
reads them, as their AudioFormat says (format.py); ChannelMixer makes one channel of several;
NoiseWatch notices what can be no audio; Resampler makes 16 kHz of any rate. AudioDecoder does all
of it for one source, and knows where in time its samples lie.
"""

import numpy as np
import soxr

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import (
    MAX_CHANNELS,
    MEAN,
    RATES_HZ,
    AudioFormat,
    parse_sample_format,
    sample_bytes,
)
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ

LOUDEST = 8.0  # of floats, which are clipped to [-1, 1]: above, they are something else
ROUNDING_NS = 50_000_000
MOST_HEADER_BYTES = 4096  # of a WAV file
LEAST_COMPARED = 16  # samples
AUDIBLE = 1e-6  # mean square, -60 dBFS; quieter audio says nothing about phases
CANCELLED = 0.01  # of the channels' power
SAMPLES_COMPARED = 512  # at least; shorter ones may cancel by chance
# A microphone that is broken or saturated: so much of its samples is at full scale.
FULL_SCALE = 0.98
SATURATED, SOUND = 0.2, 0.02  # shares; a channel above the first beside one below the other
SAMPLES_JUDGED = 8_000
# Bytes that are no samples of the stated format are white noise, and louder than any room.
LOUD = 0.05  # mean square, -13 dBFS
ALIKE = 0.1  # correlation of neighbouring samples, at most
NOISE_S = 3  # in a row


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


def to_float(data, sample_format: str, channels: int) -> np.ndarray:
    """Return the channels, (n, channels) float32 in [-1, 1].

    data: bytes or anything with a buffer, channels interleaved.
    sample_format: a name as GStreamer or ALSA write it; little-endian unless it says otherwise.
    Raises InputError when the three do not fit together, or a float is not finite.
    """
    name, is_big_endian, n_bytes = parse_sample_format(sample_format)
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


class ChannelMixer:
    """Mixes the channels of one stream into one: their mean, or channel number `channel`.

    The mean of channels wired in opposite phase is silence. If its power is less than a hundredth
    of the channels', the loudest channel is used from there on, and `problem` reports that.
    """

    def __init__(self, channel: int | None = None):
        self.channel = channel
        self.cancelled_channel = None  # used instead of the mean, which is silence
        self._powers, self._compared = 0.0, 0  # sums over the samples compared
        self._saturated = ()  # channels that are left out
        self._full, self._judged = 0, 0  # samples at full scale by channel, of so many

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
        self._judge(values)
        if self._saturated:
            values = np.delete(values, self._saturated, axis=1)
            return values.mean(axis=1, dtype=np.float32)
        mean = values.mean(axis=1, dtype=np.float32)  # (n,)
        if self.cancelled_channel is None:
            self._compare(values, mean)
        taken = self.cancelled_channel
        return mean if taken is None or taken >= channels else values[:, taken]

    @property
    def problem(self) -> str:
        """What is wrong with the channels, a sentence; or ''."""
        if self._saturated:
            return (
                f'audio channel {", ".join(map(str, self._saturated))} is at full scale most of '
                'the time (a broken or overdriven microphone) and is left out of the mean. Lower '
                'its gain, or set audio.channel to the one that you want'
            )
        if self.cancelled_channel is None:
            return ''
        return (
            'the channels of the audio cancel each other (one is wired in opposite phase): '
            f'channel {self.cancelled_channel} is taken instead of their mean. Set audio.channel '
            'to the one that you want'
        )

    def _judge(self, values: np.ndarray) -> None:
        """Find the channels that are at full scale, some thousands of samples at a time."""
        if np.size(self._full) != values.shape[1]:
            self._saturated, self._full, self._judged = (), np.zeros(values.shape[1]), 0
        self._full = self._full + (np.abs(values) >= FULL_SCALE).sum(axis=0)
        self._judged += len(values)
        if self._judged >= SAMPLES_JUDGED:
            shares = self._full / self._judged
            found = np.flatnonzero(shares > SATURATED).tolist()
            self._saturated = tuple(found) if shares.min() < SOUND else ()
            self._full, self._judged = 0 * self._full, 0

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


class NoiseWatch:
    """Notices audio of which only loud white noise is heard, second by second."""

    def __init__(self, rate_hz: int):
        self._rate_hz, self._seconds = rate_hz, 0
        self._sums, self._count = np.zeros(2), 0

    @property
    def is_noise(self) -> bool:
        """Return whether the newest seconds were noise."""
        return self._seconds >= NOISE_S

    def push(self, samples: np.ndarray) -> None:
        """Take samples (n,) float32 at rate_hz."""
        beside = float(np.dot(samples[1:], samples[:-1])) if len(samples) > 1 else 0.0
        self._sums += float(np.dot(samples, samples)), beside
        self._count += len(samples)
        if self._count and self._count >= self._rate_hz:
            power, beside = self._sums
            is_noise = power > LOUD * self._count and abs(beside) < ALIKE * power
            self._seconds = self._seconds + 1 if is_noise else 0
            self._sums, self._count = np.zeros(2), 0


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
