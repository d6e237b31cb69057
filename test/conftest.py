# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures shared by all tests."""

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def rng():
    """Give a generator with a fixed seed."""
    return np.random.default_rng(20)


@pytest.fixture(scope='session')
def tiny_model_dir(tmp_path_factory):
    """Give a directory with a complete tiny model of random weights (seed 1, f16)."""
    from minicpmo_ros.models.synthetic import write_model

    directory = tmp_path_factory.mktemp('models') / 'tiny'
    write_model(directory, 'tiny', seed=1)
    return directory


@pytest.fixture(scope='session')
def ros_domain():
    """Isolate this run: a domain of its own, loopback only, no shared memory."""
    import os

    from ros_graph import PROFILE, claim_domain

    domain, lock = claim_domain()
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(PROFILE)
    # Or our programs set LOCALHOST, with which DDS shares memory: killed, they leave files.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'SUBNET'
    yield domain
    lock.close()


@pytest.fixture
def graph(ros_domain, tmp_path, request):
    """Give a `Graph` in a namespace of this test's own; its processes end with the test."""
    import rclpy
    from ros_graph import Graph

    rclpy.init()
    graph = Graph(tmp_path, f'/t{abs(hash(request.node.name)) % 10**8}')
    yield graph
    graph.close()
    rclpy.shutdown()
