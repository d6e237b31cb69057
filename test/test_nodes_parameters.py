# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Parameters: what is refused and why, what may change when, and that their page tells it."""

import resource
from pathlib import Path

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_graph import TIMEOUT_S

from minicpmo_ros.msg import Status
from minicpmo_ros.nodes.llm_options import lock_refusal
from minicpmo_ros.srv import Ask
from minicpmo_ros.tools import parameters

PAGE = Path(__file__).parents[1] / 'docs' / 'parameters.md'
NAN = float('nan')


@pytest.mark.skipif(not PAGE.exists(), reason='only in a checkout')
def test_the_page_of_parameters_is_what_the_code_declares():
    assert PAGE.read_text() == parameters.page(), (
        'run: minicpmo parameters > docs/parameters.md'
    )  # fmt: skip


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

    def ask():
        return graph.ask('?', temperature=-1.0).answer.text  # negative: as the node says

    greedy = {ask() for _ in range(2)}
    assert len(greedy) == 1
    for name, value in (('temperature', 5.0), ('top_p', 1.0), ('top_k', 0)):
        assert set_parameter(name, value) == ''
    diced = set()
    for seed in range(6):
        assert set_parameter('seed', seed) == ''
        diced.add(ask())
    assert len(diced) > 1
    assert set_parameter('temperature', 0.0) == ''
    assert ask() in greedy
    assert process.end() == 0
    assert 'Traceback' not in process.log


def test_a_change_while_it_answers_is_of_the_next_question(graph, tiny_model_dir, set_parameter):
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=400')
    graph.wait_ready()
    alone = graph.ask('?', temperature=-1.0).answer.text
    graph.spin_until(graph.ask_client.service_is_ready, 'the service')
    first = graph.ask_client.call_async(Ask.Request(question='?', temperature=-1.0))
    graph.spin_until(lambda: graph.status.answering or first.done(), 'an answer')
    assert set_parameter('temperature', 5.0) == ''
    assert graph.result_of(first, 'the answer').answer.text == alone


@pytest.mark.parametrize(
    'wrong, named',
    [
        (('n_ubatch:=1024', 'n_ctx:=512'), 'n_ubatch is 1024, more than n_ctx'),
        (('device:=cpu', 'gpu_layers:=5'), 'gpu_layers is 5'),
        (('max_tokens:=5000', 'n_ctx:=512'), '512'),
    ],
)
def test_parameters_that_contradict_each_other_are_told(graph, tiny_model_dir, wrong, named):
    arguments = [part for rule in wrong for part in ('-p', rule)]
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', *arguments)
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'a failure'
    )
    assert named in graph.status.reason
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
    assert process.popen.wait(TIMEOUT_S) == 1
    assert named in process.log and 'Traceback' not in process.log
