# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where a patch is: rows of SigLIP's learned table, and the resampler's 2-D sines.

Patches are counted row by row.
"""

import numpy as np


def bucket_ids(rows: int, columns: int, grid: int = 70) -> np.ndarray:
    """Return the table rows (rows * columns,) int32 for a picture of rows x columns patches.

    The learned grid x grid positions are spread over the picture: index (grid * i) // n of each
    side, in integers (SigLIP as MiniCPM uses it).
    """
    of_row = grid * np.arange(rows) // rows  # (rows,)
    of_column = grid * np.arange(columns) // columns  # (columns,)
    return (grid * of_row[:, None] + of_column).reshape(-1).astype(np.int32)


def sine_grid(width: int, rows: int, columns: int) -> np.ndarray:
    """Return MiniCPM's 2-D positions (rows * columns, width) float32: the column comes first.

    A patch at (y, x) has [sin(x w), cos(x w), sin(y w), cos(y w)], w_k = 10000^(-4k / width).
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    angle_y = np.arange(rows)[:, None] * frequency  # (rows, width / 4)
    angle_x = np.arange(columns)[:, None] * frequency  # (columns, width / 4)
    table = np.empty((rows, columns, width), np.float32)
    for part, angle in enumerate((angle_x, angle_x, angle_y[:, None], angle_y[:, None])):
        wave = np.sin if part % 2 == 0 else np.cos
        table[..., part * (width // 4) : (part + 1) * (width // 4)] = wave(angle)
    return table.reshape(rows * columns, width)
