# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""rosbag2 recordings as they are found: read what can be read, say what was lost.

A Bag is a .mcap or .db3 file, or a folder of them (a split recording), with or without its
metadata.yaml, compressed as files, chunks or messages, or not: what a file is, its first bytes
tell. It is read from begin to end, so that neither an index nor a clean end is needed. What is
missing or damaged stands in `losses`, a sentence each, once the messages have been read, and
`topics` has all that were found. Formats: https://mcap.dev/spec and rosbag2's sqlite3 schema.
"""

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minicpmo_ros.documents import SQLITE, parse_yaml, read_bounded
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags import storage
from minicpmo_ros.evaluation.bags.db3_file import JOURNALS, read_db3
from minicpmo_ros.evaluation.bags.mcap_file import MAGIC, McapFile
from minicpmo_ros.evaluation.bags.storage import (
    LARGEST_MESSAGE_BYTES,
    Message,
    packing_of,
    ros_name,
)
from minicpmo_ros.ggml.foreign import recognize

MCAP, DB3 = 'mcap', 'db3'
SUFFIXES = ('.mcap', '.db3')
PACKED = ('.zstd', '.zst', '.lz4')
ROS_1 = b'#ROSBAG V'
HEAD_BYTES = 64
METADATA = 'metadata.yaml'
# A file unpacks to so much and so many times its own size at most, and leaves room on the disk.
MOST_NAMED = 5  # files, in a sentence
UNPACKED_BYTES, UNPACKED_TIMES, ROOM = 2**28, 100, 0.9


class Bag:
    """A recording; raises InputError where there is none."""

    def __init__(self, path):
        self.path = Path(path)
        self.losses, self.topics = [], {}  # {topic: kind}
        self.definitions = {}  # kind: text of its definition, where the bag has it
        self._metadata = self._read_metadata()
        self.files = self._find_files()

    def messages(self, kinds=None, wants=None) -> Iterator[Message]:
        """Yield the messages of some kinds (None: all) in the order in which they were stored.

        wants(first_ns, last_ns): whether what was recorded then is read; what is stored together
        comes together. None: all; then the counts of what was read are compared, too.
        """
        self.losses = list(self._missing)
        read = Counter()
        for file in self.files:
            try:
                with _plain(file, self._lose) as plain:
                    for message in self._read_file(file, plain, kinds, wants):
                        read[message.topic] += 1
                        yield message
            except (InputError, OSError):
                raise
            except Exception as error:  # of damaged bytes libraries raise almost anything
                self._lose(file, f'could not be read to its end ({error!r})')
        if wants is None:
            self._compare(read, kinds)

    def _read_file(self, file: Path, plain: Path, kinds, wants) -> Iterator[Message]:
        def lose(why: str) -> None:
            self._lose(file, why)

        is_mcap = _storage(plain)[0] == MCAP
        if is_mcap:
            stored = McapFile(plain, self._meet, lose, wants).messages(kinds)
        else:
            stored = read_db3(plain, kinds, self._meet, lose, wants)
        unreadable = {}
        for message in stored:
            packing = packing_of(message.data)  # CDR never begins so
            if packing:
                data, why = storage.unpack(message.data, packing, LARGEST_MESSAGE_BYTES)
                if why:
                    unreadable.setdefault(message.topic, []).append(why)
                    continue
                message = Message(message.topic, message.kind, message.log_ns, data)
            yield message
        for topic, whys in unreadable.items():
            lose(f'{len(whys)} messages of {topic} could not be unpacked ({whys[0]})')

    def _compare(self, read: Counter, kinds) -> None:
        """Report what the metadata have and the files have not."""
        for topic, (kind, told) in _told_counts(self._metadata).items():
            missing = told - read[topic]
            what = f'messages of {topic} are missing'
            is_told = any(what in loss for loss in self.losses)
            if missing > 0 and (kinds is None or kind in kinds) and not is_told:
                self.losses.append(f'{missing} of {told} {what}, by {METADATA}.')

    def _meet(self, topic: str, kind: str, definition: str = '') -> None:
        self.topics[topic] = kind
        if definition:
            self.definitions[kind] = definition

    def _lose(self, file: Path, why: str) -> None:
        self.losses.append(f'{file.name}: {why}.')

    def _read_metadata(self) -> dict:
        path = self.path / METADATA
        if not self.path.is_dir() or not path.is_file():
            return {}
        try:
            found = dict(parse_yaml(read_bounded(path))['rosbag2_bagfile_information'])
            told = found.get('relative_file_paths') or []
            # Their names alone: what else stands there may unfold to gigabytes as a text.
            names = [Path(name).name for name in told if isinstance(name, str) and name]
            found['relative_file_paths'] = names if isinstance(told, list) else []
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return {'damaged': True}

    def _find_files(self) -> list:
        """Return the storage files in their order; notes what is missing."""
        self._missing = []
        if self.path.is_file():
            if other := _other(self.path):
                raise InputError(f'{self.path}: {other}')
            if not _storage(self.path)[0]:
                raise InputError(
                    f'{self.path}: it is not a bag. A .mcap or .db3 file, or a folder of '
                    'them, is expected.'
                )
            return [self.path]
        if not self.path.is_dir():
            what = 'it is no file and no folder' if self.path.exists() else 'there is no such bag'
            raise InputError(f'{self.path}: {what}.')
        # Hidden files are no recordings: what is being copied, or what macOS puts beside a file.
        shown = (path for path in self.path.iterdir() if not path.name.startswith('.'))
        entries = [path for path in shown if path.is_file()]
        found = sorted((p for p in entries if _storage(p)[0]), key=_split_order)
        others = {path: other for path in found if (other := _other(path))}
        found = [path for path in found if path not in others]
        if others and not found:
            path, other = next(iter(others.items()))
            raise InputError(f'{path}: {other}')
        names = self._metadata.get('relative_file_paths', [])
        if not found:
            raise InputError(
                f'{self.path}: the folder has no .mcap or .db3 file{_instead(self.path, names)}.'
            )
        self._missing += [f'{path.name}: {other}' for path, other in others.items()]
        names = [name for name in names if self.path / name not in others]
        if not self._metadata or 'damaged' in self._metadata:
            state = 'cannot be read' if self._metadata else 'is missing'
            self._missing.append(f'{METADATA} {state}; topics are taken from the files.')
        return self._in_told_order(self._without_copies(found, names), names)

    def _without_copies(self, found: list, names: list) -> list:
        """Leave out what was converted or packed and stands beside the original."""
        taken = {}
        for file in sorted(found, key=lambda file: _worth(file, names), reverse=True):
            other = taken.setdefault(_stem(file), file)
            if other is not file:
                self._missing.append(
                    f'{file.name}: is left out, as it has the name of {other.name}, which is read.'
                )
        return [file for file in found if file in taken.values()]

    def _in_told_order(self, found: list, names: list) -> list:
        """Put files in the order of the metadata; others count where one that it names lacks."""
        order, absent = {}, []
        for name in names:
            # The name without the compression's suffix is told by some versions.
            there = [f for f in found if f.name == name or f.name.startswith(f'{name}.')]
            order.update((file, len(order)) for file in there)
            absent += [] if there else [name]
        renamed = [file for file in found if file not in order]
        if absent and len(renamed) >= len(absent) == len(names):
            return found  # the bag was renamed: all of it is there under other names
        if names and not absent:
            self._missing += [
                f'{file.name}: is left out, as {METADATA} does not name it.' for file in renamed
            ]
            return sorted(order, key=order.get)
        self._missing += [f'{name}: named by {METADATA}, but not there.' for name in absent]
        return sorted(found, key=lambda file: order.get(file, len(order)))


def is_bag(path) -> bool:
    """Return whether a path is a folder, or a file of a bag by its bytes or its name."""
    path = Path(path)
    return path.is_dir() or (path.is_file() and bool(_storage(path)[0]))


def _told_counts(metadata: dict) -> dict:
    """Return {topic: (kind, messages)} as metadata have them."""
    counts = {}
    topics = metadata.get('topics_with_message_count')
    for entry in topics if isinstance(topics, list) else ():
        try:
            about = entry['topic_metadata']
            if isinstance(about['name'], str) and isinstance(about['type'], str):
                counts[about['name']] = ros_name(about['type']), int(entry['message_count'])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return counts


def _storage(path: Path) -> tuple[str, str]:
    """Return what a file is, 'mcap', 'db3' or '', and how it is packed; its name is asked last."""
    with path.open('rb') as file:
        head = file.read(HEAD_BYTES)
        packing = packing_of(head)
        if packing:
            file.seek(0)
            try:
                head = next(storage.pieces(file, packing), b'')
            except storage.Damaged:
                head = b''
    if head.startswith(ROS_1) or (path.suffix == '.bag' and b'ROSBAG' in head):
        raise InputError(
            f'{path}: it is a bag of ROS 1. Convert it: rosbags-convert --src {path.name} --dst '
            f'{path.stem}'
        )
    if head.startswith((MAGIC, SQLITE)):
        return (MCAP if head.startswith(MAGIC) else DB3), packing
    suffixes = path.suffixes[-2:-1] if path.suffix in PACKED else path.suffixes[-1:]
    is_named = bool(suffixes) and suffixes[0] in SUFFIXES
    packing = packing or (storage.ZSTD if path.suffix in PACKED else '')
    return (suffixes[0][1:], packing) if is_named else ('', '')


def _instead(folder: Path, names: list) -> str:
    """Say what a folder without a file of a bag has, or lacks: what follows in that sentence."""
    if names:
        return f'; {METADATA} names {", ".join(names[:MOST_NAMED])}'
    bags = sorted(
        path.name for path in folder.iterdir()
        if path.is_dir() and any(e.suffix in (*SUFFIXES, *PACKED) for e in path.iterdir())
    )  # fmt: skip
    return f'. Give one of the folders in it: {", ".join(bags[:MOST_NAMED])}' if bags else ''


def _other(path: Path) -> str:
    """Say what a file with the name of a bag's is instead, and what to do; '': it may be one."""
    with path.open('rb') as file:
        head = file.read(HEAD_BYTES)
    if not head and not any(path.with_name(path.name + end).exists() for end in JOURNALS):
        return 'it is empty (0 bytes): nothing was recorded, or its copy has failed.'
    known = None if packing_of(head) else recognize(head)
    return f'{known[0]}. {known[1]}.' if known else ''


def _stem(path: Path) -> str:
    """Return the name without the suffixes of a storage and of its compression."""
    name = path.name
    for suffixes in (PACKED, SUFFIXES):
        name = next((name.removesuffix(end) for end in suffixes if name.endswith(end)), name)
    return name


def _worth(file: Path, names: list) -> tuple:
    """Order files of one name: told by the metadata, not empty, plain, MCAP."""
    kind, packing = _storage(file)
    return file.name in names, file.stat().st_size > 0, not packing, kind == MCAP


def _split_order(path: Path) -> tuple:
    """Order name_2.mcap before name_10.mcap."""
    parts = re.split('([0-9]+)', _stem(path))
    return [int(part) if part.isdecimal() else part for part in parts], path.name


@contextmanager
def _plain(file: Path, lose):
    """Yield a storage file in plain, as far as it goes; a copy in plain is removed afterwards."""
    kind, packing = _storage(file)
    if not packing:
        yield file
        return
    handle, name = tempfile.mkstemp(suffix=f'.{kind}')
    try:
        size = file.stat().st_size
        room = int(shutil.disk_usage(Path(name).parent).free * ROOM)
        most = min(UNPACKED_BYTES + UNPACKED_TIMES * size, room)
        with os.fdopen(handle, 'wb') as out, file.open('rb') as source:
            why = _unpack_file(source, packing, out, most)
            kept = out.tell()
        if why:
            lose(file, f'could be decompressed up to byte {kept} ({why})')
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _unpack_file(source, packing: str, out, most: int) -> str:
    """Copy what can be unpacked; say why that is not all, or ''."""
    try:
        for piece in storage.pieces(source, packing):
            out.write(piece)
            if out.tell() > most:
                return f'it unpacks to more than {most} bytes; only so much was tried'
    except storage.Damaged as error:
        return str(error)
    return ''
