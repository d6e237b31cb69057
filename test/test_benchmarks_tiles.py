# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of tiles are those that docs/measurements.md tells."""

import json

import pytest

from benchmarks import tiles
from minicpmo_ros.media.image.tiling import TileRule

SIZES = tiles.read_sizes()


def test_the_sizes_are_of_318_images_with_the_shares_of_the_sample():
    total = sum(count for *_, count in SIZES)
    shares = {size: count / total for *size, count in SIZES for size in [tuple(size)]}
    assert total == 318
    common = {(640, 480): 0.21, (640, 427): 0.13, (480, 640): 0.09, (640, 426): 0.05}
    for size, share in common.items():
        assert shares[size] == pytest.approx(share, abs=0.006)


def test_mean_tiles_of_every_rule():
    means = {name: row[:2] for name, row in tiles.by_rule(SIZES).items()}
    assert means['llava_next'] == pytest.approx([3.63, 4.62], abs=0.02)
    assert means['internvl'] == pytest.approx([5.73, 6.72], abs=0.02)
    assert means['relaxed'] == pytest.approx([3.59, 4.58], abs=0.02)
    assert means['minicpm'] == pytest.approx([1.72, 2.72], abs=0.02)


def test_a_larger_alpha_makes_fewer_tiles():
    means = tiles.by_alpha(SIZES)
    assert means == pytest.approx({0.05: 3.62, 0.1: 3.59, 0.2: 2.90, 0.3: 2.82}, abs=0.02)


def test_the_relaxed_rule_has_fewer_tiles_than_the_others_as_in_the_paper():
    assert tiles.relaxed_against('llava_next', SIZES) == pytest.approx((0.022, 0), abs=0.002)
    assert tiles.relaxed_against('internvl', SIZES) == pytest.approx((0.925, 0.016), abs=0.002)


def test_tiles_of_camera_sizes():
    found = {name: row for name, *row in tiles.by_camera()}
    assert found['640x480'] == [2, 4, 4, 6, 4]
    assert found['1280x960'] == [6, 9, 9, 6, 12]
    assert found['2560x720'] == [8, 3, 3, 4, 8]
    assert tiles.tiles_of((320, 240), TileRule('minicpm')) == 0  # others look at it twice


def test_figures_are_added_to_what_a_file_has(tmp_path):
    path = tmp_path / 'new' / 'vision.json'
    tiles.add_to(path, {'a': 1})
    tiles.add_to(path, {'b': 2, 'a': 3})
    assert json.loads(path.read_text()) == {'a': 3, 'b': 2}
