# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a driver sends, raw PCM or MP3 of any rate, as one running stream of 16 kHz mono."""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.mp3 import Mp3Stream
from minicpmo_ros.media.pcm import RAW_CODINGS, SampleFormat, to_float_mono
from minicpmo_ros.media.resample import Resampler

NS = 10**9
CODINGS = ('wave', 'mp3')
# Of MP3 that does not say its own; the usual for speech.
USUAL_BITRATE = 64_000
MOST_KBIT = (
    320  # of MP3; a bitrate up to this is in kilobits, as ros-drivers' audio_capture says it
)
ROUNDING_NS = 50_000_000


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

    @property
    def coding(self) -> str:
        """'wave' or 'mp3'; raises InputError for another coding."""
        coding = self.coding_format.strip().lower()
        if coding in RAW_CODINGS:
            return 'wave'
        if coding in CODINGS:
            return coding
        raise InputError(
            f'The sound is coded as {self.coding_format!r}; allowed are {", ".join(CODINGS)}. '
            'Set the driver to one of them.'
        )

    def duration_s(self, size: int) -> float:
        """Say how long `size` bytes last, roughly for MP3; 0 where the format makes no sense."""
        try:
            if self.coding == 'mp3':
                bitrate = self.bitrate * (1000 if self.bitrate <= MOST_KBIT else 1)
                return size * 8 / (bitrate or USUAL_BITRATE)
            sample_bytes = SampleFormat.parse(self.sample_format).sample_bytes
        except InputError:
            return 0.0
        step = sample_bytes * self.channels * self.sample_rate_hz
        return size / step if step > 0 else 0.0


class SoundStream:
    """Turns the chunks of one source into samples at 16 kHz."""

    def __init__(self, audio_format: AudioFormat):
        self.format = audio_format
        self._mp3 = Mp3Stream() if audio_format.coding == 'mp3' else None
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
        """Take bytes recorded from stamp_ns on; give (stamp_ns, samples (n,) float32 at 16 kHz).

        Raises InputError for what is no sound of this format, and goes on with the next chunk.
        """
        early_ns = self._resampler.lag_ns if self._resampler else 0
        if self._mp3 is None:
            samples = to_float_mono(data, self.format.sample_format, self.format.channels)
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

    def _resampled(self, samples: np.ndarray) -> np.ndarray:
        rate_hz = self._mp3.rate_hz if self._mp3 else self.format.sample_rate_hz
        if self._resampler is None or rate_hz not in (None, self._resampler.rate_in_hz):
            if rate_hz is None:  # MP3 before its first frame
                return samples
            self._resampler = Resampler(rate_hz)
        return self._resampler.push(samples)  # (n,) at 16 kHz
