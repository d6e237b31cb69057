# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Both ends of the service `look`: an image sharper than the live seconds have it, for a question.

vision_encoder offers it as `~/look`, llm calls it as `look`. The embedding is read on the fork of
the question that asked for it; the window and the stream of embeddings stay as they are.
"""

import time
from collections import deque
from dataclasses import replace
from functools import partial

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.config import LOOKS
from minicpmo_ros.errors import BusyError, EngineError, Error, InputError
from minicpmo_ros.live.question import Answer, Finish, Question
from minicpmo_ros.media.image.compressed import decode_as_needed
from minicpmo_ros.ros.framework.lifecycle import SERVICE_QOS
from minicpmo_ros.ros.messages import image_message, stamp_ns_of
from minicpmo_ros.srv import Look
from minicpmo_ros.units import NS

MOST_LOOKS = 16  # that wait for the encoder
LOOK_TIMEOUT_S = 10.0  # an image in nine tiles takes about so long on a small board
NO_LOOK = (
    'Nobody offers look: the vision_encoder is not there, or the name is not remapped to '
    'vision_encoder/look.'
)


class LookServer:
    """Takes the requests of `~/look` on the executor, and answers them in the worker by `work`."""

    def __init__(self, node):
        self._node, self._requests = node, deque()  # of (request, future)
        node.create_service(
            Look,
            '~/look',
            self._on_request,
            callback_group=ReentrantCallbackGroup(),
        )

    async def _on_request(self, request, response):
        node = self._node
        response.reason = self._why_not(request)
        if response.reason:
            return response
        future = Future(executor=node.executor)
        self._requests.append((request, future))
        node.worker.inbox.wake()
        return await future

    def _why_not(self, request) -> str:
        node = self._node
        if not node.is_ready() or node.state != 'active':
            return f'{node.get_name()} looks at nothing: it is {node.state}, or still loading.'
        if request.look not in LOOKS[1:]:
            return f'look is {request.look!r}; allowed are {" and ".join(LOOKS[1:])}.'
        if not node.get_parameter('vision.look_tiles').value:
            return (
                'vision.look_tiles of vision_encoder is 0: no memory is reserved for looking '
                'closer. Set it and configure the node again.'
            )
        if len(self._requests) >= MOST_LOOKS:
            return f'{len(self._requests)} questions wait for an image already. Ask again later.'
        return ''

    def close(self) -> None:
        """Refuse what waits: the node stops."""
        reason = f'{self._node.get_name()} was stopped.'
        while (waiting := self._next()) is not None:
            self._node.finish(waiting[1], Look.Response(reason=reason))

    def work(self, state) -> None:
        """Answer the requests that wait."""
        while (waiting := self._next()) is not None:
            request, future = waiting
            response = Look.Response(reason='The image could not be encoded; see the log.')
            try:
                response = self._look(state, request)
            except Error as error:
                response.reason = str(error)
            finally:
                self._node.finish(future, response)

    def _next(self):
        """Take the oldest (request, future) that waits; None: none does."""
        try:
            return self._requests.popleft()
        except IndexError:
            return None

    def _look(self, state, request) -> Look.Response:
        tiles, make_image = 1, None
        if request.look == 'tiles':
            tiles = self._node.get_parameter('vision.look_tiles').value
        if image := request.image.data:
            make_image = partial(decode_as_needed, image, request.image.format)
        seen = state.pipeline.look(tiles, make_image, stamp_ns_of(request.image))
        if seen.rows is None:
            return Look.Response(reason=seen.reason)
        return Look.Response(success=True, embedding=image_message(state.space, seen))


class Looker:
    """Asks questions; those that look closer once vision_encoder has encoded their image.

    For the executor's thread.
    """

    def __init__(self, node):
        self._node, self._waiting = node, set()
        self._client = node.create_client(
            Look, 'look', qos_profile=SERVICE_QOS, callback_group=ReentrantCallbackGroup()
        )

    def ask(self, question: Question, image: CompressedImage, on_delta, on_done):
        """Ask the engine, at once or with an image; return what has `cancel`."""
        if not image.data and question.look in ('', 'live'):
            return self._node.engine.ask(question, on_delta, on_done)
        looking = _Looking(self._node, question, bool(image.data), on_delta, on_done)
        if not self._client.service_is_ready():
            looking.take(Look.Response(reason=NO_LOOK))
            return looking
        self._waiting.add(looking)
        how = 'tiles' if question.look == 'tiles' else 'sharp'
        future = self._client.call_async(Look.Request(look=how, image=image))
        future.add_done_callback(lambda done: self._on_reply(looking, done.result()))
        return looking

    def check(self) -> None:
        """Go on without the images that do not come; called once a second."""
        for looking in list(self._waiting):
            if looking.is_overdue:
                late = f'vision_encoder did not encode the image within {LOOK_TIMEOUT_S:g} s.'
                self._on_reply(looking, Look.Response(reason=late))

    def cancel_all(self, why: Error | None = None) -> None:
        """Cancel the questions that wait for their image."""
        for looking in list(self._waiting):
            looking.cancel(why)
        self._waiting.clear()

    def _on_reply(self, looking, response) -> None:
        if looking in self._waiting:
            self._waiting.remove(looking)
            looking.take(response)


class _Looking:
    """A question that waits for its image, and then is asked; cancelled as a PendingQuestion."""

    def __init__(self, node, question: Question, is_sent: bool, on_delta, on_done):
        self._node, self._question, self._is_sent = node, question, is_sent
        self._on_delta, self._on_done = on_delta, on_done
        self._asked_s, self._facts = time.monotonic(), {}
        self._clock = node.get_clock()
        self._asked_at = self._clock.now()
        self._pending, self._is_over = None, False

    @property
    def is_overdue(self) -> bool:
        """Whether it has waited long enough for its image; simulated time may stand still."""
        spent_s = time.monotonic() - self._asked_s
        if self._is_over or spent_s >= self._question.timeout_s:
            return True
        if self._clock.ros_time_is_active:
            spent_s = min(spent_s, (self._clock.now() - self._asked_at).nanoseconds / NS)
        return spent_s >= LOOK_TIMEOUT_S

    def note_said(self, said: str | None) -> None:
        """Note what was said of the answer aloud, as PendingQuestion."""
        if self._pending is not None:
            self._pending.note_said(said)

    def cancel(self, why: Error | None = None) -> None:
        """Cancel it; does nothing if it is over."""
        if self._pending is not None:
            self._pending.cancel(why)
        else:
            self._end(Finish.CANCELLED, why)

    def take(self, response) -> None:
        """Ask with what was looked at, or without, and say so; an image that was sent must do."""
        if self._is_over:
            return
        try:
            self._take(response)
        except Error as error:
            self._end(Finish.ERROR, error)
        except Exception as error:
            reason = self._node.faults.reason('a question with an image', error)
            self._end(Finish.ERROR, EngineError(reason))

    def _take(self, response) -> None:
        question, note = self._question, ''
        try:
            image = self._node.take_look(response)
            self._facts = {
                'look_ms': 1e3 * (time.monotonic() - self._asked_s),
                'look_stamp_s': image.image_stamp_ns / NS,
            }
            question = replace(question, image=image)
        except InputError as error:
            if self._is_sent:
                raise InputError(f'The image was not read: {error}') from None
            note = f'The newest image was not looked at closer: {error}'
        if reason := self._node.why_not_asked():
            raise BusyError(reason)
        self._pending = self._node.engine.ask(
            question,
            self._on_delta,
            lambda answer: self._on_done(
                replace(answer, notes=(*filter(None, [note]), *answer.notes), **self._facts)
            ),
            self._asked_s,
        )

    def _end(self, finish: Finish, error: Error | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._on_done(Answer(self._question.text, '', finish, error, **self._facts))
