# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Asking the llm node from anybody's node or script; `minicpmo_ros.client` is its public name.

Everything goes by the action: it brings the words as they come, and a question nobody waits for
any more can be cancelled. Only the thread that spins the node touches ROS: calls from other
threads are posted to it.
"""

import sys
import threading
import time
from collections import deque

import rclpy
from rclpy.action import ActionClient
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import (
    ExternalShutdownException,
    MultiThreadedExecutor,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.qos import QoSProfile

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.client.answer_types import read_as, schema_of
from minicpmo_ros.client.calls import Readiness, Stream, make_goal
from minicpmo_ros.documents import told
from minicpmo_ros.errors import AskError, InputError, LateError, sentence
from minicpmo_ros.msg import Answer, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED

# At the default of 10, results that come at the same moment vanish.
DEEP = QoSProfile(depth=256)
CHECK_PERIOD_S = 0.1
SILENT_TICKS = 100  # the llm node publishes its status once a second
GRACE_S = 2.0  # for the executor to tell of a timeout, before the waiting thread does
SPIN_S = 0.05


class Client:
    """Asks the llm node called `name` (relative to the namespace of `node`, or absolute).

    Who spins `node` does not matter: its executor in another thread, or nobody, then the client
    does while it waits. Inside a callback of a single-threaded executor nothing can be waited for:
    there, `await` what the methods ending in _async give. One client serves any number of threads
    and questions. Whatever goes wrong is an Error that says what and what to do: InputError for a
    wrong argument; BusyError where no node is there or it has failed; AskError for a
    question that was refused or not answered; CancelledError; LateError after `timeout_s`. A wait
    that rclpy.shutdown() ends raises rclpy's ExternalShutdownException.
    """

    def __init__(self, node, name: str = 'llm'):
        self.name = _resolved(node, name)
        self.status: Status | None = None  # the newest; None: nothing was heard yet
        self._node, self._group = node, MutuallyExclusiveCallbackGroup()
        self._open = []  # what is looked at, until it is over
        self._posted, self._ticks_without_status = deque(), 0
        self._news, self._spinning = threading.Condition(), threading.Lock()
        self._own_executor = None
        self.is_closed = False
        self._met = set()  # publishers of a status
        self.action = ActionClient(
            node, AskAction, f'{name}/ask', callback_group=self._group,
            goal_service_qos_profile=DEEP, result_service_qos_profile=DEEP,
            cancel_service_qos_profile=DEEP, feedback_sub_qos_profile=DEEP,
        )  # fmt: skip
        self._topic = node.resolve_topic_name(f'{name}/status')
        self._statuses = node.create_subscription(
            Status, f'{name}/status', self._on_status, LATCHED, callback_group=self._group
        )
        self._bell = node.create_guard_condition(self._run_posted, callback_group=self._group)
        # Steady: simulated time may stand still.
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(CHECK_PERIOD_S, self._tick, self._group, self._clock)
        self._timer.cancel()

    # Asking.
    def ask(self, question: str, *, timeout_s: float | None = 60.0, **options) -> Answer:
        """Ask, wait, and return the Answer message: its text, and the seconds it is based on.

        The options are the fields of action/Ask.action, such as `choices`, `grammar`,
        `json_schema`, `max_tokens`, `temperature`, `seed` and `remember`; docs/clients.md explains
        them. What is left out or None is the node's own; a temperature of 0 is greedy. The
        answer's `stale` and `reason` say whether a sense is missing or old. `timeout_s` counts
        from now to the end of the answer, None is for ever; then the question is cancelled.
        """
        return self.stream(question, timeout_s=timeout_s, **options).result()

    def ask_as(self, kind, question: str, *, timeout_s: float | None = 60.0, **options):
        """Ask as `ask` does and return the answer as an object of a type.

        `kind` is a dataclass, a pydantic model, or a JSON schema as a dict (then the object is
        what `json.loads` gives). Raises AskError if the answer was cut before it was whole.
        """
        options['json_schema'] = schema_of(kind)
        return read_as(kind, self.ask(question, timeout_s=timeout_s, **options).text)

    def ask_async(self, question: str, *, timeout_s: float | None = 60.0, **options):
        """Ask as `ask` does and return at once an rclpy Future of the Answer, to be awaited.

        Cancelling the future cancels the question.
        """
        return self.stream(question, timeout_s=timeout_s, **options).future

    def stream(
        self, question: str, on_text=None, *, timeout_s: float | None = 60.0, **options
    ) -> Stream:
        """Ask as `ask` does and return at once a Stream, to be iterated for pieces of text.

        `on_text(piece)`, where given, is called on the thread that spins the node.
        """
        return self._begin(Stream(self, make_goal(question, **options), on_text, timeout_s))

    def cancel(self) -> None:
        """Cancel all questions of this client that are not answered yet."""
        for asked in list(self._open):
            if isinstance(asked, Stream):
                asked.cancel()

    # Waiting.
    @property
    def is_ready(self) -> bool:
        """Whether the node has said that it answers questions, and can be asked."""
        return self.status is not None and self.status.state == Status.READY and self.has_server

    def wait_until_ready(self, timeout_s: float | None = 120.0) -> Status:
        """Wait until the model is loaded and can be asked; BusyError if it failed to load."""
        ready = self._begin(Readiness(self, timeout_s))
        try:
            self.spin_until(lambda: ready.is_over, ready.timeout_s)
        finally:
            ready.leave()
        return ready.future.result()

    def ready_async(self, timeout_s: float | None = 120.0):
        """Return at once an rclpy Future of what `wait_until_ready` returns."""
        return self._begin(Readiness(self, timeout_s)).future

    def wait_until(self, condition, timeout_s: float, what: str) -> None:
        """Let callbacks run until `condition()`; LateError says that `what` took too long."""

        def why() -> str:
            return f'{what} took longer than {timeout_s:g} s. {self.describe()}'

        self._until(condition, timeout_s, why)

    def destroy(self) -> None:
        """End what is open and take the client out of the graph; before its node is destroyed.

        A second call does nothing.
        """
        if self.is_closed:
            return
        self.is_closed = True
        for awaited in list(self._open):
            awaited.end(error=AskError('The client was destroyed before there was an answer.'))
            awaited.future.exception()  # or rclpy prints that nobody has asked for it
        self._node.destroy_timer(self._timer)
        self._node.destroy_guard_condition(self._bell)
        self._node.destroy_subscription(self._statuses)
        self.action.destroy()
        if self._own_executor is not None:
            self._own_executor.shutdown(timeout_sec=0)

    def describe(self) -> str:
        """Return what is known of the llm node."""
        if not self.publishers() and not self.has_server:
            return (
                f'There is no {self.name}. Is the node running, in this namespace and with the '
                'same ROS_DOMAIN_ID?'
            )
        status = self.status
        if status is None or self.is_silent:
            return f'{self.name} is there and says nothing; its log tells more.'
        if status.state == Status.FAILED:
            return f'{self.name} has failed: {sentence(status.reason)} {status.remedy}'.rstrip()
        if status.state == Status.LOADING:
            return f'{self.name} is loading its model, {status.progress:.0%} is done.'
        if status.state == Status.UNLOADED:
            return f'{self.name} has no model loaded. Configure the node first.'
        answering = ', answering' if status.answering else ''
        return f'{self.name} is ready{answering}, {status.waiting} questions are waiting.'

    # For Stream and Readiness.
    @property
    def has_server(self) -> bool:
        """Whether questions can be sent."""
        return not self.is_closed and self.action.server_is_ready()

    @property
    def is_known(self) -> bool:
        """Whether who answers has found this client: until then its replies would be lost.

        Ends are found in the order in which they were made. That of the status is the last: once
        the status has come, those of the replies are known. Where none is published, True.
        """
        return self.publishers() <= self._met

    @property
    def is_silent(self) -> bool:
        """Whether the status that comes every second is long overdue."""
        return self._ticks_without_status > SILENT_TICKS

    @property
    def spins_itself(self) -> bool:
        """Whether nobody else spins the node."""
        executor = self._node.executor
        return executor is None or self._node not in executor.get_nodes()

    def publishers(self) -> set:
        """Return who publishes the status: another process is another one."""
        if self.is_closed:
            return set()
        infos = self._node.get_publishers_info_by_topic(self._topic)
        return {bytes(info.endpoint_gid) for info in infos}

    def post(self, call) -> None:
        """Run `call` on the thread that spins the node; from any thread."""
        self._posted.append(call)
        if not self.is_closed:
            self._bell.trigger()

    def forget(self, awaited) -> None:
        """Look no more at what is over, and wake those who wait for it."""
        if awaited in self._open:
            self._open.remove(awaited)
        self.notify()
        executor = self._node.executor
        if executor is not None:
            executor.wake()  # an idle executor would not see that a coroutine can go on

    def notify(self) -> None:
        """Wake the threads that wait for news."""
        with self._news:
            self._news.notify_all()

    def spin_until(self, condition, timeout_s: float) -> None:
        """Let callbacks run until `condition()`, which they are to bring about in time."""

        def why() -> str:
            return (
                f'Nothing was heard within {timeout_s:g} s: the executor of '
                f'{self._node.get_name()} does not spin, or a callback holds it up.'
            )

        self._until(condition, timeout_s + GRACE_S, why)

    def _until(self, condition, timeout_s: float, why) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s:
                raise LateError(why())
            self._go_on(condition)

    def _go_on(self, condition) -> None:
        """Let callbacks run for a moment: spin, or wait for the one who does."""
        if not self._node.context.ok():
            raise ExternalShutdownException
        if self.spins_itself and self._spinning.acquire(blocking=False):
            try:
                if self._own_executor is None:
                    self._own_executor = SingleThreadedExecutor(context=self._node.context)
                rclpy.spin_once(self._node, executor=self._own_executor, timeout_sec=SPIN_S)
            except Exception:
                if self._node.context.ok():
                    raise
                raise ExternalShutdownException from None  # rclpy tells it in several ways
            finally:
                self._spinning.release()
        elif is_in_callback() and not isinstance(self._node.executor, MultiThreadedExecutor):
            raise AskError(
                'Waiting inside a callback would wait for ever: it is this executor that brings '
                'the answer. Use `await client.ask_async(...)` in an `async def` callback, or '
                'another thread.'
            )
        else:
            with self._news:
                self._news.wait_for(condition, SPIN_S)

    def _begin(self, awaited):
        if self.is_closed:
            raise AskError('The client was destroyed.')
        self._open.append(awaited)  # before who spins looks: where nothing is open, it stops to
        try:
            self.post(self._look_often)
        except Exception as error:  # of rclpy, whose node or context is gone
            self._open.remove(awaited)
            if not self._node.context.ok():
                raise ExternalShutdownException from None
            raise AskError(f'The node of this client was destroyed ({error}).') from None
        return awaited

    # Callbacks.
    def _look_often(self) -> None:
        self._ticks_without_status = 0  # none were counted while nothing was open
        self._timer.reset()
        self._look()

    def _tick(self) -> None:
        # Ticks, not time: an executor that was held up has heard nothing meanwhile.
        self._ticks_without_status += 1
        self._look()

    def _look(self) -> None:
        for awaited in list(self._open):
            if awaited.is_over:  # cancelled as a future is
                self.forget(awaited)
            else:
                awaited.look()
        if not self._open:
            self._timer.cancel()

    def _on_status(self, message: Status) -> None:
        self.status, self._ticks_without_status = message, 0
        self._met = self.publishers()
        self._look()
        self.notify()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()


def _resolved(node, name: str) -> str:
    """Return the full name of a node; raise InputError for one that no node can have."""
    if not isinstance(node, Node):
        raise InputError(f'node is {told(node)}; it takes a node of rclpy.')
    try:
        return node.resolve_topic_name(name)
    except Exception as error:  # of rclpy, of several types
        raise InputError(
            f'name is {told(name)}; it takes the name of a node, such as llm or /robot2/llm '
            f'({" ".join(str(error).split())[:200]}).'
        ) from None


def is_in_callback() -> bool:
    """Return whether this thread is inside an executor's callback."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get('__name__') in ('rclpy.executors', 'rclpy.task'):
            return True
        frame = frame.f_back
    return False
