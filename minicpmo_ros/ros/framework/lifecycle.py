# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The lifecycle node that all nodes of this package derive from.

It adds to rclpy's: a parameter table, `autostart`, and the hand-over from worker threads.
Only the executor's thread touches ROS: a worker calls `post(callable)`, and the callable runs
on the executor in the order of posting. Long work runs in workers; the hooks below return at
once:

    on_setup(options)    check parameters and files, start loading; raise Error to refuse
    on_start()           subscribe
    on_stop()            unsubscribe
    on_release()         tell workers to stop and to free the model
    join(timeout_s)      wait for that; when the node is destroyed
    on_end()             remove what the constructor made; when the node is destroyed

Unforeseen exceptions in them end neither the node nor its inputs (faults.py). After a row of
failures, or if a worker has ended, the node restarts itself: it cleans up, configures and
activates, each time after a longer wait (faults.WAITS_S), until it works again or somebody else
changes its state.
"""

import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.ros.framework.clock import Ticks
from minicpmo_ros.ros.framework.diagnostics import NO_BOND, Bond, Diagnostics
from minicpmo_ros.ros.framework.faults import IN_A_ROW, Faults, Waits, name_of, shortage
from minicpmo_ros.ros.framework.parameters import ANY_TIME, START, Parameter, ParameterTable
from minicpmo_ros.ros.framework.topics import Topics, WithoutEvents

# Of the two seconds in which a signal ends a process.
JOIN_TIMEOUT_S = 1.5
COMMON_PARAMETERS = (
    Parameter('autostart', True, 'Configure and activate the node by itself once it spins',
              when=START),
    Parameter('watchdog', 20.0, 'How long one task may take before /diagnostics reports '
              'that it hangs', 'seconds', 0.1, 86_400.0, when=ANY_TIME),
)  # fmt: skip
LATCHED = QoSProfile(
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
# At the default depth of 10, requests that come at the same moment vanish and get no reply.
SERVICE_QOS = QoSProfile(depth=256)
ACTION_PARTS = ('goal_service', 'result_service', 'cancel_service', 'feedback_pub')
RESULT_KEPT_S = 60  # after a goal's end; who asks may be held up for longer than rclpy's 10
ACTION_OPTIONS = {
    **{f'{part}_qos_profile': SERVICE_QOS for part in ACTION_PARTS},
    'result_timeout': RESULT_KEPT_S,
}


class ManagedNode(WithoutEvents, LifecycleNode):
    """Lifecycle node with a parameter table, autostart and posting from workers."""

    PARAMETERS: tuple[Parameter, ...] = ()
    INPUTS: tuple[str, ...] = ()  # topics
    INPUTS_BESIDE: tuple[str, ...] = ()  # topics that say more about those
    ROLE = 'node'  # its entry in /diagnostics
    clock_problem = ''  # what is wrong with simulated time
    worker = None  # a Worker, of a node that has one
    failure = None  # the Error of the last transition, or that came later
    restart_due_s = None  # monotonic: when the node starts itself anew
    _ended = None  # an Event, once the node is made
    _restart = None  # the timer of that
    _goal = ''  # the state that a start by itself leads to; '': none is going on
    _is_own = False  # this transition is part of one

    def __init__(self, name: str, remappings: dict | None = None, parameters: dict | None = None):
        remaps = [part for rule in (remappings or {}).items() for part in ('-r', ':='.join(rule))]
        super().__init__(
            name,
            cli_args=['--ros-args', *remaps] if remaps else None,
            parameter_overrides=[RosParameter(k, value=v) for k, v in (parameters or {}).items()],
        )
        self._configured = False
        self.faults = Faults(self, self._on_row)
        self.restarts = Waits()
        self.table = ParameterTable(
            self, (*COMMON_PARAMETERS, *self.PARAMETERS), lambda: self._configured
        )
        self.topics, self.ticks = Topics(self), Ticks(self)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._posted = deque()
        self._bell = self.create_guard_condition(self._run_posted)
        self._ended = threading.Event()
        Diagnostics(self, self.ROLE)
        self._bond = Bond(self)
        if not self.table.values().autostart and not self._bond.is_possible:
            self.get_logger().info(NO_BOND)
        if self.table.values().autostart:
            self._autostart = self.steady_timer(0.0, self._start_by_itself)

    # Hooks of the nodes.
    def on_setup(self, options) -> None:
        """Check parameters and files and start loading; raise Error to refuse."""

    def on_start(self) -> None:
        """Subscribe to the inputs."""

    def on_stop(self) -> None:
        """Unsubscribe from the inputs."""

    def on_release(self) -> None:
        """Stop the worker and let it free what it loaded; the next one waits for that."""
        if self.worker is not None:
            self.worker.stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the worker that was told to stop."""
        if self.worker is not None:
            self.worker.join(timeout_s)

    def on_end(self) -> None:
        """Remove what the constructor made."""

    def on_refused(self) -> None:
        """Called when the node could not be configured, because of `failure`."""

    def diagnose(self, report) -> None:
        """Fill this node's Report of /diagnostics."""

    def is_ready(self) -> bool:
        """Return whether input is used: the node is active and has loaded."""
        return self.state == 'active'

    def busy_s(self) -> float:
        """Return how long the worker has been at one piece of work, in seconds; 0: it is idle."""
        return 0.0

    @property
    def has_ended(self) -> bool:
        """Return whether the node is destroyed, or about to be."""
        return self._ended is not None and self._ended.is_set()

    @property
    def state(self) -> str:
        """The label of the lifecycle state."""
        return self._state_machine.current_state[1]

    def steady_timer(self, period_s: float, callback):
        """Create a timer that also runs while simulated time stands still, and survives errors.

        What is done again and again has its time in `ticks`.
        """
        guarded = self.faults.guarded(f'timer {name_of(callback)}', callback)
        return self.create_timer(period_s, guarded, clock=self._steady)

    def create_service(self, srv_type, srv_name: str, callback, **options):
        """Create a service that always replies, to each of many; see Faults.replying."""
        options.setdefault('qos_profile', SERVICE_QOS)
        if hasattr(srv_type.Response, 'success'):  # none of rclpy's own
            callback = self.faults.replying(f'service {srv_name}', callback, srv_type.Response)
        return super().create_service(srv_type, srv_name, callback, **options)

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
        """Return to unconfigured after a failure while loading; try again if it may pass."""
        self._refuse(error)
        self._bond.end()
        goal = self._goal or (self.state if error.may_pass else '')  # '': it never worked
        with self._own_transitions():
            self._go_down()
        if goal:
            self._plan_restart(goal)

    def start_anew(self, error: Error) -> None:
        """Restart because a working worker has ended; for the executor's thread."""
        self._refuse(error)
        if self.state in ('active', 'inactive'):
            self._plan_restart(self.state)

    def _run_posted(self) -> None:
        while self._posted:
            call = self._posted.popleft()
            with self.faults.guard(f'posted {name_of(call)}'):
                call()

    def _start_by_itself(self) -> None:
        self.destroy_timer(self._autostart)
        self._go_up('active')

    # Starting anew by itself.
    def _on_row(self, place: str) -> None:
        """Called for a row of failures; in any thread."""
        self.post(lambda: self._start_anew_for(place))

    def _start_anew_for(self, place: str) -> None:
        if self.state in ('active', 'inactive') and self._restart is None:
            self.get_logger().error(f'{place} has failed {IN_A_ROW} times in a row')
            self._plan_restart(self.state, place)

    def _plan_restart(self, goal: str, place: str = '') -> None:
        if self._restart is not None or self.has_ended:
            return
        wait_s = self.restarts.next_s()
        self.get_logger().error(
            f'the node starts itself anew in {wait_s:g} s (start {self.restarts.count}): '
            f'clean up, configure{", activate" * (goal == "active")}'
        )
        self._goal, self.restart_due_s = goal, time.monotonic() + wait_s
        self._restart = self.steady_timer(wait_s, lambda: self._start_anew(place))

    def _forget_restart(self) -> None:
        if self._restart is not None:
            self.destroy_timer(self._restart)
        self._restart = self.restart_due_s = None

    def _start_anew(self, place: str) -> None:
        """Restart, unless the place that failed works again."""
        self._forget_restart()
        if place and not self.faults.is_failing(place):
            self.get_logger().info(f'{place} works again; the node goes on as it is')
            return
        with self._own_transitions():
            self._go_down()
            self._go_up(self._goal)

    def _go_down(self) -> None:
        if self.state == 'active':
            self.trigger_deactivate()
        if self.state == 'inactive':
            self.trigger_cleanup()

    def _go_up(self, goal: str) -> None:
        done = self.trigger_configure()
        if done is TransitionCallbackReturn.SUCCESS and goal == 'active':
            done = self.trigger_activate()
        # A refusal is the user's to mend; but what has worked before may work again.
        if done is TransitionCallbackReturn.ERROR or (self._goal and self.state != goal):
            self._bond.end()
            with self._own_transitions():
                self._go_down()
            self._plan_restart(goal)

    @contextmanager
    def _own_transitions(self):
        before, self._is_own = self._is_own, True
        try:
            yield
        finally:
            self._is_own = before

    def _turn_goal(self, goal: str) -> None:
        """Let a pending restart lead to the state that somebody else has requested."""
        if not self._is_own and self._goal:
            self._goal = goal

    def _begin_transition(self) -> None:
        """Give up the restart, because somebody else is changing the state."""
        if not self._is_own:
            self._forget_restart()
            self._goal = ''

    # Transitions of rclpy, in terms of the hooks.
    def on_configure(self, state):
        """Configure: check, then load in a worker."""
        self._begin_transition()
        self.failure = None
        self.faults.forget()
        done = self._transition(self._set_up)
        if done is TransitionCallbackReturn.SUCCESS:
            self._configured = True
        else:
            self.on_release()
        return done

    def on_activate(self, state):
        """Activate: subscribe to the inputs."""
        self._turn_goal('active')
        done = self._transition(self.on_start)
        if done is TransitionCallbackReturn.SUCCESS:
            self._bond.begin()
        return done

    def on_deactivate(self, state):
        """Deactivate: unsubscribe from the inputs."""
        self._turn_goal('inactive')
        if not self._is_own:  # a start by itself is over before anybody need know
            self._bond.end()
        return self._transition(self.on_stop)

    def on_cleanup(self, state):
        """Clean up: free the model."""
        self._begin_transition()
        self._configured = False
        return self._transition(self.on_release)

    def on_shutdown(self, state):
        """Shut down from any state."""
        self._bond.end()
        self._begin_transition()
        self._configured = False
        return self._transition(self._stop_and_release)

    def on_error(self, state):
        """Recover to unconfigured after an unexpected failure in a transition."""
        self._configured = False
        # Whatever fails here too, another answer would end the node for good.
        for hook in (self.on_stop, self.on_release):
            with self.faults.guard(name_of(hook), starts_anew=False):
                hook()
        return TransitionCallbackReturn.SUCCESS

    def _set_up(self) -> None:
        self.topics.check((*self.INPUTS, *self.INPUTS_BESIDE))
        self.on_setup(self.table.values())

    def _transition(self, hook) -> TransitionCallbackReturn:
        try:
            hook()
        except Error as error:
            self._refuse(error)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            if not self.context.ok():  # a signal took the context from under the transition
                return TransitionCallbackReturn.FAILURE
            if lack := shortage(error):
                self._refuse(EngineError(lack))
                return TransitionCallbackReturn.ERROR
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
        """Stop workers, then destroy; also called if the constructor failed.

        rclpy calls it too, in the thread that shuts it down.
        """
        if self._ended is not None:
            if self.has_ended:
                return
            self._ended.set()
            for hook in (self._stop_and_release, lambda: self.join(JOIN_TIMEOUT_S), self.on_end):
                with self.faults.guard(name_of(hook), starts_anew=False):
                    hook()
        super().destroy_node()
