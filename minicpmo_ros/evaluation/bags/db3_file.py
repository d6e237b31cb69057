# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Messages of one file of rosbag2's sqlite3 storage: whole, cut, damaged, or left with its log.

How many rows there are is also asked of the index over the time stamps, and the numbers of the
rows have no gaps: so rows that a damaged page has lost are counted.
"""

import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from minicpmo_ros.documents import SQLITE
from minicpmo_ros.evaluation.bags.storage import Message, ros_name

LARGEST_DATABASE_BYTES = 2**40
LONGEST_SKIP = 4096  # rows a damaged page of SQLite can hold, generously
JOURNALS = ('-wal', '-journal')  # beside a file: what a recorder that was killed left there
OF_WAL = ('-wal', '-shm')
# Of damaged bytes the library raises these; UnicodeDecodeError is a ValueError.
ERRORS = (sqlite3.Error, ValueError, OverflowError, MemoryError)


def read_db3(path: Path, kinds, meet, lose, wants=None) -> Iterator[Message]:
    """Yield the messages of some kinds, None: all, in the order of storing.

    wants(first_ns, last_ns): whether messages recorded then are read; None: all are.
    """
    with _whole(path, lose) as whole:
        try:
            with closing(_opened(whole)) as connection:
                yield from _read(connection, kinds, meet, lose, wants)
        except ERRORS as error:
            lose(f'its table of topics cannot be read ({error}); all is lost')


@contextmanager
def _whole(path: Path, lose):
    """Yield a database that SQLite reads: the file itself, or a copy, removed afterwards."""
    size, told = path.stat().st_size, _told_size(path)
    is_cut = size < told
    if is_cut:
        lose(f'is cut at byte {size} of {told}')
    journals = [j for j in JOURNALS if _size(path.with_name(path.name + j))]
    if not is_cut and not (journals and not _can_be_opened(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        # SQLite reads nothing of a file that is too short; zeros are merely damaged pages.
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        os.truncate(copy, max(size, told))
        for journal in journals:
            shutil.copyfile(path.with_name(path.name + journal), f'{copy}{journal}')
        if journals:  # what is in them becomes part of the copy
            try:
                with closing(sqlite3.connect(copy)) as connection:
                    connection.execute('SELECT count(*) FROM sqlite_master').fetchone()
            except ERRORS as error:
                lose(f'what its {" and ".join(journals)} holds cannot be read ({error})')
        yield copy


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _told_size(path: Path) -> int:
    """Return how long a database is by its header (https://sqlite.org/fileformat.html, 1.3)."""
    with path.open('rb') as file:
        head = file.read(32)
    if len(head) < 32 or not head.startswith(SQLITE):
        return 0
    page_bytes, pages = struct.unpack('>H10xI', head[16:32])
    return min((page_bytes if page_bytes > 1 else 65536) * pages, LARGEST_DATABASE_BYTES)


def _can_be_opened(path: Path) -> bool:
    try:
        _connected(path, 'mode=ro').close()
    except ERRORS:
        return False
    return True


def _opened(path: Path) -> sqlite3.Connection:
    """Open for reading only, also where the folder cannot be written.

    One that was recorded with a log written ahead (WAL) would get that log and its index beside
    it: they are made by whoever opens it, and only a writer can remove them. Where neither is
    there, nobody has it open.
    """
    if not any(path.with_name(path.name + end).exists() for end in OF_WAL) and _is_wal(path):
        return _connected(path, 'mode=ro&immutable=1')
    try:
        return _connected(path, 'mode=ro')
    except sqlite3.OperationalError:
        return _connected(path, 'mode=ro&immutable=1')


def _is_wal(path: Path) -> bool:
    """Return whether its header says so (https://sqlite.org/fileformat.html, 1.3)."""
    with path.open('rb') as file:
        return file.read(20)[18:] == b'\2\2'


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f'{path.resolve().as_uri()}?{mode}', uri=True)
    try:
        connection.text_factory = lambda data: data.decode(errors='replace')
        connection.execute('SELECT count(*) FROM topics').fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _read(connection, kinds, meet, lose, wants) -> Iterator[Message]:
    topics = {}
    for number, name, kind in connection.execute('SELECT id, name, type FROM topics'):
        topics[number] = (str(name), ros_name(str(kind)))
        meet(*topics[number])
    first, last, read, skipped, unknown, odd, why = None, 0, 0, 0, 0, 0, ''
    data = 'zeroblob(0)' if wants else 'data'  # of a large row only the head is read then
    query = f'SELECT id, topic_id, timestamp, {data} FROM messages WHERE id > ? ORDER BY id'
    while skipped <= LONGEST_SKIP:
        try:
            for at, number, log_ns, data in connection.execute(query, (last,)):
                if not (isinstance(at, int) and at > last):
                    raise sqlite3.DatabaseError('its pages run in a circle')
                last, skipped = at, 0
                first, read = last if first is None else first, read + 1
                if number not in topics:
                    unknown += 1
                elif not (isinstance(data, bytes) and isinstance(log_ns, int)):
                    odd += 1
                elif kinds is None or topics[number][1] in kinds:
                    if wants is not None:
                        if not wants(log_ns, log_ns):
                            continue
                        one = 'SELECT data FROM messages WHERE id = ?'
                        (data,) = connection.execute(one, (at,)).fetchone()
                        if not isinstance(data, bytes):
                            odd += 1
                            continue
                    yield Message(*topics[number], log_ns, data)
            break
        except ERRORS as error:  # a damaged page: what lies behind it may be whole
            last, skipped, why = last + 1, skipped + 1, f' ({error})'
    last -= skipped  # behind the last one there was nothing more to be read
    lost = max(_counted(connection), 0 if first is None else last - first + 1) - read
    if lost > 0 or why:
        lose(f'{lost if lost > 0 else "some"} messages are lost{why}')
    if unknown:
        lose(f'{unknown} messages are lost: what their topic is, stands nowhere')
    if odd:
        lose(f'{odd} messages are damaged: they hold no bytes')


def _counted(connection) -> int:
    """Count the rows, as the index over their stamps has them; 0 where it cannot be read."""
    try:
        return connection.execute('SELECT count(*) FROM messages').fetchone()[0]
    except ERRORS:
        return 0
