# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Parameters: what is refused and why, what may change when, and that their page tells it."""

import resource
from pathlib import Path

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_graph import TIMEOUT_S

from minicpmo_ros.cli import parameters
from minicpmo_ros.msg import Status
from minicpmo_ros.ros.llm_options import lock_refusal
from minicpmo_ros.ros.playback import player, recorder
from minicpmo_ros.ros.replay import graph as graph_replay
from minicpmo_ros.srv import Ask

PAGE = Path(__file__).parents[1] / 'docs' / 'parameters.md'
NAN = float('nan')


@pytest.mark.skipif(not PAGE.exists(), reason='only in a checkout')
def test_the_page_of_parameters_is_what_the_code_declares():
    assert PAGE.read_text() == parameters.page(), (
        'run: minicpmo parameters > docs/parameters.md'
    )  # fmt: skip


@pytest.mark.parametrize('rows', (player.PARAMETERS, recorder.PARAMETERS, graph_replay.PARAMETERS))
def test_files_may_be_named_from_the_home_of_the_user(rows, monkeypatch):
    monkeypatch.setenv('HOME', '/home/robot')
    files = {'file', 'bag', 'questions', 'out'} & {row.name for row in rows}
    assert files
    for row in rows:
        is_file = row.name in files
        assert row.value_of('~/a') == ('/home/robot/a' if is_file else '~/a')
        assert row.value_of('a~/b') == 'a~/b'


def test_a_limit_that_keeps_weights_from_being_locked_is_told(monkeypatch):
    for allowed, told in ((resource.RLIM_INFINITY, ''), (8 << 20, ''), (64 << 10, '0.1 MiB')):
        monkeypatch.setattr(resource, 'getrlimit', lambda _, allowed=allowed: (allowed, allowed))
        refusal = lock_refusal(8 << 20)
        assert bool(refusal) == bool(told) and told in refusal


@pytest.fixture
def set_parameter(graph):
    """Give a function that sets one of the llm's parameters; it gives the reason of a refusal."""
    client = graph.create_client(SetParameters, 'llm/set_parameters')

    def set_one(name, value) -> str:
        graph.spin_until(client.service_is_ready, 'set_parameters')
        message = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[message])
        result = graph.result_of(client.call_async(request), name).results[0]
        assert result.successful == (not result.reason)
        return result.reason

    return set_one


def test_a_change_is_taken_or_refused_with_the_reason(graph, tiny_model_dir, set_parameter):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=8')
    graph.wait_ready()
    for name, value, reason in (
        ('temperature', NAN, 'nan'),
        ('temperature', 11.0, '10'),
        ('temperature', 1, 'type'),
        ('temperature', 'hot', 'type'),
        ('temperature', [0.5], 'type'),
        ('seed', -1, '0'),
        ('seed', 2**40, '2147483647'),
        ('watchdog', float('inf'), '86400'),
        ('n_ctx', 8192, 'laid out by it'),
        ('model_dir', '/tmp', 'clean up the node first'),
        ('autostart', False, 'once, at the start'),
        ('n_context', 1, ''),
    ):
        told = set_parameter(name, value)
        assert told and reason in told, (name, value, told)
    for name, value in (('model_dir', str(tiny_model_dir)), ('autostart', True), ('threads', 0)):
        assert set_parameter(name, value) == ''  # as it is: a file of all loads

    def ask():
        return graph.ask('?').answer.text

    greedy = {ask() for _ in range(2)}
    assert len(greedy) == 1
    for name, value in (('temperature', 5.0), ('top_p', 1.0), ('top_k', 0)):
        assert set_parameter(name, value) == ''
    assert len({ask() for _ in range(6)}) > 1  # each question draws anew
    assert set_parameter('seed', 7) == ''
    assert ask() == ask()
    assert graph.ask('?', temperature=-1.0).answer.text in greedy
    assert set_parameter('temperature', 0.0) == ''
    assert ask() in greedy
    assert process.end() == 0
    assert 'Traceback' not in process.log


def test_how_an_answer_opens_is_a_parameter_that_takes_a_bool_too(
    graph, tiny_model_dir, set_parameter
):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=8')
    graph.wait_ready()
    read = {'auto': graph.ask('?').answer.prompt_tokens}
    told = set_parameter('speech', 'false')
    assert 'clean up the node first' in told
    for value in (False, 'true', 'false', True):
        for transition in ('deactivate', 'cleanup'):
            assert graph.change_state('llm', transition)
        for wrong in (1, 'yes', 0.5, [True]):
            assert "allowed are 'auto', 'true', 'false'" in set_parameter('speech', wrong)
        assert set_parameter('speech', value) == ''
        graph.forget_statuses()
        for transition in ('configure', 'activate'):
            assert graph.change_state('llm', transition)
        graph.wait_ready()
        read[str(value)] = graph.ask('?').answer.prompt_tokens
    spoken, plain = read['auto'], read['auto'] - 4  # spk_bos, spk, spk_eos, tts_bos
    assert read == {
        'auto': spoken, 'False': plain, 'true': spoken, 'false': plain, 'True': spoken
    }  # fmt: skip
    assert process.end() == 0


@pytest.mark.parametrize('given', ['true', '"true"'])
def test_a_file_may_say_how_answers_open_as_bool_or_text(graph, tiny_model_dir, tmp_path, given):
    path = tmp_path / 'given.yaml'
    path.write_text(
        f'/**/llm:\n  ros__parameters:\n    model_dir: {tiny_model_dir}\n    speech: {given}\n'
    )
    process = graph.start('llm', '--params-file', str(path))
    graph.wait_ready()
    assert process.end() == 0


def test_a_change_while_it_answers_is_of_the_next_question(graph, tiny_model_dir, set_parameter):
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=400')
    graph.wait_ready()
    alone = graph.ask('?').answer.text
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    first = graph.ask_client.call_async(Ask.Request(question='?'))
    graph.spin_until(lambda: graph.status.answering or first.done(), 'an answer')
    assert set_parameter('temperature', 5.0) == ''
    assert graph.result_of(first, 'the answer').answer.text == alone


def test_parameters_that_contradict_each_other_are_told(graph, tiny_model_dir, set_parameter):
    process = graph.start(
        'llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'device:=cpu', '-p', 'autostart:=false'
    )
    for wrong, named in (
        ({'n_ubatch': 1024, 'n_ctx': 512}, 'n_ubatch is 1024, more than n_ctx'),
        ({'n_ubatch': 256, 'max_tokens': 5000}, '512'),
        ({'max_tokens': 8, 'gpu_layers': 5}, 'gpu_layers is 5'),
    ):
        for name, value in wrong.items():
            assert set_parameter(name, value) == ''
        graph.change_state('llm', 'configure')  # it may look later than it replies
        graph.spin_until(
            lambda named=named: (
                graph.status
                and graph.status.state == Status.FAILED
                and named in graph.status.reason
            ),
            f'a failure that names {named}',
        )
        graph.spin_until(lambda: graph.lifecycle_state('llm') == 'unconfigured', 'its end')
        reply = graph.ask('?')
        assert not reply.success and named in reply.reason
    assert process.is_running


@pytest.mark.parametrize(
    'section, named',
    [
        ('n_ctx: [4096, 512]', 'n_ctx'),
        ('temperature: .nan', 'temperature'),
        ('use_mmap: "yes"', 'use_mmap'),
    ],
)
def test_a_wrong_value_in_a_file_ends_the_start_with_a_sentence(graph, tmp_path, section, named):
    path = tmp_path / 'wrong.yaml'
    path.write_text(f'/**/llm:\n  ros__parameters:\n    {section}\n')
    process = graph.start('llm', '--params-file', str(path))
    assert process.wait(TIMEOUT_S) == 1
    assert named in process.log and 'Traceback' not in process.log
