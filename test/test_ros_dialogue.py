# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Grammars, follow-ups and MiniCPM-o 4.5 through the live graph, by service and action."""

import re

import pytest
from action_msgs.msg import GoalStatus
from ros_source import FIRST, Source
from test_ros_live import ask_by_action, play, start_live

from minicpmo_ros.msg import SpeakerState
from minicpmo_ros.ros.voice.self_speech import STATE_QOS
from minicpmo_ros.synthetic.model import write_model

UNITS = {78, 66, 12}  # positions of picture and sound in 4.5, or of one of them alone
NUMBERS = 'root ::= "[" number ("," number){1,2} "]"\nnumber ::= [0-9]{1,2}'
INVALID = {
    'root ::= (': 'line 1',
    'root ::= "a"{3,1}': 'm at most n',
    'root ::= missing': 'not defined',
    'root ::= "a\x00"': 'The grammar',
    '(' * 10_000: 'the name of a rule',
    'root ::= "a"\n' * 10_000: 'defined twice',
    'root ::= "' + 'a' * 200_000 + '"': 'bytes',
}
# Every letter can be read in two ways, so that their number doubles with each.
PATHOLOGICAL = 'root ::= s\ns ::= "a" s "b" | "a" s "c" | ("a"?)* "."'


def ask(graph, way, question, **fields):
    """Ask by service or action; give the reply or result."""
    if way == 'service':
        return graph.ask(question, **fields)
    _, result = ask_by_action(graph, question=question, **fields)
    wrapped = graph.result_of(result, 'the result')
    assert (wrapped.status == GoalStatus.STATUS_SUCCEEDED) == wrapped.result.success
    return wrapped.result


@pytest.fixture
def live_4_5(graph, tmp_path):
    """Start `live` with a tiny MiniCPM-o 4.5, which must outlive the test."""
    directory = write_model(tmp_path / 'tiny-4.5', 'tiny-4.5')
    process = start_live(
        graph, directory, '-p', 'max_tokens:=40', '-p', 'n_ctx:=1024', '-p', 'unit_deadline:=60.0'
    )
    yield process
    assert process.is_running and 'Traceback' not in process.log
    assert 'parse: error' not in process.log  # llama.cpp's own words about a grammar


def test_4_5_watches_listens_and_holds_its_answers_to_grammars(graph, live_4_5):
    assert graph.status.model == 'minicpm-o-4.5/256/random-tiny-4.5-1'
    positions = {0: graph.status.positions}
    source = Source(graph)
    source.wait_heard()
    play(graph, source, 4)
    positions.update((status.units, status.positions) for status in graph.statuses)
    grown = {positions[n + 1] - positions[n] for n in positions if n + 1 in positions}
    # On a busy machine a second can be over before its picture has come.
    assert grown and grown <= UNITS and graph.status.refused == 0
    assert FIRST <= graph.status.window_start.sec

    for way in ('service', 'action'):
        reply = ask(graph, way, 'Which numbers?', grammar=NUMBERS)
        assert reply.success, reply.reason
        assert re.fullmatch(r'\[\d{1,2}(,\d{1,2}){1,2}\]', reply.answer.text)
        reply = ask(graph, way, 'And so on?', grammar=PATHOLOGICAL)
        assert reply.success and re.fullmatch(r'a*(\.[bc]*)?', reply.answer.text)
        for grammar, told in INVALID.items():
            reply = ask(graph, way, 'What?', grammar=grammar)
            assert not reply.success and told in reply.reason, (grammar[:40], reply.reason)
            assert not reply.answer.text and not reply.answer.answer_tokens
        reply = ask(graph, way, 'What?', grammar=NUMBERS, choices=['a'])
        assert not reply.success and 'Choose one' in reply.reason
        assert ask(graph, way, 'Say <think>.', max_tokens=4).success


def test_a_follow_up_knows_the_turn_before_it(graph, live_4_5):
    def follow_up():
        return ask(graph, 'service', 'And before that?', grammar='root ::= [a-z ]{24}').answer

    answers, positions = [follow_up()], [graph.status.positions]
    for way in ('action', 'service'):
        assert ask(graph, way, 'What is it?', choices=['blue', 'red'], remember=True).success
        graph.spin_until(lambda: graph.status.positions > positions[-1], 'the turn')
        positions.append(graph.status.positions)
        answers.append(follow_up())
    turns = [after - before for before, after in zip(positions, positions[1:])]
    grown = [b.prompt_tokens - a.prompt_tokens for a, b in zip(answers, answers[1:])]
    assert turns == grown
    assert answers[0].text != answers[1].text


def test_of_what_the_robot_could_not_finish_saying_only_that_is_remembered(graph, live_4_5):
    def n_read():
        return ask(graph, 'service', 'And?', choices=['yes']).answer.prompt_tokens

    states = graph.create_publisher(SpeakerState, 'speaker/state', STATE_QOS)
    graph.spin_until(lambda: states.get_subscription_count() >= 2, 'llm and encoder')
    empty = n_read()
    reply = ask(graph, 'action', 'What is it?', choices=['blue and red'], remember=True)
    whole = n_read()
    assert reply.answer.remembered and whole > empty
    states.publish(SpeakerState(id=reply.answer.id, spoken='blue', speaking=True))
    states.publish(SpeakerState(id=reply.answer.id, spoken='blue', speaking=False))
    graph.spin_until(lambda: empty < n_read() < whole, 'a shorter turn')
    states.publish(SpeakerState(id=reply.answer.id, spoken='', speaking=False))
    graph.spin_until(lambda: n_read() == empty, 'no turn')


def test_4_5_refuses_to_prepare_each_second_by_itself(graph, tmp_path):
    """Its own front end does not; 2.6's does."""
    for shape, refused in (('tiny-4.5', True), ('tiny', False)):
        directory = write_model(tmp_path / shape, shape)
        arguments = ('-p', f'model_dir:={directory}', '-p', 'isolated:=true')
        process = graph.start('streaming_encoder', *arguments)
        told = 'isolated is true, but only' if refused else 'ready'
        graph.spin_until(lambda p=process, told=told: told in p.log, told)
        assert process.is_running and (told in process.log) and 'Traceback' not in process.log
        assert process.end() == 0
