# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Who asks gets a reply with the reason, whatever fails in the node; the next one is served."""

import itertools
from functools import partial

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_graph import Graph
from ros_source import FIRST, SimulatedTime, Source, time_of
from std_srvs.srv import Trigger
from test_ros_live import ask_by_action
from test_speech_speaker import PARROT, RATE_HZ

from minicpmo_ros.action import Say
from minicpmo_ros.errors import InputError
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.generation import Generation
from minicpmo_ros.live.session import Session
from minicpmo_ros.msg import AudioEmbedding, Sentence
from minicpmo_ros.ros import ask_server
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.framework import faults
from minicpmo_ros.ros.llm_node import LlmNode
from minicpmo_ros.ros.messages import to_time
from minicpmo_ros.ros.places import Places
from minicpmo_ros.ros.voice import speaker as speaker_module
from minicpmo_ros.ros.voice.speaker import SpeakerNode
from minicpmo_ros.speech.synthesis import Sound, Synthesiser
from minicpmo_ros.srv import (
    AddAlert,
    Forget,
    ListAlerts,
    LoadSession,
    PauseAlerts,
    ReadAudio,
    Recall,
    Remember,
    RemoveAlert,
    SaveSession,
)
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.units import NS


def fail(*_, **__):
    raise TypeError('nobody foresaw it')


@pytest.fixture
def llm(graph, spun, tiny_model_dir, tmp_path, monkeypatch):
    """Give a node of this process that is ready, with notes and a black box."""
    monkeypatch.setattr(faults, 'WAITS_S', (0.01,))
    node = LlmNode(
        remappings={'__ns': graph.namespace},
        parameters={
            'model_dir': str(tiny_model_dir),
            'required_evidence': 'none',
            'max_tokens': 2,
            'memory.enabled': True,
            'memory.path': str(tmp_path / 'notes'),
            'memory.black_box_s': 10,
            'memory.black_box_path': str(tmp_path / 'box'),
        },
    )
    spun(node)
    graph.wait_ready()
    return node


def spin_both(graph, outside, condition):
    """Spin the nodes of a test and its own node in no namespace, until something holds."""
    graph.spin_until(lambda: condition() or outside.own_executor.spin_once(0.01), 'what it needs')


def result_in(graph, outside, future):
    spin_both(graph, outside, future.done)
    return future.result()


def is_told(reply, capfd) -> bool:
    """Return whether a reply has the reason, and the log the traceback."""
    reason = getattr(reply, 'reason', None) or getattr(reply, 'message', '')
    log = capfd.readouterr().err
    return not reply.success and 'nobody foresaw it' in reason and 'in fail' in log


def test_an_answer_that_cannot_be_told_is_an_error_with_its_reason(graph, llm, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(ask_server, 'seconds_to_time', fail)
        reply = graph.ask('What?')
        assert is_told(reply, capfd) and reply.answer.id
        goal, result = ask_by_action(graph, question='What?')
        wrapped = graph.result_of(result, 'the result')
        assert wrapped.status == GoalStatus.STATUS_ABORTED and not wrapped.result.success
        assert 'nobody foresaw it' in wrapped.result.reason
    assert llm.faults.count == 2
    assert graph.ask('What?').success


@pytest.mark.parametrize(
    'where, name', [(Session, 'ask'), (Generation, 'take'), (Generation, 'end')]
)
def test_whatever_fails_while_answering_is_the_reply_of_who_asked(
    graph, llm, monkeypatch, caplog, where, name
):
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        _, result = ask_by_action(graph, question='What?')
        reply = graph.ask('What?')
        wrapped = graph.result_of(result, f'a result without {name}')
        assert wrapped.status == GoalStatus.STATUS_ABORTED and wrapped.result.reason
        assert not reply.success and reply.reason
        assert 'nobody foresaw it' in caplog.text
    graph.spin_until(lambda: llm.is_ready(), 'a node that works again')
    graph.spin_until(lambda: graph.ask('What?').success, 'an answer')


def test_a_question_whose_image_fails_is_answered_with_the_reason(graph, llm, monkeypatch, capfd):
    monkeypatch.setattr(LlmNode, 'take_look', fail)
    assert is_told(graph.ask('What?', look='sharp'), capfd)
    assert llm.faults.count == 1


def test_a_service_that_fails_replies(graph, llm, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, 'reset', fail)
        patch.setattr(Engine, 'status', fail)
        assert is_told(graph.call(Trigger, 'llm/reset'), capfd)
        assert is_told(graph.call(SaveSession, 'llm/save', path='/tmp/none'), capfd)
    with monkeypatch.context() as patch:
        patch.setattr(Places, 'here', fail)
        assert is_told(graph.call(Remember, 'llm/remember', text='A red ball.'), capfd)
        assert is_told(graph.call(Recall, 'llm/recall', text='ball'), capfd)
    assert llm.faults.count >= 4 and llm.state == 'active'
    assert graph.call(Remember, 'llm/remember', text='A red ball.').success
    assert graph.call(Recall, 'llm/recall', text='ball').notes
    assert graph.call(Trigger, 'llm/reset').success


def test_what_needs_the_files_of_a_node_without_them_is_refused(graph, llm):
    llm.trigger_deactivate()
    llm.trigger_cleanup()
    begin, end = to_time(0), to_time(10**9)
    for kind, name, fields in (
        (Forget, 'forget', {'begin': begin, 'end': end}),
        (SaveSession, 'save', {'path': '/tmp/none'}),
        (LoadSession, 'load', {'path': '/tmp/none'}),
        (Remember, 'remember', {'text': 'A red ball.'}),
    ):
        reply = graph.call(kind, f'llm/{name}', **fields)
        assert not reply.success and reply.reason, name


def test_a_text_that_cannot_be_said_is_an_aborted_goal_and_the_next_is_said(
    graph, spun, tmp_path, monkeypatch, capfd
):
    outside = Graph(tmp_path, '/')  # the node is in no namespace
    monkeypatch.setattr(
        speaker_module, 'make_synthesiser', lambda *_: Synthesiser(PARROT, 60.0, RATE_HZ)
    )
    node = spun(SpeakerNode())
    client = ActionClient(outside, Say, 'speaker/say')

    def say(text):
        result_of = partial(result_in, graph, outside)
        goal = result_of(client.send_goal_async(Say.Goal(text=text)))
        return result_of(goal.get_result_async())

    graph.spin_until(lambda: node.state == 'active', 'the speaker')
    spin_both(graph, outside, client.server_is_ready)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(speaker_module, 'Sentence', fail)
            wrapped = say('Not to be said.')
            assert wrapped.status == GoalStatus.STATUS_ABORTED
            assert is_told(wrapped.result, capfd)
        with monkeypatch.context() as patch:
            patch.setattr(Sound, 'play', fail)
            wrapped = say('Nobody hears it.')
            assert wrapped.status == GoalStatus.STATUS_ABORTED
            assert 'nobody foresaw it' in wrapped.result.reason
        assert say('It is said.').result.success
    finally:
        client.destroy()
        outside.close()


@pytest.mark.parametrize('error', [TypeError, InputError])
def test_an_open_second_that_cannot_be_read_is_refused_and_the_next_is_read(
    graph, spun, tiny_model_dir, tmp_path, monkeypatch, error
):
    def refuse(*_):
        raise error('nobody foresaw it')

    node = StreamingEncoder()
    node.set_parameters([Parameter('model_dir', value=str(tiny_model_dir))])
    spun(node)
    outside, heard = Graph(tmp_path, '/'), []
    outside.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    seconds, source = itertools.count(FIRST), Source(outside)

    def read():
        client = outside.create_client(ReadAudio, 'streaming_encoder/read_audio')
        spin_both(graph, outside, client.service_is_ready)
        reply = result_in(graph, outside, client.call_async(ReadAudio.Request(timeout_s=60.0)))
        outside.destroy_client(client)
        return reply

    spin_both(graph, outside, lambda: source.second(next(seconds)) or heard)
    with monkeypatch.context() as patch:
        patch.setattr(AudioPipeline, 'peek', refuse)
        reply = read()
        assert not reply.success and 'nobody foresaw it' in reply.reason
    assert read().success and node.faults.count == 1 and node.state == 'active'
    outside.close()


MANY = 60  # calls of each at the same moment; the default of ROS keeps the newest 10
CALLS = (
    (ListAlerts, 'llm/list_alerts'),
    (AddAlert, 'llm/add_alert'),
    (RemoveAlert, 'llm/remove_alert'),
    (PauseAlerts, 'llm/pause_alerts'),
    (Recall, 'llm/recall'),
    (Remember, 'llm/remember'),
    (SaveSession, 'llm/save'),
    (Trigger, 'speaker/stop'),
)


def test_each_of_many_who_call_at_the_same_moment_gets_a_reply(graph, tiny_model_dir):
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.start('speaker', '-p', 'engine:=none')
    deep = QoSProfile(depth=MANY)
    clients = [(kind, graph.create_client(kind, name, qos_profile=deep)) for kind, name in CALLS]
    saying = ActionClient(
        graph, Say, 'speaker/say', goal_service_qos_profile=deep, result_service_qos_profile=deep
    )
    for _, client in clients:
        graph.until_answered(client)
    graph.spin_until(saying.server_is_ready, 'the action')
    futures = [client.call_async(kind.Request()) for kind, client in clients for _ in range(MANY)]
    results = []
    for _ in range(MANY):  # who does not ask for a result at once may find it gone after 10 s
        saying.send_goal_async(Say.Goal(text='Hello.')).add_done_callback(
            lambda goal: results.append(goal.result().get_result_async())
        )
    graph.spin_until(lambda: all(one.done() for one in futures), 'each reply')
    graph.spin_until(
        lambda: len(results) == MANY and all(one.done() for one in results), 'each result'
    )
    assert all('engine is none' in one.result().result.reason for one in results)
    saying.destroy()


def test_a_result_is_there_for_who_asks_for_it_half_a_minute_later(graph):
    """As one does that a callback of its own, or a busy machine, has held up."""
    heard = []
    graph.start('speaker', '-p', 'engine:=none', '-p', 'use_sim_time:=true')
    graph.create_subscription(Sentence, 'speaker/sentence', heard.append, 100)
    simulated, saying = SimulatedTime(graph), ActionClient(graph, Say, 'speaker/say')
    simulated.until(saying.server_is_ready, 'the action')

    def is_said():
        """Have a text said that nothing says; return whether one came at this time."""
        if all(one.done() for one in goals):  # each status tells all goals that are kept
            goals.append(saying.send_goal_async(Say.Goal(text='Hello.')))
        return any(one.header.stamp == time_of(int(simulated.now_s * NS)) for one in heard)

    goals = []
    simulated.until(is_said, 'a text')  # the node has this time: goals before it ended at 0
    goal = graph.result_of(saying.send_goal_async(Say.Goal(text='Hello.')), 'a goal')
    # Its status is not kept for who has no reply yet; it comes with that of each later goal.
    simulated.until(lambda: is_said() and goal.status == GoalStatus.STATUS_ABORTED, 'its end')
    simulated.now_s += 30
    simulated.until(is_said, 'a text half a minute later')
    result = graph.result_of(goal.get_result_async(), 'the result')
    assert 'engine is none' in result.result.reason
    saying.destroy()
