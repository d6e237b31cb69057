# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Compressed pictures as messages carry them, to contiguous (H, W, 3) uint8 RGB.

Every size is checked before anything is decoded; whatever is wrong with a picture is an
InputError that says what is allowed.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.geometry import check_size
from minicpmo_ros.media.raw_picture import decode_raw

COMPRESSED_FORMATS = ('JPEG', 'PNG', 'WEBP')
MAX_COMPRESSED_BYTES = 64 * 2**20
THUMBNAIL_SIDE = 32
# Modes Pillow turns to RGB without loss of meaning.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
_MODES_16_BITS = ('I', 'I;16', 'I;16B', 'I;16L')  # of grey, as Pillow's releases name them
_EXIF_ORIENTATION = 0x0112


def decode_compressed(data, stated_format: str = '') -> np.ndarray:
    """Decode a JPEG, PNG or WebP, upright as its EXIF orientation says; transparency is dropped.

    data: bytes or anything with a buffer. stated_format: as CompressedImage.msg has it. The bytes
    decide what they are; what is stated tells depth from grey and a mosaic from a grey picture,
    which the bytes do not: '16UC1; png compressed ' is depth, 'mono16; png compressed ' grey of
    16 bits, and 'bayer_rggb8; jpeg compressed ' a mosaic stored as if it were grey.
    """
    data = memoryview(data).cast('B')
    if not 0 < len(data) <= MAX_COMPRESSED_BYTES:
        raise InputError(
            f'The compressed picture has {len(data)} bytes; allowed are 1 to '
            f'{MAX_COMPRESSED_BYTES}.'
        )
    picture = _open(data, stated_format)
    check_size(*picture.size)
    stored_as = _stored_as(picture.mode, stated_format)
    try:
        picture.load()  # here, because NumPy 1 swallows what is raised inside np.array
        if stored_as:
            samples = np.asarray(picture).astype('<u2' if stored_as.endswith('16') else 'u1')
            width, height = picture.size
            step = samples.strides[0]
            return decode_raw(stored_as, height, width, step, samples.tobytes())
        picture = _upright(picture)
        return np.array(picture if picture.mode == 'RGB' else picture.convert('RGB'))
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise InputError(
            f'The compressed picture ({picture.format}, {picture.width}x'
            f'{picture.height}) is damaged or cut off: {error}'
        ) from error


def _open(data: memoryview, stated_format: str) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=COMPRESSED_FORMATS)
    except Exception as error:
        if 'compressedDepth' in stated_format:
            raise InputError(
                'The picture is a compressed depth image; colour or grey pictures as '
                'JPEG, PNG or WebP are allowed. Subscribe to the colour camera.'
            ) from error
        begin = f'{len(data)} bytes that begin with {bytes(data[:8])!r}'
        problem = begin if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f'The compressed picture (announced as {stated_format[:60]!r}) is neither JPEG, PNG '
            f'nor WebP, or its header is damaged: {problem}'
        ) from error


def _stored_as(mode: str, stated_format: str) -> str:
    """Give the encoding of Image.msg whose samples the grey pixels are, or '' for a picture.

    stated_format is as image_transport writes it: 'mono16; png compressed ', where the last word
    is the encoding that was converted to first, if it was.
    """
    source, _, how = stated_format.partition(';')
    kind, deep = source.strip().rstrip('0123456789'), mode in _MODES_16_BITS
    is_mosaic = kind.startswith('bayer_') and how.strip().endswith('compressed')
    if (deep and kind == 'mono') or (is_mosaic and (deep or mode == 'L')):
        return f'{kind}{16 if deep else 8}'
    if deep:
        raise InputError(
            f'The picture (announced as {stated_format[:60]!r}) is grey of 16 bits, which may be '
            "depth; colour or grey of 8 bits is allowed, and 'mono16; png compressed'. Subscribe "
            'to the colour camera.'
        )
    if mode not in _MODES:
        raise InputError(
            f'The picture has pixels of kind {mode}; colour or grey of 8 bits is allowed.'
        )
    return ''


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; damaged EXIF costs only that."""
    try:
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:
        turned = False
    return ImageOps.exif_transpose(picture) if turned else picture


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Give (32, 32, 3) float32 colours 0..255, each the mean of its part of the picture.

    The largest difference of two thumbnails tells whether a picture has changed. A mean over
    them does not: a small thing that comes or turns from red to blue changes few of the cells,
    and grey levels hardly.
    """
    small = Image.fromarray(picture).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.BOX)
    return np.array(small, np.float32)
