# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""nano sees the same in what a camera sends, in whatever encoding it sends it.

Where an encoding loses nothing the picture is the same, which test_media_raw.py shows. A
mosaic and halved chroma lose something; on 300 held-out clips no answer of nano about the scene
changed with any of them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_encodings import encode

from minicpmo_ros.evaluation import runner
from minicpmo_ros.evaluation.bags.clip import ClipImage
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.modelset.directory import ModelDirectory

ROOT = Path(__file__).parents[1]
LOSSY = ('bayer_grbg8', 'nv12')
LONGEST_S = 3  # windows that are asked about
AGREEMENT = 0.95  # of 24 answers; one may differ


@pytest.fixture(scope='module')
def core():
    core = runner.Core(
        ModelDirectory.open(ROOT / 'models' / 'nano'), runner.CoreOptions(device='cpu', threads=1)
    )
    yield core
    core.close()


@pytest.fixture(scope='module')
def questions() -> QuestionSet:
    """Questions about what is seen."""
    questions = QuestionSet.read(ROOT / 'demo' / 'clips' / 'questions.json').up_to(LONGEST_S)
    about = tuple(question for question in questions.questions if question.family == 'scene')
    return replace(questions, questions=about)


def taken_by(camera: str, clip):
    """Give a clip as a camera with this encoding would have brought it."""
    shots = [
        ClipImage.of_raw(shot.stamp_ns, encode(shot.rgb(), camera, padding=10))
        for shot in clip.images
    ]
    return replace(clip, images=tuple(shots))


def test_answers_do_not_depend_on_the_encoding(core, questions, monkeypatch):
    texts, rows = {}, {}
    for camera in ('rgb8', *LOSSY):
        monkeypatch.setattr(
            runner, 'read_clip', lambda path, camera=camera: taken_by(camera, read_clip(path))
        )
        (answers,) = runner.answer_all(core, questions, [runner.Variant()])
        texts[camera] = answers.of(questions)
        clip = taken_by(camera, read_clip(questions.path_of(questions.questions[0].clip)))
        rows[camera] = core.see(clip)[0].rows.astype(np.float32)
    same = [a == b for camera in LOSSY for a, b in zip(texts[camera], texts['rgb8'])]
    assert len(same) == 24
    assert np.mean(same) >= AGREEMENT
    right = [question.is_right(text) for question, text in zip(questions.questions, texts['rgb8'])]
    assert np.mean(right) > 0.6  # so that it is answers that agree
    for camera in LOSSY:  # and not because the same pictures were seen
        assert np.abs(rows[camera] - rows['rgb8']).max() > 0
