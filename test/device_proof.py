# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What takes long of a device with its own memory: `make test-device` runs it.

Faults that memory shared with the device would hide, each caught; nano's answers; the live node
when its server ends, and comes again.
"""

import signal
import subprocess
import sys
from pathlib import Path

import device_work as work
import pytest
from ros_source import FIRST, Source

from benchmarks.device_server import DeviceServer, free_port
from benchmarks.scale import measure_device
from minicpmo_ros.msg import Status

ROOT = Path(__file__).parents[1]


def run(model_dir, address: str, what: str):
    """Compute on both sides, with a fault; return the ended process."""
    return subprocess.run(
        [sys.executable, str(ROOT / 'test' / 'device_work.py'), str(model_dir), address, what],
        capture_output=True, text=True, timeout=300.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    'what,code,told',
    [
        ('', 0, 'same'),
        ('missing copy', 0, 'different'),
        ('wrong offset', 0, 'different'),
        # The server reads address 0 and ends.
        ('tensor left on the host', -signal.SIGABRT, ''),
    ],
)
def test_planted_faults_are_caught(tiny_model_dir, what, code, told):
    with DeviceServer() as server:
        done = run(tiny_model_dir, server.address, what)
        assert (done.returncode, done.stdout.strip()) == (code, told), done.stderr
        assert server.process.poll() == (-signal.SIGSEGV if code else None)


def test_nano_answers_there_as_on_the_cpu():
    found = measure_device()
    assert found['device_same'] >= 0.99 and found['device_questions'] >= 144


def test_all_precisions_are_computed_there_as_here(tmp_path):
    from minicpmo_ros.synthetic.model import write_model

    with DeviceServer() as server:
        for llm, vision, audio in (('q4_K', 'q4_0', 'q4_0'), ('q8_0', 'q8_0', 'q8_0')):
            directory = tmp_path / llm
            write_model(directory, 'tiny', 1, llm, vision, audio, hashes=False)
            found = work.on_device(directory, server.address)
            assert work.are_same(found, work.on_cpu(directory)), llm


def test_the_window_outlives_a_server_that_dies_and_the_log_says_why(graph, tmp_path):
    port = free_port()
    address = f'127.0.0.1:{port}'

    def start():
        graph.forget_statuses()
        return graph.start(
            'live', '-p', 'model_dir:=nano', '-p', 'device:=gpu', '-p', f'rpc_servers:={address}',
            '-p', 'memory.black_box_s:=60', '-p', f'memory.black_box_path:={tmp_path / "box"}',
            '-p', 'max_backlog:=100', *graph.lossless,
        )  # fmt: skip

    live = start()  # before its server
    graph.spin_until(lambda: graph.status and graph.status.state == Status.FAILED, 'the failure')
    assert f'{address} cannot be reached' in graph.status.reason
    with DeviceServer(port) as server:
        graph.wait_ready()  # by itself
        source, last = Source(graph), FIRST
        source.wait_heard()
        for _ in range(6):
            last = source.until_read(last)
        before = list(graph.status.seconds)
        server.close()
        for second in range(last, last + 3):
            source.second(second)
        assert live.wait() == -signal.SIGABRT
    assert f'({address}) has ended' in live.log and 'Start it again' in live.log
    live = start()  # as launch does
    graph.spin_until(lambda: 'cannot be reached' in live.log, 'the failure')
    with DeviceServer(port):
        graph.wait_ready()
        graph.spin_until(lambda: 'wait for the first live' in graph.status.restoring, 'the offer')
        source = Source(graph)
        source.wait_heard()
        source.until_read(last + 5)
        graph.spin_until(lambda: graph.status.restored, 'the window')
        now = list(graph.status.seconds)
        assert set(before) - set(now) <= {before[-1]} and now[-1] >= last + 5
        assert graph.ask('what shape is shown now?', choices=[]).success
        assert live.end() == 0
