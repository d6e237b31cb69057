# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Between the engine's data and the package's messages.

Embeddings travel as float16 little-endian bytes; a message is checked whole before its rows
are believed.
"""

import numpy as np
from builtin_interfaces.msg import Time

from minicpmo_ros.errors import InputError
from minicpmo_ros.live.status import LARGEST

NS = 1_000_000_000


def to_time(stamp_ns: int) -> Time:
    """Give nanoseconds as a Time, bounded to what its int32 seconds can say."""
    seconds, nanoseconds = divmod(int(stamp_ns), NS)
    return Time(sec=max(-(2**31), min(2**31 - 1, seconds)), nanosec=nanoseconds)


def stamp_ns_of(message) -> int:
    """Give the stamp of a message's header in nanoseconds."""
    return message.header.stamp.sec * NS + message.header.stamp.nanosec


def put_rows(message, rows) -> None:
    """Write rows (tokens, width) float16 into an embedding message."""
    message.tokens, message.width = rows.shape
    # frombytes is the one way into a uint8[] that does not cost a Python object a byte.
    message.data.frombytes(np.ascontiguousarray(rows, '<f2').tobytes())


def take_rows(message, model: str, width: int):
    """Give rows (tokens, width) float32 of an embedding message, or None when it has none.

    Raises InputError when they are another model's, or damaged.
    """
    if message.model != model:
        raise InputError(f'embedding of model {message.model!r}; this node runs {model!r}')
    if message.status != message.OK:
        return None
    expected = 2 * message.tokens * message.width
    if message.width != width or not message.tokens or len(message.data) != expected:
        raise InputError(
            f'embedding of {message.tokens} x {message.width} float16 in {len(message.data)} '
            f'bytes; allowed are rows of {width}, all of them and at least one'
        )
    rows = np.frombuffer(message.data, '<f2').reshape(-1, width).astype(np.float32)
    if not np.isfinite(rows).all() or np.abs(rows).max() >= LARGEST:
        raise InputError(f'embedding of second {message.second} is not finite or not below 6e4')
    return rows  # (tokens, width)
