# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures shared by all tests."""

import gc
import os
import sys
from dataclasses import replace

from minicpmo_ros.process import prepare

prepare()
# Each worker imports all tests, and they start some two hundred Pythons: not all compile anew.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False

import numpy as np  # noqa: E402
import pytest  # noqa: E402

FIRST = 'test_day_of_a_robot'
WAIT_MOSTLY = ('test_package', 'test_ros_', 'test_launch', 'test_demo', 'test_tutorial')


def pytest_collection_modifyitems(items):
    """Begin with the day of a robot: where that fails, nothing else matters.

    Then come the files that mostly wait for processes: side by side they cost little time.
    """

    def rank(item) -> int:
        name = item.path.name
        return 0 if name.startswith(FIRST) else 1 if name.startswith(WAIT_MOSTLY) else 2

    items.sort(key=rank)


def pytest_collection_finish():
    """Leave what the collection made out of each later search for garbage."""
    gc.freeze()


@pytest.fixture
def rng():
    """Give a generator with a fixed seed."""
    return np.random.default_rng(20)


@pytest.fixture(scope='session')
def tiny_model_dir(tmp_path_factory):
    """Give a directory with a complete tiny model of random weights (seed 1, f16)."""
    from minicpmo_ros.synthetic.model import write_model

    directory = tmp_path_factory.mktemp('models') / 'tiny'
    write_model(directory, 'tiny', seed=1)
    return directory


@pytest.fixture(scope='module')
def model(tiny_model_dir):
    """The language model of the tiny model."""
    from minicpmo_ros.llm.model import LanguageModel

    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    yield model
    model.close()


@pytest.fixture(scope='module')
def one_layer(tmp_path_factory):
    """A language model of one layer: a cell holds what its own row says, no more.

    So what later logits owe to a second is owed to its cells alone. In deeper models the cells of
    younger seconds were computed with the older ones in sight and keep that.
    """
    from minicpmo_ros.llm.model import LanguageModel
    from minicpmo_ros.synthetic.model import SHAPES, write_llm

    path = tmp_path_factory.mktemp('one_layer') / 'llm.gguf'
    write_llm(path, replace(SHAPES['tiny'], llm_layers=1))
    model = LanguageModel.load(path)
    yield model
    model.close()


@pytest.fixture(scope='session')
def ros_domain():
    """Isolate this run: a domain of its own, loopback only, no shared memory."""
    from ros_graph import PROFILE, claim_domain

    domain, lock = claim_domain()
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(PROFILE)
    # Or our programs set LOCALHOST, with which DDS shares memory: killed, they leave files.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'SUBNET'
    yield domain
    lock.close()


@pytest.fixture(scope='module')
def ros(ros_domain):
    """Initialise rclpy for all tests of a file."""
    import rclpy

    rclpy.init()
    yield
    rclpy.shutdown()


@pytest.fixture
def graph(ros, tmp_path, request):
    """Give a `Graph` in a namespace of this test's own; its processes end with the test."""
    from ros_graph import Graph

    graph = Graph(tmp_path, f'/t{abs(hash(request.node.name)) % 10**8}')
    yield graph
    graph.close()


@pytest.fixture
def spun(graph):
    """Give a function that has a node spun until the test is over."""
    nodes = []

    def spin(node):
        nodes.append(node)
        graph.own_executor.add_node(node)
        return node

    yield spin
    for node in nodes:
        graph.own_executor.remove_node(node)
        node.destroy_node()


@pytest.fixture(scope='module')
def shared_graph(ros, tmp_path_factory, request):
    """Give a `Graph` for all tests of a file, which share its processes."""
    from ros_graph import Graph

    name = request.module.__name__
    graph = Graph(tmp_path_factory.mktemp(name), f'/t{abs(hash(name)) % 10**8}')
    yield graph
    graph.close()


@pytest.fixture
def serve(tmp_path):
    """Give a function that writes a video and serves it; its servers end with the test."""
    from rtsp_camera import RtspServer, write_video

    servers = []

    def start(images, samples, codec='libx264', credentials=''):
        write_video(tmp_path / 'camera.mkv', images, samples, codec)
        servers.append(RtspServer(tmp_path / 'camera.mkv', credentials))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
