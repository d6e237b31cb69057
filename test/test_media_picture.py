# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of messages become RGB, and no picture whatever gets past its limits."""

import array
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.picture import decode_compressed, decode_raw, thumbnail


@pytest.fixture
def picture(rng) -> np.ndarray:
    return rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def compressed(picture, kind='PNG', **options) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, kind, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size its data do not have."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    )


def test_png_is_exact_and_contiguous(picture):
    for data in (compressed(picture), array.array('B', compressed(picture))):
        decoded = decode_compressed(data, 'rgb8; png compressed rgb8')
        assert np.array_equal(decoded, picture)
        assert decoded.flags['C_CONTIGUOUS'] and decoded.flags['WRITEABLE']


def test_jpeg_is_near():
    gradient = np.linspace(0, 255, 64 * 48 * 3).astype(np.uint8).reshape(48, 64, 3)
    decoded = decode_compressed(compressed(gradient, 'JPEG', quality=95), 'jpeg')
    assert np.abs(decoded.astype(int) - gradient).mean() < 3


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_every_8_bit_mode_becomes_rgb(mode, picture):
    kind = 'JPEG' if mode == 'CMYK' else 'PNG'
    decoded = decode_compressed(compressed(Image.fromarray(picture).convert(mode), kind))
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8


@pytest.mark.parametrize(
    'orientation, turned',
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_followed(orientation, turned):
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32] = 250  # one bright quarter tells the orientations apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_compressed(compressed(stored, 'JPEG', quality=95, exif=exif))
    assert decoded.shape == turned(stored).shape
    assert np.abs(decoded.astype(int) - turned(stored)).mean() < 5


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'a stop sign',
        bytes(100),
        b'\xff\xd8\xff',
        b'\x89PNG\r\n\x1a\n',
        compressed(np.zeros((8, 8, 3), np.uint8), 'BMP'),
        compressed(np.zeros((8, 8, 3), np.uint8), 'GIF'),
    ],
)
def test_what_is_no_jpeg_or_png_is_refused(data):
    with pytest.raises(InputError):
        decode_compressed(data, 'jpeg')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_truncated_and_damaged_pictures_are_refused_or_decoded(kind, rng):
    whole = compressed(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    for length in range(0, len(whole) - 20, 97):
        with pytest.raises(InputError):
            decode_compressed(whole[:length], kind)
    for _ in range(300):  # nothing but InputError may come out of a flipped byte
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        try:
            assert decode_compressed(damaged, kind).shape[2] == 3
        except InputError:
            pass


@pytest.mark.parametrize(
    'width, height', [(9000, 9000), (16384, 16384), (60000, 60000), (1, 1), (20000, 1), (2, 100)]
)
def test_size_is_checked_before_decoding(width, height):
    with pytest.raises(InputError, match=f'{width}x{height}|exceeds'):
        decode_compressed(png_claiming(width, height), 'png')


def test_depth_pictures_are_refused_by_name(picture):
    with pytest.raises(InputError, match='depth'):
        decode_compressed(compressed(picture), '16UC1; compressedDepth png')
    deep = Image.fromarray(np.full((16, 16), 40000, np.uint16))
    with pytest.raises(InputError, match='kind I'):
        decode_compressed(compressed(deep))


def test_raw_rgb_and_bgr_with_padded_rows(picture):
    height, width, _ = picture.shape
    step = 3 * width + 8
    padded = np.full((height, step), 99, np.uint8)
    padded[:, : 3 * width] = picture.reshape(height, -1)
    for data in (padded.tobytes(), array.array('B', padded.tobytes()), padded.ravel()):
        assert np.array_equal(decode_raw('rgb8', height, width, step, data), picture)
        decoded = decode_raw('bgr8', height, width, step, data)
        assert np.array_equal(decoded, picture[..., ::-1])
        assert decoded.flags['C_CONTIGUOUS'] and decoded.flags['WRITEABLE']


@pytest.mark.parametrize(
    'encoding, height, width, step, length',
    [
        ('rgb8', 30, 40, 120, 3599),
        ('rgb8', 30, 40, 120, 3601),
        ('rgb8', 30, 40, 119, 30 * 119),
        ('rgb8', 30, 40, 0, 0),
        ('rgb8', 0, 0, 0, 0),
        ('rgb8', 16384, 16384, 49152, 100),
        ('rgb8', 8000, 8000, 24000, 100),
        ('rgb8', 1, 20000, 60000, 60000),
        ('', 30, 40, 120, 3600),
        ('RGB8', 30, 40, 120, 3600),
        ('16UC1', 30, 40, 80, 2400),
    ],
)
def test_raw_pictures_that_do_not_agree_are_refused(encoding, height, width, step, length):
    with pytest.raises(InputError):
        decode_raw(encoding, height, width, step, bytes(length))


def test_allowed_encodings_are_named():
    with pytest.raises(InputError, match='nv12.*rgb8, bgr8'):
        decode_raw('nv12', 30, 40, 40, bytes(1800))


def test_thumbnail_shows_change_and_ignores_none(rng):
    picture = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    assert thumbnail(picture).shape == (32, 32, 3) and thumbnail(picture).dtype == np.float32
    assert np.array_equal(thumbnail(picture), thumbnail(picture.copy()))
    noisy = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
    moved = picture.copy()
    moved[80:160, 100:200] = 255
    still = np.abs(thumbnail(noisy) - thumbnail(picture)).max()
    change = np.abs(thumbnail(moved) - thumbnail(picture)).max()
    assert still < 8 < 50 < change
    assert (thumbnail(np.full((50, 60, 3), 200, np.uint8)) == 200).all()
