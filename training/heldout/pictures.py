# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Camera pictures of coloured shapes: polygons drawn large by Pillow and scaled down, on walls,
floors and cloths, seen by a camera with noise, a vignette and JPEG.

A Stage is what stays through a clip (the place and the camera), a Layout where the shapes are.
"""

import io
from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from training.world import COLUMNS, ROWS

SIZES = ((240, 240), (320, 320), (320, 240), (400, 300), (320, 180), (448, 252))
SCALE = 4  # of the drawing, before it is scaled down
INKS = {
    'red': (206, 36, 42),
    'green': (42, 152, 62),
    'blue': (44, 74, 206),
    'yellow': (228, 212, 54),
    'white': (238, 239, 236),
    'black': (24, 23, 26),
    'purple': (128, 44, 156),
    'orange': (238, 138, 38),
}
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Stage:
    """A place and a camera."""

    backdrop: np.ndarray  # (H, W, 3) float32
    noise: float  # of the camera, grey levels
    shadow: float  # share of light a shape takes from what lies right below it

    @property
    def size(self) -> tuple:
        """(width, height)"""
        return self.backdrop.shape[1], self.backdrop.shape[0]


@dataclass(frozen=True)
class Layout:
    """Where equal shapes lie and what they look like in detail; pixels and radians."""

    centres: tuple  # of (x, y)
    radius: float
    turn: float
    style: float  # 0..1: thick or thin, sharp or round
    tint: tuple  # of the ink, grey levels

    def cell(self, size: tuple) -> tuple:
        """(column, row) of one shape alone, in thirds of the picture."""
        (x, y), (width, height) = self.centres[0], size
        return COLUMNS[int(3 * x / width)], ROWS[int(3 * y / height)]


def make_stage(rng, size: tuple) -> Stage:
    """Choose a place and a camera."""
    width, height = size
    maker = (_plaster, _bricks, _planks, _cloth, _lawn)[int(rng.integers(5))]
    texture = maker(rng, width, height)
    texture = texture / max(1.0, np.abs(texture).max() / 26)  # (H, W), grey levels
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = x * rng.uniform(-14, 14) + y * rng.uniform(-14, 14)
    vignette = -rng.uniform(0, 22) * (x * x + y * y) / 2
    grey = rng.uniform(85, 165) + texture + light + vignette
    tint = rng.uniform(-1, 1, 3) * 11
    backdrop = (grey[..., None] + tint - tint.mean()).astype(np.float32)
    return Stage(backdrop, rng.uniform(0.8, 4), rng.uniform(0.1, 0.25) * (rng.random() < 0.35))


def make_layout(rng, size: tuple, count: int) -> Layout:
    """Choose where `count` shapes lie: one keeps clear of the borders of thirds, more do not
    touch.
    """
    width, height = size
    side = sqrt(width * height)
    if count == 1:
        radius = min(side * rng.uniform(0.15, 0.215), 0.28 * height)
        spots = [(n * (int(rng.integers(3)) + rng.uniform(0.25, 0.75)) / 3) for n in size]
        centres = [
            tuple(float(np.clip(s, 0.85 * radius, n - 0.85 * radius)) for s, n in zip(spots, size))
        ]
    else:
        radius, centres = side * rng.uniform(0.105, 0.135), []
        while len(centres) < count:
            centres, radius = [], radius * 0.97
            for _ in range(80):
                spot = tuple(float(rng.uniform(1.1 * radius, n - 1.1 * radius)) for n in size)
                if all(
                    (spot[0] - x) ** 2 + (spot[1] - y) ** 2 > (2.3 * radius) ** 2
                    for x, y in centres
                ):
                    centres.append(spot)
        centres = centres[:count]
    return Layout(
        tuple(centres), radius, rng.uniform(-0.25, 0.25), rng.random(), tuple(rng.normal(0, 7, 3))
    )


def outline(shape: str, style: float) -> list:
    """Give the corners of a shape of radius 1 as lists of (x, y); a second list is a hole."""
    if shape in ('circle', 'ring'):
        rim = [(cos(2 * pi * i / 72), sin(2 * pi * i / 72)) for i in range(72)]
        hole = 0.5 + 0.14 * style
        return [[(0.94 * x, 0.94 * y) for x, y in rim]] + (
            [[(hole * x, hole * y) for x, y in rim]] if shape == 'ring' else []
        )
    if shape == 'square':
        half, cut = 0.82, 0.12 * style  # with the corners taken off a little
        edge = [(half - cut, half), (half, half - cut)]
        return [
            [
                *edge,
                *((x, -y) for x, y in edge[::-1]),
                *((-x, -y) for x, y in edge),
                *((-x, y) for x, y in edge[::-1]),
            ]
        ]
    if shape == 'triangle':
        high = 1.06 + 0.1 * style
        return [[(0, -high), (0.98, 0.66), (-0.98, 0.66)]]
    if shape == 'cross':
        arm = 0.27 + 0.08 * style
        quarter = [(arm, -1), (arm, -arm), (1, -arm)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
        return [corners]
    inner = 0.41 + 0.07 * style  # of a star
    return [
        [
            (
                (1.05 if i % 2 == 0 else inner) * sin(pi * i / 5),
                -(1.05 if i % 2 == 0 else inner) * cos(pi * i / 5),
            )
            for i in range(10)
        ]
    ]


def draw(picture, layout: Layout, stage: Stage, rng, veil: float = 0.0) -> bytes:
    """Return a JPEG of a world.Picture, laid out on a stage; `veil`: how much of its width and
    height a curtain of soft grey hides.
    """
    cover = _cover(picture.shape, layout, stage.size)  # L
    rim = ImageChops.subtract(cover, cover.filter(ImageFilter.MinFilter(3)))
    image = stage.backdrop.copy()
    if stage.shadow:
        soft = cover.filter(ImageFilter.GaussianBlur(0.12 * layout.radius))
        offset = int(0.13 * layout.radius)
        fallen = _share(ImageChops.offset(soft, offset, offset))
        image *= 1 - stage.shadow * fallen
    ink = np.array(INKS[picture.color], np.float32) + np.array(layout.tint, np.float32)
    image += _share(cover) * (ink - image)
    if layout.style > 0.6:
        image -= 16 * _share(rim)
    if veil:
        wide, high = (int(side * veil) for side in stage.size)
        left = int(rng.integers(stage.size[0] - wide + 1))
        top = int(rng.integers(stage.size[1] - high + 1))
        curtain = rng.uniform(70, 180) + 12 * _soft(rng, wide, high, 3)[..., None]
        image[top : top + high, left : left + wide] = curtain
    image *= rng.uniform(0.96, 1.04)  # the camera's exposure
    image += rng.normal(0, stage.noise, image.shape)
    file = io.BytesIO()
    frame = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    frame.save(file, 'JPEG', quality=JPEG_QUALITY)
    return file.getvalue()


def _share(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask, np.float32)[..., None] / 255  # (H, W, 1)


def _cover(shape: str, layout: Layout, size: tuple) -> Image.Image:
    """Draw all shapes as a mask, smooth at the edges."""
    large = Image.new('L', (size[0] * SCALE, size[1] * SCALE))
    pen = ImageDraw.Draw(large)
    reach, c, s = layout.radius * SCALE, cos(layout.turn), sin(layout.turn)
    for x0, y0 in layout.centres:
        for value, corners in zip((255, 0), outline(shape, layout.style)):
            pen.polygon(
                [
                    (x0 * SCALE + reach * (c * x - s * y), y0 * SCALE + reach * (s * x + c * y))
                    for x, y in corners
                ],
                fill=value,
            )
    return large.resize(size, Image.LANCZOS)


# Textures: (H, W) float, grey levels around 0.
def _soft(rng, width: int, height: int, cells: int) -> np.ndarray:
    """Random hills, `cells` of them from side to side."""
    coarse = rng.normal(0, 1, (max(2, cells * height // width), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


def _plaster(rng, width, height):
    return sum(rng.uniform(2, 9) / n**0.3 * _soft(rng, width, height, n) for n in (3, 7, 19, 60))


def _bricks(rng, width, height):
    high, joint = rng.integers(18, 40), rng.integers(2, 4)
    long = int(high * rng.uniform(1.8, 2.6))
    y, x = np.mgrid[:height, :width]
    course = y // high
    along = x + course % 2 * (long // 2)
    brick = (course * 31 + along // long * 17) % 97
    wall = rng.uniform(3, 9) * rng.normal(0, 1, 97)[brick]
    return np.where((y % high < joint) | (along % long < joint), rng.choice((-16, 14)), wall)


def _planks(rng, width, height):
    y, x = np.mgrid[:height, :width]
    board = x // rng.integers(30, 70)
    grain = np.sin(y / rng.uniform(30, 80) + 5 * _soft(rng, width, height, 5) + 2.1 * board)
    return 7 * grain + rng.normal(0, 7, board.max() + 1)[board]


def _cloth(rng, width, height):
    y, x = np.mgrid[:height, :width] / rng.uniform(9, 26)
    stripes = (np.floor(x) % 2) + (np.floor(y) % 2)  # checked
    return rng.uniform(5, 11) * (stripes - 1) + 4 * _soft(rng, width, height, 6)


def _lawn(rng, width, height):
    blades = rng.normal(0, 12, (height, width)).astype(np.float32)
    smooth = np.asarray(
        Image.fromarray(blades)
        .resize((width // 2, height // 2), Image.BOX)
        .resize((width, height), Image.BILINEAR)
    )
    return smooth * rng.uniform(0.7, 2) + 6 * _soft(rng, width, height, 8)
