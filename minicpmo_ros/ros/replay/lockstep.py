# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Plays clips to the live graph in lockstep and asks it questions, only by topics and services.

Each second is played once the llm has read the one before. Meanwhile simulated time stands still,
so that nothing depends on the machine's speed and nothing is dropped. If a window has only images
or only audio, the llm waits only for those. If some seconds lack one of both, a second is played
once the encoders have published the one before, and after the window time goes on until the llm
stops waiting for what is missing.
"""

import time
from functools import partial

import numpy as np
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from minicpmo_ros.client.client import Client
from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation.bags.clip import SAMPLE_RATE_HZ, Clip, png
from minicpmo_ros.evaluation.looks import GREY
from minicpmo_ros.msg import Answer, AudioEmbedding, ImageEmbedding
from minicpmo_ros.ros.audio_input import audio_types
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.replay.demo import unless_ended
from minicpmo_ros.units import NS

TIMEOUT_S = 300.0  # for one second: a large model on a small CPU takes its time
FIRST_S = 1_000_000  # of the stamps
# Between two clips: too long for a gap in the audio, too short for a jump of the stamps.
APART_S = 4
# Longer than the encoders wait for more, shorter than launching.UNIT_DEADLINE_S.
SILENCE_S = 2
TELL_AGAIN_S = 1.0  # of the steady clock, after which the silence is told once more
PENDING = 9  # seconds that may be open where one lacks a half
NODES = 3  # in `live`
LEAST_SAMPLES, LONGEST_GAP_NS = SAMPLE_RATE_HZ // 10, NS // 10
DEEP = QoSProfile(depth=100)
EMBEDDINGS = {
    'image': (ImageEmbedding, 'vision_encoder/embedding'),
    'audio': (AudioEmbedding, 'streaming_encoder/embedding'),
}


class LockstepPlayer(Node):
    """Plays clips and asks questions; `processes` must not end meanwhile."""

    def __init__(self, namespace: str | None = None):
        super().__init__('replay', namespace=namespace, start_parameter_services=False)
        self._audio_type, info_type = audio_types()
        self.client, self.processes = Client(self), []
        self._images = self.create_publisher(CompressedImage, 'image/compressed', DEEP)
        self._audio = self.create_publisher(self._audio_type, 'audio', DEEP)
        self._info = self.create_publisher(info_type, 'audio_info', LATCHED)
        self.info = info_type(
            channels=1, sample_rate=SAMPLE_RATE_HZ, sample_format='S16LE', coding_format='wave'
        )
        self._info.publish(self.info)
        self._ticking, self._now_ns = self.create_publisher(Clock, 'clock', DEEP), NS
        self._next_s = FIRST_S  # stamp of the next second to be played
        # After a window with other senses, or one that lacked a half, one stream alone may tell of
        # seconds between, and the llm waits for the other's word: time has to go on once more.
        self._before = None  # what the window before waited for; '': it lacked a half
        self._wait_for = None  # what the llm was told
        self._encoded = {'image': -1, 'audio': -1}  # newest seconds
        for sense, (kind, topic) in EMBEDDINGS.items():
            self.create_subscription(kind, topic, partial(self._on_encoded, sense), DEEP)
        self.shift_s = 0  # from the clip's stamps to those that are played
        self._reset = self.create_client(Trigger, 'llm/reset')
        self._set = self.create_client(SetParameters, 'llm/set_parameters')

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
        for publisher in (self._images, self._audio):
            self.wait_until(publisher.get_subscription_count, 'subscribing')
        self.wait_until(self._reset.service_is_ready, 'finding the reset')
        self.wait_until(
            lambda: self._ticking.get_subscription_count() >= NODES, 'finding the nodes'
        )
        self._share_time((NS, NS // 1000))

    def _share_time(self, steps_ns: tuple, prompt_status=lambda: None) -> None:
        """Let time go on by two steps, until all nodes know it.

        When the llm tells the second, the others have the first, a moment before it.
        `prompt_status` makes the llm publish its status before the second is over.
        """
        for step_ns in steps_ns:
            self._now_ns += step_ns
            now = to_time(self._now_ns)
            prompt_status()
            self.wait_until(
                lambda now=now: self.client.status.header.stamp == now, 'setting the time'
            )

    def play(self, clip: Clip, start_s: int, end_s: int, shown: str, on_message=None) -> list:
        """Empty the window and publish the seconds [start_s, end_s); return those that are there.

        shown: as Variant.input. on_message(second, topic, message) gets what is published, with
        the clip's own stamps.
        """
        self._empty_the_window()
        before, self.shift_s = self.client.status.units_read, self._next_s - start_s
        self._next_s += end_s - start_s + APART_S
        halves = [
            {image.stamp_ns // NS for image in clip.images},
            {stamp_ns // NS for stamp_ns, _ in clip.audio},
        ]
        there, seconds = sorted(halves[0] | halves[1]), by_second(clip)
        wait_for = 'both' if all(halves) else 'image' if halves[0] else 'audio'
        self._tell_wait_for(wait_for)
        is_whole = all(half in (set(), set(range(start_s, end_s))) for half in halves)
        in_step = is_whole and self._before in (None, wait_for)
        self._before = wait_for if is_whole else ''
        for i, second in enumerate(range(start_s, end_s)):
            self._publish_second(*seconds.get(second, ((), ())), second, shown, on_message)
            read = i if in_step else max(0, sum(s < second for s in there) - PENDING)
            self._wait_read(before + read, f'second {second}')
            if not in_step:
                self._wait_encoded(going_on(clip, second), second - 1)
        self._now_ns += SILENCE_S * NS  # it tells that the last second is over
        if in_step:
            self._tell_again(lambda: self.client.status.units_read >= before + len(there))
        else:
            last = {
                sense: max(half) for sense, half in zip(EMBEDDINGS, halves, strict=True) if half
            }
            self._tell_again(lambda: all(self._has_encoded(*item) for item in last.items()))
            self._let_time_pass(before + len(there))
        return there

    def ask(self, question, max_tokens: int, look: str, is_grey: bool) -> Answer:
        """Return the answer; raise Error where there is none.

        look: instead of the question's own; is_grey: an image that is sent along is shown grey.
        """
        sent = question.image and image_message(question.image.open(), is_grey)
        return self.client.ask(
            question.text,
            choices=question.choices,
            json_schema=question.json_schema,
            max_tokens=max_tokens,
            temperature=0.0,
            look=look,
            image=sent,
            timeout_s=TIMEOUT_S,
        )

    def _empty_the_window(self) -> None:
        """Empty the window once all nodes know the time.

        An encoder that learned only later that time has gone on would take the first seconds of
        the next clip for past ones.
        """
        self._share_time((NS // 1000, NS // 1000), self._call_reset)
        self.wait_until(lambda: self.client.status.units == 0, 'emptying the window')

    def _call_reset(self) -> None:
        future = self._reset.call_async(Trigger.Request())
        self.wait_until(future.done, 'the reset')
        if not future.result().success:
            raise EngineError(f'no reset: {future.result().message}')

    def _tell_wait_for(self, senses: str) -> None:
        """Set the parameter wait_for of the llm."""
        if senses == self._wait_for:
            return
        self.wait_until(self._set.service_is_ready, 'finding the parameters')
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=senses)
        future = self._set.call_async(
            SetParameters.Request(parameters=[Parameter(name='wait_for', value=value)])
        )
        self.wait_until(future.done, 'setting wait_for')
        (result,) = future.result().results
        if not result.successful:
            raise EngineError(f'wait_for was not set: {result.reason}')
        self._wait_for = senses

    def _on_encoded(self, sense: str, message) -> None:
        self._encoded[sense] = max(self._encoded[sense], message.second)

    def _has_encoded(self, sense: str, second: int) -> bool:
        return self._encoded[sense] >= second + self.shift_s

    def _wait_encoded(self, senses: list, second: int) -> None:
        self.wait_until(
            lambda: all(self._has_encoded(sense, second) for sense in senses),
            f'encoding second {second}',
        )

    def _wait_read(self, count: int, what: str) -> None:
        self.wait_until(lambda: self.client.status.units_read >= count, what)

    def _tell_again(self, is_done) -> None:
        """Wait until `is_done()`; let the silence pass once more where it takes longer.

        To an encoder that learned of the time before it took the last audio, none has passed.
        Twice is less than launching.UNIT_DEADLINE_S: no half is given up, however slow the model.
        """
        begun_s, told = time.monotonic(), False

        def is_over() -> bool:
            nonlocal told
            if not told and time.monotonic() - begun_s >= TELL_AGAIN_S:
                told, self._now_ns = True, self._now_ns + SILENCE_S * NS
            return is_done()

        self.wait_until(is_over, 'reading the last second')

    def _let_time_pass(self, count: int) -> None:
        """Let a second of simulated time pass with every steady one until so many were read."""
        last_s = time.monotonic()

        def is_read() -> bool:
            nonlocal last_s
            if time.monotonic() - last_s >= 1.0:
                last_s, self._now_ns = time.monotonic(), self._now_ns + NS
                self._next_s += 1  # the streams are so much further
            return self.client.status.units_read >= count

        self.wait_until(is_read, 'reading seconds that lack an image or audio')

    def _publish_second(self, images, audio, second: int, shown: str, on_message) -> None:
        for image in images:
            message = image_message(image, shown == 'no_picture')
            self._publish(self._images, message, image.stamp_ns, second, on_message)
        for stamp_ns, samples in audio:
            message = self._piece(samples, shown == 'no_sound')
            self._publish(self._audio, message, stamp_ns, second, on_message)

    def _piece(self, samples, silent: bool):
        message = self._audio_type()
        pcm = (samples * (0 if silent else 32768)).round().clip(-32768, 32767)
        message.audio.data.frombytes(pcm.astype('<i2').tobytes())
        return message

    def _publish(self, publisher, message, stamp_ns: int, second: int, on_message) -> None:
        if on_message is not None:
            message.header.stamp = to_time(stamp_ns)
            name = 'audio' if publisher is self._audio else 'image/compressed'
            on_message(second, name, message)
        message.header.stamp = to_time(stamp_ns + self.shift_s * NS)
        publisher.publish(message)


def by_second(clip: Clip) -> dict:
    """Return {second: (images, pieces of audio)} of a clip."""
    found = {}
    for image in clip.images:
        found.setdefault(image.stamp_ns // NS, ([], []))[0].append(image)
    for stamp_ns, samples in clip.audio:
        found.setdefault(stamp_ns // NS, ([], []))[1].append((stamp_ns, samples))
    return found


def going_on(clip: Clip, second: int) -> list:
    """Return the senses whose data of this second shows that the one before is over."""
    seconds = {image.stamp_ns // NS for image in clip.images}
    senses = ['image'] if {second - 1, second} <= seconds else []
    before = [(stamp_ns, n) for stamp_ns, n in lengths(clip) if stamp_ns // NS == second - 1]
    now = [(stamp_ns, n) for stamp_ns, n in lengths(clip) if stamp_ns // NS == second]
    if before and sum(n for _, n in now) >= LEAST_SAMPLES:
        end_ns = before[-1][0] + before[-1][1] * NS // SAMPLE_RATE_HZ
        if abs(now[0][0] - end_ns) <= LONGEST_GAP_NS:  # a later piece waits to be confirmed
            senses.append('audio')
    return senses


def lengths(clip: Clip) -> list:
    """Return the pieces of audio as (stamp_ns, samples)."""
    return [(stamp_ns, len(samples)) for stamp_ns, samples in clip.audio]


def image_message(image, grey: bool) -> CompressedImage:
    """Return an image of a clip as a message, grey or as it is."""
    name, data = image.compressed()
    if grey:
        name, data = 'png', png(np.full_like(image.rgb(), GREY))
    message = CompressedImage(format=name)
    message.data.frombytes(data)
    return message
