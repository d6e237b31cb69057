# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes seconds of sound: spoken words by espeak-ng (cached on disk) and synthesised events.

A second is (16000,) float32 in [-1, 1]. The event lies wholly inside it, as the script promises.
espeak-ng is a tool here: its program speaks the training words, nothing of it is shipped.
"""

import json
import subprocess
from math import pi
from pathlib import Path

import numpy as np

from .world import SPOKEN, Sound, choose

RATE_HZ = 16000
ESPEAK_RATE_HZ = 22050
ACCENTS = ('en-us', 'en-gb', 'en-gb-scotland', 'en-029', 'en-us-nyc')
MEN = (
    'm1',
    'm2',
    'm3',
    'm4',
    'm5',
    'm7',
    'm8',
    'Alex',
    'Andy',
    'Lee',
    'Mike',
    'Michael',
    'max',
    'david',
    'john',
    'paul',
)
WOMEN = (
    'f1',
    'f2',
    'f3',
    'f5',
    'Annie',
    'Alicia',
    'belinda',
    'linda',
    'steph',
    'anika',
    'aunty',
    'Andrea',
)
# Never heard in training; for `evaluate --unseen`.
UNSEEN = (
    ('en-gb-x-rp', 'm6', 'man'),
    ('en-us', 'm6', 'man'),
    ('en-gb-x-rp', 'f4', 'woman'),
    ('en-us', 'f4', 'woman'),
    ('en-gb', 'steph3', 'woman'),
    ('en-gb-x-gbcwmd', 'marcelo', 'man'),
)
TAKES = 4  # per word and voice: accent, speed and pitch drawn anew


def speak(word, accent, variant, words_per_minute, pitch):
    """(n,) float32 at 16 kHz, silence trimmed, peak 0.9, at most 0.94 s."""
    out = subprocess.run(
        [
            'espeak-ng',
            '-v',
            f'{accent}+{variant}',
            '-s',
            str(words_per_minute),
            '-p',
            str(pitch),
            '--stdout',
            word,
        ],
        capture_output=True,
        check=True,
    )
    pcm = np.frombuffer(out.stdout[44:], np.int16).astype(np.float32) / 32768
    count = len(pcm) * RATE_HZ // ESPEAK_RATE_HZ
    pcm = np.fft.irfft(np.fft.rfft(pcm)[: count // 2 + 1], count) * (count / len(pcm))
    loud = np.nonzero(np.convolve(np.abs(pcm), np.ones(160) / 160, 'same') > 0.004)[0]
    pcm = pcm[max(0, loud[0] - 160) : loud[-1] + 320][:15000]
    return (0.9 * pcm / np.abs(pcm).max()).astype(np.float32)


def _jobs(unseen, rng):
    if unseen:
        voices = [(accent, variant, sex) for accent, variant, sex in UNSEEN]
    else:
        voices = [(None, v, 'man') for v in MEN] + [(None, v, 'woman') for v in WOMEN]
    for word in SPOKEN:
        for accent, variant, sex in voices:
            for _ in range(2 if unseen else TAKES):
                yield (
                    word,
                    accent or choose(rng, ACCENTS),
                    variant,
                    int(rng.integers(125, 215)),
                    int(rng.integers(25, 75)),
                    sex,
                )


class Words:
    """word -> takes of (voice, samples); spoken once, then read from `directory`."""

    def __init__(self, directory, unseen=False, progress=print):
        name = 'unseen' if unseen else 'words'
        self.takes = {word: [] for word in SPOKEN}
        index, store = Path(directory) / f'{name}.json', Path(directory) / f'{name}.npy'
        if not index.exists():
            self._record(index, store, unseen, progress)
        pcm = np.load(store)
        for word, sex, start, end in json.loads(index.read_text()):
            self.takes[word].append((sex, pcm[start:end].astype(np.float32) / 32767))

    @staticmethod
    def _record(index, store, unseen, progress):
        index.parent.mkdir(parents=True, exist_ok=True)
        jobs = list(_jobs(unseen, np.random.default_rng(7)))
        rows, parts, end = [], [], 0
        for i, (word, accent, variant, speed, pitch, sex) in enumerate(jobs):
            pcm = (speak(word, accent, variant, speed, pitch) * 32767).astype(np.int16)
            rows.append((word, sex, end, end + len(pcm)))
            parts.append(pcm)
            end += len(pcm)
            if i % 500 == 0:
                progress(f'espeak-ng: {i} of {len(jobs)} words')
        np.save(store, np.concatenate(parts))
        index.write_text(json.dumps(rows))


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
    color = rng.integers(4)
    if color == 1:
        white = np.convolve(white, np.ones(4) / 2, 'same')
    if color == 2:
        white = 0.7 * np.diff(white, prepend=0)
    if color == 3:
        spectrum = np.fft.rfft(white)
        spectrum /= np.sqrt(np.arange(1, len(spectrum) + 1)) / 25
        white = np.fft.irfft(spectrum, len(white))
    return _fade(white)


def _siren(rng):
    t = _times(rng, 0.75, 0.97)
    sweep = np.sin(2 * pi * rng.uniform(1.3, 3.8) * t + rng.uniform(0, 6))
    if rng.random() < 0.35:  # two tones by turns
        sweep = np.tanh(6 * sweep)
    hertz = rng.uniform(650, 1050) + rng.uniform(220, 420) * sweep
    return 0.5 * _fade(_voiced(2 * pi * np.cumsum(hertz) / RATE_HZ, rng))


def _bell(rng):
    t = _times(rng, 0.55, 0.93)
    base = rng.uniform(450, 1200)
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


def _spoken(takes, rng):
    voice, pcm = choose(rng, takes)
    rate = rng.uniform(0.88, 1.14)
    count = min(int(len(pcm) * rate), 15400)
    return voice, np.interp(np.arange(count) / rate, np.arange(len(pcm)), pcm)


def make_second(sound, words, rng):
    """-> ((16000,) float32, Sound with its voice filled in)."""
    second = np.zeros(RATE_HZ, np.float32)
    if sound.kind == 'speech':
        voice, event = _spoken(words.takes[sound.word], rng)
        sound = Sound('speech', sound.word, voice)
    elif sound.kind == 'beep':
        event = _pitched(sound.pitch, 0.1, 0.26, rng)
    elif sound.kind == 'tone':
        event = _pitched(sound.pitch, 0.65, 0.96, rng)
    else:
        makers = {'noise': _noise, 'siren': _siren, 'bell': _bell, 'knock': _knock}
        event = makers[sound.kind](rng) if sound.kind in makers else np.zeros(1)
    tilt = rng.uniform(-0.6, 0.6)  # duller or sharper, as microphones are
    event = (event + tilt * np.append(0, event[:-1])) / (1 + abs(tilt))
    start = int(rng.integers(0, RATE_HZ - len(event) + 1))
    second[start : start + len(event)] = event * rng.uniform(0.2, 0.95)
    second += rng.normal(0, 10 ** rng.uniform(-4.2, -2.3), RATE_HZ).astype(np.float32)
    return np.clip(second, -1, 1), sound
