# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What cameras send instead of RGB, to RGB: mosaics behind Bayer filters, YUV, 16 bits.

Rounded as OpenCV 4 does, bit for bit, so that a picture is the same whether cv_bridge or this
converts it.
"""

import numpy as np

# ITU-R BT.601 with Y of 16 to 235, what YUV cameras send unless told otherwise; in 2^-20.
SHIFT = 20
LUMA, U_BLUE, U_GREEN, V_GREEN, V_RED = 1220542, 2116026, -409993, -852492, 1673527


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Scale uint16 samples of any shape to uint8, 65535 to 255; uint8 ones are given as is."""
    if samples.dtype.itemsize == 1:
        return samples
    # 65535 / 255 is 257, which is odd: there are no halves to round.
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Give (h, w, 3) uint8 of y (h, w) and of u and v (h / a, w / b), uint8.

    One u and v are of a x b pixels; between these nothing is interpolated.
    """
    (height, width), (rows, columns) = y.shape, u.shape
    luma = np.maximum(y.astype(np.int32) - 16, 0) * LUMA
    luma = luma.reshape(rows, height // rows, columns, width // columns)
    u, v = u.astype(np.int32) - 128, v.astype(np.int32) - 128  # (rows, columns)
    rgb = np.empty((*luma.shape, 3), np.uint8)
    for i, chroma in enumerate((V_RED * v, V_GREEN * v + U_GREEN * u, U_BLUE * u)):
        chroma += 1 << (SHIFT - 1)  # rounds the shift
        rgb[..., i] = np.clip((luma + chroma[:, None, :, None]) >> SHIFT, 0, 255)
    return rgb.reshape(height, width, 3)


def demosaic(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    """Give (h, w, 3) of a mosaic (h, w), both uint8 or uint16; the sides are at least 2.

    pattern: the colours of the upper left 2 x 2 pixels, such as 'rggb'. Missing colours are means
    of the 2 or 4 nearest pixels that have them; the outermost pixels copy their inner neighbours.
    """
    height, width = mosaic.shape
    wide = np.pad(mosaic, 1, mode='reflect').astype(np.uint32)  # of 2 x 2: the colours go on
    rgb = np.empty((height, width, 3), mosaic.dtype)
    for site, color in enumerate(pattern):
        top, left = divmod(site, 2)

        def near(down, right, top=top, left=left):
            top, left = 1 + top + down, 1 + left + right
            return wide[top : height + 1 + down : 2, left : width + 1 + right : 2]

        beside = near(0, -1) + near(0, 1)
        above = near(-1, 0) + near(1, 0)
        here = rgb[top::2, left::2]
        here[..., 'rgb'.index(color)] = near(0, 0)
        if color == 'g':
            here[..., 'rgb'.index(pattern[site ^ 1])] = (beside + 1) >> 1
            here[..., 'rgb'.index(pattern[site ^ 2])] = (above + 1) >> 1
        else:
            corners = near(-1, -1) + near(-1, 1) + near(1, -1) + near(1, 1)
            here[..., 1] = (beside + above + 2) >> 2
            here[..., 'rgb'.index(pattern[site ^ 3])] = (corners + 2) >> 2
    rgb[:, 0], rgb[:, -1] = rgb[:, 1], rgb[:, -2]
    rgb[0], rgb[-1] = rgb[1], rgb[-2]
    return rgb
