# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds of sound: words by voices, accents and speeds of espeak-ng that training lacks, and
events by modes, filters and modulation.

A second is (16000,) float32 in [-1, 1]; its event lies wholly inside it, but for words that are
made across the edge of two. espeak-ng is a tool: its program speaks, nothing of it is shipped.
"""

import io
import subprocess
import wave
from dataclasses import replace
from math import log, pi

import numpy as np
import soxr

from training.world import BEGUN, Sound

RATE_HZ = 16000
LONGEST = int(0.95 * RATE_HZ)
LEAST_ACROSS = RATE_HZ // 20  # samples of a word on either side of the edge it lies across
# (accent, variant): no accent, no variant of them and no speed below was used in training.
MEN = tuple(
    (accent, variant)
    for accent in ('en-gb-x-rp', 'en-gb-x-gbclan', 'en-gb-x-gbcwmd')
    for variant in ('m6', 'adam', 'marcelo', 'pablo', 'edward', 'zac', 'quincy')
)
WOMEN = tuple(
    (accent, variant)
    for accent in ('en-gb-x-rp', 'en-gb-x-gbclan', 'en-gb-x-gbcwmd')
    for variant in ('f4', 'steph2', 'steph3')
)
SLOW, FAST = (108, 124), (216, 236)  # words a minute


def make_second(sound: Sound, rng) -> tuple:
    """Give ((16000,) float32, the Sound with who speaks)."""
    event, sound = _event(sound, rng)
    second = _room(rng)
    start = int(rng.integers(0, RATE_HZ - len(event) + 1))
    second[start : start + len(event)] += rng.uniform(0.25, 0.85) * event
    return np.clip(second, -1, 1).astype(np.float32), sound


def make_across(sound: Sound, rng) -> list:
    """Give two seconds as make_second does: a word begins in the first and ends in the second."""
    event, sound = _event(sound, rng)
    pcm = np.concatenate([_room(rng), _room(rng)])
    begin = RATE_HZ - int(rng.integers(LEAST_ACROSS, len(event) - LEAST_ACROSS))
    pcm[begin : begin + len(event)] += rng.uniform(0.25, 0.85) * event
    pcm = np.clip(pcm, -1, 1).astype(np.float32)
    return [(pcm[:RATE_HZ], replace(BEGUN, voice=sound.voice)), (pcm[RATE_HZ:], sound)]


def harm(second: np.ndarray, rng) -> np.ndarray:
    """Return a second (16000,) that is fainter, and behind louder noise."""
    noise = _room(rng)
    noise *= 10 ** (rng.uniform(-46, -26) / 20) / noise.std()
    faint = second * 10 ** (rng.uniform(-24, -3) / 20)
    return np.clip(faint + noise, -1, 1).astype(np.float32)


def _event(sound: Sound, rng) -> tuple:
    if sound.kind == 'speech':
        voice = ('man', 'woman')[int(rng.integers(2))]
        return speak(sound.word, voice, rng), Sound('speech', sound.word, voice)
    if sound.kind == 'silence':
        return np.zeros(1), sound
    makers = {'noise': _noise, 'siren': _siren, 'bell': _bell, 'knock': _knock}
    if sound.kind in makers:
        event = makers[sound.kind](rng)
    else:
        length_s = rng.uniform(0.12, 0.24) if sound.kind == 'beep' else rng.uniform(0.68, 0.93)
        hertz = rng.uniform(185, 320) if sound.pitch == 'low' else rng.uniform(920, 1650)
        event = _note(hertz, length_s, rng)
    return event / np.abs(event).max(), sound


def speak(word: str, voice: str, rng) -> np.ndarray:
    """Let espeak-ng say a word; (n,) float32 at 16 kHz, trimmed, peak 1."""
    cast = MEN if voice == 'man' else WOMEN
    name, pitch = '+'.join(cast[int(rng.integers(len(cast)))]), int(rng.integers(30, 71))
    speeds = [int(rng.integers(*SLOW)), int(rng.integers(*FAST)), 260, 320]
    if rng.random() < 0.5:
        del speeds[0]
    # A second holds the whole word: where it lasts too long, it is said faster.
    takes = (_take(word, name, speed, pitch) for speed in speeds)
    pcm = next(take for take in takes if len(take) <= LONGEST)
    return pcm / np.abs(pcm).max()


def _take(word: str, name: str, speed: int, pitch: int) -> np.ndarray:
    done = subprocess.run(
        ['espeak-ng', '-v', name, '-s', str(speed), '-p', str(pitch), '--stdout', word],
        capture_output=True,
        check=True,
    )
    with wave.open(io.BytesIO(done.stdout)) as header:
        rate_hz = header.getframerate()
    # What is piped has no length in its header: the samples are all that follows it.
    pcm = np.frombuffer(done.stdout[44:], '<i2').astype(np.float32) / 32768
    pcm = soxr.resample(pcm, rate_hz, RATE_HZ)
    loud = np.flatnonzero(np.abs(pcm) > 0.02 * np.abs(pcm).max())
    return pcm[max(0, loud[0] - 240) : loud[-1] + 480]


def _room(rng) -> np.ndarray:
    """Give a second of faint coloured noise, (16000,)."""
    spectrum = np.fft.rfft(rng.normal(0, 1, RATE_HZ))
    tilt = np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 0.45)
    hiss = np.fft.irfft(spectrum * tilt, RATE_HZ)
    return hiss / hiss.std() * 10 ** rng.uniform(-4, -2.5)


def _swell(samples: np.ndarray, rise_s: float = 0.012) -> np.ndarray:
    """Let samples begin and end softly, by raised cosines."""
    n = min(int(rise_s * RATE_HZ), len(samples) // 2)
    curve = 0.5 - 0.5 * np.cos(pi * (np.arange(n) + 0.5) / n)
    samples[:n] *= curve
    samples[len(samples) - n :] *= curve[::-1]
    return samples


def _clock(length_s: float) -> np.ndarray:
    return np.arange(int(length_s * RATE_HZ)) / RATE_HZ


def _note(hertz: float, length_s: float, rng) -> np.ndarray:
    """A held note: softly driven sine, triangle wave, or two sines that beat a little."""
    t = _clock(length_s)
    trill = 1 + rng.uniform(0, 0.006) * np.sin(2 * pi * rng.uniform(4, 7) * t)
    phase = 2 * pi * np.cumsum(hertz * trill) / RATE_HZ
    timbre = rng.integers(3)
    if timbre == 0:
        wave_ = np.tanh(rng.uniform(0.5, 2.5) * np.sin(phase))
    elif timbre == 1:
        wave_ = np.arcsin(np.sin(phase))
    else:
        wave_ = np.sin(phase) + rng.uniform(0.2, 0.6) * np.sin(1.004 * phase)
    return _swell(wave_)


def _noise(rng) -> np.ndarray:
    """Wind, rain or steam: a broad band, now and then unsteady."""
    n = int(rng.uniform(0.6, 0.93) * RATE_HZ)
    hertz = np.fft.rfftfreq(n, 1 / RATE_HZ)
    low, high = rng.uniform(60, 600), rng.uniform(3000, 7500)
    band = 1 / (1 + (low / np.maximum(hertz, 1)) ** 4) / (1 + (hertz / high) ** 4)
    rush = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, n)) * np.sqrt(band), n)
    unsteady = 1 + rng.uniform(0, 0.4) * np.sin(
        2 * pi * rng.uniform(2, 8) * np.arange(n) / RATE_HZ
    )
    return _swell(rush * unsteady, 0.03)


def _siren(rng) -> np.ndarray:
    """A wail, up and down in equal steps of pitch, or two tones by turns."""
    t = _clock(rng.uniform(0.78, 0.94))
    turns = rng.uniform(1.4, 3.4) * t + rng.random()
    there = 2 * np.abs(turns % 1 - 0.5)  # 0..1, a triangle
    if rng.random() < 0.3:
        there = (there > 0.5).astype(float)
    low, high = rng.uniform(480, 700), rng.uniform(1050, 1450)
    phase = 2 * pi * np.cumsum(low * np.exp(there * log(high / low))) / RATE_HZ
    return _swell(np.tanh(1.5 * np.sin(phase)) + rng.uniform(0, 0.3) * np.sin(3 * phase))


def _bell(rng) -> np.ndarray:
    """Modes of a small bell: hum, prime, tierce, quint, nominal and what lies above."""
    t, prime = _clock(rng.uniform(0.6, 0.92)), rng.uniform(500, 1050)
    modes = (
        (0.5, 0.35, 3.5),
        (1, 1, 4.5),
        (1.19, 0.5, 5),
        (1.5, 0.3, 6),
        (2, 0.8, 6),
        (2.74, 0.45, 9),
        (3.76, 0.3, 12),
        (5.1, 0.2, 16),
    )
    ring = sum(
        loud
        * rng.uniform(0.6, 1.3)
        * np.exp(-fade * rng.uniform(0.8, 1.3) * t)
        * np.sin(2 * pi * prime * ratio * rng.uniform(0.992, 1.008) * t)
        for ratio, loud, fade in modes
    )
    ring[:80] *= np.linspace(0, 1, 80)
    return ring * np.minimum(1, (t[-1] - t) / 0.03)


def _knock(rng) -> np.ndarray:
    """Knuckles on wood: each blow a click and two dull modes."""
    blows, gap_s = int(rng.integers(2, 5)), rng.uniform(0.13, 0.21)
    t = _clock(0.11)
    low, high = rng.uniform(95, 190), rng.uniform(240, 420)
    pcm = np.zeros(int(gap_s * (blows - 1) * RATE_HZ) + len(t) + 1)
    for i in range(blows):
        blow = (
            np.sin(2 * pi * low * t) * np.exp(-42 * t)
            + 0.5 * np.sin(2 * pi * high * t) * np.exp(-60 * t)
            + 0.5 * rng.normal(0, 1, len(t)) * np.exp(-160 * t)
        )
        start = int(i * gap_s * RATE_HZ)
        pcm[start : start + len(t)] += rng.uniform(0.7, 1) * blow
    return pcm
