# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A camera and a microphone for tests: seconds of a scene, published with exact stamps."""

import io
import math
import threading
import time

import numpy as np
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from builtin_interfaces.msg import Time
from PIL import Image
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.ros.framework import threads
from minicpmo_ros.ros.framework.lifecycle import LATCHED

FIRST = 1_000_000  # of the seconds published; any
RATE_HZ = 16_000
CHUNKS = 4  # pieces of sound a second
DEEP = QoSProfile(depth=50)


def jpeg(picture) -> bytes:
    """Encode (H, W, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=90)
    return file.getvalue()


def picture_of(second: int):
    """Give (120, 160, 3) uint8 that differs from second to second."""
    rng = np.random.default_rng(second)
    picture = np.full((120, 160, 3), rng.integers(0, 255, 3), np.uint8)
    top, left = rng.integers(0, 60), rng.integers(0, 100)
    picture[top : top + 50, left : left + 50] = rng.integers(0, 255, 3)
    return picture


def decoded_of(second: int, needed=None) -> Decoded:
    """Give picture_of(second) as the nodes' inputs give it."""
    return Decoded.whole(picture_of(second))


def sound_of(second: int):
    """Give (16000,) float32: a tone whose pitch differs from second to second."""
    t = np.arange(RATE_HZ) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * (220 + 37 * (second % 20)) * t)).astype(np.float32)


def time_of(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


# Of format F32LE: what cannot be read, whatever comes before and behind it.
UNUSABLE = np.full(3, np.nan, '<f4').tobytes()


class Source:
    """Publishes in the namespace of the test's graph."""

    def __init__(
        self,
        graph,
        sample_rate: int = RATE_HZ,
        channels: int = 1,
        sample_format: str = 'S16LE',
    ):
        self._graph, self._sample_format = graph, sample_format
        self.images = graph.create_publisher(CompressedImage, 'image/compressed', DEEP)
        self.audio = graph.create_publisher(AudioDataStamped, 'audio', DEEP)
        self.info = graph.create_publisher(AudioInfo, 'audio_info', LATCHED)
        self.info.publish(
            AudioInfo(
                channels=channels,
                sample_rate=sample_rate,
                sample_format=sample_format,
                coding_format='wave',
            )
        )

    def wait_heard(self, image: bool = True, audio: bool = True) -> None:
        """Wait until both topics are subscribed to, or one of them."""
        for publisher in (self.images,) * image + (self.audio,) * audio:
            self._graph.spin_until(publisher.get_subscription_count, 'a subscriber')
        end_s = time.monotonic() + 5 * audio  # who knows the format by a parameter need not ask
        self._graph.spin_until(
            lambda: self.info.get_subscription_count() or time.monotonic() >= end_s, 'the format'
        )

    def picture(self, stamp_ns: int, data: bytes) -> None:
        """Publish a compressed picture."""
        message = CompressedImage(format='jpeg')
        message.header.stamp = time_of(stamp_ns)
        message.data.frombytes(data)
        self.images.publish(message)

    def sound(self, stamp_ns: int, samples) -> None:
        """Publish samples (n,) float32, in 16 bits where nothing else was said."""
        if self._sample_format == 'S16LE':
            samples = samples * 32767
        kind = {'S16LE': '<i2', 'F32LE': '<f4'}[self._sample_format]
        self.raw_sound(stamp_ns, samples.astype(kind).tobytes())

    def raw_sound(self, stamp_ns: int, data: bytes) -> None:
        """Publish any bytes as sound."""
        message = AudioDataStamped()
        message.header.stamp = time_of(stamp_ns)
        message.audio.data.frombytes(data)
        self.audio.publish(message)

    def second(self, second: int, picture: bool = True) -> None:
        """Publish a picture in the middle of a second and the sound of all of it."""
        if picture:
            self.picture(second * 10**9 + 500_000_000, jpeg(picture_of(second)))
        for i, part in enumerate(np.split(sound_of(second), CHUNKS)):
            self.sound(second * 10**9 + i * 10**9 // CHUNKS, part)

    def until_read(self, second: int, simulated=None) -> int:
        """Publish seconds from this one on until the llm has read image, audio and the newest.

        Return the second in which the streams are then. Encoders and an llm in several processes
        find each other in their own time, one topic before the other, and what is given before
        that is lost: the first second read may lack a part. No faster than seconds pass, or stamps
        run away from the times of arrival, and an encoder that gets behind the other one no longer
        believes them. `simulated`: the SimulatedTime, where time is simulated.
        """
        wait = simulated.pass_until if simulated else self._graph.spin_until
        now_s = (lambda: simulated.now_s) if simulated else time.monotonic
        graph, next_s, published_s = self._graph, -math.inf, 0.0
        before, last = graph.status.units_read, second - 1

        def is_read():
            nonlocal next_s, published_s, last
            ends = graph.status.image_end.sec, graph.status.audio_end.sec
            if graph.status.units_read > before and min(ends) > second:
                return True
            if time.monotonic() >= next_s:
                next_s, published_s, last = time.monotonic() + 1.0, now_s(), last + 1
                self.second(last)
            return False

        wait(is_read, 'a second to be read')
        wait(lambda: graph.status.window_end.sec == last + 1, 'the last second to be read')
        if simulated:
            simulated.wait_same()
        return last + math.ceil(now_s() - published_s)


class AtRoot:
    """A graph whose publishers are in no namespace, as is a node of this process."""

    def __init__(self, graph):
        self._graph, self.spin_until = graph, graph.spin_until

    def create_publisher(self, kind, topic, qos):
        return self._graph.create_publisher(kind, f'/{topic}', qos)


class HeldReader:
    """Holds up whoever reads a topic in this process, as one is that gets no time to run."""

    def __init__(self, monkeypatch, topic: str):
        self._may_read, call_back = threading.Event(), threads.call_back
        self._may_read.set()

        def wait_and_call_back(subscription, stop=None):
            if subscription.topic_name == topic:
                self._may_read.wait()
            call_back(subscription, stop)

        monkeypatch.setattr(threads, 'call_back', wait_and_call_back)

    def hold(self) -> None:
        self._may_read.clear()

    def let_go(self) -> None:
        self._may_read.set()


class SimulatedTime:
    """/clock by the hand of a test."""

    def __init__(self, graph):
        self._graph = graph
        self._publisher = graph.create_publisher(Clock, '/clock', 10)
        graph.spin_until(self._publisher.get_subscription_count, 'a node')
        self.now_s = FIRST - 50  # stamps need not agree with it: only what passes matters

    def pass_until(self, condition, what):
        """Let a second pass with each second of real time until something has happened.

        Again and again: for an encoder that learns of the time before it takes the audio, a
        silence that ends it has not begun.
        """
        told_s = -math.inf

        def holds():
            nonlocal told_s
            if time.monotonic() - told_s >= 1.0:
                told_s, self.now_s = time.monotonic(), self.now_s + 1
            return condition()

        self.until(holds, what)

    def until(self, condition, what):
        """Let time stand still until something has happened."""

        def holds():
            self._publisher.publish(Clock(clock=time_of(int(self.now_s * 10**9))))
            return condition()

        self._graph.spin_until(holds, what)

    def wait_known(self):
        """Wait until the three nodes have this time; the llm tells it."""
        self._graph.spin_until(lambda: self._publisher.get_subscription_count() >= 3, 'all nodes')
        self.wait_same((1.0, 0.001))

    def wait_same(self, steps_s=(0.001, 0.001)):
        """Let time go on by small steps, until all nodes have it."""
        # Twice: when the llm tells the second, the others have the first, a moment before it.
        for step_s in steps_s:
            self.now_s += step_s
            now = time_of(int(self.now_s * 10**9))
            self.until(lambda now=now: self._graph.status.header.stamp == now, 'its time')

    def close(self):
        self._graph.destroy_publisher(self._publisher)
