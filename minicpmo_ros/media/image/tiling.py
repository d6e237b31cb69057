# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Sizes an image and cuts it into tiles as MiniCPM-V and -o do (their official image processor).

The image becomes an overview of about 448 x 448 pixels in its own aspect, with sides that are
multiples of 14. If it is larger and tiles are allowed, it also becomes a grid of tiles of the same
area each. It is stretched to the grid, never letterboxed; resampling is Pillow's bicubic. The
overview may have a smaller area than the model was trained for: time falls with it. Before all
that, an image may be cropped.

How many columns and rows the grid has, a rule says: MiniCPM's own, or that of LLaVA-NeXT, of
BlueLM-V-3B ('relaxed', arXiv 2411.10640) or of InternVL 1.5. The others were made for models that
see square tiles; here they choose the grid only.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minicpmo_ros.config import TILE_RULES, VISION
from minicpmo_ros.errors import InputError

SIDE = 448  # an overview or a tile has about this side squared, pixels (its image_size)
PATCH = 14
MIN_SIDE, MAX_SIDE = 2, 8192  # allowed images
THUMBNAIL_SIDE = 32
ROUNDING = 2  # levels by which thumbnails of the same image may differ
SIGMAS = 6  # of the noise of a thumbnail: what 3072 colours hardly ever differ by
MAX_ASPECT = 20  # beyond this stock llama.cpp overruns a stack
MIN_AREA = 0.25  # of the overview; on nano half of the answers about images are lost below it


@dataclass(frozen=True)
class Decoded:
    """An image as it was needed: of its own size, or smaller."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    width: int  # of the image itself, upright
    height: int

    @classmethod
    def whole(cls, pixels: np.ndarray) -> 'Decoded':
        """Return an image of its own size."""
        return cls(pixels, pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class TileRule:
    """How the grid of tiles is chosen.

    alpha: of 'relaxed' alone: a grid must show this share more of the image's pixels to be worth
    more tiles. Not 0: then no two grids are equally good, so the first keeps every tie, which is
    the largest; 0 is not LLaVA-NeXT.
    """

    name: str = VISION.tile_rule  # of TILE_RULES
    alpha: float = VISION.tile_alpha


DEFAULT_RULE = TileRule()


@dataclass(frozen=True)
class TilePlan:
    """Sizes in pixels; without a grid all four tile numbers are 0."""

    source_width: int  # of the overview
    source_height: int
    tiles_wide: int = 0
    tiles_high: int = 0
    tile_width: int = 0
    tile_height: int = 0
    is_padded: bool = False  # the image keeps its aspect, what is left of the canvas is black

    @property
    def images(self) -> int:
        """How many images the encoder gets: the overview and every tile."""
        return 1 + self.tiles_wide * self.tiles_high


@dataclass(frozen=True)
class Crop:
    """The part of an image that is seen, as shares of its width and height from the top left."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    @classmethod
    def parse(cls, text: str) -> 'Crop':
        """Read 'x0 y0 x1 y1', with or without commas; '': all. Raises InputError."""
        try:
            crop = cls(*map(float, text.replace(',', ' ').split()))
        except (ValueError, TypeError):
            crop = None
        is_given = len(text.replace(',', ' ').split()) in (0, 4)
        if crop is None or not (
            is_given and 0 <= crop.left < crop.right <= 1 and 0 <= crop.top < crop.bottom <= 1
        ):
            raise InputError(
                f'vision.crop is {text!r}; allowed are four shares x0 y0 x1 y1 with '
                '0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, such as "0 0.25 1 1" for all but the '
                'upper quarter, and nothing for the whole image.'
            )
        return crop

    def size(self, width: int, height: int) -> tuple:
        """Return (width, height) of the part of an image of that size, pixels."""
        x0, x1 = _edges(self.left, self.right, width)
        y0, y1 = _edges(self.top, self.bottom, height)
        return x1 - x0, y1 - y0

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the part of an image (H, W, 3), contiguous; edges fall on whole pixels."""
        height, width = image.shape[:2]
        x0, x1 = _edges(self.left, self.right, width)
        y0, y1 = _edges(self.top, self.bottom, height)
        return np.ascontiguousarray(image[y0:y1, x0:x1])


WHOLE = Crop()


def _edges(begin: float, end: float, length: int) -> tuple:
    """Return the first pixel and the one behind the last; at least one pixel."""
    first = min(round(begin * length), length - 1)
    return first, max(round(end * length), first + 1)


def overview_side(side: int, area: float) -> float:
    """Return the side of a square overview of that share of side x side, pixels."""
    return side * math.sqrt(area)


def reserved_area(area: float, max_tiles: int, look_tiles: int) -> float:
    """Return the largest area that an encoder needs memory for, a share of the model's.

    Tiles, and images that a question looks at, have all of it; without them `area` is enough.
    """
    return 1.0 if max_tiles > 1 or look_tiles else area


def check_area(area: float, largest: float = 1.0) -> float:
    """Return the area of overviews, a share of the model's; raise InputError if it is not one."""
    if not MIN_AREA <= area <= largest:
        raise InputError(
            f'The area of the overview is {area}; {MIN_AREA} to {largest:g} of the area that the '
            'model was trained with is allowed. Change vision.area.'
        )
    return area


def check_size(width: int, height: int) -> None:
    """Raise InputError unless the image's sides and aspect are allowed."""
    if not (MIN_SIDE <= min(width, height) and max(width, height) <= MAX_SIDE):
        raise InputError(
            f'The image is {width}x{height}; sides of {MIN_SIDE} to {MAX_SIDE} '
            'pixels are allowed. Crop or scale it first.'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f'The image is {width}x{height}; one side may be at most '
            f'{MAX_ASPECT} times the other. Crop it first.'
        )


def best_resize(width: float, height: float, upscale: bool, side: float = SIDE) -> tuple:
    """Return (width, height), multiples of 14, of about side x side pixels in the same aspect."""
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _nearest_multiple(width, PATCH), _nearest_multiple(height, PATCH)


def choose_grid(
    width: int, height: int, max_tiles: int, side: int = SIDE, rule: TileRule = DEFAULT_RULE
) -> tuple:
    """Return (columns, rows) of at most max_tiles tiles; (1, 1): the overview is enough.

    side: of a square tile as the model was trained, pixels.
    """
    return _CHOOSE[rule.name](width, height, max_tiles, side, rule.alpha)


def _minicpm(width: int, height: int, max_tiles: int, side: int, _: float) -> tuple:
    """Take as many tiles as the area needs, +-1, in the aspect that is nearest in logarithm."""
    multiple = min(math.ceil(width * height / (side * side)), max_tiles)
    if multiple <= 1:
        return 1, 1
    grids = [
        (columns, count // columns)
        for count in (multiple - 1, multiple, multiple + 1)
        if 1 < count <= max_tiles
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    aspect = math.log(width / height)
    return min(grids, key=lambda grid: abs(aspect - math.log(grid[0] / grid[1])))


def _llava_next(width: int, height: int, max_tiles: int, side: int, _: float) -> tuple:
    """Show the most of the image's pixels; of grids that show as many, leave the least empty."""

    def worth(grid: tuple) -> tuple:
        shown, wasted = _shown(width, height, grid, side)
        return shown, -wasted

    return max(_squarish_grids(max_tiles), key=worth)


def _relaxed(width: int, height: int, max_tiles: int, side: int, alpha: float) -> tuple:
    """Go from the largest grid down, and take a smaller one that shows nearly as much.

    What counts is compared with the grid taken last, so the order is a part of the rule.
    """
    best, most_shown, least_wasted = None, 0, math.inf
    for grid in reversed(_squarish_grids(max_tiles)):
        shown, wasted = _shown(width, height, grid, side)
        shows_more = shown - most_shown > alpha * most_shown
        shows_as_much = most_shown - shown < alpha * most_shown
        if shows_more or (shows_as_much and wasted < least_wasted):
            best, most_shown, least_wasted = grid, shown, wasted
    return best


def _internvl(width: int, height: int, max_tiles: int, side: int, _: float) -> tuple:
    """Take the nearest aspect; of several grids of one, the largest that the image half fills."""
    best, nearest = (1, 1), math.inf
    for count in range(1, max_tiles + 1):
        for columns in range(1, count + 1):
            rows = count // columns
            if columns * rows != count:
                continue
            distance = abs(width / height - columns / rows)
            is_filled = width * height > 0.5 * side * side * count
            if distance < nearest or (distance == nearest and is_filled):
                best, nearest = (columns, rows), distance
    return best


_CHOOSE = dict(zip(TILE_RULES, (_minicpm, _relaxed, _llava_next, _internvl)))


def _squarish_grids(max_tiles: int) -> list:
    """Return the grids of up to max_tiles tiles, no side longer than a square of them needs.

    9 gives the papers' grids of 1 to 3 by 1 to 3, 16 those of 1 to 4.
    """
    longest = math.isqrt(max_tiles - 1) + 1
    return [
        (columns, rows)
        for columns in range(1, longest + 1)
        for rows in range(1, longest + 1)
        if columns * rows <= max_tiles
    ]


def _shown(width: int, height: int, grid: tuple, side: int) -> tuple:
    """Return how many pixels of the image a grid of square tiles shows, and how many are spare."""
    canvas_width, canvas_height = grid[0] * side, grid[1] * side
    scale = min(canvas_width / width, canvas_height / height)
    shown = min(int(width * scale) * int(height * scale), width * height)
    return shown, canvas_width * canvas_height - shown


def plan_tiles(
    width: int,
    height: int,
    max_tiles: int = 1,
    side: int = SIDE,
    rule: TileRule = DEFAULT_RULE,
    squares: bool = False,
    area: float = 1.0,
) -> TilePlan:
    """Plan an image of width x height pixels; max_tiles 1 (streaming) means no grid.

    side: image_size of the model, pixels. squares: for a model that takes squares of `side` only:
    the image is padded, not stretched. area: of the overview, a share of side x side, but with
    squares; tiles have all of it. Raises InputError for an image that `check_size` refuses.
    """
    check_size(width, height)
    columns, rows = choose_grid(width, height, max_tiles, side, rule)
    if squares:
        grid = (columns, rows, side, side) if columns * rows > 1 else (0, 0, 0, 0)
        return TilePlan(side, side, *grid, is_padded=True)
    if columns * rows == 1:
        return TilePlan(*best_resize(width, height, True, overview_side(side, area)))
    tile = best_resize(
        _nearest_multiple(width, columns) / columns,
        _nearest_multiple(height, rows) / rows,
        True,
        side,
    )
    overview = best_resize(width, height, False, overview_side(side, area))
    return TilePlan(*overview, columns, rows, *tile)


def slice_image(image: np.ndarray, plan: TilePlan) -> list:
    """Return the overview and then the tiles row by row, each (h, w, 3) uint8 as planned.

    image: (H, W, 3) uint8 RGB, of the size that was planned for or smaller (Decoded).
    """
    whole, resize = Image.fromarray(image), _pad if plan.is_padded else _resize
    images = [resize(whole, plan.source_width, plan.source_height)]
    if plan.tiles_wide:
        width, height = plan.tile_width, plan.tile_height
        refined = resize(whole, width * plan.tiles_wide, height * plan.tiles_high)
        images += [
            np.ascontiguousarray(refined[y : y + height, x : x + width])
            for y in range(0, refined.shape[0], height)
            for x in range(0, refined.shape[1], width)
        ]
    return images


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return (32, 32, 3) float32 colours 0..255, each the mean of its part of the image.

    The largest difference of two thumbnails tells whether an image has changed. A mean over
    them does not: a small thing that comes or turns from red to blue changes few of the cells,
    and grey levels hardly.
    """
    small = Image.fromarray(image).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.BOX)
    return np.array(small, np.float32)


def thumbnail_noise(image: np.ndarray) -> float:
    """Return how much noise (standard deviation, levels) a cell of an image's thumbnail has.

    Estimated by neighbouring pixels, of which most look at the same thing.
    """
    green = image[::8, :, 1].astype(np.int16)
    steps = np.abs(np.diff(green, axis=1))
    of_pixel = float(np.median(steps)) / 0.954  # the median of |a - b| of two Gaussians
    return of_pixel / math.sqrt(max(1.0, image.shape[0] * image.shape[1] / THUMBNAIL_SIDE**2))


def has_changed(old: np.ndarray, new: np.ndarray, noise: float, threshold: float) -> bool:
    """Tell by two thumbnails whether an image has changed.

    It has if a colour differs by `threshold` levels, where the image uses all 255 of them; by as
    many less where it uses fewer, as at night, but by more than rounding and noise do.
    """
    difference = np.abs(new - old).max()
    span = max(old.max(), new.max()) - min(old.min(), new.min())
    least = max(threshold * span / 255, ROUNDING + SIGMAS * math.sqrt(2) * noise)
    return bool(difference >= min(threshold, least))


def max_patches(max_aspect: float = MAX_ASPECT, side: float = SIDE) -> int:
    """Return the most patches that the overview or a tile of any allowed image can have.

    Of images h pixels high after scaling, the widest is int(side * side / h) wide.
    """
    lowest, highest = int(side / math.sqrt(max_aspect)), int(side * math.sqrt(max_aspect))
    return max(
        _nearest_multiple(height, PATCH) * _nearest_multiple(int(side * side / height), PATCH)
        for height in range(lowest, highest + 1)
    ) // (PATCH * PATCH)


def _nearest_multiple(length: float, step: int) -> int:
    """Round to a multiple of step, halves to even as Python does, at least one step."""
    return max(round(length / step) * step, step)


def _resize(image: Image.Image, width: int, height: int) -> np.ndarray:
    return np.array(image.resize((width, height), Image.BICUBIC))  # (h, w, 3)


def _pad(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Scale an image into the middle of a black canvas."""
    scale = min(width / image.width, height / image.height)
    shown_width = max(1, round(image.width * scale))
    shown_height = max(1, round(image.height * scale))
    left, top = (width - shown_width) // 2, (height - shown_height) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    shown = _resize(image, shown_width, shown_height)
    canvas[top : top + shown_height, left : left + shown_width] = shown
    return canvas
