# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The window outlives kill -9, and goes from one node to another through a file."""

import shutil
import signal

from ros_source import FIRST, Source, time_of

from minicpmo_ros.srv import Forget, LoadSession, SaveSession

QUESTIONS = ('what shape is shown now?', 'what color is the shape now?', 'what do you hear now?')


def start(graph, path, *more, seconds=60):
    """Start a node with a black box, and wait until it is ready."""
    graph.forget_statuses()
    node = graph.start(
        'live', '-p', 'model_dir:=nano', '-p', f'memory.black_box_s:={seconds}', '-p',
        f'memory.black_box_path:={path}', *more, *graph.lossless,
    )  # fmt: skip
    graph.wait_ready()
    return node


def show(source, first, n):
    """Show at least n seconds, each when the one before is read; return the next one."""
    for _ in range(n):
        first = source.until_read(first)
    return first


def answers(graph):
    return [graph.ask(question, choices=[], temperature=0.0).answer.text for question in QUESTIONS]


def test_after_kill_9_the_window_is_back_and_no_live_second_is_lost(graph, tmp_path):
    path = tmp_path / 'box.session'
    live, source = start(graph, path), Source(graph)
    source.wait_heard()
    last = show(source, FIRST, 7)
    before = list(graph.status.seconds)
    assert graph.status.restored == 0 and not graph.status.restoring
    live.end(signal.SIGKILL)

    # However slow this machine is: test_live_restoring has what happens where the queue is full.
    live = start(graph, path, '-p', 'max_backlog:=100')
    graph.spin_until(lambda: 'wait for the first live' in graph.status.restoring, 'the offer')
    assert graph.status.units == 0
    source = Source(graph)
    source.wait_heard()
    source.until_read(last + 5)
    graph.spin_until(lambda: graph.status.restored, 'the window')
    now = list(graph.status.seconds)
    assert now == sorted(now) and set(before) - set(now) <= {before[-1]}
    assert graph.status.restored >= len(before) - 1 and now[-1] >= last + 5
    assert 'were read again' in graph.status.restoring

    other = graph.start(
        'llm', '-r', '__node:=other', '-p', 'model_dir:=nano', '-p', 'memory.black_box_s:=60',
        '-p', f'memory.black_box_path:={path}',
    )  # fmt: skip
    graph.spin_until(lambda: 'another node' in other.log, 'the second node to be told')
    live.end(signal.SIGKILL)
    start(graph, path)
    graph.spin_until(lambda: 'wait for the first live' in graph.status.restoring, 'the offer')


def test_a_reset_and_what_is_forgotten_stay_forgotten(graph, tmp_path):
    path = tmp_path / 'box.session'
    live, source = start(graph, path), Source(graph)
    source.wait_heard()
    show(source, FIRST, 5)
    last = graph.status.seconds[-1] + 1
    reply = graph.call(Forget, 'llm/forget', begin=time_of(0), end=time_of((last - 2) * 10**9))
    assert reply.success, reply.reason
    saved = graph.call(SaveSession, 'llm/save', path=str(tmp_path / 'few.session'))
    assert saved.success and saved.units == 1 and 'not in the black box' in saved.reason
    assert graph.reset().success
    # From the reply on nothing of it is read again; its bytes are overwritten a moment later.
    graph.spin_until(lambda: not path.read_bytes()[8192:].strip(b'\0'), 'the bytes to go')
    live.end(signal.SIGKILL)
    start(graph, path)
    assert not graph.status.restoring


def test_a_saved_session_is_read_by_another_node_and_refused_by_reason(graph, tmp_path):
    path, saved = tmp_path / 'box.session', tmp_path / 'saved.session'
    live, source = start(graph, path), Source(graph)
    source.wait_heard()
    show(source, FIRST, 6)
    reply = graph.call(SaveSession, 'llm/save', path=str(saved))
    before, told = list(graph.status.seconds), answers(graph)
    assert reply.success and reply.units == len(before), reply.reason
    assert saved.stat().st_mode & 0o777 == 0o600
    assert live.end() == 0

    start(graph, tmp_path / 'other.session', seconds=0)
    for wrong, reason in (('relative', 'absolute'), (str(tmp_path / 'no'), 'No such file'),
                          (str(tmp_path), 'is no file'),
                          (str(tmp_path / ('n' * 300)), 'too long')):  # fmt: skip
        reply = graph.call(LoadSession, 'llm/load', path=wrong)
        assert not reply.success and reason in reply.reason and 'Errno' not in reply.reason
    reply = graph.call(LoadSession, 'llm/load', path=str(saved))
    assert reply.success and reply.units == len(before) and not reply.reason
    graph.spin_until(lambda: list(graph.status.seconds) == before, 'the window')
    assert graph.status.restored == len(before) and answers(graph) == told
    assert not graph.call(SaveSession, 'llm/save', path=str(saved)).success
    cut = tmp_path / 'cut.session'
    shutil.copy(saved, cut)
    with open(cut, 'r+b') as file:
        file.truncate(saved.stat().st_size - 1)
    reply = graph.call(LoadSession, 'llm/load', path=str(cut))
    assert reply.success and reply.units == len(before) - 1 and '1 places' in reply.reason
