# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where a stream of sound is heard: a room, a distance, a microphone, its noise and its line.

One place holds for a whole stream, as it does on a robot. A room is a direct sound and a tail of
noise that dies away; the further away the speaker, the weaker the direct sound beside the tail.
"""

from dataclasses import dataclass
from math import pi

import numpy as np

from .voices import RATE_HZ
from .world import choose

P_PLAIN = 0.4  # of streams without any place
NARROW_HZ = 3400  # of a telephone's line


@dataclass(frozen=True)
class Place:
    """What happens to a stream on its way; the fields are applied in their order."""

    response: np.ndarray  # (n,) of the room and the microphone
    gain: float
    noise_dbfs: float
    hum_hertz: float  # 0: none
    lowpass_hertz: float  # of the microphone or the line
    is_companded: bool  # 8 bits by the mu-law
    seed: int

    def heard(self, pcm):
        """Return what pcm (n,) float32 becomes, (n,) float32 in [-1, 1]."""
        rng, samples = np.random.default_rng(self.seed), len(pcm) + len(self.response)
        size = quick_size(samples)
        spectrum = np.fft.rfft(pcm, size) * np.fft.rfft(self.response, size)
        hertz = np.fft.rfftfreq(size, 1 / RATE_HZ)
        noise = np.fft.rfft(rng.normal(0, 1, samples), size) / np.maximum(hertz / 200, 1) ** 0.5
        noise *= 10 ** (self.noise_dbfs / 20) / np.fft.irfft(noise, size)[:samples].std()
        spectrum = self.gain * spectrum + noise
        spectrum *= 1 / np.sqrt(1 + (hertz / self.lowpass_hertz) ** 16)
        out = np.fft.irfft(spectrum, size)[: len(pcm)]
        if self.hum_hertz:
            t = np.arange(len(pcm)) / RATE_HZ
            tones = sum(np.sin(2 * pi * self.hum_hertz * n * t) / n for n in (1, 2, 3))
            out = out + 10 ** (self.noise_dbfs / 20) * tones
        out = np.clip(out, -1, 1)
        return (companded(out) if self.is_companded else out).astype(np.float32)


def quick_size(samples):
    """Return the least 8 to 16 times a power of two that is not below `samples`: a Fourier
    transform of a size with a large prime takes ten times as long.
    """
    power = 2 ** max(0, samples.bit_length() - 4)
    return -(-samples // power) * power


def somewhere(streams, rng, p_plain=P_PLAIN):
    """Return streams (n, samples) float32, each as heard in a place of its own."""
    places = [random_place(rng, p_plain) for _ in streams]
    return np.stack([place.heard(pcm) if place else pcm for place, pcm in zip(places, streams)])


def companded(pcm, mu=255):
    """Return pcm through 8 bits of the mu-law (ITU-T G.711, continuous form)."""
    code = np.sign(pcm) * np.log1p(mu * np.abs(pcm)) / np.log1p(mu)
    code = np.rint(code * 127) / 127
    return np.sign(code) * np.expm1(np.abs(code) * np.log1p(mu)) / mu


def random_place(rng, p_plain=P_PLAIN):
    """Return a Place, or None for sound as it was made."""
    if rng.random() < p_plain:
        return None
    is_line = rng.random() < 0.25
    return Place(
        _response(rng),
        gain=10 ** rng.uniform(-0.9, 0),
        noise_dbfs=rng.uniform(-80, -40),
        hum_hertz=choose(rng, (50, 60)) if rng.random() < 0.15 else 0,
        lowpass_hertz=NARROW_HZ if is_line else rng.uniform(3800, 7800),
        is_companded=is_line and bool(rng.random() < 0.7),
        seed=int(rng.integers(2**31)),
    )


def _response(rng):
    """(n,) float32: direct sound, tail, and the colour of a microphone; its loudest is 1."""
    decay_s = np.exp(rng.uniform(np.log(0.08), np.log(0.5)))  # to -60 dB
    t = np.arange(int(0.6 * decay_s * RATE_HZ)) / RATE_HZ
    tail = rng.normal(0, 1, len(t)) * 10 ** (-3 * t / decay_s)
    tail[: int(0.002 * RATE_HZ)] = 0
    direct_over_tail_db = rng.uniform(0, 18)
    tail *= 10 ** (-direct_over_tail_db / 20) / np.sqrt((tail**2).sum() + 1e-12)
    response = tail
    response[0] = 1
    size = len(response)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 30) / 1000)
    color_db = rng.uniform(-3, 3) * octaves
    color_db += sum(
        rng.uniform(-6, 6) * np.exp(-(((octaves - rng.uniform(-3, 3)) / 0.7) ** 2))
        for _ in range(3)
    )
    color_db = np.clip(color_db, -15, 9)
    response = np.fft.irfft(np.fft.rfft(response) * 10 ** (color_db / 20), size)
    return (response / np.abs(response).max()).astype(np.float32)
