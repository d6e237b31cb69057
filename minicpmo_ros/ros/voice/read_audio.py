# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Both ends of the service `read_audio`: the audio of the second that has not ended.

streaming_encoder offers it as `~/read_audio`, llm calls it as `read_audio`. A service and not a
topic: each question asks for its own stamp and gets one reply, in one process or in three.
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future

from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.ros.framework.lifecycle import SERVICE_QOS
from minicpmo_ros.ros.messages import put_rows, take_rows, time_ns, to_time
from minicpmo_ros.srv import ReadAudio
from minicpmo_ros.streams import Status
from minicpmo_ros.units import NS
from minicpmo_ros.voice.hearing import OpenSecond

LONGEST_S = 600.0  # that audio is waited for
MOST_REQUESTS = 64  # that wait for their audio
REPLY_S = 0.2  # before the caller gives up, it is told why
NO_SERVICE = (
    'Nobody offers read_audio: the streaming_encoder is not there, or the name is not remapped '
    'to streaming_encoder/read_audio.'
)


@dataclass(eq=False)
class _Request:
    until_ns: int
    due_s: float  # monotonic
    future: Future


class ReadAudioServer:
    """Takes requests on the executor and answers them in the worker, by `work`."""

    def __init__(self, node):
        self._node, self._requests = node, deque()
        node.create_service(
            ReadAudio,
            '~/read_audio',
            self._on_request,
            callback_group=ReentrantCallbackGroup(),
        )

    async def _on_request(self, request, response):
        node = self._node
        if not node.is_ready() or len(self._requests) >= MOST_REQUESTS:
            is_busy = f'{MOST_REQUESTS} requests wait for audio already'
            why = is_busy if node.is_ready() else f'it is {node.state}, or still loading'
            response.reason = f'{node.get_name()} reads no open second: {why}.'
            return response
        if not request.timeout_s <= LONGEST_S:  # one that never ends would keep its place
            response.reason = (
                f'timeout_s is {request.timeout_s:g}; a number up to {LONGEST_S:g} is expected.'
            )
            return response
        due_s = time.monotonic() + max(0.0, request.timeout_s)
        waiting = _Request(time_ns(request.until), due_s, Future(executor=node.executor))
        self._requests.append(waiting)
        node.worker.inbox.wake()
        return await waiting.future

    def close(self) -> None:
        """Refuse what waits: the node stops."""
        reason = f'{self._node.get_name()} was stopped.'
        with suppress(IndexError):  # the worker takes from it, too
            while True:
                future = self._requests.popleft().future
                self._node.finish(future, ReadAudio.Response(reason=reason))

    def work(self, state) -> None:
        """Answer the requests whose audio has come, or that have waited long enough."""
        for request in list(self._requests):
            is_due = time.monotonic() >= request.due_s
            try:
                response = self._reply(state, request.until_ns, is_due)
            except Exception as error:
                why = self._node.faults.reason('read_audio', error)
                response = ReadAudio.Response(reason=why)
            if response is not None:
                with suppress(ValueError):  # it was refused meanwhile
                    self._requests.remove(request)
                    self._node.finish(request.future, response)

    def _reply(self, state, until_ns: int, is_due: bool) -> ReadAudio.Response | None:
        """Return the reply; None: wait for more audio."""
        newest, open_end_ns = state.newest_published, state.pipeline.open_end_ns
        told_ns = (newest + 1) * NS if newest is not None else 0
        if until_ns and until_ns > told_ns:
            is_there = (open_end_ns or 0) >= until_ns and until_ns % NS  # a whole one is told soon
            if not is_there and not is_due:
                return None
            if not is_there:
                reached_s = max(told_ns, open_end_ns or 0) / NS
                return ReadAudio.Response(
                    reason=f'The microphone has reached {reached_s:.3f} s.'
                    if reached_s
                    else 'No audio has come.'
                )
        is_needed = not until_ns or until_ns > told_ns
        found = state.pipeline.peek(until_ns or None) if is_needed else None
        if found is None or (newest is not None and found[0].second <= newest):
            return self._response(state, told_ns // NS, told_ns, newest)
        second, end_ns = found
        if second.reason:
            return ReadAudio.Response(reason=second.reason)
        return self._response(state, second.second, end_ns, newest, second.rows)

    def _response(self, state, second, end_ns, newest, rows=None) -> ReadAudio.Response:
        status = Status.EMPTY if rows is None else Status.OK
        message = AudioEmbedding(model=state.space, second=second, status=int(status))
        message.header.stamp = to_time(second * NS)
        if rows is not None:
            put_rows(message, rows)
        previous = -1 if newest is None else newest
        return ReadAudio.Response(
            success=True, embedding=message, end=to_time(end_ns), previous=previous
        )


class ReadAudioClient:
    """Calls `read_audio`; for the executor's thread."""

    def __init__(self, node):
        self._node = node
        self._client = node.create_client(
            ReadAudio,
            'read_audio',
            qos_profile=SERVICE_QOS,
            callback_group=ReentrantCallbackGroup(),
        )

    def read(self, until_ns: int, timeout_s: float, space: str, width: int, done) -> None:
        """Call `done(OpenSecond)` once there is a reply; without a server at once."""
        if not self._client.service_is_ready():
            done(OpenSecond(reason=NO_SERVICE))
            return
        timeout_s = max(0.0, timeout_s - REPLY_S)
        request = ReadAudio.Request(until=to_time(until_ns), timeout_s=timeout_s)
        future = self._client.call_async(request)
        future.add_done_callback(lambda done_: done(open_second(done_.result(), space, width)))


def open_second(reply, space: str, width: int) -> OpenSecond:
    """Return an OpenSecond from a reply; what it has wrong becomes the reason."""
    if not reply.success:
        return OpenSecond(reason=reply.reason)
    try:
        rows = take_rows(reply.embedding, space, width)
    except InputError as error:
        return OpenSecond(reason=f'The open second was refused: {error}.')
    return OpenSecond(reply.embedding.second, time_ns(reply.end), rows, reply.previous)
