# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The llm node tells what an answer rests on, and drops what nobody waits for."""

import itertools
import os
import signal
import subprocess
import sys

import pytest
from ros_graph import DATA, LONG, PROFILE
from ros_source import FIRST, Source
from std_srvs.srv import Trigger
from test_ros_live import play

from minicpmo_ros.msg import Answer
from minicpmo_ros.srv import Ask

NEEDS_EVIDENCE = ('--params-file', str(DATA / 'not_blind.yaml'))


@pytest.fixture(scope='module')
def process(shared_graph, tiny_model_dir):
    """Start `live` with a tiny model that answers only about what it has seen or heard."""
    process = shared_graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}',
        '-p', 'max_tokens:=24000', '-p', 'n_ctx:=32768', '-p', 'max_waiting:=5',
        *NEEDS_EVIDENCE, *shared_graph.lossless,
    )  # fmt: skip
    shared_graph.wait_ready()
    yield process
    assert process.end() == 0
    assert 'Traceback' not in process.log


@pytest.fixture(scope='module')
def scene(shared_graph, process):
    """Give a function that shows so many seconds to an empty window; it returns the first."""
    source, begins = Source(shared_graph), itertools.count(FIRST, 1000)
    source.wait_heard()

    def show(count: int) -> int:
        assert shared_graph.reset().success
        first = next(begins)
        play(shared_graph, source, count, first)
        return first

    show.source = source
    return show


@pytest.fixture
def dropped(shared_graph, process):
    """Give a function that tells how many questions were dropped in this test."""
    before = shared_graph.status.questions_dropped
    return lambda: shared_graph.status.questions_dropped - before


@pytest.fixture
def graph(shared_graph, process):
    """Give the graph of `live`; what a test has asked ends with it."""
    yield shared_graph
    assert shared_graph.reset().success
    shared_graph.spin_until(lambda: _open(shared_graph) == 0, 'no question')


def test_a_question_about_nothing_is_refused_in_words(graph):
    for fields in ({}, {'choices': ['yes', 'no']}):
        reply = graph.ask('Is the door open?', **fields)
        assert not reply.success and not reply.answer.text
        assert 'Nothing has been seen or heard' in reply.reason
        assert reply.answer.finish == Answer.ERROR and reply.answer.reason == reply.reason
    reply = graph.ask('')
    assert not reply.success and 'no audio' in reply.reason


def test_an_answer_tells_the_newest_second_of_each_sense(graph, scene):
    first = scene(3)
    reply = graph.ask('What is it?', max_tokens=2)
    assert reply.success and not reply.answer.stale
    # `play` has shown one second more, which a busy machine may have read by now.
    ends_s = (first + 3, first + 4)
    assert reply.answer.image_end.sec == reply.answer.audio_end.sec in ends_s
    status = graph.status
    assert status.image_end.sec == status.audio_end.sec in ends_s
    for second in range(first + 4, first + 13):
        scene.source.second(second, picture=False)
    graph.spin_until(lambda: graph.status.audio_end.sec >= first + 12, 'the audio to be read')
    reply = graph.ask('What is it?', max_tokens=2)
    assert reply.success and reply.answer.stale
    assert reply.answer.image_end.sec in ends_s
    assert 'newest image' in reply.reason and 's old' in reply.answer.reason
    graph.spin_until(lambda: 'newest image' in graph.status.stale, 'the status')


def test_what_nobody_waits_for_is_dropped_and_others_are_answered(graph, scene, dropped):
    scene(1)
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    for _ in range(5):
        graph.ask_client.call_async(Ask.Request(question='long', timeout_s=0.2, **LONG))
    graph.spin_until(lambda: dropped() == 5, 'the end of all')
    assert graph.ask('And now?', max_tokens=1).success


CLIENT = """
import rclpy
from minicpmo_ros.srv import Ask
rclpy.init()
node = rclpy.create_node('client', namespace={namespace!r})
client = node.create_client(Ask, 'llm/ask')
client.wait_for_service()
client.call_async(Ask.Request(question='long', grammar={grammar!r}))
rclpy.spin(node)
"""


def test_a_question_whose_asker_left_is_dropped(graph, scene, dropped):
    scene(1)
    graph.destroy_client(graph.ask_client)  # else somebody could still wait
    text = CLIENT.format(namespace=graph.namespace, grammar=LONG['grammar'])
    client = subprocess.Popen([sys.executable, '-c', text], stderr=subprocess.DEVNULL)
    graph.spin_until(lambda: graph.status.answering, 'the question to be answered')
    client.send_signal(signal.SIGINT)  # of a killed one DDS learns after its lease, 20 s
    client.wait()
    graph.spin_until(lambda: dropped() == 1, 'the question to be dropped')
    graph.make_ask_client()


ACTION_CLIENT = """
import rclpy
from rclpy.action import ActionClient
from minicpmo_ros.action import Ask
rclpy.init()
node = rclpy.create_node('client', namespace={namespace!r})
client = ActionClient(node, Ask, 'llm/ask')
client.wait_for_server()
client.send_goal_async(Ask.Goal(question='long', grammar={grammar!r}))
rclpy.spin(node)
"""
LEASE = """<builtin><discovery_config>
<leaseDuration><sec>1</sec></leaseDuration>
<leaseAnnouncement><nanosec>200000000</nanosec></leaseAnnouncement>
</discovery_config></builtin></rtps>"""


def test_of_several_askers_the_questions_of_the_killed_ones_are_dropped(
    graph, scene, dropped, tmp_path
):
    """A killed process leaves the graph when its lease is over: here 1 s, usually 20."""
    scene(1)
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    profile = tmp_path / 'lease.xml'
    profile.write_text(PROFILE.read_text().replace('</rtps>', LEASE))
    clients = []
    for i, text in enumerate((CLIENT, ACTION_CLIENT)):
        code = text.format(namespace=graph.namespace, grammar=LONG['grammar'])
        env = {**os.environ, 'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)}
        clients.append(subprocess.Popen([sys.executable, '-c', code], env=env))
        graph.spin_until(lambda i=i: _open(graph) == i + 1, 'the question to be taken')
    own = graph.ask_client.call_async(Ask.Request(question='long', max_tokens=24_000, **LONG))
    graph.spin_until(lambda: _open(graph) == 3, 'our own question to be taken')
    for client in clients:
        client.kill()
        client.wait()
    graph.spin_until(lambda: dropped() == 2, 'both to be dropped')
    graph.spin_until(lambda: graph.status.answering and not graph.status.waiting, 'our own turn')
    assert not own.done() and dropped() == 2


def _open(graph) -> int:
    return graph.status.waiting + graph.status.answering


def test_a_reset_ends_all_questions(graph, scene):
    scene(1)
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    asked = [graph.ask_client.call_async(Ask.Request(question='?', **LONG)) for _ in range(3)]
    graph.spin_until(lambda: graph.status.waiting == 2, 'the questions to wait')
    reset = graph.create_client(Trigger, 'llm/reset')
    graph.spin_until(reset.service_is_ready, 'the reset')
    assert graph.result_of(reset.call_async(Trigger.Request()), 'the reset').success
    for future in asked:
        reply = graph.result_of(future, 'the end')
        assert not reply.success and '~/reset' in reply.reason
