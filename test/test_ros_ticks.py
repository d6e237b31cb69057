# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a node does again and again falls together; it tells what is wrong with simulated time."""

import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from minicpmo_ros.ros.framework.clock import NodeTime, Tick, Ticks
from minicpmo_ros.units import NS


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


class ClockedNode:
    """Stands for a node, its clock, the time of it and its logger."""

    ros_time_is_active, nanoseconds, publishers, clock_problem = True, 0, 1, ''

    def __init__(self):
        self.get_clock = self.now = self.get_logger = lambda: self
        self.ticks, self.told = self, []
        self.warning = self.told.append

    def every(self, period_s, callback):
        self.look = callback
        return Tick(period_s, callback)

    def count_publishers(self, topic):
        return self.publishers

    def resolve_topic_name(self, name):
        return name


@pytest.mark.parametrize('publishers, apart_s', [(2, 30), (2, -1e9), (1, 30), (2, 0.1), (2, 0)])
def test_several_publishers_of_a_clock_are_told_once_and_a_recording_that_loops_is_not(
    publishers, apart_s
):
    node = ClockedNode()
    node.publishers, time_of_node = publishers, NodeTime(node)
    for step in range(100):
        node.nanoseconds = int((2e9 + 0.1 * step + step % 2 * apart_s) * NS)
        time_of_node.now()
        node.look()
    is_torn = publishers == 2 and abs(apart_s) > 1
    assert len(node.told) == is_torn and ('to and fro' in node.clock_problem) == is_torn
    node.publishers = 1
    node.look()
    assert node.clock_problem == ''
