# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""/diagnostics of every node: figures, and what to do where something is not as it should be."""

import signal
import sys

import numpy as np
import pytest
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Log
from rclpy.qos import QoSProfile
from ros_source import FIRST, RATE_HZ, Source, jpeg, picture_of, sound_of
from test_ros_live import play

from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding
from minicpmo_ros.ros.framework.diagnostics import RecentIncrease, Report
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.srv import Ask

NODES = ('streaming_encoder', 'vision_encoder', 'llm')
NS = 10**9
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@pytest.fixture
def told(graph):
    """Give {node: its newest DiagnosticStatus}; of this graph's nodes alone."""
    entries = {}

    def take(array):
        for entry in array.status:
            name = '/' + entry.name.split(':')[0]
            if name.startswith(graph.namespace + '/'):
                entries[name.rsplit('/', 1)[1]] = entry

    graph.create_subscription(DiagnosticArray, '/diagnostics', take, QoSProfile(depth=100))
    return entries


def value(entry, key):
    return next(pair.value for pair in entry.values if pair.key == key)


def wait_level(graph, told, node, level, *words):
    """Wait until a node's entry has a level and words."""

    def is_so():
        entry = told.get(node)
        return entry and entry.level == level and all(word in entry.message for word in words)

    graph.spin_until(is_so, f'{node} at level {level} with {words}')
    return told[node]


def test_all_three_say_how_they_are(graph, tiny_model_dir, told):
    graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    for node in NODES[:2]:
        wait_level(graph, told, node, WARN, 'nobody publishes', graph.namespace)
    source = Source(graph)
    source.wait_heard()
    play(graph, source, 3)
    for node in NODES:
        entry = wait_level(graph, told, node, OK)
        assert value(entry, 'state') == 'active'
        assert float(value(entry, 'resident memory [MiB]')) > 10
    audio, pictures = (f'{graph.namespace}/{name}' for name in ('audio', 'image/compressed'))
    for node, key, least in (
        ('streaming_encoder', f'{audio} messages', 16),
        ('vision_encoder', f'{pictures} messages', 4),
        ('vision_encoder', 'seconds published', 3),
        ('llm', 'units read', 3),
    ):
        graph.spin_until(lambda n=node, k=key, m=least: int(value(told[n], k)) >= m, key)
    assert float(value(told['vision_encoder'], f'{pictures} age [s]')) >= 0
    # The source falls silent.
    for node in NODES[:2]:
        wait_level(graph, told, node, WARN, 'nothing has come', 'ros2 topic hz')


def test_what_is_lost_is_told_with_what_to_do(graph, tiny_model_dir, told):
    logs = []
    graph.create_subscription(Log, '/rosout', logs.append, QoSProfile(depth=200))
    graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    graph.spin_until(lambda: set(told) >= set(NODES), 'what there is before')
    lose_sound(graph, source, told)
    lose_a_picture(graph, source, told)
    lose_a_unit(graph, told)
    graph.spin_until(lambda: any('is not read' in log.msg for log in logs), 'the log')
    (log,) = [log for log in logs if 'is not read' in log.msg]  # of two, in the same words
    assert log.level == 30  # WARN
    assert log.name == f'{graph.namespace}/llm'[1:].replace('/', '.')


def lose_sound(graph, source, told):
    """Half a second does not come, two seconds come twice."""
    for i in range(16):
        for _ in range(0 if i in (5, 6) else 2 if i >= 8 else 1):
            source.sound(FIRST * NS + i * NS // 4, sound_of(0)[: RATE_HZ // 4])
    source.sound((FIRST + 4) * NS, sound_of(0)[: RATE_HZ // 4])  # closes the last one
    words = (
        'milliseconds of audio missing in the last 10 s',
        'milliseconds of audio left out in the last 10 s',
    )
    wait_level(graph, told, 'streaming_encoder', WARN, *words, 'reliable', 'two publishers')


def lose_a_picture(graph, source, told):
    """It comes when its second has just been given."""
    seen, eye = [], 'vision_encoder'
    graph.create_subscription(ImageEmbedding, f'{eye}/embedding', seen.append, 50)
    for second in range(FIRST, FIRST + 100, 5):
        for i in range(2):
            source.picture((second + i) * NS, jpeg(picture_of(i)))
        graph.spin_until(lambda s=second: any(m.second == s for m in seen), 'a second')
        source.picture(second * NS + NS * 9 // 10, jpeg(picture_of(0)))
        count = len(seen)
        graph.spin_until(lambda n=count: len(seen) >= n + 2, 'seconds after it')
        if value(told[eye], 'late images') != '0':  # else this machine was too slow
            break
    wait_level(graph, told, eye, WARN, 'late images in the last 10 s', 'stamps of the camera')


def lose_a_unit(graph, told):
    """Twice, the context is too small for it; nobody else tells of seconds meanwhile."""
    assert all(graph.change_state(node, 'deactivate') for node in NODES[:2])
    publisher = graph.create_publisher(AudioEmbedding, 'streaming_encoder/embedding', 10)
    graph.spin_until(publisher.get_subscription_count, 'the llm')
    many = AudioEmbedding(model=graph.status.model, tokens=4_096, width=256)
    many.data.frombytes(bytes(2 * 4_096 * 256))
    for i in range(2):
        many.second = FIRST + 100 + i
        publisher.publish(many)
    graph.spin_until(lambda: graph.status.refused == 2, 'the refusals')
    graph.spin_until(lambda: value(told['llm'], 'too large') == '2', 'both')
    entry = wait_level(graph, told, 'llm', WARN, 'too large in the last 10 s', 'Raise n_ctx')
    assert value(entry, 'refused') == '0' and 'model_dir' not in entry.message


def test_what_keeps_audio_from_being_heard_is_a_warning_until_it_is_mended(
    graph, tiny_model_dir, told
):
    process = graph.start('streaming_encoder', '-p', f'model_dir:={tiny_model_dir}')
    audio = graph.create_publisher(AudioDataStamped, 'audio', 50)
    graph.spin_until(audio.get_subscription_count, 'the ear')
    opposite = (np.outer(sound_of(0), [1, -1]) * 32767).astype('<i2')  # (n, 2)
    message, second = AudioDataStamped(), iter(range(FIRST, FIRST + 10_000))
    message.audio.data.frombytes(opposite.tobytes())

    def is_told(*words):
        message.header.stamp.sec = next(second)
        audio.publish(message)
        entry = told.get('streaming_encoder')
        return entry and entry.level == WARN and all(word in entry.message for word in words)

    graph.spin_until(lambda: is_told('waits for its format', '/audio_info'), 'a warning')
    graph.spin_until(
        lambda: is_told('waits for its format') and 'waits for its format' in process.log,
        'a line in the log',
    )
    info = graph.create_publisher(AudioInfo, 'audio_info', LATCHED)
    info.publish(AudioInfo(channels=2, sample_rate=RATE_HZ, sample_format='S16LE'))
    graph.spin_until(lambda: is_told('cancel each other', 'audio.channel'), 'the next one')
    assert 'waits for its format' not in told['streaming_encoder'].message
    assert process.end() == 0 and process.log.count('cancel each other') == 1


def test_a_channel_is_given_as_a_number_or_a_word(graph, tiny_model_dir):
    for value, what in (('0', 'ready'), ('left', 'allowed are mean')):
        process = graph.start(
            'streaming_encoder', '-p', f'model_dir:={tiny_model_dir}',
            '-p', f'audio.channel:={value}',
        )  # fmt: skip
        graph.spin_until(lambda process=process, what=what: what in process.log, what)
        assert process.end() == 0, process.log


def test_two_nodes_of_one_name_are_told(graph, told):
    for _ in range(2):
        graph.start('llm', '-p', 'autostart:=false')
    wait_level(graph, told, 'llm', WARN, f'2 nodes are named {graph.namespace}/llm', 'namespace')


def test_a_loss_is_a_warning_while_it_is_new():
    now = [0.0]
    recent = RecentIncrease(lambda: now[0])

    def levels(second, count, least=1):
        now[0] = second
        report = Report(recent)
        report.count('lost', count, 'do this', least)
        return [level for level, _ in report.findings]

    assert levels(0, 5) == []  # since when, nobody knows
    assert levels(1, 7) == [WARN]
    assert levels(8, 7) == [WARN]
    assert levels(20, 7) == []
    assert levels(21, 1) == []  # it began anew
    assert levels(22, 2) == [WARN]
    assert levels(23, 100, least=100) == [] and levels(24, 101, least=100) == [WARN]


INJURED = """#!{python}
import os, sys, time
from minicpmo_ros.live.session import Session
from minicpmo_ros.ros.framework.executables import {executable}
real = Session.ask
def ask(self, question, *arguments):
    if question.text == 'abort':
        os.abort()
    if question.text == 'hang':
        time.sleep(3600)
    return real(self, question, *arguments)
Session.ask = ask
sys.exit({executable}())
"""


@pytest.fixture
def injured(graph, tiny_model_dir, tmp_path):
    """Start an llm whose engine aborts and hangs on request."""
    path = tmp_path / 'injured_llm'
    path.write_text(INJURED.format(python=sys.executable, executable='llm'))
    path.chmod(0o755)
    process = graph.start(str(path), '-p', f'model_dir:={tiny_model_dir}', '-p', 'watchdog:=0.5')
    graph.wait_ready()
    return process


def test_an_engine_that_hangs_is_told_and_can_still_be_ended(graph, told, injured):
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    graph.ask_client.call_async(Ask.Request(question='hang'))
    wait_level(graph, told, 'llm', ERROR, 'not come to its end', 'watchdog')
    assert 'watchdog' in injured.log  # once, not each second
    assert graph.lifecycle_state('llm') == 'active'  # the executor goes on
    assert injured.end(signal.SIGTERM) == 0
    assert injured.log.count('watchdog') == 1


def test_an_engine_that_aborts_ends_the_process_and_says_where(graph, injured):
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    graph.ask_client.call_async(Ask.Request(question='abort'))
    graph.spin_until(lambda: not injured.is_running, 'the end')
    assert injured.popen.returncode == -signal.SIGABRT
    assert 'Aborted' in injured.log and 'engine.py' in injured.log
