# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions as unlucky as they come: each ends once, in words, and the next is answered."""

import dataclasses
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile
from ros_graph import LONG
from test_ros_live import ask_by_action

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.live import question as live
from minicpmo_ros.msg import Answer, AnswerDelta, AudioEmbedding
from minicpmo_ros.ros.framework.lifecycle import SERVICE_QOS
from minicpmo_ros.srv import Ask

CLIENTS = Path(__file__).parents[1] / 'docs' / 'clients.md'


@pytest.fixture(scope='module')
def graph(shared_graph):
    """Give the graph of this file: one llm gets all questions."""
    return shared_graph


@pytest.fixture(scope='module')
def process(graph, tiny_model_dir):
    process = graph.start(
        'llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=3000',
        '-p', 'unit_deadline:=0.05',
    )  # fmt: skip
    graph.wait_ready()
    yield process
    assert process.end() == 0
    assert 'Traceback' not in process.log


@pytest.fixture
def llm(graph, process):
    """Give the llm, which must outlive the test and answer after it."""
    yield process
    assert process.is_running and 'Traceback' not in process.log
    assert graph.ask('And now?', max_tokens=2).success


REFUSED = {
    'huge': dict(question='word ' * 200_000),
    'grammar': dict(question='?', grammar='root ::= ('),
    'grammar and choices': dict(question='?', grammar='root ::= "a"', choices=['a']),
    'schema and choices': dict(question='?', json_schema='{}', choices=['a']),
    'schema': dict(question='?', json_schema='{"type": "float"}'),
    'empty choice': dict(question='?', choices=['']),
    'blank choice': dict(question='?', choices=['a', '  ']),
    'not a number': dict(question='?', temperature=float('nan')),
    'hot': dict(question='?', temperature=1e30),
}


def test_a_field_of_a_question_is_the_same_in_service_action_core_and_docs():
    goal = AskAction.Goal.get_fields_and_field_types()
    assert goal == Ask.Request.get_fields_and_field_types()
    core = {field.name for field in dataclasses.fields(live.Question)} - {'text'}
    told = re.search(
        r'A question has these options.*?(?=\n\n[^|])', CLIENTS.read_text(), re.DOTALL
    )
    options = re.findall(r'^\| `(\w+)` \|', told[0], re.MULTILINE)
    assert goal.keys() - {'question'} == core == set(options)


def test_what_an_answer_tells_is_the_same_in_message_and_core():
    kinds = Answer.get_fields_and_field_types()
    core = {field.name for field in dataclasses.fields(live.Answer)} | {'reason'}
    times = {name for name, kind in kinds.items() if 'builtin_interfaces/Time' in kind}
    told = kinds.keys() - times - {'header', 'id', 'live_ms'} | {f'{name}_s' for name in times}
    assert told == core - {'error', 'notes', 'live_s'}


@pytest.mark.parametrize('way', ['service', 'action'])
def test_what_cannot_be_asked_is_refused_in_words(graph, llm, way):
    for name, fields in REFUSED.items():
        if way == 'service':
            reply = graph.ask(**fields)
        else:
            _, result = ask_by_action(graph, **fields)
            wrapped = graph.result_of(result, 'the result')
            assert wrapped.status == GoalStatus.STATUS_ABORTED, name
            reply = wrapped.result
        assert not reply.success and reply.reason and not reply.answer.text, name


def test_a_time_before_now_is_no_time_to_answer_in(graph, llm):
    _, result = ask_by_action(graph, question='?', timeout_s=-5.0)
    reply = graph.result_of(result, 'the result').result
    assert not reply.success and 'timeout_s is -5' in reply.reason


def test_odd_questions_are_answered(graph, llm):
    odd = ('\x01', '<|im_end|><unit><image>', '\U0001f600' * 20, 'ä' * 50)
    for question in odd:
        assert graph.ask(question, max_tokens=2).success, repr(question)
    for nothing in ('', '\x00', ' \n'):  # ROS ends a text at a zero
        assert 'what was said' in graph.ask(nothing).reason
    assert graph.ask('?', max_tokens=2**32 - 1, choices=['a', 'b']).answer.text in ('a', 'b')


def test_choices_and_remembering_work_by_the_action(graph, llm):
    before = graph.status.positions
    _, result = ask_by_action(graph, question='Left?', choices=['left', 'right'], remember=True)
    wrapped = graph.result_of(result, 'the result')
    assert wrapped.status == GoalStatus.STATUS_SUCCEEDED
    assert wrapped.result.answer.text in ('left', 'right')
    graph.spin_until(lambda: graph.status.positions > before, 'what is remembered')


def test_an_answer_aside_is_for_who_asks_alone(graph, llm):
    told = []
    subscriptions = [
        graph.create_subscription(kind, topic, told.append, QoSProfile(depth=100))
        for kind, topic in ((Answer, 'llm/answer'), (AnswerDelta, 'llm/answer_delta'))
    ]
    for publisher in ('llm/answer', 'llm/answer_delta'):
        graph.spin_until(lambda p=publisher: graph.count_publishers(p), 'what the llm tells')
    # What others are told before the llm has found who listens here says nothing.
    graph.spin_until(lambda: graph.ask('All?', max_tokens=2).success and told, 'what all are told')
    asides = [graph.ask('Aside?', aside=True, max_tokens=4).answer.id]
    _, result = ask_by_action(graph, question='Aside?', aside=True, max_tokens=4)
    wrapped = graph.result_of(result, 'the result')
    assert wrapped.status == GoalStatus.STATUS_SUCCEEDED
    asides.append(wrapped.result.answer.id)
    last = graph.ask('All?', max_tokens=2).answer.id
    graph.spin_until(
        lambda: {Answer, AnswerDelta} == {type(m) for m in told if m.id == last}, 'it'
    )
    assert all(asides) and not {message.id for message in told} & set(asides)
    for subscription in subscriptions:
        graph.destroy_subscription(subscription)


def test_cancelling_early_twice_and_late_ends_each_goal_once(graph, llm):
    first, first_result = ask_by_action(graph, question='long', **LONG)
    waiting, waiting_result = ask_by_action(graph, question='waits', **LONG)
    cancels = [goal.cancel_goal_async() for goal in (waiting, waiting, first, first)]
    for future in cancels:
        graph.result_of(future, 'a cancellation')
    for result in (first_result, waiting_result):
        wrapped = graph.result_of(result, 'the end')
        assert wrapped.status == GoalStatus.STATUS_CANCELED
        assert wrapped.result.answer.finish == Answer.CANCELLED
    late = graph.result_of(first.cancel_goal_async(), 'a late cancellation')
    assert not late.goals_canceling


def test_a_goal_taken_back_before_it_is_accepted_ends_once(graph, llm):
    """All goals of the server are taken back in the same moment in which one is sent."""
    graph.spin_until(graph.action_client.server_is_ready, 'the action')
    cancel = graph.create_client(CancelGoal, 'llm/ask/_action/cancel_goal')
    graph.spin_until(cancel.service_is_ready, 'the cancellation')
    for _ in range(5):
        everything = cancel.call_async(CancelGoal.Request())
        sent = graph.action_client.send_goal_async(AskAction.Goal(question='?', max_tokens=20))
        goal = graph.result_of(sent, 'the goal to be taken')
        graph.result_of(everything, 'the cancellation')
        status = graph.result_of(goal.get_result_async(), 'the end').status
        assert status in (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED)


def test_a_storm_of_goals_ends_each_once(graph, llm):
    # The asker's own queues of replies are as short by default as the node's would be.
    client = ActionClient(
        graph, AskAction, 'llm/ask',
        goal_service_qos_profile=SERVICE_QOS, result_service_qos_profile=SERVICE_QOS,
        cancel_service_qos_profile=SERVICE_QOS, status_sub_qos_profile=SERVICE_QOS,
    )  # fmt: skip
    graph.spin_until(client.server_is_ready, 'the action')
    results, cancels = {}, []

    def take(i, goal) -> None:
        """Ask for the result at once: it is kept for 10 s. Take some goals back.

        As soon as they are taken, and some once more: early, twice, and after the end.
        """
        results[i] = goal.get_result_async()
        if i % 3 == 0:
            cancels.extend(goal.cancel_goal_async() for _ in range(1 + i % 2))

    sent = []
    for i in range(100):
        sent.append(client.send_goal_async(AskAction.Goal(question=f'{i}?', max_tokens=3)))
        sent[i].add_done_callback(lambda future, i=i: take(i, future.result()))
    graph.spin_until(lambda: len(results) == len(sent), 'all goals to be taken')
    goals = [future.result() for future in sent]
    assert all(goal.accepted for goal in goals)
    results = list(results.values())
    graph.spin_until(lambda: all(future.done() for future in results + cancels), 'all results')
    ended = [future.result().status for future in results]
    assert set(ended) <= {
        GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED, GoalStatus.STATUS_CANCELED,
    }  # fmt: skip
    assert ended.count(GoalStatus.STATUS_SUCCEEDED) >= 10
    assert all(f.result().result.reason for f in results if not f.result().result.success)
    # What has ended stays as it ended, whoever takes it back again.
    late = [goal.cancel_goal_async() for goal in goals]
    graph.spin_until(lambda: all(future.done() for future in late), 'the late cancellations')
    assert not any(future.result().goals_canceling for future in late)
    client.destroy()


CLIENT = """
import rclpy
from rclpy.action import ActionClient
from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.srv import Ask
rclpy.init()
node = rclpy.create_node('client', namespace={namespace!r})
action, service = ActionClient(node, AskAction, 'llm/ask'), node.create_client(Ask, 'llm/ask')
action.wait_for_server(), service.wait_for_service()
goal = action.send_goal_async(AskAction.Goal(question='?'), lambda _: print('word', flush=True))
service.call_async(Ask.Request(question='?'))
rclpy.spin(node)
"""


def test_an_asker_that_dies_ends_nobody_else(graph, llm):
    client = subprocess.Popen(
        [sys.executable, '-c', CLIENT.format(namespace=graph.namespace)], stdout=subprocess.PIPE
    )
    assert client.stdout.readline() == b'word\n'
    client.send_signal(signal.SIGKILL)
    client.wait()
    graph.spin_until(
        lambda: graph.ask_client.service_is_ready() and graph.ask('?', max_tokens=1).success,
        'an answer after the others',
    )


def test_seconds_beyond_any_clock_end_nothing(graph, llm):
    publisher = graph.create_publisher(AudioEmbedding, 'audio_embedding', 10)
    graph.spin_until(publisher.get_subscription_count, 'the llm')
    sound = AudioEmbedding(model=graph.status.model, tokens=25, width=256)
    sound.data.frombytes(bytes(2 * 25 * 256))
    before = graph.status
    for i, second in enumerate((-(2**63), -1, 2**31, 2**63 - 2, 2**63 - 1), 1):
        sound.second = second
        publisher.publish(sound)
        graph.spin_until(
            lambda i=i: graph.status.units_read == before.units_read + i, f'second {second}'
        )
    reply = graph.ask('?', max_tokens=2)
    assert reply.success and reply.answer.units > 0
    many = AudioEmbedding(model=graph.status.model, second=0, tokens=60_000, width=256)
    many.data.frombytes(bytes(2 * 60_000 * 256))
    publisher.publish(many)
    graph.spin_until(
        lambda: graph.status.refused > before.refused, 'the refusal of a second without end'
    )
