# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `relay` with what drivers send, and `live` behind it: the same answers, within the rate."""

import io
import time
from itertools import pairwise

import numpy as np
from audio_common_msgs.msg import AudioDataStamped
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image as Picture
from rclpy.qos import QoSProfile
from ros_graph import DATA, Process
from ros_source import FIRST, AtRoot, HeldReader, Source, jpeg, time_of
from sensor_msgs.msg import CompressedImage, Image
from test_day_of_a_robot import QUESTIONS, Scene
from test_streams_relay import photo

from minicpmo_ros.media.image.compressed import decode_compressed
from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.ros.relay import RelayNode
from minicpmo_ros.srv import Ask
from minicpmo_ros.streams.relay import RateRule, wire_bytes
from minicpmo_ros.streams.time import LIMITS

NS = 10**9
DEEP = QoSProfile(depth=500)
FAR = 'far'  # the namespace of the machine that runs the model


class Relayed:
    """What a relay has published."""

    def __init__(self, graph):
        self.graph, self.images, self.audio, self.told = graph, [], [], {}
        self.subscriptions = (
            graph.create_subscription(
                CompressedImage, 'relay/image/compressed', self.images.append, DEEP
            ),
            graph.create_subscription(AudioDataStamped, 'relay/audio', self.audio.append, DEEP),
        )
        graph.create_subscription(DiagnosticArray, '/diagnostics', self._hear, DEEP)

    def _hear(self, message) -> None:
        for status in message.status:
            if status.name == f'{self.graph.namespace[1:]}/relay: relay':
                self.told = {pair.key: pair.value for pair in status.values}
                self.told['message'] = status.message

    def samples(self) -> np.ndarray:
        """Give all of the audio, (n,) int16."""
        return np.frombuffer(b''.join(bytes(m.audio.data) for m in self.audio), '<i2')

    def spin_until_told(self, key: str, count: int) -> None:
        self.graph.spin_until(lambda: int(self.told.get(key, 0)) >= count, f'{count} {key}')


def start_relay(graph, *arguments):
    """Start a relay that loses nothing of a burst, as it would of a second's."""
    deep = tuple(
        part
        for name in ('image/compressed', 'audio')
        for part in ('-p', f'qos_overrides.{graph.namespace}/relay/{name}.publisher.depth:=500')
    )
    process = graph.start('relay', *graph.lossless, *deep, *arguments)
    relayed = Relayed(graph)
    for subscription in relayed.subscriptions:
        # That the graph knows a publisher does not say that the two have found each other.
        graph.spin_until(subscription.get_publisher_count, 'the relay')
    return process, relayed


class Eyes:
    """A `live` with nano, and the embeddings that its encoders have given."""

    def __init__(self, graph, namespace: str, *arguments):
        self.graph, self.rows, self.status = graph, {}, None
        common = ('-p', 'model_dir:=nano', '--params-file', str(DATA / 'not_blind.yaml'))
        self.process = Process(
            graph.log_dir, 'live', '-r', f'__ns:={namespace}', *common, *arguments
        )
        graph.processes.append(self.process)
        for kind, node in (
            (ImageEmbedding, 'vision_encoder'),
            (AudioEmbedding, 'streaming_encoder'),
        ):
            topic = f'{namespace}/{node}/embedding'
            graph.create_subscription(kind, topic, self._keep, DEEP)
        graph.create_subscription(Status, f'{namespace}/llm/status', self._on_status, LATCHED)
        self._client = graph.create_client(Ask, f'{namespace}/llm/ask')

    def _keep(self, message) -> None:
        if message.status == message.OK:
            self.rows[type(message).__name__, message.second] = bytes(message.data)

    def _on_status(self, message) -> None:
        self.status = message

    @property
    def is_ready(self) -> bool:
        return self.status is not None and self.status.state == Status.READY

    def ask(self, text: str):
        self.graph.spin_until(self._client.service_is_ready, 'the service')
        future = self._client.call_async(Ask.Request(question=text, max_tokens=16))
        return self.graph.result_of(future, 'the answer').answer


def test_behind_a_relay_every_embedding_and_answer_is_the_same(graph):
    """The JPEG is of the wanted size, so it crosses as it is; so does audio of 16 kHz."""
    relay, relayed = start_relay(graph, '-p', 'max_mbit:=100.0')
    near = Eyes(graph, graph.namespace, *graph.lossless)
    over = [f'{graph.namespace}/relay/{name}' for name in ('image', 'audio')]
    names = (
        '-r', f'image:={over[0]}', '-r', f'image/compressed:={over[0]}/compressed',
        '-r', f'audio:={over[1]}', '-r', f'audio_info:={over[1]}_info',
        '-p', f'qos_overrides.{over[0]}/compressed.subscription.reliability:=reliable',
        '-p', f'qos_overrides.{over[1]}.subscription.reliability:=reliable',
    )  # fmt: skip
    far = Eyes(graph, f'{graph.namespace}/{FAR}', *names)
    graph.spin_until(lambda: near.is_ready and far.is_ready, 'both models')
    source, scene = Source(graph), Scene.read('010')
    for publisher in (source.images, source.audio, source.info):
        graph.spin_until(lambda p=publisher: p.get_subscription_count() >= 2, 'both to listen')
    for topic in (f'{over[0]}/compressed', over[1], f'{over[1]}_info'):
        graph.spin_until(
            lambda t=topic: graph.count_subscribers(t) >= 1 + ('info' not in t), 'far'
        )
    for at_ns, data in scene.images:
        source.picture(FIRST * NS + at_ns, data)
    for at_ns, samples in scene.audio:
        source.sound(FIRST * NS + at_ns, samples)
    for eyes in (near, far):
        graph.spin_until(lambda e=eyes: e.status.window_end.sec == FIRST + scene.seconds, 'all')
    # The first embedding may come before this test is known to listen.
    least = 2 * scene.seconds - 2
    graph.spin_until(lambda: len(near.rows.keys() & far.rows.keys()) >= least, 'the embeddings')
    common = near.rows.keys() & far.rows.keys()
    assert {key: near.rows[key] for key in common} == {key: far.rows[key] for key in common}
    for question in ('010-scene', '010-source', '010-temporal', '010-mislead'):
        question = QUESTIONS[question]
        answers = [eyes.ask(question['text']) for eyes in (near, far)]
        assert answers[0].text == answers[1].text and answers[1].finish == answers[1].STOP
        assert answers[0].seconds == answers[1].seconds
    assert len(relayed.images) == scene.seconds  # one a second, of several that came
    assert {bytes(m.data) for m in relayed.images} <= {data for _, data in scene.images}
    relayed.spin_until_told('images as they came', scene.seconds)
    for process in (near.process, far.process, relay):
        assert process.end() == 0 and 'Traceback' not in process.log


def stereo(rate_hz: int, seconds: int) -> np.ndarray:
    """Give (n, 2) int16: 440 Hz left, silence right."""
    t = np.arange(rate_hz * seconds) / rate_hz
    left = 0.4 * np.sin(2 * np.pi * 440 * t)
    return (np.stack([left, np.zeros_like(left)], axis=1) * 32767).astype('<i2')


def publish_stereo(graph, source, relayed, seconds: int, rate_hz=48_000, chunk=1024) -> None:
    """Publish as audio_capture does with the sound card of a laptop; wait for what is sent on."""
    samples = stereo(rate_hz, seconds)
    for begin in range(0, len(samples), chunk):
        stamp_ns = FIRST * NS + begin * NS // rate_hz
        source.raw_sound(stamp_ns, samples[begin : begin + chunk].tobytes())
        known = (begin - rate_hz // 2) * 16_000 // rate_hz  # half a second may be on its way
        if begin // chunk % 10 == 0:
            graph.spin_until(lambda n=known: len(relayed.samples()) >= n, 'the audio until now')


def test_a_large_jpeg_and_stereo_of_48_khz_become_small_and_keep_their_stamps(graph):
    process, relayed = start_relay(graph, '-p', 'max_mbit:=100.0')
    source = Source(graph, sample_rate=48_000, channels=2)
    source.wait_heard()
    publish_stereo(graph, source, relayed, seconds=3)
    data = jpeg(photo(3, 1920, 1080))
    stamps = [FIRST * NS + i * NS // 5 for i in range(15)]
    for stamp_ns in stamps:
        source.picture(stamp_ns, data)
    graph.spin_until(lambda: len(relayed.images) >= 3, 'three images')
    # Which is the newest when its second ends depends on when it arrives (test_streams_relay.py).
    assert [stamp_ns_of(m) // NS - FIRST for m in relayed.images] == [0, 1, 2]
    assert {stamp_ns_of(m) for m in relayed.images} <= {*stamps}
    for message in relayed.images:
        assert decode_compressed(message.data, message.format).shape == (360, 640, 3)
    graph.spin_until(lambda: len(relayed.samples()) >= 3 * 16_000, 'all of the audio')
    samples = relayed.samples()[:48_000]
    tone = np.abs(np.fft.rfft(samples[16_000:32_000]))
    assert tone.argmax() == 440 and 0.15 < np.abs(samples).max() / 32767 < 0.25
    begins = [stamp_ns_of(message) for message in relayed.audio]
    assert begins[0] == FIRST * NS
    for (one, begin), next_begin in zip(zip(relayed.audio, begins), begins[1:]):
        assert abs(next_begin - begin - len(one.audio.data) // 2 * NS // 16_000) < 5_000_000
    assert process.end() == 0


def test_a_stream_of_audio_goes_on_while_its_reader_is_held_up(graph, spun, monkeypatch):
    pieces, looks, set_rate = [], [], RateRule.set_rate
    monkeypatch.setattr(RateRule, 'set_rate', lambda *given: (looks.append(0), set_rate(*given)))
    graph.create_subscription(AudioDataStamped, '/relay/audio', pieces.append, DEEP)
    reader, _ = HeldReader(monkeypatch, '/audio'), spun(RelayNode())
    source = Source(AtRoot(graph))
    source.wait_heard()
    part = 1600  # samples, of which one tenth is left over for the next piece

    def play(second):
        for i in range(second * 16_000, (second + 1) * 16_000, part):
            source.sound(FIRST * NS + i * NS // 16_000, np.full(part, 0.1, np.float32))

    def wait(second):
        sent = (second + 1) * 16_000 - 512
        graph.spin_until(
            lambda: sum(len(each.audio.data) // 2 for each in pieces) > sent, 'the audio'
        )

    play(0)
    wait(0)
    try:
        reader.hold()
        play(1)
        held_s, n_looks = time.monotonic(), len(looks)
        graph.spin_until(
            lambda: time.monotonic() > held_s + 2 * LIMITS.grace_s and len(looks) > n_looks + 5,
            'the relay to look again and again',
        )
    finally:
        reader.let_go()
    wait(1)
    assert {len(message.audio.data) for message in pieces} == {1024}


def test_raw_yuyv_crosses_as_jpeg_with_its_frame(graph):
    process, relayed = start_relay(graph)
    camera = graph.create_publisher(Image, 'image', 10)
    graph.spin_until(camera.get_subscription_count, 'a subscriber')
    rows = np.zeros((480, 640, 2), np.uint8)
    rows[..., 0], rows[:, 0::2, 1], rows[:, 1::2, 1] = 120, 90, 200  # y, u, v
    for i in range(12):
        message = Image(width=640, height=480, encoding='yuv422_yuy2', step=1280)
        message.header.stamp, message.header.frame_id = time_of(FIRST * NS + i * NS // 4), 'eye'
        message.data.frombytes(rows.tobytes())
        camera.publish(message)
        graph.own_executor.spin_once(timeout_sec=0.02)  # so that none pushes another out
    graph.spin_until(lambda: len(relayed.images) >= 2, 'two images')
    for message in relayed.images:
        assert message.header.frame_id == 'eye' and message.format == 'jpeg'
        pixels = decode_compressed(message.data).reshape(-1, 3).astype(int)
        assert pixels.std(axis=0).max() < 3 and pixels.mean(axis=0)[0] > 180  # red
    assert process.end() == 0


def test_images_get_worse_before_the_rate_is_exceeded_and_that_is_told(graph):
    """A second of a busy street and a microphone in real time; what is sent is counted."""
    process, relayed = start_relay(graph)
    source, data = Source(graph), jpeg(photo(5))
    assert len(data) > 90_000  # as much as 0.75 Mbit/s carry in a second
    source.wait_heard()
    begun_s, published = time.monotonic(), 0
    times = []

    def play():
        nonlocal published
        while published <= (time.monotonic() - begun_s) * 10:
            now_ns = time.time_ns()
            source.picture(now_ns, data)
            source.sound(now_ns - NS // 10, np.full(1600, 0.1, np.float32))
            published += 1
        while len(times) < len(relayed.images):
            times.append(time.monotonic())
        return len(relayed.images) >= 5

    graph.spin_until(play, 'five images')
    for message in relayed.images:
        assert Picture.open(io.BytesIO(bytes(message.data))).format == 'JPEG'
    per_second = 0.75e6 / 8
    assert max(wire_bytes(len(m.data)) for m in relayed.images) < per_second - 37_000
    passed_s = time.monotonic() - begun_s
    sent = sum(wire_bytes(len(m.data)) for m in relayed.images)
    sent += sum(wire_bytes(len(m.audio.data)) for m in relayed.audio)
    assert sent <= (passed_s + 1) * per_second
    graph.spin_until(lambda: play() and 'max_mbit leaves' in relayed.told['message'], 'a warning')
    assert 'images are sent in 640x480 at quality' in process.log
    assert 0 < int(relayed.told['bytes a second'])
    seconds = [stamp_ns_of(m) // NS for m in relayed.images]
    assert all(b > a for a, b in pairwise(seconds))
    assert process.end() == 0
