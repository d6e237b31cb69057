# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A clip in memory, and the types of the messages it comes from."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from minicpmo_ros.media.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.picture import decode_compressed
from minicpmo_ros.media.raw_picture import decode_image

NS = 10**9
PICTURE, RAW_PICTURE = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'
PLAIN_SOUND, SOUND, SOUND_INFO = (
    f'audio_common_msgs/msg/{name}' for name in ('AudioData', 'AudioDataStamped', 'AudioInfo')
)
ARRAYS, PLAIN_ARRAYS = (f'audio_common_msgs/msg/{name}' for name in ('AudioStamped', 'Audio'))
DEFINITIONS = {  # as ros-drivers has them
    PLAIN_SOUND: 'uint8[] data',
    SOUND: 'std_msgs/Header header\naudio_common_msgs/AudioData audio',
    SOUND_INFO: 'uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\n'
    'string coding_format',
}
# The same of mgonzs13's package of that name, which cannot be in one store with the other.
ARRAY_DEFINITIONS = {
    ARRAYS: 'std_msgs/Header header\naudio_common_msgs/Audio audio',
    PLAIN_ARRAYS: 'audio_common_msgs/AudioData audio_data\naudio_common_msgs/AudioInfo info',
    PLAIN_SOUND: 'float32[] float32_data\nint32[] int32_data\nint16[] int16_data\n'
    'int8[] int8_data\nuint8[] uint8_data',
    SOUND_INFO: 'int32 format\nint32 channels\nint32 rate\nint32 chunk',
}


@dataclass(frozen=True)
class Sources:
    """The camera and the microphone that are meant, of several in a bag; empty: the only one."""

    image_topic: str = ''  # compressed pictures are on this name, or on it with /compressed
    audio_topic: str = ''  # its format is on this name with _info, or the only one


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
        rgb = partial(decode_image, message)
        return cls(stamp_ns, rgb, lambda: ('png', png(rgb())))


@dataclass(frozen=True)
class Clip:
    """What a camera and a microphone sent, in the order of the stamps."""

    pictures: tuple  # of Shot
    sound: tuple  # of (stamp_ns, samples (n,) float32 at 16 kHz, mono)
    losses: tuple = ()  # sentences
    begins_s: int | None = None  # its first second, where only a part of it is here

    @property
    def first_s(self) -> int:
        """The second in which the clip begins."""
        if self.begins_s is not None:
            return self.begins_s
        stamps = [shot.stamp_ns for shot in self.pictures[:1]]
        stamps += [stamp for stamp, _ in self.sound[:1]]
        return min(stamps) // NS

    def between(self, start_s: int, end_s: int) -> 'Clip':
        """Give the part with stamps in [start_s, end_s), chunks of sound cut to the sample."""
        shots = tuple(s for s in self.pictures if start_s <= s.stamp_ns // NS < end_s)
        kept, at_ns = [], 0
        for stamp_ns, samples in self.sound:
            begin_ns = at_ns if stamp_ns is None else stamp_ns
            at_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
            skip, stop = (_samples_before(edge_s * NS - begin_ns) for edge_s in (start_s, end_s))
            part = samples[skip:stop]
            if len(part):
                kept.append((begin_ns + skip * NS // SAMPLE_RATE_HZ, part))
        return replace(self, pictures=shots, sound=tuple(kept), begins_s=None)


def _samples_before(after_ns: int) -> int:
    """Count the samples of a chunk that lie less than so many nanoseconds after its begin."""
    return -(-max(0, after_ns) * SAMPLE_RATE_HZ // NS)


def png(picture: np.ndarray) -> bytes:
    """Store (H, W, 3) uint8 without loss, quickly."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'PNG', compress_level=1)
    return file.getvalue()


def type_store(own: dict | None = None, definitions: dict = DEFINITIONS):
    """Give the types of ROS 2 and of sound; `own`: definitions that a bag brought along."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in definitions.items():
        # A bag's own has the definitions of its parts behind it; some bags have empty ones.
        told = (own or {}).get(name, '').split('=' * 80)[0]
        store.register(get_types_from_msg(told if told.strip() else text, name))
    return store
