# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips as ROS bags (MCAP), read and written without ROS.

A clip has pictures (sensor_msgs/CompressedImage) and sound (audio_common_msgs/AudioDataStamped
with one AudioInfo), each on one topic of any name; either may lack. Stamps are those of the
headers. Sound is given at 16 kHz, mono, whatever it was recorded in.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.pcm import RAW_CODINGS, to_float_mono
from minicpmo_ros.media.resample import Resampler

NS = 10**9
CHUNK = SAMPLE_RATE_HZ // 10  # samples of one message that is written
PICTURE = 'sensor_msgs/msg/CompressedImage'
SOUND, SOUND_DATA, SOUND_INFO = (
    f'audio_common_msgs/msg/{name}' for name in ('AudioDataStamped', 'AudioData', 'AudioInfo')
)
TOPICS = {PICTURE: '/image/compressed', SOUND: '/audio', SOUND_INFO: '/audio_info'}
DEFINITIONS = {  # as ros-drivers has them
    SOUND_DATA: 'uint8[] data',
    SOUND: 'std_msgs/Header header\naudio_common_msgs/AudioData audio',
    SOUND_INFO: 'uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\n'
    'string coding_format',
}


@dataclass(frozen=True)
class Clip:
    """What a camera and a microphone sent, in the order of the stamps."""

    pictures: tuple  # of (stamp_ns, format, bytes), JPEG or PNG
    sound: tuple  # of (stamp_ns, samples (n,) float32 at 16 kHz, mono)


def read_clip(path) -> Clip:
    """Read a bag: an MCAP file, or a folder with metadata; raises InputError."""
    from rosbags.highlevel import AnyReader  # not needed by the live graph

    try:
        with AnyReader([Path(path)]) as reader:
            streams = {kind: _one_topic(path, reader.connections, kind) for kind in TOPICS}
            messages = {
                kind: [
                    reader.deserialize(raw, connection.msgtype)
                    for connection, _, raw in reader.messages(connections)
                ]
                if connections
                else []
                for kind, connections in streams.items()
            }
    except InputError:
        raise
    except Exception as error:  # damaged bags raise almost anything
        raise InputError(
            f'{path}: it is not a bag that can be read ({error}). Record it anew, as MCAP.'
        ) from error
    if not messages[PICTURE] and not messages[SOUND]:
        raise InputError(f'{path}: it has neither {PICTURE} nor {SOUND}.')
    pictures = sorted((_stamp_ns(m), m.format, m.data.tobytes()) for m in messages[PICTURE])
    return Clip(tuple(pictures), tuple(_samples(path, messages[SOUND], messages[SOUND_INFO])))


def write_clip(path, start_s: int, pictures: list, samples: np.ndarray) -> None:
    """Write an MCAP file; the same clip gives the same bytes.

    pictures: of (nanoseconds from start_s, JPEG bytes). samples: (n,) float32 in [-1, 1], 16 kHz;
    they begin at start_s and are stored in 16 bits, 100 ms a message.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    path, types = Path(path), _type_store()
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


def _messages(types, start_s: int, pictures: list, samples: np.ndarray) -> list:
    """Give (when it is recorded, kind, message) in order; sound comes when it is complete."""
    info = types.types[SOUND_INFO](
        channels=1,
        sample_rate=SAMPLE_RATE_HZ,
        sample_format='S16LE',
        bitrate=16 * SAMPLE_RATE_HZ,
        coding_format='wave',
    )
    start_ns = start_s * NS
    rows = [(start_ns, SOUND_INFO, info)]
    for after_ns, data in pictures:
        message = types.types[PICTURE](
            header=_header(types, start_ns + after_ns, 'camera'),
            format='jpeg',
            data=np.frombuffer(data, np.uint8),
        )
        rows.append((start_ns + after_ns, PICTURE, message))
    pcm = np.clip(np.rint(np.asarray(samples) * 32767), -32768, 32767).astype('<i2')  # (n,)
    for begin in range(0, len(pcm), CHUNK):
        part = pcm[begin : begin + CHUNK]
        begin_ns, end_ns = (
            start_ns + n * NS // SAMPLE_RATE_HZ for n in (begin, begin + len(part))
        )
        data = types.types[SOUND_DATA](data=part.view(np.uint8))
        message = types.types[SOUND](header=_header(types, begin_ns, 'microphone'), audio=data)
        rows.append((end_ns, SOUND, message))
    return sorted(rows, key=lambda row: row[0])


def _header(types, stamp_ns: int, frame_id: str):
    stamp = types.types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, NS))
    return types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)


def _type_store():
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in DEFINITIONS.items():
        store.register(get_types_from_msg(text, name))
    return store


def _one_topic(path, connections: list, kind: str) -> list:
    """Give the connections of the only topic of a kind."""
    found = [c for c in connections if c.msgtype == kind]
    topics = sorted({c.topic for c in found})
    if len(topics) > 1:
        raise InputError(
            f'{path}: {kind} is on {", ".join(topics)}; one topic of it is allowed. '
            'Leave the others out of the bag.'
        )
    return found


def _stamp_ns(message) -> int:
    return message.header.stamp.sec * NS + message.header.stamp.nanosec


def _samples(path, messages: list, infos: list) -> list:
    """Give the sound of messages as (stamp_ns, samples)."""
    if not messages:
        return []
    formats = {(i.sample_rate, i.channels, i.sample_format, i.coding_format) for i in infos}
    if len(formats) != 1:
        raise InputError(
            f'{path}: {len(formats)} formats of its sound are told by {SOUND_INFO}, one is needed.'
        )
    rate_hz, channels, sample_format, coding = formats.pop()
    if coding not in RAW_CODINGS:
        raise InputError(f'{path}: its sound is coded as {coding!r}; raw PCM is allowed.')
    resampler, chunks = Resampler(rate_hz), []
    for message in messages:
        stamp_ns = _stamp_ns(message) - resampler.lag_ns
        samples = to_float_mono(message.audio.data, sample_format, channels)
        chunks.append((stamp_ns, resampler.push(samples)))
    rest = resampler.flush()
    return [*chunks, (None, rest)] if len(rest) else chunks
