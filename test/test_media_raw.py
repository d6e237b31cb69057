# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every encoding gives the picture that rgb8 gives, and nothing that lies is believed."""

import array
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from image_encodings import FLOATS, SAME, encode, grey

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image import raw as colors
from minicpmo_ros.media.image import raw as raw_picture
from minicpmo_ros.media.image.raw import (
    BAND,
    ENCODINGS,
    MEANINGLESS,
    decode_raw,
    stated_encoding,
)

BAYER = [name for name in ENCODINGS if name.startswith('bayer')]
YUV = ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24']
MONO = ['mono8', 'mono16', '8UC1', '16UC1 (grey)', FLOATS]
LOSSLESS = [name for name in ENCODINGS if name not in BAYER + YUV]
HEIGHT, WIDTH = 2 * BAND + 6, 44  # bands, and one that is not full


@pytest.fixture
def picture(rng) -> np.ndarray:
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def smooth() -> np.ndarray:
    """Give colours that change by at most 3 levels from pixel to pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(y / 25 + 1), np.cos(x / 20 + y / 50), np.sin(x / 30 - y / 35)]
    return (128 + 55 * np.stack(waves, axis=2)).round().astype(np.uint8)


def largest_difference(a, b) -> int:
    return np.abs(a.astype(int) - b).max()


def test_all_encodings_of_cameras_are_known():
    known = {
        f'{name}{bits}'
        for name in ('rgb', 'bgr', 'rgba', 'bgra', 'mono', 'bayer_rggb', 'bayer_bggr')
        + ('bayer_gbrg', 'bayer_grbg')
        for bits in (8, 16)
    }
    assert set(ENCODINGS) == known | set(SAME) | {'uyvy', 'yuyv', 'nv12', 'nv21', 'nv24', FLOATS}


@pytest.mark.parametrize('padding', [0, 7])
@pytest.mark.parametrize('encoding', LOSSLESS)
def test_lossless_encodings_are_exact(encoding, padding, picture):
    expected = grey(picture) if encoding in MONO else picture
    raw = encode(picture, encoding, padding)
    for data in (raw.data, array.array('B', raw.data), np.frombuffer(raw.data, np.uint8)):
        decoded = decode_raw(raw.encoding, raw.height, raw.width, raw.step, data)
        assert np.array_equal(decoded, expected)
        assert decoded.flags['C_CONTIGUOUS'] and decoded.flags['WRITEABLE']


@pytest.mark.parametrize('padding', [0, 7])
@pytest.mark.parametrize('encoding', BAYER + YUV)
def test_lossy_encodings_are_near_on_a_smooth_picture(encoding, padding, smooth):
    decoded = decode_raw(*encode(smooth, encoding, padding).arguments)
    assert largest_difference(decoded, smooth) <= 4
    assert np.abs(decoded.astype(int) - smooth).mean() < 0.9


@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24', 'uyvy', 'yuyv'])
def test_one_color_comes_through_any_chroma(encoding):
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 10), (0, 0, 0), (255,) * 3):
        plain = np.full((16, 16, 3), color, np.uint8)
        assert largest_difference(decode_raw(*encode(plain, encoding).arguments), plain) <= 2


# zlib.crc32 of what OpenCV 4.12's cvtColor makes, in 8 bits, of the bytes of `rubbish`.
OPENCV = {
    'bayer_rggb8': 0x6120383A,
    'bayer_rggb16': 0xEF7F54F7,
    'bayer_bggr8': 0x2E4431E3,
    'bayer_bggr16': 0x9DEE5B2C,
    'bayer_gbrg8': 0xB44800E3,
    'bayer_gbrg16': 0x1C11F207,
    'bayer_grbg8': 0x19C322E3,
    'bayer_grbg16': 0x1D4F9AA0,
    'uyvy': 0x7A4E3DEF,
    'yuyv': 0xC6AC2635,
    'nv12': 0x1D46229B,
    'nv21': 0x8087B85D,
}


def rubbish(samples: int, sample_bytes: int) -> bytes:
    i = np.arange(samples, dtype=np.uint64)
    return ((i * i * 2654435761 >> 7) % 256**sample_bytes).astype(f'<u{sample_bytes}').tobytes()


@pytest.mark.parametrize('encoding', list(OPENCV))
def test_every_bit_is_as_opencv_has_it(encoding):
    lies, height, width = ENCODINGS[encoding], BAND + 6, 46
    samples = int(height * lies.data_height) * width * lies.samples
    data = rubbish(samples, lies.sample_bytes)
    rgb = decode_raw(encoding, height, width, width * lies.samples * lies.sample_bytes, data)
    assert zlib.crc32(rgb.tobytes()) == OPENCV[encoding]


def test_a_mosaic_keeps_what_its_pixels_saw(picture):
    for encoding in BAYER:
        decoded = decode_raw(*encode(picture, encoding).arguments)
        for site, color in enumerate(encoding.removeprefix('bayer_')[:4]):
            y, x = divmod(site, 2)
            i = 'rgb'.index(color)
            # But for the outermost pixels, which copy their neighbours.
            assert np.array_equal(
                decoded[y::2, x::2, i][1:-1, 1:-1], picture[y::2, x::2, i][1:-1, 1:-1]
            )


@pytest.mark.parametrize('encoding', [name for name in ENCODINGS if '16' in name])
def test_byte_order_is_honoured(encoding, smooth):
    little, big = (encode(smooth, encoding, 3, order) for order in (False, True))
    assert little.data != big.data
    assert np.array_equal(decode_raw(*little.arguments), decode_raw(*big.arguments))


def test_byte_order_means_nothing_for_bytes(picture):
    little, big = (encode(picture, 'bgra8', 0, order) for order in (False, True))
    assert np.array_equal(decode_raw(*little.arguments), decode_raw(*big.arguments))


def test_16_bits_are_rounded_to_the_nearest_of_8():
    levels = np.arange(65536, dtype='<u2').reshape(256, 256)
    decoded = decode_raw('mono16', 256, 256, 512, levels.tobytes())
    assert np.array_equal(decoded[..., 0], np.rint(levels / 257))


def test_bands_leave_no_seam(picture, monkeypatch):
    for encoding in ENCODINGS:
        raw = encode(picture, encoding, 5)
        banded = decode_raw(*raw.arguments)
        with monkeypatch.context() as patch:
            patch.setattr(raw_picture, 'BAND', 2 * HEIGHT)
            assert np.array_equal(decode_raw(*raw.arguments), banded), encoding


@pytest.mark.parametrize('encoding', list(ENCODINGS))
def test_the_smallest_picture_is_decoded(encoding):
    tiny = np.full((2, 2, 3), (40, 120, 240), np.uint8)
    expected = grey(tiny) if encoding in MONO else tiny
    assert largest_difference(decode_raw(*encode(tiny, encoding).arguments), expected) <= 2


@pytest.mark.parametrize('encoding', list(ENCODINGS))
def test_step_and_data_must_agree(encoding, picture):
    raw = encode(picture, encoding, 2)
    name, height, width, step, data, _ = raw.arguments
    for wrong in (
        (name, height, width, step, data[:-1]),
        (name, height, width, step, data + b'0'),
        (name, height, width, step, b''),
        (name, height, width, 0, b''),
        (name, height, width, step - 3, data[: len(data) // step * (step - 3)]),
        (name, height + 2, width, step, data),
        (name, height, 2**32 - 2, step, data),
        (name, 2**32 - 2, width, step, data),
    ):
        with pytest.raises(InputError, match=f'{wrong[2]}x{wrong[1]}'):
            decode_raw(*wrong)


@pytest.mark.parametrize(
    'height, width', [(0, 0), (1, 1), (0, 40), (1, 20_000), (16_384, 16_384), (8000, 8000)]
)
def test_claims_are_refused_before_anything_is_made(height, width, monkeypatch):
    for name in ('empty', 'ndarray'):
        monkeypatch.setattr(np, name, lambda *args, **kwargs: pytest.fail('made'))
    for encoding in ENCODINGS:
        with pytest.raises(InputError, match=f'{width}x{height}'):
            decode_raw(encoding, height, width, 8 * width, bytes(100))


@pytest.mark.parametrize('width, height', [(1, 1), (1, 30), (20_000, 2), (8194, 900), (100, 4)])
def test_sizes_that_are_not_allowed_are_refused_also_where_all_agrees(width, height):
    with pytest.raises(InputError, match='allowed|times the other'):
        decode_raw('mono8', height, width, width, bytes(height * width))


@pytest.mark.parametrize('encoding', ['uyvy', 'yuyv', 'nv12', 'nv21'])
def test_halved_chroma_needs_even_sides(encoding):
    with pytest.raises(InputError, match='width must be even'):
        decode_raw(encoding, 40, 41, 90, bytes(40 * 90))


@pytest.mark.parametrize('name', ['', 'RGB8', 'rgb', 'nv16', 'h264', '32FC3', 'rgb8 ', '\0' * 999])
def test_an_unknown_encoding_is_told_what_is_allowed(name):
    with pytest.raises(InputError) as caught:
        decode_raw(name, 30, 40, 120, bytes(3600))
    assert all(known in str(caught.value) for known in ENCODINGS)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize('name', MEANINGLESS)
def test_depth_is_refused_as_depth(name):
    with pytest.raises(InputError, match='which is depth.*image.single_channel to grey'):
        decode_raw(name, 30, 40, 80, bytes(2400))


@pytest.mark.parametrize('name', [*MEANINGLESS, '16UC1; png compressed '])
def test_what_has_no_stated_meaning_is_depth_where_its_topic_says_so(name):
    grey = name.replace('C1', 'C1 (grey)')
    for topic in ('/camera/depth/image_rect_raw', '/stereo/Disparity', '/tof/distance', '/range'):
        assert stated_encoding(name, topic) == name
        assert stated_encoding(name, topic, 'grey') == grey
    for topic in ('/thermal/image_raw', '/orange_pi/thermal', '/kinect2/sd/image_ir', ''):
        assert stated_encoding(name, topic) == grey
        assert stated_encoding(name, topic, 'depth') == name


def test_what_states_its_meaning_keeps_it():
    for name in (*ENCODINGS, '16UC1; compressedDepth png', 'mono16; png compressed ', '', 'jpeg'):
        assert stated_encoding(name, '/thermal', 'grey') == name


class OldBridge:
    """As cv_bridge: takes a message, gives rgb8; this one notes what it was given."""

    seen = []

    def imgmsg_to_cv2(self, message, encoding):
        self.seen.append((message, encoding))
        if message.encoding not in ('yuv422', 'bayer_rggb8', 'bayer_gbrg16'):
            raise RuntimeError(f'Unrecognized image encoding [{message.encoding}]')
        return np.full((message.height, message.width, 3), 42, np.uint8)


@pytest.fixture
def cv_bridge(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', SimpleNamespace(CvBridge=OldBridge))
    monkeypatch.setattr(colors.np, '__version__', '1.21.5')
    monkeypatch.setattr(OldBridge, 'seen', [])
    return OldBridge


def test_cv_bridge_converts_where_it_can(cv_bridge, picture):
    for encoding in ('uyvy', 'yuv422', 'bayer_rggb8', 'bayer_gbrg16'):
        raw = encode(picture, encoding, padding=6, is_bigendian=True)
        assert (decode_raw(*raw.arguments) == 42).all()
        message, wanted = cv_bridge.seen.pop()
        assert wanted == 'rgb8' and message.encoding == encoding.replace('uyvy', 'yuv422')
        assert message.is_bigendian == (sys.byteorder == 'big')
        plain = encode(picture, encoding, is_bigendian=sys.byteorder == 'big')
        assert (message.step, message.data) == (plain.step, plain.data)


def test_without_cv_bridge_for_it_the_picture_is_the_same(cv_bridge, picture, monkeypatch):
    raw = encode(picture, 'yuyv')  # of which this old one knows nothing
    refused = decode_raw(*raw.arguments)
    assert cv_bridge.seen
    monkeypatch.delitem(sys.modules, 'cv_bridge')
    assert np.array_equal(decode_raw(*raw.arguments), refused)


def test_cv_bridge_is_left_alone_under_a_numpy_it_crashes_with(cv_bridge, picture, monkeypatch):
    monkeypatch.setattr(colors.np, '__version__', '2.2.6')
    decode_raw(*encode(picture, 'bayer_rggb8').arguments)
    assert not cv_bridge.seen


def test_cv_bridge_gives_the_same(picture):
    pytest.importorskip('cv_bridge', reason='comes with a ROS distribution')
    for encoding in (name for name in ENCODINGS if ENCODINGS[name].bridged):
        lies, raw = ENCODINGS[encoding], encode(picture, encoding)
        samples = np.frombuffer(raw.data, f'<u{lies.sample_bytes}').reshape(HEIGHT, -1)
        theirs = colors.bridged_rgb(encoding, WIDTH, samples)
        ours = lies.convert(samples, HEIGHT, WIDTH, 0, HEIGHT)
        assert theirs is None or np.array_equal(ours, theirs), encoding
