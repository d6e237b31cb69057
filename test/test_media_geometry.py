# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures are sized and sliced as the official image processor does it."""

import numpy as np
import pytest
from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.geometry import (
    TilePlan,
    best_resize,
    max_patches,
    plan_tiles,
    slice_picture,
)

# Picture; overview; grid of up to 9 tiles and the size of a tile. From the official processor.
WORKED = [
    ((640, 360), (602, 336), (2, 1), (420, 476)),
    ((640, 480), (518, 392), (2, 1), (364, 546)),
    ((848, 480), (588, 336), (2, 1), (420, 476)),
    ((1280, 720), (602, 336), (3, 2), (490, 406)),
    ((1920, 1080), (602, 336), (4, 2), (420, 476)),
    ((1024, 768), (518, 392), (2, 2), (518, 392)),
    ((448, 448), (448, 448), (0, 0), (0, 0)),
    ((224, 224), (448, 448), (0, 0), (0, 0)),
    ((100, 100), (448, 448), (0, 0), (0, 0)),
    ((320, 240), (518, 392), (0, 0), (0, 0)),
    ((64, 640), (140, 1414), (0, 0), (0, 0)),
]


@pytest.mark.parametrize('size, overview, grid, tile', WORKED)
def test_worked_sizes(size, overview, grid, tile):
    assert plan_tiles(*size, max_tiles=1) == TilePlan(*overview)
    assert plan_tiles(*size, max_tiles=9) == TilePlan(*overview, *grid, *tile)
    turned = plan_tiles(*size[::-1], max_tiles=1)
    assert (turned.source_height, turned.source_width) == overview or size == (64, 640)


@pytest.mark.parametrize('size, overview, grid, tile', WORKED)
def test_tokens_and_patches_of_worked_sizes(size, overview, grid, tile):
    plan = plan_tiles(*size, max_tiles=9)
    assert plan.pictures * 64 == {(2, 1): 192, (3, 2): 448, (4, 2): 576, (2, 2): 320}.get(grid, 64)
    assert plan.source_width * plan.source_height // 196 <= max_patches()


def test_smaller_model_has_smaller_pictures():
    assert plan_tiles(640, 480, side=112) == TilePlan(126, 98)
    assert plan_tiles(224, 224, max_tiles=4, side=112) == TilePlan(112, 112, 2, 2, 112, 112)


def test_halves_round_to_even():
    assert best_resize(14 * 2.5, 14 * 3.5, upscale=False) == (28, 56)
    assert best_resize(1, 3, upscale=False) == (14, 14)


def test_no_allowed_picture_has_more_patches_than_reserved(rng):
    most = 0
    for short, aspect, turned, max_tiles in zip(
        np.exp(rng.uniform(np.log(2), np.log(8192), 20000)).astype(int),
        np.exp(rng.uniform(0, np.log(20), 20000)),
        rng.random(20000) < 0.5,
        rng.integers(1, 10, 20000),
    ):
        size = (int(short), int(max(short, min(8192, int(short * aspect)))))
        plan = plan_tiles(*(size[::-1] if turned else size), int(max_tiles))
        sides = (plan.source_width, plan.source_height, plan.tile_width, plan.tile_height)
        assert not any(side % 14 for side in sides)
        most = max(most, sides[0] * sides[1] // 196, sides[2] * sides[3] // 196)
    assert 1070 < most <= max_patches() < 1100


@pytest.mark.parametrize(
    'width, height',
    [
        (0, 0),
        (1, 1),
        (1, 20),
        (20000, 1),
        (1, 20000),
        (8193, 8000),
        (2100, 100),
        (100, 2100),
        (16384, 16384),
        (-640, 480),
    ],
)
def test_other_pictures_are_refused_in_words(width, height):
    with pytest.raises(InputError, match=f'{width}x{height}.*(sides of 2 to 8192|20 times)'):
        plan_tiles(width, height)


def test_limits_themselves_are_allowed():
    for size in ((2, 2), (2, 40), (40, 2), (8192, 8192), (8192, 410)):
        plan_tiles(*size, max_tiles=9)


def test_tiles_are_the_stretched_picture_row_by_row(rng):
    picture = rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    plan = plan_tiles(1280, 720, max_tiles=9)
    overview, *tiles = slice_picture(picture, plan)
    assert overview.shape == (336, 602, 3)
    assert len(tiles) == 6 and {tile.shape for tile in tiles} == {(406, 490, 3)}
    assert all(tile.flags['C_CONTIGUOUS'] and tile.dtype == np.uint8 for tile in tiles)
    refined = np.vstack([np.hstack(tiles[0:3]), np.hstack(tiles[3:6])])
    expected = Image.fromarray(picture).resize((1470, 812), Image.BICUBIC)
    assert np.array_equal(refined, np.array(expected))
    expected = Image.fromarray(picture).resize((602, 336), Image.BICUBIC)
    assert np.array_equal(overview, np.array(expected))


def test_without_a_grid_there_is_only_the_overview():
    (only,) = slice_picture(np.zeros((240, 320, 3), np.uint8), plan_tiles(320, 240, 9))
    assert only.shape == (392, 518, 3)
