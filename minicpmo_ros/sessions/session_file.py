# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The file of a session: embeddings of seconds, in places of one size. Reading it.

    page 0      header: magic, version, sizes, the model; with a CRC
    page 1      the lowest number that is valid: what came before was forgotten; with a CRC
    place 0..   each a page of facts and up to ROWS rows of float16, with a CRC over both; behind
                the last row the names of the cameras, where there are several

A second takes one place; one with tiles takes as many as its rows need, numbered in sequence. The
numbers tell the order in which seconds were written, wherever they lie. A place that a killed
writer left half written fails its CRC, and its second is missing; nothing else is lost. Each
second tells which seconds were in the window when it was read, so that the window can be built
again step by step, with the same evictions.

The black box (black_box.py) is such a file whose places are written in turn; a saved session
(saving.py) is one that is written once.
"""

import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import Error, InputError
from minicpmo_ros.streams import LARGEST
from minicpmo_ros.streams.pairing import Unit, cameras_of
from minicpmo_ros.units import MIB

FORMAT_VERSION = 1
PAGE = 4096  # bytes
ROWS = 96  # of a place; one second of MiniCPM-o without tiles has 89
FIRST_PLACE = 2 * PAGE
MOST_PLACES, MOST_PLACE_BYTES = 100_000, 16 * MIB
MAGIC, MARK_OF_UNIT = b'MCPMSESS', b'UNIT'
# version, bytes of a place, places, width, bytes of the model's name
HEADER = struct.Struct('<8sIIIIH')
CRC, VALID_FROM = struct.Struct('<I'), struct.Struct('<QI')
# number, second, part, parts, tiles (2), rows of image and audio (-1: none), bytes, window seconds
FACTS = struct.Struct('<4sIQqHHHHiiIH')
CRC_FROM = 8  # of a place, behind the mark and the CRC
MOST_IN_WINDOW = (PAGE - FACTS.size) // 4


class SessionFileError(Error):
    """A file of a session that cannot be read or written; the text says what to do."""


@dataclass(frozen=True)
class Geometry:
    """Of one file: what model its seconds belong to, and its sizes."""

    space: str  # embedding space of the model, as messages name it
    width: int  # of a row
    n_places: int
    place_bytes: int

    @classmethod
    def of(cls, space: str, width: int, n_places: int) -> 'Geometry':
        """Return that of a file that is made now."""
        payload = -(-ROWS * width * 2 // PAGE) * PAGE
        return cls(space, width, n_places, PAGE + payload)

    @property
    def payload_bytes(self) -> int:
        """Bytes of rows in a place."""
        return self.place_bytes - PAGE

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return FIRST_PLACE + self.n_places * self.place_bytes

    def offset(self, place: int) -> int:
        """Return where a place begins."""
        return FIRST_PLACE + place * self.place_bytes

    def header(self) -> bytes:
        """Return the first page."""
        name = self.space.encode()
        sizes = self.place_bytes, self.n_places, self.width, len(name)
        page = (HEADER.pack(MAGIC, FORMAT_VERSION, *sizes) + name).ljust(PAGE - CRC.size, b'\0')
        return page + CRC.pack(zlib.crc32(page))


@dataclass(frozen=True)
class StoredSecond:
    """Where a second lies in a file."""

    second: int
    number: int  # of its first part
    places: tuple  # of its parts
    window: tuple  # seconds in the window when it was read, itself included


def encode_unit(geometry: Geometry, number: int, unit: Unit, window: tuple) -> list:
    """Return the places that hold a unit, complete, in sequence from `number` on.

    `window`: seconds in the window behind it. Raises SessionFileError for one that is too large.
    """
    rows = [rows for rows in (unit.image_rows, unit.audio_rows) if rows is not None]
    data = b''.join(np.ascontiguousarray(part, '<f2').tobytes() for part in rows)
    data += ','.join(unit.cameras).encode()
    size = geometry.payload_bytes
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b'']
    if len(pieces) > min(geometry.n_places, 0xFFFF):
        raise SessionFileError(
            f'second {unit.second} takes {len(pieces)} places, the file has {geometry.n_places}. '
            'Raise memory.black_box_s, or lower vision.max_tiles.'
        )
    back = [unit.second - second for second in window if 0 <= unit.second - second < 2**32]
    back = np.array(back[-MOST_IN_WINDOW:], '<u4').tobytes()
    counts = [-1 if part is None else len(part) for part in (unit.image_rows, unit.audio_rows)]
    places = []
    for part, piece in enumerate(pieces):
        facts = (number + part, unit.second, part, len(pieces), *unit.tiles[:2], *counts)
        sizes = len(piece), len(back) // 4
        head = FACTS.pack(MARK_OF_UNIT, 0, *facts, *sizes) + back
        crc = zlib.crc32(piece, zlib.crc32(head[CRC_FROM:]))
        head = head[:4] + CRC.pack(crc) + head[CRC_FROM:]
        places.append((head.ljust(PAGE, b'\0') + piece).ljust(geometry.place_bytes, b'\0'))
    return places


class _Part:
    """The contents of a valid place."""

    def __init__(self, data: bytes, payload_bytes: int):
        """Take the bytes of a place; ValueError if they are not valid."""
        if len(data) < PAGE + payload_bytes or data[:4] != MARK_OF_UNIT:
            raise ValueError('not written, or cut')
        (_, crc, self.number, self.second, self.part, self.parts, wide, high, self.image,
         self.audio, size, n_window) = FACTS.unpack_from(data)  # fmt: skip
        if n_window > MOST_IN_WINDOW or size > payload_bytes:
            raise ValueError('sizes')
        end = FACTS.size + 4 * n_window
        self.payload = data[PAGE : PAGE + size]
        if zlib.crc32(self.payload, zlib.crc32(data[CRC_FROM:end])) != crc:
            raise ValueError('CRC')
        back = np.frombuffer(data, '<u4', n_window, FACTS.size)
        self.tiles, self.window = (wide, high), tuple(int(self.second - n) for n in back)


class SessionReader:
    """Reads a file of a session; used from any thread."""

    def __init__(self, descriptor: int, path):
        """Take over a descriptor; raises SessionFileError where it is of no such file."""
        self.path, self.descriptor, self._lock = Path(path), descriptor, threading.Lock()
        try:
            self.geometry = _geometry(os.pread(descriptor, PAGE, 0), self.path)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path) -> 'SessionReader':
        """Open a file for reading; raises SessionFileError."""
        path = Path(path).expanduser()
        try:
            if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
                raise SessionFileError(f'{path} is no file. Name a saved session.')
            return cls(os.open(path, os.O_RDONLY), path)
        except OSError as error:
            raise SessionFileError(f'{path}: {error.strerror}. Name a saved session.') from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def require(self, space: str, width: int) -> None:
        """Raise SessionFileError where its seconds are of another model."""
        found = self.geometry
        if (found.space, found.width) != (space, width):
            raise SessionFileError(
                f'{self.path} holds seconds of model {found.space!r}, rows of {found.width}; this '
                f'is {space!r}, rows of {width}. Only the same model can read them.'
            )

    def scan(self) -> tuple:
        """Return (StoredSeconds in the order of their numbers, places that are damaged)."""
        parts, damaged = {}, []
        valid_from = self.valid_from()
        for place in range(self.geometry.n_places):
            data = self.read_place(place)
            try:
                part = _Part(data, self.geometry.payload_bytes)
            except ValueError:
                if len(data) < self.geometry.place_bytes or data.strip(b'\0'):
                    damaged.append(place)
                continue
            if part.number >= valid_from:
                parts[part.number] = part, place
        return _whole(parts, damaged), damaged

    def read(self, stored: StoredSecond) -> Unit | None:
        """Return a second as a unit, float32; None where it is not there (any more)."""
        try:
            parts = [
                _Part(self.read_place(place), self.geometry.payload_bytes)
                for place in stored.places
            ]
        except ValueError:
            return None
        if [part.number for part in parts] != [stored.number + n for n in range(len(parts))]:
            return None  # overwritten
        return self._unit(parts, stored.window)

    def read_place(self, place: int) -> bytes:
        """Return the bytes of a place; fewer where the file is cut or cannot be read."""
        with self._lock:
            if self.descriptor is None:
                return b''
            try:
                size, offset = self.geometry.place_bytes, self.geometry.offset(place)
                return os.pread(self.descriptor, size, offset)
            except OSError:
                return b''

    def valid_from(self) -> int:
        """Return the lowest number that is valid."""
        with self._lock:
            data = os.pread(self.descriptor, VALID_FROM.size, PAGE)
        if len(data) < VALID_FROM.size:
            return 0
        number, crc = VALID_FROM.unpack(data)
        return number if crc == zlib.crc32(data[: -CRC.size]) else 0

    def _unit(self, parts: list, window: tuple) -> Unit | None:
        first = parts[0]
        payload = b''.join(part.payload for part in parts)
        counts = [max(0, first.image), max(0, first.audio)]
        size = 2 * sum(counts) * self.geometry.width
        if len(payload) < size or not size:
            return None
        try:
            cameras = cameras_of(payload[size:].decode())
        except (InputError, UnicodeDecodeError):
            return None
        rows = np.frombuffer(payload[:size], '<f2').reshape(-1, self.geometry.width)
        rows = rows.astype(np.float32)
        if not np.isfinite(rows).all() or np.abs(rows).max() >= LARGEST:
            return None  # a stranger's file: a CRC alone vouches for nothing
        image, audio = np.split(rows, [counts[0]])
        return Unit(
            first.second,
            image if counts[0] else None,
            (*first.tiles, *cameras),
            audio if counts[1] else None,
            window=window,
        )


def newest_run(stored: list) -> list:
    """Return the newest StoredSeconds that ascend: what is older than those is of another time."""
    run = []
    for one in reversed(stored):
        if run and one.second >= run[-1].second:
            break
        run.append(one)
    return run[::-1]


def window_of(stored: list) -> list:
    """Return those of the newest run that were in the window at its end, oldest first."""
    run = newest_run(stored)
    if not run:
        return []
    window = {run[-1].second, *run[-1].window}
    return [one for one in run if one.second in window]


def mark(number: int) -> bytes:
    """Return what page 1 begins with: only seconds from this number on are valid."""
    data = struct.pack('<Q', number)
    return data + CRC.pack(zlib.crc32(data))


def _whole(parts: dict, damaged: list) -> list:
    """Return the StoredSeconds of which every part is there; note the places of others."""
    stored, seen = [], set()
    for number in sorted(parts):
        part, place = parts[number]
        if number in seen:
            continue
        first = number - part.part
        numbers = range(first, first + part.parts)
        seen.update(numbers)
        own = [parts[n] for n in numbers if n in parts]
        if [found.part for found, _ in own] == list(range(part.parts)) and part.parts:
            places = tuple(place for _, place in own)
            stored.append(StoredSecond(part.second, first, places, part.window))
        else:
            damaged += [place for _, place in own] or [place]
    return stored


def _geometry(page: bytes, path: Path) -> Geometry:
    if len(page) < PAGE or page[:8] != MAGIC:
        raise SessionFileError(f'{path} is no file of a session. Name one that ~/save wrote.')
    _, version, place_bytes, n_places, width, n_name = HEADER.unpack_from(page)
    if version > FORMAT_VERSION:
        raise SessionFileError(
            f'{path} has version {version} of the format, this package knows {FORMAT_VERSION}. '
            'Use a newer one.'
        )
    if CRC.unpack(page[-CRC.size :])[0] != zlib.crc32(page[: -CRC.size]):
        raise SessionFileError(f'{path}: its header is damaged. Nothing in it can be read.')
    is_sane = PAGE < place_bytes <= MOST_PLACE_BYTES and n_places <= MOST_PLACES and width
    name = page[HEADER.size : HEADER.size + n_name]
    if not is_sane or len(name) != n_name:
        raise SessionFileError(f'{path}: its header has impossible sizes.')
    return Geometry(name.decode(errors='replace'), width, n_places, place_bytes)
