# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A file of notes that a node writes and reads while it goes on with other things.

All that writes runs in a thread of its own, in order: a slow or full disk holds up nothing else.
Reading is a connection of its own. `problem` says what is wrong with the file at the moment; ''
is nothing. A file that cannot be opened is tried again every RETRY_S.
"""

import logging
import queue
import threading
from collections.abc import Callable

from minicpmo_ros.config import MEMORY
from minicpmo_ros.errors import Error
from minicpmo_ros.notes.database import StoreError
from minicpmo_ros.notes.store import NoteStore

log = logging.getLogger(__name__)
RETRY_S = 10.0
OPENING_S = 2.0  # that a file is waited for, at most
MOST_WAITING = 256  # pieces of work; beyond that the disk is too slow, and notes are refused


class NoteKeeper:
    """Writes and reads one file of notes; used from any thread.

    `on_problem(text)` is called in the writing thread when `problem` changes.
    """

    def __init__(
        self,
        path,
        retention_h: float = 0.0,
        max_mib: float = 0.0,
        snapshots: int = MEMORY.snapshots,
        on_problem: Callable[[str], None] = lambda text: None,
    ):
        self.path, self._bounds = path, (retention_h, max_mib, snapshots)
        self.problem, self.count = 'the file is not open yet', 0
        self._on_problem = on_problem
        self._work = queue.Queue(MOST_WAITING)
        self._store = self._reader = None
        self._reading = threading.Lock()
        self._has_tried = threading.Event()  # to open the file for writing
        self._thread = threading.Thread(target=self._run, name='notes', daemon=True)
        self._thread.start()

    def do(self, work: Callable[[NoteStore], object], on_done: Callable) -> None:
        """Do `work(store)`; `on_done(result or None, reason)` is called in the writing thread."""
        self._put(work, on_done)

    def read(self, read: Callable[[NoteStore], object]):
        """Return `read(store)`, with the store open for reading; raises StoreError.

        It waits for the file, which may just be made and be no file of notes yet.
        """
        self._has_tried.wait(OPENING_S)
        with self._reading:
            if self._reader is not None and self._reader.is_gone:
                self._end_reader()
            if self._reader is None:
                self._reader = NoteStore(self.path, is_read_only=True)
            try:
                return read(self._reader)
            except StoreError:
                self._end_reader()  # the file may have been replaced
                raise

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what waits and close the file; return whether that was done in time."""
        self._put(None, lambda _, reason: None, waits=True)
        self._thread.join(timeout_s)
        with self._reading:
            self._end_reader()
        return not self._thread.is_alive()

    def _end_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _put(self, work, on_done: Callable, waits: bool = False) -> None:
        try:
            self._work.put((work, on_done), block=waits, timeout=RETRY_S if waits else None)
        except queue.Full:
            on_done(None, f'{self._work.qsize()} writes are waiting for {self.path}. '
                          'Look at the disk.')  # fmt: skip

    def _run(self) -> None:
        while True:
            self._open()
            self._has_tried.set()
            try:
                work, on_done = self._work.get(timeout=None if self._store else RETRY_S)
            except queue.Empty:
                continue
            if work is None:
                break
            self._look()
            result = self._done(work)
            try:
                on_done(*result)
            except Exception:  # those who come later get their replies
                log.exception('nobody is told of a note')
        if self._store is not None:
            self._store.close()

    def _done(self, work) -> tuple:
        """Do one piece of work; return (result or None, reason or '')."""
        if self._store is None:
            return None, self.problem
        try:
            result = work(self._store)
            self.count = len(self._store)
            self._tell('')
            return result, ''
        except StoreError as error:
            self._tell(str(error))
            return None, str(error)
        except Error as error:  # this note makes no sense; the file is well
            return None, str(error)
        except Exception as error:
            log.exception('a note is not written')
            return None, f'unforeseen: {error!r}'

    def _look(self) -> None:
        """Begin a new file where somebody has removed this one: nobody would find the notes."""
        if self._store is not None and self._store.is_gone:
            self._store.close()
            self._store = None
            self._tell(f'{self.path} was removed by somebody: what was in it is gone')
            self._open()

    def _open(self) -> None:
        if self._store is not None:
            return
        try:
            self._store = NoteStore(self.path, *self._bounds)
            self.count = len(self._store)
            with self._reading:  # it may have read a file of an older format
                self._end_reader()
            self._tell(self._store.problem)
        except Exception as error:
            self._tell(str(error))

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_problem(problem)
