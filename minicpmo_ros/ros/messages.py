# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Converts between the engine's data and the package's messages, and tells its diagnostics.

Embeddings travel as little-endian float16 bytes; a message is checked completely before its rows
are used. Every node imports this, so what only some need is imported where it is used: image
codecs and llama.cpp take 34 MiB.
"""

from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time

from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AlertState, ImageEmbedding, Status
from minicpmo_ros.streams import LARGEST
from minicpmo_ros.units import NS

if TYPE_CHECKING:
    from minicpmo_ros.alerts.watch import RuleStatus
    from minicpmo_ros.live.status import EngineStatus
    from minicpmo_ros.streams.image import ImageSecond
from minicpmo_ros.streams.pairing import check_cameras

STATES = {
    'unloaded': Status.UNLOADED,
    'loading': Status.LOADING,
    'ready': Status.READY,
    'failed': Status.FAILED,
}


def to_time(stamp_ns: int) -> Time:
    """Return nanoseconds as a Time, clipped to the range of its int32 seconds."""
    seconds, nanoseconds = divmod(int(stamp_ns), NS)
    return Time(sec=max(-(2**31), min(2**31 - 1, seconds)), nanosec=nanoseconds)


def seconds_to_time(stamp_s: float | None) -> Time:
    """Return seconds as a Time; None: 0."""
    return to_time(round((stamp_s or 0) * NS))


def time_ns(stamp: Time) -> int:
    """Return a Time in nanoseconds."""
    return stamp.sec * NS + stamp.nanosec


def stamp_ns_of(message) -> int:
    """Return the stamp of a message's header in nanoseconds."""
    return time_ns(message.header.stamp)


def put_rows(message, rows) -> None:
    """Write rows (tokens, width) float16 into an embedding message."""
    message.tokens, message.width = rows.shape
    # Only frombytes fills a uint8[] without making a Python object for each byte.
    message.data.frombytes(np.ascontiguousarray(rows, '<f2').tobytes())


def image_message(space: str, seen: 'ImageSecond') -> ImageEmbedding:
    """Return the embedding of an image as a message."""
    message = ImageEmbedding(model=space, second=seen.second, status=int(seen.status))
    message.header.stamp = to_time(seen.second * NS)
    message.picture_stamp = to_time(seen.image_stamp_ns)
    message.cameras = list(seen.cameras)
    for name in ('reused', 'source_width', 'source_height', 'area', 'tiles_wide', 'tiles_high',
                 'preprocess_ms', 'encode_ms'):  # fmt: skip
        setattr(message, name, getattr(seen, name))
    if seen.rows is not None:
        put_rows(message, seen.rows)
    return message


def take_image(message, model: str, width: int) -> 'ImageSecond | None':
    """Return an embedding message as an ImageSecond with what is read of it, None if empty.

    Raises InputError if the rows are another model's, or damaged.
    """
    rows = take_rows(message, model, width)
    if rows is None:
        return None
    from minicpmo_ros.streams.image import ImageSecond

    return ImageSecond(
        message.second,
        rows=rows,
        image_stamp_ns=time_ns(message.picture_stamp),
        area=message.area,
        tiles_wide=message.tiles_wide,
        tiles_high=message.tiles_high,
        cameras=tuple(message.cameras),
    )


def take_rows(message, model: str, width: int) -> np.ndarray | None:
    """Return the rows (tokens, width) float32 of an embedding message, or None if it has none.

    Raises InputError if they are another model's, or damaged.
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
    _check_cameras(message)
    rows = np.frombuffer(message.data, '<f2').reshape(-1, width).astype(np.float32)
    if not np.isfinite(rows).all() or np.abs(rows).max() >= LARGEST:
        raise InputError(f'embedding of second {message.second} is not finite or not below 6e4')
    return rows  # (tokens, width)


def _check_cameras(message) -> None:
    cameras = check_cameras(tuple(getattr(message, 'cameras', ())))
    if cameras and (message.tokens % len(cameras) or message.tiles_wide or message.tiles_high):
        raise InputError(
            f'embedding of {message.tokens} rows of the cameras {", ".join(cameras)}; allowed are '
            'equal shares without tiles'
        )


def diagnose_engine(report, status: 'EngineStatus', n_refused: int) -> None:
    """Report what an engine is doing, and what is lost and why.

    `n_refused`: embeddings that the node refused before the engine had them.
    """
    report.tell('units in the window', status.units)
    report.tell('positions', f'{status.positions} of {status.context_size}')
    report.count('units read', status.units_read)
    report.count(
        'units dropped',
        status.units_dropped,
        'reading a second takes longer than a second. Lower vision.max_tiles, raise '
        'vision.unchanged_threshold, or take a smaller model or more gpu_layers',
    )
    report.count(
        'late',
        status.late,
        'embeddings come after their unit was closed. Raise unit_deadline; where that changes '
        'nothing, the stamps of images and audio come from different clocks',
    )
    report.count(
        'refused',
        n_refused + status.units_refused,
        "embeddings are not this model's, or damaged; the log says more. Give all nodes the "
        'same model_dir',
    )
    report.count(
        'too large',
        status.units_too_large,
        'seconds take more positions than the window has. Raise n_ctx, or lower '
        'vision.max_tiles, max_tokens or max_question_tokens; the log has the numbers',
    )
    report.count('windows lost', status.rebuilds, f'{status.lost_window} The log says more')
    if status.stale:
        report.warn(status.stale)
    report.tell('questions waiting', status.waiting)
    report.tell('questions dropped', status.questions_dropped)
    report.tell('prefill of the newest unit [ms]', status.prefill_ms)
    report.tell('live seconds took of the newest answer [s]', status.answer_live_s)


def status_message(status: 'EngineStatus') -> Status:
    """Return what an engine tells of itself."""
    message = Status(state=STATES[status.state], progress=status.progress)
    message.reason, message.remedy = status.reason, status.remedy
    for name in ('window_start', 'window_end', 'image_end', 'audio_end'):
        setattr(message, name, seconds_to_time(getattr(status, f'{name}_s')))
    message.cameras = list(status.camera_ends_s)
    message.camera_ends = [seconds_to_time(end_s) for end_s in status.camera_ends_s.values()]
    for name in ('units', 'seconds', 'still', 'positions', 'context_size', 'waiting',
                 'answering', 'stale', 'questions_dropped', 'units_read', 'units_dropped',
                 'late', 'evicted', 'prefill_ms', 'restored'):  # fmt: skip
        setattr(message, name, getattr(status, name))
    return message


def alert_state_message(status: 'RuleStatus') -> AlertState:
    """Return what a standing question says now as a message."""
    return AlertState(
        rule=status.rule.id,
        state=getattr(AlertState, status.state.name),
        paused=status.paused,
        problem=status.problem,
        since=to_time(int(status.since_s * NS)),
        probability=status.probability,
        mass=status.mass,
        answer=status.answer,
        period_s=float(status.period_s),
        evaluated=status.evaluated,
        reused=status.reused,
    )
