# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the two file formats of bags share: a message, and compressed data unpacked safely.

A few bytes can stand for gigabytes, by malice or by damage: data are unpacked in small pieces, and
never more than was allowed. Of damaged data the pieces before the damage are returned. Formats:
RFC 8878 (zstd), the lz4 frame format.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST_MESSAGE_BYTES = 2**28  # what unpacks to more is damage, or malice
ZSTD, LZ4 = 'zstd', 'lz4'
MAGICS = {b'\x28\xb5\x2f\xfd': ZSTD, b'\x04\x22\x4d\x18': LZ4}
SKIPPED_MAGICS = range(0x184D2A50, 0x184D2A60)  # of frames that hold no data
RLE, RESERVED = 1, 3  # types of a block of zstd
STEP = 2**16
NOT_WHOLE = 'its end is missing'


@dataclass(frozen=True)
class Message:
    """One message as it was recorded."""

    topic: str
    kind: str  # such as sensor_msgs/msg/Image
    log_ns: int  # when it was received
    data: bytes  # CDR


# Of ROS 2 today, of its first distributions and of ROS 1, and of recorders of DDS.
_NAME = re.compile(r'(\w+)(?:/(?:msg/)?|::msg::(?:dds_::)?)(\w+?)_?')


def ros_name(name: str) -> str:
    """Return the name of a type of messages as ROS 2 has it today; any other as it is."""
    found = _NAME.fullmatch(name)
    return f'{found[1]}/msg/{found[2]}' if found else name


class Damaged(Exception):
    """What is left cannot be unpacked; the text says why."""


def packing_of(head: bytes) -> str:
    """Return how data are compressed, by their first four bytes: 'zstd', 'lz4' or ''."""
    return MAGICS.get(bytes(head[:4]), '')


def unpack(data, packing: str, most: int) -> tuple[bytes, str]:
    """Return at most `most` bytes of what is packed, and why that is not all, or ''."""
    plain, why = bytearray(), ''
    try:
        for piece in pieces(io.BytesIO(data), packing):
            plain += piece
            if len(plain) > most:
                del plain[most:]
                return bytes(plain), f'it unpacks to more than {most} bytes'
    except Damaged as error:
        why = str(error)
    return bytes(plain), why


def pieces(source, packing: str) -> Iterator[bytes]:
    """Unpack a binary file; a piece has 1 MiB at most. Raises Damaged behind the last good one."""
    if packing not in (ZSTD, LZ4):
        raise Damaged(f'it is packed as {packing!r}; known are zstd and lz4')
    yield from (_zstd if packing == ZSTD else _lz4)(source)


def _zstd(source) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    for blocks in _zstd_frames(source):
        frame = decompressor.decompressobj()
        try:
            for block in blocks:
                if piece := frame.decompress(block):
                    yield piece
        except zstandard.ZstdError as error:
            raise Damaged(str(error)) from error
        if not frame.eof:
            raise Damaged(NOT_WHOLE)


def _zstd_frames(source) -> Iterator:
    """Yield the frames, each as an iterator of its blocks; the first must be there."""
    is_first = True
    while magic := source.read(4):
        (number,) = struct.unpack('<I', magic.ljust(4, b'\0'))
        if number in SKIPPED_MAGICS:
            (size,) = struct.unpack('<I', _exactly(source, 4))
            while size > 0 and (skipped := source.read(min(size, STEP))):
                size -= len(skipped)
            continue
        if packing_of(magic) != ZSTD:
            raise Damaged('it is not zstd' if is_first else 'what follows its first frame is not')
        yield _zstd_blocks(source, magic)
        is_first = False
    if is_first:
        raise Damaged(NOT_WHOLE)


def _zstd_blocks(source, magic: bytes) -> Iterator[bytes]:
    """Yield the header of a frame, then its blocks: each unpacks to 128 KiB at most."""
    import zstandard

    head = magic + _exactly(source, 2)
    flags = head[4]
    # Of the window, the dictionary and the content's size; a single segment has no window.
    is_single = flags >> 5 & 1
    size = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    size += (is_single, 2, 4, 8)[flags >> 6]
    head += _exactly(source, max(0, size - len(head)))
    try:
        if zstandard.frame_header_size(head) != size:
            raise Damaged('the header of its frame is damaged')
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from error
    yield head
    is_last = False
    while not is_last:
        begin = _exactly(source, 3)
        field = int.from_bytes(begin, 'little')
        is_last, kind, length = field & 1, field >> 1 & 3, field >> 3
        if kind == RESERVED:
            raise Damaged('a block of it is damaged')
        yield begin + _exactly(source, 1 if kind == RLE else length)
    if flags >> 2 & 1:
        yield _exactly(source, 4)  # the checksum


def _exactly(source, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise Damaged(NOT_WHOLE)
    return data


def _lz4(source) -> Iterator[bytes]:
    import lz4.frame

    frame = lz4.frame.LZ4FrameDecompressor()
    try:
        while data := frame.unused_data or source.read(STEP):
            if frame.eof:  # another one follows
                frame = lz4.frame.LZ4FrameDecompressor()
            if piece := frame.decompress(data, max_length=STEP):
                yield piece
            while not (frame.needs_input or frame.eof):
                if piece := frame.decompress(b'', max_length=STEP):
                    yield piece
    except (RuntimeError, EOFError, ValueError) as error:
        raise Damaged(str(error)) from error
    if not frame.eof:
        raise Damaged(NOT_WHOLE)
