# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The two ways to ask, service and action, over one engine.

Both are coroutines: the executor goes on while an answer is made. A question that cannot be
taken is answered at once with `success` false and the reason.
"""

import itertools
import time

from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile
from rclpy.task import Future

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.errors import BusyError, Error
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.msg import Answer, AnswerDelta
from minicpmo_ros.nodes.messages import NS, to_time
from minicpmo_ros.srv import Ask

# At the default of 10, questions that come at the same moment vanish without an answer.
SERVICE_QOS = QoSProfile(depth=256)


class Asker:
    """Hands questions to the engine of a node, and what it says to all who listen.

    `node` has `engine` (or None), `retune`, `post`, `finish`, `answers` and `deltas` (publishers).
    """

    def __init__(self, node):
        self._node = node
        self._count = itertools.count()

    def ask(self, request, on_delta=None):
        """Queue a request (service or goal); give (asking, future of the Answer message).

        `on_delta(AnswerDelta)` runs on the executor's thread. Raises Error where the question is
        not taken.
        """
        node = self._node
        if node.engine is None:
            raise BusyError(node.why_no_engine())
        question = Question(
            request.question,
            tuple(request.choices),
            request.grammar,
            request.max_tokens,
            request.temperature,
            request.remember,
        )
        name = f'{node.get_name()}-{next(self._count)}'
        future = Future(executor=node.executor)
        teller = _Teller(node, name, on_delta)

        def done(answer) -> None:
            teller.tell('', last=True)
            message = self._message(name, answer)
            node.post(lambda: node.answers.publish(message))
            node.finish(future, (message, str(answer.error or '')))

        node.retune()
        return node.engine.ask(question, teller.tell, done), future

    def _message(self, name: str, answer) -> Answer:
        message = Answer(id=name, question=answer.question, text=answer.text)
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.finish = int(answer.finish)
        message.window_start = to_time(answer.window_start_s * NS)
        message.window_end = to_time(answer.window_end_s * NS)
        message.units, message.seconds = answer.units, list(answer.seconds)
        message.prompt_tokens, message.answer_tokens = answer.prompt_tokens, answer.answer_tokens
        message.first_token_ms = answer.first_token_ms
        message.tokens_per_second = answer.tokens_per_second
        return message


class _Teller:
    """Publishes the pieces of one answer; called in the engine's thread.

    A small model makes hundreds of tokens a second, and a reader's queue holds ten messages by
    default: pieces that follow within the interval go together.
    """

    INTERVAL_S = 0.02

    def __init__(self, node, name: str, on_delta):
        self._node, self._name, self._on_delta = node, name, on_delta
        self._held, self._count, self._told_s = '', 0, 0.0

    def tell(self, text: str, last: bool = False) -> None:
        self._held += text
        now_s = time.monotonic()
        if last or now_s - self._told_s >= self.INTERVAL_S:
            delta = AnswerDelta(id=self._name, index=self._count, text=self._held, last=last)
            self._held, self._count, self._told_s = '', self._count + 1, now_s
            self._node.post(lambda: self._publish(delta))

    def _publish(self, delta: AnswerDelta) -> None:
        self._node.deltas.publish(delta)
        if self._on_delta is not None:
            self._on_delta(delta)


class AskingService:
    """`~/ask` as a service."""

    def __init__(self, node, asker: Asker):
        self._asker = asker
        node.create_service(
            Ask,
            '~/ask',
            self._on_ask,
            qos_profile=SERVICE_QOS,
            callback_group=ReentrantCallbackGroup(),
        )

    async def _on_ask(self, request, response):
        try:
            _, future = self._asker.ask(request)
        except Error as error:
            response.reason = str(error)
            return response
        response.answer, response.reason = await future
        response.success = response.answer.finish in (Finish.STOP, Finish.LENGTH)
        if response.answer.finish == Finish.CANCELLED:
            response.reason = 'The node stopped before the answer was finished.'
        return response


class AskingAction:
    """`~/ask` as an action; the words are its feedback."""

    def __init__(self, node, asker: Asker):
        self._asker = asker
        self._askings = {}  # goal id: asking
        self._server = ActionServer(
            node,
            AskAction,
            '~/ask',
            self._on_goal,
            cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
            goal_service_qos_profile=SERVICE_QOS,
            result_service_qos_profile=SERVICE_QOS,
            cancel_service_qos_profile=SERVICE_QOS,
            feedback_pub_qos_profile=SERVICE_QOS,
        )

    def destroy(self) -> None:
        """Withdraw the action from the graph."""
        self._server.destroy()

    def _on_cancel(self, goal) -> CancelResponse:
        asking = self._askings.get(bytes(goal.goal_id.uuid))
        if asking is not None:
            asking.cancel()
        return CancelResponse.ACCEPT

    async def _on_goal(self, goal):
        result = AskAction.Result()
        key = bytes(goal.goal_id.uuid)

        def on_delta(delta) -> None:
            if goal.is_active:
                goal.publish_feedback(AskAction.Feedback(delta=delta))

        try:
            asking, future = self._asker.ask(goal.request, on_delta)
        except Error as error:
            result.reason = str(error)
            goal.abort()
            return result
        self._askings[key] = asking
        if goal.is_cancel_requested:
            asking.cancel()
        try:
            result.answer, result.reason = await future
        finally:
            del self._askings[key]
        self._end(goal, result)
        return result

    def _end(self, goal, result) -> None:
        """Set the one terminal state."""
        finish = result.answer.finish
        result.success = finish in (Finish.STOP, Finish.LENGTH)
        if result.success:
            goal.succeed()
        elif finish == Finish.CANCELLED and goal.is_cancel_requested:
            result.reason = 'Cancelled by the asker.'
            goal.canceled()
        else:
            result.reason = result.reason or 'The node stopped before the answer was finished.'
            goal.abort()
