# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write bags of one MCAP file: a clip, a video, or messages as they come.

A video gives one image a second, as StreamingBench shows them, and all its audio. The image of
second i is the one that is shown 0.1 s before its end, and is stamped so. Audio is mixed to mono
at 16 kHz; where a file has less of it than its stamps say, there is silence.

A recording stores messages as rosbag2 does: CDR, with ros2msg definitions. Every message is whole
on the disk once it is written, and the index comes when the file is closed; a recording that was
killed can be read all the same. While the disk is full new messages wait in memory, up to
MOST_WAITING bytes; more are lost, and the file can be read up to there.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import chain
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import (
    AUDIO,
    AUDIO_INFO,
    IMAGE,
    PLAIN_AUDIO,
    SAMPLE_RATE_HZ,
    new_type_store,
    type_store,
)
from minicpmo_ros.media.audio.stream import Resampler
from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.units import NS

START_S = 1_000_000_000  # stamp of a video's first instant in its bag
CHUNK = SAMPLE_RATE_HZ // 10  # samples of one message that is written
TOPICS = {
    IMAGE: '/image/compressed',
    AUDIO: '/audio',
    AUDIO_INFO: '/audio_info',
}
SHOWN_NS = 9 * NS // 10  # of a second
HOLE = SAMPLE_RATE_HZ // 10  # samples; less is the coding's own unrest
LONGEST_HOLE_S = 3600  # between stamps of a video
MOST_WAITING = 32 * 2**20


def write_clip(path, start_s: int, images, samples: np.ndarray) -> None:
    """Write an MCAP file; the same clip gives the same bytes.

    images: of (nanoseconds from start_s, JPEG bytes) in order, read as they are written.
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
            for at_ns, kind, message in clip_messages(types, start_s, images, samples):
                writer.write(connections[kind], at_ns, types.serialize_cdr(message, kind))
        os.replace(Path(folder) / path.stem / f'{path.stem}.mcap', path)


def clip_messages(types, start_s: int, images, samples: np.ndarray):
    """Yield (when it is recorded, kind, message) in order; audio comes when it is complete."""
    info = types.types[AUDIO_INFO](
        channels=1,
        sample_rate=SAMPLE_RATE_HZ,
        sample_format='S16LE',
        bitrate=16 * SAMPLE_RATE_HZ,
        coding_format='wave',
    )
    start_ns = start_s * NS
    yield start_ns, AUDIO_INFO, info
    yield from merge(
        _image_messages(types, start_ns, images),
        audio_messages(types, start_ns, samples),
        key=lambda row: row[0],
    )


def _image_messages(types, start_ns: int, images):
    for after_ns, data in images:
        message = types.types[IMAGE](
            header=make_header(types, start_ns + after_ns, 'camera'),
            format='jpeg',
            data=np.frombuffer(data, np.uint8),
        )
        yield start_ns + after_ns, IMAGE, message


def audio_messages(types, start_ns: int, samples: np.ndarray):
    """Yield (when it is recorded, kind, message) for each 100 ms of samples (n,) at 16 kHz."""
    pcm = np.clip(np.rint(np.asarray(samples) * 32767), -32768, 32767).astype('<i2')  # (n,)
    for begin in range(0, len(pcm), CHUNK):
        part = pcm[begin : begin + CHUNK]
        begin_ns, end_ns = (
            start_ns + n * NS // SAMPLE_RATE_HZ for n in (begin, begin + len(part))
        )
        data = types.types[PLAIN_AUDIO](data=part.view(np.uint8))
        message = types.types[AUDIO](header=make_header(types, begin_ns, 'microphone'), audio=data)
        yield end_ns, AUDIO, message


def make_header(types, stamp_ns: int, frame_id: str):
    """Return a std_msgs Header of a type store."""
    stamp = types.types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, NS))
    return types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)


def write_video(video, bag, start_s: int = START_S, jpeg_quality: int = 92) -> str:
    """Write an MCAP bag whose stamps are start_s and the video's own time.

    Raises InputError for what is no video, or has stamps that jump; no bag is left then.
    Return what the bag lacks, as sentences: packets that cannot be decoded, and what is missing
    behind the end of a file whose copy was not complete; or ''.
    """
    from minicpmo_ros.media.files import probe, read_video, why_short  # a recorder needs none

    facts, damages = probe(video), []
    if not facts.width and not facts.sample_rate_hz:
        raise InputError(f'{video}: it has no images and no audio.')
    frames = _Noting(read_video(video, damages.append) if facts.width else ())
    images = _one_a_second(video, frames, jpeg_quality, facts.told_ns)
    heard = facts.sample_rate_hz
    samples = _audio(video, damages.append) if heard else np.zeros(0, np.float32)
    first = next(images, None)
    if first is None and not len(samples):
        raise InputError(f'{video}: it ends before its first image or sound. Record it again.')
    write_clip(Path(bag), start_s, chain([] if first is None else [first], images), samples)
    heard_ns = len(samples) * NS // SAMPLE_RATE_HZ
    short = why_short(video, max(frames.end_ns, heard_ns), facts.told_ns)
    if damages:
        short = f'{damages[0]} Damaged parts that are left out: {len(damages)}. {short}'.rstrip()
    return short


class _Noting:
    """Gives frames, and notes the stamp of the last one."""

    def __init__(self, frames):
        self._frames, self.end_ns = frames, 0

    def __iter__(self) -> Iterator[tuple]:
        for stamp_ns, image in self._frames:
            self.end_ns = stamp_ns
            yield stamp_ns, image


def _one_a_second(video, frames, quality: int, told_ns: int) -> Iterator[tuple]:
    """Yield (offset_ns, JPEG bytes) of the newest frame at SHOWN_NS of every second."""
    shown, due_ns, stamp_ns = None, SHOWN_NS, -1
    for stamp_ns, image in frames:
        if stamp_ns > told_ns:  # up to there it is one slide
            _check_hole(video, 'images', due_ns, stamp_ns)
        while stamp_ns > due_ns:
            if shown is not None:
                yield due_ns, encode_jpeg(shown, quality)
            due_ns += NS
        shown = image
    if stamp_ns >= due_ns - SHOWN_NS:  # the last second has begun
        yield due_ns, encode_jpeg(shown, quality)


def _check_hole(video, what: str, from_ns: int, to_ns: int) -> None:
    """Raise InputError where stamps jump: nobody has room for what would be in between."""
    if to_ns - from_ns > LONGEST_HOLE_S * NS:
        raise InputError(
            f'{video}: the stamps of its {what} jump from {from_ns / NS:.0f} s to '
            f'{to_ns / NS:.0f} s; {LONGEST_HOLE_S} s at most may lie in between. Its stamps are '
            'damaged, or it is of several recordings: give each as a file of its own.'
        )


def _audio(video, on_damage: Callable) -> np.ndarray:
    """Return all the audio of a file, (n,) float32 at 16 kHz from its first instant on."""
    from minicpmo_ros.media.files import read_audio

    rate_hz, chunks = read_audio(video, on_damage=on_damage)
    resampler, parts, taken = Resampler(rate_hz), [], 0
    for stamp_ns, samples in chunks:
        _check_hole(video, 'audio', taken * NS // rate_hz, stamp_ns)
        hole = stamp_ns * rate_hz // NS - taken
        if hole * SAMPLE_RATE_HZ > HOLE * rate_hz:
            samples = np.concatenate([np.zeros(hole, np.float32), samples])
        taken += len(samples)
        parts.append(resampler.push(samples))
    return np.concatenate([*parts, resampler.flush()]) if parts else np.zeros(0, np.float32)


class AppendedFile:
    """A new file; has the methods of a stream that mcap's writer uses."""

    def __init__(self, path):
        """Raise OSError where it is there, or cannot be made."""
        self._file = Path(path).open('xb', buffering=0)
        self._waiting = bytearray()
        self._end = 0  # of what is on the disk

    @property
    def waiting(self) -> int:
        """Return how many bytes are not on the disk yet."""
        return len(self._waiting)

    def write(self, data: bytes) -> int:
        """Take bytes; they go to the disk with `flush`."""
        self._waiting += data
        return len(data)

    def tell(self) -> int:
        """Return where the next bytes will be."""
        return self._end + len(self._waiting)

    def flush(self) -> None:
        """Append what was written; OSError where it does not fit: then all of it waits."""
        number, at = self._file.fileno(), 0
        try:
            while at < len(self._waiting):
                at += os.pwrite(number, memoryview(self._waiting)[at:], self._end + at)
        except OSError:
            os.ftruncate(number, self._end)
            raise
        self._end += at
        self._waiting = bytearray()

    def close(self) -> None:
        """Close the file; what still waits is lost."""
        self._file.close()


class Recording:
    """One file; it is never written over."""

    def __init__(self, path, definitions: dict):
        """Begin; InputError where the file is there, or cannot be written.

        definitions: {kind: text of its .msg file}, of what is not in every ROS 2.
        """
        from mcap.writer import CompressionType, Writer
        from rosbags.typesys import get_types_from_msg

        self._types = new_type_store(definitions)
        for kind, text in definitions.items():
            if kind not in self._types.types:
                self._types.register(get_types_from_msg(text, kind))
        self._path = Path(path)
        try:
            self._file = AppendedFile(path)
        except FileExistsError as error:
            raise InputError(f'{path}: it is there already. Name another file.') from error
        except OSError as error:
            raise InputError(
                f'{path}: it cannot be written ({error.strerror}). Name a file in a folder that '
                'is there.'
            ) from error
        # A chunk a message: what was recorded is not in memory when the power goes.
        self._writer = Writer(self._file, chunk_size=1, compression=CompressionType.NONE)
        self._writer.start('ros2', 'minicpmo_ros')
        self._channels, self.count, self.lost = {}, 0, 0

    @property
    def waiting(self) -> int:
        """Return how many bytes are not on the disk yet."""
        return self._file.waiting

    def write(self, topic: str, kind: str, log_ns: int, data: bytes) -> None:
        """Append a message; kind: such as sensor_msgs/msg/Image, data: CDR.

        OSError where the disk does not take it: it waits, or is counted as lost.
        """
        if self._file.waiting > MOST_WAITING:
            self.lost += 1
            self._file.flush()  # raises, as long as there is no room
            self.lost -= 1
        channel = topic, kind  # a driver may come again with another type
        if channel not in self._channels:
            text, _ = self._types.generate_msgdef(kind, ros_version=2)
            schema = self._writer.register_schema(kind, 'ros2msg', text.encode())
            self._channels[channel] = self._writer.register_channel(topic, 'cdr', schema)
        self._writer.add_message(self._channels[channel], log_ns, bytes(data), log_ns)
        self._file.flush()
        self.count += 1

    def close(self) -> None:
        """Write the index and close the file; OSError where there is no room for that."""
        try:
            self._writer.finish()
            self._file.flush()
        finally:
            self._file.close()

    def discard(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink(missing_ok=True)
