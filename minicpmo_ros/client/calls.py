# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a Client waits for: the answer to one question, or a node that is ready.

Both are looked at several times a second, and when news come, on the thread that spins the
client's node; all but what is said to be for any thread is for that thread.
"""

import json
import math
import time
from collections import deque
from contextlib import contextmanager, suppress
from numbers import Integral, Real

import numpy as np
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.documents import is_utf8, told
from minicpmo_ros.errors import AskError, BusyError, CancelledError, Error, InputError, LateError
from minicpmo_ros.live.question import check_form
from minicpmo_ros.msg import Answer, Status

FIND_TIMEOUT_S = 10.0  # discovery takes up to a few seconds where the network is busy
MEET_TIMEOUT_S = 3.0  # for whom is found to find this client, too
LOST_TICKS = 20  # without a sign of life of who took the question
CANCEL_TIMEOUT_S = 5.0
GREEDY = -1.0
# This much later than here the node itself gives up: who asked may be gone by then.
NODE_LATER_S = 2.0


def make_goal(question: str, **options) -> AskAction.Goal:
    """Return a question as a message; raise InputError with what is wrong in it.

    The options are the other fields of the message; what is left out is the node's own, and so is
    a number that is None.
    """
    types = AskAction.Goal.get_fields_and_field_types()
    fields = {'question': question}
    for name, value in options.items():
        if name not in types or name == 'timeout_s':
            known = ', '.join(name for name in types if name != 'question')
            raise InputError(f'{name} is no option of a question. There are {known}.')
        if value is not None or types[name] not in NUMBERS:
            fields[name] = value
    for name, read in READERS.items():
        if name in fields:
            fields[name] = read(fields[name])
    for name, value in fields.items():
        is_right, wanted, make = SENDABLE[types[name]]
        if not is_right(value):
            raise InputError(f'{name} is {told(value)}; it takes {wanted}.')
        # Exactly the type of the field: of another one, the message ends the process.
        fields[name] = make(value)
    check_form(*(fields.get(name) for name in ('choices', 'grammar', 'json_schema')))
    if fields.get('temperature') == 0:  # in the message 0 is the node's own
        fields['temperature'] = GREEDY
    return AskAction.Goal(**fields)


def seconds_of(timeout_s) -> float:
    """Return a time to wait, inf for None and what is beyond a life; raise InputError for none."""
    if timeout_s is None:
        return math.inf
    if not isinstance(timeout_s, Real) or not timeout_s >= 0:
        raise InputError(
            f'timeout_s is {told(timeout_s)}; it takes a number of seconds from 0, None for ever.'
        )
    return float(timeout_s) if timeout_s < FOR_EVER_S else math.inf


def is_text(value) -> bool:
    """Return whether it is a text that a message can hold: it would end at a NUL."""
    return is_utf8(value) and '\0' not in value


def is_texts(value) -> bool:
    """Return whether it is a list of texts that are not empty."""
    return isinstance(value, (list, tuple)) and all(is_text(v) and v for v in value)


def is_count(value) -> bool:
    """Return whether a message can hold it as uint32."""
    return isinstance(value, Integral) and 0 <= value < 2**32


def is_number(value) -> bool:
    """Return whether a message can hold it as float32, finite."""
    return isinstance(value, Real) and abs(value) <= LARGEST


def is_truth(value) -> bool:
    """Return whether it is true or false, also as NumPy or C have it."""
    return isinstance(value, (Integral, np.bool_)) and value in (0, 1)


def _read_image(value):
    """Return encoded bytes of any kind, also those of cv2.imencode, as a message."""
    is_encoded = isinstance(value, (bytes, bytearray, memoryview)) or (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size == len(value)
    )
    return CompressedImage(data=bytes(value)) if is_encoded and len(value) else value


def _read_schema(value):
    """Return a schema as its text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InputError(f'json_schema is {told(value)}; it takes a dict or a text.')
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f'json_schema cannot be written as JSON: {error}.') from None


LARGEST = float(np.finfo(np.float32).max)
FOR_EVER_S = 1e9
READERS = {'image': _read_image, 'json_schema': _read_schema}
TIME, IMAGE = 'builtin_interfaces/Time', 'sensor_msgs/CompressedImage'
NUMBERS = ('uint32', 'float', TIME, IMAGE)
# By type of a field of the message: which values can be sent, how that is said, and the value of
# the field.
SENDABLE = {
    'string': (is_text, 'a text without NUL characters', str),
    'sequence<string>': (is_texts, 'a list of texts, none empty, without NUL characters', list),
    'uint32': (is_count, "a whole number from 0 to 2**32 - 1, None for the node's own", int),
    'float': (is_number, "a number, None for the node's own", float),
    TIME: (
        lambda value: isinstance(value, Time),
        'a Time message, None for what has come by now',
        lambda value: value,
    ),
    IMAGE: (
        lambda value: isinstance(value, CompressedImage),
        'the bytes of a JPEG, PNG or WebP, a CompressedImage message, or None',
        lambda value: value,
    ),
    'boolean': (is_truth, 'True or False', bool),
}


class _Awaited:
    """Something with a `future` and a deadline that a client looks at until it is over."""

    def __init__(self, client, timeout_s: float | None):
        self._client = client
        self.timeout_s = seconds_of(timeout_s)
        self._begun_s = time.monotonic()
        self._is_left = False
        # Without an executor: whoever waits hears at once, also in another thread.
        self.future = Future()

    @property
    def is_over(self) -> bool:
        """Whether there is a result or an error; for any thread."""
        return self.future.done() or self.future.cancelled()

    def spent_s(self) -> float:
        """Return the time since it began."""
        return time.monotonic() - self._begun_s

    def end(self, result=None, error: Error | None = None) -> None:
        """Set the one result; what comes later does nothing."""
        if not self.is_over:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
                if self._is_left:
                    self.leave()
        self._client.forget(self)

    def leave(self) -> None:
        """Note that nobody asks for its end any more, or rclpy prints that; for any thread."""
        self._is_left = True
        if self.future.done():
            self.future.exception()


class Readiness(_Awaited):
    """Waits until the llm node answers questions; the result is its Status."""

    def look(self) -> None:
        """End it, if it is time."""
        client, status = self._client, self._client.status
        if status is not None and status.state == Status.FAILED:
            self.end(error=BusyError(client.describe()))
        elif client.is_ready:
            self.end(status)
        elif self.spent_s() > self.timeout_s:
            self.end(error=LateError(f'Not ready after {self.timeout_s:g} s: {client.describe()}'))


class Stream(_Awaited):
    """One question on its way: `for piece in stream` gives the text as it is generated.

    Leaving the loop before the end cancels the question. `future` is of the Answer message, for
    coroutines; `answer` is that message once it is over, also of what was cancelled.
    """

    def __init__(self, client, goal: AskAction.Goal, on_text, timeout_s: float | None):
        super().__init__(client, timeout_s)
        if not (on_text is None or callable(on_text)):
            raise InputError(
                f'on_text is {told(on_text)}; it takes a function of a text, or None.'
            )
        self.answer: Answer | None = None
        self._goal, self._on_text = goal, on_text
        self._sent = self._handle = None  # future of the goal handle, and the handle
        self._found_s = None  # after the begin
        self._is_cancelled = False
        self._pieces, self._next, self._n_told = deque(), 0, 0
        self._doubts, self._takers = 0, set()
        self.future.add_done_callback(lambda future: future.cancelled() and self.cancel())

    # For any thread.
    def __iter__(self):
        """Yield the pieces of text; raise what went wrong, unless this side cancelled."""
        try:
            while True:
                self._client.spin_until(lambda: self._pieces or self.is_over, self.timeout_s)
                if self._pieces:
                    yield self._pieces.popleft()
                    continue
                error = self.future.exception()
                if error is not None and not self._is_cancelled:
                    raise error
                return
        finally:
            self.cancel()

    def result(self) -> Answer:
        """Wait for the whole answer; raise why there is none."""
        try:
            self._client.spin_until(lambda: self.is_over, self.timeout_s)
        except BaseException:
            self.cancel()
            raise
        if self.future.cancelled():
            raise CancelledError('The question was cancelled.')
        return self.future.result()

    def cancel(self) -> None:
        """Cancel the question; after the end it does nothing.

        Where nobody else spins the node, this returns when the question has ended.
        """
        self.leave()
        if self._client.is_closed or (self.is_over and not self.future.cancelled()):
            return
        self._is_cancelled = True
        try:
            self._client.post(self._cancel_goal)
        except InvalidHandle:  # the client's node or context is gone, and with it the question
            return
        if self._client.spins_itself:
            with suppress(Error, ExternalShutdownException):
                self._client.spin_until(lambda: self.is_over, CANCEL_TIMEOUT_S)

    # For the thread that spins.
    def look(self) -> None:
        """Send the question once there is who takes it; give it up when it is time."""
        client = self._client
        if self.spent_s() > self.timeout_s:
            self._give_up(
                LateError(
                    f'No answer within {self.timeout_s:g} s (timeout_s). {client.describe()}'
                )
            )
        elif self._sent is None:
            if self._is_cancelled:
                self._cancel_goal()
            elif client.has_server:
                self._found_s = self.spent_s() if self._found_s is None else self._found_s
                if client.is_known or self.spent_s() - self._found_s > MEET_TIMEOUT_S:
                    self._send()
            elif self.spent_s() > FIND_TIMEOUT_S:
                self.end(error=BusyError(client.describe()))
        else:
            self._doubt()

    def _send(self) -> None:
        client = self._client
        self._takers = client.publishers()
        if math.isfinite(self.timeout_s):
            self._goal.timeout_s = max(0.0, self.timeout_s - self.spent_s()) + NODE_LATER_S
        with self._guard():
            self._sent = client.action.send_goal_async(
                self._goal, feedback_callback=self._on_feedback
            )
            # Done callbacks belong to no callback group: post brings them into the client's.
            self._sent.add_done_callback(lambda _: client.post(self._on_taken))

    def _on_taken(self) -> None:
        with self._guard():
            self._handle = self._sent.result()
            if self._handle is None or not self._handle.accepted:
                self.end(error=AskError(f'{self._client.name} did not take the question.'))
                return
            if self._is_cancelled or self.is_over:
                self._handle.cancel_goal_async()
            done = self._handle.get_result_async()
            done.add_done_callback(lambda _: self._client.post(lambda: self._on_result(done)))

    def _on_feedback(self, message) -> None:
        # The result may overtake a piece, and a full queue lose one: what is missing then comes
        # with the result, whose text begins with all that was told.
        delta = message.feedback.delta
        if delta.index == self._next and not self.is_over:
            self._next += 1
            self._tell(delta.text)

    def _on_result(self, done) -> None:
        wrapped = None
        with self._guard():
            wrapped = done.result()
        if wrapped is None or wrapped.status == GoalStatus.STATUS_UNKNOWN:
            self._give_up(AskError(f'{self._client.name} knows nothing of the question any more.'))
            return
        result = wrapped.result
        if self.is_over:
            return
        self.answer = result.answer
        self._tell(result.answer.text[self._n_told :])
        reason = result.reason or f'{self._client.name} gives no reason; its log tells more.'
        if result.success:
            self.end(result.answer)
        elif wrapped.status == GoalStatus.STATUS_CANCELED:
            self.end(error=CancelledError(reason))
        else:
            self.end(error=AskError(reason, result.answer))

    def _tell(self, text: str) -> None:
        if not text:
            return
        self._n_told += len(text)
        self._pieces.append(text)
        self._client.notify()
        if self._on_text is not None:
            self._on_text(text)

    def _cancel_goal(self) -> None:
        if self._handle is not None:
            self._handle.cancel_goal_async()
        elif self._sent is None:
            self.end(error=CancelledError('The question was cancelled before it was sent.'))

    @contextmanager
    def _guard(self):
        """Turn what rclpy raises on the way of the question into its end."""
        try:
            yield
        except Exception as error:  # of rclpy or the middleware
            self.end(error=AskError(f'The way to {self._client.name} failed: {error!r}'))

    def _give_up(self, error: Error) -> None:
        """End without an answer; who took the question need not go on with it."""
        if self._handle is not None:
            self._handle.cancel_goal_async()
        self.end(error=error)

    def _doubt(self) -> None:
        """Give up where who took the question is gone: no answer would ever come."""
        client = self._client
        self._takers = self._takers or client.publishers()
        if self._takers:
            gone = self._takers.isdisjoint(client.publishers()) or client.is_silent
        else:  # it tells no status: another node that answers
            gone = not client.has_server
        ready = client.status is None or client.status.state == Status.READY
        self._doubts = self._doubts + 1 if gone or not ready else 0
        if self._doubts > LOST_TICKS:
            self._give_up(
                AskError(f'{client.name} took the question and ended. {client.describe()}')
            )
