# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Messages of one MCAP file, closed or cut, whole or damaged: read from its begin to its end.

What the file says of itself behind its data, how many messages each channel has and what the
channels are, is compared with what was read: so what is lost is told, whatever has lost it.
"""

import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.evaluation.bags.storage import (
    LARGEST_MESSAGE_BYTES,
    Message,
    packing_of,
    ros_name,
    unpack,
)

_MESSAGE = struct.Struct('<HIQQ')  # channel, sequence, log time, publish time
_CHUNK = struct.Struct('<QQQII')  # first and last time, size in plain, CRC-32, size of a name
# What a chunk may unpack to where it tells less: a wrong size loses nothing, a bomb little.
ALLOWED_BYTES = 2**24
HEAD = struct.Struct('<BQ')  # opcode, length
MAGIC = b'\x89MCAP0\r\n'
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 2, 3, 4, 5, 6
CHUNK_INDEX, STATISTICS, DATA_END = 8, 11, 15
# The fewest bytes that a record of each opcode has.
LEAST_BYTES = {
    1: 8, FOOTER: 20, SCHEMA: 14, CHANNEL: 16, MESSAGE: 22, CHUNK: 40, 7: 6, CHUNK_INDEX: 60,
    9: 36, 10: 48, STATISTICS: 46, 12: 8, 13: 28, 14: 17, DATA_END: 4,
}  # fmt: skip
OF_OTHERS = 0x80  # opcodes from here on are nobody's business
LARGEST_RECORD_BYTES = 2**30  # a length above this is damage, not data
BELIEVED = 3  # records in a row are no accident
BLOCK = 2**20  # that is searched at a time
OF_ROS_1 = 'Convert the .bag of ROS 1 that it was made of: rosbags-convert --src a.bag --dst a'
_MAYBE = re.compile(rb'[\x01-\x0f](?=.{4}\x00{4})', re.DOTALL)


@dataclass(frozen=True)
class Record:
    """One record and where it begins; `is_cut`: its end is missing."""

    opcode: int
    begin: int
    data: bytes
    is_cut: bool = False


def records(file, begin: int, end: int, lose, skip=None) -> Iterator[Record]:
    """Yield the records of a seekable file in [begin, end); lose(part of a sentence) for damage.

    skip(first_ns, last_ns): whether a chunk of messages of these times is not even read.
    """
    at = begin
    while at < end:
        opcode, length = _head(file, at, end)
        stop = at + HEAD.size + length
        if opcode is not None and _begins_at(file, stop, end):
            if skip is None or opcode != CHUNK or not skip(*_times(file, at)):
                yield Record(opcode, at, _read(file, at + HEAD.size, length))
            at = stop
            continue
        # Either this one's length is wrong, or it is whole and the next one is damaged.
        is_whole = opcode == CHUNK and stop <= end and _is_chunk(file, at, length)
        found = find(file, stop if is_whole else at + 1, end)
        if opcode is not None and stop <= end and (found is None or found >= stop):
            yield Record(opcode, at, _read(file, at + HEAD.size, length))
            at = stop
        elif opcode == CHUNK:
            size = (end if found is None else found) - at - HEAD.size
            yield Record(opcode, at, _read(file, at + HEAD.size, size), is_cut=True)
        if found is None:
            lose(f'is cut or damaged at byte {at} of {end}')
            return
        if found > at:
            lose(f'is damaged from byte {at} to byte {found} of {end}')
        at = found


def _is_chunk(file, at: int, length: int) -> bool:
    """Return whether the lengths inside a chunk add up to its own."""
    head = _read(file, at + HEAD.size, min(length, 64))
    (named,) = struct.unpack_from('<I', head, 28)
    if named > 16:
        return False
    (size,) = struct.unpack_from('<Q', head.ljust(64, b'\0'), 32 + named)
    return 40 + named + size == length


def _times(file, at: int) -> tuple:
    """Return when the first and the last message of a chunk were recorded."""
    return struct.unpack('<QQ', _read(file, at + HEAD.size, 16))


def find(file, begin: int, end: int) -> int | None:
    """Return where the next records begin that can be believed."""
    at = begin
    while at < end:
        file.seek(at)
        block = file.read(min(BLOCK, end - at) + HEAD.size)
        for match in _MAYBE.finditer(block if block.count(0) < len(block) else b''):
            if match.start() >= BLOCK:
                break
            if _is_believed(file, at + match.start(), end):
                return at + match.start()
        at += BLOCK
    return None


def _is_believed(file, at: int, end: int) -> bool:
    for _ in range(BELIEVED):
        opcode, length = _head(file, at, end)
        if opcode is None or opcode >= OF_OTHERS:
            return False
        at += HEAD.size + length
        if at >= end:
            return at == end
    return True


def _begins_at(file, at: int, end: int) -> bool:
    """Return whether a record begins there, or the end is there."""
    return at == end or (at < end and _head(file, at, end)[0] is not None)


def _head(file, at: int, end: int) -> tuple:
    """Return opcode and length, (None, 0) for what is no head of a record."""
    file.seek(at)
    head = file.read(HEAD.size) if at + HEAD.size <= end else b''
    if len(head) < HEAD.size:
        return None, 0
    opcode, length = HEAD.unpack(head)
    least = LEAST_BYTES.get(opcode, 0 if opcode >= OF_OTHERS else None)
    if least is None or not least <= length <= LARGEST_RECORD_BYTES:
        return None, 0
    return opcode, length


def _read(file, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


@dataclass(frozen=True)
class Channel:
    """What the messages of one number are."""

    topic: str
    kind: str  # the schema's name
    encoding: str  # of the messages
    definition: str = ''


class McapFile:
    """One pass over a file; lose(part of a sentence) is told what is lost.

    wants(first_ns, last_ns): whether chunks of messages recorded then are read; None: all are.
    """

    def __init__(self, path: Path, meet, lose, wants=None):
        self._wants, self._has_skipped = wants, False
        self._path, self._meet, self._lose = path, meet, lose
        self._schemas, self._channels = {}, {}
        self._read, self._told = Counter(), None  # messages by channel
        self._orphans, self._others = Counter(), Counter()
        self._has_searched = False

    def messages(self, kinds) -> Iterator[Message]:
        """Yield the messages of some kinds, None: all."""
        for record in self._records():
            if record.opcode != MESSAGE:
                continue
            number, _, log_ns, _ = _MESSAGE.unpack_from(record.data)
            channel = self._channel_of(number)
            if channel is None or (not channel.kind and channel.encoding == 'cdr'):
                self._orphans[number] += 1
                continue
            self._read[number] += 1
            if kinds is not None and channel.kind not in kinds:
                continue
            if channel.encoding not in ('cdr', ''):
                self._others[channel.topic, channel.encoding] += 1
                continue
            yield Message(channel.topic, channel.kind, log_ns, record.data[_MESSAGE.size :])
        self._compare(kinds)

    def _channel_of(self, number: int) -> Channel | None:
        channel = self._channels.get(number)
        if (channel is None or not channel.kind) and not self._has_searched:
            # Its record may be further on: chunks in another order, or the copy behind the data.
            self._has_searched = True
            found = McapFile(self._path, self._meet, lambda _: None)
            for _ in found._records():
                pass
            self._channels.update(found._channels)
            channel = self._channels.get(number)
        return channel

    def _compare(self, kinds) -> None:
        for (topic, encoding), count in self._others.items():
            remedy = f'. {OF_ROS_1}' if encoding == 'ros1' else ''
            self._lose(f'{count} messages of {topic} are in {encoding!r}; cdr is read{remedy}')
        for number, count in self._orphans.items():
            self._lose(f'{count} messages are lost: what channel {number} is, stands nowhere')
        if self._told is None or self._has_skipped:
            return
        for number, told in sorted(self._told.items()):
            channel = self._channels.get(number)
            if channel is not None and kinds is not None and channel.kind not in kinds:
                continue
            missing = told - self._read[number] - self._orphans[number]
            if missing > 0:
                topic = channel.topic if channel else f'channel {number}'
                self._lose(f'{missing} of {told} messages of {topic} are missing')

    def _records(self) -> Iterator[Record]:
        """Yield the records up to the end, those inside chunks as if there were none."""
        size, has_end = self._path.stat().st_size, False
        damages, skip = [], self._skips if self._wants else None
        # Without a buffer where chunks are passed over: of these only the heads are read.
        with self._path.open('rb', buffering=0 if self._wants else -1) as file:
            begin = len(MAGIC)
            if file.read(begin) != MAGIC:
                damages.append(f'is cut or damaged at byte 0 of {size}: it does not begin as MCAP')
                begin = 0
            end = size
            if size >= 2 * len(MAGIC):
                file.seek(size - len(MAGIC))
                end -= len(MAGIC) * (file.read() == MAGIC)
            for record in records(file, begin, end, damages.append, skip):
                if has_end:  # what follows is the index; what is damaged there is no loss
                    self._note(record, True)
                    continue
                while damages:
                    self._lose(damages.pop(0))
                has_end = record.opcode == DATA_END
                if record.opcode == CHUNK:
                    yield from self._inside(record, end)
                else:
                    self._note(record, False)
                    yield record
        if not has_end:
            for damage in damages or ['was not closed; what was stored before that is there']:
                self._lose(damage)

    def _skips(self, first_ns: int, last_ns: int) -> bool:
        skips = (first_ns, last_ns) != (0, 0) and not self._wants(first_ns, last_ns)
        self._has_skipped |= skips
        return skips

    def _inside(self, chunk: Record, end: int) -> Iterator[Record]:
        where = f'the chunk at byte {chunk.begin} of {end}'
        plain, why = _plain(chunk)
        damages = [f'{where} is damaged ({why})'] if why else []
        tell = damages.append if not why else lambda _: None
        for record in records(
            io.BytesIO(plain), 0, len(plain), lambda part: tell(f'{where} {part}')
        ):
            self._note(record, False)
            yield record
        for damage in damages:
            self._lose(damage)

    def _note(self, record: Record, is_behind_data: bool) -> None:
        """Take what the file says of itself; of what is damaged nothing."""
        try:
            if record.opcode == SCHEMA:
                number, *schema = _schema(record.data)
                known = self._schemas.setdefault(number, schema)
                if known[0] != schema[0]:
                    self._lose(f'a type is said to be {known[0]} and {schema[0]}; one is damage')
            elif record.opcode == CHANNEL:
                self._note_channel(*_channel(record.data))
            elif record.opcode == STATISTICS:
                self._told = _statistics(record.data)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            if not is_behind_data:
                self._lose(f'a description at byte {record.begin} is damaged ({error})')

    def _note_channel(self, number: int, schema: int, topic: str, encoding: str) -> None:
        name, form, text = self._schemas.get(schema, ('', '', ''))
        kind = ros_name(name)
        channel = Channel(topic, kind, encoding, text if form == 'ros2msg' else '')
        known = self._channels.setdefault(number, channel)
        if known.kind == '' and kind:  # the schema was stored behind the channel
            self._channels[number] = known = channel
        if known.topic != topic or (kind and known.kind != kind):
            told = ' and '.join(f'{c.topic} ({c.kind})' for c in (known, channel))
            self._lose(f'channel {number} is said to be {told}; one of them is damage')
        if kind:
            self._meet(channel.topic, channel.kind, channel.definition)


def _plain(chunk: Record) -> tuple[bytes, str]:
    """Return what a chunk holds, and why that is not all of it, or ''."""
    data = chunk.data
    if len(data) < _CHUNK.size + 8:
        return b'', 'it is cut'
    *_, size, crc, named = _CHUNK.unpack_from(data)
    begin = _CHUNK.size + named + 8
    name = data[_CHUNK.size : _CHUNK.size + named].decode(errors='replace')
    why = 'its end is missing' if chunk.is_cut else ''
    if named > 16 or begin > len(data):
        begin, name, why = _CHUNK.size + 8, '', 'its head makes no sense'
    packed = data[begin:]
    (length,) = struct.unpack_from('<Q', data, begin - 8)
    if not why and length != len(packed):
        why = f'it tells {length} bytes and has {len(packed)}'
    if name in ('zstd', 'lz4') or packing_of(packed):
        most = min(max(size, ALLOWED_BYTES), LARGEST_MESSAGE_BYTES)
        plain, problem = unpack(packed, packing_of(packed) or name, most)
        why = why or problem
    elif name:
        return b'', f'it is packed as {name!r}; known are zstd and lz4'
    else:
        plain = packed
    if not why and len(plain) != size:
        why = f'it tells {size} bytes and unpacks to {len(plain)}'
    if not why and crc and zlib.crc32(plain) != crc:
        why = 'its checksum is another'
    return plain, why


def _text(data: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from('<I', data, at)
    if at + 4 + size > len(data):
        raise IndexError('a text is longer than its record')
    return data[at + 4 : at + 4 + size].decode(errors='replace'), at + 4 + size


def _schema(data: bytes) -> tuple:
    """Return number, name, encoding and text."""
    (number,) = struct.unpack_from('<H', data)
    name, at = _text(data, 2)
    encoding, at = _text(data, at)
    text, _ = _text(data, at)
    return number, name, encoding, text


def _channel(data: bytes) -> tuple:
    """Return number, schema, topic and the messages' encoding."""
    number, schema = struct.unpack_from('<HH', data)
    topic, at = _text(data, 4)
    encoding, _ = _text(data, at)
    return number, schema, topic, encoding


def _statistics(data: bytes) -> dict:
    """Return how many messages each channel has."""
    (size,) = struct.unpack_from('<I', data, 42)
    if 46 + size > len(data):
        raise IndexError('it is cut')
    pairs = struct.iter_unpack('<HQ', data[46 : 46 + size // 10 * 10])
    return dict(pairs)
