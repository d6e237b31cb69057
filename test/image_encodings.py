# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A camera of any kind: RGB pictures as sensor_msgs/Image carries them in each encoding."""

from dataclasses import dataclass

import numpy as np

# ITU-R BT.601, of RGB 0..1: Y of 16 to 235, U and V of 16 to 240.
BT_601 = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)
SAME = {
    '8UC1': 'mono8',
    '8UC3': 'bgr8',
    '8UC4': 'bgra8',
    '16UC3': 'bgr16',
    '16UC4': 'bgra16',
    'yuv422': 'uyvy',
    'yuv422_yuy2': 'yuyv',
    '16UC1 (grey)': 'mono16',
}
FLOATS = '32FC1 (grey)'  # of 0 to 1


@dataclass(frozen=True)
class Raw:
    """The fields of an Image.msg."""

    encoding: str
    height: int
    width: int
    step: int
    data: bytes
    is_bigendian: bool = False

    @property
    def arguments(self) -> tuple:
        """As decode_raw takes them."""
        fields = self.height, self.width, self.step, self.data, self.is_bigendian
        return (self.encoding, *fields)


def encode(rgb, encoding: str, padding: int = 0, is_bigendian: bool = False) -> Raw:
    """Encode (h, w, 3) uint8 with `padding` bytes of rubbish after each row."""
    name = 'mono32' if encoding == FLOATS else SAME.get(encoding, encoding)
    depth = 2 if name.endswith('16') else 1
    planes = _planes(rgb, name.removesuffix('16').removesuffix('8').removesuffix('32'))
    if name == 'mono32':
        planes = [(plane / 255).astype(f'{"<>"[is_bigendian]}f4') for plane in planes]
    if depth == 2:
        # Not only multiples of 257, whose two bytes are equal; rounded they are the same.
        deep = [np.minimum(plane.astype(np.uint32) * 257 + 90, 65535) for plane in planes]
        planes = [plane.astype(f'{"<>"[is_bigendian]}u2') for plane in deep]
    rows = [np.ascontiguousarray(plane).view(np.uint8) for plane in planes]  # (n, bytes)
    step = rows[0].shape[1] + padding
    # A plane whose rows are twice as long has a step twice as long.
    steps = [step * (row.shape[1] // rows[0].shape[1]) for row in rows]
    padded = [
        np.pad(row, ((0, 0), (0, wide - row.shape[1])), constant_values=99)
        for row, wide in zip(rows, steps)
    ]
    data = b''.join(plane.tobytes() for plane in padded)
    return Raw(encoding, *rgb.shape[:2], step, data, is_bigendian)


def grey(rgb) -> np.ndarray:
    """Give (h, w, 3) of which all colours are the mean."""
    return np.repeat(rgb.mean(2, keepdims=True).round().astype(np.uint8), 3, axis=2)


def _planes(rgb, name: str) -> list:
    """Give arrays (rows, samples a row) uint8."""
    height, width = rgb.shape[:2]
    if name == 'mono':
        return [grey(rgb)[..., 0]]
    if name.startswith('bayer_'):
        mosaic = np.empty((height, width), np.uint8)
        for site, color in enumerate(name[-4:]):
            y, x = divmod(site, 2)
            mosaic[y::2, x::2] = rgb[y::2, x::2, 'rgb'.index(color)]
        return [mosaic]
    if name in ('uyvy', 'yuyv'):
        y, chroma = _yuv(rgb, 1, 2)
        pairs = np.empty((height, width, 2), np.uint8)
        pairs[..., name.index('y')] = y
        pairs[..., 1 - name.index('y')] = chroma.reshape(height, width)
        return [pairs.reshape(height, -1)]
    if name.startswith('nv'):
        y, chroma = _yuv(rgb, *((1, 1) if name == 'nv24' else (2, 2)))
        chroma = chroma[..., ::-1] if name == 'nv21' else chroma
        return [y, chroma.reshape(len(chroma), -1)]
    alpha = np.full((height, width, 1), 77, np.uint8)
    pixels = np.concatenate([rgb if name.startswith('rgb') else rgb[..., ::-1], alpha], axis=2)
    return [pixels[..., : len(name)].reshape(height, -1)]


def _yuv(rgb, down: int, right: int) -> tuple:
    """Give y (h, w) and chroma (h / down, w / right, 2), uint8."""
    yuv = rgb / 255 @ BT_601.T + (16, 128, 128)
    height, width = rgb.shape[:2]
    blocks = yuv[..., 1:].reshape(height // down, down, width // right, right, 2)
    return yuv[..., 0].round().astype(np.uint8), blocks.mean((1, 3)).round().astype(np.uint8)
