# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The bad network of the benchmark is as bad as it says; its ledger counts; samples are valid."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks.link import ADDRESSES, Ends, why_not
from benchmarks.relay import ledger
from minicpmo_ros.documents import StrictLoader
from minicpmo_ros.ros.framework.topics import qos_problem

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / 'config' / 'network'
needs_namespaces = pytest.mark.skipif(bool(why_not()), reason=f'no namespaces: {why_not()}')
ECHO = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(('', 5000))
print('ready', flush=True)
while (found := own.recvfrom(2000))[0] != b'end':
    own.sendto(*found)
"""
CALL = """
import socket, sys, time
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.settimeout(float(sys.argv[3]))
came = 0
began_s = time.monotonic()
for number in range(int(sys.argv[2])):
    own.sendto(bytes([number]) * 500, (sys.argv[1], 5000))
    try:
        came += own.recvfrom(2000)[0] == bytes([number]) * 500
    except TimeoutError:
        pass
print(came, time.monotonic() - began_s)
"""


def call(ends: Ends, count: int, timeout_s: float) -> tuple:
    """Call the echo at the other end; give (answers, seconds)."""
    command = (sys.executable, '-c', CALL, ADDRESSES[1], str(count), str(timeout_s))
    done = subprocess.run([*ends.inside(0), *command], capture_output=True, text=True, check=True)
    came, passed_s = done.stdout.split()
    return int(came), float(passed_s)


@needs_namespaces
def test_the_link_delays_loses_and_is_down_as_it_is_told():
    with Ends('--delay-ms', '30') as ends:
        command = [*ends.inside(1), sys.executable, '-c', ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echo:
            echo.stdout.readline()
            came, passed_s = call(ends, 5, 10.0)
            assert came == 5 and passed_s >= 5 * 2 * 0.03
            there, _ = ends.count()
            assert there['bytes'] >= 5 * 542 and not there.get('lost')
            ends.tell('loss 0.5')
            came, _ = call(ends, 12, 0.3)
            assert 0 < came < 12
            lost = sum(lane.get('lost', 0) for lane in ends.count())
            assert lost >= 12 - came
            ends.tell('loss 0'), ends.tell('down')
            assert call(ends, 2, 0.2)[0] == 0
            ends.tell('up')
            assert call(ends, 2, 10.0)[0] == 2
            echo.kill()


@needs_namespaces
def test_the_namespaces_end_with_the_link_and_reach_nothing_else():
    with Ends() as ends:
        shown = subprocess.run(
            [*ends.inside(0), 'ip', '-json', 'route'], capture_output=True, text=True, check=True
        )
        assert {route['dst'] for route in json.loads(shown.stdout)} == {'10.77.0.0/24'}
        pids = ends.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def seen(**changes) -> tuple:
    """Give what the two monitors have seen: ten seconds sent, of which two were lost, one late."""
    robot = {'images': {str(second): 9 for second in range(10)}, 'audio': list(range(10))}
    brain = {
        'images': [0, 1, 2, 5, 6, 7, 9], 'audio': [0, 1, 2, 5, 6, 7, 8, 9],
        'read': [0, 1, 2, 5, 6, 7, 9], 'late': 1, 'units_dropped': 0, **changes,
    }  # fmt: skip
    return robot, brain


def test_every_second_that_was_sent_is_counted_once():
    found = ledger(*seen(), 0, 10)
    assert found == {
        'sent': 10, 'read': 7, 'whole': 7, 'lost': 2, 'late': 1, 'adds_up': True
    }  # fmt: skip


def test_a_second_that_vanishes_without_a_word_does_not_add_up():
    assert not ledger(*seen(late=0), 0, 10)['adds_up']
    assert not ledger(*seen(images=[0, 1], audio=[0, 1]), 0, 10)['adds_up']  # read, yet lost


SPIN = """
import rclpy
from sensor_msgs.msg import CompressedImage
rclpy.init()
node = rclpy.create_node('sample')
node.create_publisher(CompressedImage, 'sample', 1)
node.destroy_node()
rclpy.shutdown()
"""


def load_profile(path: Path, **variables) -> str:
    """Make a node with a profile of Fast DDS; give what it complains of."""
    env = {**os.environ, 'FASTDDS_DEFAULT_PROFILES_FILE': str(path), **variables}
    env['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'  # on this machine alone
    done = subprocess.run(
        [sys.executable, '-c', SPIN], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_fast_dds_reads_all_of_the_profile(ros_domain, tmp_path):
    path, at_home = NETWORK / 'fastdds_wifi.xml', '127.0.0.1'
    addresses = dict(ROBOT_ADDRESS=at_home, BRAIN_ADDRESS=at_home)
    assert load_profile(path, **addresses) == ''
    wrong = tmp_path / 'wrong.xml'
    wrong.write_text(path.read_text().replace('disable_heartbeat_piggyback', 'no_piggyback'))
    assert 'no_piggyback' in load_profile(wrong, **addresses)
    assert 'ROBOT_ADDRESS' in load_profile(path, BRAIN_ADDRESS=at_home)


def test_the_profile_says_what_the_page_says():
    text = (NETWORK / 'fastdds_wifi.xml').read_text()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith('dds')
    assert '<value>1400</value>' in text and 'fastdds.max_message_size' in text
    page = (ROOT / 'docs' / 'network.md').read_text()
    for word in ('ROBOT_ADDRESS', 'BRAIN_ADDRESS', 'fastdds.max_message_size'):
        assert word in page and word in text


def test_the_parameters_are_of_topics_that_a_relay_has():
    values = yaml.load((NETWORK / 'brain.yaml').read_text(), StrictLoader)
    ((_, section),) = values.items()
    found = section['ros__parameters']
    assert not [problem for name, value in found.items() if (problem := qos_problem(name, value))]
    topics = {name.split('.')[1] for name in found}
    assert topics == {'/robot1/relay/image/compressed', '/robot1/relay/audio'}


def test_the_zenoh_configuration_is_well_formed_and_its_rules_are_used():
    text = (NETWORK / 'zenoh_router_robot.json5').read_text()
    found = json.loads(re.sub(r'^\s*//.*$', '', text, flags=re.MULTILINE))
    assert found['mode'] == 'router'
    host = found['connect']['endpoints'][0].removeprefix('tcp/').partition(':')[0]
    socket.inet_aton(host)
    control = found['access_control']
    rules, subjects = ({each['id'] for each in control[kind]} for kind in ('rules', 'subjects'))
    for policy in control['policies']:
        assert set(policy['rules']) <= rules and set(policy['subjects']) <= subjects
