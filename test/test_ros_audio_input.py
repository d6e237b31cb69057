# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Microphones of either audio_common_msgs, MP3, wrong messages and too much of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mgonzs13
import numpy as np
import pytest
import rclpy
from audio_common_msgs.msg import AudioData, AudioDataStamped, AudioInfo
from audio_signals import mp3_of
from ros_graph import TIMEOUT_S
from ros_source import DEEP, FIRST, UNUSABLE, Source, sound_of, time_of

from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.media.audio.stream import AudioDecoder
from minicpmo_ros.msg import Answer, AudioEmbedding
from minicpmo_ros.ros.audio_node import INBOX_S, AudioState, StreamingEncoder, cost_s
from minicpmo_ros.ros.framework.threads import Inbox
from minicpmo_ros.ros.stamps import Stamps
from minicpmo_ros.streams import AudioSecond, Status
from minicpmo_ros.streams.time import Arrival, Instant

NS = 10**9
FORMAT = AudioFormat(16_000, 1)


def start_ear(graph, model_dir, *arguments, **kwargs):
    """Start the node; give (process, list of what it publishes)."""
    process = graph.start(
        'streaming_encoder', '-p', f'model_dir:={model_dir}', *graph.lossless, *arguments, **kwargs
    )
    heard = []
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    topic = graph.resolve_topic_name('streaming_encoder/embedding')
    graph.spin_until(lambda: graph.count_publishers(topic), 'the node')
    return process, heard


def wait_second(graph, messages, second, status):
    graph.spin_until(
        lambda: any(m.second == second and m.status == status for m in messages),
        f'second {second} with status {status}',
    )


def of(heard, second):
    return next(m for m in heard if m.second == second)


def test_all_nodes_of_a_process_hear_a_microphone_that_comes_back_as_another_type(
    graph, tiny_model_dir
):
    """DDS reads a topic as one type in a process: none may keep the others from the new one."""
    model = ('-p', f'model_dir:={tiny_model_dir}')
    process = graph.start('live', *model, *graph.lossless, '--', '--voice')
    for kind in (AudioData, AudioDataStamped, AudioData):
        microphone = graph.create_publisher(kind, 'audio', DEEP)
        graph.spin_until(
            lambda each=microphone: each.get_subscription_count() == 2,
            f'both to hear {kind.__name__}',
            timeout_s=60.0,
        )
        graph.destroy_publisher(microphone)
    assert process.end() == 0 and 'Traceback' not in process.log


def test_a_microphone_is_heard_beside_a_killed_one_of_another_type(
    graph, tiny_model_dir, tmp_path
):
    """The graph shows a killed publisher for many seconds more; this one stays, and is silent."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=graph.context.get_domain_id())
    killed = rclpy.create_node('killed', namespace=graph.namespace, context=context)
    silent = killed.create_publisher(AudioDataStamped, 'audio', DEEP)
    model = ('-p', f'model_dir:={tiny_model_dir}', '-p', 'audio.sample_rate:=16000')
    graph.start('live', *model, *graph.lossless, '--', '--voice')
    graph.start('recorder', '-p', f'bag:={tmp_path / "bag.mcap"}', '-p', 'inputs:=true')
    graph.spin_until(lambda: silent.get_subscription_count() == 3, 'all three')
    plain, heard, message = graph.create_publisher(AudioData, 'audio', DEEP), [], AudioData()
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    message.data.frombytes(bytes(3200))

    def is_heard():
        plain.publish(message)
        return plain.get_subscription_count() == 3 and any(each.tokens for each in heard)

    graph.spin_until(is_heard, 'all three to hear the other one', timeout_s=60.0)
    killed.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture(scope='module')
def other_messages():
    return mgonzs13.environment()


def test_the_messages_of_either_author_are_taken(graph, tiny_model_dir, other_messages):
    process, heard = start_ear(graph, tiny_model_dir, env=other_messages)
    # First a microphone of ros-drivers, whose messages this node's environment lacks.
    wrong = graph.create_publisher(AudioDataStamped, 'audio', 50)
    graph.spin_until(lambda: 'Install the one of ros-drivers' in process.log, 'a warning')
    graph.destroy_publisher(wrong)
    microphone = subprocess.Popen(
        [sys.executable, mgonzs13.__file__, graph.namespace],
        env={**os.environ, **other_messages},
    )
    try:
        for i in range(len(mgonzs13.KINDS)):
            wait_second(graph, heard, mgonzs13.FIRST + i, AudioEmbedding.OK)
    finally:
        microphone.send_signal(signal.SIGKILL)
        microphone.wait()
    for i, kind in enumerate(mgonzs13.KINDS):
        seconds = [m for m in heard if m.second == mgonzs13.FIRST + i]
        (message,) = [m for m in seconds if m.status == AudioEmbedding.OK]
        assert abs(message.level_dbfs - 20 * np.log10(0.5 / 2**0.5)) < 0.1, kind
    assert process.end() == 0


EXAMINE = """
import rclpy
from minicpmo_ros.ros.replay.lockstep import LockstepPlayer
from minicpmo_ros.ros.framework.main import run_program
raise SystemExit(run_program('replay', LockstepPlayer))
"""


def test_who_plays_needs_the_messages_of_ros_drivers_and_says_so(graph, other_messages):
    clip = Path(__file__).parent / 'data' / 'scene.mp4'
    player = graph.start('media_player', '-p', f'file:={clip}', env=other_messages)
    examiner = subprocess.run(
        [sys.executable, '-c', EXAMINE],
        env={**os.environ, **other_messages},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert player.wait(TIMEOUT_S) == examiner.returncode == 1
    for said in (player.log, examiner.stderr):
        assert 'Install the one of ros-drivers' in said and 'Traceback' not in said


def test_what_cannot_be_recorded_is_told_once_and_the_rest_is(graph, other_messages, tmp_path):
    bag = tmp_path / 'answers.mcap'
    recorder = graph.start('recorder', '-p', f'bag:={bag}', '-p', 'inputs:=true')
    answers = graph.create_publisher(Answer, 'llm/answer', 10)
    microphone = subprocess.Popen(
        [sys.executable, mgonzs13.__file__, graph.namespace],
        env={**os.environ, **other_messages},
    )
    try:
        graph.spin_until(lambda: 'is not recorded' in recorder.log, 'a warning')
        graph.spin_until(answers.get_subscription_count, 'the recorder')
    finally:
        microphone.kill()
        microphone.wait()
    answers.publish(Answer(text='seen'))
    graph.spin_until(lambda: b'seen' in bag.read_bytes(), 'the record')
    assert recorder.end() == 0, recorder.log
    assert recorder.log.count('is not recorded') == 1 and 'mgonzs13' in recorder.log


def test_a_package_that_cannot_be_imported_is_told(graph, tiny_model_dir, tmp_path):
    broken = tmp_path / 'audio_common_msgs'
    broken.mkdir()
    (broken / '__init__.py').write_text('raise ImportError("built for another Python")')
    process, _ = start_ear(graph, tiny_model_dir, env={'PYTHONPATH': str(tmp_path)})
    Source(graph)
    graph.spin_until(lambda: 'built for another Python' in process.log, 'a warning')
    assert process.is_running and process.end() == 0


def test_mp3_is_heard_at_its_time(graph, tiny_model_dir):
    _, heard = start_ear(graph, tiny_model_dir)
    source = Source(graph)
    source.wait_heard(image=False)
    info = graph.create_publisher(AudioInfo, 'audio_info', 10)
    graph.spin_until(info.get_subscription_count, 'the ear')
    info.publish(AudioInfo(sample_rate=16_000, channels=1, coding_format='mp3', bitrate=64_000))
    quiet, loud = np.zeros(32_000, np.float32), np.tile(sound_of(0), 2)
    data = mp3_of(np.concatenate([quiet, loud, quiet]), 16_000)  # 8000 bytes a second

    def play():
        """Until the format is heard, the bytes are refused as raw PCM or heard as noise."""
        first = FIRST + 100 * (1 + play.times)
        play.times += 1
        for i in range(0, len(data), 1000):
            source.raw_sound(first * NS + i * NS // 8000, data[i : i + 1000])
        return first

    play.times = 0

    def is_heard():
        first = play()
        wait_second(graph, heard, first + 4, AudioEmbedding.OK)
        levels = [of(heard, first + i).level_dbfs for i in range(5)]
        return max(levels[0], levels[1], levels[4]) < -50 and min(levels[2:4]) > -20

    graph.spin_until(is_heard, 'silence, two loud seconds and silence')


def test_sound_that_cannot_be_used_is_lost_and_not_empty(graph, tiny_model_dir):
    process, heard = start_ear(graph, tiny_model_dir)
    source = Source(graph, sample_format='F32LE')
    source.wait_heard(image=False)
    for i in range(2):
        source.sound((FIRST + i) * NS, sound_of(i))
    for i in range(2, 6):
        source.raw_sound((FIRST + i) * NS, UNUSABLE)
    wait_second(graph, heard, FIRST + 5, AudioEmbedding.LOST)
    wait_second(graph, heard, FIRST + 6, AudioEmbedding.EMPTY)
    assert [of(heard, FIRST + i).status for i in range(6)] == [0, 0, 2, 2, 2, 2]
    # Bad seconds between good ones are a gap to the encoder, and lost all the same.
    for i in (20, 22):
        source.sound((FIRST + i) * NS, sound_of(i))
        source.raw_sound((FIRST + i + 1) * NS, UNUSABLE)
    source.sound((FIRST + 24) * NS, sound_of(24))
    wait_second(graph, heard, FIRST + 24, AudioEmbedding.OK)
    assert [of(heard, FIRST + i).status for i in range(20, 25)] == [0, 2, 0, 2, 0]
    assert 'NaN' in process.log and process.end() == 0


def test_what_a_message_may_say_wrongly_ends_nothing(graph, tiny_model_dir, rng):
    process, heard = start_ear(graph, tiny_model_dir)
    source = Source(graph)
    source.wait_heard(image=False)
    info = graph.create_publisher(AudioInfo, 'audio_info', 50)
    graph.spin_until(info.get_subscription_count, 'the ear')
    for _ in range(60):
        info.publish(
            AudioInfo(
                channels=int(rng.choice([0, 1, 2, 8, 255])),
                sample_rate=int(rng.choice([0, 1, 8000, 48000, 2**32 - 1])),
                sample_format=str(rng.choice(['', 'S16LE', 'F32BE', 'U8', 'nonsense'])),
                coding_format=str(rng.choice(['wave', 'mp3', 'nonsense'])),
                bitrate=int(rng.choice([0, 1, 2**32 - 1])),
            )
        )
        message = AudioDataStamped()
        message.header.stamp = time_of(int(rng.choice([0, 1, FIRST * NS, (2**31 - 2) * NS])))
        message.audio.data.frombytes(rng.integers(0, 255, rng.integers(0, 9000)).astype('u1'))
        source.audio.publish(message)
        graph.own_executor.spin_once(timeout_sec=0)
    info.publish(AudioInfo(channels=1, sample_rate=16_000, sample_format='S16LE'))
    graph.spin_until(
        lambda: (
            source.sound((FIRST + 50 + len(heard)) * NS, sound_of(1))
            or any(m.second > FIRST + 49 and m.status == AudioEmbedding.OK for m in heard)
        ),
        'sound',
    )
    assert 'Traceback' not in process.log and process.end() == 0


def test_what_waits_is_bounded_by_what_it_costs_and_drops_are_counted():
    inbox = Inbox(20.0)
    assert not inbox.put('ten seconds', cost=10) and not inbox.put('more', cost=10)
    assert inbox.put('a little', cost=0.01) == ['ten seconds']
    assert inbox.put('a minute', cost=60) == ['more', 'a little']
    assert (inbox.dropped, inbox.dropped_cost) == (3, 20.01)
    assert inbox.take(0) == ['a minute'] and inbox.take(0) == []
    for i in range(100):
        inbox.put(i, cost=1)
    assert inbox.take(0) == list(range(80, 100))


@pytest.fixture
def ear(graph):
    """Give a StreamingEncoder of this process without a worker: the test does its work."""
    node = StreamingEncoder()
    yield node
    node.destroy_node()


def test_sound_that_is_dropped_is_told_with_numbers_and_its_seconds_as_overloaded(
    ear, monkeypatch
):
    told = []
    monkeypatch.setattr(ear, 'tell', lambda *text: told.append(text))
    ear.stamps = Stamps(ear, 'audio', 'header')
    for i in range(4):
        ear.on_chunk(FIRST * NS + 10 * i * NS, bytes(320_000), FORMAT)
    state = AudioState(None, '')
    ear.tick(state, Instant(0.0))
    assert state.missing == {FIRST + i: Status.OVERLOADED for i in range(20)}
    ((_, text),) = told
    assert '2 chunks' in text and '20.0 s' in text
    ear.tick(state, Instant(0.0))
    assert len(told) == 1


@pytest.mark.parametrize('begins_stream, published', [(False, [30]), (True, [28, 29, 30])])
def test_only_time_that_goes_back_is_published_again(ear, monkeypatch, begins_stream, published):
    """An encoder that begins anew in a second told as silent before must not clear the window."""
    out = []
    monkeypatch.setattr(ear, 'publish', lambda message: out.append(message.second))
    encoded = [
        AudioSecond(n, restarted=n == 28, begins_stream=begins_stream and n == 28)
        for n in (28, 29, 30)
    ]
    pipeline = SimpleNamespace(push=lambda begin_ns, samples: encoded)
    state = AudioState(pipeline, '', decoder=AudioDecoder(FORMAT), next_second=30)
    state.is_flushed = False  # the source was not silent
    ear.encode(state, Arrival(30 * NS, Instant(0.0), (0, bytes(3200), FORMAT)))
    assert out == published


def test_a_format_that_lies_does_not_make_chunks_cheap():
    for said in (AudioFormat(2**32 - 1, 255, 'F64LE'), AudioFormat(0, 0, '', 'x')):
        assert INBOX_S / cost_s(said, 10**6) * 1e6 < 64e6
        assert INBOX_S / cost_s(said, 0) < 10_000
    assert cost_s(AudioFormat(16_000, 1, 'S16LE'), 32_000) == 1
