# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How MiniCPM-V and -o size a picture and cut it into tiles (their official image processor).

A picture becomes an overview of about 448 x 448 pixels in its own aspect, sides multiples of
14, and, where it is larger and tiles are allowed, a grid of tiles of the same area each. The
picture is stretched to the grid, never letterboxed; resampling is Pillow's bicubic.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minicpmo_ros.errors import InputError

SIDE = 448  # an overview or a tile has about this side squared, pixels (its image_size)
PATCH = 14
MIN_SIDE, MAX_SIDE = 2, 8192  # allowed pictures
MAX_ASPECT = 20  # beyond this stock llama.cpp overruns a stack


@dataclass(frozen=True)
class TilePlan:
    """Sizes in pixels; without a grid all four tile numbers are 0."""

    source_width: int  # of the overview
    source_height: int
    tiles_wide: int = 0
    tiles_high: int = 0
    tile_width: int = 0
    tile_height: int = 0

    @property
    def pictures(self) -> int:
        """How many pictures the encoder gets: the overview and every tile."""
        return 1 + self.tiles_wide * self.tiles_high


def check_size(width: int, height: int) -> None:
    """Raise InputError unless the picture's sides and aspect are allowed."""
    if not (MIN_SIDE <= min(width, height) and max(width, height) <= MAX_SIDE):
        raise InputError(
            f'The picture is {width}x{height}; sides of {MIN_SIDE} to {MAX_SIDE} '
            'pixels are allowed. Crop or scale it first.'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f'The picture is {width}x{height}; one side may be at most '
            f'{MAX_ASPECT} times the other. Crop it first.'
        )


def best_resize(width: float, height: float, upscale: bool, side: int = SIDE) -> tuple:
    """Give (width, height), multiples of 14, of about side x side pixels in the same aspect."""
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _nearest_multiple(width, PATCH), _nearest_multiple(height, PATCH)


def choose_grid(width: int, height: int, max_tiles: int, side: int = SIDE):
    """Give (columns, rows), as many tiles as the area asks for, +-1, up to max_tiles; or None."""
    multiple = min(math.ceil(width * height / (side * side)), max_tiles)
    if multiple <= 1:
        return None
    grids = [
        (columns, count // columns)
        for count in (multiple - 1, multiple, multiple + 1)
        if 1 < count <= max_tiles
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    aspect = math.log(width / height)
    return min(grids, key=lambda grid: abs(aspect - math.log(grid[0] / grid[1])))


def plan_tiles(width: int, height: int, max_tiles: int = 1, side: int = SIDE) -> TilePlan:
    """Plan a picture of width x height pixels; max_tiles 1 (streaming) means no grid.

    side: image_size of the model, pixels. Raises InputError for a picture that `check_size`
    refuses.
    """
    check_size(width, height)
    grid = choose_grid(width, height, max_tiles, side)
    if grid is None:
        return TilePlan(*best_resize(width, height, True, side))
    columns, rows = grid
    tile = best_resize(
        _nearest_multiple(width, columns) / columns,
        _nearest_multiple(height, rows) / rows,
        True,
        side,
    )
    return TilePlan(*best_resize(width, height, False, side), columns, rows, *tile)


def slice_picture(picture: np.ndarray, plan: TilePlan) -> list:
    """Give the overview and then the tiles row by row, each (h, w, 3) uint8 as planned.

    picture: (H, W, 3) uint8 RGB, of the size that was planned for.
    """
    whole = Image.fromarray(picture)
    pictures = [_resize(whole, plan.source_width, plan.source_height)]
    if plan.tiles_wide:
        width, height = plan.tile_width, plan.tile_height
        refined = _resize(whole, width * plan.tiles_wide, height * plan.tiles_high)
        pictures += [
            np.ascontiguousarray(refined[y : y + height, x : x + width])
            for y in range(0, refined.shape[0], height)
            for x in range(0, refined.shape[1], width)
        ]
    return pictures


def max_patches(max_aspect: float = MAX_ASPECT, side: int = SIDE) -> int:
    """Give the most patches that the overview or a tile of any allowed picture can have.

    Of pictures h pixels high after scaling, the widest is int(side * side / h) wide.
    """
    lowest, highest = int(side / math.sqrt(max_aspect)), int(side * math.sqrt(max_aspect))
    return max(
        _nearest_multiple(height, PATCH) * _nearest_multiple(side * side // height, PATCH)
        for height in range(lowest, highest + 1)
    ) // (PATCH * PATCH)


def _nearest_multiple(length: float, step: int) -> int:
    """Round to a multiple of step, halves to even as Python does, at least one step."""
    return max(round(length / step) * step, step)


def _resize(picture: Image.Image, width: int, height: int) -> np.ndarray:
    return np.array(picture.resize((width, height), Image.BICUBIC))  # (h, w, 3)
