# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes a sensor_msgs/Image, in any encoding of a colour or grey camera, to RGB.

Everything that the message states is checked before anything is allocated; an encoding that is
not in ENCODINGS, or is spelt differently, is refused with the list. Encodings without colour names
are read as cv_bridge publishes them: 8UC1 is mono8, 8UC3 is bgr8 and so on. 16UC1 and 32FC1 are
depth (REP 118), which is refused, unless stated_encoding says that they are grey. Samples of 16
and 32 bits are scaled by the range that they use (to_whole_range).

Demosaicing and YUV use cv_bridge where it works, with the same result: this module rounds as
OpenCV 4 does, bit for bit. The other encodings are views: cv_bridge has no planar YUV, and
rosbags-image ignores `step`.

Samples of 16 bits of which a camera uses few (sensors of 10, 12 and 14 bits, thermal cameras)
are scaled to the whole range: divided by 257 they would be nearly black, or uniformly grey. Each
image is scaled by itself, so that the same message gives the same image live, replayed and alone:

1. The used samples are those between the lowest and the highest OUTLIERS: dead and hot pixels do
   not count, and are clipped.
2. The depth is the smallest of 8, 10, 12, 14 and 16 bits that holds the highest used sample;
   samples are scaled by it. Colours are only scaled, because an offset would change them.
3. Grey that uses less than a quarter of its depth, and at least LEAST_SPAN counts, is a thermal
   or similar image: its used range is stretched to the whole range. Both ends lie on a coarse grid
   (spans of 2^n and 1.5 * 2^n, begins at eighths of the span), so that noise and slow drift do not
   move them, and an unchanged image keeps its look.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.tiling import check_size

AUTO, GREY, DEPTH = MEANINGS = ('auto', 'grey', 'depth')
BAND = 32  # rows converted at a time: in the cache, and little memory for any image; even
# One sample of 16 or 32 bits, of which nothing states what it means.
MEANINGLESS = ('16UC1', '32FC1')
DEPTH_WORDS = ('depth', 'disparity', 'distance', 'range')  # in names of topics
_FIRST, _REVERSED, _GREY = slice(0, 3), slice(2, None, -1), slice(0, 1)
DEPTHS = (8, 10, 12, 14, 16)
OUTLIERS = 5e-4  # share of the samples, at each end
LEAST_SPAN = 32  # counts; below, it is the noise of a scene without contrast
WHOLE = 65535
# Aliases that older releases of cv_bridge do not know.
_NAMES = {'uyvy': 'yuv422', 'yuyv': 'yuv422_yuy2'}
# ITU-R BT.601 with Y of 16 to 235, what YUV cameras send unless told otherwise; in 2^-20.
SHIFT = 20
LUMA, U_BLUE, U_GREEN, V_GREEN, V_RED = 1220542, 2116026, -409993, -852492, 1673527


@dataclass(frozen=True)
class Encoding:
    """The memory layout of an encoding."""

    samples: int  # a pixel, in the first plane
    # (rows (data_rows, step // sample_bytes), height, width, top, bottom) to the rows
    # [top, bottom) of the image: (bottom - top, width, 3 or 1) uint8
    convert: Callable
    sample_bytes: int = 1
    data_height: float = 1  # rows of `step` bytes, in heights of the image
    even: tuple = ()  # which sides must be even
    bridged: bool = False  # cv_bridge does it as well
    is_grey: bool = False


def stated_encoding(stated: str, topic: str = '', meaning: str = AUTO) -> str:
    """Return the encoding, or CompressedImage.format, by which an image of a topic is decoded.

    Depth is published as 16UC1 or 32FC1. So are thermal and infrared images by cameras whose
    driver names no encoding to cv_bridge: these become '16UC1 (grey)' and '32FC1 (grey)'.
    meaning: one of MEANINGS; auto: depth if the name of the topic has one of DEPTH_WORDS.
    """
    encoding, separator, how = stated.partition(';')
    if encoding.strip() not in MEANINGLESS or 'compressedDepth' in how:
        return stated
    if meaning == AUTO:
        name = topic.lower().replace('orange', '')  # which has a range in it, and no depth
        meaning = DEPTH if any(word in name for word in DEPTH_WORDS) else GREY
    return stated if meaning == DEPTH else f'{encoding.strip()} (grey){separator}{how}'


def decode_raw(
    encoding: str, height: int, width: int, step: int, data, is_bigendian: bool = False
) -> np.ndarray:
    """Return the image of an Image.msg as contiguous (height, width, 3) uint8 RGB.

    encoding: one of ENCODINGS; transparency is dropped. step: bytes from row to row, padding
    included. data: bytes or anything with a buffer. is_bigendian: of samples of 16 and 32 bits.
    Raises InputError for whatever is wrong with it.
    """
    lies = _checked(encoding, height, width, step, memoryview(data).nbytes)
    order = '>' if is_bigendian else '<'
    rows = np.ndarray(  # by strides, as a step may be no whole number of samples
        (round(height * lies.data_height), step // lies.sample_bytes),
        f'{order}{"f" if lies.sample_bytes == 4 else "u"}{lies.sample_bytes}',
        memoryview(data),
        strides=(step, lies.sample_bytes),
    )
    if lies.sample_bytes > 1:
        pixels = rows[:, : width * lies.samples].reshape(height, width, lies.samples)
        pixels = float_counts(pixels) if lies.sample_bytes == 4 else pixels
        rows = to_whole_range(pixels, lies.is_grey, 3).reshape(height, -1)
    if lies.bridged:
        rgb = bridged_rgb(encoding, width, rows[:, : width * lies.samples])
        if rgb is not None:
            return rgb
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        rgb[top:bottom] = lies.convert(rows, height, width, top, bottom)
    return rgb


def decode_image(message, encoding: str = '') -> np.ndarray:
    """Return the image of a sensor_msgs/Image, or of anything with its fields, as decode_raw.

    encoding: as stated_encoding has it; '': that of the message.
    """
    return decode_raw(
        encoding or message.encoding,
        message.height,
        message.width,
        message.step,
        message.data,
        bool(message.is_bigendian),
    )


def _checked(encoding: str, height: int, width: int, step: int, n_bytes: int) -> Encoding:
    """Return the encoding of an image; raise InputError if its fields contradict each other."""
    lies = ENCODINGS.get(encoding)
    if lies is None:
        is_depth = encoding in MEANINGLESS
        raise InputError(
            f'The image encoding is {encoding[:40]!r}{", which is depth" * is_depth}; allowed are '
            f'{", ".join(ENCODINGS)}. Subscribe to a colour or grey camera, or correct its driver'
            f'{"; if it is thermal or infrared, set image.single_channel to grey" * is_depth}.'
        )
    check_size(width, height)
    for side, pixels in (('width', width), ('height', height)):
        if side in lies.even and pixels % 2:
            raise InputError(
                f'The image is {width}x{height} {encoding}, of which the {side} must be even. '
                'Crop it first.'
            )
    least = width * lies.samples * lies.sample_bytes
    needed = round(height * lies.data_height) * step
    if step < least or n_bytes != needed:
        planes = '' if lies.data_height == 1 else f'{lies.data_height:g} x '
        raise InputError(
            f'The image is {width}x{height} {encoding} with a step of {step} bytes and '
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
    """Return {name: Encoding} of all that is allowed."""
    table = {}
    for name, samples, order in (
        ('rgb', 3, _FIRST),
        ('bgr', 3, _REVERSED),
        ('rgba', 4, _FIRST),
        ('bgra', 4, _REVERSED),
        ('mono', 1, _GREY),
    ):
        for size in (1, 2):
            table[f'{name}{8 * size}'] = Encoding(
                samples, _interleaved(samples, order), size, is_grey=name == 'mono'
            )
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
    table['16UC1 (grey)'] = table['mono16']
    table['32FC1 (grey)'] = Encoding(1, _interleaved(1, _GREY), 4, is_grey=True)
    return table


ENCODINGS = _table()


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Scale uint16 samples of any shape to uint8, 65535 to 255; uint8 ones are given as is."""
    if samples.dtype.itemsize == 1:
        return samples
    # 65535 / 255 is 257, which is odd: there are no halves to round.
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) uint8 of y (h, w) and of u and v (h / a, w / b), uint8.

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
    """Return (h, w, 3) of a mosaic (h, w), both uint8 or uint16; the sides are at least 2.

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


def to_whole_range(samples: np.ndarray, is_grey: bool, n_counted: int | None = None) -> np.ndarray:
    """Return (h, w, c) uint16 of any byte order, scaled by the range that they use.

    n_counted: how many of the c samples of a pixel say what is used: transparency does not.
    What is given is returned as it is where the whole range is used.
    """
    low, high = _used(samples[..., :n_counted])
    depth = next(bits for bits in DEPTHS if high >> bits == 0)
    begin, span = 0, (1 << depth) - 1
    if is_grey and LEAST_SPAN <= high - low and 4 * (high - low) < 1 << depth:
        begin, span = range_on_grid(low, high)
    if span == WHOLE:
        return samples
    counts = np.arange(1 << 16)
    scaled = np.clip(((counts - begin) * WHOLE + span // 2) // span, 0, WHOLE)
    return scaled.astype(np.uint16)[samples]


def float_counts(samples: np.ndarray) -> np.ndarray:
    """Return floats of any shape, unit and byte order as uint16 counts for to_whole_range.

    The counts begin at 0, or where something is below it, at the negative of their end, a power of
    two: degrees of either scale use a part of them. What is no number is as low as the lowest.
    """
    used = samples[np.isfinite(samples)].astype(np.float64)
    if not used.size:
        return np.zeros(samples.shape, np.uint16)
    low, high = np.quantile(used, (OUTLIERS, 1 - OUTLIERS))
    end = 2.0 ** np.ceil(np.log2(max(abs(low), abs(high), 1e-30)))
    begin = -end if low < 0 else 0.0
    numbers = np.where(np.isfinite(samples), samples, low).astype(np.float64)
    return np.clip((numbers - begin) / (end - begin) * WHOLE + 0.5, 0, WHOLE).astype(np.uint16)


def _used(samples: np.ndarray) -> tuple[int, int]:
    """Return the lowest and the highest sample without the outliers."""
    counts = np.bincount(samples.ravel(), minlength=1 << 16)
    cut = int(OUTLIERS * samples.size)
    low = int(np.argmax(np.cumsum(counts) > cut))
    high = WHOLE - int(np.argmax(np.cumsum(counts[::-1]) > cut))
    return low, high


def range_on_grid(low: int, high: int) -> tuple[int, int]:
    """Return (begin, span) of the least range on the grid that holds both."""
    span = LEAST_SPAN
    while True:
        for wider in (span, span * 3 // 2):
            begin = low - low % (wider // 8)
            if begin + wider >= high:
                return begin, wider
        span *= 2


def bridged_rgb(encoding: str, width: int, rows: np.ndarray) -> np.ndarray | None:
    """Let cv_bridge convert rows (h, samples a row) uint8 or uint16 to (h, width, 3) uint8.

    encoding: as in sensor_msgs/image_encodings.hpp. None: there is no cv_bridge that can.
    It is imported with the first such image, because it loads OpenCV.
    """
    if int(np.__version__.split('.')[0]) > 1:
        return None  # cv_bridge is compiled for the distribution's numpy 1 and crashes under 2
    try:
        from cv_bridge import CvBridge

        rows = rows.astype(rows.dtype.newbyteorder('='))
        message = SimpleNamespace(
            encoding=_NAMES.get(encoding, encoding),
            height=rows.shape[0],
            width=width,
            step=rows.shape[1] * rows.itemsize,
            is_bigendian=int(sys.byteorder == 'big'),
            data=rows.tobytes(),
        )
        rgb = CvBridge().imgmsg_to_cv2(message, 'rgb8')
    except Exception:  # there is none, it lacks its OpenCV, or it is too old for this encoding
        return None
    return np.ascontiguousarray(rgb)
