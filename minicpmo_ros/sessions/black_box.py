# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The black box: the newest seconds that the window has read, in a file that outlives the process.

Places are written in turn, so the file has one size, which is allocated when it is made. A killed
process loses at most the second that it was writing; what the system has taken is written even so.
After a power failure the newest seconds can be missing: nothing waits for the disk.

One process writes a file, and only its owner may read it. What cannot be used (another model's, a
damaged header) is begun anew, and `told` says so; what is no file of a session at all, such as a
bag that was named by mistake, is refused and left; a file of another length keeps its seconds.
"""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from minicpmo_ros.documents import FULL, hold_for_writing, is_of_another_kind
from minicpmo_ros.errors import BusyError, InputError
from minicpmo_ros.sessions.session_file import (
    MAGIC,
    PAGE,
    Geometry,
    SessionFileError,
    SessionReader,
    encode_unit,
    mark,
    newest_run,
    window_of,
)
from minicpmo_ros.streams.pairing import Unit


class NotOursError(SessionFileError):
    """The file is another node's or another program's: no second of this node is in it."""


class BlackBox:
    """An open file. Threads: `clear` may come from any, all else is for one."""

    def __init__(self, path, n_seconds: int, space: str, width: int):
        """Open or make a file for so many seconds of a model; raises SessionFileError."""
        self.path = Path(path).expanduser()
        self.told = ''  # what was wrong with the file as it was found, a sentence
        self._geometry = Geometry.of(space, width, n_seconds)
        self._numbers = threading.Lock()  # guards `_next`
        self._reader, self._lock = None, _lock(self.path)
        try:
            self._open()
        except OSError as error:
            self.close()
            raise SessionFileError(_why(self.path, error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._reader is not None:
            self._reader.close()
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    @property
    def reader(self) -> SessionReader:
        """What reads it; it is closed with the file."""
        return self._reader

    def append(
        self, unit: Unit, window: tuple, is_current: Callable[[], bool] = lambda: True
    ) -> None:
        """Write a unit; `window`: the seconds in the window behind it. Raises SessionFileError.

        One that begins a new time forgets what was before. `is_current()`: whether nothing was
        cleared since the unit was read.
        """
        if unit.restarted:
            self.clear()
            self.wipe()
        with self._numbers:
            if not is_current():
                return
            places = encode_unit(self._geometry, self._next, unit, window)
            first, self._next = self._next, self._next + len(places)
        with self._writing() as write:
            for number, data in enumerate(places, first):
                write(data, self._geometry.offset(number % self._geometry.n_places))

    def clear(self) -> None:
        """Forget all seconds at once; `wipe` then removes their bytes. Raises SessionFileError."""
        with self._numbers, self._writing() as write:
            write(mark(self._next), PAGE)

    def wipe(self) -> None:
        """Overwrite all places by zeros, on the disk too. Raises SessionFileError."""
        self._zero(range(self._geometry.n_places))

    def forget(self, begin_s: float, end_s: float) -> int:
        """Remove the bytes of the seconds that touch a span of time; return how many."""
        stored, damaged = self._reader.scan()
        gone = [one for one in stored if begin_s - 1 <= one.second <= end_s]
        self._zero([place for one in gone for place in one.places] + damaged)
        return len(gone)

    def window(self) -> list:
        """Return the StoredSeconds that were in the window at the end, oldest first."""
        return window_of(self._reader.scan()[0])

    # Within.
    def _open(self) -> None:
        stored, damaged = self._adopt()
        self._next = max((one.number + len(one.places) for one in stored), default=0)
        self._next = max(self._next, self._reader.valid_from())
        self._zero(damaged)  # half of them may be of a second that is to be forgotten

    def _adopt(self) -> tuple:
        """Open the file or make one; return its StoredSeconds, and which places are damaged."""
        if not self.path.exists():
            self._make([])
            return [], []
        try:
            found = SessionReader(os.open(self.path, os.O_RDWR), self.path)
        except SessionFileError as error:
            return self._begin_anew(str(error))
        try:
            found.require(self._geometry.space, self._geometry.width)
        except SessionFileError as error:
            found.close()
            return self._begin_anew(str(error))
        stored, damaged = found.scan()
        if found.geometry != self._geometry:
            kept, room = [], self._geometry.n_places
            for one in reversed(newest_run(stored)):
                room -= len(one.places)
                if room < 0:
                    break
                kept.append(one)
            self._make([(one, found.read(one)) for one in reversed(kept)])
            found.close()
            return self._reader.scan()
        self._reader = found
        os.fchmod(found.descriptor, 0o600)
        self._allocate(found.descriptor)
        return stored, [place for place in damaged if place < self._geometry.n_places]

    def _begin_anew(self, why: str) -> tuple:
        if is_of_another_kind(self.path, MAGIC):
            raise NotOursError(
                f'{self.path} is a file of another program, and is left as it is. Set '
                'memory.black_box_path to another file.'
            )
        self.told = f'{why} It is begun anew.'
        self._make([])
        return [], []

    def _make(self, kept: list) -> None:
        """Make the file, with these (StoredSecond, Unit) in it; it appears when it is whole."""
        new = self.path.with_name(f'.{self.path.name}.partial')
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._allocate(descriptor)
            _write_all(descriptor, self._geometry.header(), 0)
            number = 0
            for one, unit in kept:
                if unit is None:
                    continue
                for data in encode_unit(self._geometry, number, unit, one.window):
                    place = number % self._geometry.n_places
                    _write_all(descriptor, data, self._geometry.offset(place))
                    number += 1
            os.replace(new, self.path)
            self._reader = SessionReader(descriptor, self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            if self._reader is None:
                os.close(descriptor)
            raise

    def _allocate(self, descriptor: int) -> None:
        """Take the room on the disk now, so that it cannot be full later."""
        try:
            os.posix_fallocate(descriptor, 0, self._geometry.file_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(descriptor, self._geometry.file_bytes)

    def _zero(self, places) -> None:
        if not places:
            return
        nothing = bytes(self._geometry.place_bytes)
        with self._writing() as write:
            for place in places:
                write(nothing, self._geometry.offset(place))
            os.fdatasync(self._reader.descriptor)

    @contextmanager
    def _writing(self):
        """Give write(data, offset); make a SessionFileError of what the system says."""
        descriptor = self._reader.descriptor if self._reader is not None else None
        if descriptor is None:
            raise SessionFileError(f'{self.path} is closed.')
        try:
            if os.fstat(descriptor).st_nlink == 0:
                raise SessionFileError(f'{self.path} was removed by somebody.')
            yield partial(_write_all, descriptor)
        except OSError as error:
            raise SessionFileError(_why(self.path, error)) from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        n_written = os.pwrite(descriptor, data, offset)
        data, offset = data[n_written:], offset + n_written


def _lock(path: Path) -> int:
    """Return a descriptor that keeps the file for one writer; raises SessionFileError."""
    try:
        return hold_for_writing(path)
    except OSError as error:
        raise SessionFileError(_why(path, error)) from error
    except InputError as error:
        raise SessionFileError(str(error)) from error
    except BusyError as error:
        raise NotOursError(
            f'{path} is being written by another node ({error}). Give each node a file of its own.'
        ) from error


def _why(path: Path, error: OSError) -> str:
    remedy = 'Check the disk and who may write there'
    if error.errno in FULL:
        remedy = 'Make room on the disk, or lower memory.black_box_s'
    return f'{path}: {error.strerror or error}. {remedy}.'
