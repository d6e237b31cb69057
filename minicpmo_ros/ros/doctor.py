# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Checks the running graph for `minicpmo doctor`: sources, types, mismatches, our nodes."""

import math
import re
import time
from functools import partial
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.exceptions import NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from minicpmo_ros.config import NODES
from minicpmo_ros.errors import FAIL, OK, WARN, Finding, judged
from minicpmo_ros.ros.audio_input import (
    AUDIO_TYPES,
    INFO_TYPE,
    NEED_INFO,
    installed_type,
)
from minicpmo_ros.ros.framework.main import told_termination
from minicpmo_ros.ros.framework.topics import qos_mismatches
from minicpmo_ros.ros.launch.process_specs import info_topic

RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
OUTPUTS = ('streaming_encoder/embedding', 'vision_encoder/embedding', 'llm/answer',
           'llm/answer_delta', 'llm/status')  # fmt: skip
LEVELS = {DiagnosticStatus.WARN: WARN, DiagnosticStatus.ERROR: FAIL}
SEGMENT_BYTES = 512 * 1024  # of shared memory that Fast DDS sets aside for what a process sends
COMPRESS = (
    'Publish compressed images (image_transport), or start the camera with '
    'FASTDDS_DEFAULT_PROFILES_FILE=.../share/minicpmo_ros/config/fastdds_large_images.xml, or '
    'both ends with FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA'
)
NO_SOURCE = 'Start the driver, or give the name that it has'


def look(
    namespace: str,
    images: list,
    audio: str,
    audio_info: str,
    wait_s: float,
    expects: bool = False,
    transports: str = '',
    profile: str = '',
) -> list:
    """Return the findings; `audio` and `audio_info` are the launch arguments.

    `images`: the topic of each camera, without /compressed.
    `expects`: sources and nodes that are not there are failures. `transports` and `profile`: what
    the environment tells Fast DDS, where processes are started from it.
    """
    try:
        rclpy.init(args=[])
    except Exception as error:  # whatever the middleware raises
        remedy = 'Look at ROS_DOMAIN_ID, RMW_IMPLEMENTATION and the log above'
        return [Finding('topics', FAIL, f'ROS cannot be started: {error}', remedy)]
    try:
        with told_termination():
            graph = _Graph(namespace, images, audio, audio_info or info_topic(audio))
            graph.wait(wait_s)
            found = [
                *graph.check_images(expects, math.inf if transports else segment_bytes(profile)),
                *graph.check_audio(expects),
                *graph.ends(),
                *graph.nodes(expects),
            ]
            graph.close()
            return found
    except NameValidationException as error:
        return [Finding('topics', FAIL, str(error), 'Correct the name')]
    finally:
        rclpy.try_shutdown()


def segment_bytes(profile: str) -> int:
    """Return how much shared memory a process has for what it sends, by its Fast DDS profile."""
    try:
        found = re.findall(r'<segment_size>\s*(\d+)\s*<', Path(profile).read_text())
    except (OSError, ValueError):
        found = []
    return max(map(int, found), default=SEGMENT_BYTES)


class _Graph:
    """The graph as seen by a node of our own."""

    def __init__(self, namespace: str, images: list, audio: str, audio_info: str):
        self._node = Node('minicpmo_doctor', namespace=namespace, start_parameter_services=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        resolve = self._node.resolve_topic_name
        self._cameras = [(resolve(image), resolve(f'{image}/compressed')) for image in images]
        self._audio, self._info = resolve(audio), resolve(audio_info)
        self._sizes = {}  # {topic: bytes of its largest image until now}
        self._told = {}  # {node: its newest DiagnosticStatus}
        self._node.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=100)
        )

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()

    def wait(self, wait_s: float) -> None:
        """Spin for `wait_s`, so that the graph becomes known."""
        end_s = time.monotonic() + wait_s
        while time.monotonic() < end_s:
            self._measure_images()
            self._executor.spin_once(timeout_sec=0.1)

    def _measure_images(self) -> None:
        """Subscribe to the images that are published by now, to learn how large they are."""
        for raw, compressed in self._cameras:
            self._measure(raw, Image, RAW)
            self._measure(compressed, CompressedImage, COMPRESSED)

    def _measure(self, topic: str, kind: type, name: str) -> None:
        ends = self._node.get_publishers_info_by_topic(topic)
        if topic not in self._sizes and any(end.topic_type == name for end in ends):
            self._sizes[topic] = 0
            note = partial(self._note_size, topic)
            self._node.create_subscription(kind, topic, note, qos_profile_sensor_data, raw=True)

    def _note_size(self, topic: str, data: bytes) -> None:
        self._sizes[topic] = max(self._sizes[topic], len(data))

    def check_images(self, expects: bool, most_bytes: float) -> list:
        """Check the topics of the cameras; `most_bytes`: of an image its sender has room for."""
        return [
            finding
            for topics in self._cameras
            for finding in self._check_camera(*topics, expects, most_bytes)
        ]

    def _check_camera(self, raw_topic, compressed_topic, expects: bool, most_bytes: float) -> list:
        raw, compressed = (
            self._node.get_publishers_info_by_topic(topic)
            for topic in (raw_topic, compressed_topic)
        )
        wrong = _of_other_types(raw_topic, raw, RAW)
        wrong += _of_other_types(compressed_topic, compressed, COMPRESSED)
        if wrong or not raw + compressed:
            return wrong or [_missing('images', (compressed_topic, raw_topic), expects)]
        name = compressed_topic if compressed else raw_topic
        size, unknown = self._sizes.get(name, 0), SEGMENT_BYTES + 1 if not compressed else 0
        told = f', {size / 1e3:.0f} kB each' if size else ''
        return [
            judged(
                'images',
                f'{name} by {_names(compressed or raw)}{told}',
                (
                    len(compressed or raw) > 1,
                    WARN,
                    'Images of several cameras are mixed: remap all but one away, or name them '
                    'with parameter cameras',
                ),
                (
                    (size or unknown) > most_bytes,
                    WARN,
                    f'Of images above {most_bytes / 1024:.0f} KiB hardly any arrive through the '
                    f'shared memory that Fast DDS sets aside. {COMPRESS}',
                ),
            )
        ]

    def check_audio(self, expects: bool) -> list:
        """Check the microphone's topics."""
        ends = self._node.get_publishers_info_by_topic(self._audio)
        if not ends:
            return [_missing('audio', (self._audio,), expects)]
        types = sorted({end.topic_type for end in ends})
        taken = next((name for name in AUDIO_TYPES if name in types), None)
        fact = f'{self._audio} by {_names(ends)} as {", ".join(types)}'
        if taken is None:
            remedy = f'The streaming_encoder takes {", ".join(AUDIO_TYPES)}: remap the name'
            return [Finding('audio', FAIL, fact, remedy)]
        _, problem = installed_type(taken)
        infos = self._node.get_publishers_info_by_topic(self._info)
        is_told = any(end.topic_type == INFO_TYPE for end in infos)
        return [
            judged(
                'audio',
                fact,
                (bool(problem), FAIL, problem),
                (
                    taken in NEED_INFO and not is_told,
                    WARN,
                    f'Nobody publishes {INFO_TYPE} on {self._info}, so set audio.sample_rate of '
                    'the streaming_encoder, or remap audio_info',
                ),
                (
                    len(ends) > 1,
                    WARN,
                    'Audio of several microphones is mixed: remap all but one away',
                ),
            )
        ]

    def ends(self) -> list:
        """Check for publishers and subscriptions whose quality of service does not match."""
        topics = [topic for pair in self._cameras for topic in pair] + [self._audio, self._info]
        topics += map(self._node.resolve_topic_name, OUTPUTS)
        found = [
            Finding('qos', FAIL, fact, remedy)
            for topic in topics
            for fact, remedy in qos_mismatches(self._node, topic)
        ]
        return found or [Finding('qos', OK, 'all ends that are there fit each other')]

    def nodes(self, expects: bool) -> list:
        """Check our nodes, and their own diagnostics."""
        namespace = self._node.get_namespace()
        there = [
            name
            for name, where in self._node.get_node_names_and_namespaces()
            if where == namespace and name in NODES
        ]
        missing = [name for name in NODES if name not in there]
        twice = sorted({name for name in there if there.count(name) > 1})
        found = [
            judged(
                'nodes',
                f'{", ".join(sorted(set(there))) or "none of ours"} in {namespace}',
                (
                    bool(missing) and (expects or bool(there)),
                    FAIL if expects else WARN,
                    f'Not there: {", ".join(missing)}. ros2 launch minicpmo_ros live.launch.py, '
                    'or give another --namespace',
                ),
                (
                    bool(twice),
                    FAIL,
                    f'{", ".join(twice)} is there more than once: end all but one',
                ),
            )
        ]
        prefix = namespace.strip('/')
        for name in NODES:
            entry = self._told.get(f'{prefix}/{name}'.strip('/'))
            if name in there and entry is not None and entry.level in LEVELS:
                found.append(Finding(name, LEVELS[entry.level], entry.message, 'See its log'))
        return found

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for entry in array.status:
            self._told[entry.name.split(':')[0]] = entry


def _of_other_types(topic: str, ends: list, wanted: str) -> list:
    """Return a Finding for each publisher of images of another type than the wanted one."""
    return [
        Finding(
            'images',
            FAIL,
            f'{topic} is published by {_names([end])} as {end.topic_type}',
            f'The vision_encoder takes {wanted} there: remap the name',
        )
        for end in ends
        if end.topic_type != wanted
    ]


def _missing(check: str, topics: tuple, expects: bool) -> Finding:
    fact = f'nobody publishes {" or ".join(topics)}'
    return Finding(check, FAIL, fact, NO_SOURCE) if expects else Finding(check, OK, f'{fact} now')


def _names(ends: list) -> str:
    return ', '.join(sorted({f'{end.node_namespace.rstrip("/")}/{end.node_name}' for end in ends}))
