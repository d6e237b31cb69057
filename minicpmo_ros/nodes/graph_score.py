# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions answered by the live graph: clips in on topics, answers out by the client.

Starts the installed `live` in a namespace of its own and plays each window second by second, each
when the llm has read the one before. Time is simulated and stands still meanwhile, so that nothing
depends on how quick the machine is. The answers go to a file that `minicpmo score --answers`
scores.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.evaluation.answers import INPUTS, AnswerSet, precision_name
from minicpmo_ros.evaluation.clips import NS, SAMPLE_RATE_HZ, png, read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.evaluation.runner import GREY, CoreOptions
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.nodes.client import Client
from minicpmo_ros.nodes.demo import executable, unless_ended
from minicpmo_ros.nodes.managed import LATCHED
from minicpmo_ros.nodes.messages import to_time
from minicpmo_ros.nodes.spinning import run_program

TIMEOUT_S = 120.0
FIRST_S = 1_000_000  # of the stamps
# Between two clips: too long for a gap in the sound, too short for a jump of the stamps.
APART_S = 4
SILENCE_S = 2  # longer than the encoders wait for more
NODES = 3  # in `live`
DEEP = QoSProfile(depth=100)
LOSSLESS = (('image/compressed', 'depth:=20'), ('image/compressed', 'reliability:=reliable'))
LOSSLESS += (('audio', 'reliability:=reliable'),)


class Examiner(Node):
    """Plays clips to the graph and asks it."""

    def __init__(self, namespace: str):
        super().__init__('graph_score', namespace=namespace)
        self.client, self.process = Client(self), None
        self._pictures = self.create_publisher(CompressedImage, 'image/compressed', DEEP)
        self._sound = self.create_publisher(AudioDataStamped, 'audio', DEEP)
        self._info = self.create_publisher(AudioInfo, 'audio_info', LATCHED)
        self._info.publish(
            AudioInfo(
                channels=1,
                sample_rate=SAMPLE_RATE_HZ,
                sample_format='S16LE',
                coding_format='wave',
            )
        )
        self._clock, self._now_ns = self.create_publisher(Clock, 'clock', DEEP), NS
        self._next_s = FIRST_S  # stamp of the next second to be played
        self._reset = self.create_client(Trigger, 'llm/reset')

    def wait_until(self, condition, what: str) -> None:
        """Wait for `condition()`; raise Error when it takes too long or `live` ended."""

        def holds():
            self._clock.publish(Clock(clock=to_time(self._now_ns)))
            return condition()

        self.client.wait_until(unless_ended([self.process], holds), TIMEOUT_S, what)

    def wait_ready(self) -> None:
        """Wait until the model is loaded and both topics are subscribed to."""
        ready = self.client.ready_async(TIMEOUT_S)
        self.wait_until(ready.done, 'loading')
        ready.result()
        for publisher in (self._pictures, self._sound):
            self.wait_until(publisher.get_subscription_count, 'subscribing')
        self.wait_until(self._reset.service_is_ready, 'finding the reset')
        self.wait_until(lambda: self._clock.get_subscription_count() >= NODES, 'finding the nodes')
        # Twice: when the llm tells the second, the others have the first, a moment before it.
        for step_ns in (NS, NS // 1000):
            self._now_ns += step_ns
            now = to_time(self._now_ns)
            self.wait_until(
                lambda now=now: self.client.status.header.stamp == now, 'setting the time'
            )

    def _empty_the_window(self) -> None:
        future = self._reset.call_async(Trigger.Request())
        self.wait_until(future.done, 'the reset')
        if not future.result().success:
            raise EngineError(f'no reset: {future.result().message}')
        self.wait_until(lambda: self.client.status.units == 0, 'emptying the window')

    def play(self, clip, seconds: range, shown: str) -> None:
        """Empty the window and publish a clip's seconds in lock-step with what is read."""
        self._empty_the_window()
        before, shift_s = self.client.status.units_read, self._next_s - seconds.start
        self._next_s += len(seconds) + APART_S
        for i, second in enumerate(seconds):
            for shot in clip.pictures:
                if shot.stamp_ns // NS == second:
                    self._show(shot, shift_s, shown == 'no_picture')
            for stamp_ns, samples in clip.sound:
                if stamp_ns // NS == second:
                    self._sing(stamp_ns + shift_s * NS, samples, shown == 'no_sound')
            self.wait_until(
                lambda i=i: self.client.status.units_read >= before + i, f'second {second}'
            )
        self._now_ns += SILENCE_S * NS  # it tells that the last second is over
        self.wait_until(
            lambda: self.client.status.units_read >= before + len(seconds),
            'reading the last second',
        )

    def _show(self, shot, shift_s: int, grey: bool) -> None:
        name, data = shot.compressed()
        if grey:
            name, data = 'png', png(np.full_like(shot.rgb(), GREY))
        message = CompressedImage(format=name)
        message.header.stamp = to_time(shot.stamp_ns + shift_s * NS)
        message.data.frombytes(data)
        self._pictures.publish(message)

    def _sing(self, stamp_ns: int, samples, silent: bool) -> None:
        message = AudioDataStamped()
        message.header.stamp = to_time(stamp_ns)
        pcm = (samples * (0 if silent else 32768)).round().clip(-32768, 32767)
        message.audio.data.frombytes(pcm.astype('<i2').tobytes())
        self._sound.publish(message)

    def ask(self, question) -> str:
        """Give the answer's text; raise Error where it is not about the whole window."""
        answer = self.client.ask(
            question.text,
            choices=question.choices,
            max_tokens=CoreOptions().max_tokens,
            timeout_s=TIMEOUT_S,
        )
        if answer.units != question.seconds:
            raise Error(f'{question.id}: {answer.units} of {question.seconds} s were read')
        return answer.text


def answer_all(examiner: Examiner, questions: QuestionSet, shown: str) -> dict:
    """Ask every question; give {id: text} and tell on stderr how long is left."""
    texts, began_s = {}, time.monotonic()
    for name, about in questions.by_clip().items():
        clip = read_clip(questions.path_of(name))
        for (start_s, end_s), asked in by_window(about, clip.first_s).items():
            part = clip.between(start_s, end_s)
            examiner.play(part, range(start_s, end_s), shown)
            texts.update((question.id, examiner.ask(question)) for question in asked)
        left_s = (time.monotonic() - began_s) * (len(questions.questions) / len(texts) - 1)
        print(f'{len(texts)}/{len(questions.questions)}, {left_s:.0f} s left', file=sys.stderr)
    return texts


def score(model_dir: Path, questions: QuestionSet, shown: str) -> AnswerSet:
    """Run the graph and give its answers."""
    model, namespace = ModelDirectory.open(model_dir), f'/graph_score_{os.getpid()}'
    overrides = [
        part
        for topic, policy in LOSSLESS
        for part in ('-p', f'qos_overrides.{namespace}/{topic}.subscription.{policy}')
    ]
    examiner = Examiner(namespace)
    options = ('-p', f'model_dir:={model_dir.resolve()}', *overrides)
    # Units wait for their halves however busy the machine is; the time is of this run alone.
    options += ('-p', 'use_sim_time:=true', '-p', 'llm:unit_deadline:=60.0')
    options += ('-r', f'/clock:={namespace}/clock')
    try:
        with executable('live', *options, namespace=namespace) as examiner.process:
            examiner.wait_ready()
            texts = answer_all(examiner, questions, shown)
    finally:
        examiner.client.destroy()
        examiner.destroy_node()
    return AnswerSet(
        texts, 'graph', precision_name(model.precision), input=shown, model=model.model_id
    )


def main() -> int:
    """Answer and write the file; give the exit code."""
    parser = argparse.ArgumentParser(prog='graph_score', description=__doc__.splitlines()[0])
    parser.add_argument('model_dir', type=Path)
    parser.add_argument('--questions', type=Path, required=True, metavar='FILE')
    parser.add_argument('--out', type=Path, required=True, metavar='ANSWERS.json')
    parser.add_argument('--input', choices=INPUTS, default='all')
    parser.add_argument('--limit', type=int, metavar='N', help='ask only the first N')
    arguments = parser.parse_args()

    def answer() -> None:
        questions = QuestionSet.read(arguments.questions)
        if arguments.limit:
            questions = questions.first(arguments.limit)
        score(arguments.model_dir, questions, arguments.input).write(arguments.out)

    return run_program('graph_score', answer)


if __name__ == '__main__':
    raise SystemExit(main())
