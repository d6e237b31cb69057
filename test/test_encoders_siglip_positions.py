# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Positions of patches, by their definitions."""

import numpy as np
import pytest

from minicpmo_ros.encoders.siglip_positions import bucket_ids, sine_grid


@pytest.mark.parametrize('rows,columns', [(32, 32), (24, 43), (43, 24), (101, 10), (70, 70)])
def test_buckets_spread_the_table_over_the_picture(rows, columns):
    ids = bucket_ids(rows, columns).reshape(rows, columns)
    assert ids.dtype == np.int32
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        expected = int(70 * row / rows + 1e-9) * 70 + int(70 * column / columns + 1e-9)
        assert ids[row, column] == expected
    assert (ids // 70 == ids[:, :1] // 70).all() and (ids % 70 == ids[:1] % 70).all()


def test_sines_have_the_column_first():
    table = sine_grid(16, 3, 5).reshape(3, 5, 16)
    omega = 10000.0 ** (-np.arange(4) / 4)
    for y, x in ((0, 0), (2, 4), (1, 3)):
        expected = np.concatenate(
            [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        )
        assert np.allclose(table[y, x], expected, atol=1e-6)
