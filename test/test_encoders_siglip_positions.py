# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Positions of patches, by their definitions."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minicpmo_ros.encoders.siglip.encoder import bucket_ids, largest_grid, sine_grid
from minicpmo_ros.media.image.tiling import plan_tiles

GOLDEN = Path(__file__).parent / 'golden/siglip_positions.json'


@pytest.mark.parametrize('rows,columns', [(32, 32), (24, 43), (43, 24), (101, 10), (70, 70)])
def test_buckets_spread_the_table_over_the_picture(rows, columns):
    ids = bucket_ids(rows, columns).reshape(rows, columns)
    assert ids.dtype == np.int32
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        expected = int(70 * row / rows + 1e-9) * 70 + int(70 * column / columns + 1e-9)
        assert ids[row, column] == expected
    assert (ids // 70 == ids[:, :1] // 70).all() and (ids % 70 == ids[:1] % 70).all()


def test_rows_of_the_table_are_those_of_the_official_rule_for_every_grid_that_can_occur():
    differing = json.loads(GOLDEN.read_text())
    longest = largest_grid(SimpleNamespace(takes_squares=False, image_size=448), 1).columns
    assert len(differing) >= longest
    for count, exceptions in enumerate(differing, 1):
        expected = 70 * np.arange(count) // count
        for patch, row in exceptions:
            expected[patch] = row
        assert (bucket_ids(count, 1).reshape(-1) == 70 * expected).all(), count
        assert (bucket_ids(1, count).reshape(-1) == expected).all(), count
    differ = [count for count, exceptions in enumerate(differing, 1) if exceptions]
    assert differ[:5] == [25, 49, 50, 55, 58]


def test_a_camera_of_16_to_10_has_a_grid_on_which_the_rules_differ():
    for width, height in ((640, 400), (1280, 800), (1920, 1200)):
        plan = plan_tiles(width, height, 1)
        rows, columns = plan.source_height // 14, plan.source_width // 14
        assert (rows, columns) == (25, 40)
        in_integers = 70 * (70 * np.arange(25) // 25)[:, None] + 70 * np.arange(40) // 40
        differ = bucket_ids(25, 40).reshape(25, 40) != in_integers
        assert np.flatnonzero(differ.any(axis=1)).tolist() == [5, 10, 15, 20]


def test_sines_have_the_column_first():
    table = sine_grid(16, 3, 5).reshape(3, 5, 16)
    omega = 10000.0 ** (-np.arange(4) / 4)
    for y, x in ((0, 0), (2, 4), (1, 3)):
        expected = np.concatenate(
            [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        )
        assert np.allclose(table[y, x], expected, atol=1e-6)
