# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `recorder`: writes the live graph's answers into a bag, and its inputs if asked to.

The bag is one MCAP file that ros2 bag and rosbags read. Messages are written as they come, stamped
in the node's time. What comes before simulated time begins, such as the format of the audio that
is played, waits for that: at 0 it would be years before all others. The recording stays readable
if the process is killed, and also on a full disk, where the node waits for free space.

With `keep_s` it keeps the newest seconds of inputs, answers and status in memory, with or without
such a bag, and ~/save_bag writes them to one (save_bag.py).
"""

import importlib
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.type_support import check_for_type_support

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.recent import KeptMessage, RecentMessages
from minicpmo_ros.evaluation.bags.writing import MOST_WAITING, Recording
from minicpmo_ros.ros.audio_input import AUDIO_TYPES, INFO_TYPE, installed_type
from minicpmo_ros.ros.framework.clock import PATIENCE_S, TornTime, no_clock
from minicpmo_ros.ros.framework.faults import Throttle, shortage
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.framework.parameters import Parameter, ParameterTable
from minicpmo_ros.ros.framework.topics import LOOK_PERIOD_S, type_among
from minicpmo_ros.ros.image_input import camera_topics
from minicpmo_ros.ros.playback.save_bag import BagSaver
from minicpmo_ros.ros.voice.self_speech import STATE
from minicpmo_ros.streams.pairing import cameras_of
from minicpmo_ros.units import MIB

ANSWER, TOPIC, STATUS = 'minicpmo_ros/msg/Answer', 'llm/answer', 'llm/status'
AUDIO_INFO = 'audio_info'
DAY_S = 86_400.0
ENDING_S = 1.0  # to write the end of a bag that is being saved
PARAMETERS = (
    Parameter('bag', '',
              'File to write, such as answers.mcap; an existing file is never overwritten',
              is_path=True),
    Parameter('inputs', False, 'Also record images, audio and when the robot spoke'),
    Parameter('cameras', '', 'Names of several cameras, as vision_encoder has them, whose images '
              'are recorded; empty: one, on image or image/compressed', or_list=True),
    Parameter('keep_s', 0.0,
              'So much of images, audio, answers and status is kept in memory for ~/save_bag; '
              '0: none', 'seconds', 0.0, DAY_S),
    Parameter('keep_mib', 256, 'It is kept in at most so much memory, the newest', 'MiB', 1,
              1_000_000),
)  # fmt: skip


@dataclass
class RecordedTopic:
    """A topic that is recorded as one type."""

    subscription: object
    kind: str
    newest_s: float  # when its newest message came, or it was subscribed to


class Recorder(Node):
    """See the module."""

    _recording = _saver = None

    def __init__(self):
        super().__init__('recorder')
        options = ParameterTable(self, PARAMETERS).values()
        if not options.bag and not options.keep_s:
            raise InputError(
                'parameter bag is empty; give a file to write: -p bag:=FILE.mcap, or let the '
                'newest seconds be kept for ~/save_bag: -p keep_s:=60.0'
            )
        self._throttle, self._is_short = Throttle(), False  # short of room
        self._open = {}  # by topic: RecordedTopic
        self._recorded, self._topics = set(), set()  # topics that are written; names of all
        self._time = TornTime()
        self._early, self._begun_s = RecentMessages(DAY_S, MOST_WAITING), time.monotonic()
        self._skipped = set()  # (topic, type) that was told
        inputs = {'audio', AUDIO_INFO, STATE}  # who listened heard by STATE what the robot said
        for camera in cameras_of(options.cameras) or ('',):
            inputs.update(camera_topics(camera).values())
        if options.bag:
            self._recording = Recording(options.bag, definitions())
            self._recorded = {TOPIC, *(inputs if options.inputs else ())}
            self.get_logger().info(f'recording to {Path(options.bag).resolve()}')
        if options.keep_s:
            self._saver = BagSaver(self, options.keep_s, options.keep_mib, definitions)
            self._topics = {TOPIC, STATUS, *inputs}
            self.get_logger().info(
                f'keeping the newest {options.keep_s:g} s in at most {options.keep_mib} MiB; '
                '~/save_bag writes them to a bag'
            )
        self._topics |= self._recorded
        self._recorded = {self.resolve_topic_name(name) for name in self._recorded}
        # Steady: simulated time may not run yet.
        self.create_timer(LOOK_PERIOD_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._look()

    def destroy_node(self):
        """Close the file; rclpy also calls this when it is shut down from code."""
        saver, self._saver = self._saver, None
        if saver is not None:
            saver.close(ENDING_S)
        if self._recording is not None:
            self._take_early(0)  # there has been no other time
            recording, self._recording = self._recording, None
            try:
                recording.close()
            except OSError as error:
                # To nobody's log: a signal has ended ROS by now.
                text = (
                    f'the end of the bag is not written: {why(error)}. It can be read up to there'
                )
                print(f'recorder: {text}', file=sys.stderr)
        super().destroy_node()

    def _look(self) -> None:
        """Subscribe to the topics published by now, with their type and quality of service."""
        self._look_at_time()
        if self._saver is not None:
            self._saver.expire()
        for name in self._topics:
            topic = self.resolve_topic_name(name)
            publishers = self.get_publishers_info_by_topic(topic)
            types = self._message_types(topic, publishers)
            if not types:
                continue
            qos, kinds = fitting(publishers), list(types)
            kind = kinds[0]
            if topic in self._open:
                source = self._open[topic]
                kind = type_among(kinds, source.kind, time.monotonic() - source.newest_s)
                if kind == source.kind and not asks_more(source.subscription.qos_profile, qos):
                    continue
                del self._open[topic]  # a driver has come anew
                self.destroy_subscription(source.subscription)
            holds = name == AUDIO_INFO or qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
            take = partial(self._take, topic, kind, holds)
            subscription = self.create_subscription(types[kind], topic, take, qos, raw=True)
            self._open[topic] = RecordedTopic(subscription, kind, time.monotonic())

    def _message_types(self, topic: str, publishers: list) -> dict:
        """Return {type: class} of what is published and can be read; log what cannot, once."""
        found = {}
        for kind in sorted({info.topic_type for info in publishers}):
            try:
                found[kind] = message_class(kind)
            except InputError as error:
                if (topic, kind) not in self._skipped:
                    self._skipped.add((topic, kind))
                    self.get_logger().warning(f'{topic} is not recorded: {error}')
        return found

    def _look_at_time(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if now_ns:
            self._take_early(now_ns)
            self._tell(self._time.why_torn(self))
        elif time.monotonic() - self._begun_s >= PATIENCE_S:
            self._tell(
                f'nothing is recorded yet: {no_clock(self)}. Until then the newest '
                f'{MOST_WAITING >> 20} MiB wait'
            )

    def _take(self, topic: str, kind: str, holds: bool, data: bytes) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if topic in self._open:
            self._open[topic].newest_s = time.monotonic()
        message = KeptMessage(topic, kind, now_ns, bytes(data), holds)
        if not now_ns:  # simulated time has not begun
            self._early.add(message)
            return
        self._time.goes_back(now_ns)
        self._take_early(now_ns)
        self._record(message)

    def _take_early(self, now_ns: int) -> None:
        """Record what came before simulated time began, as if it came now."""
        early, self._early = self._early, RecentMessages(DAY_S, MOST_WAITING)
        for message in early.since():
            self._record(message._replace(log_ns=now_ns))

    def _record(self, message: KeptMessage) -> None:
        if message.topic in self._recorded:
            self._write(message.topic, message.kind, message.log_ns, message.data)
        if self._saver is not None:
            self._tell(self._saver.take(message))

    def _write(self, topic: str, kind: str, now_ns: int, data: bytes) -> None:
        if self._recording is None:
            return
        try:
            self._recording.write(topic, kind, now_ns, data)
        except OSError as error:
            self._is_short = True
            waiting_mib = self._recording.waiting / MIB
            self._tell(
                f'nothing more can be written: {why(error)}. The bag can be read up to here; '
                f'{waiting_mib:.1f} MiB wait for room, {self._recording.lost} messages are lost'
            )
            return
        if self._is_short:
            self._is_short = False
            self.get_logger().warning(
                f'recording goes on; {self._recording.lost} messages are lost until now'
            )

    def _tell(self, text: str) -> None:
        if text and self.context.ok() and self._throttle.allows(text.partition(':')[0]):
            self.get_logger().error(text)


def why(error: OSError) -> str:
    """Return why a file cannot be written."""
    return shortage(error) or error.strerror or str(error)


def fitting(publishers) -> QoSProfile:
    """Return a quality of service that all publishers offer."""
    offered = [info.qos_profile for info in publishers]
    reliable = all(qos.reliability == QoSReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=256,
        reliability=QoSReliabilityPolicy['RELIABLE' if reliable else 'BEST_EFFORT'],
        durability=QoSDurabilityPolicy['TRANSIENT_LOCAL' if latched else 'VOLATILE'],
    )


def asks_more(asked: QoSProfile, offered: QoSProfile) -> bool:
    """Return whether a subscription asks for more than is offered, and so gets nothing."""
    is_reliable = asked.reliability == QoSReliabilityPolicy.RELIABLE
    is_latched = asked.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
    return (is_reliable and offered.reliability != asked.reliability) or (
        is_latched and offered.durability != asked.durability
    )


def message_class(kind: str):
    """Return the class of a message type such as sensor_msgs/msg/Image, or raise InputError."""
    if kind in (*AUDIO_TYPES, INFO_TYPE):  # of two packages of one name
        message_type, problem = installed_type(kind)
        if problem:
            raise InputError(problem)
        return message_type
    try:
        package, _, name = kind.split('/')
        message_type = getattr(importlib.import_module(f'{package}.msg'), name)
        check_for_type_support(message_type)
    except Exception as error:  # of the import, of rclpy or of the loader
        raise InputError(f'{kind} cannot be taken: {error!r}. Install its package') from error
    return message_type


def definitions() -> dict:
    """Return the definitions of message types that not every ROS 2 has, for a Recording."""
    own = Path(get_package_share_directory('minicpmo_ros')) / 'msg'
    # An answer holds notes.
    files = [own / f'{name}.msg' for name in ('Answer', 'Note', 'SpeakerState', 'Status')]
    # Of two packages of this name, the one that is installed.
    files += (Path(get_package_share_directory('audio_common_msgs')) / 'msg').glob('*.msg')
    return {
        f'{file.parents[1].name}/msg/{file.stem}': file.read_text(encoding='utf-8')
        for file in sorted(files)
    }


def main(args=None) -> int:
    """Record until a signal ends it."""
    return run(lambda: [Recorder()], args)


if __name__ == '__main__':
    raise SystemExit(main())
