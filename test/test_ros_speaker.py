# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `speaker` says answers aloud, stops for who speaks, and the robot does not hear it."""

import os
import shutil
import sys

import pytest
from audio_common_msgs.msg import AudioDataStamped, AudioInfo
from rclpy.action import ActionClient
from ros_source import Source, time_of

from minicpmo_ros.action import Say
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AnswerDelta, AudioEmbedding, Sentence, SpeakerState, Speech
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.ros.voice.sound_output import Loudspeaker

NS = 10**9
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
    listener.speech.publish(Speech(turn=8, kind=Speech.ENDED))
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
