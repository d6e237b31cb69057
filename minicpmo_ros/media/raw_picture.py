# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The pixels of a sensor_msgs/Image, in any encoding of a colour or grey camera, to RGB.

Everything that the message says of itself is checked before anything is allocated; an encoding
that is not in ENCODINGS, or not spelt so, is refused with the list. What names no colours is taken
as cv_bridge publishes it: 8UC1 is mono8, 8UC3 is bgr8 and so on. 16UC1 and 32FC1 are depth
(REP 118), which is no picture.

Demosaicing and YUV are cv_bridge's where it works, with the same result. The rest is views:
cv_bridge has no planar YUV, and rosbags-image reads over `step`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media import bridge
from minicpmo_ros.media.colors import demosaic, to_8_bits, yuv_to_rgb
from minicpmo_ros.media.geometry import check_size

BAND = 32  # rows converted at a time: in the cache, and little memory for any picture; even
DEPTH = ('16UC1', '32FC1')
_FIRST, _REVERSED, _GREY = slice(0, 3), slice(2, None, -1), slice(0, 1)


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a picture lie."""

    samples: int  # a pixel, in the first plane
    # (rows (data_rows, step // sample_bytes), height, width, top, bottom) to the rows
    # [top, bottom) of the picture: (bottom - top, width, 3 or 1) uint8
    convert: Callable
    sample_bytes: int = 1
    data_height: float = 1  # rows of `step` bytes, in heights of the picture
    even: tuple = ()  # which sides must be even
    bridged: bool = False  # cv_bridge does it as well


def decode_raw(
    encoding: str, height: int, width: int, step: int, data, is_bigendian: bool = False
) -> np.ndarray:
    """Give the picture of an Image.msg as contiguous (height, width, 3) uint8 RGB.

    encoding: one of ENCODINGS; transparency is dropped. step: bytes from row to row, padding
    included. data: bytes or anything with a buffer. is_bigendian: of samples of 16 bits.
    Raises InputError for whatever is wrong with it.
    """
    lies = _checked(encoding, height, width, step, memoryview(data).nbytes)
    order = '>' if is_bigendian else '<'
    rows = np.ndarray(  # by strides, as a step may be no whole number of samples
        (round(height * lies.data_height), step // lies.sample_bytes),
        f'{order}u{lies.sample_bytes}',
        memoryview(data),
        strides=(step, lies.sample_bytes),
    )
    if lies.bridged:
        rgb = bridge.to_rgb(encoding, width, rows[:, : width * lies.samples])
        if rgb is not None:
            return rgb
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        rgb[top:bottom] = lies.convert(rows, height, width, top, bottom)
    return rgb


def decode_image(message) -> np.ndarray:
    """Give the picture of a sensor_msgs/Image, or of anything with its fields, as decode_raw."""
    return decode_raw(
        message.encoding,
        message.height,
        message.width,
        message.step,
        message.data,
        bool(message.is_bigendian),
    )


def _checked(encoding: str, height: int, width: int, step: int, n_bytes: int) -> Encoding:
    """Give the encoding of a picture that agrees with itself."""
    lies = ENCODINGS.get(encoding)
    if lies is None:
        depth = ', which is depth' if encoding in DEPTH else ''
        raise InputError(
            f'The picture encoding is {encoding[:40]!r}{depth}; allowed are '
            f'{", ".join(ENCODINGS)}. Subscribe to a colour or grey camera, or correct its driver.'
        )
    check_size(width, height)
    for side, pixels in (('width', width), ('height', height)):
        if side in lies.even and pixels % 2:
            raise InputError(
                f'The picture is {width}x{height} {encoding}, of which the {side} must be even. '
                'Crop it first.'
            )
    least = width * lies.samples * lies.sample_bytes
    needed = round(height * lies.data_height) * step
    if step < least or n_bytes != needed:
        planes = '' if lies.data_height == 1 else f'{lies.data_height:g} x '
        raise InputError(
            f'The picture is {width}x{height} {encoding} with a step of {step} bytes and '
            f'{n_bytes} bytes of data; the step must be at least {least}, and the data '
            f'{planes}height x step = {needed} bytes. The driver fills the message wrongly.'
        )
    return lies


def _interleaved(samples: int, order: slice) -> Callable:
    def convert(rows, height, width, top, bottom):
        pixels = rows[top:bottom, : width * samples].reshape(bottom - top, width, samples)
        return to_8_bits(pixels[..., order])

    return convert


def _mosaic(pattern: str) -> Callable:
    def convert(rows, height, width, top, bottom):
        above = max(top - 2, 0)  # neighbours, and the pattern begins anew
        rgb = demosaic(rows[above : bottom + 2, :width], pattern)
        return to_8_bits(rgb[top - above : bottom - above])

    return convert


def _yuv_422(y: int, u: int, v: int) -> Callable:
    """Four bytes are two pixels; y, u, v: the first of each in them."""

    def convert(rows, height, width, top, bottom):
        pixels = rows[top:bottom, : 2 * width]
        return yuv_to_rgb(pixels[:, y::2], pixels[:, u::4], pixels[:, v::4])

    return convert


def _yuv_planes(u: int, v: int, down: int) -> Callable:
    """One plane of y, then one of u and v in turn for `down` x `down` pixels each."""

    def convert(rows, height, width, top, bottom):
        # The rows of the second plane are 2 / down as long as those of the first.
        plane = rows[height:].reshape(height // down, -1)
        chroma = plane[top // down : bottom // down, : 2 * width // down]
        return yuv_to_rgb(rows[top:bottom, :width], chroma[:, u::2], chroma[:, v::2])

    return convert


def _table() -> dict:
    """Give {name: Encoding} of all that is allowed."""
    table = {}
    for name, samples, order in (
        ('rgb', 3, _FIRST),
        ('bgr', 3, _REVERSED),
        ('rgba', 4, _FIRST),
        ('bgra', 4, _REVERSED),
        ('mono', 1, _GREY),
    ):
        for size in (1, 2):
            table[f'{name}{8 * size}'] = Encoding(samples, _interleaved(samples, order), size)
    for pattern in ('rggb', 'bggr', 'gbrg', 'grbg'):
        for size in (1, 2):
            table[f'bayer_{pattern}{8 * size}'] = Encoding(1, _mosaic(pattern), size, bridged=True)
    uyvy = Encoding(2, _yuv_422(1, 0, 2), even=('width',), bridged=True)
    yuyv = Encoding(2, _yuv_422(0, 1, 3), even=('width',), bridged=True)
    table |= {'yuv422': uyvy, 'uyvy': uyvy, 'yuv422_yuy2': yuyv, 'yuyv': yuyv}
    both = ('width', 'height')
    table['nv12'] = Encoding(1, _yuv_planes(0, 1, down=2), data_height=1.5, even=both)
    table['nv21'] = Encoding(1, _yuv_planes(1, 0, down=2), data_height=1.5, even=both)
    table['nv24'] = Encoding(1, _yuv_planes(0, 1, down=1), data_height=3)
    for name, same in (
        ('8UC1', 'mono8'),
        ('8UC3', 'bgr8'),
        ('8UC4', 'bgra8'),
        ('16UC3', 'bgr16'),
        ('16UC4', 'bgra16'),
    ):
        table[name] = table[same]
    return table


ENCODINGS = _table()
