# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A lifecycle manager as nav2's brings the nodes up and down, held to them by bonds."""

import os
import subprocess
import sys
from pathlib import Path

import overlays
import pytest

MANAGER = Path(__file__).with_name('bond_manager.py')
NODES = ('streaming_encoder', 'vision_encoder', 'llm')


@pytest.fixture(scope='module')
def with_bond():
    """Give the environment of a process that has the package bond."""
    return overlays.environment('bond', 'bond')


@pytest.fixture
def manager(graph, with_bond):
    """Start a manager of all nodes in the test's namespace."""
    command = [sys.executable, str(MANAGER), graph.namespace, *NODES]
    with open(graph.log_dir / 'manager', 'w+') as log:
        process = subprocess.Popen(
            command, env={**os.environ, **with_bond}, stdin=subprocess.PIPE, stdout=log,
            stderr=log, text=True,
        )  # fmt: skip
        process.said = (graph.log_dir / 'manager').read_text
        yield process
        process.kill()
        process.communicate()


def test_a_manager_drives_the_nodes_by_bonds(graph, tiny_model_dir, with_bond, manager):
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'autostart:=false', env=with_bond
    )
    graph.spin_until(lambda: 'formed llm' in manager.said(), 'three bonds')
    graph.wait_ready()
    manager.stdin.write('go on\n')
    manager.stdin.flush()
    graph.spin_until(lambda: manager.poll() is not None, 'the end of the manager')
    assert manager.returncode == 0, manager.said()
    formed, kept, broken = ([f'{word} {name}' for name in NODES] for word in
                            ('formed', 'kept', 'broken'))  # fmt: skip
    assert manager.said().splitlines() == formed + kept + broken[::-1]
    assert all(graph.lifecycle_state(name) == 'unconfigured' for name in NODES)
    assert process.end() == 0 and 'Traceback' not in process.log


def test_without_the_package_of_bonds_a_node_says_what_to_set(graph, tiny_model_dir):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'autostart:=false')
    assert graph.change_state('llm', 'configure') and graph.change_state('llm', 'activate')
    graph.spin_until(lambda: 'bond_timeout' in process.log, 'the words')
