# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes have the place that TF says, at the time that they are about, or the log says why."""

import math
import os
import subprocess
import sys
from pathlib import Path

import overlays
import pytest
from geometry_msgs.msg import PoseStamped
from ros_source import FIRST, Source, time_of
from test_ros_notes import Notes, start

from minicpmo_ros.srv import Ask, Recall, Remember

PUBLISHER = Path(__file__).with_name('tf_publisher.py')


@pytest.fixture(scope='module')
def with_tf():
    """Give the environment of a process that has the package tf2_msgs."""
    return overlays.environment('tf2_msgs', 'tf2_msgs')


@pytest.fixture
def robot(with_tf):
    """Start a robot that publishes TF; give a function that lets a second of it pass."""
    process = subprocess.Popen(
        [sys.executable, str(PUBLISHER), str(FIRST)], env={**os.environ, **with_tf},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def passes(second, *localised):
        if second is None:
            return process.stdout.readline()
        print(second, *localised, file=process.stdin, flush=True)
        assert process.stdout.readline().strip() == str(second)

    yield passes
    process.kill()
    process.communicate()


def test_notes_have_the_place_of_their_second_by_tf(graph, tmp_path, with_tf, robot):
    live = start(
        graph, tmp_path / 'day.db', '-p', 'memory.every_s:=0', '-p', 'memory.answers:=false',
        env=with_tf,
    )  # fmt: skip
    notes, source = Notes(graph), Source(graph)
    source.wait_heard()
    assert robot(None) == 'heard\n'
    second, last = FIRST, source.until_read(FIRST)

    def note(*localised):
        nonlocal second
        while second <= last:  # as far as the camera is
            robot(second, *localised)
            second += 1
        return notes.call(Remember, text='A cup.').note

    def why_not():
        return live.log.count('notes have no place: the frame map has not come')

    graph.spin_until(lambda: not note().has_pose and why_not(), 'the reason to be told')
    assert not note().has_pose and why_not() == 1
    assert 'known is odom -> base_footprint -> base_link' in live.log

    second = FIRST
    found = graph.spin_until(lambda: (one := note('localised')).has_pose and one, 'a place')
    end_s = found.end.sec
    assert FIRST < end_s <= last + 1 and found.pose.header.frame_id == 'map'
    at, turn = found.pose.pose.position, found.pose.pose.orientation
    # map -> odom: 10 m ahead, a quarter turn. The newest odometry is 20 ms before the note's end.
    assert (at.x, at.z) == pytest.approx((10, 0.1), abs=1e-6)
    assert at.y == pytest.approx((end_s - FIRST) / 2, abs=0.011)
    assert 2 * math.atan2(turn.z, turn.w) == pytest.approx(math.pi / 2)

    answer = notes.call(Ask, question='Where was the cup?', memory='only').answer
    assert any(one.pose.pose.position.x == pytest.approx(10) for one in answer.recalled)
    near = notes.call(Recall, near=found.pose, radius_m=0.5).notes
    assert found.id in [one.id for one in near] and all(one.has_pose for one in near)
    assert 'Traceback' not in live.log


def test_who_is_lost_has_no_place_and_its_notes_are_found_all_the_same(graph, tmp_path):
    live = start(graph, tmp_path / 'day.db', '-p', 'memory.every_s:=0')
    notes, source = Notes(graph), Source(graph)
    source.wait_heard()
    second = source.until_read(FIRST)
    poses = graph.create_publisher(PoseStamped, 'pose', 10)
    graph.spin_until(poses.get_subscription_count, 'who listens')

    def note(x=1.0, z=0.0):
        where = PoseStamped()
        where.header.frame_id, where.header.stamp = 'map', time_of(second * 10**9)
        where.pose.position.x, where.pose.orientation.z = x, z
        poses.publish(where)
        return notes.call(Remember, text='A cup.').note

    graph.spin_until(lambda: note().has_pose, 'a place')
    for lost in (dict(x=math.nan), dict(z=math.nan), dict(x=math.inf), dict(x=1e308)):
        graph.spin_until(lambda: note().has_pose, 'a place')
        graph.spin_until(lambda lost=lost: not note(**lost).has_pose, 'none')
    assert notes.call(Recall, text='cup', limit=100).notes
    near = PoseStamped()
    near.pose.position.y = math.nan
    refused = notes.call(Recall, near=near, radius_m=1.0)
    assert not refused.success and 'nan' in refused.reason
    assert 'a message of pose is left out' in live.log and 'Traceback' not in live.log


def test_without_the_messages_of_tf_the_log_says_what_to_install(graph, tmp_path):
    (tmp_path / 'tf2_msgs').mkdir()  # in front of the real one, where there is one
    (tmp_path / 'tf2_msgs' / '__init__.py').touch()
    path = ':'.join(filter(None, (str(tmp_path), os.environ.get('PYTHONPATH'))))
    live = start(graph, tmp_path / 'day.db', env={'PYTHONPATH': path})
    graph.spin_until(lambda: 'tf2_msgs is not installed' in live.log, 'the words')
    assert 'memory.map_frame' in live.log and 'no place' not in live.log
