# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The black box and saved sessions of node `llm`: ~/save, ~/load, and what ~/status says of them.

Files are written and read in the thread of a SessionKeeper; callbacks only wait for it.
"""

import time
from pathlib import Path

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future

from minicpmo_ros.config import MEMORY
from minicpmo_ros.errors import Error
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.sessions.keeper import OFF, SessionKeeper
from minicpmo_ros.srv import LoadSession, SaveSession

SESSION_PARAMETERS = (
    Parameter('memory.black_box_s', MEMORY.black_box_s,
              'So many seconds of what the window has read are kept in memory.black_box_path and '
              'read again after a crash or a restart; 0: none', 'seconds', 0, 3600),
    Parameter('memory.black_box_path', MEMORY.black_box_path,
              'File of the black box, for its owner alone'),
    Parameter('memory.black_box_max_age_s', MEMORY.black_box_max_age_s,
              'The black box is not read again if its newest second ended longer before the first '
              'live second, or was written longer ago', 'seconds', 0.0, 1e6),
)  # fmt: skip
ENDING_S = 2.0  # to write what waits


class SessionServer:
    """The sessions of one node, which has an `engine` and why_no_engine()."""

    def __init__(self, node):
        self._node, self._keeper = node, SessionKeeper('', 0, lambda: None)
        for kind, name, callback in (
            (SaveSession, '~/save', self._on_save),
            (LoadSession, '~/load', self._on_load),
        ):
            node.create_service(kind, name, callback, callback_group=ReentrantCallbackGroup())

    def set_up(self, options, checked) -> SessionKeeper | None:
        """Open the black box; return it for an engine, None where there is none.

        `checked`: Future of a ModelDirectory.
        """

        def model() -> tuple:
            found = checked.result()
            return found.space, found.width

        self.release()
        path, n_seconds = options.memory_black_box_path, options.memory_black_box_s
        self._keeper = SessionKeeper(path, n_seconds, model, self._on_problem, age_s(path))
        return self._keeper if n_seconds else None

    def release(self) -> None:
        """Write what waits and close the file."""
        if not self._keeper.close(ENDING_S):
            self._node.get_logger().warning(
                f'{self._keeper.path} is not closed yet; its disk is slow'
            )

    def told(self, status) -> str:
        """Return what ~/status says of what is restored, and of the black box."""
        return ' '.join(filter(None, (status.restoring, self._keeper.told, self._keeper.problem)))

    def diagnose(self, report) -> None:
        """Report what is wrong with the black box."""
        if self._keeper.problem:
            report.warn(f'black box: {self._keeper.problem}')

    async def forget(self, begin_s: float, end_s: float) -> tuple:
        """Remove seconds from the black box; return (how many, or None without one, reason)."""
        if not self._keeper.n_seconds:
            return None, ''
        return await self._wait(lambda done: self._keeper.forget(begin_s, end_s, done))

    async def _on_save(self, request, response):
        engine = self._node.engine
        if response_is_refused(request, response, engine is None and self._node.why_no_engine()):
            return response
        if not self._keeper.n_seconds:
            response.reason = OFF
            return response
        seconds = engine.status().seconds
        count, response.reason = await self._wait(
            lambda done: self._keeper.save(request.path, seconds, done)
        )
        if count is not None:
            response.success, response.units = True, count
            if count < len(seconds):
                response.reason = (
                    f'{len(seconds) - count} older seconds of the window are not in the black '
                    'box any more. Raise memory.black_box_s.'
                )
        return response

    async def _on_load(self, request, response):
        engine = self._node.engine
        if response_is_refused(request, response, engine is None and self._node.why_no_engine()):
            return response
        session, response.reason = await self._wait(
            lambda done: self._keeper.load(request.path, done)
        )
        if session is None:
            return response
        future = Future(executor=self._node.executor)
        try:
            engine.load_session(session, lambda *result: self._node.finish(future, result))
        except Error as error:
            session.close()
            response.reason = str(error)
            return response
        response.units, response.reason = await future
        response.success = response.units > 0
        told = f'~/load: {response.units} seconds of {request.path} are read. {response.reason}'
        self._node.get_logger().info(told.rstrip())
        return response

    async def _wait(self, begin) -> tuple:
        """Begin a piece of work of the keeper; return its (result, reason)."""
        future = Future(executor=self._node.executor)
        begin(lambda result, reason: self._node.finish(future, (result, reason)))
        return await future

    def _on_problem(self, problem: str) -> None:
        if problem:
            self._node.post(lambda: self._node.get_logger().warning(f'black box: {problem}'))


def age_s(path: str) -> float:
    """Return how long ago a file was written, in seconds; 0: there is none."""
    try:
        return max(0.0, time.time() - Path(path).expanduser().stat().st_mtime)
    except OSError:
        return 0.0


def response_is_refused(request, response, why: str | bool) -> bool:
    """Refuse a request for this reason, or for its path; return whether that was done."""
    if not why and not Path(request.path).is_absolute():
        why = f"path is {request.path!r}; an absolute one on the node's machine is expected."
    response.reason = why or ''
    return bool(why)
