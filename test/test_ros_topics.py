# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Quality of service: every topic's by parameter, and ends that do not fit are told with facts."""

import re
import threading

import pytest
from rcl_interfaces.msg import Log, ParameterEvent
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from ros_source import FIRST, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.msg import Answer, ImageEmbedding
from minicpmo_ros.ros.framework.lifecycle import ManagedNode
from minicpmo_ros.ros.framework.threads import Poller
from minicpmo_ros.ros.framework.topics import Topics, qos_problem
from minicpmo_ros.ros.live import make_nodes

BEST_EFFORT = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=5, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


def suggestion(process, topic) -> str:
    """Give the parameter that the node's warning proposes for a topic."""
    return re.search(rf'start this node with (qos_overrides\.{topic}\.\S+)', process.log).group(1)


def test_an_input_that_does_not_fit_is_told_and_the_proposal_mends_it(graph, tiny_model_dir):
    topic = f'{graph.namespace}/image/compressed'
    reliable = ('-p', f'qos_overrides.{topic}.subscription.reliability:=reliable')
    camera = graph.create_publisher(CompressedImage, topic, BEST_EFFORT)
    process = graph.start('vision_encoder', '-p', f'model_dir:={tiny_model_dir}', *reliable)
    graph.spin_until(lambda: 'nothing comes from there' in process.log, 'the warning')
    for fact in (topic, f'{graph.namespace}/tester', 'best_effort', 'reliable'):
        assert fact in process.log
    proposed = suggestion(process, topic)
    assert process.end() == 0
    seen = []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 10)
    mended = graph.start('vision_encoder', '-p', f'model_dir:={tiny_model_dir}', '-p', proposed)
    message = CompressedImage(format='jpeg')
    message.data.frombytes(jpeg(picture_of(1)))

    def show():
        message.header.stamp = time_of((message.header.stamp.sec or FIRST) * 10**9 + 10**9)
        camera.publish(message)

    graph.spin_until(lambda: seen or show(), 'a picture')
    assert 'nothing comes from there' not in mended.log


def test_an_output_that_does_not_fit_is_told_and_the_proposal_mends_it(graph, tiny_model_dir):
    topic = f'{graph.namespace}/llm/answer'
    answers = []
    graph.create_subscription(Answer, topic, answers.append, LATCHED)
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.spin_until(lambda: 'nothing arrives there' in process.log, 'the warning')
    for fact in (topic, f'{graph.namespace}/tester', 'transient_local', 'volatile'):
        assert fact in process.log
    proposed = suggestion(process, topic)
    assert process.end() == 0
    graph.forget_statuses()
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', proposed)
    graph.wait_ready()
    assert graph.ask('?', max_tokens=1).success
    graph.spin_until(lambda: answers, 'the answer')


WRONG = {
    'reliability': ('perhaps', 'reliable or best_effort'),
    'durability': ('1', 'volatile or transient_local'),
    'history': ('[keep_last]', 'keep_last or keep_all'),
    'depth': ('-1', 'an integer from 0 to'),
    'deadline': ('1', 'is no policy; taken are history, depth, reliability, durability'),
}
TOPICS = {
    'streaming_encoder': ('audio', 'audio_info', 'streaming_encoder/embedding!'),
    'vision_encoder': ('image', 'image/compressed'),
    'llm': ('audio_embedding', 'llm/answer!', 'llm/status!', '/diagnostics!'),
}


@pytest.mark.parametrize('node', TOPICS)
def test_a_quality_that_there_is_not_is_refused_when_the_node_is_configured(
    graph, tiny_model_dir, node
):
    wrong = {  # parameter: (what it is, what it takes)
        f'qos_overrides.{graph.resolve_topic_name(topic.rstrip("!"))}.{end}.{policy}': given
        for topic in TOPICS[node]
        for end in ('publisher' if topic.endswith('!') else 'subscription',)
        for policy, given in WRONG.items()
    }
    given = [part for name, (value, _) in wrong.items() for part in ('-p', f'{name}:={value}')]
    process = graph.start(
        node, *given, '-p', f'model_dir:={tiny_model_dir}', '-p', 'autostart:=false'
    )
    assert not graph.change_state(node, 'configure')
    assert graph.lifecycle_state(node) == 'unconfigured'
    for name, (_, taken) in wrong.items():
        assert name in process.log and taken in process.log[process.log.index(name) :], name
    assert process.end() == 0 and 'Traceback' not in process.log


def test_a_wrong_quality_of_another_s_topic_is_left_to_that_one(graph, tiny_model_dir):
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}',
        '-p', f'qos_overrides.{graph.namespace}/image.subscription.depth:=many',
        '-p', 'qos_overrides./scan.subscription.deadline:=5',
    )  # fmt: skip
    graph.wait_ready()
    graph.spin_until(lambda: "depth is 'many'" in process.log, 'the words')
    assert graph.lifecycle_state('vision_encoder') == 'unconfigured'
    assert graph.lifecycle_state('streaming_encoder') == 'active'
    assert 'scan' not in process.log


def test_parameters_of_quality_of_service_are_checked_by_name_and_value():
    assert not qos_problem('n_ctx', 'anything') and not qos_problem(
        'qos_overrides./a/b.publisher.depth', 0
    )
    for value in (1.0, True, None, -1, 10**9, '5', [1]):
        assert 'it takes an integer' in qos_problem('qos_overrides./a.subscription.depth', value)
    for value in ('RELIABLE', 'best_effort', 'system_default'):
        assert not qos_problem('qos_overrides./a.subscription.reliability', value)
    assert 'whole name of the topic' in qos_problem('qos_overrides.image.subscription.depth', 5)
    assert "is 'subscriber'" in qos_problem('qos_overrides./a.subscriber.depth', 5)


def test_what_cannot_be_taken_is_told_and_ends_no_reading(graph):
    taken, logs, topic = [], [], f'{graph.namespace}/picture'
    graph.create_subscription(Log, '/rosout', logs.append, 100)
    camera = graph.create_publisher(CompressedImage, topic, 10)
    node = ManagedNode('reader')
    poller = Poller(node)
    try:
        subscription = poller.subscribe(CompressedImage, topic, taken.append, QoSProfile(depth=10))
        subscription.msg_type = object  # of which rclpy can make no message
        graph.spin_until(lambda: any('nothing can be taken' in log.msg for log in logs), 'words')
        assert not taken
        subscription.msg_type = CompressedImage
        graph.spin_until(lambda: camera.publish(CompressedImage()) or taken, 'a message', 20)
    finally:
        poller.close()
        node.destroy_node()


class Reader(Node):
    """A node that has nothing but topics: no timer wakes its executor."""

    def __init__(self):
        super().__init__('reader', start_parameter_services=False, enable_rosout=False)
        self.topics = Topics(self)


def test_what_is_being_read_does_not_count_as_read_yet(graph):
    topic, looks, seen = f'{graph.namespace}/picture', [None], []
    camera, node = graph.create_publisher(CompressedImage, topic, 10), Reader()
    poller = Poller(node, lambda: looks.append(len(looks)) or looks[-1])
    try:
        poller.subscribe(
            CompressedImage, topic, lambda _: seen.append((poller.read_until, looks[-2])),
            QoSProfile(depth=10),
        )  # fmt: skip
        graph.spin_until(camera.get_subscription_count, 'the reader')
        camera.publish(CompressedImage())
        graph.spin_until(lambda: seen, 'the message')
        n_looks = len(looks)
        graph.spin_until(lambda: (poller.read_until or 0) > n_looks, 'further looks')
        assert all(read_until == before for read_until, before in seen)
    finally:
        poller.close()
        node.destroy_node()


class CountingExecutor(SingleThreadedExecutor):
    """Counts how often it makes its wait set, which it does whenever it wakes."""

    watched, wakes = None, 0

    def can_execute(self, entity):
        self.wakes += entity is self.watched
        return super().can_execute(entity)


def test_a_camera_does_not_wake_the_executor(graph):
    topic, n = f'{graph.namespace}/image/compressed', 200
    camera, taken = graph.create_publisher(CompressedImage, topic, QoSProfile(depth=n)), []
    node, executor = Reader(), CountingExecutor()
    poller = Poller(node)
    executor.add_node(node)
    executor.watched = poller.subscribe(CompressedImage, topic, taken.append, QoSProfile(depth=n))
    spinning = threading.Thread(target=executor.spin)
    message = CompressedImage(format='jpeg')
    message.data.frombytes(jpeg(picture_of(1)))
    try:
        graph.spin_until(camera.get_subscription_count, 'the reader')
        spinning.start()
        for i in range(n):
            camera.publish(message)
            if i % 10 == 9:
                graph.spin_until(lambda i=i: len(taken) > i, f'message {i}')
        assert 1 <= executor.wakes <= n // 20  # the graph's, while both ends find each other
    finally:
        executor.shutdown(timeout_sec=0)
        spinning.join()
        poller.close()
        node.destroy_node()


def test_a_misfit_is_told_though_the_middleware_does_not_wake_the_node(graph):
    topic = f'{graph.namespace}/image'
    node = Reader()
    poller = Poller(node)
    try:
        poller.subscribe(CompressedImage, topic, print, QoSProfile(depth=1))
        assert node.topics.problems() == ()
        camera = graph.create_publisher(CompressedImage, topic, BEST_EFFORT)
        graph.spin_until(node.topics.problems, 'the misfit')
        (problem,) = node.topics.problems()
        assert 'reliability best_effort, this node subscribes with reliability reliable' in problem
        graph.destroy_publisher(camera)
        graph.spin_until(lambda: not node.topics.problems(), 'its end')
    finally:
        poller.close()
        node.destroy_node()


def test_an_end_of_rclpy_s_own_that_does_not_fit_is_told_too(graph):
    node = ManagedNode('speaker_of_parameters')
    try:
        graph.create_subscription(ParameterEvent, '/parameter_events', print, LATCHED)
        graph.spin_until(node.topics.problems, 'the misfit')
        (problem,) = node.topics.problems()
        assert 'durability transient_local, this node publishes with durability vol' in problem
        assert problem.endswith('Change it there')  # no parameter of this node changes it
    finally:
        node.destroy_node()


def test_a_misfit_of_another_policy_is_told_by_its_name(graph):
    topic, node = f'{graph.namespace}/image', Reader()
    try:
        node.topics.publish(CompressedImage, topic, QoSProfile(depth=1))
        wanted = QoSProfile(depth=1, deadline=Duration(seconds=1))
        graph.create_subscription(CompressedImage, topic, print, wanted)
        graph.spin_until(node.topics.problems, 'the misfit')
        assert f'{graph.namespace}/tester subscribes with deadline' in node.topics.problems()[0]
    finally:
        node.destroy_node()


def waited_for(node) -> list:
    """Give what an executor puts into its wait set for a node."""
    entities = (
        *node.subscriptions, *node.timers, *node.clients, *node.services, *node.guards,
        *node.waitables,
    )  # fmt: skip
    return [entity for entity in entities if entity.callback_group.can_execute(entity)]


def test_the_executor_of_live_looks_at_few_things_when_it_wakes(graph):
    nodes = list(make_nodes())
    try:
        for node in nodes:
            entities = waited_for(node)
            kinds = [type(entity).__name__ for entity in entities]
            assert not [kind for kind in kinds if 'Event' in kind], node.get_name()
            assert kinds.count('Timer') <= 2  # `ticks`, and until it has started `autostart`
            topics = [getattr(entity, 'topic', '') for entity in entities]
            assert topics and 'input_clock' not in topics
        assert 'input_clock' in [subscription.topic for subscription in nodes[-1].subscriptions]
        assert sum(len(waited_for(node)) for node in nodes) <= 70  # 110 with events and timers
    finally:
        for node in nodes:
            node.destroy_node()
