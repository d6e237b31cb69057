# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Quality of service: every topic's by parameter, and ends that do not fit are told with facts."""

import re

import pytest
from rcl_interfaces.msg import Log
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from ros_graph import TIMEOUT_S
from ros_source import FIRST, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.msg import Answer, ImageEmbedding
from minicpmo_ros.nodes.managed import ManagedNode
from minicpmo_ros.nodes.polling import Poller

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
    graph.statuses.clear()
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', proposed)
    graph.wait_ready()
    assert graph.ask('?', max_tokens=1).success
    graph.spin_until(lambda: answers, 'the answer')


@pytest.mark.parametrize('policy, value', [('reliability', 'perhaps'), ('depth', 'many')])
def test_a_quality_that_there_is_not_is_refused_in_words(graph, tiny_model_dir, policy, value):
    name = f'qos_overrides.{graph.namespace}/llm/answer.publisher.{policy}'
    process = graph.start('llm', '-p', f'{name}:={value}', '-p', f'model_dir:={tiny_model_dir}')
    assert process.popen.wait(TIMEOUT_S) == 1
    assert 'qos_overrides' in process.log and 'best_effort' in process.log
    assert 'Traceback' not in process.log


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
