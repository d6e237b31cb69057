# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Chooses the stamps of one input, header or arrival, in agreement with the other input.

The encoder nodes exchange their inputs' clock offsets on `input_clock`, whether they are in one
process or not. Problems with an input's clock are reported there, in the log and on /diagnostics;
and so is a skew of both: the clock of another machine.
"""

import time
from collections import deque

from rclpy.qos import QoSProfile

from minicpmo_ros.msg import InputClock as InputClockMessage
from minicpmo_ros.ros.framework.parameters import Parameter
from minicpmo_ros.ros.framework.threads import NotExecuted, call_back
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.streams.time import LIMITS, MODES, InputClock
from minicpmo_ros.units import NS

TOPIC = 'input_clock'
CLOCK_QOS = QoSProfile(depth=10)
CLOCK_PERIOD_S = 1.0
SKEW_NS = NS // 2  # between the clocks of two machines, which is told
SKEW_LOOKS = 10  # so many seconds: messages may be late, but not all of them
RECORDING_NS = 600 * NS  # stamps further behind are of a recording


def stamps_parameter(name: str) -> Parameter:
    """Return the row of an input's parameter, `name` image or audio."""
    return Parameter(
        f'{name}.stamps',
        MODES[0],
        'What dates the input. header: the stamps of its messages; arrival: the times at which '
        'they arrive; auto: the stamps, or the arrival if the clocks of image and audio differ '
        'and this clock is wrong. With simulated time, auto is header',
        choices=MODES,
    )


class SkewWatch:
    """Notices that the header stamps of an input are of a clock that differs from this machine's.

    The offset is the largest of SKEW_LOOKS seconds: a message may be late, never early. Stamps
    that are ahead are of a wrong clock. Stamps that are a little behind are of a wrong clock, too,
    or everything comes late; far behind, they are of a recording.
    """

    def __init__(self, name: str):
        self._name, self._offsets_ns = name, deque(maxlen=SKEW_LOOKS)

    def look(self, offset_ns: int) -> None:
        """Take the newest offset, stamps minus arrivals; once a second."""
        self._offsets_ns.append(offset_ns)

    def forget(self) -> None:
        """Begin anew: nothing has come."""
        self._offsets_ns.clear()

    @property
    def problem(self) -> str:
        """What is wrong, a sentence that says what to do; or ''."""
        if len(self._offsets_ns) < SKEW_LOOKS:
            return ''
        largest_ns, least_ns = max(self._offsets_ns), min(self._offsets_ns)
        if least_ns > SKEW_NS:
            return (
                f"the stamps of the {self._name} input are ahead of this machine's clock: by "
                f'{least_ns / NS:.1f} s. Set the clocks of both machines by one source (chrony)'
            )
        if -RECORDING_NS < largest_ns < -SKEW_NS:
            return (
                f"the stamps of the {self._name} input are behind this machine's clock: by "
                f'{-largest_ns / NS:.1f} s. Set the clocks of both machines by one source '
                '(chrony); if they agree, all of it comes so late: look at the network'
            )
        return ''


class LongChunks:
    """Notices a long chunk of audio that is stamped with its end, among those of a stream.

    What arrives was recorded before. By a stamp of its end, a chunk would fill seconds that are
    still to come, and what comes in them, images and audio, would be left out as late.
    """

    def __init__(self):
        self._arrived_ns = None

    def begin_ns(self, stamp_ns: int, duration_ns: int, arrived_ns: int) -> int:
        """Return when a chunk begins; its stamp, unless it came sooner than such chunks come."""
        before_ns, self._arrived_ns = self._arrived_ns, arrived_ns
        tolerance_ns = LIMITS.offset_tolerance_s * NS
        is_long = duration_ns > tolerance_ns and stamp_ns <= arrived_ns + tolerance_ns
        if not is_long or stamp_ns + duration_ns <= arrived_ns + tolerance_ns:
            return stamp_ns
        is_among = before_ns is not None and arrived_ns - before_ns < duration_ns // 2
        return stamp_ns - duration_ns if is_among else stamp_ns


class Stamps:
    """Stamps for one input of an encoder node; `name` is image or audio."""

    def __init__(self, node, name: str, mode: str):
        self._node, self.clock = node, InputClock(name, mode)
        self._skew, self._told, self._told_s = SkewWatch(name), '', 0.0
        self._long_chunks = LongChunks()
        self._publisher = node.create_publisher(InputClockMessage, TOPIC, CLOCK_QOS)
        # Not one of the node's inputs: it carries no images or audio.
        self._subscription = _subscribed(node, self._on_clock)
        self._tick = node.ticks.every(CLOCK_PERIOD_S, self._tell)

    def close(self) -> None:
        """Unsubscribe."""
        self._node.ticks.end(self._tick)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_publisher(self._publisher)

    def stamp_ns(self, header_ns: int | None, duration_ns: int = 0) -> int | None:
        """Return the stamp of what has arrived now, and lasted until now; for any thread.

        header_ns None: it has no stamp, and none is returned.
        """
        call_back(self._subscription)  # the newest is needed, as offsets grow in a fast replay
        clock = self._node.get_clock()
        arrived_ns = clock.now().nanoseconds
        begun_ns = arrived_ns - duration_ns
        if header_ns is not None and self.clock.mode == 'auto' and not clock.ros_time_is_active:
            header_ns = self._long_chunks.begin_ns(header_ns, duration_ns, arrived_ns)
        said_ns = begun_ns if header_ns is None else header_ns
        # What lasts comes when it is over: it was not late by that.
        is_believed = self.clock.is_believed(
            said_ns, arrived_ns and begun_ns, time.monotonic(), clock.ros_time_is_active
        )
        return header_ns if is_believed or header_ns is None else begun_ns

    def diagnose(self, report) -> None:
        """Report what dates the input, and what is wrong with its stamps."""
        report.tell('dated by', 'arrival' if self.clock.takes_arrival else 'header')
        if (offset := self.clock.offset) is not None:
            report.tell('header stamps minus arrival [s]', offset.offset_ns / NS)
        if self.problem:
            report.warn(self.problem)

    @property
    def problem(self) -> str:
        """What is wrong with the stamps of this input, a sentence; or ''."""
        return self.clock.problem or self._skew.problem

    def _on_clock(self, message) -> None:
        if message.input != self.clock.name:
            self.clock.on_other_offset(int(message.offset * NS), time.monotonic())

    def _tell(self) -> None:
        call_back(self._subscription)
        self._look_for_skew()
        problem, log = self.problem, self._node.get_logger()
        if problem != self._told:
            if problem.partition(':')[0] != self._told.partition(':')[0]:
                log.warning(
                    problem or f'the stamps of the {self.clock.name} input are right again'
                )
            self._told = problem
        offset = self.clock.offset
        if offset is not None and (offset.at_s != self._told_s or problem):
            self._told_s = offset.at_s
            message = InputClockMessage(
                input=self.clock.name,
                offset=offset.offset_ns / NS,
                arrival=self.clock.takes_arrival,
                problem=problem,
            )
            message.header.stamp = self._node.get_clock().now().to_msg()
            self._publisher.publish(message)

    def _look_for_skew(self) -> None:
        offset, is_simulated = self.clock.offset, self._node.get_clock().ros_time_is_active
        if offset is None or is_simulated:
            self._skew.forget()
        elif offset.at_s != self._told_s:  # something has come
            self._skew.look(offset.offset_ns)


class InputClocks:
    """What the encoder nodes report of the clocks of their inputs; for the llm node."""

    def __init__(self, node):
        self._node, self._newest = node, {}  # by input: (InputClock, steady time when it came)
        self._subscription = _subscribed(node, self._on_clock)

    @property
    def problem(self) -> str:
        """What is wrong now, sentences; or ''."""
        call_back(self._subscription)
        now_s = time.monotonic()
        told = [
            newest.problem
            for newest, at_s in self._newest.values()
            if now_s - at_s < LIMITS.forgotten_s
        ]
        return ' '.join(f'{text}.' for text in told if text)

    def stamp_ns(self, name: str, message) -> int:
        """Return the stamp of a message of an input that has come now, as its encoder dates it."""
        call_back(self._subscription)
        newest, _ = self._newest.get(name, (None, 0.0))
        if newest is not None and newest.arrival:
            return self._node.get_clock().now().nanoseconds
        return stamp_ns_of(message)

    def _on_clock(self, message) -> None:
        self._newest[message.input] = message, time.monotonic()


def _subscribed(node, callback):
    """Subscribe to `input_clock`, which is read when it is needed and wakes no executor."""
    return node.create_subscription(
        InputClockMessage, TOPIC, callback, CLOCK_QOS, callback_group=NotExecuted()
    )
