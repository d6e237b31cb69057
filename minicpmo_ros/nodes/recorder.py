# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `recorder`: writes the answers of the live graph into a bag, alone or with its input.

The bag is one MCAP file that ros2 bag and rosbags read. Messages are written as they come, stamped
in the node's time; a killed recording can be read up to its end.
"""

import importlib
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.type_support import check_for_type_support

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.recording import Recording
from minicpmo_ros.nodes.audio_input import INFO_TYPE, SOUND_TYPES, installed_type
from minicpmo_ros.nodes.parameters import Parameter, ParameterTable
from minicpmo_ros.nodes.spinning import run

LOOK_PERIOD_S = 0.5
ANSWER, TOPIC = 'minicpmo_ros/msg/Answer', 'llm/answer'
INPUTS = ('image', 'image/compressed', 'audio', 'audio_info')
PARAMETERS = (
    Parameter('bag', '', 'File to write, such as answers.mcap; it is never written over'),
    Parameter('inputs', False, 'Record pictures and sound too'),
)


class Recorder(Node):
    """See the module."""

    def __init__(self):
        super().__init__('recorder')
        options = ParameterTable(self, PARAMETERS).values()
        if not options.bag:
            raise InputError('parameter bag is empty; give a file to write: -p bag:=FILE.mcap')
        self._recording = Recording(options.bag, definitions())
        self._open, self._topics = {}, (TOPIC, *(INPUTS if options.inputs else ()))
        self._skipped = set()  # (topic, type) that was told
        # Steady: simulated time may not run yet.
        self.create_timer(LOOK_PERIOD_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._look()
        self.get_logger().info(f'recording to {Path(options.bag).resolve()}')

    def destroy_node(self):
        """Close the file."""
        if hasattr(self, '_recording'):
            self._recording.close()
        super().destroy_node()

    def _look(self) -> None:
        """Subscribe to what is published by now, as it is published."""
        for name in self._topics:
            topic = self.resolve_topic_name(name)
            publishers = self.get_publishers_info_by_topic(topic)
            if topic in self._open or not publishers:
                continue
            kind = publishers[0].topic_type
            try:
                message_type = message_class(kind)
            except InputError as error:
                if (topic, kind) not in self._skipped:
                    self._skipped.add((topic, kind))
                    self.get_logger().warning(f'{topic} is not recorded: {error}')
                continue
            self._open[topic] = self.create_subscription(
                message_type,
                topic,
                lambda data, topic=topic, kind=kind: self._write(topic, kind, data),
                fitting(publishers),
                raw=True,
            )

    def _write(self, topic: str, kind: str, data: bytes) -> None:
        self._recording.write(topic, kind, self.get_clock().now().nanoseconds, data)


def fitting(publishers) -> QoSProfile:
    """Give a quality of service that all publishers offer."""
    offered = [info.qos_profile for info in publishers]
    reliable = all(qos.reliability == QoSReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=256,
        reliability=QoSReliabilityPolicy['RELIABLE' if reliable else 'BEST_EFFORT'],
        durability=QoSDurabilityPolicy['TRANSIENT_LOCAL' if latched else 'VOLATILE'],
    )


def message_class(kind: str):
    """Give the class of a message type such as sensor_msgs/msg/Image; InputError without it."""
    if kind in (*SOUND_TYPES, INFO_TYPE):  # of two packages of one name
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
    """Give the definitions of what is not in every ROS 2, for a Recording."""
    files = [Path(get_package_share_directory('minicpmo_ros')) / 'msg' / 'Answer.msg']
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
