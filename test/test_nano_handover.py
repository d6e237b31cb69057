# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""nano hears the words said where its encoder is handed over as well as the same ones elsewhere.

A small version of `python -m benchmarks.handover`, whose figures are in docs/measurements.md.
"""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('training.codes', reason='training/ is not in this tree')
from benchmarks.handover import NEVER, hear_words, spoken_seconds  # noqa: E402
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder  # noqa: E402
from minicpmo_ros.ggml.runtime import Backend  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.streams.audio import Handover  # noqa: E402

ROOT = Path(__file__).parent.parent
NEAR = range(23, 31)  # of nano's 15 s the last 5 overlap: it is handed over at 15, 25 and 35 s
STREAMS, LENGTH_S, OVERLAP_S = 6, 36, 5


def test_words_are_heard_as_well_at_a_handover_as_elsewhere():
    spoken = spoken_seconds(ROOT / 'demo' / 'clips' / 'questions.json')
    backend = Backend('cpu', threads=1)
    encoder = AudioEncoder.load(ModelDirectory.open(ROOT / 'models' / 'nano').audio_path, backend)
    near, elsewhere = {}, {i: [] for i in range(len(spoken))}
    for stream in range(STREAMS):  # other recordings at the handover each time
        order = (np.arange(LENGTH_S) + len(NEAR) * stream) % len(spoken)
        heard, words = hear_words(
            encoder, [spoken[i][1] for i in order], Handover(pause_from_s=NEVER)
        )
        told = [h.remembered_s for h in heard]
        assert told == [*range(15), *range(OVERLAP_S, 15), *range(OVERLAP_S, 15), OVERLAP_S]
        for second, (i, word) in enumerate(zip(order, words)):
            right = word == spoken[i][0]
            if second in NEAR:
                near[i] = right
            else:
                elsewhere[i].append(right)
    backend.close()
    assert len(near) == len(NEAR) * STREAMS
    there = np.mean(list(near.values()))
    same = np.mean([np.mean(elsewhere[i]) for i in near])
    assert there > 0.5, 'words are heard, by chance one in 29'
    assert there >= same - 0.05, f'{there:.2f} at the handover, {same:.2f} elsewhere'
