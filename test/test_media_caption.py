# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Texts on an image: they are where they belong, and leave the rest of the image as it is."""

import numpy as np
import pytest
from PIL import ImageFont

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.caption import (
    MOST_LINES,
    Caption,
    Captioner,
    lines_of,
    text_height,
    wrapped,
)

HEIGHT, WIDTH = 240, 320


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def changed(pixels, caption) -> np.ndarray:
    """Give which pixels a caption changes, (H, W) bool."""
    return (Captioner().draw(pixels, caption) != pixels).any(2)


def test_an_empty_caption_changes_nothing(pixels):
    assert not changed(pixels, Caption()).any()


def test_texts_take_their_lines_at_the_edges_and_no_more(pixels):
    before = pixels.copy()
    found = changed(pixels, Caption('the top', ('which is it?', 'red')))
    rows = np.flatnonzero(found.any(1))
    size = int(text_height(HEIGHT))
    n_lines = len(lines_of(('which is it?', 'red'), WIDTH, HEIGHT))
    assert n_lines == 2 and rows[0] == 0 and rows[-1] == HEIGHT - 1
    middle = rows[(rows > 2 * size) & (rows < HEIGHT - (n_lines + 1) * 1.5 * size)]
    assert not len(middle)
    assert (pixels == before).all()


def test_other_texts_are_other_pixels(pixels):
    red, blue = (
        changed(np.zeros_like(pixels), Caption(texts=(text,))) for text in ('red', 'blue')
    )
    assert (red != blue).any()


def test_a_frame_goes_around_and_a_grid_divides(pixels):
    frame = changed(pixels, Caption(has_frame=True))
    assert frame[0].mean() > 0.9 and frame[:, -1].mean() > 0.9 and not frame[20:-20, 20:-20].any()
    grid = changed(np.zeros_like(pixels), Caption(tiles=(2, 3)))
    columns, rows = np.flatnonzero(grid.all(0)), np.flatnonzero(grid.all(1))
    assert list(columns) == [WIDTH // 2] and list(rows) == [HEIGHT // 3, 2 * HEIGHT // 3]


@pytest.mark.parametrize('shape', [(1, 1), (3, 500), (500, 3), (1080, 1920)])
def test_an_image_of_any_shape_takes_any_text(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    caption = Caption('x' * 300, ('a\n\tb\0c', '什么 😀 \u202e', 'word ' * 300), True, (3, 3))
    assert Captioner().draw(pixels, caption).shape == pixels.shape


def test_a_font_of_few_letters_shows_what_it_can(pixels, monkeypatch):
    """As Pillow before 10.1, whose own font has one size and Latin-1 alone."""
    real = getattr(ImageFont, 'load_default_imagefont', ImageFont.load_default)

    def load_default(*size):
        if size:
            raise TypeError('load_default() takes 0 positional arguments but 1 was given')
        return real()

    monkeypatch.setattr(ImageFont, 'load_default', load_default)
    assert changed(pixels, Caption(texts=('红 is red',))).any()


def test_a_file_that_is_no_font_is_told(tmp_path):
    path = tmp_path / 'a.ttf'
    path.write_text('nothing')
    for file in (path, tmp_path / 'missing.ttf'):
        with pytest.raises(InputError, match='TrueType'):
            Captioner(str(file))


def test_a_wide_character_takes_two_columns_and_long_texts_end_in_dots():
    assert wrapped('ab cd', 4) == ['ab', 'cd']
    assert wrapped('红色的圆', 4) == ['红色', '的圆']
    assert len(wrapped('word ' * 100, 12)) == MOST_LINES
    assert wrapped('word ' * 100, 12)[-1].endswith('...')
    assert wrapped('', 9) == []
