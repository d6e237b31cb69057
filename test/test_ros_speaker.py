# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `speaker` says answers aloud, stops for who speaks, and the robot does not hear it."""

import os
import shutil
import sys
import time

import numpy as np
import pytest
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient, ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from ros_source import Source, time_of

from benchmarks.voice_sounds import echo_of, own_speech, say
from minicpmo_ros.action import Ask, Say
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AnswerDelta, AudioEmbedding, Sentence, SpeakerState, Speech, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import stamp_ns_of, time_ns
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.ros.voice.sound_output import Loudspeaker

NS, RATE = 10**9, 16000
needs_espeak = pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='no espeak-ng here')
TEXT = (
    'On the table, there is a red box. It is closed, and nobody has opened it since yesterday. '
    'Dr. Wu has put it there at 3.15!'
)


class Listener:
    """What the speaker publishes, and the topics it takes."""

    def __init__(self, graph, *parameters, env=None):
        self.graph = graph
        self.sentences, self.states, self.audio, self.infos = [], [], [], []
        for message_type, topic, notes, qos in (
            (Sentence, 'speaker/sentence', self.sentences, 100),
            (SpeakerState, 'speaker/state', self.states, STATE_QOS),
            (AudioDataStamped, 'speaker/audio', self.audio, 1000),
            (AudioInfo, 'speaker/audio_info', self.infos, LATCHED),
        ):
            graph.create_subscription(message_type, topic, notes.append, qos)
        self.deltas = graph.create_publisher(AnswerDelta, 'llm/answer_delta', 100)
        self.speech = graph.create_publisher(Speech, 'voice/speech', 10)
        self.say_client = ActionClient(graph, Say, 'speaker/say')
        arguments = [part for each in parameters for part in ('-p', each)]
        self.process = graph.start('speaker', *arguments, env=env)
        for publisher in (self.deltas, self.speech):
            graph.spin_until(publisher.get_subscription_count, 'the speaker')
        graph.spin_until(lambda: self.states, 'its state')

    def answer(self, text, name='llm-0', piece=5):
        """Publish an answer in pieces."""
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)] + ['']
        for index, part in enumerate(pieces):
            last = index == len(pieces) - 1
            self.deltas.publish(AnswerDelta(id=name, index=index, text=part, last=last))

    def say(self, text, **fields):
        """Send a goal; return its result."""
        graph = self.graph
        graph.spin_until(self.say_client.server_is_ready, 'the action')
        sent = self.say_client.send_goal_async(Say.Goal(text=text, **fields))
        handle = graph.result_of(sent, 'the goal')
        return graph.result_of(handle.get_result_async(), 'the result').result

    def wait_state(self, speaking, after=0):
        """Wait for a state; return it."""
        return self.graph.spin_until(
            lambda: next((s for s in self.states[after:] if s.speaking == speaking), None),
            f'speaking {speaking}',
        )


@needs_espeak
def test_an_answer_is_said_while_it_comes_and_is_cut_by_who_speaks(graph):
    listener = Listener(graph)
    listener.answer(TEXT)
    begun = listener.wait_state(True)
    assert begun.sentence == 'On the table,' and begun.spoken == '' and begun.id == 'llm-0'
    graph.spin_until(lambda: any(s.last for s in listener.sentences), 'the last sentence')
    assert ''.join(s.text for s in listener.sentences) == TEXT
    assert [s.index for s in listener.sentences] == list(range(len(listener.sentences)))
    done = graph.spin_until(
        lambda: next((s for s in listener.states if s.spoken == TEXT), None), 'the end'
    )
    assert not done.speaking and done.since == done.header.stamp
    info = listener.infos[-1]
    assert (info.sample_rate, info.sample_format, info.channels) == (22050, 'S16LE', 1)
    assert stamp_ns_of(listener.audio[0]) >= stamp_ns_of(begun)
    spoken_s = sum(len(each.audio.data) for each in listener.audio) / 2 / 22050
    assert 5.0 < spoken_s < 16.0

    # A false alarm: the cut sentence is said again, and the rest.
    n = len(listener.states)
    listener.answer(TEXT, 'llm-1')
    graph.spin_until(lambda: listener.states[-1].sentence.startswith(' It is'), 'the middle')
    listener.speech.publish(Speech(turn=7, kind=Speech.STARTED))
    cut = listener.wait_state(False, n)
    # Nothing is published behind the state that says it is silent.
    assert all(stamp_ns_of(each) <= stamp_ns_of(cut) for each in listener.audio)
    n = len(listener.states)
    listener.speech.publish(Speech(turn=7, kind=Speech.DISCARDED))
    assert listener.wait_state(True, n).sentence.startswith(' It is closed')
    graph.spin_until(lambda: listener.states[-1].spoken == TEXT, 'all of it')

    # A real interruption: it is silent for good, and says what had been said.
    listener.answer(TEXT, 'llm-2')
    graph.spin_until(
        lambda: listener.states[-1].id == 'llm-2' and 'box' in listener.states[-1].spoken, 'some'
    )
    listener.speech.publish(Speech(turn=8, kind=Speech.STARTED))
    listener.speech.publish(Speech(turn=8, kind=Speech.ENDED, addressed=True))
    # A text that comes before the turn's end is dropped with the rest, and says so.
    result = graph.spin_until(
        lambda: (said := listener.say('Sorry.')).success and said, 'the end of the turn'
    )
    assert result.spoken == 'Sorry.'
    spoken = [s.spoken for s in listener.states if s.id == 'llm-2'][-1]
    assert TEXT.startswith(spoken) and 'box' in spoken and '3.15' not in spoken


@needs_espeak
def test_what_is_said_can_be_replaced_and_stopped(graph):
    listener = Listener(graph)
    graph.spin_until(listener.say_client.server_is_ready, 'the action')
    sent = listener.say_client.send_goal_async(Say.Goal(text='This is a long text. ' * 20))
    first = graph.result_of(sent, 'the goal').get_result_async()
    listener.wait_state(True)
    result = listener.say('Stop!', interrupt=True)
    assert result.success and result.spoken == 'Stop!'
    cut = graph.result_of(first, 'the result of the first').result
    assert not cut.success and 'interrupted' in cut.reason
    assert len(cut.spoken) < 21 * 20 - 2
    for nothing in ('', '?!', '\U0001f600'):
        refused = listener.say(nothing)
        assert not refused.success and repr(nothing) in refused.reason and not refused.spoken


def test_without_espeak_it_tells_what_to_install_and_sentences_are_still_published(graph):
    path = {'PATH': os.path.dirname(shutil.which('python3') or '/nowhere') + '-nowhere'}
    listener = Listener(graph, env=path)
    listener.answer(TEXT)
    graph.spin_until(lambda: any(s.last for s in listener.sentences), 'the last sentence')
    assert ''.join(s.text for s in listener.sentences) == TEXT
    result = listener.say('Hello.')
    assert not result.success and 'sudo apt install espeak-ng' in result.reason
    assert 'sudo apt install espeak-ng' in listener.process.log
    assert not any(s.speaking for s in listener.states)


@pytest.mark.parametrize('cut_off', ['llm-0', 'llm-1'])
def test_an_answer_that_a_killed_llm_left_is_over_when_the_next_one_begins(graph, cut_off):
    """One that is started anew counts its answers from 0 again."""
    listener = Listener(graph, 'engine:=none')
    for number in range(int(cut_off[-1])):
        listener.answer('It is red.', f'llm-{number}')
    listener.deltas.publish(AnswerDelta(id=cut_off, text='On the ta'))
    listener.answer('It is blue.', 'llm-0')
    graph.spin_until(lambda: listener.sentences and 'blue' in listener.sentences[-1].text, 'blue')
    *_, left, said = listener.sentences
    assert (left.id, left.text, left.last) == (cut_off, 'On the ta', True)
    assert (said.id, said.index, said.text, said.last) == ('llm-0', 0, 'It is blue.', True)


def test_the_seconds_in_which_the_robot_speaks_are_silence(graph, tiny_model_dir):
    heard, first = {}, 1_000_000
    graph.create_subscription(
        AudioEmbedding, 'streaming_encoder/heard', lambda m: heard.update({m.second: m}), 20
    )
    states = graph.create_publisher(SpeakerState, 'speaker/state', STATE_QOS)
    graph.start(
        'streaming_encoder', '-p', f'model_dir:={tiny_model_dir}', '-p', 'listen_tail_s:=0.5',
        *graph.lossless,
    )  # fmt: skip
    source = Source(graph)
    source.wait_heard(image=False)
    graph.spin_until(states.get_subscription_count, 'the encoder')
    # From the middle of the second second to the end of the third, and a tail of half a second.
    for at_ns, speaking in ((first * NS + NS * 3 // 2, True), ((first + 3) * NS, False)):
        message = SpeakerState(speaking=speaking)
        message.header.stamp = time_of(at_ns)
        states.publish(message)
    source.second(first, picture=False)
    graph.spin_until(lambda: first in heard, 'the first second')  # and by then the states
    for second in range(first + 1, first + 6):
        source.second(second, picture=False)
    graph.spin_until(lambda: first + 4 in heard, 'five seconds')
    told = [heard[first + i].self_speech_ms for i in range(5)]
    assert told == [0, 500, 1000, 500, 0]
    levels = [heard[first + i].level_dbfs for i in range(5)]
    assert levels[2] == -float('inf')
    assert levels[0] == pytest.approx(levels[4], abs=0.1)
    assert levels[1] == pytest.approx(levels[0] - 3.0, abs=0.2)


def test_a_loudspeaker_that_cannot_be_had_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sounddevice', None)
    with pytest.raises(InputError, match='libportaudio2.*leave device empty'):
        Loudspeaker('default')


class Llm:
    """Answers each question of `voice` with TEXT, and is at it until it is cancelled."""

    def __init__(self, graph):
        self.asked, self.cancelled = 0, 0
        self._deltas = graph.create_publisher(AnswerDelta, 'llm/answer_delta', 100)
        self._statuses = graph.create_publisher(Status, 'llm/status', LATCHED)
        # Until it says that it is ready nobody asks, and if it falls silent nobody waits.
        self._timer = graph.create_timer(
            0.5, lambda: self._statuses.publish(Status(state=Status.READY))
        )
        self._graph, self._ends = graph, []
        self.server = ActionServer(
            graph, Ask, 'llm/ask', self._on_goal, cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
        )  # fmt: skip

    async def _on_goal(self, goal):
        name, self.asked = f'llm-{self.asked}', self.asked + 1
        self._deltas.publish(AnswerDelta(id=name, index=0, text=TEXT * 3))
        self._ends.append(Future(executor=self._graph.own_executor))
        await self._ends[-1]
        goal.canceled()
        return Ask.Result(reason='Cancelled by the client.')

    def _on_cancel(self, goal):
        self.cancelled += 1
        self._ends[-1].set_result(None)
        return CancelResponse.ACCEPT

    def close(self):
        """Let what is asked end, and leave the graph."""
        for end in self._ends:
            if not end.done():
                end.set_result(None)
        self._graph.destroy_timer(self._timer)
        self.server.destroy()


class Dialogue:
    """Nodes speaker and voice, a microphone, and an llm."""

    def __init__(self, graph, *parameters, **kwargs):
        self.graph, self.heard, self.llm = graph, [], Llm(graph)
        graph.create_subscription(Speech, 'voice/speech', self.heard.append, 50)
        arguments = [part for each in parameters for part in ('-p', each)]
        self.voice = graph.start('voice', *arguments, *graph.lossless, **kwargs)
        self.listener = Listener(graph)
        self.source = Source(graph)
        self.source.wait_heard(image=False)

    def say_at(self, stamp_ns, samples):
        """Be heard by the microphone from a stamp on, with silence behind."""
        samples = np.concatenate([samples, np.zeros(RATE * 2, np.float32)])
        for at in range(0, len(samples), RATE // 10):
            self.source.sound(stamp_ns + at * NS // RATE, samples[at : at + RATE // 10])
            self.graph.own_executor.spin_once(timeout_sec=0.01)  # so that none pushes another out

    def begin(self):
        """Ask by voice; return the stamp since which the answer is being said."""
        asked = self.llm.asked
        # Long ago for the robot, which is silent until it answers.
        at_ns = self.graph.get_clock().now().nanoseconds - 200 * NS
        next_s = 0.0

        def is_asked() -> bool:
            """Say it again where node voice did not know the format of the audio in time."""
            nonlocal at_ns, next_s
            if not self.heard and time.monotonic() >= next_s:
                at_ns, next_s = at_ns + 20 * NS, time.monotonic() + 40
                self.say_at(at_ns, say('What is on the table?', 'en-us'))
            return self.llm.asked > asked and len(self.heard) == 2

        self.graph.spin_until(is_asked, 'a question')
        return stamp_ns_of(self.listener.wait_state(True))

    def close(self):
        """End the llm's questions."""
        self.llm.close()


@needs_espeak
def test_who_speaks_into_an_answer_stops_its_sound_and_cancels_it(graph):
    dialogue = Dialogue(graph, 'listen:=barge_in')
    begun_ns = dialogue.begin()
    states, n = dialogue.listener.states, len(dialogue.heard)
    graph.spin_until(lambda: 'table' in states[-1].spoken, 'some of the answer')
    question = say('No, tell me what is under the chair.', 'en-gb')
    dialogue.say_at(stamp_ns_of(states[-1]), question)
    graph.spin_until(lambda: dialogue.llm.cancelled, 'the end of the answer')
    graph.spin_until(lambda: dialogue.llm.asked == 2, 'the new question')
    graph.spin_until(lambda: len(dialogue.heard) >= n + 2, 'the end of the turn')
    started, ended = dialogue.heard[n:]
    assert (started.kind, ended.kind) == (Speech.STARTED, Speech.ENDED)
    # By the stricter rule: it began while the robot spoke.
    assert stamp_ns_of(started) - time_ns(started.start) >= 0.29 * NS
    cut = next(s for s in states if s.id == 'llm-0' and not s.speaking)
    assert stamp_ns_of(cut) > begun_ns and TEXT.startswith(cut.spoken[: len(TEXT)])
    assert len(cut.spoken) < 3 * len(TEXT)
    dialogue.close()


@needs_espeak
def test_a_false_alarm_lets_the_answer_go_on(graph):
    dialogue = Dialogue(graph, 'listen:=barge_in', 'interrupt_speech_s:=5.0')
    dialogue.begin()
    states, n = dialogue.listener.states, len(dialogue.heard)
    graph.spin_until(lambda: 'table' in states[-1].spoken, 'some of the answer')
    dialogue.say_at(stamp_ns_of(states[-1]), say('No, tell me what is under the chair.', 'en-gb'))
    graph.spin_until(lambda: len(dialogue.heard) == n + 2, 'the false alarm')
    assert dialogue.heard[-1].kind == Speech.DISCARDED
    assert 'interrupt_speech_s' in dialogue.heard[-1].reason
    graph.spin_until(lambda: '3.15' in states[-1].spoken, 'the rest')
    assert (TEXT * 3).startswith(states[-1].spoken)
    assert dialogue.llm.cancelled == 0 and dialogue.llm.asked == 1
    dialogue.close()


@needs_espeak
def test_the_stop_word_is_heard_where_nothing_else_is(graph):
    dialogue = Dialogue(graph, 'listen:=half_duplex', 'stop_word:=okay_nabu')
    dialogue.begin()
    states, n = dialogue.listener.states, len(dialogue.heard)
    graph.spin_until(lambda: 'table' in states[-1].spoken, 'some of the answer')
    dialogue.say_at(stamp_ns_of(states[-1]), say('Okay nabu!', 'en-us'))
    graph.spin_until(lambda: dialogue.llm.cancelled, 'the end of the answer')
    dialogue.listener.wait_state(False, len(states) - 1)
    assert len(dialogue.heard) == n, 'half_duplex hears no turn'
    dialogue.close()


def test_the_robot_does_not_take_its_own_echo_for_somebody(graph):
    heard, values, begin_ns = [], {}, 1_000_000 * NS

    def take(message):
        for status in message.status:
            values.update({pair.key: pair.value for pair in status.values})

    graph.create_subscription(Speech, 'voice/speech', heard.append, 50)
    graph.create_subscription(DiagnosticArray, '/diagnostics', take, 20)
    reliable = f'qos_overrides.{graph.namespace}/speaker/audio.subscription.reliability:=reliable'
    quiet = ('-p', 'ask:=false', '-p', reliable, *graph.lossless)
    graph.start('voice', '-p', 'listen:=barge_in', *quiet)
    states = graph.create_publisher(SpeakerState, 'speaker/state', STATE_QOS)
    own = graph.create_publisher(AudioDataStamped, 'speaker/audio', 1000)
    graph.create_publisher(AudioInfo, 'speaker/audio_info', LATCHED).publish(
        AudioInfo(channels=1, sample_rate=RATE, sample_format='S16LE', coding_format='wave')
    )
    source = Source(graph)
    source.wait_heard(image=False)
    for publisher in (states, own):
        graph.spin_until(publisher.get_subscription_count, 'voice')
    state = SpeakerState(speaking=True)
    state.header.stamp = time_of(begin_ns)
    states.publish(state)
    speech, _ = own_speech(10)
    for at in range(0, len(speech), RATE // 10):
        block = AudioDataStamped()
        block.header.stamp = time_of(begin_ns + at * NS // RATE)
        pcm = (speech[at : at + RATE // 10] * 32767).astype('<i2')
        block.audio.data.frombytes(pcm.tobytes())
        own.publish(block)
    graph.spin_until(lambda: float(values.get('own sound [s]', 0)) > 9.9, 'its own sound')
    echo = echo_of(np.random.default_rng(0), speech, 'short')
    question = say('What is on the table?', 'en-us')
    for later_s, samples in ((0, echo), (100, question)):
        samples = np.concatenate([samples, np.zeros(2 * RATE, np.float32)])
        for at in range(0, len(samples), RATE // 10):
            stamp_ns = begin_ns + later_s * NS + at * NS // RATE
            source.sound(stamp_ns, samples[at : at + RATE // 10])
    graph.spin_until(lambda: len(heard) >= 2, 'the question')
    assert time_ns(heard[0].start) > begin_ns + 99 * NS


def test_without_the_echo_canceller_it_falls_back_to_half_duplex_and_says_so(graph, tmp_path):
    (tmp_path / 'pywebrtc_audio.py').write_text('raise ImportError("none here")')
    told = {}

    def take(message):
        told.update({status.name: status.message for status in message.status})

    graph.create_subscription(DiagnosticArray, '/diagnostics', take, 20)
    env = {'PYTHONPATH': str(tmp_path)}
    process = graph.start('voice', '-p', 'listen:=barge_in', env=env)
    graph.spin_until(
        lambda: any('requirements-voice.txt' in text for text in told.values()), 'the diagnosis'
    )
    assert 'half_duplex' in process.log and process.is_running
