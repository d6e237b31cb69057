# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips as ROS bags, read and written without ROS.

A clip has pictures (sensor_msgs/CompressedImage or Image) and sound (audio_common_msgs's
AudioDataStamped or AudioData, with AudioInfo), each on one topic of any name; either may lack.
Stamps are those of the headers; what has none or a stamp of zero is taken to end when it was
recorded. Sound is given at 16 kHz, mono, whatever it was recorded in. Of a damaged bag what can
be read is given, and `losses` says what was lost.
"""

import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import merge
from pathlib import Path

import numpy as np
from PIL import Image

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import Bag
from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.picture import decode_compressed
from minicpmo_ros.media.raw_picture import decode_raw
from minicpmo_ros.media.sound import AudioFormat, SoundStream

NS = 10**9
CHUNK = SAMPLE_RATE_HZ // 10  # samples of one message that is written
PICTURE, RAW_PICTURE = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'
PLAIN_SOUND, SOUND, SOUND_INFO = (
    f'audio_common_msgs/msg/{name}' for name in ('AudioData', 'AudioDataStamped', 'AudioInfo')
)
TOPICS = {PICTURE: '/image/compressed', SOUND: '/audio', SOUND_INFO: '/audio_info'}
DEFINITIONS = {  # as ros-drivers has them
    PLAIN_SOUND: 'uint8[] data',
    SOUND: 'std_msgs/Header header\naudio_common_msgs/AudioData audio',
    SOUND_INFO: 'uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\n'
    'string coding_format',
}


@dataclass(frozen=True)
class Shot:
    """One picture of a camera, decoded when it is asked for."""

    stamp_ns: int
    rgb: Callable  # () -> (H, W, 3) uint8; raises InputError
    compressed: Callable  # () -> (format, bytes) as CompressedImage has them

    @classmethod
    def of_compressed(cls, stamp_ns: int, name: str, data: bytes) -> 'Shot':
        """Make one of what a CompressedImage holds."""
        return cls(stamp_ns, lambda: decode_compressed(data, name), lambda: (name, data))

    @classmethod
    def of_raw(cls, stamp_ns: int, message) -> 'Shot':
        """Make one of a sensor_msgs/Image."""

        def rgb():
            return decode_raw(
                message.encoding,
                message.height,
                message.width,
                message.step,
                message.data,
                bool(message.is_bigendian),
            )

        return cls(stamp_ns, rgb, lambda: ('png', png(rgb())))


@dataclass(frozen=True)
class Clip:
    """What a camera and a microphone sent, in the order of the stamps."""

    pictures: tuple  # of Shot
    sound: tuple  # of (stamp_ns, samples (n,) float32 at 16 kHz, mono)
    losses: tuple = ()  # sentences

    @property
    def first_s(self) -> int:
        """The second in which the clip begins."""
        stamps = [shot.stamp_ns for shot in self.pictures[:1]]
        stamps += [stamp for stamp, _ in self.sound[:1]]
        return min(stamps) // NS

    def between(self, start_s: int, end_s: int) -> 'Clip':
        """Give the part with stamps in [start_s, end_s), in whole chunks of sound."""
        shots = tuple(s for s in self.pictures if start_s <= s.stamp_ns // NS < end_s)
        kept, at_ns = [], 0
        for stamp_ns, samples in self.sound:
            begin_ns = at_ns if stamp_ns is None else stamp_ns
            at_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
            skip = max(0, start_s * NS - begin_ns) * SAMPLE_RATE_HZ // NS
            stop = max(0, end_s * NS - begin_ns) * SAMPLE_RATE_HZ // NS
            part = samples[skip:stop]
            if len(part):
                kept.append((begin_ns + skip * NS // SAMPLE_RATE_HZ, part))
        return replace(self, pictures=shots, sound=tuple(kept))


def png(picture: np.ndarray) -> bytes:
    """Store (H, W, 3) uint8 without loss, quickly."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'PNG', compress_level=1)
    return file.getvalue()


def read_clip(path) -> Clip:
    """Read a bag, as bags.Bag finds it; InputError where no picture and no sound is in it."""
    bag, unreadable = Bag(path), Counter()
    found = {kind: {} for kind in (PICTURE, RAW_PICTURE, SOUND, PLAIN_SOUND, SOUND_INFO)}
    types = None
    for message in bag.messages(tuple(found)):
        types = types or _type_store(bag.definitions)
        try:
            told = types.deserialize_cdr(message.data, message.kind)
        except Exception:  # of damaged bytes almost anything comes
            unreadable[message.topic] += 1
            continue
        found[message.kind].setdefault(message.topic, []).append((message.log_ns, told))
    losses = list(bag.losses)
    losses += [f'{n} messages of {topic} are damaged.' for topic, n in unreadable.items()]
    shots = [
        Shot.of_compressed(_stamp_ns(*entry), entry[1].format, entry[1].data.tobytes())
        for entry in _one_topic(path, found, PICTURE)
    ]
    shots += [
        Shot.of_raw(_stamp_ns(*entry), entry[1]) for entry in _one_topic(path, found, RAW_PICTURE)
    ]
    sound = _samples(path, found, losses)
    if not shots and not sound:
        raise InputError(
            f'{path}: it has neither pictures ({PICTURE}, {RAW_PICTURE}) nor sound ({SOUND}, '
            f'{PLAIN_SOUND}) that can be read. ' + ' '.join(losses)
        )
    shots.sort(key=lambda shot: shot.stamp_ns)
    return Clip(tuple(shots), tuple(sound), tuple(losses))


def write_clip(path, start_s: int, pictures, samples: np.ndarray) -> None:
    """Write an MCAP file; the same clip gives the same bytes.

    pictures: of (nanoseconds from start_s, JPEG bytes) in order, read as they are written.
    samples: (n,) float32 in [-1, 1], 16 kHz; they begin at start_s and are stored in 16 bits, 100
    ms a message.
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


def _type_store(own: dict | None = None):
    """Give the types of ROS 2 and of sound; `own`: definitions that a bag brought along."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in DEFINITIONS.items():
        # A bag's own has the definitions of its parts behind it; some bags have empty ones.
        told = (own or {}).get(name, '').split('=' * 80)[0]
        store.register(get_types_from_msg(told if told.strip() else text, name))
    return store


def _one_topic(path, found: dict, kind: str) -> list:
    """Give the (log_ns, message) of the only topic of a kind."""
    topics = found[kind]
    if len(topics) > 1:
        raise InputError(
            f'{path}: {kind} is on {", ".join(sorted(topics))}; one topic of it is allowed. '
            'Leave the others out of the bag.'
        )
    return next(iter(topics.values()), [])


def _stamp_ns(log_ns: int, message) -> int:
    stamp_ns = message.header.stamp.sec * NS + message.header.stamp.nanosec
    return stamp_ns or log_ns


def _samples(path, found: dict, losses: list) -> list:
    """Give the sound as (stamp_ns, samples)."""
    kinds = [kind for kind in (SOUND, PLAIN_SOUND) if found[kind]]
    messages = _one_topic(path, found, kinds[0]) if kinds else []
    if not messages:
        return []
    formats = {
        AudioFormat(i.sample_rate, i.channels, i.sample_format, i.coding_format, i.bitrate)
        for _, i in _one_topic(path, found, SOUND_INFO)
    }
    if len(formats) != 1:
        raise InputError(
            f'{path}: {len(formats)} formats of its sound are told by {SOUND_INFO}, one is needed.'
        )
    sound_format = formats.pop()
    stamped = []
    for log_ns, message in messages:
        data = (message.audio if kinds[0] == SOUND else message).data
        stamp_ns = _stamp_ns(0, message) if kinds[0] == SOUND else 0
        stamped.append((stamp_ns or log_ns - int(sound_format.duration_s(len(data)) * NS), data))
    stream, chunks, bad = SoundStream(sound_format), [], 0
    for stamp_ns, data in sorted(stamped, key=lambda entry: entry[0]):
        try:
            chunks.append(stream.push(stamp_ns, data.tobytes()))
        except InputError as error:
            bad, why = bad + 1, error
    if bad:
        losses.append(f'{bad} of {len(messages)} chunks of sound cannot be read: {why}')
    rest = stream.flush()
    chunks = [chunk for chunk in chunks if len(chunk[1])]
    return [*chunks, (None, rest)] if len(rest) else chunks
