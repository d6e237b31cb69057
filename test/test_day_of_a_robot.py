# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A day of a robot: what happens to its camera, microphone, processes and clocks, and its answers.

Each test is one situation, played with nano and real messages to the installed executables. The
answers must be right, and must tell honestly which seconds they are based on. Simulated time is
moved by hand, second by second, when the second before has been read; only where two real clocks
disagree does time run by itself. So nothing depends on how quick the machine is.
"""

import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from ros_graph import DATA, LONG
from ros_source import FIRST, RATE_HZ, SimulatedTime, Source
from std_srvs.srv import Trigger
from test_ros_live import ask_by_action

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.msg import Answer, AudioEmbedding, ImageEmbedding
from minicpmo_ros.srv import Ask

CLIPS = Path(__file__).parents[1] / 'demo' / 'clips'
QUESTIONS = {
    question['id']: question
    for question in json.loads((CLIPS / 'questions.json').read_text())['questions']
}
NS = 10**9
HOUR_S, TAI_S = 3600, 37
BOTH = ('image', 'audio')
# As a robot has it: no answer without evidence. With simulated time units wait for their halves
# however busy the machine is: this is about what is answered, not about speed.
COMMON = ('-p', 'model_dir:=nano', '--params-file', str(DATA / 'not_blind.yaml'))
SIMULATED = ('-p', 'use_sim_time:=true', '-p', 'unit_deadline:=60.0')
# So long an answer goes on for all of the test, and is cancelled.
ENDLESS = ('-p', 'max_tokens:=6000', '-p', 'n_ctx:=8192')
# Between two scenes: the silence that ends the first is over, and stamps do not jump.
APART_S = 4


@dataclass(frozen=True)
class Scene:
    """A clip nano answers questions about; nanoseconds count from its begin."""

    seconds: int
    images: tuple  # of (nanoseconds, bytes of a JPEG)
    audio: tuple  # of (nanoseconds, samples (n,) float32)

    @classmethod
    def read(cls, name: str) -> 'Scene':
        clip = read_clip(CLIPS / f'{name}.mcap')
        begin_ns = clip.first_s * NS
        audio = tuple((stamp_ns - begin_ns, samples) for stamp_ns, samples in clip.audio)
        images = tuple((shot.stamp_ns - begin_ns, shot.compressed()[1]) for shot in clip.images)
        return cls(audio[-1][0] // NS + 1, images, audio)

    def __add__(self, after: 'Scene') -> 'Scene':
        shift_ns = self.seconds * NS
        return Scene(
            self.seconds + after.seconds,
            self.images + tuple((at_ns + shift_ns, data) for at_ns, data in after.images),
            self.audio + tuple((at_ns + shift_ns, samples) for at_ns, samples in after.audio),
        )


class Robot:
    """The nodes of a robot with the driver of its camera and microphone, in simulated time."""

    def __init__(self, graph, *arguments, apart: bool = False):
        self.graph, self._arguments = graph, (*COMMON, *SIMULATED, *graph.lossless, *arguments)
        if apart:
            self.start('streaming_encoder'), self.start('vision_encoder')
        self.llm = self.start_llm() if apart else self.start('live')
        self._encoded = {}  # by sense: newest second that its encoder has given
        for kind, sense, node in (
            (ImageEmbedding, 'image', 'vision_encoder'),
            (AudioEmbedding, 'audio', 'streaming_encoder'),
        ):
            graph.create_subscription(
                kind, f'{node}/embedding',
                lambda message, sense=sense: self._encoded.update({sense: message.second}), 50,
            )  # fmt: skip
        graph.wait_ready()
        self.source, self.time = Source(graph), SimulatedTime(graph)
        self.source.wait_heard()
        self.time.wait_known()

    def start(self, executable: str, *arguments: str):
        return self.graph.start(executable, *self._arguments, *arguments)

    def start_llm(self):
        """Start the llm alone, remapped as the launch file does."""
        return self.start(
            'llm', '-r', 'audio_embedding:=streaming_encoder/embedding',
            '-r', 'image_embedding:=vision_encoder/embedding',
        )  # fmt: skip

    def publish(self, scene: Scene, second: int, begin_s: int, senses=BOTH) -> None:
        """Publish one second of a scene that begins at the stamp begin_s."""
        for at_ns, data in scene.images if 'image' in senses else ():
            if at_ns // NS == second:
                self.source.picture(begin_s * NS + at_ns, data)
        for at_ns, samples in scene.audio if 'audio' in senses else ():
            if at_ns // NS == second:
                self.source.sound(begin_s * NS + at_ns, samples)

    def play(self, scene: Scene, begin_s: int, senses=BOTH, is_back: bool = False) -> int:
        """Live through a scene until all of it is read; return the stamp at which it ends."""
        # Or an encoder that learns the time after its first image takes the next for past.
        self.time.wait_same()
        read_before = self.graph.status.units_read
        for second in range(scene.seconds):
            self.publish(scene, second, begin_s, senses)
            if senses != BOTH and second:  # the first one waits for a sense that never comes
                self.until_encoded(begin_s + second - 1, senses)
            elif second > 1 and not is_back:
                self.until_read(read_before + second - 1)
            self.time.now_s = max(self.time.now_s, begin_s + second + 1)
            if is_back:  # it must go on until nobody doubts that, but not past what is published
                self.time.wait_same()
        self.until_read(read_before + scene.seconds, goes_on=True)
        if senses == BOTH:
            self.until_newest(begin_s + scene.seconds)
        return begin_s + scene.seconds

    def later(self, end_s: int) -> int:
        """Return when a scene may begin after one that ended at this stamp: nothing is past then.

        The longer the machine took for the end of that one, the longer was the silence after it.
        """
        return math.ceil(max(end_s, self.time.now_s)) + APART_S

    def until_encoded(self, second: int, senses) -> None:
        """Wait until the encoders have given a second."""
        self.time.until(
            lambda: all(self._encoded.get(sense) == second for sense in senses),
            f'second {second} to be encoded',
        )

    def until_newest(self, end_s: int) -> None:
        """Wait until the window ends there for both senses, whatever else was read meanwhile."""
        self.time.pass_until(
            lambda: self.graph.status.image_end.sec == self.graph.status.audio_end.sec == end_s,
            f'the second that ends at {end_s} to be read',
        )

    def until_read(self, count: int, goes_on: bool = False) -> None:
        """Wait until so many seconds are read; goes_on: silence follows, by which they end."""
        wait = self.time.pass_until if goes_on else self.time.until
        wait(lambda: self.graph.status.units_read >= count, f'{count} seconds to be read')

    def ask(self, name: str) -> Answer:
        """Ask a question of the clips; the answer must be right; return it."""
        return right(name, self.graph.ask(QUESTIONS[name]['text']))


def right(name: str, reply) -> Answer:
    """Check a reply to a question of the clips and return its answer."""
    assert reply.success, reply.reason
    assert reply.answer.text.strip() in QUESTIONS[name]['answers'], (QUESTIONS[name], reply)
    assert reply.answer.finish == Answer.STOP and reply.answer.question == QUESTIONS[name]['text']
    return reply.answer


def rests_on(answer: Answer, begin_s: int, end_s: int, senses=BOTH) -> bool:
    """Tell whether an answer names these seconds, and these senses to their end, as evidence."""
    ends = {'image': answer.image_end.sec, 'audio': answer.audio_end.sec}
    assert ends == {sense: end_s if sense in senses else 0 for sense in BOTH}
    assert list(answer.seconds) == list(range(begin_s, end_s)) and answer.units == end_s - begin_s
    return (answer.window_start.sec, answer.window_end.sec) == (begin_s, end_s)


@pytest.mark.parametrize('sense, name', [('image', '003-scene'), ('audio', '012-temporal')])
def test_with_one_sense_alone_it_answers_about_that_and_says_so(graph, sense, name):
    robot = Robot(graph)
    end_s = robot.play(Scene.read(name[:3]), FIRST, (sense,))
    answer = robot.ask(name)
    assert rests_on(answer, FIRST, end_s, (sense,))
    assert not answer.stale and not answer.reason  # what never came is not missing


def test_when_the_camera_stops_it_hears_on_and_says_how_old_the_image_is(graph):
    robot = Robot(graph)
    seen_s = robot.play(Scene.read('003'), FIRST)
    answer = robot.ask('003-align')
    assert rests_on(answer, FIRST, seen_s) and not answer.stale
    heard_s = robot.play(Scene.read('012'), robot.later(seen_s), ('audio',))
    answer = robot.ask('012-source')
    assert answer.stale and 'The newest image is' in answer.reason
    assert (answer.image_end.sec, answer.audio_end.sec) == (seen_s, heard_s)
    graph.spin_until(lambda: 'newest image' in graph.status.stale, 'the status to say so')


def test_during_a_long_answer_it_sees_and_hears_on(graph):
    robot = Robot(graph, *ENDLESS)
    asked_s = robot.play(Scene.read('003'), FIRST)
    words = []
    goal, result = ask_by_action(graph, words.append, question='tell me everything', **LONG)
    graph.spin_until(lambda: words, 'the first word')
    read_before, begin_s = graph.status.units_read, robot.later(asked_s)
    end_s = robot.play(Scene.read('000') + Scene.read('003') + Scene.read('010'), begin_s)
    status = graph.status
    assert status.answering, 'the answer has lasted for all of it'
    assert end_s - begin_s == 10 and status.units_read - read_before >= 9
    graph.result_of(goal.cancel_goal_async(), 'the cancellation')
    wrapped = graph.result_of(result, 'the end')
    assert wrapped.status == GoalStatus.STATUS_CANCELED
    assert rests_on(wrapped.result.answer, FIRST, asked_s)  # not on what came later
    answer = robot.ask('010-scene')
    assert len(set(answer.seconds) & set(range(begin_s, end_s))) >= 9
    assert answer.image_end.sec == answer.audio_end.sec == end_s and not answer.stale


def test_of_a_burst_nothing_is_lost(graph):
    robot, scene = Robot(graph), Scene.read('010')
    for second in range(4):  # the driver was held up, and time stands still
        robot.publish(scene, second, FIRST)
    robot.until_read(3)
    robot.until_read(4, goes_on=True)
    for name in ('010-scene', '010-align', '010-temporal'):
        assert rests_on(robot.ask(name), FIRST, FIRST + 4)
    assert graph.status.late == graph.status.units_dropped == 0


def test_a_killed_llm_comes_back_and_goes_on_with_what_follows(graph):
    robot = Robot(graph, apart=True)
    end_s = robot.play(Scene.read('003'), FIRST)
    assert robot.ask('003-scene').units == 3
    assert robot.llm.end(signal.SIGKILL) == -signal.SIGKILL
    graph.forget_statuses()
    robot.start_llm()
    graph.wait_ready()
    robot.time.wait_known()
    begin_s = robot.source.until_read(robot.later(end_s), robot.time) + APART_S
    assert graph.reset().success
    end_s = robot.play(Scene.read('010'), begin_s)
    for name in ('010-scene', '010-align'):
        assert rests_on(robot.ask(name), begin_s, end_s)


def test_when_the_clock_is_set_back_it_answers_about_the_new_time_only(graph):
    robot = Robot(graph)
    end_s = robot.play(Scene.read('003'), FIRST)
    assert rests_on(robot.ask('003-source'), FIRST, end_s)
    begin_s = end_s - HOUR_S
    robot.time.now_s = begin_s
    end_s = robot.play(Scene.read('010'), begin_s, is_back=True)
    for name in ('010-scene', '010-temporal'):
        assert rests_on(robot.ask(name), begin_s, end_s)
    assert graph.status.late == 0


@pytest.mark.parametrize('sense', BOTH)
def test_a_sense_with_the_clock_of_tai_is_seen_and_heard_with_the_other(graph, sense):
    process = graph.start('live', *COMMON, *graph.lossless)
    graph.wait_ready()
    source, scene = Source(graph), Scene.read('002')
    source.wait_heard()
    image = scene.images[-1][1]
    spoken = np.concatenate([samples for _, samples in scene.audio])[-RATE_HZ:]
    next_s = time.monotonic()

    def drive():
        """Publish what is due, at the pace of real time."""
        nonlocal next_s
        while next_s <= time.monotonic():
            next_s += 0.1
            now_ns = time.time_ns()
            ahead_ns = {name: TAI_S * NS * (name == sense) for name in BOTH}
            source.picture(now_ns + ahead_ns['image'], image)
            part = now_ns // (NS // 10) % 10 * (RATE_HZ // 10)
            samples = spoken[part : part + RATE_HZ // 10]
            source.sound(now_ns - NS // 10 + ahead_ns['audio'], samples)

    def is_mended():
        drive()
        ends = graph.status.image_end.sec, graph.status.audio_end.sec
        return f'the stamps of the {sense} input' in graph.status.clocks and ends[0] == ends[1] > 0

    graph.spin_until(is_mended, 'both senses in one second')
    asked = graph.ask_client.call_async(Ask.Request(question=QUESTIONS['002-scene']['text']))
    graph.spin_until(lambda: drive() or asked.done(), 'the answer')
    answer = right('002-scene', asked.result())
    assert abs(answer.image_end.sec - answer.audio_end.sec) < TAI_S / 2
    assert answer.window_end.sec <= time.time()
    assert 'the times of arrival are taken' in process.log


def test_four_people_who_ask_at_once_get_each_their_own_answer(graph):
    robot = Robot(graph)
    end_s = robot.play(Scene.read('003'), FIRST)
    names = ('003-scene', '003-source', '003-align', '003-mislead')
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    asked = [
        graph.ask_client.call_async(Ask.Request(question=QUESTIONS[name]['text']))
        for name in names
    ]
    replies = [graph.result_of(future, 'an answer') for future in asked]
    answers = [right(name, reply) for name, reply in zip(names, replies, strict=True)]
    assert all(rests_on(answer, FIRST, end_s) for answer in answers)
    assert len({answer.id for answer in answers}) == len(names)


def test_a_reset_in_the_middle_of_an_answer_ends_it_and_forgets(graph):
    robot = Robot(graph, *ENDLESS)
    end_s = robot.play(Scene.read('003'), FIRST)
    words = []
    _, result = ask_by_action(graph, words.append, question='tell me everything', **LONG)
    graph.spin_until(lambda: words, 'the first word')
    reset = graph.create_client(Trigger, 'llm/reset')
    graph.spin_until(reset.service_is_ready, 'the reset')
    assert graph.result_of(reset.call_async(Trigger.Request()), 'the reset').success
    ended = graph.result_of(result, 'the end of the answer').result
    assert not ended.success and '~/reset' in ended.reason
    assert ended.answer.finish == Answer.CANCELLED and ended.answer.text
    empty = graph.ask('what shape is shown now?')
    assert not empty.success and 'Nothing has been seen or heard' in empty.reason
    begin_s = robot.later(end_s)
    end_s = robot.play(Scene.read('010'), begin_s)
    assert rests_on(robot.ask('010-scene'), begin_s, end_s)


def test_of_a_bag_that_is_played_twice_it_has_seen_each_second_once(graph):
    graph.start('live', *COMMON, *SIMULATED, *graph.lossless)
    graph.wait_ready()
    begin_s = int(QUESTIONS['003-scene']['start_s'])
    for times in (1, 2):
        before = len(graph.statuses)
        player = graph.start(
            'media_player', '-p', f'file:={CLIPS / "003.mcap"}', '-p', 'stamps:=recorded', '-p',
            'wait_for_subscribers:=true', '-p', 'publish_clock:=true',
        )  # fmt: skip

        def is_played(before=before):
            return any(status.units != 3 for status in graph.statuses[before:]) and (
                graph.status.units == 3
            )

        graph.spin_until(is_played, 'the whole bag')
        for name in ('003-scene', '003-align', '003-temporal'):
            answer = right(name, graph.ask(QUESTIONS[name]['text']))
            assert rests_on(answer, begin_s, begin_s + 3)
        assert graph.status.units_read == 3 * times and graph.status.late == 0
        assert player.end() == 0
