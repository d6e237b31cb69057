# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Asks the llm what was said, by the action `llm/ask`, and has the robot stop.

What goes wrong is told.
"""

from functools import partial

from rclpy.action import ActionClient
from std_srvs.srv import Trigger

from minicpmo_ros.action import Ask
from minicpmo_ros.ros.messages import to_time

NO_LLM = (
    'the llm is not there, and nobody answers what is said: start it, or remap llm/ask to where '
    'it is'
)


class Asker:
    """Sends questions about turns; `on_answer(text)` gets each answer. For the executor."""

    def __init__(self, node, on_answer):
        self._node, self._on_answer = node, on_answer
        self._client = ActionClient(node, Ask, 'llm/ask')
        self._stop = node.create_client(Trigger, 'speaker/stop')
        self.asked = self.answered = 0
        self._problem = ''  # of the newest question
        self._newest = None  # the goal handle of the newest answer, while it is given

    def close(self) -> None:
        """Leave the graph."""
        self._client.destroy()

    def diagnose(self, report) -> None:
        """Report counts, and why the newest turn was not answered."""
        report.tell('llm', 'there' if self._client.server_is_ready() else 'not there')
        report.tell('questions asked', self.asked)
        report.tell('questions answered', self.answered)
        if self._problem:
            report.warn(self._problem)

    def ask(self, event, question: str, remember: bool, timeout_s: float) -> None:
        """Ask about a turn that has ended; '': the model answers what was said."""
        goal = Ask.Goal(question=question, remember=remember, timeout_s=timeout_s)
        self._send(event, goal, self._on_answer)

    def cancel(self) -> None:
        """Cancel the answer that is being given, if there is one."""
        if self._newest is not None:
            self._newest.cancel_goal_async()
            self._newest = None

    def silence(self) -> None:
        """Cancel the answer, and have the speaker be silent."""
        self.cancel()
        if self._stop.service_is_ready():
            self._stop.call_async(Trigger.Request())

    def transcribe(self, event, question: str, timeout_s: float, on_text) -> None:
        """Let the model write down a turn; `on_text(event, text)` gets what it wrote."""
        goal = Ask.Goal(question=question, timeout_s=timeout_s, temperature=-1.0)
        self._send(event, goal, partial(on_text, event))

    def _send(self, event, goal, on_text) -> None:
        self.asked += 1
        if not self._client.server_is_ready():
            self._tell(f'turn {event.turn} is not answered: {NO_LLM}')
            return
        goal.heard_until = to_time(event.heard_until_ns)
        sent = self._client.send_goal_async(goal)
        sent.add_done_callback(lambda done: self._on_taken(event, done.result(), on_text))

    def _on_taken(self, event, handle, on_text) -> None:
        if not handle.accepted:
            self._tell(f'turn {event.turn} is not answered: the llm did not take the question')
            return
        if on_text == self._on_answer:
            self._newest = handle
        result = handle.get_result_async()
        result.add_done_callback(
            lambda done: self._on_result(event, done.result().result, on_text, handle)
        )

    def _on_result(self, event, reply, on_text, handle) -> None:
        if self._newest is handle:
            self._newest = None
        if not reply.success:
            self._tell(f'turn {event.turn} is not answered: {reply.reason}')
            return
        self._problem, self.answered = '', self.answered + 1
        on_text(reply.answer.text)

    def _tell(self, problem: str) -> None:
        self._problem = problem
        self._node.get_logger().warning(problem)
