# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures are sized and sliced as the official image processor does it."""

import numpy as np
import pytest
from PIL import Image

from minicpmo_ros.config import TILE_RULES
from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.tiling import (
    Crop,
    TilePlan,
    TileRule,
    best_resize,
    check_area,
    choose_grid,
    max_patches,
    overview_side,
    plan_tiles,
    slice_image,
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
    assert plan.images * 64 == {(2, 1): 192, (3, 2): 448, (4, 2): 576, (2, 2): 320}.get(grid, 64)
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
    overview, *tiles = slice_image(picture, plan)
    assert overview.shape == (336, 602, 3)
    assert len(tiles) == 6 and {tile.shape for tile in tiles} == {(406, 490, 3)}
    assert all(tile.flags['C_CONTIGUOUS'] and tile.dtype == np.uint8 for tile in tiles)
    refined = np.vstack([np.hstack(tiles[0:3]), np.hstack(tiles[3:6])])
    expected = Image.fromarray(picture).resize((1470, 812), Image.BICUBIC)
    assert np.array_equal(refined, np.array(expected))
    expected = Image.fromarray(picture).resize((602, 336), Image.BICUBIC)
    assert np.array_equal(overview, np.array(expected))


def test_without_a_grid_there_is_only_the_overview():
    (only,) = slice_image(np.zeros((240, 320, 3), np.uint8), plan_tiles(320, 240, 9))
    assert only.shape == (392, 518, 3)


# In squares of 384. Image; LLaVA-NeXT of 9; InternVL of 6 and 9; relaxed of 9 and 16.
PAPER = [
    ((394, 390), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((380, 76), (1, 1), (5, 1), (5, 1), (1, 1), (1, 1)),
    ((380, 393), (1, 2), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((500, 102), (2, 1), (5, 1), (5, 1), (2, 1), (2, 1)),
    ((640, 360), (2, 1), (2, 1), (2, 1), (2, 1), (2, 1)),
    ((768, 1536), (2, 3), (1, 2), (2, 4), (2, 3), (2, 4)),
    ((1920, 1080), (3, 2), (2, 1), (4, 2), (3, 2), (4, 3)),
    ((1080, 2400), (2, 3), (1, 2), (2, 4), (2, 3), (2, 4)),
]


def grid_of(name, size, max_tiles=9, side=384):
    return choose_grid(*size, max_tiles, side, TileRule(name))


@pytest.mark.parametrize('size, llava_next, internvl_6, internvl_9, relaxed_9, relaxed_16', PAPER)
def test_rules_choose_as_in_the_paper(
    size, llava_next, internvl_6, internvl_9, relaxed_9, relaxed_16
):
    assert grid_of('llava_next', size) == llava_next
    assert [grid_of('internvl', size, n) for n in (6, 9)] == [internvl_6, internvl_9]
    assert [grid_of('relaxed', size, n) for n in (9, 16)] == [relaxed_9, relaxed_16]


def test_without_tolerance_the_relaxed_rule_keeps_its_largest_grid():
    """A tie needs a tolerance to be one: alpha 0 is not LLaVA-NeXT's rule."""
    assert choose_grid(640, 480, 9, 384, TileRule('relaxed', 0.0)) == (3, 3)
    assert grid_of('relaxed', (640, 480)) == grid_of('llava_next', (640, 480)) == (2, 2)


def random_sizes(rng, count):
    for width, aspect in zip(rng.integers(2, 3000, count), np.exp(rng.uniform(-2.9, 2.9, count))):
        yield int(width), max(2, int(width * aspect))


@pytest.mark.parametrize('name', TILE_RULES)
def test_no_rule_makes_more_tiles_than_are_allowed(rng, name):
    chosen = set()
    for (width, height), max_tiles in zip(random_sizes(rng, 2000), rng.integers(1, 17, 2000)):
        columns, rows = grid_of(name, (width, height), int(max_tiles))
        assert 1 <= columns * rows <= max_tiles
        chosen.add((columns, rows))
    assert len(chosen) > 12  # otherwise nothing was chosen


@pytest.mark.parametrize('name', ['minicpm', 'relaxed', 'llava_next'])
def test_a_turned_image_gets_the_turned_grid(rng, name):
    for (width, height), max_tiles in zip(random_sizes(rng, 2000), rng.integers(1, 17, 2000)):
        if width == height:
            continue  # a square may have a grid that is not, and stays itself when turned
        turned = grid_of(name, (height, width), int(max_tiles))
        assert turned == grid_of(name, (width, height), int(max_tiles))[::-1]


def test_internvl_sees_a_wide_image_with_other_tiles_than_a_tall_one():
    """It compares width / height, of which a tall image has less to tell apart."""
    assert grid_of('internvl', (2051, 595), 13) == (6, 2)
    assert grid_of('internvl', (595, 2051), 13) == (1, 4)


@pytest.mark.parametrize('name', TILE_RULES)
def test_a_plan_has_the_grid_of_its_rule_in_whole_patches(name):
    plan = plan_tiles(1920, 1080, 9, rule=TileRule(name))
    assert (plan.tiles_wide, plan.tiles_high) == grid_of(name, (1920, 1080), side=448)
    assert plan.tile_width % 14 == plan.tile_height % 14 == 0
    assert 0.8 < plan.tile_width * plan.tile_height / 448**2 < 1.2


def test_one_tile_is_the_overview_under_every_rule():
    for name in TILE_RULES:
        assert plan_tiles(380, 380, 1, rule=TileRule(name)).images == 1
    assert plan_tiles(300, 300, 9, rule=TileRule('relaxed')).images == 1


def test_for_a_model_of_squares_the_image_is_padded(rng):
    image = rng.integers(1, 256, (1536, 768, 3), dtype=np.uint8)
    plan = plan_tiles(768, 1536, 16, 384, TileRule('relaxed'), squares=True)
    assert plan == TilePlan(384, 384, 2, 4, 384, 384, is_padded=True)
    overview, *tiles = slice_image(image, plan)
    assert {part.shape for part in (overview, *tiles)} == {(384, 384, 3)} and len(tiles) == 8
    whole = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, 8, 2)])
    assert np.array_equal(whole, image)  # it fills two by four squares to the pixel
    assert not overview[:, :96].any() and not overview[:, 288:].any()  # keeps its aspect
    shown = Image.fromarray(image).resize((192, 384), Image.BICUBIC)
    assert np.array_equal(overview[:, 96:288], np.array(shown))


def test_a_small_image_is_one_padded_square():
    plan = plan_tiles(640, 64, 1, 384, squares=True)
    assert plan == TilePlan(384, 384, is_padded=True)
    (only,) = slice_image(np.full((64, 640, 3), 9, np.uint8), plan)
    assert only.shape == (384, 384, 3) and 0 < only[:, 0].any(1).sum() < 60


@pytest.mark.parametrize('area, patches', [(1.0, 1024), (0.56, 576), (0.39, 400), (0.25, 256)])
def test_the_overview_has_the_share_of_the_area_that_was_asked_for(area, patches):
    plan = plan_tiles(800, 800, area=area)
    assert plan.source_width * plan.source_height == 196 * patches


@pytest.mark.parametrize('size', [(640, 480), (1920, 1080), (480, 640), (64, 640), (8192, 410)])
def test_an_overview_of_any_area_keeps_its_aspect_and_fits_its_memory(size):
    for area in np.linspace(0.25, 1.0, 16):
        plan = plan_tiles(*size, area=area)
        patches = plan.source_width * plan.source_height // 196
        assert abs(patches / 1024 - area) < 0.15 * area  # sides are whole patches
        assert patches <= max_patches(side=overview_side(448, area))
    assert plan == plan_tiles(*size)


def test_tiles_keep_all_of_their_area_beside_a_smaller_overview():
    whole, small = (plan_tiles(1280, 720, max_tiles=9, area=area) for area in (1.0, 0.25))
    assert (small.tile_width, small.tile_height) == (whole.tile_width, whole.tile_height)
    assert (
        small.source_width * small.source_height < 0.3 * whole.source_width * whole.source_height
    )


@pytest.mark.parametrize('area', [0.24, 1.01, float('nan'), -1.0])
def test_an_area_that_no_overview_has_is_refused_with_what_is_allowed(area):
    with pytest.raises(InputError, match=r'0\.25 to 1 of the area'):
        check_area(area)


def test_a_crop_is_the_named_part_of_the_image():
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    assert (Crop.parse('0.5 0.25 1 1').cut(image) == image[10:, 30:]).all()
    assert (Crop.parse('0,0,0.5,1').cut(image) == image[:, :30]).all()
    assert (Crop.parse('').cut(image) == image).all()
    assert Crop.parse('0 0 0.001 0.001').cut(image).shape == (1, 1, 3)
    assert Crop.parse('0.999 0.999 1 1').cut(image).shape == (1, 1, 3)


@pytest.mark.parametrize(
    'text', ['0 0 1', '0 0 1 1 1', '0 0 0 1', '0 1 1 0.5', '-0.1 0 1 1', '0 0 1.1 1', 'a b c d',
             'nan 0 1 1', '0.5'],
)  # fmt: skip
def test_a_crop_that_is_none_is_refused_with_what_is_allowed(text):
    with pytest.raises(InputError, match='four shares x0 y0 x1 y1'):
        Crop.parse(text)
