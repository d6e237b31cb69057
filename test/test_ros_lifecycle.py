# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Transitions in any order, also while a model loads or an answer is made; nothing is left."""

import random
import threading
import time

import pytest
from rclpy.parameter import Parameter
from ros_graph import LONG
from ros_source import FIRST, Source

from minicpmo_ros.live.session import Session
from minicpmo_ros.msg import Status
from minicpmo_ros.ros import llm_node as llm
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.llm_node import LlmNode
from minicpmo_ros.srv import Ask

SOON_S = 60.0  # on a machine as busy as a test's may be; the promise is 0.05


def memory_kib(process, what: str) -> int:
    """Give a row of the process's /proc status: VmRSS or Threads."""
    for line in open(f'/proc/{process.popen.pid}/status'):
        if line.startswith(what + ':'):
            return int(line.split()[1])
    raise AssertionError(what)


def test_twelve_rounds_leave_no_thread_and_no_memory(graph, tiny_model_dir):
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless,
        env={'MALLOC_ARENA_MAX': '1'},  # or it would show how many arenas threads have warmed
    )  # fmt: skip
    graph.wait_ready()
    source = Source(graph)

    def go_round(i):
        source.second(FIRST + 10 * i)  # heard or not: something is going on
        for node in ('streaming_encoder', 'vision_encoder', 'llm'):
            assert graph.change_state(node, 'deactivate')
            assert graph.change_state(node, 'cleanup')
            assert graph.change_state(node, 'configure')
            assert graph.change_state(node, 'activate')
        graph.spin_until(lambda: graph.ask('?', max_tokens=1).success, 'an answer')

    for i in range(5):
        go_round(i)
    threads, rss = memory_kib(process, 'Threads'), memory_kib(process, 'VmRSS')
    for i in range(5, 12):
        go_round(i)
    assert memory_kib(process, 'Threads') <= threads
    # A model left behind would be 7 times some 20 MiB; what is freed may lie in fragments.
    assert memory_kib(process, 'VmRSS') <= rss + 64 * 1024
    assert process.end() == 0
    assert 'Traceback' not in process.log


def test_cleanup_in_the_middle_of_an_answer_replies_to_all(graph, tiny_model_dir):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'max_tokens:=3000')
    graph.wait_ready()
    futures = [graph.ask_client.call_async(Ask.Request(question='?', **LONG)) for _ in range(3)]
    graph.spin_until(lambda: graph.status.answering, 'the first question')
    assert graph.change_state('llm', 'deactivate') and graph.change_state('llm', 'cleanup')
    graph.spin_until(lambda: all(future.done() for future in futures), 'three replies')
    assert all(not future.result().success and future.result().reason for future in futures)
    graph.spin_until(lambda: graph.status.state == Status.UNLOADED, 'no model')
    assert graph.status.model == ''
    assert process.end() == 0


@pytest.fixture
def node(graph, tiny_model_dir):
    """Give a LlmNode that spins with the graph, in this process."""
    node = LlmNode()
    node.set_parameters([Parameter('model_dir', value=str(tiny_model_dir))])
    graph.own_executor.add_node(node)
    yield node
    graph.own_executor.remove_node(node)
    node.destroy_node()


@pytest.fixture
def stuck(monkeypatch):
    """Let loading wait for an event that no abort reaches; give (events, calls)."""
    release, calls = threading.Event(), []
    real = Session.load

    def load(*arguments, **named):
        calls.append('begin')
        release.wait(120)
        calls.append('end')
        return real(*arguments, **named)

    monkeypatch.setattr(Session, 'load', load)
    yield release, calls
    release.set()


def test_cleanup_does_not_wait_for_a_load_but_the_next_load_does(graph, stuck, node):
    release, calls = stuck
    graph.spin_until(lambda: calls, 'the load')  # by autostart
    started_s = time.monotonic()
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.trigger_configure()
    assert time.monotonic() - started_s < SOON_S
    assert node.engine.status().state == 'loading'
    assert calls == ['begin']
    release.set()
    graph.spin_until(lambda: node.engine.status().state == 'ready', 'the second model')
    assert calls == ['begin', 'end', 'begin', 'end']


def test_what_is_loaded_for_a_configuration_that_is_gone_makes_no_encoder_ready(
    graph, spun, monkeypatch
):
    gates, calls, real = (threading.Event(), threading.Event()), [], StreamingEncoder.load

    def load(*arguments):
        calls.append(arguments)
        gates[len(calls) - 1].wait(120)
        return real(*arguments)

    monkeypatch.setattr(StreamingEncoder, 'load', load)
    node = spun(StreamingEncoder())
    graph.spin_until(lambda: calls, 'the load')  # by autostart
    for change in ('deactivate', 'cleanup', 'configure', 'activate'):
        getattr(node, f'trigger_{change}')()
    gates[0].set()
    graph.spin_until(lambda: len(calls) == 2, 'the second load')
    assert node.state == 'active' and not node.is_ready()
    gates[1].set()
    graph.spin_until(node.is_ready, 'what it loads')


def test_who_is_ready_names_the_model(graph, node):
    graph.own_executor.remove_node(node)  # it does not spin: what the engine says is not read
    node.trigger_configure()
    graph.spin_until(lambda: node.engine.status().state == 'ready', 'the model')
    messages = []
    graph.create_subscription(Status, '/llm/status', messages.append, llm.LATCHED)
    node.on_refused()  # publishes the status
    graph.spin_until(lambda: any(m.state == Status.READY for m in messages), 'the status')
    assert all(message.model for message in messages if message.state == Status.READY)


def test_what_an_engine_of_before_says_is_not_about_the_one_of_now(graph, node):
    graph.spin_until(lambda: node.engine and node.engine.status().state == 'ready', 'the model')
    before = node.engine
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.trigger_configure()
    before.update_status(state='failed', reason='of before')
    graph.spin_until(lambda: node.engine.status().state == 'ready', 'the second model')
    for _ in range(2):  # round trips, by the end of which what was posted has been read
        assert graph.lifecycle_state('/llm') == 'inactive'


def test_a_failure_that_comes_late_has_its_remedy_in_the_status(
    graph, tiny_model_dir, tmp_path, monkeypatch
):
    check = llm.open_model
    monkeypatch.setattr(llm, 'open_model', lambda *given: check(*given, timeout_s=0.0))
    (tmp_path / 'manifest.yaml').write_text('family: none')
    node = LlmNode()
    node.set_parameters([Parameter('model_dir', value=str(tmp_path))])
    messages = []
    graph.create_subscription(Status, '/llm/status', messages.append, llm.LATCHED)
    graph.own_executor.add_node(node)
    try:
        graph.spin_until(lambda: messages and messages[-1].state == Status.FAILED, 'a failure')
        assert 'manifest.yaml' in messages[-1].reason and messages[-1].remedy
        assert graph.lifecycle_state('/llm') == 'unconfigured'
    finally:
        graph.own_executor.remove_node(node)
        node.destroy_node()


def test_time_that_stands_still_does_not_stop_the_nodes(graph, tiny_model_dir):
    graph.start('live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'use_sim_time:=true')
    graph.wait_ready()  # autostart
    source = Source(graph)
    source.wait_heard()  # the look at the graph
    count = len(graph.statuses)
    graph.spin_until(lambda: len(graph.statuses) >= count + 2, 'the status of each second')


CHANGES = {  # (state, transition): state after it
    ('unconfigured', 'configure'): 'inactive',
    ('inactive', 'activate'): 'active',
    ('active', 'deactivate'): 'inactive',
    ('inactive', 'cleanup'): 'unconfigured',
}


def test_a_random_walk_through_the_lifecycle_is_as_it_is_drawn(graph, tiny_model_dir):
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'autostart:=false',
        '-p', 'max_tokens:=300',
    )  # fmt: skip
    rng = random.Random(4)
    source, futures = Source(graph), []
    states = dict.fromkeys(('streaming_encoder', 'vision_encoder', 'llm'), 'unconfigured')
    transitions = ('configure', 'activate', 'deactivate', 'cleanup')
    for step in range(40):
        # In the middle of whatever goes on: a load, a second, an answer.
        node = rng.choice(tuple(states))
        allowed = [name for state, name in CHANGES if state == states[node]]
        name = rng.choice(allowed if rng.random() < 0.7 else transitions)
        after = CHANGES.get((states[node], name))
        assert graph.change_state(node, name) == (after is not None), (step, node, name, states)
        states[node] = after or states[node]
        assert graph.lifecycle_state(node) == states[node], (step, node, name)
        source.second(FIRST + step)
        futures.append(graph.ask_client.call_async(Ask.Request(question='?')))
    graph.spin_until(lambda: all(future.done() for future in futures), 'every reply')
    replies = [future.result() for future in futures]
    assert all(reply.success or reply.reason for reply in replies)
    # Out of it, all three go to work again.
    for node, state in states.items():
        if state == 'unconfigured':
            assert graph.change_state(node, 'configure')
        if state != 'active':
            assert graph.change_state(node, 'activate')
    graph.spin_until(lambda: graph.ask('?', max_tokens=1).success, 'an answer')
    for node in states:
        assert graph.change_state(node, 'shutdown')
        assert graph.lifecycle_state(node) == 'finalized'
    assert process.end() == 0
    assert 'Traceback' not in process.log
