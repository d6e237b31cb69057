# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The SQLite file behind the notes: opened, locked, brought to the newest format, mended."""

import os
import re
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.documents import SQLITE, hold_for_writing, is_of_another_kind, put_aside
from minicpmo_ros.errors import BusyError, Error, InputError
from minicpmo_ros.notes.note import Note, Pose, checked
from minicpmo_ros.units import MIB

VERSION = 2  # of the schema; each step of MIGRATIONS leads from one version to the next
BUSY_S = 5  # for which another process is waited
LARGEST_PAGE = 2**16  # bytes
WAL_PAGES = 128  # half a MiB is written ahead of the file
SNAPSHOTS = """snapshots (
        note_id INTEGER PRIMARY KEY, second INTEGER NOT NULL, space TEXT NOT NULL,
        tiles_wide INTEGER NOT NULL, tiles_high INTEGER NOT NULL,
        image_rows INTEGER NOT NULL, audio_rows INTEGER NOT NULL, width INTEGER NOT NULL,
        data BLOB NOT NULL)"""
MIGRATIONS = (
    """
    CREATE TABLE notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        begin_s REAL NOT NULL, end_s REAL NOT NULL, written_s REAL NOT NULL,
        kind TEXT NOT NULL, text TEXT NOT NULL, count INTEGER NOT NULL DEFAULT 1,
        frame TEXT NOT NULL DEFAULT '', x REAL, y REAL, z REAL, yaw REAL,
        model TEXT NOT NULL DEFAULT '', image BLOB);
    CREATE INDEX notes_by_time ON notes (begin_s, end_s);
    CREATE INDEX notes_by_place ON notes (x, y) WHERE x IS NOT NULL;
    CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61');
    """,
    f'CREATE TABLE {SNAPSHOTS};',
)
COLUMNS = 'id, begin_s, end_s, written_s, kind, text, count, frame, x, y, z, yaw, model'
READ_COLUMNS = (
    ', '.join(f'notes.{name}' for name in COLUMNS.split(', '))
    + ', EXISTS (SELECT 1 FROM snapshots WHERE note_id = notes.id)'
)
# Scripts that are written without spaces: each character is a word of the index.
UNSPACED = re.compile('([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])')


class StoreError(Error):
    """A file of notes that cannot be read or written; the text says what to do."""


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a file that is there, for reading only; raises StoreError."""
    if not path.exists():
        raise StoreError(f'{path}: there is no such file.')
    try:
        db = _connect(f'{path.resolve().as_uri()}?mode=ro', uri=True)
        try:
            return _current(db, path, is_read_only=True)
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as error:
        raise StoreError(f'{path}: {error}. It is no file of notes.') from error


def open_writing(path: Path) -> tuple:
    """Open or make a file; return (connection, what was mended, a sentence); raises StoreError."""
    _prepare(path)
    try:
        return _writable(path), ''
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise StoreError(why(path, error)) from error
        if _is_of_another_program(path):
            raise StoreError(
                f'{path} is a file of another program, and is left as it is. It is no file of '
                'notes: name another file.'
            ) from error
        return _mend(path, error)


def lock(path: Path) -> int:
    """Return a descriptor that holds the file for one writer; raises StoreError."""
    try:
        return hold_for_writing(path)
    except OSError as error:
        raise StoreError(why(path, error)) from error
    except InputError as error:
        raise StoreError(str(error)) from error
    except BusyError as error:
        raise StoreError(
            f'{path} is being written by {error}. Give each node a file of its own, or ask that '
            'node (~/recall, ~/forget).'
        ) from error


def why(path: Path, error: Exception) -> str:
    """Return what SQLite or the system says, with what to do."""
    remedy = 'Check the disk and who may write there'
    if 'full' in str(error):
        remedy = 'Make room on the disk, or lower memory.max_mib'
    elif 'readonly' in str(error) or isinstance(error, PermissionError):
        remedy = 'It can only be read: give memory.path a file that this user may write'
    return f'{path}: {error}. {remedy}.'


@contextmanager
def transaction(db: sqlite3.Connection):
    """Write all that is written inside, or nothing."""
    db.execute('BEGIN IMMEDIATE')
    try:
        yield
        db.execute('COMMIT')
    except BaseException:
        if db.in_transaction:
            db.execute('ROLLBACK')
        raise


def insert(db: sqlite3.Connection, note: Note) -> Note:
    """Insert a note, under the number that it has, and return it with its number."""
    pose = note.pose
    place = '', None, None, None, None
    if pose is not None:
        place = pose.frame, pose.x, pose.y, pose.z, pose.yaw
    said = note.kind, note.text, note.count
    values = (
        note.id or None, note.begin_s, note.end_s, note.written_s, *said, *place, note.model,
        note.image or None,
    )  # fmt: skip
    marks = ', '.join('?' * len(values))
    row = db.execute(f'INSERT INTO notes ({COLUMNS}, image) VALUES ({marks})', values)
    db.execute('INSERT INTO words (rowid, text) VALUES (?, ?)', (row.lastrowid, spaced(note.text)))
    return replace(note, id=row.lastrowid)


def to_note(row) -> Note:
    """Return the note of a row of READ_COLUMNS."""
    number, begin_s, end_s, written_s, kind, text, count, frame, x, y, z, yaw, model, has = row
    pose = None
    if None not in (x, y, z, yaw):
        with suppress(InputError):  # in a file of an earlier release
            pose = Pose(frame, x, y, z, yaw)
    return Note(begin_s, end_s, text, kind, pose, model, b'', written_s, count, number, bool(has))


def spaced(text: str) -> str:
    """Return a text with spaces between its words, also in scripts that have none."""
    return UNSPACED.sub(r' \1 ', text)


def _connect(name: str, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        name, uri=uri, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )


def _prepare(path: Path) -> None:
    """Make the folder, and the file readable for its owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(why(path, error)) from error


def _writable(path: Path) -> sqlite3.Connection:
    db = _connect(str(path))
    try:
        _require_own(db, path)
        db.execute('PRAGMA journal_mode = WAL')
        db.execute('PRAGMA synchronous = NORMAL')
        db.execute('PRAGMA secure_delete = ON')
        db.execute(f'PRAGMA wal_autocheckpoint = {WAL_PAGES}')
        db.execute(f'PRAGMA journal_size_limit = {MIB}')
        _migrate(db)
        return _current(db, path)
    except BaseException:
        db.close()
        raise


def _require_own(db: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError for a database of another program, such as a bag: it is left as it is."""
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    tables = [name for (name,) in rows]
    if tables and not {'notes', 'words'} <= set(tables):
        raise StoreError(
            f'{path} is a database of another program, with the tables {", ".join(tables[:5])}. '
            'It is no file of notes: name another file.'
        )


def _migrate(db: sqlite3.Connection) -> None:
    version = db.execute('PRAGMA user_version').fetchone()[0]
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        db.executescript(f'BEGIN; {script} PRAGMA user_version = {number}; COMMIT;')


def _current(db: sqlite3.Connection, path: Path, is_read_only: bool = False) -> sqlite3.Connection:
    """Return the database if this version of the package can use it."""
    version = db.execute('PRAGMA user_version').fetchone()[0]
    if version > VERSION or not version:
        raise StoreError(
            f'{path} has version {version} of the format, this package knows {VERSION}. '
            + ('Use a newer one.' if version else 'It is no file of notes.')
        )
    if version == 1 and is_read_only:  # it had none, and cannot be brought up to date
        db.execute(f'CREATE TEMP TABLE {SNAPSHOTS}')
    db.execute(f'SELECT {READ_COLUMNS} FROM notes ORDER BY id DESC LIMIT 1').fetchone()
    db.execute('SELECT rowid FROM words ORDER BY rowid DESC LIMIT 1').fetchone()
    return db


def _mend(path: Path, error: Exception) -> tuple:
    """Put the damaged file aside and take over what can be read of it."""
    try:
        aside = put_aside(path, ('-wal', '-shm'))
    except OSError as problem:
        raise StoreError(why(path, problem)) from problem
    _prepare(path)
    db = _writable(path)
    notes = _salvage(aside)
    with transaction(db):
        for note in notes:
            insert(db, note)
    problem = (
        f'{path} was damaged ({error}); {len(notes)} notes could be read and were taken '
        f'over. The damaged file is {aside}.'
    )
    return db, problem


def _is_damage(error: Exception) -> bool:
    return 'malformed' in str(error) or 'not a database' in str(error)


def _is_of_another_program(path: Path) -> bool:
    """Return whether a file that SQLite cannot use was never one of notes.

    The first page of a database has the sentences that made its tables, unless it is damaged.
    """
    if is_of_another_kind(path, SQLITE):
        return True
    with open(path, 'rb') as file:
        page = file.read(LARGEST_PAGE)
    return b'CREATE TABLE' in page and b'CREATE TABLE notes' not in page


def _salvage(path: Path) -> list:
    """Return the notes of a damaged file that can be read."""
    notes, db = [], sqlite3.connect(str(path))
    try:
        for row in db.execute(f'SELECT {COLUMNS}, 0, image FROM notes'):
            try:
                notes.append(checked(replace(to_note(row[:-1]), image=bytes(row[-1] or b''))))
            except (TypeError, ValueError, Error):
                continue  # this row is damaged
    except sqlite3.Error:
        pass  # what follows cannot be read
    finally:
        db.close()
    return notes
