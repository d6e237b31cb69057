# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Draws frames: coloured shapes on a busy grey, straight at the size the vision encoder reads.

A frame is (height, width, 3) uint8. Shapes are signed distance fields, so that their edges look
like those of a well down-scaled camera picture. About 1 ms a frame.
"""

from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np

from .world import COLORS, COLUMNS, ROWS, SHAPES, Picture, choose, random_picture

PATCH = 14
IMAGE_SIZE = 112
RGB = {
    'red': (214, 30, 32),
    'green': (30, 165, 50),
    'blue': (35, 62, 214),
    'yellow': (236, 220, 40),
    'white': (245, 245, 245),
    'black': (15, 15, 15),
    'purple': (135, 35, 165),
    'orange': (246, 136, 22),
}


def best_size(width, height, side=IMAGE_SIZE):
    """(width, height) of the encoder's picture: area near side^2, sides multiples of the patch.

    The rule of MiniCPM-V's image processor; Python's round (half to even) is part of it.
    """
    ratio = width / height
    new_height = int(side / sqrt(ratio))
    new_width = int(new_height * ratio)
    return tuple(max(round(n / PATCH) * PATCH, PATCH) for n in (new_width, new_height))


# 1:1, 4:3, 16:9, and their neighbours (3:4, 3:2, 16:10).
ASPECTS = ((1, 1), (640, 480), (640, 360), (480, 640), (480, 320), (640, 400))
ASPECT_WEIGHTS = (0.3, 0.25, 0.25, 0.06, 0.07, 0.07)
# Shares of the full area (112 x 112) at which a live second may be looked at.
AREAS = (1.0, 0.77, 0.56, 0.39, 0.25)
AREA_WEIGHTS = (0.5, 0.12, 0.14, 0.14, 0.1)
P_OCCLUDED = 0.12  # of pictures in which noise hides a part of the shapes


@dataclass(frozen=True)
class Drawn:
    """A frame with everything a teacher can ask about it."""

    frame: np.ndarray  # (H, W, 3) uint8
    cover: np.ndarray  # (H, W) float32, how far a shape covers each pixel
    picture: Picture  # shape and color are None where the frame mixes kinds
    cells: tuple  # nine of None or (shape, color): which thirds hold a centre, row-major
    owners: np.ndarray  # (H/14, W/14) int, index of the shape class a patch shows, -1 nothing


def distance(shape, x, y, radius, style):
    """Signed distance (pixels, negative inside) of points x, y to a shape of about `radius`."""
    if shape == 'circle':
        return np.hypot(x, y) - 0.95 * radius
    if shape == 'ring':
        half = (0.17 + 0.09 * style) * radius
        return np.abs(np.hypot(x, y) - radius + half) - half
    if shape == 'square':
        return np.maximum(np.abs(x), np.abs(y)) - 0.84 * radius
    if shape == 'cross':
        x, y, arm = np.abs(x), np.abs(y), (0.26 + 0.1 * style) * radius
        return np.minimum(np.maximum(x - radius, y - arm), np.maximum(y - radius, x - arm))
    if shape == 'triangle':
        y = y - 0.2 * radius
        slopes = np.maximum(0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y)
        return np.maximum(slopes, y) - 0.56 * radius
    # A five-pointed star: fold the plane into one point, then the distance to its edge.
    outer, inner, step = 1.08 * radius, (0.38 + 0.1 * style) * radius, 2 * pi / 5
    angle = np.abs((np.arctan2(x, -y) + step / 2) % step - step / 2)
    away = np.hypot(x, y)
    edge_x, edge_y = inner * cos(step / 2), inner * sin(step / 2)
    normal_x, normal_y = edge_y, outer - edge_x
    dot = (away * np.cos(angle) - outer) * normal_x + away * np.sin(angle) * normal_y
    return dot / sqrt(normal_x**2 + normal_y**2)


def background(width, height, rng):
    """(H, W, 3) float32: grey with a slight tint and one or two textures."""
    x = np.arange(width, dtype=np.float32)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    grey = np.full((height, width), rng.uniform(75, 175), np.float32)
    texture = rng.integers(6)
    if texture in (1, 5):
        grey += (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) / IMAGE_SIZE * 35
    if texture in (2, 5):
        grey += rng.uniform(4, 13) * np.sign(
            np.sin(x / rng.uniform(2, 12) * rng.choice((-1, 1)) + y / rng.uniform(2, 40))
        )
    if texture == 3:
        coarse = rng.normal(0, 12, (4, 5))
        grey += np.kron(coarse, np.ones((height // 4 + 1, width // 5 + 1)))[:height, :width]
    if texture == 4:
        for _ in range(4):
            far = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
            grey += rng.uniform(-30, 30) * np.exp(-((far / rng.uniform(10, 50)) ** 2))
    if rng.random() < 0.7:
        grey += rng.normal(0, rng.uniform(1, 9), grey.shape)
    return grey[..., None] + rng.normal(0, 9, 3).astype(np.float32)


def place(count, radius, width, height, rng):
    """Centres (x, y) of `count` shapes that do not touch; one alone keeps clear of the thirds'
    borders.
    """
    if count == 1:
        column, row = int(rng.integers(3)), int(rng.integers(3))
        x = (column + rng.uniform(0.2, 0.8)) * width / 3
        y = (row + rng.uniform(0.2, 0.8)) * height / 3
        edge = 0.8 * radius
        return [(min(max(x, edge), width - edge), min(max(y, edge), height - edge))]
    while True:
        centres = []
        for _ in range(60):
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            if all((x - a) ** 2 + (y - b) ** 2 > (2.15 * radius) ** 2 for a, b in centres):
                centres.append((x, y))
            if len(centres) == count:
                return centres
        radius *= 0.95


def paint(image, cover, shape, color, centre, radius, rng):
    """Draw one shape into `image` (H, W, 3) float32 and mark it in `cover` (H, W)."""
    height, width = cover.shape
    reach = int(1.3 * radius + 2)
    x0, x1 = max(0, int(centre[0]) - reach), min(width, int(centre[0]) + reach + 1)
    y0, y1 = max(0, int(centre[1]) - reach), min(height, int(centre[1]) + reach + 1)
    x = np.arange(x0, x1, dtype=np.float32)[None] + 0.5 - centre[0]
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - centre[1]
    turn, stretch = rng.uniform(-0.3, 0.3), rng.uniform(0.9, 1.1)
    x, y = (x * cos(turn) - y * sin(turn)) * stretch, (x * sin(turn) + y * cos(turn)) / stretch
    field = distance(shape, x, y, radius, rng.random())
    alpha = np.clip(0.5 - field / rng.uniform(0.8, 1.8), 0, 1)[..., None]
    ink = np.array(RGB[color], np.float32) + rng.normal(0, 11, 3).astype(np.float32)
    if rng.random() < 0.25:  # a little light from one side
        ink = ink + ((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) / radius * 14)[..., None]
    image[y0:y1, x0:x1] += alpha * (ink - image[y0:y1, x0:x1])
    cover[y0:y1, x0:x1] = np.maximum(cover[y0:y1, x0:x1], alpha[..., 0])


def draw(picture, width, height, rng):
    """-> Drawn, of one Picture; its column and row are filled in where it holds one shape."""
    if not picture.count:
        return _draw((), 0, picture, width, height, rng)
    side = sqrt(width * height)
    radius = side * (rng.uniform(0.14, 0.23) if picture.count == 1 else rng.uniform(0.1, 0.14))
    radius = min(radius, 0.3 * min(width, height))
    centres = place(picture.count, radius, width, height, rng)
    things = [(picture.shape, picture.color, c) for c in centres]
    if picture.count == 1:
        column, row = (int(3 * centres[0][0] / width), int(3 * centres[0][1] / height))
        picture = Picture(picture.shape, picture.color, 1, COLUMNS[column], ROWS[row])
    return _draw(things, radius, picture, width, height, rng)


def draw_mixed(width, height, rng):
    """A frame of up to eight different shapes: nobody asks about it, it only teaches to see."""
    count = int(rng.integers(2, 9))
    radius = min(sqrt(width * height) * rng.uniform(0.095, 0.13), 0.16 * min(width, height))
    things = []
    for cell in rng.permutation(9)[:count]:
        row, column = divmod(int(cell), 3)
        centre = (
            (column + rng.uniform(0.42, 0.58)) * width / 3,
            (row + rng.uniform(0.42, 0.58)) * height / 3,
        )
        things.append((choose(rng, SHAPES), choose(rng, COLORS), centre))
    return _draw(things, radius, Picture(None, None, count), width, height, rng)


def _draw(things, radius, picture, width, height, rng):
    image = background(width, height, rng)
    cover = np.zeros((height, width), np.float32)
    owners = np.full((height // PATCH, width // PATCH), -1)
    cells = [None] * 9
    for shape, color, centre in things:
        paint(image, cover, shape, color, centre, radius, rng)
        cells[int(3 * centre[1] / height) * 3 + int(3 * centre[0] / width)] = (shape, color)
    patches = cover.reshape(height // PATCH, PATCH, width // PATCH, PATCH).mean((1, 3))
    for row, column in zip(*np.nonzero(patches > 0.1)):
        x, y = (column + 0.5) * PATCH, (row + 0.5) * PATCH
        nearest = min(things, key=lambda t: (t[2][0] - x) ** 2 + (t[2][1] - y) ** 2)
        owners[row, column] = SHAPES.index(nearest[0])
    image = image * rng.uniform(0.88, 1.1) + rng.normal(0, rng.uniform(0, 3), image.shape)
    frame = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < P_OCCLUDED:
        occlude(frame, rng)
    return Drawn(frame, cover, picture, tuple(cells), owners)


def random_size(rng, area=None):
    """(width, height) of a picture, at one of AREAS."""
    area = area or choose(rng, AREAS, AREA_WEIGHTS)
    return best_size(*choose(rng, ASPECTS, ASPECT_WEIGHTS), IMAGE_SIZE * sqrt(area))


def occlude(frame, rng):
    """Hide a part of a frame (H, W, 3) uint8 behind a patch of grey noise; in place."""
    height, width = frame.shape[:2]
    high, wide = (int(n * rng.uniform(0.25, 0.6)) for n in (height, width))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    grey = rng.uniform(60, 190) + rng.normal(0, 25, (high, wide, 1))
    patch = frame[top : top + high, left : left + wide]
    patch[:] = np.clip(grey + rng.normal(0, 4, patch.shape), 0, 255)


def random_drawn(width, height, rng, p_mixed=0.0):
    if rng.random() < p_mixed:
        return draw_mixed(width, height, rng)
    return draw(random_picture(rng, p_single=0.5), width, height, rng)
