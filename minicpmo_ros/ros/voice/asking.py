# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Asks the llm what was said, by the action `llm/ask`, and has the robot stop.

Nodes find each other in their own time, and a model may still be loading: a question waits for
the llm before it is given up. What goes wrong is told.
"""

from functools import partial

from std_srvs.srv import Trigger

from minicpmo_ros.client.calls import FIND_TIMEOUT_S
from minicpmo_ros.client.client import Client
from minicpmo_ros.ros.messages import to_time


class Asker:
    """Sends questions about turns; `on_answer(text)` gets each answer. For the executor."""

    def __init__(self, node, on_answer):
        self._node, self._on_answer = node, on_answer
        self._client = Client(node)
        self._stop = node.create_client(Trigger, 'speaker/stop')
        self.asked = self.answered = 0
        self._problem = ''  # of the newest question
        self._newest = None  # the Stream of the newest answer, until it is over
        self._cancelled = 0  # the number of the newest question that is not to be asked any more

    def close(self) -> None:
        """Leave the graph."""
        self._client.destroy()

    def diagnose(self, report) -> None:
        """Report counts, and why the newest turn was not answered."""
        report.tell('llm', 'there' if self._client.has_server else 'not there')
        report.tell('questions asked', self.asked)
        report.tell('questions answered', self.answered)
        if self._problem:
            report.warn(self._problem)

    def ask(self, event, question: str, remember: bool, timeout_s: float) -> None:
        """Ask about a turn that has ended; '': the model answers what was said."""
        self._begin(event, timeout_s, self._on_answer, question=question, remember=remember)

    def cancel(self) -> None:
        """Cancel the answer that is being given or waits for an llm, if there is one."""
        self._cancelled = self.asked
        if self._newest is not None:
            self._newest.cancel()
            self._newest = None

    def silence(self) -> None:
        """Cancel the answer, and have the speaker be silent."""
        self.cancel()
        if self._stop.service_is_ready():
            self._stop.call_async(Trigger.Request())

    def transcribe(self, event, question: str, timeout_s: float, on_text) -> None:
        """Let the model write down a turn; `on_text(event, text)` alone gets what it wrote."""
        told = partial(on_text, event)
        self._begin(event, timeout_s, told, question=question, temperature=0.0, aside=True)

    def _begin(self, event, timeout_s: float, on_text, **options) -> None:
        """Ask, as soon as the llm can be asked."""
        self.asked += 1
        client = self._client
        send = partial(self._send, self.asked, event, timeout_s, on_text, options)
        tells_nothing = client.has_server and not client.publishers()  # a node of somebody else
        if client.is_ready or tells_nothing:
            send()
        else:
            ready = client.ready_async(min(timeout_s, FIND_TIMEOUT_S))
            ready.add_done_callback(partial(self._when_done, event, lambda _: send()))

    def _send(self, number: int, event, timeout_s: float, on_text, options: dict) -> None:
        is_answer = on_text == self._on_answer
        if is_answer and number <= self._cancelled:
            return
        stream = self._client.stream(
            timeout_s=timeout_s, heard_until=to_time(event.heard_until_ns), **options
        )
        if is_answer:
            self._newest = stream

        def answered(answer) -> None:
            self._problem, self.answered = '', self.answered + 1
            on_text(answer.text)

        stream.future.add_done_callback(partial(self._when_done, event, answered))

    def _when_done(self, event, go_on, future) -> None:
        """Go on with the result of a future; tell why there is none."""
        if self._newest is not None and self._newest.future is future:
            self._newest = None
        error = future.exception()
        if error is None:
            go_on(future.result())
        elif not self._client.is_closed:
            self._problem = f'turn {event.turn} is not answered: {error}'
            self._node.get_logger().warning(self._problem)
