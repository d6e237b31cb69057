# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes seconds of sound: words that voices.py has spoken, and synthesised events.

A stream is (16000 n,) float32 in [-1, 1]. Every event lies in the seconds that its script
promises. Every kind of event is made in several ways, so that the encoder learns the kind and not
the way.
"""

from dataclasses import replace
from math import pi

import numpy as np

from .voices import RATE_HZ
from .world import Sound, choose, is_begun

LEAST_ACROSS = RATE_HZ // 25  # samples of a word on either side of the edge it lies across


def _fade(pcm, samples=160):
    samples = min(samples, len(pcm) // 2)
    ramp = np.linspace(0, 1, samples)
    pcm[:samples] *= ramp
    pcm[-samples:] *= ramp[::-1]
    return pcm


def _times(rng, low_s, high_s):
    return np.arange(int(RATE_HZ * rng.uniform(low_s, high_s))) / RATE_HZ


def _voiced(phase, rng):
    """A waveform of `phase` (radians): sine, a few harmonics, square-like or saw-like."""
    weights = choose(
        rng, ((1,), (1, rng.uniform(0, 0.5)), (1, 0, 0.33, 0, 0.2), (1, 0.5, 0.33, 0.25))
    )
    return sum(w * np.sin((i + 1) * phase) for i, w in enumerate(weights)) / sum(weights)


def _pitched(pitch, low_s, high_s, rng):
    hertz = rng.uniform(170, 340) if pitch == 'low' else rng.uniform(850, 1800)
    return 0.5 * _fade(_voiced(2 * pi * hertz * _times(rng, low_s, high_s), rng))


def _noise(rng):
    white = rng.normal(0, 0.25, len(_times(rng, 0.55, 0.95)))
    color = rng.integers(7)
    if color == 1:
        white = np.convolve(white, np.ones(4) / 2, 'same')
    if color == 2:
        white = 0.7 * np.diff(white, prepend=0)
    if color == 3:
        spectrum = np.fft.rfft(white)
        spectrum /= np.sqrt(np.arange(1, len(spectrum) + 1)) / 25
        white = np.fft.irfft(spectrum, len(white))
    if color == 4:  # a band
        spectrum, hertz = np.fft.rfft(white), np.fft.rfftfreq(len(white), 1 / RATE_HZ)
        center = np.exp(rng.uniform(np.log(300), np.log(4000)))
        spectrum *= np.exp(-(np.log2(np.maximum(hertz, 1) / center) ** 2) * rng.uniform(0.5, 3))
        white = np.fft.irfft(spectrum, len(white))
        white *= 0.25 / white.std()
    if color == 5:  # gusts
        t = np.arange(len(white)) / RATE_HZ
        white *= 0.6 + 0.4 * np.sin(2 * pi * rng.uniform(1, 6) * t + rng.uniform(0, 6))
    if color == 6:  # grains, as of rain or a bad line
        white *= 2.5 * (rng.random(len(white)) < rng.uniform(0.05, 0.4))
    return _fade(white)


def _siren(rng):
    t = _times(rng, 0.75, 0.97)
    sweep = np.sin(2 * pi * rng.uniform(1.3, 3.8) * t + rng.uniform(0, 6))
    way = rng.random()
    if way < 0.3:  # two tones by turns
        sweep = np.tanh(6 * sweep)
    elif way < 0.45:  # rising again and again
        sweep = 2 * ((t * rng.uniform(1.5, 5) + rng.random()) % 1) - 1
    hertz = rng.uniform(650, 1050) + rng.uniform(220, 420) * sweep
    if way > 0.85:  # a horn that winds up, or down
        hertz = (
            rng.uniform(300, 500) + choose(rng, (-1, 1)) * rng.uniform(120, 250) * (t - 0.5) * 2
        )
        hertz += rng.uniform(10, 40) * sweep
    return 0.5 * _fade(_voiced(2 * pi * np.cumsum(hertz) / RATE_HZ, rng))


def _bell(rng):
    t = _times(rng, 0.55, 0.93)
    base = rng.uniform(450, 1200)
    way = rng.random()
    if way < 0.25:  # struck metal by frequency modulation
        depth = rng.uniform(2, 7) * np.exp(-t * rng.uniform(3, 9))
        ring = np.sin(
            2 * pi * base * t + depth * np.sin(2 * pi * base * rng.uniform(1.35, 1.45) * t)
        )
        return 0.5 * _fade(ring * np.exp(-t * rng.uniform(3, 8)), 40)
    if way < 0.4:  # an alarm clock: many strikes
        strikes = np.exp(-((t * rng.uniform(9, 20)) % 1) * rng.uniform(1, 4))
        ring = sum(w * np.sin(2 * pi * base * m * t) for w, m in ((1, 1), (0.6, 2.4), (0.5, 3.9)))
        return 0.25 * _fade(ring * strikes, 40)
    partials = ((1, 1, 5), (0.6, 2.76, 8), (0.4, 5.4, 12), (0.3, 0.5, 4), (0.2, 4.1, 10))
    ring = sum(
        w
        * rng.uniform(0.5, 1.3)
        * np.exp(-t * d * rng.uniform(0.7, 1.4))
        * np.sin(2 * pi * base * m * rng.uniform(0.97, 1.03) * t)
        for w, m, d in partials
    )
    return 0.4 * _fade(ring, 40)


def _knock(rng):
    hits, gap, t = rng.integers(2, 5), rng.uniform(0.12, 0.22), np.arange(1600) / RATE_HZ
    pcm = np.zeros(int(RATE_HZ * (gap * (hits - 1) + 0.1)) + 1)
    wood, dull = rng.uniform(0, 1), int(rng.integers(1, 40))  # how it rings, how muffled it is
    for i in range(hits):
        rattle = np.convolve(rng.normal(0, 1, 1600), np.ones(dull) / dull**0.5, 'same')
        thump = (
            wood * np.sin(2 * pi * rng.uniform(85, 210) * t) + rng.uniform(0.3, 0.9) * rattle
        ) * np.exp(-t * rng.uniform(35, 65))
        start = int(i * gap * RATE_HZ)
        pcm[start : start + 1600] += thump[: len(pcm) - start]
    return 0.7 * pcm


def _spoken(take, rng):
    rate = min(rng.uniform(0.88, 1.14), 15400 / len(take.samples))
    count = int(len(take.samples) * rate)
    return np.interp(np.arange(count) / rate, np.arange(len(take.samples)), take.samples)


def _event(sound, words, rng):
    """-> samples (n,), Sound with its voice filled in"""
    if sound.kind == 'speech':
        take = words.draw(sound.word, rng)
        event, sound = _spoken(take, rng), Sound('speech', sound.word, take.voice)
    elif sound.kind == 'beep':
        event = _pitched(sound.pitch, 0.1, 0.26, rng)
    elif sound.kind == 'tone':
        event = _pitched(sound.pitch, 0.65, 0.96, rng)
    else:
        makers = {'noise': _noise, 'siren': _siren, 'bell': _bell, 'knock': _knock}
        event = makers[sound.kind](rng) if sound.kind in makers else np.zeros(1)
    tilt = rng.uniform(-0.6, 0.6)  # duller or sharper, as microphones are
    event = (event + tilt * np.append(0, event[:-1])) / (1 + abs(tilt))
    loud = rng.uniform(0.2, 0.95) if rng.random() < 0.9 else rng.uniform(0.04, 0.2)
    return event * loud, sound


def random_hiss(rng):
    """Return the amplitude of a noise floor, -84 to -46 dBFS."""
    return 10 ** rng.uniform(-4.2, -2.3)


def make_stream(wished, words, rng):
    """-> ((16000 n,) float32, n Sounds) of n wished Sounds, mostly above one noise floor. A word
    behind BEGUN lies across the edge of both seconds.
    """
    pcm, sounds = np.zeros(RATE_HZ * len(wished), np.float32), list(wished)
    hiss = random_hiss(rng) if rng.random() < 0.7 else None
    for i, sound in enumerate(wished):
        if is_begun(sound):
            continue
        event, sounds[i] = _event(sound, words, rng)
        start = int(rng.integers(0, RATE_HZ - len(event) + 1))
        if i and is_begun(wished[i - 1]):
            start = int(rng.integers(LEAST_ACROSS, len(event) - LEAST_ACROSS)) - len(event)
            sounds[i - 1] = replace(sounds[i - 1], voice=sounds[i].voice)
        start += RATE_HZ * i
        pcm[start : start + len(event)] += event
    for second in pcm.reshape(-1, RATE_HZ):
        amplitude = random_hiss(rng) if hiss is None else hiss
        second += rng.normal(0, amplitude, RATE_HZ)
    return np.clip(pcm, -1, 1), sounds
