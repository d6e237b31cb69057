# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every executable ends on SIGINT and SIGTERM within two seconds, with exit code 0.

Most other tests of the graph end their nodes by SIGINT and check the same.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix
from ros_graph import LONG, TIMEOUT_S
from ros_source import Source

from minicpmo_ros.action import Ask as AskAction

CLIP = Path(__file__).parent / 'data' / 'scene.mp4'
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NODES = {
    'streaming_encoder': 'streaming_encoder/embedding',
    'vision_encoder': 'vision_encoder/embedding',
    'llm': 'llm/status',
    'live': 'llm/status',
    'media_player': 'audio_info',
}


@pytest.mark.parametrize('executable', NODES)
def test_sigterm_ends_it(graph, tiny_model_dir, executable):
    parameter = f'file:={CLIP}' if executable == 'media_player' else f'model_dir:={tiny_model_dir}'
    process = graph.start(executable, '-p', parameter)
    topic = graph.resolve_topic_name(NODES[executable])
    graph.spin_until(lambda: graph.count_publishers(topic), 'the node')
    assert process.end(signal.SIGTERM) == 0, process.log
    assert 'Traceback' not in process.log


def catches(process, number) -> bool:
    """Say whether the process has a handler for a signal: Python itself takes a while to come."""
    status = Path(f'/proc/{process.popen.pid}/status').read_text()
    caught = next(line for line in status.splitlines() if line.startswith('SigCgt'))
    return bool(int(caught.split()[1], 16) >> number - 1 & 1)


def test_a_signal_at_any_moment_of_the_start_ends_it(graph, tiny_model_dir):
    # While it imports, initialises ROS, makes its nodes, configures, loads and activates.
    for i, moment_s in enumerate((0.0, 0.2, 0.4, 0.55, 0.7, 1.0)):
        process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}')
        graph.spin_until(lambda p=process: catches(p, signal.SIGTERM), 'a handler')
        time.sleep(moment_s)
        if i % 3 == 2:
            process.send(SIGNALS[i % 2])  # an impatient user's
        assert process.end(SIGNALS[(i + 1) % 2]) == 0, (moment_s, process.log)
        assert 'Traceback' not in process.log, (moment_s, process.log)


@pytest.mark.parametrize('wrong', ['/**:\n\tllm: 1', '/**/llm:\n  n_ctx: 4096'])
def test_a_file_of_parameters_that_cannot_be_read_is_told_in_a_sentence(graph, tmp_path, wrong):
    path = tmp_path / 'wrong.yaml'
    path.write_text(wrong)
    process = graph.start('llm', '--params-file', str(path))
    assert process.wait(TIMEOUT_S) == 1
    assert 'the arguments cannot be read' in process.log and str(path) in process.log
    assert 'Traceback' not in process.log


@pytest.mark.parametrize(
    'program',
    [
        (Path(get_package_prefix('minicpmo_ros')) / 'lib/minicpmo_ros/llm',),
        (sys.executable, '-m', 'minicpmo_ros.cli.main', 'status'),
    ],
    ids=['a node', 'a verb'],
)
@pytest.mark.parametrize(
    'changed, words',
    [
        ({'HOME': None, 'ROS_HOME': None, 'ROS_LOG_DIR': None}, 'Set HOME or ROS_LOG_DIR'),
        ({'ROS_DOMAIN_ID': 'four'}, 'ROS_DOMAIN_ID cannot be read'),
    ],
)
def test_what_lacks_in_the_environment_is_told_in_a_sentence(program, changed, words):
    given = {name: value for name, value in os.environ.items() if name not in changed}
    given |= {name: value for name, value in changed.items() if value is not None}
    child = subprocess.run(program, env=given, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert child.returncode == 1 and words in child.stderr and 'Traceback' not in child.stderr


@pytest.mark.parametrize('number', SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_live_in_the_middle_of_an_answer(graph, tiny_model_dir, number):
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=3000')
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    pieces = []
    graph.spin_until(graph.action_client.server_is_ready, 'the action')
    graph.action_client.send_goal_async(AskAction.Goal(question='?', **LONG), pieces.append)
    graph.spin_until(lambda: pieces, 'the first word')
    for second in range(5):
        source.second(second)
    assert process.end(number) == 0, process.log
    assert 'Traceback' not in process.log


STUCK = """
import ctypes, os, signal
from rclpy.node import Node
from minicpmo_ros.ros.framework.main import run

class Stuck(Node):
    def destroy_node(self):
        ctypes.PyDLL(None).sleep(600)  # C that keeps Python from running

def make():
    node = Stuck('stuck')
    node.create_timer(0.01, lambda: os.kill(os.getpid(), signal.SIGINT))
    return [node]

raise SystemExit(run(make))
"""


def test_a_library_that_keeps_python_from_running_does_not_keep_the_process_from_ending():
    child = subprocess.run(
        [sys.executable, '-c', STUCK], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert child.returncode == 1 and 'in destroy_node' in child.stderr


def test_lifecycle_goes_round_and_back(graph, tiny_model_dir):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.wait_ready()
    for _ in range(3):
        assert graph.change_state('llm', 'deactivate')
        refused = graph.ask('?', max_tokens=1)
        assert not refused.success and 'inactive' in refused.reason
        assert f'lifecycle set {graph.namespace}/llm activate' in refused.reason
        graph.spin_until(lambda: 'inactive' in graph.status.reason, 'the status to say so')
        assert graph.change_state('llm', 'activate') and graph.ask('?', max_tokens=1).success
        assert graph.change_state('llm', 'deactivate')
        assert graph.change_state('llm', 'cleanup')
        assert not graph.ask('?', max_tokens=1).success
        assert graph.change_state('llm', 'configure')
        assert graph.change_state('llm', 'activate')
        graph.spin_until(lambda: graph.ask('?', max_tokens=1).success, 'an answer')
    assert graph.change_state('llm', 'shutdown')
    assert process.end() == 0


def test_a_test_that_waits_for_a_process_that_failed_fails_at_once(graph):
    graph.start('llm', '-p', 'n_ctx:=17')
    with pytest.raises(AssertionError, match='ended llm-.* with 1 while the test waited for more'):
        graph.spin_until(lambda: False, 'more')
