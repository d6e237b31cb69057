# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A clip: images and audio of some seconds of a recording, and how they are kept.

While a bag is read once, the pieces that the wanted windows need are kept, on disk if they are
many. In memory are their places and the newest images alone; a clip of some of the windows is read
back when it is asked for, or piece by piece as one goes through it.
"""

import functools
import io
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from minicpmo_ros.media.audio.format import MEAN
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.media.image.compressed import decode_as_needed
from minicpmo_ros.media.image.raw import decode_image
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.units import NS

IMAGE, RAW_IMAGE = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'
PLAIN_AUDIO, AUDIO, AUDIO_INFO = (
    f'audio_common_msgs/msg/{name}' for name in ('AudioData', 'AudioDataStamped', 'AudioInfo')
)
ARRAYS, PLAIN_ARRAYS = (f'audio_common_msgs/msg/{name}' for name in ('AudioStamped', 'Audio'))
DEFINITIONS = {  # as ros-drivers has them
    PLAIN_AUDIO: 'uint8[] data',
    AUDIO: 'std_msgs/Header header\naudio_common_msgs/AudioData audio',
    AUDIO_INFO: 'uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\n'
    'string coding_format',
}
# The same of mgonzs13's package of that name, which cannot be in one store with the other.
ARRAY_DEFINITIONS = {
    ARRAYS: 'std_msgs/Header header\naudio_common_msgs/Audio audio',
    PLAIN_ARRAYS: 'audio_common_msgs/AudioData audio_data\naudio_common_msgs/AudioInfo info',
    PLAIN_AUDIO: 'float32[] float32_data\nint32[] int32_data\nint16[] int16_data\n'
    'int8[] int8_data\nuint8[] uint8_data',
    AUDIO_INFO: 'int32 format\nint32 channels\nint32 rate\nint32 chunk',
}
IN_MEMORY_BYTES = 2**26  # of pieces; what is more lies in a file that nobody else sees
RECENT = 4  # seconds whose newest image may still be displaced
SAMPLE_BYTES = 4
LONGEST_WINDOW_S = 24 * 3600  # that is read of a bag at once


@dataclass(frozen=True)
class Sources:
    """The camera and the microphone that are meant, of several in a bag; empty: the only one.

    audio_channel: 'mean' of the channels or the number of one, as channels.parse_channel reads it.
    """

    image_topic: str = ''  # compressed images are on this name, or on it with /compressed
    audio_topic: str = ''  # its format is on this name with _info, or the only one
    audio_channel: str = MEAN
    audio_format: str = ''  # of raw audio whose format nothing in the bag tells, as 16000,1,S16LE


class Decoding:
    """Decodes an image when it is called, and remembers why it could not.

    `decode(needed)` returns a Decoded; see decode_as_needed.
    """

    def __init__(self, decode: Callable):
        self._decode, self._problem = decode, None

    def __call__(self) -> np.ndarray:
        """Return (H, W, 3) uint8; raises what the decoder raises."""
        return self.as_needed(None).pixels

    def as_needed(self, needed: Callable | None) -> Decoded:
        """Return the image as a live camera's is decoded: no larger than it is needed."""
        try:
            image = self._decode(needed)
        except Exception as error:  # of damaged bytes a decoder raises almost anything
            self._problem = str(error) or type(error).__name__
            raise
        self._problem = ''
        return image

    @property
    def problem(self) -> str:
        """Why there is no image, or ''; decodes it where nobody has."""
        if self._problem is None:
            try:
                self()
            except Exception:  # it is told
                pass
        return self._problem


@dataclass(frozen=True)
class ClipImage:
    """One image of a camera, decoded when it is asked for."""

    stamp_ns: int
    rgb: Decoding  # () -> (H, W, 3) uint8; raises InputError
    compressed: Callable  # () -> (format, bytes) as CompressedImage has them

    @classmethod
    def of_compressed(cls, stamp_ns: int, name: str, data: bytes) -> 'ClipImage':
        """Make one of what a CompressedImage holds."""
        rgb = Decoding(functools.partial(decode_as_needed, data, name))
        return cls(stamp_ns, rgb, lambda: (name, data))

    @classmethod
    def of_raw(cls, stamp_ns: int, message) -> 'ClipImage':
        """Make one of a sensor_msgs/Image."""
        rgb = Decoding(lambda _: Decoded.whole(decode_image(message)))
        return cls(stamp_ns, rgb, lambda: ('png', png(rgb())))


@dataclass(frozen=True)
class Clip:
    """What a camera and a microphone sent, in the order of the stamps."""

    images: Sequence  # of ClipImage
    audio: Sequence  # of (stamp_ns, samples (n,) float32 at 16 kHz, mono)
    losses: tuple = ()  # sentences
    begins_s: int | None = None  # its first second, where only a part of it is here

    @property
    def first_s(self) -> int:
        """The second in which the clip begins."""
        if self.begins_s is not None:
            return self.begins_s
        stamps = [image.stamp_ns for image in self.images[:1]]
        stamps += [stamp for stamp, _ in self.audio[:1]]
        return min(stamps) // NS

    def between(self, start_s: int, end_s: int) -> 'Clip':
        """Return the part with stamps in [start_s, end_s), chunks of audio cut to the sample."""
        images = tuple(i for i in self.images if start_s <= i.stamp_ns // NS < end_s)
        kept, at_ns = [], 0
        for stamp_ns, samples in self.audio:
            begin_ns = at_ns if stamp_ns is None else stamp_ns
            at_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
            skip, stop = (_samples_before(edge_s * NS - begin_ns) for edge_s in (start_s, end_s))
            part = samples[skip:stop]
            if len(part):
                kept.append((begin_ns + skip * NS // SAMPLE_RATE_HZ, part))
        return replace(self, images=images, audio=tuple(kept), begins_s=None)


def _samples_before(after_ns: int) -> int:
    """Count the samples of a chunk that lie less than so many nanoseconds after its begin."""
    return -(-max(0, after_ns) * SAMPLE_RATE_HZ // NS)


def png(image: np.ndarray) -> bytes:
    """Store (H, W, 3) uint8 without loss, quickly."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG', compress_level=1)
    return file.getvalue()


def type_store(own: dict | None = None, definitions: dict = DEFINITIONS):
    """Return the types of ROS 2 and of audio; `own`: definitions that a bag brought along.

    The store is shared, so that each type is compiled once: register nothing in it.
    """
    return _shared_store(tuple(definitions.items()), _told(own, definitions))


def new_type_store(own: dict | None = None, definitions: dict = DEFINITIONS):
    """Return a store as type_store, in which more may be registered."""
    return _new_store(tuple(definitions.items()), _told(own, definitions))


def _told(own: dict | None, definitions: dict) -> tuple:
    # A bag's own has the definitions of its parts behind it; some bags have empty ones.
    return tuple((own or {}).get(name, '').split('=' * 80)[0] for name in definitions)


def _new_store(definitions: tuple, told: tuple):
    from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for (name, text), theirs in zip(definitions, told):
        ours = get_types_from_msg(text, name)
        try:
            theirs = get_types_from_msg(theirs, name)
            has_all = all(field in theirs[name][1] for field in ours[name][1])
        except TypesysError:
            has_all = False
        store.register(theirs if has_all else ours)
    return store


_shared_store = functools.lru_cache(maxsize=16)(_new_store)


class Pieces(Sequence):
    """Images or chunks of audio that are read from the disk whenever they are asked for."""

    def __init__(self, places: list, read: Callable):
        self._places, self._read = places, read

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    def __getitem__(self, at):
        """Read one, or a tuple of some."""
        found = self._places[at]
        return tuple(map(self._read, found)) if isinstance(at, slice) else self._read(found)


class Kept:
    """Images and audio of the wanted seconds.

    newest_only: of each second the newest image, as the eyes take it; else all images.
    """

    def __init__(self, newest_only: bool):
        self._newest_only = newest_only
        self._file, self._size = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES), 0
        self._recent = {}  # key: (stamp_ns, is raw, message), in order of coming
        self._images = {}  # key: (stamp_ns, is raw, message without its data, place, size)
        self._begins_ns, self._places, self._counts = array('q'), array('q'), array('q')
        self._losses, self.first_s = (), None
        self.end_s = None  # of the newest second of the bag, wanted or not

    def __enter__(self):
        """Return itself."""
        return self

    def __exit__(self, *_):
        """Close."""
        self.close()

    def close(self) -> None:
        """Remove what is on disk; clips that were taken stay."""
        self._file.close()

    def put_image(self, stamp_ns: int, is_raw: bool, message) -> None:
        """Keep a sensor_msgs/Image or CompressedImage; of one moment the raw one is the better."""
        second = stamp_ns // NS
        key = second if self._newest_only else (second, len(self._images) + len(self._recent))
        held = self._recent.get(key) or self._images.get(key)
        if held is None or held[:2] <= (stamp_ns, is_raw):
            self._recent[key] = (stamp_ns, is_raw, message)
        while len(self._recent) > RECENT:
            self._store(next(iter(self._recent)))

    def _store(self, key) -> None:
        stamp_ns, is_raw, message = self._recent.pop(key)
        head = replace(message, data=message.data[:0].copy())  # not a view, which holds it all
        place = self._append(message.data.tobytes())
        self._images[key] = (stamp_ns, is_raw, head, place, message.data.nbytes)

    def add_audio(self, begin_ns: int, samples: np.ndarray) -> None:
        """Keep samples (n,) float32."""
        self._begins_ns.append(begin_ns)
        self._places.append(self._append(samples.tobytes()))
        self._counts.append(len(samples))

    def finish(self, losses: list, first_s: int, end_s: int) -> None:
        """End the reading of what lies in [first_s, end_s), wanted or not."""
        while self._recent:
            self._store(next(iter(self._recent)))
        self._losses, self.first_s, self.end_s = tuple(losses), first_s, end_s

    def clip(self, windows=None) -> Clip:
        """Return what some windows, as read_windows has them, need; None: all that is here."""
        clip = self.clip_on_disk(windows)
        return replace(clip, images=tuple(clip.images), audio=tuple(clip.audio))

    def clip_on_disk(self, windows=None) -> Clip:
        """Return the same, however long: its pieces are read anew each time, until `close`."""
        seconds = None
        if windows is not None:
            seconds = set()
            for (begin, end), relative in windows:
                shift_s = self.first_s if relative else 0
                seconds.update(range(begin + shift_s, end + shift_s))
        images = sorted(
            (entry for entry in self._images.values() if _is_in(seconds, entry[0], 1)),
            key=lambda entry: entry[:2],
        )
        audio = [
            entry
            for entry in zip(self._begins_ns, self._places, self._counts)
            if _is_in(seconds, entry[0], entry[2] * NS // SAMPLE_RATE_HZ)
        ]
        pieces = Pieces(images, self._image), Pieces(audio, self._chunk)
        return Clip(*pieces, self._losses, self.first_s)

    def _chunk(self, entry: tuple) -> tuple:
        begin_ns, place, count = entry
        return begin_ns, np.frombuffer(self._read(place, count * SAMPLE_BYTES), np.float32)

    def _image(self, entry: tuple) -> ClipImage:
        stamp_ns, is_raw, head, place, size = entry
        data = self._read(place, size)
        if is_raw:
            message = replace(head, data=np.frombuffer(data, head.data.dtype))
            return ClipImage.of_raw(stamp_ns, message)
        return ClipImage.of_compressed(stamp_ns, head.format, data)

    def _append(self, data: bytes) -> int:
        place = self._size
        self._file.seek(place)
        self._file.write(data)
        self._size += len(data)
        return place

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)


def _is_in(seconds: set | None, begin_ns: int, length_ns: int) -> bool:
    """Return whether any of [begin_ns, begin_ns + length_ns) is in one of the seconds."""
    if seconds is None:
        return True
    return any(s in seconds for s in range(begin_ns // NS, -(-(begin_ns + length_ns) // NS)))
