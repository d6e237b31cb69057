# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions as unlucky as they come: each ends once, in words, and the next is answered."""

import signal
import subprocess
import sys

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from test_nodes_live import ask_by_action

from minicpmo_ros.action import Ask as AskAction
from minicpmo_ros.msg import Answer, AudioEmbedding
from minicpmo_ros.nodes.asking import SERVICE_QOS


@pytest.fixture
def llm(graph, tiny_model_dir):
    process = graph.start(
        'llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=3000',
        '-p', 'unit_deadline:=0.05',
    )  # fmt: skip
    graph.wait_ready()
    yield process
    assert process.is_running
    assert graph.ask('And now?', max_tokens=2).success
    assert process.end() == 0
    assert 'Traceback' not in process.log


REFUSED = {
    'huge': dict(question='word ' * 200_000),
    'grammar': dict(question='?', grammar='root ::= ('),
    'grammar and choices': dict(question='?', grammar='root ::= "a"', choices=['a']),
    'empty choice': dict(question='?', choices=['']),
    'not a number': dict(question='?', temperature=float('nan')),
    'hot': dict(question='?', temperature=1e30),
}


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


def test_odd_questions_are_answered(graph, llm):
    odd = ('', '\x00\x01', '<|im_end|><unit><image>', '\U0001f600' * 20, 'ä' * 50)
    for question in odd:
        assert graph.ask(question, max_tokens=2).success, repr(question)
    assert graph.ask('?', max_tokens=2**32 - 1, choices=['a', 'b']).answer.text in ('a', 'b')


def test_choices_and_remembering_work_by_the_action(graph, llm):
    before = graph.status.positions
    _, result = ask_by_action(graph, question='Left?', choices=['left', 'right'], remember=True)
    wrapped = graph.result_of(result, 'the result')
    assert wrapped.status == GoalStatus.STATUS_SUCCEEDED
    assert wrapped.result.answer.text in ('left', 'right')
    graph.spin_until(lambda: graph.status.positions > before, 'what is remembered')


def test_cancelling_early_twice_and_late_ends_each_goal_once(graph, llm):
    first, first_result = ask_by_action(graph, question='long')
    waiting, waiting_result = ask_by_action(graph, question='waits')
    cancels = [goal.cancel_goal_async() for goal in (waiting, waiting, first, first)]
    for future in cancels:
        graph.result_of(future, 'a cancellation')
    for result in (first_result, waiting_result):
        wrapped = graph.result_of(result, 'the end')
        assert wrapped.status == GoalStatus.STATUS_CANCELED
        assert wrapped.result.answer.finish == Answer.CANCELLED
    late = graph.result_of(first.cancel_goal_async(), 'a late cancellation')
    assert not late.goals_canceling


def test_a_storm_of_goals_ends_each_once(graph, llm):
    # The asker's own queues of replies are as short by default as the node's would be.
    client = ActionClient(
        graph, AskAction, 'llm/ask',
        goal_service_qos_profile=SERVICE_QOS, result_service_qos_profile=SERVICE_QOS,
    )  # fmt: skip
    graph.spin_until(client.server_is_ready, 'the action')
    sent = [
        client.send_goal_async(AskAction.Goal(question=f'{i}?', max_tokens=3)) for i in range(60)
    ]
    graph.spin_until(lambda: all(future.done() for future in sent), 'all goals to be taken')
    results = [future.result().get_result_async() for future in sent if future.result().accepted]
    assert len(results) == 60
    graph.spin_until(lambda: all(future.done() for future in results), 'all results')
    statuses = [future.result().status for future in results]
    assert set(statuses) <= {GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED}
    assert statuses.count(GoalStatus.STATUS_SUCCEEDED) >= 16
    assert all(f.result().result.reason for f in results if not f.result().result.success)
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
    for i, second in enumerate((-(2**63), -1, 2**31, 2**63 - 2, 2**63 - 1)):
        sound.second = second
        publisher.publish(sound)
        graph.spin_until(lambda i=i: graph.status.units_read == i + 1, f'second {second}')
    reply = graph.ask('?', max_tokens=2)
    assert reply.success and reply.answer.units > 0
    many = AudioEmbedding(model=graph.status.model, second=0, tokens=60_000, width=256)
    many.data.frombytes(bytes(2 * 60_000 * 256))
    publisher.publish(many)
    graph.spin_until(lambda: graph.status.refused == 1, 'the refusal of a second without end')
