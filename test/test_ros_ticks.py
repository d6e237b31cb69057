# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a node does again and again falls together, and one part of it does not keep another."""

import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from minicpmo_ros.ros.framework.clock import Tick, Ticks


@pytest.mark.parametrize('period_s', [0.5, 1.0, 2.0])
def test_due_times_of_any_nodes_are_multiples_of_one_second_at_least_half_a_period_away(period_s):
    slow, fast = Tick(period_s, print), Tick(0.5, print)
    for i in range(400):
        now_s = 12_345.0 + 0.013 * i
        slow.plan(now_s)
        assert 0.5 * period_s <= slow.due_s - now_s + 1e-6 <= 1.5 * period_s + 2e-6
        fast.plan(slow.due_s - 0.5)  # a look just before
        assert fast.due_s == pytest.approx(slow.due_s, abs=1e-6)


@pytest.fixture
def node(ros):
    """Give a node that nothing else wakes, with its ticks."""
    node = Node('ticking', start_parameter_services=False, enable_rosout=False)
    node.ticks = Ticks(node)
    yield node
    node.destroy_node()


def test_all_that_is_due_is_done_in_one_wake_though_one_fails_and_another_ends(node):
    done, executor = [], SingleThreadedExecutor()
    executor.add_node(node)

    def fail():
        done.append('failed')
        raise ValueError('now and then')

    def end():
        done.append('ended')
        node.ticks.end(ending)
        node.ticks.end(ended)  # before its turn

    ticks = [node.ticks.every(0.1, call) for call in (fail, lambda: done.append('went on'))]
    ending = node.ticks.every(0.1, end)
    ended = node.ticks.every(0.1, lambda: done.append('called although it had ended'))
    for tick in (*ticks, ending, ended):
        tick.due_s = ending.due_s  # those made before may have been due sooner
    assert len(list(node.timers)) == 1
    try:
        while not done:
            executor.spin_once(timeout_sec=1.0)
        assert done == ['failed', 'went on', 'ended']
        while len(done) == 3:
            executor.spin_once(timeout_sec=1.0)
        assert done[3:] == ['failed', 'went on']
    finally:
        executor.shutdown(timeout_sec=0)
