# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The newest seconds of a recorder, kept in memory; ~/save_bag writes them to a bag.

A bag is written in a thread of its own from the messages that are kept at that moment, and what
comes meanwhile is kept. What has become too old is given back when the bag is written; until then
memory can hold twice the bound.
"""

import math
import threading
from collections.abc import Callable
from pathlib import Path

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.recent import KeptMessage, RecentMessages, write_bag
from minicpmo_ros.ros.framework.clock import no_clock
from minicpmo_ros.ros.framework.faults import faults_of
from minicpmo_ros.ros.framework.lifecycle import SERVICE_QOS
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.srv import SaveBag
from minicpmo_ros.units import MIB, NS

BUSY = 'A bag is being written. Call again when that call has returned.'


class BagSaver:
    """The messages that `node` keeps. `definitions`: as a Recording takes them."""

    def __init__(self, node, keep_s: float, keep_mib: int, definitions: Callable[[], dict]):
        self._node, self._definitions = node, definitions
        self._keep_s, self._keep_mib = keep_s, keep_mib
        self._recent = RecentMessages(keep_s, keep_mib * MIB)
        self._thread = self._future = None  # of the bag that is being written
        self._problem = ''  # with it, once the thread has ended
        self._bell = node.create_guard_condition(self._end)
        replying = faults_of(node).replying('~/save_bag', self._on_save_bag, SaveBag.Response)
        node.create_service(
            SaveBag,
            '~/save_bag',
            replying,
            qos_profile=SERVICE_QOS,
            callback_group=ReentrantCallbackGroup(),
        )

    def take(self, message: KeptMessage) -> str:
        """Keep a message; return what was dropped because of it, a sentence, or ''."""
        return self._recent.add(message)

    def expire(self) -> None:
        """Drop what has become too old, also where nothing comes."""
        self._recent.expire(self._node.get_clock().now().nanoseconds)

    def close(self, timeout_s: float) -> None:
        """Wait for the bag that is being written."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    async def _on_save_bag(self, request, response):
        try:
            messages, begin_ns = self._wanted(request)
        except InputError as error:
            response.reason = str(error)
            return response
        thread = threading.Thread(
            target=self._write, args=(request.path, messages), name='save_bag', daemon=True
        )
        thread.start()
        self._thread, self._future = thread, Future(executor=self._node.executor)
        response.reason = await self._future
        if response.reason:
            self._node.get_logger().error(response.reason)
            return response
        response.success, response.messages = True, len(messages)
        response.begin, response.end = (to_time(messages[n].log_ns) for n in (0, -1))
        response.reason = self._lacking(messages, begin_ns)
        self._node.get_logger().info(f'{len(messages)} messages were written to {request.path}')
        return response

    def _wanted(self, request) -> tuple:
        """Return (the messages that are wanted, since when in ns); raises InputError."""
        if self._thread is not None:
            raise InputError(BUSY)
        if not Path(request.path).is_absolute():
            raise InputError(
                f"path is {request.path!r}; an absolute one on the node's machine is expected."
            )
        if not (math.isfinite(request.seconds) and request.seconds >= 0):
            raise InputError(
                f'seconds is {request.seconds}; a number from 0 (all that is kept) is expected.'
            )
        if not self._node.get_clock().now().nanoseconds:
            raise InputError(f'No bag is written: {no_clock(self._node)}.')
        self.expire()
        wanted_s = min(request.seconds or self._keep_s, self._keep_s)
        begin_ns = self._node.get_clock().now().nanoseconds - int(wanted_s * NS)
        messages = self._recent.since(begin_ns)
        if not messages:
            raise InputError(
                f'Nothing has come in the last {wanted_s:g} s: no bag is written. Check that '
                'camera and microphone publish.'
            )
        return messages, begin_ns

    def _lacking(self, messages: list, begin_ns: int) -> str:
        """Return what a bag lacks, a sentence, or ''."""
        span_s = (messages[-1].log_ns - messages[0].log_ns) / NS
        if self._recent.lacks(begin_ns):
            return (
                f'Only the newest {span_s:.1f} s were kept: older ones had no room in keep_mib '
                f'({self._keep_mib}). Raise it.'
            )
        if self._recent.began_anew(begin_ns):
            return (
                f'Only the newest {span_s:.1f} s were kept: before them simulated time went back, '
                'or the clock was set back.'
            )
        return ''

    def _write(self, path: str, messages: list) -> None:
        """Write a bag; runs in its thread."""
        try:
            write_bag(path, self._definitions(), messages)
        except InputError as error:
            self._problem = str(error)
        except Exception as error:
            self._problem = f'{path} could not be written, unforeseen: {error!r}'
        if self._node.context.ok():
            self._bell.trigger()

    def _end(self) -> None:
        """Let the call go on whose bag has been written; in the executor's thread."""
        future, self._future, self._thread = self._future, None, None
        problem, self._problem = self._problem, ''
        if future is not None:
            future.set_result(problem)
            self._node.executor.wake()
