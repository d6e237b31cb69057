# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips as ROS bags, read and written without ROS.

A clip has pictures (sensor_msgs/CompressedImage or Image) and sound (of ros-drivers'
audio_common_msgs AudioDataStamped or AudioData, with AudioInfo; of mgonzs13's AudioStamped or
Audio), each on one topic of any name, or on the one that Sources names; either may lack.
Stamps are those of the headers; what has none or a stamp of zero is taken to end when it was
recorded. Sound is given at 16 kHz, mono, whatever it was recorded in. Of a damaged bag what can
be read is given, and `losses` says what was lost.
"""

import os
import tempfile
from heapq import merge
from pathlib import Path

import numpy as np

from minicpmo_ros.evaluation.clip import (
    NS,
    PICTURE,
    PLAIN_SOUND,
    RAW_PICTURE,
    SAMPLE_RATE_HZ,
    SOUND,
    SOUND_INFO,
    Clip,
    Shot,
    Sources,
    png,
    type_store,
)
from minicpmo_ros.evaluation.clip_reading import read_clip

__all__ = [
    'NS',
    'PICTURE',
    'PLAIN_SOUND',
    'RAW_PICTURE',
    'SAMPLE_RATE_HZ',
    'SOUND',
    'SOUND_INFO',
    'Clip',
    'Shot',
    'Sources',
    'png',
    'read_clip',
    'type_store',
    'write_clip',
]
CHUNK = SAMPLE_RATE_HZ // 10  # samples of one message that is written
TOPICS = {PICTURE: '/image/compressed', SOUND: '/audio', SOUND_INFO: '/audio_info'}


def write_clip(path, start_s: int, pictures, samples: np.ndarray) -> None:
    """Write an MCAP file; the same clip gives the same bytes.

    pictures: of (nanoseconds from start_s, JPEG bytes) in order, read as they are written.
    samples: (n,) float32 in [-1, 1], 16 kHz; they begin at start_s and are stored in 16 bits, 100
    ms a message.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    path, types = Path(path), type_store()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        writer = Writer(Path(folder) / path.stem, version=9, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        with writer:
            connections = {
                kind: writer.add_connection(topic, kind, typestore=types)
                for kind, topic in TOPICS.items()
            }
            for at_ns, kind, message in _messages(types, start_s, pictures, samples):
                writer.write(connections[kind], at_ns, types.serialize_cdr(message, kind))
        os.replace(Path(folder) / path.stem / f'{path.stem}.mcap', path)


def _messages(types, start_s: int, pictures, samples: np.ndarray):
    """Give (when it is recorded, kind, message) in order; sound comes when it is complete."""
    info = types.types[SOUND_INFO](
        channels=1,
        sample_rate=SAMPLE_RATE_HZ,
        sample_format='S16LE',
        bitrate=16 * SAMPLE_RATE_HZ,
        coding_format='wave',
    )
    start_ns = start_s * NS
    yield start_ns, SOUND_INFO, info
    yield from merge(
        _picture_messages(types, start_ns, pictures),
        _sound_messages(types, start_ns, samples),
        key=lambda row: row[0],
    )


def _picture_messages(types, start_ns: int, pictures):
    for after_ns, data in pictures:
        message = types.types[PICTURE](
            header=_header(types, start_ns + after_ns, 'camera'),
            format='jpeg',
            data=np.frombuffer(data, np.uint8),
        )
        yield start_ns + after_ns, PICTURE, message


def _sound_messages(types, start_ns: int, samples: np.ndarray):
    pcm = np.clip(np.rint(np.asarray(samples) * 32767), -32768, 32767).astype('<i2')  # (n,)
    for begin in range(0, len(pcm), CHUNK):
        part = pcm[begin : begin + CHUNK]
        begin_ns, end_ns = (
            start_ns + n * NS // SAMPLE_RATE_HZ for n in (begin, begin + len(part))
        )
        data = types.types[PLAIN_SOUND](data=part.view(np.uint8))
        message = types.types[SOUND](header=_header(types, begin_ns, 'microphone'), audio=data)
        yield end_ns, SOUND, message


def _header(types, stamp_ns: int, frame_id: str):
    stamp = types.types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, NS))
    return types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)
