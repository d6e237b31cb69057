# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A node's instants, steady time and, with use_sim_time, the time of /clock; and its ticks.

While /clock stands still, so does simulated time. If nobody publishes /clock any more, for
example because a bag has ended, only the steady clock goes on, so that nothing waits for ever. If
/clock has never come, or several nodes publish it, that is reported in the log and on
/diagnostics.

What a node does again and again has one timer, by steady time. A timer for each would wake the
executor for each, and to wake an rclpy executor costs more than most of what is done then. Due
times are multiples of the period, so that those of all nodes in a process, and of all periods,
fall together; each process counts from a time of its own, so that not all of a robot wakes at
once.
"""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from rclpy.clock import Clock, ClockType

from minicpmo_ros.ros.framework.faults import faults_of, name_of
from minicpmo_ros.streams.time import STEP_BACK_NS, Instant

CLOCK_TOPIC = '/clock'
# Where time is not simulated, only use_sim_time may change.
CLOCK_LOOK_PERIOD_S, PARAMETER_LOOK_PERIOD_S = 0.5, 2.0
OFTEN, OFTEN_S = 3, 10.0  # so often in so long a time goes back where several publish it
PATIENCE_S = 3.0  # after which a /clock that has not come is missing
SLACK_S = 0.02  # so much later is due now
BEGIN_S = random.random()  # of counting, monotonic
LONGEST_WAIT_S = 60.0


class TornTime:
    """Notices that simulated time goes to and fro, as several nodes publish it."""

    def __init__(self):
        self.now_ns, self._back_s = 0, deque(maxlen=OFTEN)  # newest; monotonic: when it went back

    def goes_back(self, now_ns: int) -> bool:
        """Take the time of now; return whether it has gone back."""
        is_back = now_ns < self.now_ns - STEP_BACK_NS
        self.now_ns = now_ns
        if is_back:
            self._back_s.append(time.monotonic())
        return is_back

    def why_torn(self, node) -> str:
        """Return a sentence if it went back often, and several nodes publish it; else ''."""
        if len(self._back_s) < OFTEN or time.monotonic() - self._back_s[0] > OFTEN_S:
            return ''
        topic = node.resolve_topic_name(CLOCK_TOPIC)
        count = node.count_publishers(topic)
        return (count > 1) * (
            f'{topic} goes to and fro, for {count} nodes publish it: end all but one (one that '
            'was killed is counted for some seconds more)'
        )


class NodeTime:
    """Returns the instants of one node; thread-safe."""

    def __init__(self, node):
        self._node, self._clock = node, node.get_clock()
        self._lock = threading.Lock()
        self._torn, self._jumps = TornTime(), 0
        self._is_orphaned = False  # nobody publishes /clock
        self._since_s = None  # monotonic: since when the first /clock is waited for
        self._looking = node.ticks.every(CLOCK_LOOK_PERIOD_S, self._look)

    def now(self) -> Instant:
        """Return this instant."""
        steady_s = time.monotonic()
        if not self._clock.ros_time_is_active:
            return Instant(steady_s)
        now_ns = self._clock.now().nanoseconds  # 0 before the first /clock
        with self._lock:
            if now_ns != self._torn.now_ns:
                self._is_orphaned = False
            self._jumps += self._torn.goes_back(now_ns)
            is_known = now_ns and not self._is_orphaned
            return Instant(steady_s, now_ns if is_known else None, self._jumps)

    def _look(self) -> None:
        is_simulated = self._clock.ros_time_is_active
        self._looking.period_s = CLOCK_LOOK_PERIOD_S if is_simulated else PARAMETER_LOOK_PERIOD_S
        if is_simulated:
            topic = self._node.resolve_topic_name(CLOCK_TOPIC)
            self._is_orphaned = not self._node.count_publishers(topic)
        problem = self._missing() or (is_simulated and self._torn.why_torn(self._node)) or ''
        if problem and not self._node.clock_problem:
            self._node.get_logger().warning(problem)
        self._node.clock_problem = problem

    def _missing(self) -> str:
        """Return a sentence if simulated time has never begun, with what to do; else ''."""
        if not self._clock.ros_time_is_active or self._clock.now().nanoseconds:
            self._since_s = None
            return ''
        self._since_s = self._since_s or time.monotonic()
        if time.monotonic() - self._since_s < PATIENCE_S:
            return ''
        return no_clock(self._node)


def no_clock(node) -> str:
    """Return a sentence that says of a node that its /clock has not come, and what to do."""
    topic = node.resolve_topic_name(CLOCK_TOPIC)
    is_published = node.count_publishers(topic)
    who = 'it is published, but stands at 0' if is_published else 'nobody publishes it'
    return (
        f'{topic} is missing: use_sim_time is true and {who}, so that what has no stamp of '
        'its own has no time. Start who publishes it (a simulation, ros2 bag play --clock), '
        'or set use_sim_time to false'
    )


def read_until(source, time_of_node) -> Instant:
    """Return until when all that arrived at a source has been called back; None: until now.

    Whether a source is silent is asked at this instant: its reader may have been busy, or the
    process stopped for a moment.
    """
    return (source and source.read_until) or time_of_node.now()


class Tick:
    """One thing that is done again and again; `period_s` may change, from the next time on."""

    def __init__(self, period_s: float, callback: Callable[[], None]):
        self.period_s, self.callback, self.due_s = period_s, callback, 0.0

    def plan(self, now_s: float) -> None:
        """Be due at a multiple of the period, half of it from now at the earliest."""
        periods = math.ceil((now_s - BEGIN_S) / self.period_s + 0.5)
        self.due_s = BEGIN_S + periods * self.period_s


class Ticks:
    """All that one node does again and again; for the executor's thread."""

    def __init__(self, node):
        self._node, self._ticks, self._timer = node, [], None
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)

    def every(self, period_s: float, callback: Callable[[], None]) -> Tick:
        """Call back so often, until `end`; errors are told and counted (faults.py)."""
        guarded = faults_of(self._node).guarded(f'timer {name_of(callback)}', callback)
        tick = Tick(period_s, guarded)
        tick.plan(time.monotonic())
        self._ticks.append(tick)
        self._set_timer()
        return tick

    def end(self, tick: Tick) -> None:
        """Call back no more."""
        self._ticks.remove(tick)

    def _run(self) -> None:
        now_s = time.monotonic()
        for tick in [tick for tick in self._ticks if tick.due_s <= now_s + SLACK_S]:
            if tick in self._ticks:  # one may end another
                tick.plan(now_s)
                tick.callback()
        self._set_timer()

    def _set_timer(self) -> None:
        due_s = min((tick.due_s for tick in self._ticks), default=math.inf)
        wait_s = min(max(0.0, due_s - time.monotonic()), LONGEST_WAIT_S)
        if self._timer is None:
            self._timer = self._node.create_timer(wait_s, self._run, clock=self._clock)
        else:
            self._timer.timer_period_ns = int(wait_s * 1e9)
            self._timer.reset()
