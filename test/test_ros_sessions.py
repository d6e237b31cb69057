# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The window outlives kill -9, and goes from one node to another through a file."""

import os
import shutil
import signal
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
from ros_source import FIRST, Source, time_of

from minicpmo_ros.ros.sessions import SessionServer
from minicpmo_ros.sessions.black_box import BlackBox
from minicpmo_ros.srv import Forget, LoadSession, Remember, SaveSession
from minicpmo_ros.streams.pairing import Unit

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


def test_how_long_a_black_box_was_not_written_is_known_before_it_is_opened(tmp_path):
    path, model = tmp_path / 'box.session', SimpleNamespace(space='model', width=64)
    box = BlackBox(path, 4, model.space, model.width)
    box.append(Unit(60, None, (0, 0), np.ones((25, 64), np.float16)), (60,))
    box.close()
    hour_ago_s = time.time() - 3600
    os.utime(path, (hour_ago_s, hour_ago_s))
    server, checked = (
        SessionServer(SimpleNamespace(create_service=lambda *_, **__: None)),
        Future(),
    )
    checked.set_result(model)
    options = SimpleNamespace(memory_black_box_path=str(path), memory_black_box_s=4)
    keeper = server.set_up(options, checked)
    assert 3600 <= keeper.stored().age_s < 3660
    server.release()


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


def test_who_changes_what_the_robot_remembers_is_in_its_log(graph, tmp_path):
    saved, notes = tmp_path / 'saved.session', ('-p', 'memory.enabled:=true')
    notes += ('-p', f'memory.path:={tmp_path / "notes.db"}', '-p', 'memory.every_s:=0')
    live, source = start(graph, tmp_path / 'box.session', *notes), Source(graph)
    source.wait_heard()
    show(source, FIRST, 3)
    count = graph.call(SaveSession, 'llm/save', path=str(saved)).units
    note = graph.call(Remember, 'llm/remember', text='The umbrella is yellow.').note
    assert graph.call(LoadSession, 'llm/load', path=str(saved)).success
    begin, end = time_of(0), time_of(2**31 * 10**9 - 1)
    assert graph.call(Forget, 'llm/forget', begin=begin, end=end).forgotten == 1
    assert graph.reset().success
    for told in (
        f'~/remember: note {note.id} is written',
        f'~/load: {count} seconds of {saved} are read',
        '~/forget: 1 notes and ',
        '~/reset: the window is emptied.',
    ):
        graph.spin_until(lambda told=told: told in live.log, told)
    assert 'umbrella' not in live.log  # what was said is nobody's
