# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The launch file and the presets.

`launch_ros` comes with a ROS 2 distribution only; there the launch file itself is run. The
other tests run everywhere what it would run: the same executables with the same arguments.
"""

import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import get_package_share_directory
from rcl_interfaces.srv import ListParameters

from minicpmo_ros.nodes.llm import LlmNode
from minicpmo_ros.nodes.streaming_encoder import StreamingEncoder
from minicpmo_ros.nodes.vision_encoder import VisionNode

SHARE = Path(get_package_share_directory('minicpmo_ros'))
PRESETS = sorted((SHARE / 'config').glob('*.yaml'))
NODES = {'streaming_encoder': StreamingEncoder, 'vision_encoder': VisionNode, 'llm': LlmNode}


def preset_parameters(path):
    """Give {node: {parameter: value}} of a preset."""
    sections = yaml.safe_load(path.read_text())
    return {key.removeprefix('/**/'): value['ros__parameters'] for key, value in sections.items()}


def test_the_launch_file_brings_the_graph_up(graph, tiny_model_dir):
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS 2 distribution')
    command = ['ros2', 'launch', 'minicpmo_ros', 'live.launch.py',
               f'namespace:={graph.namespace}', f'model_dir:={tiny_model_dir}']  # fmt: skip
    launched = subprocess.Popen(command, start_new_session=True)
    try:
        graph.wait_ready()
    finally:
        launched.send_signal(signal.SIGINT)
        assert launched.wait(10) == 0


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_live_starts_with_every_preset_as_launched(graph, tiny_model_dir, preset):
    graph.start('live', '--params-file', str(preset), '-p', f'model_dir:={tiny_model_dir}',
                '-p', 'use_sim_time:=false', '--log-level', 'info')  # fmt: skip
    graph.wait_ready()
    graph.spin_until(lambda: set(NODES) <= set(graph.get_node_names()), 'the three nodes')
    for name in ('streaming_encoder/embedding', 'vision_encoder/embedding', 'llm/answer',
                 'llm/answer_delta', 'llm/status'):  # fmt: skip
        topic = f'{graph.namespace}/{name}'
        graph.spin_until(lambda topic=topic: graph.count_publishers(topic), topic)
    for node, given in preset_parameters(preset).items():
        client = graph.create_client(ListParameters, f'{node}/list_parameters')
        graph.spin_until(client.service_is_ready, node)
        reply = graph.result_of(client.call_async(ListParameters.Request()), node)
        assert set(given) <= set(reply.result.names)
        graph.destroy_client(client)
    assert graph.status.context_size >= preset_parameters(preset)['llm']['n_ctx']


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_no_key_that_ros_would_ignore_in_silence(preset):
    for node, given in preset_parameters(preset).items():
        known = {row.name: row for row in NODES[node].PARAMETERS}
        assert set(given) <= set(known)
        for name, value in given.items():
            assert not known[name].problem(value)
            assert type(value) is type(known[name].default)
