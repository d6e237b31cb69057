# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `speaker` has another node say its sentences, and that one is silent for who speaks."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tts_node
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from std_msgs.msg import String

from minicpmo_ros.action import Say
from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import AnswerDelta, Sentence, SpeakerState, Speech
from minicpmo_ros.ros.voice.bridges import AUDIO_COMMON, KINDS, SOUND_PLAY, Bridge
from minicpmo_ros.ros.voice.self_speech import STATE_QOS

FIRST, SECOND = "It's a red box.", ' Nobody has opened it.'
VOICES = {AUDIO_COMMON: 'en-gb 0.5 2', SOUND_PLAY: 'en-gb 0.5 (-3, 1)'}
DEEP = QoSProfile(depth=100)
KEPT = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


class Stage:
    """Node `speaker`, and another node that says what it is told."""

    def __init__(self, graph, say, *parameters, env=None):
        self.graph, self.say, self.told = graph, say, {}
        self.sentences, self.states, self.events = [], [], []
        for message_type, topic, notes, qos in (
            (Sentence, 'speaker/sentence', self.sentences, DEEP),
            (SpeakerState, 'speaker/state', self.states, STATE_QOS),
            (String, 'tts/events', self.events, KEPT),
        ):
            graph.create_subscription(message_type, topic, notes.append, qos)
        graph.create_subscription(DiagnosticArray, '/diagnostics', self._take, DEEP)
        self.deltas = graph.create_publisher(AnswerDelta, 'llm/answer_delta', DEEP)
        self.speech = graph.create_publisher(Speech, 'voice/speech', DEEP)
        self.end = graph.create_publisher(String, 'tts/end', DEEP)
        self.process = graph.start('speaker', '-p', f'say:={say}', *parameters, env=env)
        for publisher in (self.deltas, self.speech):
            graph.spin_until(publisher.get_subscription_count, 'the speaker')

    def _take(self, message):
        for status in message.status:
            self.told.update({pair.key: pair.value for pair in status.values})
            self.told[status.name] = status.message

    @contextmanager
    def other_node(self, env):
        """Run the other node meanwhile; wait until both know each other."""
        program = KINDS[self.say].PROGRAM
        process = subprocess.Popen(
            [sys.executable, tts_node.__file__, self.say, self.graph.namespace],
            env={**os.environ, **env},
        )
        try:
            self.graph.spin_until(self.end.get_subscription_count, 'the other node')
            self.graph.spin_until(lambda: self.told.get(program) == 'there', 'its action')
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
        self.graph.spin_until(lambda: self.told.get(program) == 'not there', 'that it has gone')

    def answer(self, text, name):
        """Publish an answer as a whole."""
        self.deltas.publish(AnswerDelta(id=name, index=0, text=text, last=True))

    def wait_event(self, text, after=0):
        """Wait until the other node has told something; return how many events there are."""
        self.graph.spin_until(
            lambda: text in [each.data for each in self.events[after:]], f'{text} of the other'
        )
        return len(self.events)

    def wait_state(self, what, holds):
        """Wait until the newest state is as wanted."""
        return self.graph.spin_until(
            lambda: self.states and holds(self.states[-1]) and self.states[-1], what
        )


@pytest.mark.parametrize('say', (AUDIO_COMMON, SOUND_PLAY))
def test_another_node_says_the_sentences_and_is_stopped_by_who_speaks(graph, say):
    env = tts_node.environment(say)
    options = ('-p', 'voice:=en-gb', '-p', 'volume:=0.5', '-p', 'rate:=2.0',
               '-p', 'first_words:=0')  # fmt: skip
    stage = Stage(graph, say, *options, env=env)
    # audio_common puts the text between single quotes into a command line.
    first = FIRST.replace("'", '’') if say == AUDIO_COMMON else FIRST
    begun, second = (f'goal {text.strip()}|{VOICES[say]}' for text in (first, SECOND))
    with stage.other_node(env) as other:
        # One sentence after the other, and it speaks until the goal has ended.
        stage.answer(FIRST + SECOND, 'llm-0')
        at = stage.wait_event(begun)
        stage.wait_state('speaking', lambda s: s.speaking and s.sentence == FIRST)
        assert second not in [each.data for each in stage.events]
        stage.end.publish(String(data='ok'))
        at = stage.wait_event(second)
        assert stage.states[-1].speaking
        stage.end.publish(String(data='ok'))
        stage.wait_state('the end', lambda s: not s.speaking and s.spoken == FIRST + SECOND)

        # A false alarm: the goal is cancelled, and the cut sentence is said again.
        stage.answer(FIRST + SECOND, 'llm-1')
        at = stage.wait_event(begun, at)
        stage.speech.publish(Speech(turn=1, kind=Speech.STARTED))
        broken_off = 'cancel' if say == AUDIO_COMMON else 'stop (-1, 0)'
        at = stage.wait_event(broken_off, at)
        stage.wait_state('silence', lambda s: not s.speaking and s.id == 'llm-1')
        stage.speech.publish(Speech(turn=1, kind=Speech.DISCARDED))
        at = stage.wait_event(begun, at)
        stage.end.publish(String(data='ok'))
        at = stage.wait_event(second, at)

        # A real interruption: what was said is told, and nothing more is.
        stage.speech.publish(Speech(turn=2, kind=Speech.STARTED))
        stage.speech.publish(Speech(turn=2, kind=Speech.ENDED, addressed=True))
        cut = stage.wait_state('silence', lambda s: not s.speaking and s.id == 'llm-1')
        # How much of the second is by time: all of it, where the interruption comes late.
        assert cut.spoken.startswith(FIRST) and (FIRST + SECOND).startswith(cut.spoken)

        # One that is broken off is left out and told, the next one is said.
        client = ActionClient(graph, Say, 'speaker/say')
        graph.spin_until(client.server_is_ready, 'the action')
        sent = client.send_goal_async(Say.Goal(text=FIRST + SECOND))
        done = graph.result_of(sent, 'the goal').get_result_async()
        at = stage.wait_event(begun, at)
        stage.end.publish(String(data='abort'))
        at = stage.wait_event(second, at)
        stage.end.publish(String(data='ok'))
        result = graph.result_of(done, 'the result').result
        assert not result.success and 'its log says why' in result.reason
        assert result.spoken == SECOND.strip()

        # It goes while it speaks: told, and the node goes on.
        stage.answer(FIRST, 'llm-3')
        stage.wait_event(begun, at)
        other.send_signal(signal.SIGINT)
        stage.wait_state('the end', lambda s: not s.speaking and s.id == 'llm-3')
    graph.spin_until(lambda: 'nobody offers the action' in stage.process.log, 'a message')
    assert [each.data for each in stage.events].count(broken_off) == 2  # each once
    assert stage.process.end() == 0, stage.process.log


def test_the_sound_of_audio_common_is_told_so_that_its_echo_can_be_taken_out(graph):
    env = tts_node.environment(AUDIO_COMMON)
    code = (
        'import rclpy, sys\nfrom audio_common_msgs.msg import AudioStamped\n'
        'from std_msgs.msg import String\n'
        'rclpy.init()\nnode = rclpy.create_node("ear", namespace=sys.argv[1])\n'
        'heard = node.create_publisher(String, "ear", 10)\n'
        'node.create_subscription(AudioStamped, "speaker/audio", lambda m: heard.publish(String('
        'data=f"{m.audio.info.rate} {len(m.audio.audio_data.int16_data)} '
        '{m.audio.audio_data.int16_data[0]}")), 10)\nrclpy.spin(node)\n'
    )
    stage, heard = Stage(graph, AUDIO_COMMON, env=env), []
    ears = graph.create_subscription(String, 'ear', heard.append, 10)
    ear = subprocess.Popen(
        [sys.executable, '-c', code, graph.namespace], env={**os.environ, **env}
    )
    try:
        graph.spin_until(
            lambda: graph.count_subscribers(graph.resolve_topic_name('speaker/audio')), 'the ear'
        )
        with stage.other_node(env):
            stage.answer(FIRST, 'llm-0')
            graph.spin_until(lambda: heard, 'its sound')
            stage.end.publish(String(data='ok'))
            stage.wait_state('the end', lambda s: not s.speaking and s.spoken == FIRST)
    finally:
        ear.kill()
        ear.wait()
    assert heard[0].data == '16000 400 16383' and ears is not None


@pytest.mark.parametrize('say', (AUDIO_COMMON, SOUND_PLAY))
def test_without_its_package_it_tells_what_to_install_and_sentences_are_still_published(
    graph, say
):
    stage = Stage(graph, say)
    stage.answer(FIRST + SECOND, 'llm-0')
    graph.spin_until(lambda: any(each.last for each in stage.sentences), 'the last sentence')
    assert ''.join(each.text for each in stage.sentences) == FIRST + SECOND
    remedy = KINDS[say].REMEDY
    assert remedy in stage.process.log and not any(state.speaking for state in stage.states)
    graph.spin_until(lambda: any(remedy in text for text in stage.told.values()), 'the diagnosis')


def test_a_text_cannot_leave_the_command_line_that_audio_common_makes_of_it():
    class TTS:
        class Goal:
            language, volume, rate = '', 1.0, 1.0

            def __init__(self, text):
                self.text = text

    kind = KINDS[AUDIO_COMMON](None, [TTS], '', 1.5, 0.5)
    goal = kind.goal("'; reboot; echo '")
    assert "'" not in goal.text and 'reboot' in goal.text
    assert (goal.language, goal.rate, goal.volume) == ('en', 1.5, 0.5)
    assert kind.goal('-f /etc/passwd').text == ' -f /etc/passwd'
    with pytest.raises(InputError, match='letters, digits'):
        Bridge(None, SOUND_PLAY, 'kal); rm -rf ~', 1.0, 1.0, 1.0)


class OwnAction:
    """Stands for a node that says sentences by an action of this package, and is not there."""

    ACTION, PROGRAM, REMEDY = 'tts/say', 'tts', ''
    PACKAGE, TYPES = 'minicpmo_ros', ('action.Say',)

    def __init__(self, node, types, *_):
        (self.type,) = types

    def close(self):
        pass


def test_a_sentence_that_begins_while_the_bridge_closes_is_over_and_nobody_is_blamed(
    graph, monkeypatch
):
    monkeypatch.setitem(KINDS, SOUND_PLAY, OwnAction)
    graph.post = (posted := []).append  # the executor is closing the bridge
    bridge = Bridge(graph, SOUND_PLAY, '', 1.0, 1.0, 5.0)
    first, second, halt = bridge.speak(FIRST), bridge.speak(SECOND), threading.Event()
    with ThreadPoolExecutor() as pool:
        said = pool.submit(first.play, None, lambda *_: halt.wait())
        graph.spin_until(lambda: posted, 'the sentence')
        bridge.close()
        halt.set()
        said.result()  # raises what would be told
    second.play(None, lambda *_: True)  # it was begun a moment later
    for call in posted:
        call()
