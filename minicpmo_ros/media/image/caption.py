# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Texts on an image: a caption at the top, lines at the bottom, a grid of tiles, a frame."""

import textwrap
from dataclasses import dataclass
from unicodedata import east_asian_width

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minicpmo_ros.errors import InputError, in_words

MOST_LINES = 4  # of one text
FILL = '\ue000'  # takes the second column of a wide character while lines are broken
TEXT_SHARE, LEAST_TEXT = 1 / 22, 10.0  # of the image's height; pixels
COLUMN_SHARE = 0.6  # width of a column, of the height of the text
PAPER, PEN, GREEN = (0, 0, 0, 150), (255, 255, 255, 255), (26, 179, 77, 255)
GRID = (255, 255, 255, 110)


@dataclass(frozen=True)
class Caption:
    """What is put on an image."""

    top: str = ''
    texts: tuple = ()  # at the bottom, the last one lowest; each is broken into lines
    has_frame: bool = False
    tiles: tuple = (0, 0)  # columns and rows of a grid; 0: none


def text_height(height: int) -> float:
    """Return the height of the text on an image, in pixels; height: of the image."""
    return max(LEAST_TEXT, height * TEXT_SHARE)


def lines_of(texts, width: int, height: int) -> list:
    """Return texts as the lines that fit on an image of this size, pixels."""
    columns = max(8, int(width / (COLUMN_SHARE * text_height(height))))
    return [line for text in texts for line in wrapped(text, columns)]


def wrapped(text: str, columns: int) -> list:
    """Return at most MOST_LINES lines of so many columns; a wide character takes two."""
    spaced = ''.join(c + FILL if east_asian_width(c) in 'WF' else c for c in text)
    lines = textwrap.wrap(spaced, columns, max_lines=MOST_LINES, placeholder=' ...')
    return [line.replace(FILL, '') for line in lines]


class Captioner:
    """Draws captions in one font."""

    def __init__(self, font_file: str = ''):
        """Take a TrueType or OpenType file; '': Pillow's own font, which has Latin letters alone.

        Raises InputError if the file is no font.
        """
        self._file, self._fonts = font_file, {}  # by height
        self._font(int(LEAST_TEXT))

    def draw(self, pixels: np.ndarray, caption: Caption) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB with a caption on it; what was given stays as it is."""
        image = Image.fromarray(pixels.copy())
        draw, (width, height) = ImageDraw.Draw(image, 'RGBA'), image.size  # blends
        size = int(text_height(height))
        self._draw_grid(draw, width, height, caption.tiles)
        if caption.top:
            self._draw_line(draw, 0, caption.top, size)
        for i, line in enumerate(reversed(lines_of(caption.texts, width, height))):
            self._draw_line(draw, height - (i + 1) * _line_height(size), line, size)
        if caption.has_frame:
            draw.rectangle((0, 0, width - 1, height - 1), outline=GREEN, width=max(2, size // 4))
        return np.asarray(image)

    def _draw_grid(self, draw, width: int, height: int, tiles: tuple) -> None:
        columns, rows = tiles
        for i in range(1, columns):
            draw.line((width * i // columns, 0, width * i // columns, height), fill=GRID)
        for i in range(1, rows):
            draw.line((0, height * i // rows, width, height * i // rows), fill=GRID)

    def _draw_line(self, draw, top: int, text: str, size: int) -> None:
        font, at = self._font(size), (size // 2, top + size // 8)
        try:
            length = draw.textlength(text, font=font)
        except UnicodeEncodeError:  # Pillow before 10.1: Latin-1 alone
            text = text.encode('latin-1', 'replace').decode('latin-1')
            length = draw.textlength(text, font=font)
        right = int(length) + size
        draw.rectangle((0, top, right, top + _line_height(size) - 1), fill=PAPER)
        draw.text(at, text, font=font, fill=PEN)

    def _font(self, size: int):
        if size not in self._fonts:
            self._fonts[size] = self._load(size)
        return self._fonts[size]

    def _load(self, size: int):
        if self._file:
            try:
                return ImageFont.truetype(self._file, size)
            except OSError as error:
                raise InputError(
                    f'{self._file} cannot be used as a font ({in_words(error)}). Give a TrueType '
                    'or OpenType file.'
                ) from error
        try:
            return ImageFont.load_default(size)
        except TypeError:  # Pillow before 10.1: one size
            return ImageFont.load_default()


def _line_height(size: int) -> int:
    return size + size // 3
