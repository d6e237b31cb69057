# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""All that runs under device gpu runs on a device whose memory is not this process's.

The device is llama.cpp's RPC server of this machine's CPU: another process. What it computes
equals what this process computes in the same form, to the bit. device_proof.py has more, which
`make test-device` runs.
"""

import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import device_work as work
import numpy as np
import pytest

from benchmarks.device_server import DeviceServer, free_port
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder, vision_memory
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import EngineError, InputError, ServerAwayError
from minicpmo_ros.evaluation.replay import ReplayPlan, Sources, Variant
from minicpmo_ros.evaluation.runner import CoreOptions
from minicpmo_ros.ggml import devices
from minicpmo_ros.ggml.devices import Devices, ask_for_version
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.library import lib, set_log
from minicpmo_ros.ggml.runtime import AsGpu, Backend
from minicpmo_ros.memory.limits import Limits
from minicpmo_ros.memory.plan import PlanOptions, forecast, plan_options
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TINY
from minicpmo_ros.streams.on_demand import VisionOnDemand
from minicpmo_ros.synthetic.model import write_vision
from minicpmo_ros.units import MIB

ROOT = Path(__file__).parents[1]
HELLO = struct.calcsize('<BQ24x')
SERVERS = ('rpc_servers', 'vision_rpc_servers', 'audio_rpc_servers')


@pytest.fixture(scope='module')
def server():
    with DeviceServer() as server:
        yield server


@pytest.fixture
def peer():
    """Return a function that starts what answers a hello with some bytes, or never (None)."""
    sockets = []

    def start(answer: bytes | None) -> str:
        listener = socket.create_server(('127.0.0.1', 0))
        sockets.append(listener)

        def serve():
            one, _ = listener.accept()
            sockets.append(one)
            one.recv(HELLO, socket.MSG_WAITALL)
            if answer is not None:
                one.sendall(answer)
                one.close()

        threading.Thread(target=serve, daemon=True).start()
        return f'127.0.0.1:{listener.getsockname()[1]}'

    yield start
    for one in sockets:
        one.close()


def wait_until(condition, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_what_a_device_with_its_own_memory_computes_is_what_the_cpu_computes(
    server, tiny_model_dir
):
    found = work.on_device(tiny_model_dir, server.address)
    assert work.are_same(found, work.on_cpu(tiny_model_dir))
    assert not devices.connected_servers()


def test_what_lies_on_the_device_is_what_was_planned_and_no_more_lies_here(server, tiny_model_dir):
    lines, address = [], server.address
    set_log(lambda _, text: lines.append(text))
    try:
        with closing(work.open_session(tiny_model_dir, 'gpu', address, 4096)) as session:
            sequences = session.context.options.n_sequences
    finally:
        set_log(None)
    placed = re.compile(rf'RPC\d\[{address}\] (\w+) buffer size = +([\d.]+) MiB')
    found = {what: float(mib) for what, mib in placed.findall('\n'.join(lines))}
    options = {'device': 'gpu', 'vision_device': 'gpu', 'audio_device': 'gpu', 'n_ctx': 4096}
    model, served = ModelDirectory.open(tiny_model_dir), dict.fromkeys(SERVERS, address)
    few = {'max_rules': 0, 'max_parallel': sequences - 1}
    plan = forecast(model, PlanOptions(**options, **served, **few))
    planned = {what: plan.amount('llm', what).device / MIB for what in ('weights', 'computing')}
    planned['keys and values'] = plan.amount('llm', 'keys and values').device / MIB
    assert planned['weights'] == pytest.approx(found['model'], abs=0.006)
    assert planned['keys and values'] == pytest.approx(found['KV'], abs=0.006)
    assert found['compute'] - 0.1 < planned['computing'] < 1.09 * found['compute'] + 1.0
    with closing(Backend('gpu', rpc_servers=address)) as backend:
        audio = AudioEncoder.load(model.audio_path, backend)
        vision = VisionEncoder.load(model.vision_path, backend)
        assert audio.weights.size_bytes == plan.amount('audio', 'weights').device
        sizes = vision.weight_bytes, vision.compute_bytes
        for what, size in zip(('weights', 'computing'), sizes):
            assert size == plan.amount('vision', what).device
    # Where a GPU has the machine's memory, a server's still has its own.
    assert plan.total_mib == plan.host_mib
    assert not plan.amount('process', 'GPU runtime (assumed)').device
    alone = forecast(model, PlanOptions(**options))
    assert alone.total_mib > alone.host_mib > 0
    assert Limits(plan.host_mib).excess_mib(plan) <= 0 < Limits(plan.host_mib).excess_mib(alone)
    given = plan_options({'vision_encoder': {'rpc_servers': address, 'device': 'auto'}})
    assert given.served == {'vision'} and forecast(model, given).amount('vision', 'weights').device


def test_heads_of_72_are_computed_there_as_here_and_take_what_was_forecast(server, tmp_path):
    path = tmp_path / 'vision.gguf'
    shape = replace(TINY, vision_width=144, vision_heads=2, vision_ffn=538)
    write_vision(path, shape)
    tile = np.random.default_rng(1).integers(0, 256, (336, 602, 3)).astype(np.uint8)
    found = []
    for device in (Backend('gpu', rpc_servers=server.address), AsGpu()):
        with closing(device):
            encoder = VisionEncoder.load(path, device)
            found.append(encoder.encode([tile]))
            planned = vision_memory(read_header(path), device)
            assert (planned.weights, planned.compute) == (
                encoder.weight_bytes,
                encoder.compute_bytes,
            )
    assert work.are_same(*([rows] for rows in found))


def test_what_is_released_is_given_back_and_comes_again(server, tiny_model_dir):
    path, now_s = tiny_model_dir / 'vision.gguf', [0.0]
    tiles = [np.zeros((448, 448, 3), np.uint8)]
    backend = Backend('gpu', rpc_servers=server.address)
    before_mib = server.memory_mib

    def load(between):
        return VisionEncoder.load(path, backend, between=between)

    vision = VisionOnDemand(load, 1.0, lambda: now_s[0])
    first, loaded_mib = vision.encode(tiles), server.memory_mib
    assert loaded_mib > before_mib + 3.0  # of its weights
    now_s[0] = 2.0
    assert vision.release_when_idle()
    wait_until(lambda: server.memory_mib < loaded_mib - 3.0)  # it frees when it comes to it
    assert np.array_equal(vision.encode(tiles), first)
    assert devices.connected_servers() == [server.address]
    backend.close()
    assert not devices.connected_servers()
    wait_until(lambda: server.memory_mib < loaded_mib - 3.0)  # it frees when it comes to it
    ask_for_version(server.address)  # which it does not answer while it serves somebody


def test_a_device_of_another_process_is_used_only_where_it_is_named(server, tiny_model_dir):
    with closing(Backend('gpu', rpc_servers=f'{server.address}, {server.address}')) as backend:
        assert not backend.is_cpu and server.address in backend.name
        assert devices.gpu_name() == ''  # no other part of this process takes it for its own
        with pytest.raises(EngineError, match='finds no GPU'):
            Devices('gpu')
        assert Devices('auto').is_cpu
        assert Devices('cpu', server.address).is_cpu
        with closing(work.open_session(tiny_model_dir, 'cpu', server.address)) as session:
            assert not session.model.on_gpu
    assert Devices('auto', server.address).name == devices.REMOTE
    with pytest.raises(ValueError, match='device'):
        Devices('rpc', server.address)


def test_a_run_says_that_a_server_computed_it_wherever_that_was(tiny_model_dir, tmp_path):
    from scored_clips import write_question_set

    model, asked = ModelDirectory.open(tiny_model_dir), write_question_set(tmp_path)
    for servers, device, told in (('a:1', 'auto', devices.REMOTE), ('b:2', 'gpu', devices.REMOTE),
                                  ('a:1', 'cpu', 'cpu'), ('', 'auto', 'cpu')):  # fmt: skip
        options = CoreOptions(device=device, rpc_servers=servers)
        plan = ReplayPlan.make(model, asked, options, Variant(), Sources())
        assert plan.facts()['device'] == told


@pytest.mark.parametrize('text', ['desk', ':50052', 'desk:', 'desk:0', 'desk:65536', 'desk:a',
                                  'desk:1;desk:2', '::1:50052', 'a:1,b'])  # fmt: skip
def test_an_address_that_is_none_is_refused_with_what_is_expected(text):
    with pytest.raises(InputError, match=r'host:port.*127\.0\.0\.1:50052'):
        Devices('gpu', text)


def test_a_server_that_is_not_there_is_told_with_its_address():
    address = f'127.0.0.1:{free_port()}'
    with pytest.raises(ServerAwayError, match=f'{address} cannot be reached.*Start it') as caught:
        Backend('gpu', rpc_servers=address)
    assert caught.value.may_pass
    with pytest.raises(ServerAwayError, match='cannot be reached'):
        Backend('auto', rpc_servers='no.such.host.invalid:50052')


def test_a_server_that_serves_another_process_is_told(peer, monkeypatch):
    monkeypatch.setattr(devices, 'TIMEOUT_S', 0.2)
    with pytest.raises(ServerAwayError, match='one process at a time.*composed'):
        Backend('gpu', rpc_servers=peer(None))


@pytest.mark.parametrize(
    'answer,told',
    [
        (struct.pack('<Q4B24x', 28, 6, 9, 1, 0), r'speaks version 6\.9\.1, .*7\.0\.0.*Install'),
        (struct.pack('<Q4B24x', 28, 7, 1, 0, 0), r'speaks version 7\.1\.0'),
        (struct.pack('<Q3B', 3, 3, 0, 0), 'does not answer as an RPC server'),
        (b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n', 'does not answer as an RPC'),
        (b'', 'does not answer as an RPC server'),
    ],
)
def test_a_server_of_another_version_is_refused_before_ggml_ends_the_process(peer, answer, told):
    with pytest.raises(EngineError, match=told) as caught:
        Backend('gpu', rpc_servers=peer(answer))
    assert not caught.value.may_pass


def test_a_library_without_the_backend_is_told(server, monkeypatch):
    monkeypatch.setattr(lib, 'backend_reg_by_name', lambda name: None)
    with pytest.raises(EngineError, match='GGML_RPC=on'):
        Backend('gpu', rpc_servers=server.address)


@pytest.mark.parametrize('when', ['for ever', 'afterwards'])
def test_a_server_that_dies_ends_the_process_and_the_last_words_say_why(tiny_model_dir, when):
    """Nothing hangs: ggml's thread, which logs, gets the interpreter's lock."""
    with DeviceServer() as server:
        child = subprocess.Popen(
            [sys.executable, str(ROOT / 'test' / 'device_work.py'), str(tiny_model_dir),
             server.address, when],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout.readline() == 'computed\n'
        server.close()
        try:
            _, words = child.communicate('\n', timeout=60.0)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGABRT
    assert f'({server.address}) has ended' in words and 'Start it again' in words
