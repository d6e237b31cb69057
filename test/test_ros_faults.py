# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What nobody foresaw ends neither a node nor a sense: told, counted, and begun anew."""

import errno
import itertools
import subprocess
import sys
import threading

import pytest
from rclpy.parameter import Parameter
from ros_graph import TIMEOUT_S, Graph
from ros_source import FIRST, Source

from minicpmo_ros.errors import InputError
from minicpmo_ros.memory import proc as memory
from minicpmo_ros.memory.proc import MemoryWatch
from minicpmo_ros.msg import AudioEmbedding
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.framework import faults
from minicpmo_ros.ros.framework.diagnostics import RecentIncrease, Report
from minicpmo_ros.ros.framework.faults import IN_A_ROW, QUIET_S, WAITS_S, Faults, Waits, shortage
from minicpmo_ros.ros.framework.lifecycle import ManagedNode

SOON_S = (0.01, 0.01)


class Worker(ManagedNode):
    """Keeps a list of the hooks that were called."""

    def __init__(self, **faulty):
        self.called, self.faulty = [], faulty  # hook: how often it fails
        super().__init__('worker')

    def _note(self, hook):
        self.called.append(hook)
        if self.faulty.get(hook, 0):
            self.faulty[hook] -= 1
            raise KeyError(hook)

    def on_setup(self, options):
        self._note('setup')

    def on_start(self):
        self._note('start')

    def on_stop(self):
        self._note('stop')

    def on_release(self):
        self._note('release')


@pytest.fixture
def quick(monkeypatch):
    """Let a node start itself anew without the waits of a real one."""
    monkeypatch.setattr(faults, 'WAITS_S', SOON_S)


def entry(node):
    """Give (message, values) that the node would publish on /diagnostics now."""
    from minicpmo_ros.ros.framework.diagnostics import Diagnostics

    status = Diagnostics(node, 'test').entry()
    return status.message, {pair.key: pair.value for pair in status.values}


def test_waits_grow_and_begin_anew_after_a_quiet_time():
    now_s = [0.0]
    waits = Waits(lambda: now_s[0])
    given = []
    for _ in range(len(WAITS_S) + 2):
        given.append(waits.next_s())
        now_s[0] += 10.0
    assert given == [*WAITS_S, WAITS_S[-1], WAITS_S[-1]]
    now_s[0] += QUIET_S + WAITS_S[-1]
    assert waits.next_s() == WAITS_S[0] and waits.count == len(given) + 1


@pytest.mark.parametrize(
    'error, words',
    [
        (OSError(errno.EMFILE, 'Too many open files'), 'no file descriptor left'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'the disk is full'),
        (RuntimeError("can't start new thread"), 'no further thread'),
        (MemoryError(), 'no memory left'),
    ],
)
def test_a_shortage_is_a_sentence_and_makes_no_row(graph, error, words):
    rows = []
    told = Faults(graph, rows.append)
    assert words in shortage(error)
    for _ in range(2 * IN_A_ROW):
        told.tell('here', error)
    assert not rows and told.count == 2 * IN_A_ROW and words in told.newest
    assert not shortage(ValueError('of another kind')) and not shortage(OSError(errno.EIO, 'io'))


def test_a_row_is_one_place_that_does_not_succeed_between(graph):
    rows = []
    told = Faults(graph, rows.append)

    def fail():
        raise KeyError('where')

    for _ in range(IN_A_ROW - 1):
        told.guarded('a', fail)()
    told.guarded('a', lambda: None)()
    for _ in range(IN_A_ROW):
        assert not rows
        told.guarded('a', fail)()
        told.guarded('b', lambda: None)()
    assert rows == ['a'] and told.is_failing('a')
    assert told.count == 2 * IN_A_ROW - 1 and 'test_ros_faults.py' in told.newest
    report = Report(RecentIncrease())
    told.diagnose(report)
    assert report.values['unforeseen errors'] == str(told.count)


@pytest.mark.parametrize('by', ['timer', 'posted', 'worker'])
def test_what_fails_goes_on_and_after_a_row_the_node_starts_anew(graph, spun, quick, by, capfd):
    node = spun(Worker())
    graph.spin_until(lambda: node.state == 'active', 'its start')
    calls = []

    def work():
        if node.called.count('setup') == 1:
            raise ZeroDivisionError('nobody foresaw it')
        calls.append(node.state)

    if by == 'timer':
        node.steady_timer(0.001, work)
    elif by == 'posted':
        node.steady_timer(0.001, lambda: node.post(work))
    else:

        def run():
            for _ in range(IN_A_ROW):
                with node.faults.guard('the work'):
                    work()

        threading.Thread(target=run).start()
    graph.spin_until(lambda: len(node.called) >= 6, 'its second start')
    assert node.called == ['setup', 'start', 'stop', 'release', 'setup', 'start']
    assert node.state == 'active' and node.restarts.count == 1
    graph.spin_until(lambda: by == 'worker' or calls, 'that it goes on')
    message, values = entry(node)
    assert int(values['unforeseen errors']) >= IN_A_ROW and values['starts by itself'] == '1'
    log = capfd.readouterr().err
    assert 'nobody foresaw it' in log and 'test_ros_faults.py' in log
    assert f'has failed {IN_A_ROW} times in a row' in log and 'starts itself anew' in log


def test_what_works_again_meanwhile_is_left_alone(graph, spun, monkeypatch):
    monkeypatch.setattr(faults, 'WAITS_S', (0.2,))
    node = spun(Worker())
    graph.spin_until(lambda: node.state == 'active', 'its start')
    for _ in range(IN_A_ROW):
        node.faults.tell('a place', KeyError('x'))
    graph.spin_until(lambda: node.restart_due_s is not None, 'the plan')
    assert 'starts itself anew in' in entry(node)[0]
    with node.faults.guard('a place'):
        pass
    graph.spin_until(lambda: node.restart_due_s is None, 'the moment')
    assert node.called == ['setup', 'start']


@pytest.mark.parametrize('hook', ['setup', 'start', 'stop', 'release'])
def test_a_hook_that_fails_leaves_no_node_for_good(graph, spun, quick, hook):
    node = spun(Worker(**{hook: 3}))
    if hook in ('stop', 'release'):
        graph.spin_until(lambda: node.state == 'active', 'its start')
        for _ in range(IN_A_ROW):
            node.faults.tell('a place', KeyError('x'))
    graph.spin_until(
        lambda: node.state == 'active' and node.called.count('setup') > 1, 'a node that works'
    )
    assert node.failure is None


def test_who_changes_the_state_meanwhile_keeps_it(graph, spun, monkeypatch):
    monkeypatch.setattr(faults, 'WAITS_S', (0.05,))
    node = spun(Worker())
    graph.spin_until(lambda: node.state == 'active', 'its start')
    for _ in range(IN_A_ROW):
        node.faults.tell('a place', KeyError('x'))
    graph.spin_until(lambda: node.restart_due_s is not None, 'the plan')
    node.trigger_deactivate()
    graph.spin_until(lambda: node.restart_due_s is None, 'the start')
    assert node.state == 'inactive' and node.called.count('setup') == 2
    node.trigger_cleanup()
    node.start_anew(InputError('a worker of before'))
    assert node.restart_due_s is None and node.state == 'unconfigured'


def encoder(tiny_model_dir):
    node = StreamingEncoder()
    node.set_parameters([Parameter('model_dir', value=str(tiny_model_dir))])
    return node


def spin_and_publish(graph, source, condition, what):
    """Publish second after second until something holds."""
    seconds = itertools.count(FIRST)

    def look():
        source.second(next(seconds))
        return condition()

    graph.spin_until(look, what)


@pytest.mark.parametrize('piece', ['encode', 'tick', 'load'])
def test_an_encoder_whose_worker_fails_hears_again(
    graph, spun, quick, tiny_model_dir, monkeypatch, tmp_path, piece
):
    real, workers, heard = getattr(StreamingEncoder, piece), [], []

    def faulty(self, *arguments):
        workers.append(threading.current_thread())
        if workers[-1] is workers[0]:  # until the node has started another one
            raise TypeError('nobody foresaw it')
        return real(self, *arguments)

    monkeypatch.setattr(StreamingEncoder, piece, faulty)
    graph.create_subscription(AudioEmbedding, '/streaming_encoder/embedding', heard.append, 50)
    node = encoder(tiny_model_dir)
    outside = Graph(tmp_path, '/')  # this node is in no namespace
    spun(node)
    source = Source(outside)
    is_new = lambda: node.restarts.count and node.restart_due_s is None  # noqa: E731
    spin_and_publish(graph, source, is_new, 'its second start')
    heard.clear()
    is_heard = lambda: any(message.status == AudioEmbedding.OK for message in heard)  # noqa: E731
    spin_and_publish(graph, source, is_heard, 'a second that was heard')
    outside.close()
    assert node.state == 'active' and node.restarts.count == 1
    assert node.faults.count >= (1 if piece == 'load' else IN_A_ROW)


def test_no_thread_to_be_had_is_a_sentence_and_tried_again(
    graph, spun, quick, tiny_model_dir, monkeypatch, capfd
):
    node = encoder(tiny_model_dir)
    real, refused = threading.Thread.start, []

    def start(thread):
        if len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, 'start', start)
    spun(node)
    graph.spin_until(lambda: node.state == 'active', 'a node that works')
    assert len(refused) == 3
    log = capfd.readouterr().err
    assert 'no further thread' in log and 'Traceback' not in log


def test_one_failed_look_does_not_end_the_watch(monkeypatch):
    looks, errors = [], []
    real = memory.pss_mib

    def look():
        if len(looks) == 1 and len(errors) < 2:
            raise OSError(errno.EMFILE, 'Too many open files')
        return real()

    monkeypatch.setattr(memory, 'pss_mib', look)
    monkeypatch.setattr(memory, 'PERIOD_S', 0.01)
    is_over = threading.Event()

    def on_look(*figures):
        looks.append(figures)
        if len(looks) == 2:
            is_over.set()

    watch = MemoryWatch(on_look, errors.append)
    assert is_over.wait(TIMEOUT_S)
    watch.close()
    assert len(errors) == 2


SHORT_OF_DESCRIPTORS = """
import os, resource, threading, rclpy
from minicpmo_ros.memory import proc as memory
from minicpmo_ros.ros.framework.main import run
from minicpmo_ros.ros.live import make_nodes
memory.PERIOD_S = 0.05
nodes, tick = [], threading.Event()
def until(condition):
    while not condition():
        tick.wait(0.01)
def make():
    for node in make_nodes():
        nodes.append(node)
        yield node
def shortage():
    until(lambda: len(nodes) == 3 and nodes[-1].engine and nodes[-1]._memory.used_mib)
    until(lambda: nodes[-1].engine.status().state == 'ready')
    llm = nodes[-1]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 2, hard))
    held = []
    def hold_all():  # again and again: others close files that they had open
        try:
            while True:
                held.append(os.open('/dev/null', os.O_RDONLY))
        except OSError:
            return False
    until(lambda: hold_all() or llm.faults.count)
    for file in held:
        os.close(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    llm._memory._watch.mib = 0.0
    until(lambda: llm._memory.used_mib)
    print('it looks again', [node.state for node in nodes], flush=True)
    rclpy.shutdown()
threading.Thread(target=shortage, daemon=True).start()
raise SystemExit(run(make))
"""


def test_a_shortage_of_descriptors_is_told_and_a_shutdown_from_code_ends_with_0(ros_domain):
    done = subprocess.run(
        [sys.executable, '-c', SHORT_OF_DESCRIPTORS], timeout=TIMEOUT_S, capture_output=True,
        text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "it looks again ['active', 'active', 'active']" in said
    assert 'no file descriptor left' in said and 'Traceback' not in said


SERVICE_THAT_FAILS = """
import rclpy
from minicpmo_ros.ros.framework.lifecycle import ManagedNode
from minicpmo_ros.ros.framework.main import run
from std_srvs.srv import Trigger
class Node(ManagedNode):
    def __init__(self):
        super().__init__('faulty')
        self.create_service(Trigger, '~/fail', self.answer)
    def answer(self, request, response):
        raise ArithmeticError('nobody foresaw it')
raise SystemExit(run(lambda: [Node()]))
"""


def test_a_service_that_fails_ends_no_process(graph, tmp_path):
    from std_srvs.srv import Trigger

    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-c', SERVICE_THAT_FAILS], stderr=log)
    try:
        client = graph.create_client(Trigger, '/faulty/fail')
        graph.spin_until(client.service_is_ready, 'the service')
        for _ in range(2 * IN_A_ROW):
            client.call_async(Trigger.Request())
        graph.spin_until(
            lambda: 'nobody foresaw it' in (tmp_path / 'log').read_text(), 'the words'
        )
        assert graph.lifecycle_state('/faulty') == 'active'
    finally:
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    assert 'in answer' in (tmp_path / 'log').read_text()
