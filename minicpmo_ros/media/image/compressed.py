# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes compressed images of messages to contiguous (H, W, 3) uint8 RGB, and encodes JPEG.

Every size is checked before anything is decoded; anything wrong with an image raises an
InputError that says what is allowed.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.raw import decode_raw
from minicpmo_ros.media.image.tiling import MAX_SIDE, MIN_SIDE, Decoded, check_size

COMPRESSED_FORMATS = ('JPEG', 'PNG', 'WEBP')
MAX_COMPRESSED_BYTES = 64 * 2**20
# Modes Pillow turns to RGB without loss of meaning.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
_MODES_16_BITS = ('I', 'I;16', 'I;16B', 'I;16L')  # of grey, as Pillow's releases name them
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations in which width and height change places
# The least that is left of a JPEG decoded at a part of its size, over what it will be resized to:
# then the result is within 50 dB of what the whole gives, also where edges are hard.
LEAST_LEFT = 3
_JPEG, _END = b'\xff\xd8\xff', b'\xff\xd9'
LONGEST_TAIL = 4096  # bytes behind the end
_MORE = b'\x55' * 64  # of compressed pixels
# What drivers write into CompressedImage.format of a video.
VIDEO_FORMATS = ('h264', 'h265', 'hevc', 'av1', 'vp8', 'vp9', 'mpeg4', 'theora')
_OF_VIDEO = (b'\0\0\0\1', b'\0\0\1')  # how a part of H.264, H.265 or MPEG-4 begins
_PNG, _COLORS = b'\x89PNG\r\n\x1a\n', (2, 4, 6)  # kinds of PNG with several samples a pixel


def decode_compressed(data, stated_format: str = '') -> np.ndarray:
    """Decode a JPEG, PNG or WebP, upright as its EXIF orientation says; transparency is dropped.

    data: bytes or anything with a buffer. stated_format: as CompressedImage.msg has it. The bytes
    decide what they are; what is stated tells depth from grey and a mosaic from a grey image,
    which the bytes do not: '16UC1; png compressed ' is depth unless raw.stated_encoding says
    otherwise, 'mono16; png compressed ' grey of 16 bits, and 'bayer_rggb8; jpeg compressed ' a
    mosaic stored as if it were grey.
    """
    return decode_as_needed(data, stated_format).pixels


def decode_as_needed(
    data, stated_format: str = '', needed: Callable[[int, int], tuple] | None = None
) -> Decoded:
    """Decode as `decode_compressed`, a large JPEG at 1/2, 1/4 or 1/8 of its size.

    needed: (width, height) of the upright image -> (width, height) that it will be resized to.
    """
    data = memoryview(data).cast('B')
    if not 0 < len(data) <= MAX_COMPRESSED_BYTES:
        raise InputError(
            f'The compressed image has {len(data)} bytes; allowed are 1 to {MAX_COMPRESSED_BYTES}.'
        )
    data = _ended(data)
    image = _open(data, stated_format)
    check_size(*image.size)
    stored_as = _stored_as(image.mode, stated_format)
    try:
        if _is_deep(data):
            return _whole('rgb16', _deep_colors(data))
        turn = -1 if _orientation(image) in _SIDEWAYS else 1
        size = image.size[::turn]
        scaled_to = needed(*size)[::turn] if needed and not stored_as else None
        _draft(image, scaled_to)
        image.load()  # here, because NumPy 1 swallows what is raised inside np.array
        if is_jpeg(data) and _ends_flat(image):
            begun = bytes(data)
            if _lacks_pixels(begun[: begun.rfind(_END)], scaled_to):
                raise ValueError('its last pixels are missing')
        if stored_as:
            return _whole(
                stored_as, np.asarray(image).astype('<u2' if stored_as.endswith('16') else 'u1')
            )
        image = _upright(image)
        return Decoded(np.array(image if image.mode == 'RGB' else image.convert('RGB')), *size)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise InputError(
            f'The compressed image ({image.format}, {image.width}x'
            f'{image.height}) is damaged or cut off: {error}'
        ) from error


def _whole(encoding: str, samples: np.ndarray) -> Decoded:
    """Decode samples (H, W, ...) as those of an Image.msg."""
    size, step = samples.shape[:2], samples.strides[0]
    return Decoded.whole(decode_raw(encoding, *size, step, samples.tobytes()))


def _is_deep(data: memoryview) -> bool:
    """Return whether it is a PNG of several samples of 16 bits a pixel: Pillow drops 8 of them."""
    head = bytes(data[:26])
    return head.startswith(_PNG) and head[24:25] == b'\x10' and head[25] in _COLORS


def _deep_colors(data: memoryview) -> np.ndarray:
    """Return (H, W, 3) uint16, little-endian; transparency is dropped."""
    import av  # takes 17 MiB and 30 ms, and such images are rare

    decoder = av.CodecContext.create('png', 'r')
    frames = decoder.decode(av.Packet(bytes(data))) or decoder.decode(None)
    return np.ascontiguousarray(frames[0].reformat(format='rgb48le').to_ndarray())


def is_jpeg(data) -> bool:
    """Return whether bytes begin as a JPEG does."""
    return bytes(data[: len(_JPEG)]) == _JPEG


def is_grey(data) -> bool:
    """Return whether a compressed image that can be read has no colours, by its header."""
    with _open(memoryview(data).cast('B'), '') as image:
        return image.mode in ('1', 'L', 'LA', *_MODES_16_BITS)


def _ended(data: memoryview) -> memoryview:
    """Return a JPEG with the end that many cameras leave out, if nothing else is missing."""
    if not is_jpeg(data) or _END in bytes(data[-LONGEST_TAIL:]):
        return data
    try:
        begun = bytes(data).rstrip(b'\xff')  # the half of an end, too
        return data if _lacks_pixels(begun) else memoryview(begun + _END)
    except Exception:  # damaged elsewhere, which is told of the data as it came
        return data


def _ends_flat(image: Image.Image) -> bool:
    """Return whether the last row has one colour: such are pixels that libjpeg invents."""
    width, height = image.size
    row = np.asarray(image.crop((0, height - 1, width, height)))
    return bool((row == row[:, :1]).all())


def _lacks_pixels(begun: bytes, scaled_to: tuple | None = None) -> bool:
    """Return whether a JPEG, given without its end, ends before its pixels do.

    Cameras on a busy USB send such. libjpeg invents what is missing, and something else if more
    compressed pixels follow. scaled_to: as _draft takes it; a part of the pixels is enough.
    """
    whole, more = (_pixels(begun + extra + _END, scaled_to) for extra in (b'', _MORE))
    return not np.array_equal(whole, more)


def _pixels(data: bytes, scaled_to: tuple | None) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
        check_size(*image.size)
        _draft(image, scaled_to)
        return np.asarray(image)


def _open(data: memoryview, stated_format: str) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=COMPRESSED_FORMATS)
    except Image.DecompressionBombError as error:  # before its sides could be asked for
        raise InputError(
            f'The image has more than {2 * Image.MAX_IMAGE_PIXELS} pixels; sides of {MIN_SIDE} to '
            f'{MAX_SIDE} pixels are allowed. Crop or scale it first.'
        ) from error
    except Exception as error:
        if 'compressedDepth' in stated_format:
            raise InputError(
                'The image is a compressed depth image; colour or grey images as '
                'JPEG, PNG or WebP are allowed. Subscribe to the colour camera.'
            ) from error
        name = stated_format.partition(';')[0].strip()
        if name.lower() in VIDEO_FORMATS or bytes(data[:4]).startswith(_OF_VIDEO):
            raise InputError(
                f'The message holds a part of a video (announced as {name[:60]!r}), which is no '
                'image by itself; JPEG, PNG or WebP are allowed. Have image_transport republish '
                'it as raw or compressed.'
            ) from error
        begin = f'{len(data)} bytes that begin with {bytes(data[:8])!r}'
        problem = begin if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f'The compressed image (announced as {stated_format[:60]!r}) is neither JPEG, PNG '
            f'nor WebP, or its header is damaged: {problem}. Have it encoded as JPEG or PNG '
            '(image_transport: by its parameter format).'
        ) from error


def _stored_as(mode: str, stated_format: str) -> str:
    """Return the encoding of Image.msg whose samples the grey pixels are, or '' for an image.

    stated_format is as image_transport writes it: 'mono16; png compressed ', where the last word
    is the encoding that was converted to first, if it was.
    """
    source, _, how = stated_format.partition(';')
    kind, deep = source.strip().rstrip('0123456789'), mode in _MODES_16_BITS
    is_mosaic = kind.startswith('bayer_') and how.strip().endswith('compressed')
    if deep and source.strip() == '16UC1 (grey)':
        return 'mono16'
    if (deep and kind == 'mono') or (is_mosaic and (deep or mode == 'L')):
        return f'{kind}{16 if deep else 8}'
    if deep:
        raise InputError(
            f'The image (announced as {stated_format[:60]!r}) is grey of 16 bits, which may be '
            "depth; colour or grey of 8 bits is allowed, and 'mono16; png compressed'. Subscribe "
            'to the colour camera; if it is thermal or infrared, set image.single_channel to grey.'
        )
    if mode not in _MODES:
        raise InputError(
            f'The image has pixels of kind {mode}; colour or grey of 8 bits is allowed.'
        )
    return ''


def _draft(image: Image.Image, scaled_to: tuple | None) -> None:
    """Let libjpeg scale a JPEG while it decodes, where enough is left and no pixel cut in two.

    scaled_to: (width, height) to which it will be resized; None: it is not. Only JPEG heeds it.
    """
    for part in (8, 4, 2) if scaled_to else ():
        if all(
            side % part == 0 and side // part >= LEAST_LEFT * least
            for side, least in zip(image.size, scaled_to)
        ):
            image.draft(image.mode, tuple(side // part for side in image.size))
            return


def _orientation(image: Image.Image) -> int:
    """Return how an image lies by its EXIF; damaged EXIF costs only that."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Return an image (H, W, 3) uint8 RGB as JPEG; quality: 1 to 100."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
    return file.getvalue()
