# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""nano answers a spoken question word wherever it lies in the seconds of the stream."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.voice_phases import answer_to, with_word
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.voice.detector import load_detector

pytestmark = pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='no espeak-ng here')
ROOT = Path(__file__).parents[1]
CLIP = ROOT / 'demo/clips/010.mcap'  # ends with one yellow cross at the bottom left
PHASES_S = np.arange(0, 1, 0.1)


@pytest.fixture(scope='module')
def core():
    core = Core(ModelDirectory.open(ROOT / 'models/nano'), CoreOptions(device='cpu'))
    yield core
    core.close()


@pytest.mark.parametrize('word, answer', (('color', 'yellow'), ('shape', 'cross')))
def test_a_question_word_is_answered_at_every_phase_of_the_second(core, rng, word, answer):
    detector, clip = load_detector(), read_clip(CLIP)
    before = np.concatenate([samples for _, samples in clip.audio])
    image, told = core.see(clip)[-1], []
    for phase_s in PHASES_S:
        samples = with_word(before, word, 'en-us', phase_s, rng)
        told.append(answer_to(core, detector, samples, image))
    assert told.count(answer) >= len(PHASES_S) - 1, told
