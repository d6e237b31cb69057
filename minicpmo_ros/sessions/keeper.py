# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The black box of a running node, and saved sessions: all that waits for a disk, in its thread.

An engine gives each second that it has read; a slow or full disk holds up nothing. `problem` says
what is wrong with the black box at the moment, '' is nothing. One that cannot be opened or written
is opened again for a later second.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minicpmo_ros.documents import appearing, is_of_another_kind
from minicpmo_ros.errors import Error, InputError, in_words
from minicpmo_ros.sessions.black_box import BlackBox, NotOursError
from minicpmo_ros.sessions.session_file import (
    FIRST_PLACE,
    MAGIC,
    Geometry,
    SessionFileError,
    SessionReader,
    newest_run,
)
from minicpmo_ros.streams.pairing import Unit

log = logging.getLogger(__name__)
MOST_WAITING_S = 16  # seconds that wait to be written; the next ones are lost, and told
RETRY_EVERY = 8  # seconds
OPENING_S = 10.0  # an engine waits no longer for a disk
CLOSED = 'The black box is closed. Configure the node first.'
OFF = 'There is no black box to save from. Set memory.black_box_s and configure the node anew.'


class StoredSession(NamedTuple):
    """Seconds that can be read again, oldest first, and the reader of their file."""

    reader: SessionReader
    stored: list  # of StoredSecond
    told: str = ''  # what is missing, a sentence
    is_black_box: bool = False  # else the file is closed when it has been read
    age_s: float = 0.0  # since it was written last, before it was opened

    @property
    def seconds(self) -> list:
        """Their numbers, oldest first."""
        return [one.second for one in self.stored]

    def close(self) -> None:
        """Close a file that is a saved session."""
        if not self.is_black_box:
            self.reader.close()


class SessionKeeper:
    """Used from any thread.

    `model()` returns (space, width) of the model, and may wait for it; it is called in the
    keeper's thread. `on_problem(text)` is called there when `problem` changes. `n_seconds` 0:
    there is no black box, but sessions can be loaded. `age_s`: since when the file has not been
    written, seconds. `forget`, `save`, `load` and
    `close` are for one thread.
    """

    def __init__(
        self,
        path: str,
        n_seconds: int,
        model: Callable[[], tuple],
        on_problem: Callable[[str], None] = lambda text: None,
        age_s: float = 0.0,
    ):
        self.path, self.n_seconds, self._age_s = Path(path).expanduser(), n_seconds, age_s
        self.problem, self.told = '', ''
        self._model, self._on_problem = model, on_problem
        self._work, self._lost = queue.Queue(), 0
        self._waiting = threading.Semaphore(MOST_WAITING_S)
        self._box, self._until_retry = None, 0
        self._n_clears, self._is_others, self._is_closed = 0, False, False
        self._thread = threading.Thread(target=self._run, name='sessions', daemon=True)
        if n_seconds:
            self._thread.start()

    # For an engine, where there is a black box.
    def stored(self) -> StoredSession | None:
        """Return what an engine whose window is empty is to read again, or None.

        Waits until all that was given is written, but not for ever.
        """
        found, is_done = [], threading.Event()
        self._work.put(lambda: self._look(found, is_done))
        if self._is_closed:  # perhaps behind its last piece of work; the engine ends, too
            return None
        if not is_done.wait(OPENING_S):
            self._tell(f'{self.path} could not be read in {OPENING_S:g} s. Look at the disk.')
            return None
        return found[0] if found else None

    def put(self, unit: Unit, window: tuple) -> None:
        """Write a second that the window has read; `window`: the seconds in it since."""
        if not self._waiting.acquire(blocking=False):
            self._lost += 1
            self._tell(f'{self.path}: the disk is too slow, {self._lost} seconds are not in it.')
            return
        n_clears = self._n_clears
        self._work.put(lambda: self._append(unit, window, lambda: n_clears == self._n_clears))

    def clear(self) -> str:
        """Forget all seconds before this returns; return why that is not so, or ''."""
        self._n_clears += 1
        box, problem = self._box, '' if self._is_others else self.problem
        if box is not None:
            try:
                box.clear()
                problem = ''
            except SessionFileError as error:
                problem = str(error)
        self._work.put(self._wipe)
        return problem

    # For a node.
    def forget(self, begin_s: float, end_s: float, on_done: Callable) -> None:
        """Remove the bytes of seconds; `on_done(how many or None, reason)`, in the thread."""
        self._do(lambda: self._forget(begin_s, end_s), on_done)

    def save(self, path, seconds, on_done: Callable) -> None:
        """Write these seconds of the window to a file; `on_done(their number or None, reason)`."""
        self._do(lambda: self._save(path, set(seconds)), on_done)

    def load(self, path, on_done: Callable) -> None:
        """Open a saved session; `on_done(StoredSession or None, reason)`."""
        self._do(lambda: self._load(path), on_done)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what waits and close the file; return whether that was done in time."""
        self._is_closed = True
        self._work.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The thread.
    def _run(self) -> None:
        if self.n_seconds:
            self._open()
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                log.exception('the black box goes on')
        if self._box is not None:
            self._box.close()

    def _do(self, work: Callable, on_done: Callable) -> None:
        def done():
            try:
                result, reason = work(), ''
            except Error as error:
                result, reason = None, str(error)
            except OSError as error:
                result = None
                reason = f'The file cannot be used: {in_words(error)}. Name another one.'
            except Exception as error:
                log.exception('a session is not kept')
                result, reason = None, f'unforeseen: {error!r}'
            on_done(result, reason)

        if self._is_closed:
            on_done(None, CLOSED)
            return
        self._work.put(done)
        if self._thread.ident is None:
            self._thread.start()

    def _look(self, found: list, is_done: threading.Event) -> None:
        """Put the StoredSession of the black box into `found`, if it has seconds."""
        try:
            if self._box is not None and (stored := newest_run(self._box.reader.scan()[0])):
                found.append(StoredSession(self._box.reader, stored, '', True, self._age_s))
        finally:
            is_done.set()

    def _open(self) -> None:
        try:
            self._is_others = False
            space, width = self._model()
            self._box = BlackBox(self.path, self.n_seconds, space, width)
            self.told = self._box.told
            self._tell('')
            if self.told:
                self._on_problem(self.told)
        except Exception as error:  # of the model's files too: who loads them says so
            self._is_others = isinstance(error, NotOursError)
            self._tell(str(error) if isinstance(error, SessionFileError) else '')

    def _append(self, unit: Unit, window: tuple, is_current: Callable[[], bool]) -> None:
        self._waiting.release()
        if self._box is None:
            self._until_retry -= 1
            if self._until_retry > 0:
                return
            self._until_retry = RETRY_EVERY
            self._open()
        if self._box is None:
            return
        try:
            self._box.append(unit, window, is_current)
            self._tell('')
        except SessionFileError as error:
            self._tell(str(error))
            self._box.close()
            self._box, self._until_retry = None, RETRY_EVERY

    def _wipe(self) -> None:
        if self._box is None:
            self._open()
        if self._box is not None:
            try:
                self._box.wipe()
            except SessionFileError as error:
                self._tell(str(error))

    def _forget(self, begin_s: float, end_s: float) -> int:
        if self.n_seconds and self._box is None:
            self._open()
        if self._box is None:
            if self.n_seconds and not self._is_others:
                raise SessionFileError(self.problem)
            return 0
        return self._box.forget(begin_s, end_s)

    def _save(self, path, seconds: set) -> int:
        path = Path(path).expanduser()
        if self._box is None:
            raise InputError(self.problem or OFF)
        if path.exists() and path.samefile(self.path):
            raise InputError(f'{path} is the black box itself. Name another file.')
        if path.is_file() and is_of_another_kind(path, MAGIC):
            raise InputError(f'{path} is a file of another program. Name another file.')
        reader = self._box.reader
        stored = [one for one in reader.scan()[0] if one.second in seconds]
        if not stored:
            raise InputError('No second of the window is in the black box yet.')
        places = [place for one in stored for place in one.places]
        known = reader.geometry
        geometry = Geometry(known.space, known.width, len(places), known.place_bytes)
        with appearing(path, geometry.file_bytes) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(geometry.header().ljust(FIRST_PLACE, b'\0'))
            for place in places:
                file.write(reader.read_place(place))
        return len(stored)

    def _load(self, path) -> StoredSession:
        path = Path(path).expanduser()
        if self.n_seconds and path.exists() and self.path.exists() and path.samefile(self.path):
            raise InputError(f'{path} is the black box of this node. Copy it, and load the copy.')
        reader = SessionReader.open(path)
        try:
            reader.require(*self._model())
            stored, damaged = reader.scan()
            stored = newest_run(stored)
            if not stored:
                raise SessionFileError(
                    f'{path}: none of its {reader.geometry.n_places} places can be read. '
                    'Nothing was loaded.'
                )
        except BaseException:
            reader.close()
            raise
        told = f'{len(damaged)} places of {path} are damaged and were left out.' if damaged else ''
        return StoredSession(reader, stored, told)

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_problem(problem)
