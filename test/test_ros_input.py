# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What cameras and microphones do: stamps of any kind, pauses, formats and types that change."""

from functools import partial

import pytest
from audio_common_msgs.msg import AudioData, AudioDataStamped, AudioInfo
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from ros_source import FIRST, Source, decoded_of, jpeg, picture_of, sound_of
from sensor_msgs.msg import Image

from minicpmo_ros.live.arbiter import DeviceArbiter, Priority
from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding
from minicpmo_ros.ros.image_node import VisionNode

NS = 10**9


def start_ear(graph, model_dir, *arguments):
    """Start the node; give (process, list of what it publishes)."""
    process = graph.start(
        'streaming_encoder', '-p', f'model_dir:={model_dir}', *graph.lossless, *arguments
    )
    heard = []
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    graph.spin_until(
        lambda: graph.count_publishers(
            graph.resolve_topic_name('streaming_encoder/embedding')
        ),
        'the node',
    )  # fmt: skip
    return process, heard


def start_eye(graph, model_dir, *arguments):
    """Start the node; give (process, list of what it publishes)."""
    process = graph.start(
        'vision_encoder', '-p', f'model_dir:={model_dir}', *graph.lossless, *arguments
    )
    seen = []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    return process, seen


def wait_heard(graph, publisher):
    graph.spin_until(publisher.get_subscription_count, 'a subscriber')


def wait_second(graph, messages, second, status):
    graph.spin_until(
        lambda: any(m.second == second and m.status == status for m in messages),
        f'second {second} with status {status}',
    )


def test_a_paused_source_is_heard_again_where_it_goes_on(graph, tiny_model_dir):
    _, heard = start_ear(graph, tiny_model_dir)
    sound = graph.create_publisher(AudioDataStamped, 'audio', 50)
    source = Source(graph)
    wait_heard(graph, sound)
    source.sound(FIRST * NS, sound_of(0))
    # It is silent so long that more seconds have passed than it will go back.
    wait_second(graph, heard, FIRST + 4, AudioEmbedding.EMPTY)
    for i in (1, 2):
        source.sound((FIRST + i) * NS, sound_of(i))
    wait_second(graph, heard, FIRST + 1, AudioEmbedding.OK)


@pytest.mark.parametrize('samples', [0, 1])
def test_a_crumb_of_sound_with_a_wild_stamp_makes_no_seconds(graph, tiny_model_dir, samples):
    process, heard = start_ear(
        graph, tiny_model_dir, '-p', 'audio.sample_rate:=48000'
    )  # resampled, so that one sample gives none yet
    source = Source(graph)
    source.wait_heard(image=False)
    for i in range(4):
        source.sound(FIRST * NS + i * NS // 3, sound_of(0))
    wait_second(graph, heard, FIRST, AudioEmbedding.OK)
    wait_second(graph, heard, FIRST + 2, AudioEmbedding.EMPTY)
    source.raw_sound((FIRST + 5000) * NS, bytes(2 * samples))
    after = FIRST + 5001 if samples else FIRST + 5  # one sample is believed, none is not
    graph.spin_until(lambda: heard[-1].second >= after, 'the seconds after it')
    graph.lifecycle_state('streaming_encoder')  # a round trip: what was published is here
    assert len(heard) < 20
    assert process.end() == 0


def test_stamps_before_1970_and_at_the_end_of_time_are_seconds_too(graph, tiny_model_dir):
    process, heard = start_ear(graph, tiny_model_dir)
    source = Source(graph)
    source.wait_heard(image=False)
    for first in (-(2**31), -5, 2**31 - 3):
        source.sound(first * NS, sound_of(0))
        source.sound((first + 1) * NS, sound_of(1))
        wait_second(graph, heard, first, AudioEmbedding.OK)
    assert process.end() == 0
    assert 'Traceback' not in process.log


def test_a_wrong_format_is_told_and_a_right_one_then_heard(graph, tiny_model_dir):
    process, heard = start_ear(graph, tiny_model_dir)
    right = dict(channels=1, sample_rate=16_000, sample_format='S16LE', coding_format='wave')
    source = Source(graph)  # says what is right, which is taken back here
    info = graph.create_publisher(AudioInfo, 'audio_info', 10)
    wait_heard(graph, info)
    for wrong, named in (
        (dict(sample_rate=0), '0 Hz'),
        (dict(channels=0), '0 channels'),
        (dict(sample_format='S13BE'), 'S13BE'),
        (dict(coding_format='opus'), 'opus'),
    ):
        info.publish(AudioInfo(**{**right, **wrong}))
        source.wait_heard(image=False)

        def is_told(named=named):
            source.sound(FIRST * NS, sound_of(0))
            return named in process.log

        graph.spin_until(is_told, f'a warning that names {named}')
    info.publish(AudioInfo(**right))
    graph.spin_until(
        lambda: (
            source.sound((FIRST + 100 + len(heard)) * NS, sound_of(1))
            or any(message.tokens for message in heard)
        ),
        'sound',
    )


def test_a_microphone_that_comes_back_with_another_type_is_heard(graph, tiny_model_dir):
    _, heard = start_ear(
        graph, tiny_model_dir, '-p', 'audio.sample_rate:=8000', '-p', 'audio.channels:=2'
    )
    stamped = graph.create_publisher(AudioDataStamped, 'audio', 50)
    wait_heard(graph, stamped)
    graph.destroy_publisher(stamped)
    plain = graph.create_publisher(AudioData, 'audio', 50)
    wait_heard(graph, plain)
    message = AudioData()
    message.data.frombytes(bytes(8000 * 2 * 2))
    graph.spin_until(lambda: plain.publish(message) or heard, 'a second of plain sound')


def test_the_format_is_heard_from_a_best_effort_publisher(graph, tiny_model_dir):
    start_ear(graph, tiny_model_dir)
    sound = graph.create_publisher(AudioDataStamped, 'audio', 50)
    qos = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    info = graph.create_publisher(AudioInfo, 'audio_info', qos)
    wait_heard(graph, sound)
    wait_heard(graph, info)


def test_pictures_without_a_stamp_are_seconds_of_their_arrival(graph, tiny_model_dir):
    _, seen = start_eye(graph, tiny_model_dir)
    source = Source(graph)
    source.wait_heard(audio=False)
    now = graph.get_clock().now().nanoseconds // NS
    graph.spin_until(
        lambda: source.picture(0, jpeg(picture_of(len(seen)))) or len(seen) >= 2, 'two seconds'
    )
    assert all(message.second >= now for message in seen)
    assert seen[1].second == seen[0].second + 1


def test_a_camera_that_comes_back_with_raw_pictures_is_seen(graph, tiny_model_dir):
    _, seen = start_eye(graph, tiny_model_dir)
    source = Source(graph)
    source.wait_heard(audio=False)
    graph.destroy_publisher(source.images)
    raw = graph.create_publisher(Image, 'image', 10)
    wait_heard(graph, raw)
    message = Image(height=64, width=64, encoding='rgb8', step=192)
    message.data.frombytes(bytes(64 * 192))

    def show():
        """A picture a second later each time, as best effort may lose one."""
        message.header.stamp.sec = max(FIRST, message.header.stamp.sec) + 1
        raw.publish(message)

    def shown():
        """On a busy machine seconds may come at once, of which only the newest is encoded."""
        return [m.second for m in seen if m.status == ImageEmbedding.OK]

    graph.spin_until(lambda: shown() or show(), 'a raw picture')
    assert shown()[0] > FIRST


def test_seconds_whose_pictures_had_to_go_are_overloaded_and_not_empty(graph, tiny_model_dir):
    """An answer holds the device for as long as the pictures of eight seconds take to come."""
    arbiter, seen = DeviceArbiter(), []
    node = VisionNode(arbiter)
    values = {'model_dir': str(tiny_model_dir), 'vision.governor': False}
    node.set_parameters([Parameter(name, value=value) for name, value in values.items()])
    graph.create_subscription(ImageEmbedding, '/vision_encoder/embedding', seen.append, 50)
    graph.own_executor.add_node(node)
    try:
        graph.spin_until(lambda: node.is_loaded, 'the encoder')
        for second in (FIRST, FIRST + 1):
            node.on_image(second * NS, partial(decoded_of, second))
        graph.spin_until(lambda: seen, 'the first second')
        with arbiter.hold(Priority.QUESTION):
            graph.spin_until(lambda: node.busy_s() > 0.2, 'the encoder to wait')
            first = seen[-1].second + 2
            for second in range(first, first + 8):
                node.on_image(second * NS, partial(decoded_of, second))
        wait_second(graph, seen, first + 6, ImageEmbedding.OK)
    finally:
        graph.own_executor.remove_node(node)
        node.destroy_node()
    status = {message.second: message.status for message in seen}
    # On a busy machine the encoder may have taken one more before it waited.
    assert [status[first + i] for i in range(1, 6)] == [ImageEmbedding.OVERLOADED] * 5


def test_nothing_is_published_while_inactive(graph, tiny_model_dir):
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    seen, heard = [], []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    source = Source(graph)
    source.wait_heard()
    source.second(FIRST)
    wait_second(graph, heard, FIRST + 1, AudioEmbedding.EMPTY)
    assert graph.change_state('streaming_encoder', 'deactivate')
    graph.lifecycle_state('streaming_encoder')  # a round trip: what was published is here
    heard.clear()
    seen.clear()
    graph.spin_until(lambda: len(seen) >= 3, 'the seconds of the node that is active')
    assert not heard
    assert graph.change_state('streaming_encoder', 'activate')
    source.wait_heard()
    source.sound((FIRST + 100) * NS, sound_of(0))
    source.sound((FIRST + 101) * NS, sound_of(0))
    wait_second(graph, heard, FIRST + 100, AudioEmbedding.OK)
    assert process.end() == 0
