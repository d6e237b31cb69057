# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Cameras of few bits and thermal ones: scenes differ, and look alike while nothing changes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_media_compressed import chunk

from minicpmo_ros.config import VISION
from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.compressed import decode_compressed
from minicpmo_ros.media.image.raw import LEAST_SPAN, decode_raw, range_on_grid
from minicpmo_ros.media.image.tiling import thumbnail

HEIGHT, WIDTH = 240, 320
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def scene(i: int) -> np.ndarray:
    """Return (240, 320) of 0.2, with a disc of 0.9 that is elsewhere for each i."""
    shares = np.full((HEIGHT, WIDTH), 0.2)
    shares[(X - 60 - 60 * i) ** 2 + (Y - 80 - 20 * i) ** 2 < 2500] = 0.9
    return shares


def decode(counts: np.ndarray, encoding: str = 'mono16', big: bool = False) -> np.ndarray:
    kind = 'f4' if encoding.startswith('32FC1') else 'u2'
    samples = (counts if kind == 'f4' else np.rint(counts)).astype('<>'[big] + kind)
    step = samples.shape[1] * samples[0, 0].nbytes
    return decode_raw(encoding, HEIGHT, WIDTH, step, samples.tobytes(), big)


CAMERAS = {  # name: (encoding, counts of a share)
    '8 bits': ('mono16', lambda g: g * 255),
    '10 bits': ('mono16', lambda g: g * 1023),
    '12 bits': ('mono16', lambda g: g * 4095),
    '12 bits, mosaic': ('bayer_rggb16', lambda g: g * 4095),
    '14 bits, mosaic': ('bayer_gbrg16', lambda g: g * 16383),
    '14 bits, thermal': ('mono16', lambda g: 7000 + g * 900),
    'hundredths of kelvin': ('mono16', lambda g: 29800 + g * 400),
    'tenths of kelvin': ('mono16', lambda g: 2980 + g * 60),
    '12 bits in the high ones': ('mono16', lambda g: np.rint(g * 4095) * 16),
    '16 bits': ('mono16', lambda g: g * 65535),
    'thermal of an array without an encoding': ('16UC1 (grey)', lambda g: 29800 + g * 400),
    'degrees Celsius': ('32FC1 (grey)', lambda g: 15 + g * 20),
    'degrees Celsius, in the cold': ('32FC1 (grey)', lambda g: g * 20 - 25),
    'kelvin': ('32FC1 (grey)', lambda g: 291.7 + g * 20),
    'intensities': ('32FC1 (grey)', lambda g: g),
    '10 bits, colour': ('rgb16', lambda g: np.repeat(g[..., None], 3, axis=2) * 1023),
    '10 bits, transparent': (
        'bgra16',
        lambda g: np.dstack([np.repeat(g[..., None], 3, axis=2) * 1023, 65535 + 0 * g]),
    ),
}


@pytest.mark.parametrize('name', CAMERAS)
def test_scenes_differ_whatever_bits_a_camera_uses(name, rng):
    encoding, counts_of = CAMERAS[name]
    seen = [thumbnail(decode(counts_of(scene(i)), encoding)) for i in range(4)]
    for i in range(4):
        assert np.ptp(seen[i]) > 100
        for j in range(i):
            assert np.abs(seen[i] - seen[j]).max() > 8 * VISION.unchanged_threshold
        noisy = counts_of(scene(i) + rng.normal(0, 0.005, (HEIGHT, WIDTH)))
        again = thumbnail(decode(np.minimum(noisy, 65535), encoding))
        assert np.abs(again - seen[i]).max() < VISION.unchanged_threshold
    big = decode(counts_of(scene(1)), encoding, big=True)
    assert np.array_equal(big, decode(counts_of(scene(1)), encoding))


def test_dead_and_hot_pixels_do_not_count():
    counts = 7000 + 900 * scene(2)
    clean = decode(counts)
    counts[5, 5:10], counts[9, 5:10] = 0, 65535
    assert np.array_equal(decode(counts)[20:], clean[20:])


def test_what_is_no_number_is_dark_and_changes_nothing_else():
    celsius = 15 + 20 * scene(1)
    clean = decode(celsius, '32FC1 (grey)')
    celsius[:4] = np.nan
    celsius[4, :8], celsius[4, 8:12] = np.inf, -np.inf
    decoded = decode(celsius, '32FC1 (grey)')
    assert np.array_equal(decoded[5:], clean[5:]) and decoded[:4].max() <= clean.min()
    assert not decode(np.full((HEIGHT, WIDTH), np.nan), '32FC1 (grey)').any()


def test_colours_are_scaled_and_never_shifted():
    counts = np.empty((HEIGHT, WIDTH, 3))
    counts[:] = 1000, 2000, 500
    assert decode(counts, 'rgb16')[0, 0].tolist() == [62, 125, 31]  # of 12 bits


def test_noise_without_contrast_stays_flat(rng):
    flat = decode(7000 + rng.integers(0, LEAST_SPAN - 2, (HEIGHT, WIDTH)))
    assert np.ptp(flat) < 4


def test_a_compressed_image_is_scaled_as_well():
    counts, file = np.rint(29800 + 400 * scene(0)).astype(np.uint16), io.BytesIO()
    Image.fromarray(counts).save(file, 'PNG')
    seen = decode_compressed(file.getvalue(), 'mono16; png compressed ')
    assert np.array_equal(seen, decode(counts))


@pytest.mark.parametrize('alpha, kind', [(False, 2), (True, 6)])
def test_colours_of_16_bits_in_a_png_keep_them_all(alpha, kind, rng):
    """As image_transport stores rgb16 of a 12-bit camera; Pillow would keep the upper 8 bits."""
    counts = rng.integers(0, 4096, (HEIGHT, WIDTH, 3))
    stored = np.dstack([counts, np.full((HEIGHT, WIDTH), 65535)]) if alpha else counts
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in stored)
    header = struct.pack('>IIBBBBB', WIDTH, HEIGHT, 16, kind, 0, 0, 0)
    parts = (b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')
    data = b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)
    seen = decode_compressed(data, 'rgb16; png compressed bgr16')
    assert np.array_equal(seen, decode(counts, 'rgb16')) and seen.max() == 255
    with pytest.raises(InputError, match='damaged or cut off'):
        decode_compressed(data[: len(data) // 2], 'rgb16; png compressed bgr16')


def test_ranges_hold_what_they_are_made_for_and_stay_on_the_grid(rng):
    for _ in range(500):
        low = int(rng.integers(0, 60000))
        high = low + int(rng.integers(LEAST_SPAN, 5000))
        begin, span = range_on_grid(low, high)
        assert begin <= low and high <= begin + span and span < 3.4 * (high - low)
        assert begin % (span // 8) == 0
