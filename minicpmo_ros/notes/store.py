# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A file of notes: sentences about spans of time, searched by words, time and place.

The file is an SQLite database in WAL mode with an FTS5 index over the words. Each note is
committed when it is added, so that a killed process loses none; after a power failure the newest
can be missing. Notes are ordered by their number, not by their stamps: a clock may be set back.

One process writes, any number read. A file that is damaged is put aside, what can be read of it
is taken over, and `problem` says so. A full or read-only disk is a StoreError of the call; the
store goes on with the next one.

What is kept is bounded by age and by size: older notes are first merged by the hour, then lose
their snapshots and images, then go. Of snapshots the newest are kept, those of periodic notes go
first; a note that has one is not merged.
"""

import os
import re
import sqlite3
import statistics
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.config import MEMORY
from minicpmo_ros.notes.database import (
    READ_COLUMNS,
    StoreError,
    insert,
    lock,
    open_reading,
    open_writing,
    spaced,
    to_note,
    transaction,
    why,
)
from minicpmo_ros.notes.note import (
    HOUR_S,
    Filter,
    Note,
    checked,
    continues,
    merged_notes,
)
from minicpmo_ros.notes.snapshots import Snapshot
from minicpmo_ros.units import MIB

MERGE_AFTER_S = 24 * HOUR_S  # periodic notes that are older are merged by the hour
PRUNE_EVERY = 64  # added notes
MERGED_AT_ONCE = 1000  # notes
SHORT_SPAN_S = 24 * HOUR_S  # whose notes are found by the index of their times
NEWEST_SEARCHED = 20_000  # notes, for those that have only some of the words
GONE_AT_ONCE = 256  # notes, when the file is too large


class NoteStore:
    """An open file of notes; one thread uses it. Close it, or use it in a with statement."""

    def __init__(
        self,
        path,
        retention_h: float = 0.0,
        max_mib: float = 0.0,
        snapshots: int = MEMORY.snapshots,
        is_read_only: bool = False,
    ):
        """Open or make the file; raises StoreError.

        A bound of age or size of 0 does not bound; so many `snapshots` are kept at most.
        """
        self.path = Path(path).expanduser()
        self._retention_s, self._max_bytes = retention_h * HOUR_S, max_mib * MIB
        self._most_snapshots = snapshots
        self.problem = ''  # what was mended when it was opened, a sentence
        self._is_read_only, self._added = is_read_only, 0
        self._longest_s, self._measured = 0.0, 0  # of the notes up to this number
        self._lock = None if is_read_only else lock(self.path)
        try:
            if is_read_only:
                self._db = open_reading(self.path)
            else:
                self._db, self.problem = open_writing(self.path)
            self._file = _file_of(self.path)
        except BaseException:
            self._unlock()
            raise

    @property
    def is_gone(self) -> bool:
        """Whether somebody has removed the file, or put another in its place."""
        return _file_of(self.path) != self._file

    def __enter__(self):  # noqa: D105
        return self

    def __exit__(self, *_):  # noqa: D105
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None
        self._unlock()

    def __len__(self) -> int:  # noqa: D105
        with self._told():
            return self._db.execute('SELECT count(*) FROM notes').fetchone()[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of the file and of what is not yet written into it."""
        paths = self.path, Path(f'{self.path}-wal')
        return sum(path.stat().st_size for path in paths if path.exists())

    def add(self, note: Note, snapshot: Snapshot | None = None) -> Note:
        """Add a note and return it with its number; raises InputError, StoreError.

        A periodic note with the words of the newest one, at the same place, extends that one.
        `snapshot`: of its newest second.
        """
        note = checked(note)
        with self._writing() as db:
            newest = self._select('1 ORDER BY id DESC LIMIT 1')
            if newest and continues(newest[0], note):
                kept = replace(newest[0], end_s=note.end_s, written_s=note.written_s)
                db.execute(
                    'UPDATE notes SET end_s = ?, written_s = ? WHERE id = ?',
                    (kept.end_s, kept.written_s, kept.id),
                )
                return self._with_snapshot(db, kept, snapshot)
            note = self._with_snapshot(db, insert(db, note), snapshot)
        self._added += 1
        if self._added % PRUNE_EVERY == 0:
            self.prune(self._usual_now_s())
        return note

    def list(self, filter: Filter | None = None, limit: int = 1000) -> list:
        """Return the newest `limit` notes that the filter admits, oldest first."""
        with self._told():
            condition, values = self._in_time(filter or Filter())
            return self._select(f'{condition} ORDER BY id DESC LIMIT ?', [*values, limit])[::-1]

    def search(self, words, filter: Filter | None = None, limit: int = 24) -> list:
        """Return [(note, score)] of the notes with most of the words; higher scores are better.

        `words`: texts; quotes and operators in them are text. Inflected forms are found (porter).
        """
        terms = [f'"{term}"' for word in words for term in _terms(word)]
        terms = list(dict.fromkeys(terms))
        if not terms:
            return []
        found = {}  # {number: (note, score)}
        with self._told():
            newest = self._db.execute('SELECT max(id) FROM notes').fetchone()[0] or 0
            after = max(0, newest - NEWEST_SEARCHED)
            # Common words are in very many notes: of those the newest are enough.
            for joined, first in ((' AND ', after), (' AND ', 0), (' OR ', after)):
                if len(found) < limit:
                    for note, score in self._match(joined.join(terms), filter, limit, first):
                        found.setdefault(note.id, (note, score))
        return list(found.values())[:limit]

    def newest(self, words, filter: Filter | None = None, limit: int = 24) -> list:
        """Return [(note, 1.0)] of the newest notes with all of the words, the newest first."""
        terms = [f'"{term}"' for word in words for term in _terms(word)]
        condition, values = (filter or Filter()).sql()
        if not terms:
            return []
        with self._told():
            rows = self._db.execute(
                f'SELECT {READ_COLUMNS} FROM words JOIN notes ON notes.id = words.rowid '
                f'WHERE words MATCH ? AND {condition} ORDER BY words.rowid DESC LIMIT ?',
                [' AND '.join(terms), *values, limit],
            )
            return [(to_note(row), 1.0) for row in rows]

    def image(self, note_id: int) -> bytes:
        """Return the JPEG of a note; b'' where it has none."""
        with self._told():
            row = self._db.execute('SELECT image FROM notes WHERE id = ?', [note_id]).fetchone()
        return bytes(row[0] or b'') if row else b''

    def snapshot(self, note_id: int) -> Snapshot | None:
        """Return the snapshot of a note, None where it has none; raises InputError if damaged."""
        with self._told():
            row = self._db.execute(
                'SELECT second, space, tiles_wide, tiles_high, image_rows, audio_rows, width, '
                'data FROM snapshots WHERE note_id = ?',
                [note_id],
            ).fetchone()
        return Snapshot.read_row(row) if row else None

    def forget(self, filter: Filter) -> int:
        """Delete notes so that no byte of them is left in the file; return how many there were."""
        condition, values = filter.sql()
        with self._writing() as db:
            ids = [row[0] for row in db.execute(f'SELECT id FROM notes WHERE {condition}', values)]
            self._delete(db, ids)
        self._wipe()
        return len(ids)

    def prune(self, now_s: float) -> int:
        """Merge and delete what is beyond the bounds of age and size; return how many are gone."""
        before = len(self)
        self._merge(now_s - MERGE_AFTER_S)
        if self._retention_s:
            with self._writing() as db:
                old = db.execute(
                    'SELECT id FROM notes WHERE end_s < ?', [now_s - self._retention_s]
                )
                self._delete(db, [row[0] for row in old])
        if self._max_bytes and self._used_bytes() > self._max_bytes:
            with self._writing() as db:
                db.execute('UPDATE notes SET image = NULL WHERE end_s < ?', [now_s - HOUR_S])
        while self._max_bytes and self._used_bytes() > self._max_bytes and self._n_snapshots():
            with self._writing() as db:
                self._keep_snapshots(db, self._n_snapshots() - 1)
        while self._max_bytes and self._used_bytes() > self._max_bytes and len(self) > 1:
            with self._writing() as db:
                oldest = db.execute('SELECT id FROM notes ORDER BY id LIMIT ?', [GONE_AT_ONCE])
                self._delete(db, [row[0] for row in oldest])
        return before - len(self)

    # Within.
    def _usual_now_s(self) -> float:
        """Return the time in the middle of the newest notes: of now, and of no clock gone astray.

        By a clock that was years ahead for a moment all notes would be too old.
        """
        rows = self._db.execute(
            'SELECT coalesce(nullif(written_s, 0), end_s) FROM notes ORDER BY id DESC LIMIT ?',
            [PRUNE_EVERY],
        )
        return statistics.median_low(row[0] for row in rows)

    def _in_time(self, filter: Filter) -> tuple:
        """Return (condition, values) of a filter; of a short span with an earliest begin.

        With that, the index of the times gives the notes of the span. Without it, SQLite goes
        through the notes from the newest on, which is quicker where many of those are admitted.
        """
        condition, values = filter.sql()
        begin_s, end_s = filter.begin_s, filter.end_s
        if None in (begin_s, end_s) or end_s - begin_s > SHORT_SPAN_S:
            return condition, values
        # Also the newest of the last time: it may have been extended since.
        longest_s, newest = self._db.execute(
            'SELECT max(end_s - begin_s), max(id) FROM notes WHERE id >= ?', [self._measured]
        ).fetchone()
        self._longest_s = max(self._longest_s, longest_s or 0.0)
        self._measured = newest or 0
        earliest_s = begin_s - self._longest_s - HOUR_S  # as merged ones are, at most
        return f'{condition} AND begin_s >= ?', [*values, earliest_s]

    def _match(self, match: str, filter: Filter | None, limit: int, after: int = 0) -> list:
        """Return [(note, score)] for a query of FTS5 among the notes numbered above `after`."""
        condition, values = (filter or Filter()).sql()
        rows = self._db.execute(
            f'SELECT {READ_COLUMNS}, -bm25(words) AS score FROM words '
            f'JOIN notes ON notes.id = words.rowid '
            f'WHERE words MATCH ? AND words.rowid > ? AND {condition} '
            'ORDER BY score DESC, notes.id DESC LIMIT ?',
            [match, after, *values, limit],
        )
        return [(to_note(row[:-1]), row[-1]) for row in rows]

    def _select(self, condition: str, values=()) -> list:
        rows = self._db.execute(f'SELECT {READ_COLUMNS} FROM notes WHERE {condition}', values)
        return [to_note(row) for row in rows]

    def _with_snapshot(self, db: sqlite3.Connection, note: Note, snapshot) -> Note:
        """Keep the snapshot of a note, if there is one, within the bound; return the note."""
        if snapshot is None or not self._most_snapshots:
            return note
        values = note.id, *snapshot.row()
        marks = ', '.join('?' * len(values))
        db.execute(f'INSERT OR REPLACE INTO snapshots VALUES ({marks})', values)
        self._keep_snapshots(db, self._most_snapshots)
        return replace(note, snapshot=True)

    def _n_snapshots(self) -> int:
        return self._db.execute('SELECT count(*) FROM snapshots').fetchone()[0]

    def _keep_snapshots(self, db: sqlite3.Connection, most: int) -> None:
        """Delete the oldest snapshots beyond so many, first those of periodic notes."""
        db.execute(
            'DELETE FROM snapshots WHERE note_id IN (SELECT note_id FROM snapshots '
            "JOIN notes ON notes.id = note_id ORDER BY kind <> 'periodic', note_id LIMIT ?)",
            [max(0, self._n_snapshots() - most)],
        )

    def _delete(self, db: sqlite3.Connection, ids) -> None:
        ids = [[number] for number in ids]
        db.executemany('DELETE FROM notes WHERE id = ?', ids)
        db.executemany('DELETE FROM snapshots WHERE note_id = ?', ids)
        db.executemany('DELETE FROM words WHERE rowid = ?', ids)

    def _wipe(self) -> None:
        """Write the file anew without what was deleted; the index keeps deleted words else."""
        with self._told():
            self._db.execute("INSERT INTO words (words) VALUES ('rebuild')")
            self._db.execute('VACUUM')
            self._db.execute('PRAGMA wal_checkpoint(TRUNCATE)')

    def _merge(self, before_s: float) -> None:
        """Make one note of the periodic ones of each past hour, place by place."""
        with self._writing() as db:
            notes = self._select(
                "kind = 'periodic' AND end_s < ? AND id NOT IN (SELECT note_id FROM snapshots) "
                'ORDER BY id LIMIT ?',
                [before_s, MERGED_AT_ONCE],
            )
            groups = {}
            for note in notes:
                place = note.pose and (note.pose.frame, round(note.pose.x), round(note.pose.y))
                groups.setdefault((int(note.begin_s // HOUR_S), place), []).append(note)
            for group in groups.values():
                self._delete(db, [note.id for note in group])
                for merged in merged_notes(group):
                    insert(db, merged)

    def _used_bytes(self) -> int:
        with self._told():
            pages, free, size = (
                self._db.execute(f'PRAGMA {name}').fetchone()[0]
                for name in ('page_count', 'freelist_count', 'page_size')
            )
        return (pages - free) * size

    @contextmanager
    def _told(self):
        """Make a StoreError of what SQLite says."""
        if self._db is None:
            raise StoreError(f'{self.path} is closed.')
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(why(self.path, error)) from error

    @contextmanager
    def _writing(self):
        """Write all that is written inside, or nothing."""
        if self._is_read_only:
            raise StoreError(f'{self.path} was opened for reading only.')
        with self._told(), transaction(self._db):
            yield self._db

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _file_of(path: Path) -> tuple | None:
    """Return what tells a file from another of its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _terms(word: str) -> list:
    """Return the words of a text as the index has them, without what FTS5 takes for syntax."""
    return re.findall(r'\w+', spaced(word.replace('\0', ' ')))
