# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Conversions by cv_bridge, where a ROS distribution has one that works.

It is asked for what takes time, mosaics and packed YUV, and gives what media.colors gives. It is
loaded with the first such picture: OpenCV comes with it.
"""

import sys
from types import SimpleNamespace

import numpy as np

# Aliases that older releases do not know.
_NAMES = {'uyvy': 'yuv422', 'yuyv': 'yuv422_yuy2'}


def to_rgb(encoding: str, width: int, rows: np.ndarray) -> np.ndarray | None:
    """Give (h, width, 3) uint8 of rows (h, samples a row) uint8 or uint16; None: do it yourself.

    encoding: as in sensor_msgs/image_encodings.hpp.
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
