# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The path of BlueLM-V-3B runs from its image to the answer, here with narrow layers."""

from dataclasses import replace

import pytest

from benchmarks import bluelm
from minicpmo_ros.modelset.gguf_layouts import SHAPES
from minicpmo_ros.synthetic.model import write_model

NARROW = replace(
    SHAPES['bluelm-v-3b'],
    name='bluelm-narrow',
    width=256,
    llm_layers=2,
    llm_heads=4,
    llm_kv_heads=2,
    llm_ffn=512,
    vocabulary=640,
    vision_width=64,
    vision_layers=1,
    vision_heads=2,
    vision_ffn=72,
    audio_width=128,
    audio_layers=2,
    audio_heads=2,
)


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
    directory = tmp_path_factory.mktemp('bluelm')
    write_model(directory, NARROW, hashes=False)
    return bluelm.follow(directory)


def test_the_image_becomes_nine_tiles_that_are_encoded_four_at_a_time(followed):
    assert followed.grid == (2, 4)
    assert followed.runs == [1, 4, 4]  # the overview; then the tiles


def test_every_tile_gives_196_embeddings_and_all_are_read(followed):
    assert followed.embeddings == 1764 == 9 * 14 * 14
    assert 1764 < followed.positions < 1764 + 40  # and the tokens around the tiles


def test_the_encoder_is_released_before_the_answer(followed):
    assert followed.was_released
    assert followed.seconds['token'] > 0 and followed.seconds['image'] > 0
