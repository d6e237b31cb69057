# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Compressed pictures become RGB, and no picture whatever gets past its limits."""

import array
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.compressed import LEAST_LEFT, decode_as_needed, decode_compressed
from minicpmo_ros.media.image.raw import decode_raw
from minicpmo_ros.media.image.tiling import thumbnail


@pytest.fixture
def picture(rng) -> np.ndarray:
    return rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def compressed(picture, kind='PNG', **options) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size its data do not have."""
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


@pytest.mark.parametrize('kind', ['PNG', 'WEBP'])
@pytest.mark.parametrize(
    'stated',
    ['', 'jpeg', 'jpg', 'png', 'webp', 'rgb8; jpeg compressed bgr8', 'bgr8; png compressed bgr8']
    + ['mono8; png compressed ', '16UC1; png compressed ', '; tiff compressed', 'h264', '\0;' * 99]
    + ['bayer_rggb8; jpeg compressed bgr8', '16UC1; compressedDepth png'],
)
def test_the_bytes_decide_whatever_is_stated(kind, stated, picture):
    options = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    assert np.array_equal(decode_compressed(compressed(picture, kind, **options), stated), picture)


def test_grey_of_16_bits_is_grey_only_where_it_is_stated(rng):
    deep = rng.integers(0, 65536, (30, 40), dtype=np.uint16)
    data = compressed(Image.fromarray(deep))
    decoded = decode_compressed(data, 'mono16; png compressed ')
    assert np.array_equal(decoded, np.repeat(np.rint(deep / 257)[..., None], 3, axis=2))
    for stated in ('', 'png', '16UC1; png compressed ', '32FC1; compressedDepth png'):
        with pytest.raises(InputError, match='depth.*mono16; png compressed'):
            decode_compressed(data, stated)


@pytest.mark.parametrize('bits', [8, 16])
def test_a_mosaic_stored_as_grey_is_demosaiced(bits, rng):
    mosaic = rng.integers(0, 2**bits, (30, 40), dtype=f'u{bits // 8}')
    name = f'bayer_grbg{bits}'
    expected = decode_raw(name, *mosaic.shape, mosaic.strides[0], mosaic.tobytes())
    data = compressed(Image.fromarray(mosaic))
    assert np.array_equal(decode_compressed(data, f'{name}; png compressed '), expected)
    if bits == 8:  # converted to grey before, or only said so
        for stated in ('bayer_grbg8; png compressed mono8', 'mono8; png compressed '):
            assert np.array_equal(decode_compressed(data, stated)[..., 1], mosaic)


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
        (5, lambda a: np.swapaxes(a, 0, 1)),
        (7, lambda a: np.rot90(np.swapaxes(a, 0, 1), 2)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_exif_orientation_is_followed(kind, orientation, turned):
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32] = 250  # one bright quarter tells the orientations apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_compressed(compressed(stored, kind, quality=95, exif=exif))
    assert decoded.shape == turned(stored).shape
    assert np.abs(decoded.astype(int) - turned(stored)).mean() < 5


def scene(rng, width: int, height: int) -> np.ndarray:
    """A picture with the spectrum of natural ones, and things with hard edges in it."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    waves = np.fft.rfft2(rng.standard_normal((3, height, width)), axes=(1, 2)) / frequency
    colors = np.fft.irfft2(waves, (height, width), axes=(1, 2)).transpose(1, 2, 0)
    colors = 0.4 * colors + 0.8 * colors[..., :1]  # most of what differs is light
    colors = 128 + 45 * colors / colors.std()
    for _ in range(8):
        y, x = rng.integers(height - 9), rng.integers(width - 9)
        colors[y : y + rng.integers(3, height // 4), x : x + rng.integers(3, width // 4)] = (
            rng.integers(0, 256, 3)
        )
    return np.clip(colors, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('subsampling', [0, 2])
@pytest.mark.parametrize('width, height, part', [(1200, 900, 2), (1202, 902, 2), (1203, 900, 1)])
def test_a_jpeg_decoded_at_a_part_of_its_size_looks_the_same_to_the_encoder(
    rng, width, height, part, subsampling, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'quality': 90, 'subsampling': subsampling, 'exif': exif}
    data = compressed(scene(rng, width, height), 'JPEG', **options)
    if orientation == 6:
        width, height = height, width
    target, asked = (width // 6, height // 6), []
    decoded = decode_as_needed(data, '', lambda *size: asked.append(size) or target)
    assert asked == [(width, height)] == [(decoded.width, decoded.height)]
    assert decoded.pixels.shape == (height // part, width // part, 3)
    whole, small = (
        np.asarray(Image.fromarray(pixels).resize(target, Image.BICUBIC), float)
        for pixels in (decode_compressed(data), decoded.pixels)
    )
    assert np.mean((whole - small) ** 2) <= (255**2 / 1e5 if part > 1 else 0)  # 50 dB


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_no_picture_is_decoded_smaller_than_is_enough(kind, picture):
    for side in (1, 5, 12, 30, 100):
        decoded = decode_as_needed(compressed(picture, kind), '', lambda w, h, n=side: (n, n))
        least = min(LEAST_LEFT * side, min(picture.shape[:2]))
        assert min(decoded.pixels.shape[:2]) >= least
        assert (decoded.height, decoded.width) == picture.shape[:2]


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_exif_costs_the_orientation_alone(picture):
    for exif in (b'Exif\0\0nonsense', b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0'):
        data = compressed(picture, 'JPEG', quality=95, exif=exif)
        assert decode_compressed(data).shape == picture.shape


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
def test_what_is_no_jpeg_png_or_webp_is_refused(data):
    with pytest.raises(InputError):
        decode_compressed(data, 'jpeg')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
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


SIZES = [(9000, 9000), (16384, 16384), (60000, 60000), (1, 1), (20000, 1), (2, 100), (0, 0)]


@pytest.mark.parametrize('width, height', SIZES)
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_size_is_checked_before_decoding(width, height, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    told = f'{width}x{height}|sides of 2 to 8192' if width else 'header is damaged'
    with pytest.raises(InputError, match=told):
        decode_compressed(png_claiming(width, height), 'png')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_webp_of_a_few_bytes_and_many_pixels_is_refused():
    """34 bytes that are 13000 x 13000 black pixels."""
    data = bytes.fromhex('524946461a000000574542505650384c0e0000002fc7f2b10c071011fd0f4444ff03')
    with pytest.raises(InputError, match='13000x13000'):
        decode_compressed(data, 'webp')


def test_what_unpacks_beside_the_pixels_is_refused(picture):
    """A PNG whose text is a bomb."""
    data = compressed(picture)
    text = b'Comment\0\0' + zlib.compress(bytes(50_000_000))
    after_header = 8 + 25
    bomb = data[:after_header] + chunk(b'zTXt', text) + data[after_header:]
    with pytest.raises(InputError, match='too large'):
        decode_compressed(bomb, 'png')


def test_compressed_depth_is_refused_by_name(picture):
    """As compressed_depth_image_transport has it: a header of its own before the PNG."""
    with pytest.raises(InputError, match='depth'):
        decode_compressed(bytes(12) + compressed(picture), '16UC1; compressedDepth png')


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


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_rows': 1}])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_jpeg_that_lacks_only_its_end_is_whole(options, mode, rng):
    """As many USB cameras send it; one that lacks pixels is refused."""
    pixels = np.kron(rng.integers(0, 255, (9, 14, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, 'JPEG', **options)
    data = file.getvalue()
    whole = decode_compressed(data)
    for ended in (data[:-2], data[:-1], data[:-2] + bytes(3000)):
        assert np.array_equal(decode_compressed(ended, 'jpeg'), whole)
    for cut in (8, 60, len(data) // 3):
        with pytest.raises(InputError, match='cut off'):
            decode_compressed(data[:-cut], 'jpeg')


@pytest.mark.parametrize('options', [{}, {'subsampling': 0}, {'restart_marker_blocks': 3}])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_jpeg_that_lacks_pixels_and_has_its_end_is_refused(options, mode, rng):
    noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    noise[-20:] = 16  # a bar below it, as of a film
    data = compressed(Image.fromarray(noise).convert(mode), 'JPEG', **options)
    assert decode_compressed(data, 'jpeg').shape == (96, 128, 3)
    assert decode_compressed(data + bytes(3000), 'jpeg').shape == (96, 128, 3)
    for share in (0.3, 0.6, 0.8):
        with pytest.raises(InputError, match='cut off'):
            decode_compressed(data[: int(share * len(data))] + b'\xff\xd9', 'jpeg')


@pytest.mark.parametrize(
    'stated, begin',
    [
        ('h264', b'\0\0\0\1\x67\x42'),
        ('H265', b'\0\0\0\1\x40\1'),
        ('hevc; something', b'\0\0\1\x40\1'),
        ('av1', b'\x12\0'),
        ('theora', b'\x80theora'),
        ('H.264', b'\0\0\0\1\x67\x42'),  # what drivers call it is known to them alone
        ('jpeg', b'\0\0\1\x67\x42'),
        ('', b'\0\0\0\1\x09\x10'),
    ],
)
def test_a_part_of_a_video_is_called_so(stated, begin):
    with pytest.raises(InputError, match='part of a video.*republish'):
        decode_compressed(begin + bytes(500), stated)
