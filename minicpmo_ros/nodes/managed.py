# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The lifecycle node all nodes of this package are made of.

What it adds to rclpy's: a parameter table, `autostart`, and the hand-over from worker threads.
Only the executor's thread touches ROS: a worker calls `post(callable)`, and the callable runs
on the executor in the order of posting. Long work runs in workers; the hooks below return at
once:

    on_setup(options)    check parameters and files, start loading; raise Error to refuse
    on_start()           subscribe
    on_stop()            unsubscribe
    on_release()         tell workers to stop and to free the model
    join(timeout_s)      wait for that; when the node is destroyed
"""

import threading
import traceback
from collections import deque

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.nodes.diagnostics import Diagnostics
from minicpmo_ros.nodes.parameters import ANY_TIME, START, Parameter, ParameterTable
from minicpmo_ros.nodes.topics import Topics

# Of the two seconds in which a signal ends a process.
JOIN_TIMEOUT_S = 1.5
COMMON_PARAMETERS = (
    Parameter('autostart', True, 'Configure and activate the node by itself once it spins',
              when=START),
    Parameter('watchdog', 20.0, 'How long one piece of work may take before /diagnostics says '
              'that it hangs', 'seconds', 0.1, 86_400.0, when=ANY_TIME),
)  # fmt: skip
LATCHED = QoSProfile(
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)


class ManagedNode(LifecycleNode):
    """Lifecycle node with a parameter table, autostart and posting from workers."""

    PARAMETERS: tuple[Parameter, ...] = ()
    INPUTS: tuple[str, ...] = ()  # topics
    ROLE = 'node'  # its entry in /diagnostics
    failure = None  # the Error of the last transition, or that came later
    _ended = None  # an Event, once the node is made

    def __init__(self, name: str, remappings: dict | None = None):
        remaps = [part for rule in (remappings or {}).items() for part in ('-r', ':='.join(rule))]
        super().__init__(name, cli_args=['--ros-args', *remaps] if remaps else None)
        self._configured = False
        self.table = ParameterTable(
            self, (*COMMON_PARAMETERS, *self.PARAMETERS), lambda: self._configured
        )
        self.topics = Topics(self)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._posted = deque()
        self._bell = self.create_guard_condition(self._run_posted)
        self._ended = threading.Event()
        Diagnostics(self, self.ROLE)
        if self.table.values().autostart:
            self._autostart = self.steady_timer(0.0, self._start_by_itself)

    # Hooks of the nodes.
    def on_setup(self, options) -> None:
        """Check parameters and files and start loading; raise Error to refuse."""

    def on_start(self) -> None:
        """Take input."""

    def on_stop(self) -> None:
        """Take no more input."""

    def on_release(self) -> None:
        """Tell workers to stop and to free what was loaded; the next ones wait for that."""

    def join(self, timeout_s: float) -> None:
        """Wait for the workers that were told to stop."""

    def on_refused(self) -> None:
        """Tell others of the `failure` for which the node could not be configured."""

    def diagnose(self, report) -> None:
        """Write what this node has to say into the Report of /diagnostics."""

    def busy_s(self) -> float:
        """Give for how long the worker has been at one piece of work; 0: it waits for one."""
        return 0.0

    @property
    def state(self) -> str:
        """The label of the lifecycle state."""
        return self._state_machine.current_state[1]

    def steady_timer(self, period_s: float, callback):
        """Make a timer that runs also while simulated time stands still."""
        return self.create_timer(period_s, callback, clock=self._steady)

    def post(self, call) -> None:
        """Run `call` on the executor's thread; for worker threads."""
        self._posted.append(call)
        if not self._ended.is_set():
            self._bell.trigger()

    def finish(self, future, result) -> None:
        """End a future that a coroutine of this node awaits; for worker threads.

        The wake is needed: an idle executor would sleep on although the future is done.
        """

        def end():
            if not future.done():
                future.set_result(result)
            if self.executor is not None:
                self.executor.wake()

        self.post(end)

    def fail(self, error: Error) -> None:
        """Go back to unconfigured after a failure that came once loading had begun."""
        self._refuse(error)
        if self.state == 'active':
            self.trigger_deactivate()
        if self.state == 'inactive':
            self.trigger_cleanup()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _start_by_itself(self) -> None:
        self.destroy_timer(self._autostart)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # Transitions of rclpy, in terms of the hooks.
    def on_configure(self, state):
        """Configure: check, then load in a worker."""
        self.failure = None
        done = self._transition(lambda: self.on_setup(self.table.values()))
        if done is TransitionCallbackReturn.SUCCESS:
            self._configured = True
        else:
            self.on_release()
        return done

    def on_activate(self, state):
        """Activate: take input."""
        return self._transition(self.on_start)

    def on_deactivate(self, state):
        """Deactivate: take no more input."""
        return self._transition(self.on_stop)

    def on_cleanup(self, state):
        """Clean up: free the model."""
        self._configured = False
        return self._transition(self.on_release)

    def on_shutdown(self, state):
        """Shut down from any state."""
        self._configured = False
        return self._transition(self._stop_and_release)

    def on_error(self, state):
        """Recover to unconfigured after an unexpected failure in a transition."""
        self._configured = False
        return self._transition(self._stop_and_release)

    def _transition(self, hook) -> TransitionCallbackReturn:
        try:
            hook()
        except Error as error:
            self._refuse(error)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            if not self.context.ok():  # a signal took the context from under the transition
                return TransitionCallbackReturn.FAILURE
            # rclpy would turn this into an error state without a word.
            self.get_logger().error(f'transition failed: {traceback.format_exc()}')
            self.failure = EngineError(f'a transition failed: {error!r}. The log says where')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _refuse(self, error: Error) -> None:
        self.failure = error
        self.get_logger().error(str(error))
        self.on_refused()

    def _stop_and_release(self) -> None:
        self.on_stop()
        self.on_release()

    def destroy_node(self):
        """Stop workers, then destroy; also called for a node that was not made to the end."""
        if self._ended is not None:
            self._ended.set()
            self._stop_and_release()
            self.join(JOIN_TIMEOUT_S)
        super().destroy_node()
