# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Service and action `~/ask`: two interfaces to one engine.

Both are coroutines: the executor keeps running while an answer is generated. A question that is
not accepted is answered at once with `success` false and the reason.
"""

import itertools
import math
import time

from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile
from rclpy.task import Future

from minicpmo_ros.action import Ask as ActionType
from minicpmo_ros.config import LOOKS, NOTES_READ
from minicpmo_ros.errors import BusyError, CancelledError, Error, InputError
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.msg import Answer, AnswerDelta, SpeakerState
from minicpmo_ros.ros.framework.lifecycle import ACTION_OPTIONS
from minicpmo_ros.ros.messages import seconds_to_time, time_ns
from minicpmo_ros.ros.notes import to_message
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.srv import Ask

EVENT_QOS = QoSProfile(depth=1024)  # a request is up to four events
MOST_SPOKEN = 8
MOST_EVENTS = 1024  # that wait for their match
STOPPED = 'The node stopped before the answer was finished.'


class QuestionRouter:
    """Submits questions to the engine of a node and publishes its answers.

    `node` has `engine` (or None), `why_not_asked`, `retune`, `post`, `finish`, `tell_answer`,
    `notes`, `faults` and the publisher `deltas`.
    """

    def __init__(self, node):
        self._node = node
        self._count = itertools.count()
        self._spoken = {}  # {Answer.id: asking}, of the newest answers that are remembered
        node.create_subscription(SpeakerState, 'speaker/state', self._on_state, STATE_QOS)

    def ask(self, request, on_delta=None):
        """Queue a request (service or goal); return (asking, future of the Answer message).

        `on_delta(AnswerDelta)` runs on the executor's thread. Raises Error if the question is
        not accepted.
        """
        node = self._node
        if reason := node.why_not_asked():
            raise BusyError(reason)
        number = next(self._count)
        name = f'{node.get_name()}-{number}'
        future = Future(executor=node.executor)
        tell = None if request.aside else node.deltas.publish
        batcher = DeltaBatcher(node, name, [each for each in (tell, on_delta) if each])

        def done(answer) -> None:
            with node.faults.guard('the end of an answer', starts_anew=False):
                batcher.add('', last=True)
            message = self._message(name, answer)
            node.post(lambda: node.tell_answer(message, request))
            node.finish(future, message)

        node.retune()
        question = self._question(request, number)
        asking = node.looker.ask(question, request.image, batcher.add, done)
        node.notes.let_person_ask()
        if question.remember:
            self._spoken[name] = asking
            while len(self._spoken) > MOST_SPOKEN:
                del self._spoken[next(iter(self._spoken))]
        return asking, future

    def _on_state(self, state) -> None:
        """Note what the robot has said of an answer aloud, once it is silent."""
        asking = self._spoken.get(state.id)
        if asking is not None:
            asking.note_said(None if state.speaking else state.spoken)

    def _question(self, request, number: int) -> Question:
        """Return the Question of a request; if no seed is set, its number is the seed.

        Fields of one name in message and Question are copied; 0 is the node's own.
        """
        parameters = self._node.table.values()
        given = {name: getattr(request, name) for name in request.get_fields_and_field_types()}
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f'{name} is {value}; it must be a number.')
        if given['timeout_s'] < 0:
            raise InputError(
                f'timeout_s is {given["timeout_s"]:g}; it must be 0 (no limit) or a number of '
                'seconds.'
            )
        if given['memory'] not in ('', *NOTES_READ):
            raise InputError(
                f'memory is {given["memory"]!r}; allowed are {", ".join(NOTES_READ)}.'
            )
        if given['look'] not in ('', *LOOKS):
            raise InputError(f'look is {given["look"]!r}; allowed are {", ".join(LOOKS)}.')
        temperature = given['temperature']
        given |= {
            'choices': tuple(given['choices']),
            'temperature': max(0.0, temperature) if temperature else parameters.temperature,
            'seed': given['seed'] or parameters.seed or number + 1,
            'timeout_s': given['timeout_s'] if given['timeout_s'] > 0 else math.inf,
            'heard_until': time_ns(given['heard_until']),
            'memory': given['memory'] or 'auto',
            'image': None,  # until it is encoded
        }
        return Question(given.pop('question'), **given)

    def _message(self, name: str, answer) -> Answer:
        """Return an Answer as a message; one that cannot be told becomes an error, and is told."""
        try:
            return self._told(name, answer)
        except Exception as error:
            reason = self._node.faults.reason('telling an answer', error)
            return Answer(id=name, finish=int(Finish.ERROR), reason=reason)

    def _told(self, name: str, answer) -> Answer:
        """Return an Answer as a message.

        Fields of one name are copied; a time in seconds is a field without its `_s`.
        """
        message = Answer(id=name, finish=int(answer.finish), live_ms=1e3 * answer.live_s)
        message.recalled = [to_message(note) for note in answer.recalled]
        message.header.stamp = self._node.get_clock().now().to_msg()
        for field, kind in message.get_fields_and_field_types().items():
            if kind == 'builtin_interfaces/Time':
                setattr(message, field, seconds_to_time(getattr(answer, f'{field}_s')))
            elif kind == 'sequence<builtin_interfaces/Time>':
                ends_s = getattr(answer, f'{field}_s')
                setattr(message, field, [seconds_to_time(end_s) for end_s in ends_s])
            elif field not in ('header', 'id', 'finish', 'live_ms', 'recalled'):
                setattr(message, field, getattr(answer, field))
        return message


class DeltaBatcher:
    """Tells the text of one answer in batches; called in the engine's thread.

    `listeners`: each gets the AnswerDeltas, on the executor's thread.

    A small model generates hundreds of tokens a second, but a subscriber's queue holds ten
    messages by default: tokens within INTERVAL_S are published together.
    """

    INTERVAL_S = 0.02

    def __init__(self, node, name: str, listeners: list):
        self._node, self._name, self._listeners = node, name, listeners
        self._text, self._count, self._published_s = '', 0, 0.0

    def add(self, text: str, last: bool = False) -> None:
        """Add text; publish the batch if its interval is over, or it is the last."""
        self._text += text
        now_s = time.monotonic()
        if last or now_s - self._published_s >= self.INTERVAL_S:
            delta = AnswerDelta(id=self._name, index=self._count, text=self._text, last=last)
            self._text, self._count, self._published_s = '', self._count + 1, now_s
            self._node.post(lambda: self._publish(delta))

    def _publish(self, delta: AnswerDelta) -> None:
        for tell in self._listeners:
            tell(delta)


class AskService:
    """`~/ask` as a service."""

    def __init__(self, node, router: QuestionRouter):
        self._router = router
        self._open = set()  # askings
        service = node.create_service(
            Ask,
            '~/ask',
            self._on_ask,
            callback_group=ReentrantCallbackGroup(),
        )
        self._watch = _ClientWatch(node, '~/ask', service, getattr(Ask, 'Event', None))

    async def _on_ask(self, request, response):
        try:
            asking, future = self._router.ask(request)
        except Error as error:
            self._watch.expect(request, None)
            response.reason = str(error)
            return response
        self._watch.expect(request, asking)
        self._open.add(asking)
        try:
            response.answer = await future
        finally:
            self._open.discard(asking)
        response.success = response.answer.finish in (Finish.STOP, Finish.LENGTH)
        response.reason = response.answer.reason
        if response.answer.finish == Finish.CANCELLED:
            response.reason = response.reason or STOPPED
        return response

    def cancel_abandoned(self) -> None:
        """Cancel the questions whose clients have all left; called once a second."""
        self._watch.check(self._open)


class AskAction:
    """`~/ask` as an action; the text so far is its feedback."""

    def __init__(self, node, router: QuestionRouter):
        self._router = router
        self._askings = {}  # goal id: asking
        self._server = ActionServer(
            node,
            ActionType,
            '~/ask',
            node.faults.replying_to_goals('action ~/ask', self._on_goal, ActionType.Result),
            cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
            **ACTION_OPTIONS,
        )
        self._watch = _ClientWatch(
            node,
            '~/ask/_action/send_goal',
            self._server,
            getattr(ActionType.Impl.SendGoalService, 'Event', None),
            lambda request: bytes(request.goal_id.uuid),
        )

    def destroy(self) -> None:
        """Withdraw the action from the graph."""
        self._server.destroy()

    def cancel_abandoned(self) -> None:
        """Cancel the goals whose clients have all left; called once a second."""
        self._watch.check(self._askings.values())

    def _on_cancel(self, goal) -> CancelResponse:
        asking = self._askings.get(bytes(goal.goal_id.uuid))
        if asking is not None:
            asking.cancel()
        return CancelResponse.ACCEPT

    async def _on_goal(self, goal):
        result = ActionType.Result()
        key = bytes(goal.goal_id.uuid)

        def on_delta(delta) -> None:
            if goal.is_active:
                goal.publish_feedback(ActionType.Feedback(delta=delta))

        try:
            asking, future = self._router.ask(goal.request, on_delta)
        except Error as error:
            self._watch.expect(key, None)
            result.reason = str(error)
            goal.abort()
            return result
        self._watch.expect(key, asking)
        self._askings[key] = asking
        if goal.is_cancel_requested:
            asking.cancel()
        try:
            result.answer = await future
        finally:
            del self._askings[key]
        self._set_terminal_state(goal, result)
        return result

    def _set_terminal_state(self, goal, result) -> None:
        """Set the terminal state of a goal from its result."""
        finish = result.answer.finish
        result.success = finish in (Finish.STOP, Finish.LENGTH)
        result.reason = result.answer.reason
        if result.success:
            goal.succeed()
        elif finish == Finish.CANCELLED and goal.is_cancel_requested:
            result.reason = 'Cancelled by the client.'
            goal.canceled()
        else:
            result.reason = result.reason or STOPPED
            goal.abort()


class _ClientWatch:
    """Detects that the client of a question has left, so that nobody waits for its reply.

    A client whose process ends leaves the graph at once, a killed one when its lease is over (20 s
    with Fast DDS). The events of a service (introspection; not in Humble) tell the client of each
    request; they are matched by `key_of(request)`, the oldest first. Without them, questions are
    abandoned if no client is left at all, which Humble's rclpy cannot count; there, timeout_s ends
    such questions. Discovery takes time, so several checks in a row must find no client.
    """

    CHECKS = 3

    def __init__(self, node, service: str, server, event_type, key_of=lambda request: request):
        self._node, self._name, self._key_of = node, node.resolve_service_name(service), key_of
        self._count, self._empty_checks = getattr(node, 'count_clients', None), 0
        self._expected, self._events = [], []  # [(key, asking or None)], [(key, client)]
        self._clients, self._missing = {}, {}  # {asking: client}, {asking: checks}
        self._tells_clients = event_type is not None and hasattr(server, 'configure_introspection')
        if self._tells_clients:
            from rclpy.service_introspection import ServiceIntrospectionState

            server.configure_introspection(
                node.get_clock(), EVENT_QOS, ServiceIntrospectionState.CONTENTS
            )
            node.create_subscription(
                event_type, f'{service}/_service_event', self._on_event, EVENT_QOS
            )

    def expect(self, key, asking) -> None:
        """Take a request in the order of arrival; asking None: it was refused."""
        if self._tells_clients:
            self._expected.append((key, asking))

    def check(self, askings) -> None:
        """Cancel the questions whose clients have left; called once a second."""
        self._match()
        self._clients = {asking: self._clients.get(asking) for asking in askings}
        if not self._clients:
            self._missing.clear()
            return
        there = self._clients_there()
        is_empty = self._count is not None and not self._count(self._name)
        self._missing = {
            asking: self._missing.get(asking, 0) + 1
            for asking, client in self._clients.items()
            if is_empty or (client is not None and client not in there)
        }
        for asking, checks in self._missing.items():
            if checks >= self.CHECKS:
                asking.cancel(CancelledError('No client is left to receive the answer.'))

    def _on_event(self, event) -> None:
        client = bytes(event.info.client_gid)
        if event.info.event_type == event.info.REQUEST_RECEIVED and event.request:
            # A middleware may name clients otherwise than its graph: such a name says nothing.
            is_known = client in self._clients_there()
            self._events.append((self._key_of(event.request[0]), client if is_known else None))

    def _match(self) -> None:
        """Note the clients of the requests that were taken."""
        unmatched = []
        for key, client in self._events:
            for i, (expected, asking) in enumerate(self._expected):
                if expected == key:
                    self._clients[asking] = client
                    del self._expected[i]
                    break
            else:
                unmatched.append((key, client))  # a goal is begun after its request was taken
        self._events = unmatched[-MOST_EVENTS:]
        del self._expected[:-MOST_EVENTS]

    def _clients_there(self) -> set:
        """Return the identities of all clients in the graph: those of their endpoints."""
        node, name = self._node, self._name
        ends = node.get_subscriptions_info_by_topic(f'rr{name}Reply', no_mangle=True)
        ends += node.get_publishers_info_by_topic(f'rq{name}Request', no_mangle=True)
        return {bytes(end.endpoint_gid)[:16] for end in ends}
