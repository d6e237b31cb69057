# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Spoken questions and noises of a robot's surroundings, made here: 16 kHz float32."""

import io
import subprocess
import wave

import numpy as np

from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.audio.stream import Resampler
from minicpmo_ros.units import NS

QUESTIONS = (
    'What is on the table?',
    'Can you see the red box?',
    'Where did I put my keys?',
    'Who is standing at the door?',
    'What did you just hear?',
    'How many people are there?',
    'Is the window open?',
    'What colour is the car?',
    'Please tell me what I said.',
    'Is anybody in the kitchen?',
    'What shape is that thing?',
    'Did the telephone ring?',
)
ESPEAK_VOICES = ('en-us', 'en-gb', 'en-us+m3', 'en-us+f2', 'en-gb+f3', 'en-gb+m7')
FLITE_VOICES = ('slt', 'kal16', 'awb', 'rms')
NOISES = ('white', 'pink', 'fan', 'knocks', 'beeps', 'siren', 'music', 'servo')
NOTES_HZ = (220, 262, 294, 330, 392, 440, 523, 587, 659)
SPEECH_RMS = 0.1
ECHO_DB, FLOOR_RMS = 2.0, 1.5e-3
DELAY_S, TAIL_S = 0.04, 0.4
ROOMS = {'short': (0.019, 0.08), 'long': (0.056, 0.25)}  # seconds of decay, strength of the tail


def say(text: str, voice: str) -> np.ndarray:
    """Return a sentence (n,) by espeak-ng, or by flite if it has the voice."""
    if voice in FLITE_VOICES:
        command = ['flite', '-voice', voice, '-t', text, '-o', '/dev/stdout']
    else:
        command = ['espeak-ng', '-v', voice, '--stdout', text]
    sound = subprocess.run(command, capture_output=True, check=True).stdout
    data = sound[sound.index(b'data') + 8 :]  # the lengths in its header are those of a stream
    with wave.open(io.BytesIO(sound)) as file:
        rate_hz = file.getframerate()
    samples = np.frombuffer(data[: len(data) // 2 * 2], '<i2').astype(np.float32) / 32768
    resampler = Resampler(rate_hz)
    samples = np.concatenate([resampler.push(samples), resampler.flush()])
    loud = np.flatnonzero(np.convolve(samples**2, np.ones(320) / 320, 'same') > 1e-5)
    samples = samples[loud[0] : loud[-1] + 1]
    return samples * (SPEECH_RMS / np.sqrt(np.mean(samples**2)))


def conversation(rng, count: int, gap_s=(1.5, 2.5)) -> tuple:
    """Return (samples, [(start, end) of each utterance in samples]) of `count` questions."""
    voices = ESPEAK_VOICES + FLITE_VOICES
    parts, spans, at = [np.zeros(SAMPLE_RATE_HZ, np.float32)], [], SAMPLE_RATE_HZ
    for i in range(count):
        spoken = say(QUESTIONS[i % len(QUESTIONS)], voices[rng.integers(len(voices))])
        gap = np.zeros(int(rng.uniform(*gap_s) * SAMPLE_RATE_HZ), np.float32)
        parts += [spoken, gap]
        spans.append((at, at + len(spoken)))
        at += len(spoken) + len(gap)
    return np.concatenate(parts), spans


def own_speech(seconds: int) -> tuple:
    """Return (a robot's speech (n,), the spans (begin_ns, end_ns) of its sentences)."""
    total, spans = np.zeros(seconds * SAMPLE_RATE_HZ, np.float32), []
    sentences = [say(text, 'en-us') for text in QUESTIONS]
    at, number = SAMPLE_RATE_HZ, 0
    while at < len(total):
        part = sentences[number % len(sentences)][: len(total) - at]
        total[at : at + len(part)] = part
        spans.append((at * NS // SAMPLE_RATE_HZ, (at + len(part)) * NS // SAMPLE_RATE_HZ))
        at, number = at + len(part) + SAMPLE_RATE_HZ // 4, number + 1
    return total, spans


def echo_of(rng, speech: np.ndarray, room: str) -> np.ndarray:
    """Return what a microphone hears of speech (n,) in one of ROOMS: ECHO_DB above a person."""
    decay_s, strength = ROOMS[room]
    times_s = np.arange(int(TAIL_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = strength * rng.normal(size=len(times_s)) * np.exp(-times_s / decay_s)
    path = np.concatenate([np.zeros(int(DELAY_S * SAMPLE_RATE_HZ)), [1.0], tail])
    size = 1 << (len(speech) + len(path)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(path, size), size)[: len(speech)]
    loud = echo[np.abs(echo) > 1e-3 * np.abs(echo).max()]
    echo *= SPEECH_RMS * 10 ** (ECHO_DB / 20) / np.sqrt(np.mean(loud**2))
    return (echo + rng.normal(size=len(echo)) * FLOOR_RMS).astype(np.float32)


def noise(rng, kind: str, seconds: float) -> np.ndarray:
    """Return noise (n,) with a root mean square of 1."""
    n = int(seconds * SAMPLE_RATE_HZ)
    made = _MAKERS[kind](rng, np.arange(n) / SAMPLE_RATE_HZ)
    return (made / np.sqrt(np.mean(made**2))).astype(np.float32)


def _white(rng, t):
    return rng.standard_normal(len(t))


def _pink(rng, t):
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(t))


def _fan(rng, t):
    air = _pink(rng, t)
    hum = sum(
        level * np.sin(2 * np.pi * hertz * t + rng.uniform(0, 6))
        for hertz, level in ((100, 0.8), (200, 0.5), (300, 0.3), (1200, 0.2), (2400, 0.1))
    )
    return 0.5 * air / air.std() + hum * (1 + 0.2 * np.sin(6 * np.pi * t))


def _knocks(rng, t):
    made, length = 0.003 * rng.standard_normal(len(t)), SAMPLE_RATE_HZ // 4
    for at in rng.integers(0, len(t) - length, int(2 * t[-1])):
        decay = np.exp(-np.arange(length) / 400) * rng.standard_normal(length)
        made[at : at + length] += rng.uniform(0.2, 1) * decay
    return made


def _beeps(rng, t):
    return 0.003 * rng.standard_normal(len(t)) + np.sin(3000 * np.pi * t) * (t % 1 < 0.15)


def _siren(rng, t):
    phase = 2 * np.pi * np.cumsum(900 + 400 * np.sin(0.8 * np.pi * t)) / SAMPLE_RATE_HZ
    return np.sin(phase) + 0.4 * np.sin(2 * phase)


def _music(rng, t):
    made, beat = np.zeros(len(t)), SAMPLE_RATE_HZ // 2
    for begin in range(0, len(t), beat):
        u = t[begin : begin + beat] - t[begin]
        for hertz in rng.choice(NOTES_HZ, 3):
            chord = sum(np.sin(2 * np.pi * hertz * k * u) / k**1.5 for k in range(1, 6))
            made[begin : begin + beat] += chord * np.exp(-3 * u)
    return made


def _servo(rng, t):
    hertz = 300 + 200 * np.sin(0.6 * np.pi * t) + 100 * np.sign(np.sin(1.4 * np.pi * t))
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE_HZ
    tone = sum(np.sin(k * phase) / k for k in range(1, 9))
    return tone * (np.sin(0.5 * np.pi * t) > 0) + 0.05 * rng.standard_normal(len(t))


_MAKERS = {name: globals()[f'_{name}'] for name in NOISES}
