# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes one channel of several, and notices channels and samples that cannot be right."""

import numpy as np

from minicpmo_ros.errors import InputError

MEAN = 'mean'  # of all channels
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
