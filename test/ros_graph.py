# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A real ROS graph for tests: installed executables as processes, and a node that talks to them.

Nothing here waits for a time to pass: `spin_until` waits for a condition, and its timeout is
only how long a broken test takes to fail. Where a process ends that the test did not end, the
test fails at once with the log.
"""

import fcntl
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from ament_index_python.packages import get_package_prefix
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.msg import Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.srv import Ask

PROFILE = Path(__file__).parent / 'fastdds_loopback.xml'
DATA = Path(__file__).parent / 'data'
BLIND = DATA / 'blind.yaml'
TIMEOUT_S = 120.0
POLL_S = 0.1  # what no message tells is looked at so often; each look takes 1 ms of CPU time
# Every executable promises two seconds; a machine may be so busy that a start takes thirty.
END_TIMEOUT_S = 60.0
# Fields of a question whose answer goes on until max_tokens, whatever the model.
LONG = dict(grammar='root ::= [a-z] root')


def _holds(condition):
    """Give what a condition gives; None while the message that it looks at has not come."""
    try:
        return condition()
    except (IndexError, StopIteration):
        return None


def claim_domain():
    """Give (domain id, lock file) of a ROS domain no other test run on this machine uses."""
    for domain in range(1, 101):
        lock = open(Path(tempfile.gettempdir()) / f'minicpmo_ros_domain_{domain}.lock', 'w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return domain, lock
        except OSError:
            lock.close()
    raise RuntimeError('all 100 ROS domains are in use')


class Process:
    """An installed executable of the package, as `ros2 launch` would start it."""

    def __init__(self, log_dir: Path, executable: str, *ros_arguments: str, env=None):
        path = Path(get_package_prefix('minicpmo_ros')) / 'lib' / 'minicpmo_ros' / executable
        self.log_path = log_dir / f'{executable}-{time.monotonic_ns()}.log'
        self._log = open(self.log_path, 'wb')
        self._end_is_expected = False
        arguments = ('--ros-args', *ros_arguments) if ros_arguments else ()
        self.popen = subprocess.Popen(
            [str(path), *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )

    @property
    def log(self) -> str:
        """What it printed until now."""
        return self.log_path.read_text(errors='replace')

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    @property
    def has_crashed(self) -> bool:
        """Whether it failed, and no test has ended it or waited for its end."""
        return not self._end_is_expected and self.popen.poll() not in (None, 0)

    def send(self, number) -> None:
        """Send a signal that may end it."""
        self._end_is_expected = True
        if self.is_running:
            self.popen.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait until it ends by itself and give its exit code; raise TimeoutExpired."""
        self._end_is_expected = True
        return self.popen.wait(timeout_s)

    def end(self, number=signal.SIGINT, timeout_s: float = END_TIMEOUT_S) -> int:
        """End it by a signal; give its exit code; raise TimeoutExpired when it is late."""
        self.send(number)
        return self.wait(timeout_s)

    def close(self) -> None:
        if self.is_running:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        self._log.close()


class Graph(Node):
    """The test's own node, with clients for the nodes under test in `namespace`."""

    def __init__(self, log_dir: Path, namespace: str):
        # Nobody asks for its parameters; each look would look at their services, too.
        super().__init__('tester', namespace=namespace, start_parameter_services=False)
        self.log_dir, self.namespace = log_dir, namespace
        self.processes = []
        self.statuses, self._statuses = [], None
        self.own_executor = SingleThreadedExecutor()
        self.own_executor.add_node(self)
        self.forget_statuses()
        self.make_ask_client()
        self.action_client = ActionClient(self, AskAction, 'llm/ask')

    def make_ask_client(self) -> None:
        """Make the client of the service."""
        # At the default depth of 10, replies that come at the same moment vanish here.
        self.ask_client = self.create_client(Ask, 'llm/ask', qos_profile=QoSProfile(depth=256))

    @property
    def lossless(self) -> tuple:
        """Arguments that let a node lose no input, although a test publishes in bursts."""
        rules = {
            f'{self.namespace}/image/compressed': ('depth:=20', 'reliability:=reliable'),
            f'{self.namespace}/audio': ('reliability:=reliable',),
        }
        return tuple(
            part
            for topic, policies in rules.items()
            for policy in policies
            for part in ('-p', f'qos_overrides.{topic}.subscription.{policy}')
        )

    @property
    def status(self):
        """The newest Status of the llm node, or None."""
        return self.statuses[-1] if self.statuses else None

    def forget_statuses(self) -> None:
        """Forget what the llm has said, and what of it is still on its way here."""
        if self._statuses is not None:
            self.destroy_subscription(self._statuses)
        self.statuses.clear()
        self._statuses = self.create_subscription(
            Status, 'llm/status', self.statuses.append, LATCHED
        )

    def start(self, executable: str, *ros_arguments: str, **kwargs) -> Process:
        """Start an executable in this graph's namespace.

        Most tests ask about other things than what is seen: an empty window may answer, unless
        they say otherwise.
        """
        blind = ('--params-file', str(BLIND))
        arguments = ('-r', f'__ns:={self.namespace}', *blind, *ros_arguments)
        process = Process(self.log_dir, executable, *arguments, **kwargs)
        self.processes.append(process)
        return process

    def spin_until(self, condition, what: str, timeout_s: float = TIMEOUT_S):
        """Spin until `condition()` is true and give what it gave; fail where a process crashed.

        A condition may look at the newest message although none has come.
        """
        end_s = time.monotonic() + timeout_s
        while not (result := _holds(condition)):
            if crashed := [p for p in self.processes if p.has_crashed]:
                codes = ', '.join(f'{p.log_path.name} with {p.popen.returncode}' for p in crashed)
                self._fail(f'there ended {codes} while the test waited for {what}', crashed)
            if time.monotonic() > end_s:
                self._fail(f'waited {timeout_s} s for {what}', self.processes)
            self.own_executor.spin_once(timeout_sec=POLL_S)
        return result

    def _fail(self, why: str, processes: list) -> None:
        logs = '\n'.join(f'--- {p.log_path.name}\n{p.log[-4000:]}' for p in processes)
        raise AssertionError(f'{why}; the newest is {self.status}\n{logs}')

    def result_of(self, future, what: str, timeout_s: float = TIMEOUT_S):
        """Spin until a future is done and give its result."""
        self.spin_until(future.done, what, timeout_s)
        return future.result()

    def wait_ready(self) -> None:
        """Wait until the llm node answers questions."""
        self.spin_until(
            lambda: self.status is not None and self.status.state == Status.READY, 'a ready model'
        )

    def ask(self, question: str, timeout_s: float = TIMEOUT_S, **fields):
        """Ask by the service and give the reply."""
        self.spin_until(self.ask_client.service_is_ready, 'the service')
        future = self.ask_client.call_async(Ask.Request(question=question, **fields))
        return self.result_of(future, f'the answer to {question!r}', timeout_s)

    def call(self, kind, name: str, **fields):
        """Call a service of this kind and name, and give the reply."""
        client = self.create_client(kind, name)
        self.spin_until(client.service_is_ready, name)
        reply = self.result_of(client.call_async(kind.Request(**fields)), name)
        self.destroy_client(client)
        return reply

    def until_answered(self, client) -> None:
        """Call a service that an empty request leaves as it is, until it answers.

        A killed server counts as there for a while. Until the one that follows it and the client
        have found each other, requests and replies are lost.
        """
        calls = []

        def is_answered():
            calls.append(client.call_async(client.srv_type.Request()))
            return any(call.done() for call in calls)

        self.spin_until(is_answered, f'an answer of {client.srv_name}')

    def reset(self):
        """Call ~/reset, wait for the empty window where it succeeds, and give the reply."""
        reply = self.call(Trigger, 'llm/reset')
        if reply.success:
            self.spin_until(lambda: self.status.units == 0, 'an empty window')
        return reply

    def lifecycle_state(self, node: str, timeout_s: float = TIMEOUT_S) -> str:
        """Give the label of a node's lifecycle state."""
        client = self.create_client(GetState, f'{node}/get_state')
        self.spin_until(client.service_is_ready, f'{node}/get_state')
        reply = self.result_of(client.call_async(GetState.Request()), 'the state', timeout_s)
        self.destroy_client(client)
        return reply.current_state.label

    def change_state(self, node: str, transition: str) -> bool:
        """Ask a node for a lifecycle transition by label."""
        wanted = Transition(label=transition)
        return self.call(ChangeState, f'{node}/change_state', transition=wanted).success

    def close(self) -> None:
        for process in self.processes:
            process.close()
        self.action_client.destroy()
        self.own_executor.shutdown()
        self.destroy_node()
