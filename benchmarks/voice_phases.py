# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Spoken question words at every phase of the second, from samples to nano's answer, without ROS.

Nobody who speaks minds where a second of the stream begins, so a word may lie across an edge. The
turn is found as node `voice` finds it, and the audio up to its `heard_until` is read as a question
reads it: whole seconds into the window, then the second that has not ended.
"""

from dataclasses import replace

import numpy as np

from benchmarks.voice_sounds import say
from minicpmo_ros.evaluation.bags.clip import Clip as RecordedClip
from minicpmo_ros.evaluation.bags.clip import ClipImage
from minicpmo_ros.evaluation.runner import Core, assemble
from minicpmo_ros.media.audio.log_mel import MARGIN, SAMPLE_RATE_HZ
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.units import NS
from minicpmo_ros.voice.turns import TurnFinder, TurnKind, TurnOptions
from training.kinds_across import said_last
from training.questions import Clip
from training.world import Sound

WORDS, VOICES = ('color', 'shape', 'count', 'where'), ('en-us', 'en-gb', 'slt', 'rms')
PHASES_S = tuple(np.arange(0, 1, 0.1))
AFTER_S = 2  # of silence behind the word
HISS = 2e-3  # -54 dBFS


def heard_until(detector, samples: np.ndarray) -> float | None:
    """Return up to where an answer hears the last turn in samples (n,), seconds; None: no turn."""
    detector.reset()
    events = TurnFinder(detector, TurnOptions()).push(0, samples)
    ends = [event.heard_until_ns / NS for event in events if event.kind is TurnKind.ENDED]
    return ends[-1] if ends else None


def with_word(samples: np.ndarray, word: str, voice: str, phase_s: float, rng) -> np.ndarray:
    """Return whole seconds (n,), then a word that begins phase_s behind them, then silence."""
    spoken, end = say(word, voice), len(samples) + int(phase_s * SAMPLE_RATE_HZ)
    out = rng.normal(0, HISS, end + len(spoken) + AFTER_S * SAMPLE_RATE_HZ).astype(np.float32)
    out[: len(samples)] += samples
    out[end : end + len(spoken)] += spoken
    return out


def units_until(core: Core, samples: np.ndarray, until_s: float, image) -> list:
    """Return Units of the audio up to until_s, all with one ImageSecond's rows."""
    pipeline, is_open = AudioPipeline(core.audio), until_s % 1 > 0
    end = int(until_s * SAMPLE_RATE_HZ) + (0 if is_open else MARGIN)
    seconds = pipeline.push(0, samples[:end])
    if is_open:
        seconds.append(pipeline.peek(int(until_s * NS))[0])
    heard = [(second.second, second.rows) for second in seconds]
    return assemble([replace(image, second=second) for second, _ in heard], heard)


def answer_to(core: Core, detector, samples: np.ndarray, image) -> str:
    """Return what nano answers to what was said last in samples (n,); '': no turn was found.

    image: the ImageSecond that is seen all the time.
    """
    until_s = heard_until(detector, samples)
    if until_s is None:
        return ''
    core.session.reset()
    for unit in units_until(core, samples, until_s, image):
        core.session.append(unit)
    return core.ask('').text.strip()


def right_by_phase(core: Core, detector, clips: list, rng) -> dict:
    """Return {phase: share of right answers} to WORDS about held-out clips, each by one voice."""
    right = {phase_s: [] for phase_s in PHASES_S}
    for i, made in enumerate(clips):
        word, voice = WORDS[i % len(WORDS)], VOICES[i // len(WORDS) % len(VOICES)]
        wanted = wanted_of(made.facts.pictures[-1], word)
        image = core.see(RecordedClip((ClipImage.of_compressed(0, 'jpeg', made.frames[-1]),), ()))[
            -1
        ]
        for phase_s in PHASES_S if wanted else ():
            samples = with_word(made.samples, word, voice, phase_s, rng)
            right[phase_s].append(answer_to(core, detector, samples, image) == wanted)
    return {f'{phase_s:.1f}': float(np.mean(found)) for phase_s, found in right.items()}


def wanted_of(picture, word: str) -> str | None:
    """Return what is asked for of a picture by a word; None: there is no such thing."""
    asked = said_last(Clip((picture,), (Sound('speech', word),)), None)
    return asked and asked[1]
