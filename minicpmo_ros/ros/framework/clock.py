# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A node's instants: steady time and, with use_sim_time, the time of /clock.

While /clock stands still, so does simulated time. If nobody publishes /clock any more, for
example because a bag has ended, only the steady clock goes on, so that nothing waits for ever. If
/clock has never come, that is reported in the log and on /diagnostics.
"""

import threading
import time

from minicpmo_ros.streams.time import STEP_BACK_NS, Instant

CLOCK_TOPIC = '/clock'
# Where time is not simulated, only use_sim_time may change.
CLOCK_LOOK_PERIOD_S, PARAMETER_LOOK_PERIOD_S = 0.5, 2.0
PATIENCE_S = 3.0  # after which a /clock that has not come is missing


class NodeTime:
    """Returns the instants of one node; thread-safe."""

    def __init__(self, node):
        self._node, self._clock = node, node.get_clock()
        self._lock = threading.Lock()
        self._newest_ns, self._jumps = 0, 0
        self._is_orphaned = False  # nobody publishes /clock
        self._since_s = None  # monotonic: since when the first /clock is waited for
        self._looking = node.steady_timer(CLOCK_LOOK_PERIOD_S, self._look)

    def now(self) -> Instant:
        """Return this instant."""
        steady_s = time.monotonic()
        if not self._clock.ros_time_is_active:
            return Instant(steady_s)
        now_ns = self._clock.now().nanoseconds  # 0 before the first /clock
        with self._lock:
            if now_ns != self._newest_ns:
                self._is_orphaned = False
            self._jumps += now_ns < self._newest_ns - STEP_BACK_NS
            self._newest_ns = now_ns
            is_known = now_ns and not self._is_orphaned
            return Instant(steady_s, now_ns if is_known else None, self._jumps)

    def _look(self) -> None:
        is_simulated = self._clock.ros_time_is_active
        period_s = CLOCK_LOOK_PERIOD_S if is_simulated else PARAMETER_LOOK_PERIOD_S
        self._looking.timer_period_ns = int(period_s * 1e9)
        if is_simulated:
            topic = self._node.resolve_topic_name(CLOCK_TOPIC)
            self._is_orphaned = not self._node.count_publishers(topic)
        problem = self._missing()
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
        topic = self._node.resolve_topic_name(CLOCK_TOPIC)
        who = 'nobody publishes it' if self._is_orphaned else 'it is published, but stands at 0'
        return (
            f'{topic} is missing: use_sim_time is true and {who}, so that what has no stamp of '
            'its own has no time. Start who publishes it (a simulation, ros2 bag play --clock), '
            'or set use_sim_time to false'
        )
