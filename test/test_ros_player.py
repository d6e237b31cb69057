# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The player paces by itself, whatever time the graph runs on, and ends as it was told."""

import re
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import zstandard
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from mcap.writer import Writer
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from ros_source import jpeg, picture_of, time_of
from rosgraph_msgs.msg import Clock
from scored_clips import write_raw_images, write_test_clip
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.media_source import open_source
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.ros.playback.player import rechunked
from minicpmo_ros.units import NS

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


LISTENER = """
import rclpy
from audio_common_msgs.msg import AudioDataStamped
from sensor_msgs.msg import CompressedImage
rclpy.init()
node = rclpy.create_node('listener', namespace={namespace!r})
node.create_subscription(CompressedImage, 'image/compressed', lambda _: None, 10)
node.create_subscription(AudioDataStamped, 'audio', lambda _: None, 10)
rclpy.spin(node)
"""


def test_it_plays_on_behind_a_damaged_packet_and_says_so(graph, tmp_path):
    data = bytearray(CLIP.read_bytes())
    with av.open(str(CLIP)) as container:
        packet = [p for p in container.demux(container.streams.video[0]) if p.size][20]
    data[packet.pos : packet.pos + packet.size] = b'\xff' * packet.size
    path = tmp_path / 'harmed.mp4'
    path.write_bytes(data)
    process, pictures, _ = play(graph, path, '-p', 'exit_at_end:=true', '-p', 'rate:=10.0')
    assert ended(graph, process) == 0, process.log
    assert stamp_ns_of(pictures[-1]) - stamp_ns_of(pictures[0]) > 5e9
    assert 'the video is damaged' in process.log and 'left out' in process.log


def test_it_says_of_a_file_that_it_ends_before_its_header_says(graph, tmp_path):
    with av.open(str(tmp_path / 'cut.mkv'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=10, width=64, height=64, pix_fmt='yuvj420p')
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        for _ in range(100):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = (tmp_path / 'cut.mkv').read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(whole[: len(whole) // 2])
    process, _, _ = play(
        graph, tmp_path / 'cut.mkv', '-p', 'exit_at_end:=true', '-p', 'rate:=10.0'
    )
    assert ended(graph, process) == 0
    assert re.search(r'cut.mkv: it ends after \d\.\d s, and its header says 10\.\d s', process.log)


def test_it_says_that_it_cannot_play_so_fast(graph, tmp_path, rng):
    noise = rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8)  # takes long to encode
    with av.open(str(tmp_path / 'large.mkv'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=100, width=1280, height=720)
        stream.pix_fmt = 'yuvj420p'
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(noise))
        for i in range(120):  # more than is read ahead
            packet.pts = packet.dts = i
            container.mux(packet)
    options = '-p', 'exit_at_end:=true', '-p', 'rate:=10.0'
    process, _, _ = play(graph, tmp_path / 'large.mkv', *options)
    assert ended(graph, process) == 0
    assert re.search(r'what is played comes \d+\.\d s late: .*Set fps to 5', process.log)
    process, _, _ = play(graph, tmp_path / 'large.mkv', *options, '-p', 'fps:=1.0')
    assert ended(graph, process) == 0 and 'late' not in process.log


def test_it_waits_at_its_end_for_who_has_not_acknowledged_and_says_so(graph):
    text = LISTENER.format(namespace=graph.namespace)
    listener = subprocess.Popen([sys.executable, '-c', text])
    try:
        process = graph.start(
            'media_player', '-p', f'file:={CLIP}', '-p', 'wait_for_subscribers:=true', '-p',
            'exit_at_end:=true', '-p', 'rate:=2.0',
        )  # fmt: skip
        graph.spin_until(lambda: 'playing ' in process.log, 'the begin')
        listener.send_signal(signal.SIGSTOP)  # it takes nothing any more, and answers nothing
        assert ended(graph, process) == 0, process.log
    finally:
        listener.kill()
        listener.wait()
    assert 'has not acknowledged the last messages' in process.log


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


BEGIN_NS = 1_750_000_000 * 10**9
SHOTS, PIECES = 8, 20  # two seconds
PIECE_NS = 10**8


def write_bag(path, seen, heard, extra=()):
    """Write two seconds; seen, heard: from when something was recorded to its stamp, in ns."""
    rows = [('audio_info', AudioInfo(channels=1, sample_rate=16000, sample_format='S16LE',
                                     coding_format='wave'), BEGIN_NS)]  # fmt: skip
    for i in range(SHOTS):
        at_ns = BEGIN_NS + i * 2 * 10**9 // SHOTS
        rows.append(('image', shot(seen(at_ns)), at_ns))
    for i in range(PIECES):
        message, at_ns = AudioDataStamped(), BEGIN_NS + i * PIECE_NS
        message.header.stamp = time_of(heard(at_ns))
        message.audio.data.frombytes(bytes(3200))
        rows.append(('audio', message, at_ns))
    rows += [('image', shot(stamp_ns), at_ns) for stamp_ns, at_ns in extra]
    channels = {}
    with open(path, 'wb') as file:
        writer = Writer(file)
        writer.start('ros2', 'test')
        for topic, message, at_ns in sorted(rows, key=lambda row: row[2]):
            if topic not in channels:
                module = type(message).__module__.partition('.')[0]
                kind = f'{module}/msg/{type(message).__name__}'
                schema = writer.register_schema(kind, 'ros2msg', b'')
                channels[topic] = writer.register_channel(f'/{topic}', 'cdr', schema)
            writer.add_message(channels[topic], at_ns, serialize_message(message), at_ns)
        writer.finish()
    return path


def shot(stamp_ns):
    message = CompressedImage(format='jpeg')
    message.header.stamp = time_of(stamp_ns)
    message.data.frombytes(jpeg(picture_of(stamp_ns % 7)))
    return message


JUMPS = {
    'a stray stamp': (lambda ns: ns, lambda ns: ns, [(123_456, BEGIN_NS)],
                      'are left out: their stamps'),
    'a camera since boot': (lambda ns: ns - BEGIN_NS + 7777 * 10**9, lambda ns: ns, (),
                            'different clocks'),
    'a clock that was set': (
        lambda ns: ns + (3 * 10**17 if ns > BEGIN_NS + 10**9 else 0),
        lambda ns: ns + (3 * 10**17 if ns > BEGIN_NS + 10**9 else 0), (), 'jump ahead',
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    'jump, stamps', [*((jump, 'recorded') for jump in JUMPS), ('a clock that was set', 'now')]
)
def test_it_waits_for_no_stamp_that_is_years_away(graph, tmp_path, jump, stamps):
    seen, heard, extra, words = JUMPS[jump]
    bag = write_bag(tmp_path / 'bag.mcap', seen, heard, extra)
    process, pictures, sound = play(
        graph, bag, '-p', 'exit_at_end:=true', '-p', 'rate:=5.0', '-p', f'stamps:={stamps}'
    )
    assert ended(graph, process) == 0, process.log
    assert words in process.log
    # Without the stray one; the last ones may still be on their way.
    graph.spin_until(lambda: (len(pictures), len(sound)) == (SHOTS, PIECES), 'all of it')
    stamps_ns = [stamp_ns_of(message) for message in pictures]
    if stamps == 'recorded':
        assert stamps_ns[-1] == seen(BEGIN_NS + (SHOTS - 1) * 2 * 10**9 // SHOTS)
        assert stamp_ns_of(sound[0]) == heard(BEGIN_NS)
    else:
        assert stamps_ns[-1] - stamps_ns[0] < 4e9
        assert abs(stamps_ns[-1] - stamp_ns_of(sound[-1])) < 2e9


def test_it_says_that_simulated_time_does_not_run(graph):
    process, pictures, _ = play(graph, CLIP, '-p', 'use_sim_time:=true')
    graph.spin_until(lambda: 'nobody publishes /clock' in process.log, 'the words')
    clock, second = graph.create_publisher(Clock, '/clock', 10), count(1)

    def tick():
        clock.publish(Clock(clock=time_of(next(second) * 10**8)))
        return pictures

    graph.spin_until(tick, 'a picture')
    assert process.end() == 0


def test_it_waits_for_the_nodes_it_plays_for_though_a_recorder_listens(graph, tiny_model_dir):
    process, pictures, _ = play(
        graph, CLIP, '-p', 'wait_for_nodes:=vision_encoder, streaming_encoder'
    )
    graph.spin_until(
        lambda: (
            f'{graph.namespace}/vision_encoder' in process.log and 'to be ready' in process.log
        ),
        'the words',
    )
    assert not pictures
    nodes = [
        graph.start(name, '-p', f'model_dir:={tiny_model_dir}')
        for name in ('vision_encoder', 'streaming_encoder')
    ]
    graph.spin_until(lambda: pictures, 'a picture')
    assert all('ready: ' in node.log for node in nodes)


@pytest.mark.parametrize('made', ['missing', 'text'])
def test_what_cannot_be_played_ends_it_in_words(graph, tmp_path, made):
    file = tmp_path / 'clip.mp4'
    if made == 'text':
        file.write_text('no video')
    process = graph.start('media_player', '-p', f'file:={file}')
    assert process.wait(30) == 1
    assert 'clip.mp4' in process.log and 'Traceback' not in process.log


def test_rechunking_loses_nothing():
    rate_hz = 44_100
    samples = np.arange(rate_hz, dtype=np.float32)
    pieces = [(i * 10**9 // rate_hz, samples[i : i + 1024]) for i in range(0, rate_hz, 1024)]
    chunks = list(rechunked(pieces, rate_hz, 100))
    np.testing.assert_array_equal(np.concatenate([part for _, part in chunks]), samples)
    assert [len(part) for _, part in chunks] == [4410] * 10


def test_a_long_bag_is_played_in_little_memory(tmp_path):
    """Raw images of 220 MB; streams give what the clip in memory has."""
    path, code = (
        tmp_path / 'long.mcap',
        (
            'import resource, sys\n'
            'from minicpmo_ros.evaluation.bags.media_source import open_source\n'
            'peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n'
            'before, media = peak(), open_source(sys.argv[1])\n'
            'print(sum(1 for _ in media.images), peak() - before)'
        ),
    )
    write_raw_images(path, 240)
    told = subprocess.run(
        [sys.executable, '-c', code, path], check=True, capture_output=True, text=True
    ).stdout.split()
    size_mib = path.stat().st_size / 2**20
    assert int(told[0]) == 240 and size_mib > 200 and float(told[1]) < size_mib / 2


def test_streams_of_a_bag_are_its_clip(tmp_path):
    path = tmp_path / 'a.mcap'
    write_test_clip(path, 5)
    packed = tmp_path / 'a.mcap.zstd'
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    clip, media = read_clip(path), open_source(packed)
    first_ns = clip.first_s * NS
    shown = [(shot.stamp_ns - first_ns, *shot.compressed()) for shot in clip.images]
    assert list(media.images) == shown and media.origin_ns == first_ns and not media.notes
    heard = list(media.audio)
    assert [at for at, _ in heard] == [stamp - first_ns for stamp, _ in clip.audio]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(heard, clip.audio))
