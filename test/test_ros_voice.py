# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `voice`: a spoken question is answered without a call, and what fails is told."""

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_source import DEEP, FIRST, AtRoot, HeldReader, Source, jpeg, picture_of
from std_msgs.msg import String

from benchmarks.voice_sounds import say
from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.msg import Answer, SpeakerState, Speech
from minicpmo_ros.ros.audio_input import AudioInput
from minicpmo_ros.ros.framework.threads import PERIOD_S
from minicpmo_ros.ros.voice import asking
from minicpmo_ros.ros.voice import node as node_module
from minicpmo_ros.ros.voice.asking import Asker
from minicpmo_ros.ros.voice.node import IS_QUESTION, LOOKS_S, TURNS, VoiceNode, turn_options
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.streams.time import Arrival, Instant
from minicpmo_ros.voice.turns import TurnState

RATE, NS = 16000, 10**9


@pytest.fixture(scope='module')
def question():
    """Give a spoken question with silence around it, (n,) float32 of whole seconds."""
    spoken = say('What is on the table?', 'en-us')
    samples = np.zeros(5 * RATE, np.float32)
    samples[RATE : RATE + len(spoken)] = spoken
    return samples


@pytest.fixture
def heard(graph):
    """Give the Speech messages that come."""
    heard = []
    graph.create_subscription(Speech, 'voice/speech', heard.append, QoSProfile(depth=50))
    return heard


@pytest.fixture
def told(graph):
    """Give a function that returns the newest /diagnostics entry of node voice."""
    entries = {}

    def take(message):
        for status in message.status:
            if status.name.startswith(f'{graph.namespace[1:]}/voice:'):
                entries['voice'] = status

    graph.create_subscription(DiagnosticArray, '/diagnostics', take, DEEP)
    return lambda: entries.get('voice')


def speak(source, samples, begin_s, chunk=1600):
    """Publish samples as a microphone, in chunks of 0.1 s, with an image a second."""
    for i in range(0, len(samples), chunk):
        if i % RATE == 0:
            source.picture(begin_s * NS + i * NS // RATE, jpeg(picture_of(i // RATE)))
        source.sound(begin_s * NS + i * NS // RATE, samples[i : i + chunk])


def values(told):
    return {pair.key: pair.value for pair in told().values}


def of_kind(heard, kind):
    return [message for message in heard if message.kind == kind]


@pytest.mark.parametrize('composed', [True, False])
def test_a_spoken_question_is_answered_without_a_call(
    graph, tiny_model_dir, question, heard, told, composed
):
    model = ('-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=4')
    # Or an image that a busy machine reads late is missed, and the question comes late itself.
    model += ('-p', 'unit_deadline:=30.0', '-p', 'max_staleness_s:=600.0')
    extra = ('-p', 'remember:=true', '-p', 'transcript:=true')
    process = graph.start('live', *model, *extra, *graph.lossless, *('--', '--voice') * composed)
    if not composed:
        graph.start('voice', *extra, *graph.lossless)
    answers, transcripts = [], []
    graph.create_subscription(Answer, 'llm/answer', answers.append, QoSProfile(depth=10))
    graph.create_subscription(String, 'voice/transcript', transcripts.append, QoSProfile(depth=10))
    graph.wait_ready()
    source = Source(graph)
    for publisher in (source.audio, source.info):
        graph.spin_until(lambda p=publisher: p.get_subscription_count() >= 2, 'both to listen')
    graph.spin_until(source.images.get_subscription_count, 'the camera to be seen')
    graph.spin_until(lambda: told() and values(told)['llm'] == 'there', 'the llm to be there')
    speak(source, question, FIRST)
    graph.spin_until(lambda: answers, 'an answer')
    started, ended = heard
    assert (started.kind, ended.kind) == (Speech.STARTED, Speech.ENDED)
    assert ended.addressed and not ended.reason and 0.5 < ended.probability <= 1
    assert started.start == ended.start and abs(ended.start.sec - FIRST - 1) <= 1
    answer = answers[0]
    assert answer.finish in (Answer.STOP, Answer.LENGTH), answer.reason
    assert answer.question == '' and not answer.reason
    ended_s = ended.end.sec + ended.end.nanosec / NS
    heard_s = answer.audio_end.sec + answer.audio_end.nanosec / NS
    assert ended_s <= heard_s, 'all that was said'
    graph.spin_until(
        lambda: values(told)['questions answered'] == '2',
        'voice to know of the answer, for its patience and follow_up_s, and of the transcript',
    )
    graph.spin_until(lambda: transcripts, 'the transcript')
    assert len(answers) == 1, 'a transcript is no answer, which would be said aloud'
    assert process.is_running
    assert not any('Traceback' in each.log for each in graph.processes)


@pytest.fixture
def patient(graph, monkeypatch):
    """Give a VoiceNode that spins with the graph, in this process; it waits long for an llm."""
    monkeypatch.setattr(asking, 'FIND_TIMEOUT_S', 600.0)
    loss = f'qos_overrides.{graph.namespace}/audio.subscription.reliability'
    node = VoiceNode(
        remappings={'__ns': graph.namespace}, parameters={loss: 'reliable', 'timeout_s': 600.0}
    )
    graph.own_executor.add_node(node)
    yield node
    graph.own_executor.remove_node(node)
    node.destroy_node()


def test_the_voices_that_several_robots_hear_are_told_apart(graph, monkeypatch):
    stand_in = SimpleNamespace(IdsList=String, LiveSpeech=String)  # it need not be installed
    monkeypatch.setitem(sys.modules, 'hri_msgs', SimpleNamespace(msg=stand_in))
    monkeypatch.setitem(sys.modules, 'hri_msgs.msg', stand_in)
    nodes = [VoiceNode(remappings={'__ns': namespace}) for namespace in ('/', '/a')]
    for node, root in zip(nodes, ('/humans/voices', '/a/humans/voices')):
        told = node.get_publisher_names_and_types_by_node('voice', node.get_namespace())
        assert {name for name, _ in told if 'humans' in name} == {
            f'{root}/{end}'
            for end in ('tracked', 'anonymous_voice/is_speaking', 'anonymous_voice/speech')
        }
        node.destroy_node()


def test_a_question_that_was_spoken_before_the_llm_was_there_waits_for_it(
    graph, tiny_model_dir, patient, question, heard, told
):
    answers, source = [], Source(graph)
    graph.create_subscription(Answer, 'llm/answer', answers.append, QoSProfile(depth=10))
    source.wait_heard(image=False)
    speak(source, question, FIRST)
    graph.spin_until(lambda: of_kind(heard, Speech.ENDED), 'a turn')
    graph.spin_until(lambda: told() and values(told)['questions asked'] == '1', 'the question')
    assert values(told)['llm'] == 'not there' and 'is not answered' not in told().message
    model = ('-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=4')
    graph.start('live', *model, '-p', 'unit_deadline:=60.0', *graph.lossless)
    graph.spin_until(lambda: graph.status, 'the llm')
    source.until_read(FIRST + 5)  # the microphone goes on
    graph.spin_until(lambda: answers, 'an answer')
    assert answers[0].question == '' and len(answers) == 1
    if answers[0].finish == Answer.ERROR:  # a busy machine was asked before it had heard anything
        assert 'no audio in the window' in answers[0].reason
        graph.spin_until(lambda: 'no audio in' in told().message, 'voice to know of it')
    else:
        graph.spin_until(lambda: values(told)['questions answered'] == '1', 'voice to know of it')
    assert values(told)['questions asked'] == '1' and len(of_kind(heard, Speech.ENDED)) == 1


def test_a_question_that_waits_for_the_llm_is_not_asked_after_the_robot_was_to_stop(
    graph, tiny_model_dir, monkeypatch
):
    monkeypatch.setattr(asking, 'FIND_TIMEOUT_S', 600.0)
    answers, asker = [], Asker(graph, lambda text: None)
    graph.create_subscription(Answer, 'llm/answer', answers.append, QoSProfile(depth=10))
    turn = SimpleNamespace(turn=0, heard_until_ns=0)
    asker.ask(turn, 'What is that?', remember=False, timeout_s=600.0)
    asker.silence()
    asker.ask(turn, 'And this?', remember=False, timeout_s=600.0)
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=2')
    graph.spin_until(lambda: answers, 'an answer')
    assert answers[0].question == 'And this?'
    asker.close()


def test_without_an_llm_a_question_is_told_as_unanswered_and_turns_go_on(
    graph, question, heard, told
):
    # The stamps of a burst stand still while the llm is waited for.
    process = graph.start('voice', '-p', 'audio.stamps:=header', *graph.lossless)
    source = Source(graph)
    source.wait_heard(image=False)
    speak(source, question, FIRST)
    graph.spin_until(lambda: of_kind(heard, Speech.ENDED), 'a turn')
    graph.spin_until(lambda: told() and 'There is no' in told().message, 'the diagnosis')
    assert 'turn 0 is not answered' in told().message and f'{graph.namespace}/llm' in process.log
    speak(source, question, FIRST + 5)
    graph.spin_until(lambda: len(of_kind(heard, Speech.ENDED)) == 2, 'another turn')
    assert float(values(told)['cost [ms per second of audio]']) > 0
    graph.spin_until(lambda: values(told)['turns ended'] == '2', 'the count')
    assert process.end() == 0 and 'Traceback' not in process.log


def test_a_microphone_that_dies_discards_the_turn_and_is_told(graph, question, heard, told):
    process = graph.start('voice', '-p', 'ask:=false', *graph.lossless)
    source = Source(graph)
    source.wait_heard(image=False)
    speak(source, question[: 3 * RATE // 2], FIRST)  # in the middle of the question
    graph.spin_until(lambda: of_kind(heard, Speech.DISCARDED), 'the end of the turn')
    assert 'microphone has stopped' in of_kind(heard, Speech.DISCARDED)[0].reason
    graph.spin_until(lambda: told() and 'nothing has come' in told().message, 'the diagnosis')
    speak(source, question, FIRST + 60)
    graph.spin_until(lambda: of_kind(heard, Speech.ENDED), 'a turn once it is back')
    assert process.is_running


def test_a_microphone_has_not_stopped_while_its_reader_is_held_up(
    graph, spun, question, monkeypatch
):
    heard, looks = [], []
    graph.create_subscription(Speech, '/voice/speech', heard.append, QoSProfile(depth=50))
    monkeypatch.setattr(node_module, 'SILENT_S', 0.3)
    monkeypatch.setattr(AudioInput, 'look_every', lambda _, period_s: looks.append(period_s))
    reader, node = HeldReader(monkeypatch, '/audio'), VoiceNode()
    node.set_parameters([Parameter('ask', value=False)])
    spun(node)
    source = Source(AtRoot(graph))
    source.wait_heard(image=False)
    for i in range(0, 3 * RATE // 2, 1600):
        source.sound(FIRST * NS + i * NS // RATE, question[i : i + 1600])
    graph.spin_until(lambda: of_kind(heard, Speech.STARTED), 'the begin of the turn')
    try:
        reader.hold()
        for i in range(3 * RATE // 2, len(question), 1600):
            source.sound(FIRST * NS + i * NS // RATE, question[i : i + 1600])
        held_s, n_looks = time.monotonic(), len(looks)
        graph.spin_until(
            lambda: time.monotonic() > held_s + 1.0 and len(looks) > n_looks + 5,
            'the worker to look again and again',
        )
    finally:
        reader.let_go()
    graph.spin_until(lambda: len(heard) == 2, 'the end of the turn')
    assert heard[1].kind == Speech.ENDED, heard[1].reason


def test_who_listens_is_not_deaf_for_ever_after_a_speaker_that_ended_while_it_spoke(
    graph, question, heard
):
    graph.start('voice', '-p', 'ask:=false', *graph.lossless)
    speaker = graph.create_publisher(SpeakerState, 'speaker/state', STATE_QOS)
    graph.spin_until(speaker.get_subscription_count, 'voice to hear of the speaker')
    source = Source(graph)
    source.wait_heard(image=False)
    state = SpeakerState(speaking=True)
    state.header.stamp = graph.get_clock().now().to_msg()
    speaker.publish(state)
    said_s, length_s = time.time() + 1, len(question) // RATE

    def is_heard():
        nonlocal said_s
        if time.time() >= said_s:
            speak(source, question, int(said_s))
            said_s += length_s
        return of_kind(heard, Speech.ENDED)

    first_s = said_s
    graph.spin_until(lambda: is_heard() or said_s > first_s, 'a question into its words')
    graph.destroy_publisher(speaker)
    graph.spin_until(is_heard, 'a question after them')


def test_a_missing_library_is_told_and_the_others_go_on(graph, tiny_model_dir, tmp_path, told):
    (tmp_path / 'onnxruntime.py').write_text('raise ImportError("none here")')
    env = {'PYTHONPATH': str(tmp_path)}
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '--', '--voice', env=env,
    )  # fmt: skip
    graph.wait_ready()
    assert graph.ask('What is it?', max_tokens=2).success
    graph.spin_until(
        lambda: told() and 'requirements-voice.txt' in told().message, 'what to install'
    )
    assert process.is_running and 'Traceback' not in process.log


@pytest.mark.parametrize(
    'changes, told',
    (
        (
            {'start_speech_s': 2.0, 'max_speech_s': 1.0},
            '_s is 2, above max_speech_s, 1',
        ),
        ({'interrupt_speech_s': 5.0, 'max_speech_s': 3.0}, 'interrupt_speech_s is 5, above'),
        ({'release': 0.7}, 'release is 0.7, above threshold, 0.6'),
    ),
)
def test_parameters_by_which_nothing_would_be_a_turn_are_refused(changes, told):
    with pytest.raises(InputError, match=told):
        turn_options(replace(TURNS, **changes))
    assert turn_options(TURNS) == TURNS


@pytest.mark.parametrize(
    'answer, is_question',
    (
        ('Which one?', True),
        ('Which one? 😊', True),
        ('He asked: "Which one?"\n', True),
        ('أي واحد؟', True),
        ('哪一个？', True),
        ('Which? That one.', False),
        ('', False),
    ),
)
def test_an_answer_that_asks_back_is_known_by_its_end(answer, is_question):
    assert bool(IS_QUESTION.search(answer)) == is_question


def test_the_same_audio_gives_the_same_turns_at_any_pace(graph, question, heard):
    graph.start('voice', '-p', 'ask:=false', *graph.lossless)
    source = Source(graph)
    source.wait_heard(image=False)
    found = []
    for i, chunk in enumerate((1600, 400, 8000)):
        begin_s = FIRST + 100 * i
        speak(source, question, begin_s, chunk)
        graph.spin_until(lambda i=i: len(heard) == 2 * (i + 1), 'the turn')
        found.append([
            (m.kind, m.start.sec - begin_s, m.start.nanosec, m.end.nanosec, m.header.stamp.nanosec)
            for m in heard[-2:]
        ])  # fmt: skip
    assert found[0] == found[1] == found[2]


def test_audio_is_looked_for_often_when_a_turn_may_end_and_rarely_while_nobody_speaks(
    graph, question, monkeypatch
):
    heard, periods_s = [], []
    graph.create_subscription(Speech, '/voice/speech', heard.append, QoSProfile(depth=50))
    monkeypatch.setattr(AudioInput, 'look_every', lambda _, period_s: periods_s.append(period_s))
    node = VoiceNode()
    node.set_parameters([Parameter('ask', value=False)])
    graph.own_executor.add_node(node)
    try:
        source = Source(AtRoot(graph))
        source.wait_heard(image=False)
        graph.spin_until(lambda: periods_s, 'the worker')
        for i in range(0, len(question), 1600):  # each chunk before the next
            before = len(periods_s)
            source.sound(FIRST * NS + i * NS // RATE, question[i : i + 1600])
            graph.spin_until(lambda n=before: len(periods_s) > n + 1, 'the next look')
        graph.spin_until(lambda: of_kind(heard, Speech.ENDED), 'the end of the turn')
        graph.spin_until(lambda: periods_s[-1] == periods_s[0], 'the worker to be quiet again')
    finally:
        graph.own_executor.remove_node(node)
        node.destroy_node()
    quiet_s, speaking_s, pause_s = LOOKS_S[TurnState.QUIET], PERIOD_S, LOOKS_S[TurnState.PAUSE]
    assert quiet_s > speaking_s > pause_s and set(periods_s) == {quiet_s, speaking_s, pause_s}
    first = [periods_s.index(period_s) for period_s in (quiet_s, speaking_s, pause_s)]
    assert first == sorted(first)


def test_what_the_speaker_says_is_told_to_the_finder_of_turns_also_without_barge_in():
    names = {one.name.replace('.', '_'): one.default for one in node_module.PARAMETERS}
    audio = node_module.TurnAudio(SimpleNamespace(**names))
    audio.own = SimpleNamespace(
        hear=lambda begin_ns, samples: (samples, samples),
        is_interrupted_at=lambda stamp_ns: False,
        speaks_at=lambda stamp_ns: stamp_ns < 40 * NS,
    )
    form = AudioFormat(RATE, 1)
    data = bytes(2 * 10 * RATE)
    for begin_s in range(0, 40, 10):
        audio.push(Arrival(begin_s * NS, Instant(begin_s), (begin_s * NS, data, form)))
        if not begin_s:
            audio.finder.answered(is_question=True)
    assert audio.finder.turns.expects_reply(40 * NS)
