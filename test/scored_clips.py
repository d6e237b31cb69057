# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Small clips and questions about them, for the tests of the evaluation."""

import io

import numpy as np
from PIL import Image

from minicpmo_ros.evaluation.clips import NS, write_clip
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion

START_S = 1_750_000_000
COLORS = ((210, 30, 30), (30, 160, 60), (40, 60, 210), (230, 220, 50))
FAMILIES = ('scene', 'source')


def jpeg(color, width=64, height=48) -> bytes:
    """Give a picture: a coloured square on grey."""
    picture = np.full((height, width, 3), 120, np.uint8)
    picture[10:30, 10:40] = color
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=90)
    return file.getvalue()


def sound(seconds: int) -> np.ndarray:
    """Give a tone that rises every second, (16000 n,) float32."""
    t = np.arange(16000) / 16000
    return np.concatenate(
        [0.4 * np.sin(2 * np.pi * 200 * (i + 1) * t) for i in range(seconds)]
    ).astype(np.float32)


def write_test_clip(path, seconds: int, start_s: int = START_S) -> None:
    """Write a clip whose color and tone change every second."""
    pictures = [(i * NS + NS // 2, jpeg(COLORS[i % 4])) for i in range(seconds)]
    write_clip(path, start_s, pictures, sound(seconds))


def write_question_set(folder, lengths=(2, 3)) -> QuestionSet:
    """Write a clip for each length, and two questions about it; read what was written."""
    questions = []
    for i, seconds in enumerate(lengths):
        start_s = START_S + 100 * i
        write_test_clip(folder / f'{i}.mcap', seconds, start_s)
        for family in FAMILIES:
            questions.append(
                ScoredQuestion(
                    f'{i}-{family}',
                    f'{i}.mcap',
                    start_s,
                    start_s + seconds,
                    family,
                    f'what about the {family}?',
                    ('red',),
                    chance=0.25,
                    hard=bool(i % 2),
                )
            )
    QuestionSet(tuple(questions), 'test').write(folder / 'questions.json')
    return QuestionSet.read(folder / 'questions.json')
