# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The doctor's look at a real graph: types, ends that do not fit, nodes, what was left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from audio_common_msgs.msg import AudioData, AudioInfo
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from ros_graph import PROFILE, TIMEOUT_S
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from minicpmo_ros.cli import doctor_machine as machine
from minicpmo_ros.errors import FAIL, OK, WARN
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.ros.doctor import segment_bytes

OURS = Path(__file__).parent.parent / 'config/fastdds_large_images.xml'
LOOPBACK = {'FASTRTPS_DEFAULT_PROFILES_FILE': str(PROFILE)}
BEST_EFFORT = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


@pytest.fixture
def consult(graph, tmp_path):
    """Run `minicpmo doctor` in a process of its own; give {check: [findings]}."""
    root = tmp_path / 'root'
    (root / 'proc').mkdir(parents=True)
    (root / 'proc/loadavg').write_text('0 0 0 1/1 1')
    (root / 'proc/meminfo').write_text('MemTotal: 8000000 kB\nMemAvailable: 8000000 kB\n')

    def once(arguments, environment):
        command = [sys.executable, '-m', 'minicpmo_ros.cli.main', 'doctor', '--json',
                   '--wait', '1.5', '--root', str(root), '--namespace', graph.namespace,
                   *arguments]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        graph.spin_until(lambda: process.poll() is not None, 'the doctor')
        found = {}
        for finding in json.loads(process.stdout.read())['checks']:
            found.setdefault(finding['check'], []).append(finding)
        return found

    def run(*arguments, sees=None, **environment):
        """Ask again where the machine was too busy for him to see it all; {check: level}."""
        for _ in range(8):
            found = once(arguments, environment)
            levels = {check: each[0]['level'] for check, each in found.items()}
            if (sees or {}).items() <= levels.items():
                return found
        raise AssertionError(f'{sees} is not seen: {found}')

    return run


def level(finding, *words):
    text = f'{finding["fact"]}. {finding["remedy"]}'
    assert all(word in text for word in words), text
    return finding['level']


def test_types_and_quality_of_sources(graph, consult):
    topic = f'{graph.namespace}/image/compressed'
    publishers = [
        graph.create_publisher(CompressedImage, 'image/compressed', BEST_EFFORT),
        graph.create_publisher(AudioData, 'audio', 10),
    ]
    subscription = graph.create_subscription(CompressedImage, topic, print, 10)  # reliable
    seen = {'images': OK, 'audio': WARN, 'qos': FAIL, 'nodes': FAIL}
    found = consult('--topics', 'yes', sees=seen)
    assert level(found['images'][0], topic, 'tester') == OK
    assert level(found['audio'][0], 'AudioInfo', 'audio.sample_rate') == WARN
    assert level(found['qos'][0], topic, 'best_effort', 'reliable', 'qos_overrides') == FAIL
    assert level(found['nodes'][0], 'streaming_encoder, vision_encoder, llm') == FAIL

    for publisher in publishers:
        graph.destroy_publisher(publisher)
    graph.destroy_subscription(subscription)
    graph.create_publisher(Image, 'image', 10)
    graph.create_publisher(AudioInfo, 'audio_info', 10)
    graph.create_publisher(String, 'audio', 10)
    # As a robot's environment is: this one has a profile for its tests.
    found = consult(
        sees={'images': WARN, 'audio': FAIL, 'qos': OK},
        FASTDDS_DEFAULT_PROFILES_FILE='', **LOOPBACK,
    )  # fmt: skip
    assert level(found['images'][0], 'LARGE_DATA') == WARN
    assert level(found['audio'][0], 'std_msgs/msg/String') == FAIL
    assert level(found['qos'][0]) == OK


def test_each_of_several_cameras_is_looked_at(graph, consult):
    graph.create_publisher(CompressedImage, 'front/image/compressed', 10)
    found = consult('--cameras', 'front, left', '--topics', 'yes', sees={'images': OK})
    front, left = found['images']
    assert level(front, f'{graph.namespace}/front/image/compressed', 'tester') == OK
    assert level(left, f'nobody publishes {graph.namespace}/left/image/compressed') == FAIL


@pytest.mark.parametrize(
    'side, size, least', [(64, '12 kB each', OK), (600, '', WARN)], ids=['small', 'large']
)
def test_images_that_do_not_fit_into_the_shared_memory_of_their_sender(
    graph, consult, side, size, least
):
    publisher = graph.create_publisher(Image, 'image', 10)
    image = Image(width=side, height=side, step=3 * side, encoding='rgb8')
    image.data.frombytes(bytes(3 * side * side))  # 1080 kB
    graph.create_timer(0.05, lambda: publisher.publish(image))
    unset = {'FASTDDS_DEFAULT_PROFILES_FILE': '', **LOOPBACK}
    found = consult('--topics', 'yes', sees={'images': least}, **unset)
    assert level(found['images'][0], size, *['above 512 KiB'] * (least == WARN)) == least
    assert 512 * 1024 == segment_bytes('') == segment_bytes('/no/such.xml')
    assert segment_bytes(str(OURS)) >= 2**25 > len(image.data)


def test_wrong_pictures_and_nobody(graph, consult):
    found = consult('--image-topic', 'camera', '--topics', 'yes')
    assert level(found['images'][0], 'camera/compressed') == FAIL
    assert level(found['audio'][0], 'nobody publishes') == FAIL
    graph.create_publisher(ImageEmbedding, 'camera', 10)
    found = consult('--image-topic', 'camera', sees={'images': FAIL})
    assert level(found['images'][0], 'minicpmo_ros/msg/ImageEmbedding') == FAIL
    assert level(found['audio'][0]) == OK and level(found['nodes'][0], 'none of ours') == OK


def test_what_a_node_says_about_itself_is_told(graph, consult, tmp_path):
    graph.start('llm', '-p', f'model_dir:={tmp_path}')
    graph.spin_until(lambda: graph.status is not None, 'the llm')
    found = consult(sees={'llm': FAIL, 'nodes': WARN})
    assert level(found['nodes'][0], 'streaming_encoder, vision_encoder') == WARN
    assert level(found['llm'][0], 'manifest.yaml') == FAIL


def test_a_middleware_that_is_not_there_is_a_failure(consult):
    found = consult(RMW_IMPLEMENTATION='rmw_none_cpp')
    assert level(found['rmw'][0], 'rmw_none_cpp') == FAIL
    assert level(found['topics'][0], 'not looked at') == WARN


ENDED = """
import os, signal, sys
from minicpmo_ros.cli.main import main
from minicpmo_ros.ros import doctor

wait = doctor._Graph.wait

def end(graph, wait_s):
    os.kill(os.getpid(), signal.SIGTERM)
    wait(graph, wait_s)

doctor._Graph.wait = end
sys.exit(main(['doctor', '--wait', '600']))
"""


def test_a_signal_ends_doctor_in_a_line(ros_domain):
    ended = subprocess.run(
        [sys.executable, '-c', ENDED], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert 'ended by SIGTERM' in ended.stderr and 'Traceback' not in ended.stderr


# --- what killed processes leave ----------------------------------------------------------------

TALKER = """
import rclpy
rclpy.init()
node = rclpy.create_node('talker')
print('ready', flush=True)
input()
"""


def own_files(pid) -> set:
    """Give the names in /dev/shm that a process owns: whose lock it has open."""
    links = [os.readlink(link) for link in os.scandir(f'/proc/{pid}/fd') if link.is_symlink()]
    names = [os.path.basename(path) for path in links if path.startswith('/dev/shm/fast')]
    return {name[: -len('_el')] for name in names if name.endswith('_el')}


@pytest.fixture
def start_talker(ros_domain):
    """Return a function that starts a process which uses shared memory; clean up after all."""
    environment = {**os.environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    environment.pop('FASTDDS_DEFAULT_PROFILES_FILE')
    started, names = [], set()

    def start(**more):
        process = subprocess.Popen(
            [sys.executable, '-c', TALKER], env={**environment, **more}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == 'ready\n'
        names.update(own_files(process.pid))
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for name in names:
        for path in (f'/dev/shm/{name}', f'/dev/shm/{name}_el', f'/dev/shm/sem.{name}_mutex'):
            if os.path.exists(path):
                os.unlink(path)


@pytest.fixture
def talkers(start_talker):
    """Start two processes that use shared memory."""
    return [start_talker(), start_talker()]


def test_with_our_profile_an_image_fits_into_the_shared_memory_of_its_sender(start_talker):
    """Fast DDS's own has 512 KiB: of a larger image parts are lost, and audio beside it."""

    def largest_bytes(process):
        return max(os.path.getsize(f'/dev/shm/{name}') for name in own_files(process.pid))

    ours = start_talker(FASTDDS_DEFAULT_PROFILES_FILE=str(OURS))
    assert largest_bytes(start_talker()) < 2**20
    assert largest_bytes(ours) >= 32 * 2**20 > 3840 * 2160 * 3


def test_what_a_killed_process_has_left_is_stale_and_a_living_one_has_nothing_stale(talkers):
    folder = machine.Path('/dev/shm')
    killed, living = (own_files(process.pid) for process in talkers)
    assert len(killed) >= 3 and len(living) >= 3  # a segment, and two ports
    assert not (killed | living) & set(machine.stale_files(folder)[0])
    talkers[0].send_signal(signal.SIGKILL)
    talkers[0].wait()
    stale, size_bytes = machine.stale_files(folder)
    assert killed <= set(stale) and not living & set(stale)
    assert any(name.startswith('sem.') for name in stale)
    assert size_bytes > 2**18
