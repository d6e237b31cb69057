# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which seconds of a stream are over, when its source may fall silent.

A reader can tell that second n is over when something of second n + 1 arrives. From a source
that stopped nothing arrives; then the time that has passed since says it. Stream time is the
newest stamp plus the monotonic time since it arrived, so no clock needs to agree with any other.
"""

NS = 1_000_000_000


class Pacer:
    """Counts the seconds of one stream, each exactly once and in order.

    `grace_s`: how long after its end a second is waited for.
    """

    def __init__(self, grace_s: float = 0.5):
        self._grace_ns = int(grace_s * NS)
        self._newest_ns = None  # stream time of the newest arrival
        self._arrived_s = 0.0  # monotonic time of that arrival
        self._next = None  # the first second not yet given

    def arrive(self, end_ns: int, now_s: float) -> None:
        """Note that the stream has reached `end_ns` at monotonic time `now_s`."""
        second = end_ns // NS
        if self._next is None or second < self._next - 1:
            self._next = second
        self._newest_ns, self._arrived_s = end_ns, now_s

    def is_new(self, second: int) -> bool:
        """Say whether `second` was not given yet, and count it as given."""
        if self._next is not None and second < self._next:
            return False
        self._next = second + 1
        return True

    def restart(self, second: int) -> None:
        """Begin anew with `second`: the source's time jumped."""
        self._next = second

    def is_idle(self, now_s: float) -> bool:
        """Say whether nothing has arrived for the grace period."""
        return (
            self._newest_ns is not None and (now_s - self._arrived_s) * NS >= self._grace_ns
        )

    def overdue(self, now_s: float) -> list[int]:
        """Give the seconds that are over, the grace period included, and not yet given."""
        if self._newest_ns is None:
            return []
        stream_ns = self._newest_ns + int((now_s - self._arrived_s) * NS)
        return list(range(self._next, (stream_ns - self._grace_ns) // NS))
