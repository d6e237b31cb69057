# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Says sentences by another node: `tts_node` of audio_common (mgonzs13), or sound_play's.

For a Speaker, a Bridge is a synthesiser whose sounds are played elsewhere. Each sentence is one
goal of that node's action. An interruption cancels the goal; sound_play's node takes no cancel, so
it is told on its topic, too. A sound has ended when its goal has, whatever was asked for before:
nobody listens while it still sounds.

The packages are looked up at run time; neither is needed to build or install this one.
"""

import importlib
import re
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.media.audio.format import chunk_of
from minicpmo_ros.media.audio.stream import to_float

AUDIO_COMMON, SOUND_PLAY = 'audio_common', 'sound_play'
SAY = ('none', AUDIO_COMMON, SOUND_PLAY)
LETTERS_PER_S = 14.0  # of speech, about: how much of a sentence had been said when it was cut
SLOWEST = 3  # times as long as that a sentence may take
STOP_QOS = QoSProfile(depth=10)
VOICE = re.compile(r'[\w+-]*')  # both nodes give it to a shell
LOST = (
    'nobody offers the action {}, and the sentence is left out: start {}, in the namespace of '
    'this node, or set say to none'
)
FAILED = {
    GoalStatus.STATUS_ABORTED: 'broke the sentence off; its log says why',
    GoalStatus.STATUS_CANCELED: 'was told by somebody else to be silent',
}


class _AudioCommon:
    """Goals of the action `say` of audio_common's `tts_node`."""

    ACTION, PROGRAM = 'say', 'audio_common tts_node'
    PACKAGE, TYPES = 'audio_common_msgs', ('action.TTS',)
    REMEDY = (
        'build https://github.com/mgonzs13/audio_common in your workspace and source it (the '
        'audio_common_msgs of ros-drivers has no TTS)'
    )

    def __init__(self, node, types, voice: str, rate: float, volume: float):
        (self.type,) = types
        self._voice, self._rate, self._volume = voice or 'en', rate, volume

    def goal(self, text: str):
        """Return the goal of a sentence."""
        # That node puts the text between single quotes into a command line of espeak: a quote
        # would end it there, and a text that begins with - would be an option.
        text = text.replace("'", '’')
        goal = self.type.Goal(text=f' {text}' if text.startswith('-') else text)
        for name in ('language', 'volume', 'rate'):  # older ones have fewer
            if hasattr(goal, name):
                setattr(goal, name, getattr(self, f'_{name}', self._voice))
        return goal

    def silence(self) -> None:
        """Nothing but the goal's cancel is needed."""

    def close(self) -> None:
        """Nothing is to be left."""

    def sound_of(self, feedback) -> tuple:
        """Return (samples (n,) int16, hertz) that it plays now."""
        data, form = chunk_of(feedback.audio.audio)
        samples = to_float(data, form.sample_format, form.channels).mean(1)
        return (samples * 32767).astype(np.int16), form.sample_rate_hz


class _SoundPlay:
    """Goals of the action `sound_play`, and requests on `robotsound` to be silent."""

    ACTION, PROGRAM = 'sound_play', 'sound_play soundplay_node.py'
    PACKAGE, TYPES = 'sound_play', ('action.SoundRequest', 'msg.SoundRequest')
    REMEDY = 'sudo apt install ros-$ROS_DISTRO-sound-play'

    def __init__(self, node, types, voice: str, rate: float, volume: float):
        self.type, self._request = types
        self._node, self._voice, self._volume = node, voice, volume
        self._requests = node.create_publisher(self._request, 'robotsound', STOP_QOS)

    def goal(self, text: str):
        """Return the goal of a sentence."""
        request = self._request(sound=self._request.SAY, command=self._request.PLAY_ONCE)
        request.volume, request.arg, request.arg2 = self._volume, text, self._voice
        return self.type.Goal(sound_request=request)

    def silence(self) -> None:
        """Tell it to be silent."""
        request = self._request(sound=self._request.ALL, command=self._request.PLAY_STOP)
        self._requests.publish(request)

    def sound_of(self, feedback) -> None:
        """It does not tell its sound."""

    def close(self) -> None:
        """Leave the topic."""
        self._node.destroy_publisher(self._requests)


KINDS = {AUDIO_COMMON: _AudioCommon, SOUND_PLAY: _SoundPlay}


def _types_of(kind) -> list:
    """Return the interfaces of a kind; raise InputError, with what to install, without them."""
    try:
        found = []
        for name in kind.TYPES:
            module, type_name = f'{kind.PACKAGE}.{name}'.rsplit('.', 1)
            found.append(getattr(importlib.import_module(module), type_name))
    except (ImportError, AttributeError) as error:
        raise InputError(
            f'say needs the package {kind.PACKAGE} with {", ".join(kind.TYPES)}: {error}. Install '
            f'it: {kind.REMEDY}; or set say to none. Until then sentences are only published on '
            '~/sentence'
        ) from None
    return found


@dataclass(frozen=True)
class _Sentence:
    """A sentence that another node says: what Speaker plays instead of a Sound."""

    bridge: 'Bridge'
    text: str

    def play(self, output, halt) -> float:
        """Have it said until `halt` comes; return the share that was said by then."""
        return self.bridge.say(_Goal(self.text), halt)


@dataclass(eq=False)
class _Goal:
    """One saying of a sentence; one that was cut is said again by another goal."""

    text: str
    handle: object = None  # once it is taken
    problem: str = ''
    is_cut: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class Bridge:
    """See the module; for a Speaker, whose `wake` is called when a sentence has ended.

    Raises InputError, with what to install, if the interfaces of `say` are not there.
    """

    def __init__(self, node, say: str, voice: str, rate: float, volume: float, deadline_s: float):
        if not VOICE.fullmatch(voice):
            raise InputError(
                f'voice is {voice!r}; with say {say} letters, digits, _, + and - are allowed, '
                'such as en-gb'
            )
        self._node, self._deadline_s, self._rate = node, deadline_s, rate
        self._kind = KINDS[say](node, _types_of(KINDS[say]), voice, rate, volume)
        try:
            self._client = ActionClient(node, self._kind.type, self._kind.ACTION)
        except Exception as error:  # of rclpy, of its generators or of the loader
            raise InputError(
                f'say is {say}, and its interfaces cannot be used: {error!r}. Build the package '
                f'{self._kind.PACKAGE} anew, or set say to none'
            ) from None
        self._current, self._problem = None, ''  # the _Goal that is said, or is to be
        self._is_closed = False
        self.wake = lambda: None
        self.on_sound = lambda samples, rate_hz: None

    # For the Speaker, in its threads.
    def speak(self, text: str) -> _Sentence:
        """Return the sentence as a sound."""
        return _Sentence(self, ' '.join(text.replace('\0', ' ').split()))

    def stop(self) -> None:
        """Nothing is made ahead."""

    def say(self, goal: _Goal, halt) -> float:
        """See _Sentence.play; raise EngineError if the other node does not say it."""
        reckoned_s, begun_s = len(goal.text) / (LETTERS_PER_S * self._rate), time.monotonic()
        self._current = goal
        if self._is_closed:  # whoever closes it meanwhile ends the sentence
            return 0.0
        self._node.post(partial(self._send, goal))
        due_s = begun_s + self._deadline_s + SLOWEST * reckoned_s
        is_halted = halt(due_s, goal.ended.is_set)
        share = (time.monotonic() - begun_s) / reckoned_s
        if not goal.ended.is_set():
            self._node.post(partial(self._cancel, goal))
            is_silent = goal.ended.wait(self._deadline_s)
            if not (is_halted and is_silent):
                goal.problem = (
                    f'{self._kind.PROGRAM} has not ended a sentence in time; restart it. If it is '
                    'only slow, raise synthesis_timeout_s'
                )
        if goal.problem:
            raise EngineError(goal.problem)
        return share

    # For the executor.
    def diagnose(self, report) -> None:
        """Report whether the other node is there."""
        is_there = self._client.server_is_ready()
        report.tell(self._kind.PROGRAM, 'there' if is_there else 'not there')
        if self._problem:
            report.warn(self._problem)

    def look(self) -> None:
        """End a sentence whose node has gone."""
        if self._current is not None and not self._client.server_is_ready():
            self._end(self._current, LOST.format(self._kind.ACTION, self._kind.PROGRAM))

    def close(self) -> None:
        """Be silent, and leave the graph."""
        self._is_closed = True
        if (goal := self._current) is not None:
            self._cancel(goal)
            self._end(goal)
        self._client.destroy()
        self._kind.close()

    def _send(self, goal: _Goal) -> None:
        if goal.ended.is_set():
            return
        if not self._client.server_is_ready():
            self._end(goal, LOST.format(self._kind.ACTION, self._kind.PROGRAM))
            return
        sent = self._client.send_goal_async(self._kind.goal(goal.text), self._on_feedback)
        sent.add_done_callback(lambda done: self._on_taken(goal, done.result()))

    def _on_taken(self, goal: _Goal, handle) -> None:
        if not handle.accepted:
            self._end(goal, f'{self._kind.PROGRAM} did not take a sentence, which is left out')
            return
        goal.handle = handle
        handle.get_result_async().add_done_callback(
            lambda done: self._on_result(goal, done.result().status)
        )
        if goal.is_cut:
            self._cancel(goal)

    def _on_result(self, goal: _Goal, status: int) -> None:
        failed = '' if goal.is_cut else FAILED.get(status, '')
        self._end(goal, f'{self._kind.PROGRAM} {failed}' if failed else '')

    def _on_feedback(self, message) -> None:
        try:
            sound = self._kind.sound_of(message.feedback)
        except InputError as error:
            self._problem = f'the sound of {self._kind.PROGRAM} cannot be told on ~/audio: {error}'
            return
        if sound is not None:
            self.on_sound(*sound)

    def _cancel(self, goal: _Goal) -> None:
        goal.is_cut = True
        if goal.handle is not None:
            goal.handle.cancel_goal_async()
            self._kind.silence()

    def _end(self, goal: _Goal, problem: str = '') -> None:
        if self._current is goal:
            self._current = None
        goal.problem = problem
        goal.ended.set()
        self.wake()
