# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Streams of any length, strung together from the seconds of held-out clips.

Every second of a clip shows and lets be heard one thing that lies wholly inside it, and the
question file tells what; so seconds may follow each other in any order. They go through the
encoders as live input does.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.pairing import Unit

RATE, NS = 16000, 10**9
TOLD = re.compile(r'(\d) (\w+) (\w+)(?:, \w+ \w+)?; (?:a \w+ says "(\w+)"|(?:\w+ )?(\w+))$')
QUESTION_FILES = (Path('build/heldout/questions.json'), Path('demo/clips/questions.json'))


@dataclass(frozen=True)
class ShownSecond:
    """One second of a clip."""

    rgb: Callable  # () -> (H, W, 3) uint8
    samples: np.ndarray  # (16000,) float32
    count: int
    color: str
    shape: str
    sound: str  # the word that is said, or what else is heard
    is_word: bool


def question_file() -> Path:
    """Give the large held-out set where it was made, else the clips that ship."""
    return next(path for path in QUESTION_FILES if path.is_file())


def read_seconds(path: Path, max_clips: int) -> list:
    """Give the ShownSeconds of the first clips of a question file."""
    questions, shown = QuestionSet.read(path), []
    for name, lines in list(questions.clips.items())[:max_clips]:
        clip = read_clip(questions.path_of(name))
        samples = np.concatenate([part for _, part in clip.audio])
        for i, (line, shot) in enumerate(zip(lines, clip.images)):
            told = TOLD.match(line)
            if told is None:
                raise InputError(f'{path}: {line!r} of {name} is not understood.')
            count, color, shape, word, other = told.groups()
            part = samples[RATE * i : RATE * (i + 1)]
            shown.append(
                ShownSecond(
                    shot.rgb,
                    np.pad(part, (0, RATE - len(part))),
                    int(count),
                    color,
                    shape,
                    word or other,
                    word is not None,
                )
            )
    return shown


def open_core(model: ModelDirectory, n_units: int, **options) -> Core:
    """Open a model with room for exactly `n_units` units of one picture and one sound.

    A context is a multiple of 256 positions: the rest is left to the answer.
    """
    probe = Core(model, CoreOptions(threads=1, **options))
    window = probe.session.window
    taken = probe.session.context.n_ctx - window.capacity + window.prefix
    needed = taken + n_units * unit_rows(probe)
    n_ctx = -(-needed // 256) * 256
    max_tokens = probe.options.max_tokens + n_ctx - needed
    probe.close()
    return Core(model, CoreOptions(threads=1, n_ctx=n_ctx, max_tokens=max_tokens, **options))


def unit_rows(core: Core) -> int:
    """Give the positions of a unit of one picture and one sound."""
    width = core.session.model.width
    picture, sound = np.zeros((core.vision.queries, width)), np.zeros((25, width))
    return len(core.session.prompt.unit(picture, 0, 0, sound))


def units_of(core: Core, stream: Iterable[ShownSecond], first: int = 0) -> Iterator[Unit]:
    """See and hear a stream that begins with second `first`; give its units, one behind it."""
    image_pipeline = ImagePipeline(
        core.vision, core.options.max_tiles, core.options.unchanged_threshold
    )
    audio_pipeline, waiting = AudioPipeline(core.audio), {}
    for second, shown in enumerate(stream, first):
        image_pipeline.offer(second * NS + NS // 2, shown.rgb)
        waiting.update((seen.second, seen) for seen in image_pipeline.close(second))
        for heard in audio_pipeline.push(second * NS, shown.samples):
            yield _unit(waiting.pop(heard.second), heard)
    for heard in audio_pipeline.flush():
        yield _unit(waiting.pop(heard.second), heard)


def _unit(seen, heard) -> Unit:
    return Unit(seen.second, seen.rows, (seen.tiles_wide, seen.tiles_high), heard.rows)
