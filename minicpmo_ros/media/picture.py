# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures as messages carry them, to contiguous (H, W, 3) uint8 RGB.

Every size is checked before anything is decoded or copied; whatever is wrong with a picture
is an InputError that says what is allowed.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.geometry import check_size

COMPRESSED_FORMATS = ('JPEG', 'PNG')
MAX_COMPRESSED_BYTES = 64 * 2**20
RAW_ENCODINGS = ('rgb8', 'bgr8')
THUMBNAIL_SIDE = 32
# Modes Pillow turns to RGB without loss of meaning; 16-bit pictures are depth, not colour.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')


def decode_compressed(data, stated_format: str = '') -> np.ndarray:
    """Decode a JPEG or PNG, upright as its EXIF orientation says; transparency is dropped.

    data: bytes or anything with a buffer. stated_format: as CompressedImage.msg has it, used to
    recognise depth pictures and to tell what was announced; the bytes themselves decide.
    """
    if 'compressedDepth' in stated_format:
        raise InputError(
            'The picture is a compressed depth image; colour or grey pictures as '
            'JPEG or PNG are allowed. Subscribe to the colour camera.'
        )
    data = memoryview(data).cast('B')
    if not 0 < len(data) <= MAX_COMPRESSED_BYTES:
        raise InputError(
            f'The compressed picture has {len(data)} bytes; allowed are 1 to '
            f'{MAX_COMPRESSED_BYTES}.'
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=COMPRESSED_FORMATS)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise InputError(
            f'The compressed picture (announced as {stated_format!r}) is neither JPEG nor PNG, '
            f'or its header is damaged: {error}'
        ) from error
    check_size(*picture.size)
    if picture.mode not in _MODES:
        raise InputError(
            f'The picture has pixels of kind {picture.mode}; colour or grey of 8 bits is allowed.'
        )
    try:
        return np.array(ImageOps.exif_transpose(picture).convert('RGB'))
    except Exception as error:
        raise InputError(
            f'The compressed picture ({picture.format}, {picture.width}x'
            f'{picture.height}) is damaged or cut off: {error}'
        ) from error


def decode_raw(encoding: str, height: int, width: int, step: int, data) -> np.ndarray:
    """Copy the pixels of an Image.msg.

    encoding: one of RAW_ENCODINGS. step: bytes from row to row, padding included.
    data: height x step bytes, or anything with a buffer of that size.
    """
    if encoding not in RAW_ENCODINGS:
        raise InputError(
            f'The picture encoding is {encoding!r}; allowed are '
            f'{", ".join(RAW_ENCODINGS)}. Convert it, for example with image_proc.'
        )
    check_size(width, height)
    pixels = np.frombuffer(data, np.uint8)
    if step < 3 * width or len(pixels) != height * step:
        raise InputError(
            f'The picture is {width}x{height} {encoding} with a step of {step} bytes and '
            f'{len(pixels)} bytes of data; the step must be at least {3 * width} and the data '
            'height x step bytes. The driver fills the message wrongly.'
        )
    rows = pixels.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    if encoding == 'bgr8':
        rows = rows[..., ::-1]
    return np.array(rows, order='C')


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Give (32, 32, 3) float32 colours 0..255, each the mean of its part of the picture.

    The largest difference of two thumbnails tells whether a picture has changed. A mean over
    them does not: a small thing that comes or turns from red to blue changes few of the cells,
    and grey levels hardly.
    """
    small = Image.fromarray(picture).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.BOX)
    return np.array(small, np.float32)
