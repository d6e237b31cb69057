# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The player paces by itself, whatever time the graph runs on, and ends as it was told."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
from audio_common_msgs.msg import AudioDataStamped
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.nodes.media_player import rechunked
from minicpmo_ros.nodes.messages import stamp_ns_of

CLIP = Path(__file__).parent / 'data' / 'scene.mp4'
DEEP = QoSProfile(depth=2000)


def play(graph, file, *arguments):
    """Start the player; give (process, pictures, pieces of sound)."""
    pictures, sound = [], []
    graph.create_subscription(CompressedImage, 'image/compressed', pictures.append, DEEP)
    graph.create_subscription(AudioDataStamped, 'audio', sound.append, DEEP)
    process = graph.start(
        'media_player', '-p', f'file:={file}', '-p', 'wait_for_subscribers:=true', *arguments
    )
    return process, pictures, sound


def ended(graph, process) -> int:
    graph.spin_until(lambda: not process.is_running, 'the end')
    return process.popen.returncode


def test_it_plays_to_the_end_at_its_rate(graph):
    process, pictures, sound = play(graph, CLIP, '-p', 'exit_at_end:=true', '-p', 'rate:=10.0')
    assert ended(graph, process) == 0, process.log
    for messages in (pictures, sound):
        stamps = np.array([stamp_ns_of(message) for message in messages])
        assert (np.diff(stamps) > 0).all()
        assert stamps[-1] - stamps[0] > 5e9  # the file's own pace, although it was quick


def test_it_makes_simulated_time_run(graph):
    clocks = []
    graph.create_subscription(Clock, '/clock', clocks.append, 10)
    process, pictures, _ = play(
        graph, CLIP, '-p', 'use_sim_time:=true', '-p', 'publish_clock:=true', '-p',
        'exit_at_end:=true', '-p', 'rate:=10.0',
    )  # fmt: skip
    assert ended(graph, process) == 0, process.log
    assert stamp_ns_of(pictures[0]) > 0
    assert clocks[-1].clock.sec - clocks[0].clock.sec >= 4


def test_a_listener_that_does_not_fit_is_told_and_the_proposal_mends_it(graph):
    topic, heard = f'{graph.namespace}/audio', []
    latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    graph.create_subscription(AudioDataStamped, topic, heard.append, latched)
    options = ('-p', f'file:={CLIP}', '-p', 'loop:=true')
    process = graph.start('media_player', *options)
    graph.spin_until(lambda: 'nothing arrives there' in process.log, 'the warning')
    proposed = re.search(r'start this node with (qos_overrides\S+)', process.log).group(1)
    assert process.end() == 0 and not heard
    process = graph.start('media_player', *options, '-p', proposed)
    graph.spin_until(lambda: heard, 'sound')
    assert 'nothing arrives there' not in process.log


def test_a_still_picture_in_a_loop_keeps_a_camera_s_pace(graph, tmp_path):
    with av.open(str(tmp_path / 'still.mkv'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=10, width=64, height=64, pix_fmt='yuvj420p')
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([*stream.encode(frame), *stream.encode()])
    process, pictures, sound = play(
        graph, tmp_path / 'still.mkv', '-p', 'loop:=true', '-p', 'rate:=10.0'
    )
    graph.spin_until(lambda: len(pictures) >= 10, 'ten pictures')
    stamps = np.array([stamp_ns_of(message) for message in pictures])
    assert (np.diff(stamps) >= 10e6).all()
    assert process.end() == 0 and not sound


@pytest.mark.parametrize('made', ['missing', 'text'])
def test_what_cannot_be_played_ends_it_in_words(graph, tmp_path, made):
    file = tmp_path / 'clip.mp4'
    if made == 'text':
        file.write_text('no video')
    process = graph.start('media_player', '-p', f'file:={file}')
    assert process.popen.wait(30) == 1
    assert 'clip.mp4' in process.log and 'Traceback' not in process.log


def test_rechunking_loses_nothing():
    rate_hz = 44_100
    samples = np.arange(rate_hz, dtype=np.float32)
    pieces = [(i * 10**9 // rate_hz, samples[i : i + 1024]) for i in range(0, rate_hz, 1024)]
    chunks = list(rechunked(pieces, rate_hz, 100))
    np.testing.assert_array_equal(np.concatenate([part for _, part in chunks]), samples)
    assert [len(part) for _, part in chunks] == [4410] * 10
