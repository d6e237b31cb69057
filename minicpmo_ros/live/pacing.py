# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The time of a stream whose source may fall silent.

A reader can tell that second n is over when something of second n + 1 arrives. From a source
that stopped nothing arrives; then the time that has passed since says it. Stream time is the
newest stamp plus the monotonic time since it arrived, so no clock need agree with any other.
"""

NS = 1_000_000_000


class StreamClock:
    """Stream time, from stamps and the monotonic times of their arrival.

    `grace_s`: how long after its end a second is waited for, and after how long without
    anything the source counts as silent.
    """

    def __init__(self, grace_s: float = 0.5):
        self._grace_ns = int(grace_s * NS)
        self._newest_ns = None  # stream time of the newest arrival
        self._arrived_s = 0.0  # monotonic time of that arrival

    def arrive(self, end_ns: int, now_s: float) -> None:
        """Note that the stream has reached `end_ns` at monotonic time `now_s`."""
        self._newest_ns, self._arrived_s = end_ns, now_s

    def is_silent(self, now_s: float) -> bool:
        """Say whether nothing has arrived for the grace period."""
        return self._newest_ns is not None and self._since_ns(now_s) >= self._grace_ns

    def last_over(self, now_s: float) -> int | None:
        """Give the newest second that ended the grace period ago; None before any arrival."""
        if self._newest_ns is None:
            return None
        return (self._newest_ns + self._since_ns(now_s) - self._grace_ns) // NS - 1

    def _since_ns(self, now_s: float) -> int:
        return int((now_s - self._arrived_s) * NS)
