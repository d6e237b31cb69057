# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Plays clips to the live graph and asks it, by topics and services alone, in lock-step.

Each second is played when the llm has read the one before. Time is simulated and stands still
meanwhile, so that nothing depends on how quick the machine is, and nothing is dropped. Where a
second lacks its picture or its sound, time goes on after the window until the llm gives up waiting
for it.
"""

import time

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation.clips import NS, SAMPLE_RATE_HZ, Clip, png
from minicpmo_ros.evaluation.runner import GREY
from minicpmo_ros.msg import Answer
from minicpmo_ros.nodes.audio_input import sound_types
from minicpmo_ros.nodes.client import Client
from minicpmo_ros.nodes.demo import unless_ended
from minicpmo_ros.nodes.managed import LATCHED
from minicpmo_ros.nodes.messages import to_time

TIMEOUT_S = 300.0  # for one second: a large model on a small CPU takes its time
FIRST_S = 1_000_000  # of the stamps
# Between two clips: too long for a gap in the sound, too short for a jump of the stamps.
APART_S = 4
# Longer than the encoders wait for more, shorter than launching.UNIT_DEADLINE_S.
SILENCE_S = 2
TELL_AGAIN_S = 1.0  # of the steady clock, after which the silence is told once more
PENDING = 9  # seconds that may be open where one lacks a half
NODES = 3  # in `live`
DEEP = QoSProfile(depth=100)


class Examiner(Node):
    """Plays and asks; `processes` are those that must not end meanwhile."""

    def __init__(self, namespace: str | None = None):
        super().__init__('replay', namespace=namespace)
        self._sound_type, info_type = sound_types()
        self.client, self.processes = Client(self), []
        self._pictures = self.create_publisher(CompressedImage, 'image/compressed', DEEP)
        self._sound = self.create_publisher(self._sound_type, 'audio', DEEP)
        self._info = self.create_publisher(info_type, 'audio_info', LATCHED)
        self.info = info_type(
            channels=1, sample_rate=SAMPLE_RATE_HZ, sample_format='S16LE', coding_format='wave'
        )
        self._info.publish(self.info)
        self._ticking, self._now_ns = self.create_publisher(Clock, 'clock', DEEP), NS
        self._next_s = FIRST_S  # stamp of the next second to be played
        # After a window that lacked a half, one stream alone may tell of seconds between, and
        # the llm waits for the other's word: time has to go on once more.
        self._was_whole = True
        self.shift_s = 0  # from the clip's stamps to those that are played
        self._reset = self.create_client(Trigger, 'llm/reset')

    def close(self) -> None:
        """Leave the graph."""
        self.client.destroy()
        self.destroy_node()

    def wait_until(self, condition, what: str) -> None:
        """Wait for `condition()`; raise Error when it takes too long or `live` ended."""

        def holds():
            self._ticking.publish(Clock(clock=to_time(self._now_ns)))
            return condition()

        self.client.wait_until(unless_ended(self.processes, holds), TIMEOUT_S, what)

    def wait_ready(self) -> None:
        """Wait until the model is loaded and both topics are subscribed to."""
        ready = self.client.ready_async(TIMEOUT_S)
        self.wait_until(ready.done, 'loading')
        ready.result()
        for publisher in (self._pictures, self._sound):
            self.wait_until(publisher.get_subscription_count, 'subscribing')
        self.wait_until(self._reset.service_is_ready, 'finding the reset')
        self.wait_until(
            lambda: self._ticking.get_subscription_count() >= NODES, 'finding the nodes'
        )
        # Twice: when the llm tells the second, the others have the first, a moment before it.
        for step_ns in (NS, NS // 1000):
            self._now_ns += step_ns
            now = to_time(self._now_ns)
            self.wait_until(
                lambda now=now: self.client.status.header.stamp == now, 'setting the time'
            )

    def play(self, clip: Clip, start_s: int, end_s: int, shown: str, on_message=None) -> list:
        """Empty the window and publish the seconds [start_s, end_s); give those that are there.

        shown: as Variant.input. on_message(second, topic, message) gets what is published, with
        the clip's own stamps.
        """
        self._empty_the_window()
        before, self.shift_s = self.client.status.units_read, self._next_s - start_s
        self._next_s += end_s - start_s + APART_S
        halves = [
            {shot.stamp_ns // NS for shot in clip.pictures},
            {stamp_ns // NS for stamp_ns, _ in clip.sound},
        ]
        there = sorted(halves[0] | halves[1])
        is_whole = halves[0] == halves[1] == set(range(start_s, end_s))
        in_step, self._was_whole = is_whole and self._was_whole, is_whole
        for i, second in enumerate(range(start_s, end_s)):
            self._publish_second(clip, second, shown, on_message)
            read = i if in_step else max(0, sum(s < second for s in there) - PENDING)
            self._wait_read(before + read, f'second {second}')
        self._now_ns += SILENCE_S * NS  # it tells that the last second is over
        if in_step:
            self._tell_again(before + len(there))
        else:
            self._let_time_pass(before + len(there))
        return there

    def ask(self, question, max_tokens: int) -> Answer:
        """Give the answer; raise Error where there is none."""
        return self.client.ask(
            question.text, choices=question.choices, max_tokens=max_tokens, timeout_s=TIMEOUT_S
        )

    def _empty_the_window(self) -> None:
        future = self._reset.call_async(Trigger.Request())
        self.wait_until(future.done, 'the reset')
        if not future.result().success:
            raise EngineError(f'no reset: {future.result().message}')
        self.wait_until(lambda: self.client.status.units == 0, 'emptying the window')

    def _wait_read(self, count: int, what: str) -> None:
        self.wait_until(lambda: self.client.status.units_read >= count, what)

    def _tell_again(self, count: int) -> None:
        """Wait until so many were read; let the silence pass once more where it takes longer.

        To an encoder that learned of the time before it took the last sound, none has passed.
        Twice is less than launching.UNIT_DEADLINE_S: no half is given up, however slow the model.
        """
        begun_s, told = time.monotonic(), False

        def is_read() -> bool:
            nonlocal told
            if not told and time.monotonic() - begun_s >= TELL_AGAIN_S:
                told, self._now_ns = True, self._now_ns + SILENCE_S * NS
            return self.client.status.units_read >= count

        self.wait_until(is_read, 'reading the last second')

    def _let_time_pass(self, count: int) -> None:
        """Let a second of simulated time pass with every steady one until so many were read."""
        last_s = time.monotonic()

        def is_read() -> bool:
            nonlocal last_s
            if time.monotonic() - last_s >= 1.0:
                last_s, self._now_ns = time.monotonic(), self._now_ns + NS
                self._next_s += 1  # the streams are so much further
            return self.client.status.units_read >= count

        self.wait_until(is_read, 'reading seconds that lack a picture or a sound')

    def _publish_second(self, clip: Clip, second: int, shown: str, on_message) -> None:
        for shot in clip.pictures:
            if shot.stamp_ns // NS == second:
                message = _picture(shot, shown == 'no_picture')
                self._publish(self._pictures, message, shot.stamp_ns, second, on_message)
        for stamp_ns, samples in clip.sound:
            if stamp_ns // NS == second:
                message = self._piece(samples, shown == 'no_sound')
                self._publish(self._sound, message, stamp_ns, second, on_message)

    def _piece(self, samples, silent: bool):
        message = self._sound_type()
        pcm = (samples * (0 if silent else 32768)).round().clip(-32768, 32767)
        message.audio.data.frombytes(pcm.astype('<i2').tobytes())
        return message

    def _publish(self, publisher, message, stamp_ns: int, second: int, on_message) -> None:
        if on_message is not None:
            message.header.stamp = to_time(stamp_ns)
            name = 'audio' if publisher is self._sound else 'image/compressed'
            on_message(second, name, message)
        message.header.stamp = to_time(stamp_ns + self.shift_s * NS)
        publisher.publish(message)


def _picture(shot, grey: bool) -> CompressedImage:
    name, data = shot.compressed()
    if grey:
        name, data = 'png', png(np.full_like(shot.rgb(), GREY))
    message = CompressedImage(format=name)
    message.data.frombytes(data)
    return message
