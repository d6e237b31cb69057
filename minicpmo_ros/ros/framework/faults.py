# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Handles unforeseen errors and logging: errors are logged with their place, and counted.

Everything that runs repeatedly (the worker's steps, timers, pollers, callables that workers post)
runs in a guard. A guard that catches an error logs its place and traceback, at most once in ten
seconds for each place; /diagnostics counts them. IN_A_ROW failures of one place without a success
in between are a row. Then `on_row(place)` is called, once for each row, and the node restarts.

Who waits for a reply gets one: what a service or an action raises is its reason.

If the machine lacks something (descriptors, threads, memory, disk), a sentence is logged and no
row counted: a restart would need even more of it.

Python's logging, used by the rooms below, is forwarded to ROS with its level and node.
"""

import errno
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from minicpmo_ros.errors import Error

TELL_PERIOD_S = 10.0
PACKAGE = logging.getLogger('minicpmo_ros')
IN_A_ROW = 5
# Before each new start of a node by itself; the last one holds for all that follow.
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
QUIET_S = 300.0  # without a row, after which the waits begin anew
SHORTAGES = {
    errno.EMFILE: 'this process has no file descriptor left (ulimit -n, LimitNOFILE of a '
    'service). Raise that limit, or find what holds so many (ls -l /proc/PID/fd)',
    errno.ENFILE: 'the machine has no file descriptor left (sysctl fs.file-max). End what holds '
    'so many',
    errno.ENOSPC: 'the disk is full. Free some of it',
    errno.EFBIG: 'the file has reached the largest size that is allowed (ulimit -f)',
    errno.EDQUOT: 'the quota of this disk is used up. Free some of it',
    errno.ENOMEM: 'the machine has no memory left. End other programs, or lower n_ctx',
}
NO_THREAD = (
    'the system gives no further thread. Raise the limit of processes (ulimit -u, TasksMax of a '
    'service, pids.max of a container), or end what runs so many'
)
NO_MEMORY = SHORTAGES[errno.ENOMEM]


def name_of(call) -> str:
    """Return the name of a callable as in the source."""
    name = getattr(call, '__qualname__', '') or type(call).__name__
    return name.replace('.<locals>.<lambda>', '').replace('<lambda>', 'a call')


class Throttle:
    """Allows each key at most once in ten seconds."""

    def __init__(self):
        self._told = {}  # key: monotonic

    def allows(self, key) -> bool:
        """Return whether the key is allowed now; if so, remember the time."""
        now_s = time.monotonic()
        self._told = {known: s for known, s in self._told.items() if now_s - s < TELL_PERIOD_S}
        is_new = key not in self._told
        self._told.setdefault(key, now_s)
        return is_new


class RosHandler(logging.Handler):
    """Forwards log records to the logger of a node, each message at most once in ten seconds.

    A worker thread has the name of its node, and logs to it. Records of other threads go to the
    last node.
    """

    def __init__(self, nodes):
        super().__init__()
        self._loggers = {node.get_name(): node.get_logger() for node in nodes}
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        """Forward a record."""
        if not self._throttle.allows((record.name, record.msg)):
            return
        *_, last = self._loggers.values()
        logger, text = self._loggers.get(record.threadName, last), self.format(record)
        # One line each: rclpy allows only one level per line of code.
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        else:
            logger.info(text)


def shortage(error: BaseException) -> str:
    """Return what the machine lacks and what to do, if that caused the error; else ''."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return NO_THREAD
    if isinstance(error, OSError):
        return SHORTAGES.get(error.errno, '')
    return ''


def place_of(error: BaseException) -> str:
    """Return where an error was raised: module.py:line, function."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return 'an unknown place'
    return f'{Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name}'


class Faults:
    """The faults of one node; thread-safe. Errors caused by a shutdown do not count."""

    def __init__(self, node, on_row: Callable[[str], None] = lambda place: None):
        self._node, self._logger, self._on_row = node, node.get_logger(), on_row
        self._lock, self._rows = threading.Lock(), {}  # place: failures since its last success
        self._throttle = Throttle()
        self.count, self.newest = 0, ''

    @contextmanager
    def guard(self, place: str, starts_anew: bool = True):
        """Run a block; exceptions are logged and counted, not raised.

        starts_anew: whether a row of it calls `on_row`.
        """
        try:
            yield
        except Exception as error:
            self.tell(place, error, starts_anew)
        else:
            self._rows.pop(place, None)

    def guarded(self, place: str, call: Callable) -> Callable:
        """Return `call` as a callback that does not raise."""

        def run(*arguments):
            with self.guard(place):
                return call(*arguments)

        return run

    def tell(self, place: str, error: Exception, starts_anew: bool = True) -> None:
        """Log and count an error that a place has raised."""
        if not self._node.context.ok():
            return
        lack = shortage(error)
        reason = lack or (str(error) if isinstance(error, Error) else repr(error))
        with self._lock:
            self.count += 1
            self.newest = f'{place}: {reason} ({place_of(error)})'
            is_new = self._throttle.allows((place, place_of(error)))
            self._rows[place] = row = self._rows.get(place, 0) + (not lack)
        if is_new and (lack or isinstance(error, Error)):
            self._logger.error(f'{place}: {reason}. It goes on')
        elif is_new:
            trace = ''.join(traceback.format_exception(error))
            self._logger.error(f'{place} failed unexpectedly; the node goes on: {trace}')
        if starts_anew and not lack and row == IN_A_ROW:
            self._on_row(place)

    def reason(self, place: str, error: Exception) -> str:
        """Log and count an error that costs somebody a reply; return what to tell them instead."""
        self.tell(place, error, starts_anew=False)
        if isinstance(error, Error):
            return str(error)
        name = self._node.get_name()
        return f'Unforeseen, in {place} of {name}: {error!r}. The log of {name} says where.'

    def replying(self, place: str, callback: Callable, response_type) -> Callable:
        """Return the callback of a service as one that always replies.

        Whatever `callback(request, response)`, which may be a coroutine, raises becomes a response
        with `success` false and the reason.
        """
        why = 'reason' if hasattr(response_type, 'reason') else 'message'

        async def reply(request, response):
            try:
                replied = callback(request, response)
                return await replied if inspect.isawaitable(replied) else replied
            except Exception as error:
                return response_type(**{why: self.reason(place, error)})

        return reply

    def replying_to_goals(self, place: str, callback: Callable, result_type) -> Callable:
        """Return the coroutine of an action as one whose goals always end, aborted with a reason.

        `result_type` has `reason`.
        """

        async def reply(goal):
            try:
                return await callback(goal)
            except Exception as error:
                reason = self.reason(place, error)
                if goal.is_active:
                    goal.abort()
                return result_type(reason=reason)

        return reply

    def is_failing(self, place: str) -> bool:
        """Return whether a place has not succeeded since its row of failures."""
        return self._rows.get(place, 0) >= IN_A_ROW

    def forget(self) -> None:
        """Reset all rows."""
        self._rows.clear()

    def diagnose(self, report) -> None:
        """Report the count; warn while it grows."""
        report.count(
            'unforeseen errors', self.count, f'the newest: {self.newest}. The log says more'
        )


def faults_of(node) -> Faults:
    """Return the Faults of a node; create them if it has none yet."""
    if not hasattr(node, 'faults'):
        node.faults = Faults(node)
    return node.faults


class Waits:
    """Computes the wait before each automatic restart: longer if restarts follow each other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._in_turn = clock, 0
        self._newest_s = -QUIET_S
        self.count = 0

    def next_s(self) -> float:
        """Count a restart; return how long to wait before it, in seconds."""
        now_s = self._clock()
        if now_s - self._newest_s > QUIET_S:
            self._in_turn = 0
        wait_s = WAITS_S[min(self._in_turn, len(WAITS_S) - 1)]
        self._newest_s = now_s + wait_s
        self._in_turn += 1
        self.count += 1
        return wait_s
