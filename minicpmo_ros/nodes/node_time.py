# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A node's instants: steady time, and with use_sim_time what /clock says.

While /clock stands still, simulated time does. When nobody publishes /clock any more, a bag has
come to its end for instance, the steady clock goes on alone, so that what waits for time to pass
does not wait for ever.
"""

import threading
import time

from minicpmo_ros.live.pacing import STEP_BACK_NS, Instant

CLOCK_TOPIC = '/clock'
LOOK_PERIOD_S = 0.5


class NodeTime:
    """Gives the instants of one node; for any thread."""

    def __init__(self, node):
        self._node, self._clock = node, node.get_clock()
        self._lock = threading.Lock()
        self._newest_ns, self._jumps = 0, 0
        self._is_orphaned = False  # nobody publishes /clock
        node.steady_timer(LOOK_PERIOD_S, self._look)

    def now(self) -> Instant:
        """Give this instant."""
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
        if self._clock.ros_time_is_active:
            topic = self._node.resolve_topic_name(CLOCK_TOPIC)
            self._is_orphaned = not self._node.count_publishers(topic)
