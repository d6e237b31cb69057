# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Memory that is short, or not there at all: less is done, words are found, nothing hangs."""

import mmap
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from ament_index_python.packages import get_package_prefix
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from test_ros_diagnostics import ERROR, WARN, told, wait_level  # noqa: F401 (told: fixture)

from benchmarks.device_server import DeviceServer
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.memory import proc as memory
from minicpmo_ros.memory.plan import PlanOptions, forecast
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TINY
from minicpmo_ros.msg import AudioEmbedding, Status
from minicpmo_ros.ros import memory as ros_memory
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.encoder_node import SliceHook
from minicpmo_ros.ros.image_node import VisionNode
from minicpmo_ros.ros.llm_options import PARAMETERS
from minicpmo_ros.ros.memory import MemoryBudget
from minicpmo_ros.ros.messages import put_rows, to_time
from minicpmo_ros.synthetic import model as synthetic

# Keys and values take 64 MiB, of a process of 150 or so.
ON_CPU = PlanOptions(device='cpu', vision_device='cpu', audio_device='cpu')
LARGE = ('-p', 'n_ctx:=32768', '-p', 'kv_type:=f32', '-p', 'unit_deadline:=0.0')


def set_integer(graph, name, value):
    client = graph.create_client(SetParameters, 'llm/set_parameters')
    graph.spin_until(client.service_is_ready, 'set_parameters')
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=int(value))
    request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
    (result,) = graph.result_of(client.call_async(request), 'set_parameters').results
    graph.destroy_client(client)
    assert result.successful, result.reason


def hear(graph, publisher, second):
    """Let the llm read a second of sound."""
    read, model = graph.status.units_read, graph.status.model
    message = AudioEmbedding(model=model, second=second)
    message.header.stamp = to_time(second * 10**9)
    put_rows(message, np.random.default_rng(second).normal(size=(25, 256)).astype(np.float16))
    publisher.publish(message)
    graph.spin_until(lambda: graph.status.units_read > read, f'second {second}')


def pss_mib(process) -> float:
    """Return the proportional set size of a process, by the kernel, MiB."""
    rows = Path(f'/proc/{process.popen.pid}/smaps_rollup').read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith('Pss:')) / 1024


def test_the_window_shrinks_then_questions_are_refused_and_all_comes_back(
    graph,
    tiny_model_dir,
    told,  # noqa: F811
):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', *LARGE)
    graph.wait_ready()
    publisher = graph.create_publisher(AudioEmbedding, 'audio_embedding', 10)
    graph.spin_until(publisher.get_subscription_count, 'the llm')
    for second in range(5):
        hear(graph, publisher, second)
    graph.spin_until(
        lambda: graph.status.memory_mib > pss_mib(process) - 10, 'a measure with the context in it'
    )
    limit_mib = graph.status.memory_mib - 20
    # Half of the context are 32 MiB.
    set_integer(graph, 'memory_limit_mib', limit_mib)
    graph.spin_until(lambda: graph.status.context_size == 16384, 'half the context')
    graph.spin_until(lambda: graph.status.memory_mib < limit_mib, 'the memory to be free')
    assert graph.status.units == 5 and graph.status.evicted == 0
    assert 'Memory is short' in graph.status.reason and not graph.status.refusing
    wait_level(graph, told, 'llm', WARN, 'Memory is short', 'memory_limit_mib')
    reply = graph.ask('What is there?', max_tokens=3)
    assert reply.success and reply.answer.units == 5
    # Nothing helps.
    set_integer(graph, 'memory_limit_mib', 1)
    graph.spin_until(lambda: graph.status.refusing, 'refusing')
    assert graph.status.context_size <= 1024 and graph.status.state == Status.READY
    wait_level(graph, told, 'llm', ERROR, 'Questions are refused')
    reply = graph.ask('And now?')
    assert not reply.success and 'memory_limit_mib allows 1' in reply.reason
    hear(graph, publisher, 5)  # the window goes on
    assert graph.status.units and graph.status.window_end == to_time(6 * 10**9)
    assert process.log.count('Memory is short') <= 4  # not at every look
    # And back.
    set_integer(graph, 'memory_limit_mib', 0)
    graph.spin_until(lambda: not graph.status.refusing, 'questions to be taken')
    assert graph.ask('And now?', max_tokens=3).success
    assert process.end() == 0 and 'Traceback' not in process.log


def test_what_the_machine_must_keep_available_is_watched_too(graph, tiny_model_dir):
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.wait_ready()
    set_integer(graph, 'memory_reserve_mib', 1_000_000)
    graph.spin_until(lambda: graph.status.refusing, 'refusing')
    assert 'MiB are available on this machine' in graph.ask('?').reason


def test_a_window_that_is_elsewhere_is_not_cut_for_memory_that_is_short_here(graph):
    with DeviceServer() as server:
        graph.start(
            'llm', '-p', 'model_dir:=nano',
            '-p', 'device:=gpu', '-p', f'rpc_servers:={server.address}',
        )  # fmt: skip
        graph.wait_ready()
        assert graph.ask('?', max_tokens=2).success
        set_integer(graph, 'memory_reserve_mib', 1_000_000)
        graph.spin_until(lambda: graph.status.refusing, 'refusing')
        assert 'positions' not in graph.status.reason
        assert 'are available on this machine' in graph.ask('?').reason


# --- fault: a model, or its context, is larger than the memory -----------------------------------


def a_failure(graph, *words):
    """Wait for a status that says why there is no model; give its sentence."""
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'a failure'
    )
    text = f'{graph.status.reason} {graph.status.remedy}'
    assert all(word in text for word in words), text
    assert graph.lifecycle_state('llm') == 'unconfigured'
    reply = graph.ask('Anybody?')
    assert not reply.success and words[0] in reply.reason
    return text


def test_a_model_larger_than_the_memory_is_refused_with_numbers(graph, tiny_model_dir, tmp_path):
    directory = tmp_path / 'large'
    shutil.copytree(tiny_model_dir, directory)
    total_mib = memory.meminfo_mib()['MemTotal']
    # Five times the memory: in 4 bits it would be too large, too.
    layers = int(5 * total_mib / (3 * 256 * 2**20 * 2 / 2**20)) + 1
    (directory / 'llm.gguf').unlink()
    shape = replace(TINY, llm_ffn=2**20, llm_layers=layers)
    synthetic.write_llm(directory / 'llm.gguf', shape, None, 'f16')
    assert (directory / 'llm.gguf').stat().st_size > total_mib * 2**20
    process = graph.start('llm', '-p', f'model_dir:={directory}')
    text = a_failure(graph, 'llm.gguf', 'it needs', 'there is room for', 'smaller model')
    assert text in process.log and 'Traceback' not in process.log
    assert process.is_running


def test_a_context_larger_than_the_limit_is_refused_with_the_one_that_fits(graph, tiny_model_dir):
    graph.start(
        'llm', '-p', f'model_dir:={tiny_model_dir}', *LARGE, '-p', 'memory_limit_mib:=110',
        env={'MALLOC_ARENA_MAX': '1'},
    )  # fmt: skip
    text = a_failure(graph, 'llm.gguf', 'keys and values 64', 'memory_limit_mib')
    fits = int(text.split('n_ctx from 32768 to ')[1].split()[0])
    assert 1024 <= fits < 32768 and fits % 256 == 0


class Table:
    """Parameters of a node, without the node."""

    def __init__(self, rows, **changed):
        self._values = {row.name: row.default for row in rows} | changed

    def named(self):
        return self._values

    def values(self):
        return SimpleNamespace(**{k.replace('.', '_'): v for k, v in self._values.items()})


def budget_of_all(**llm):
    """Give the room of a process as `live` is one."""
    budget = MemoryBudget()
    budget.register('audio', Table(StreamingEncoder.PARAMETERS, device='cpu'))
    budget.register('vision', Table(VisionNode.PARAMETERS, device='cpu'))
    budget.register('llm', Table(PARAMETERS, **{'device': 'cpu', **llm}))
    return budget


class Thing:
    """An encoder that takes no memory."""


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """Give a small model whose vision part takes 380 MiB."""
    shape = replace(TINY, vision_ffn=2**15, vision_layers=8)
    directory = tmp_path_factory.mktemp('wide') / 'm'
    return ModelDirectory.open(synthetic.write_model(directory, shape, None))


def test_an_encoder_larger_than_the_memory_is_refused_with_numbers(tmp_path):
    shape = replace(TINY, vision_ffn=2**30)
    model = ModelDirectory.open(synthetic.write_model(tmp_path / 'm', shape, None))
    budget, made = budget_of_all(), Thing()
    assert budget.load('audio', model, lambda: made) is made
    words = r'vision.gguf: it needs \d+ MiB: weights \d+, computing \d+; there is room for \d+'
    with pytest.raises(ModelFileError, match=words):
        budget.load('vision', model, lambda: pytest.fail('it was loaded'))


def test_a_language_model_leaves_room_for_what_its_process_has_still_to_load(wide):
    needs = forecast(wide, replace(ON_CPU, parts=('llm', 'vision', 'audio'))).total_mib
    limit_mib = int(memory.pss_mib() + needs - 50)
    budget = budget_of_all(memory_limit_mib=limit_mib)
    words = r'with what else this process loads: llm \d+, vision \d+, audio \d+; there is room'
    with pytest.raises(ModelFileError, match=words) as caught:
        budget.require_llm(wide)
    assert caught.value.path.endswith('llm.gguf') and 'vision.gguf in q8_0' in caught.value.remedy
    # What is loaded is not needed again, until it is given back.
    eye = budget.load('vision', wide, Thing)
    budget.require_llm(wide)
    del eye
    with pytest.raises(ModelFileError, match=words):
        budget.require_llm(wide)
    # Neither is what runs in another process, or is of another model.
    alone = MemoryBudget()
    alone.register('llm', Table(PARAMETERS, device='cpu', memory_limit_mib=limit_mib))
    alone.require_llm(wide)
    other = budget_of_all(memory_limit_mib=limit_mib)
    other.register('vision', Table(VisionNode.PARAMETERS, device='cpu', model_dir='other'))
    other.require_llm(wide)


def test_layers_that_stay_beside_a_gpu_of_its_own_memory_need_room_too(wide):
    plan = forecast(wide, replace(ON_CPU, device='gpu', gpu_layers=1, parts=('llm',)))
    assert plan.host_mib > 10 and plan.device_mib > 1
    limit_mib = int(memory.pss_mib()) + 1
    budget = MemoryBudget()
    budget.register(
        'llm', Table(PARAMETERS, device='gpu', gpu_layers=1, memory_limit_mib=limit_mib)
    )
    with pytest.raises(ModelFileError, match=f'it needs {plan.host_mib:.0f} MiB: '):
        budget.require_llm(wide)


def test_weights_that_return_need_room_again(graph, tiny_model_dir, monkeypatch):
    node = VisionNode()
    try:
        node.set_parameters([rclpy.Parameter('vision.release_after_s', value=1e-3)])
        pause = SliceHook(threading.Event(), DeviceArbiter(), node.time.now)
        eye = node.load(node.table.values(), ModelDirectory.open(tiny_model_dir), pause)
        tiles = [np.zeros((28, 28, 3), np.uint8)]
        rows = eye.encoder.encode(tiles)
        while not eye.encoder.release_when_idle():
            pass
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(ros_memory, 'available_mib', lambda beside: 1.0)
            with pytest.raises(ModelFileError, match='vision.gguf: .* there is room for 1'):
                eye.encoder.encode(tiles)
        assert np.array_equal(eye.encoder.encode(tiles), rows)
    finally:
        node.destroy_node()


def test_pages_of_a_mapped_file_are_in_use_while_they_are_there(tmp_path):
    with open(tmp_path / 'weights', 'w+b') as file:
        file.truncate(64 << 20)
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        before_mib = memory.resident_mib()['RssFile']
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert 60 < memory.resident_mib()['RssFile'] - before_mib < 70
        mapped.close()
        assert abs(memory.resident_mib()['RssFile'] - before_mib) < 5


def test_live_refuses_what_all_its_parts_have_no_room_for(graph, wide):
    arguments = ('-p', f'model_dir:={wide.path}', '-p', 'device:=cpu', '-p', 'autostart:=false')
    process = graph.start('live', *arguments, '-p', 'memory_limit_mib:=300')
    graph.change_state('llm', 'configure')
    a_failure(graph, 'llm.gguf', 'with what else this process loads', 'there is room for')
    assert process.is_running


# --- fault: an allocation fails ----------------------------------------------------------------


@pytest.fixture
def bounded(graph, tmp_path):
    """Start an llm in an address space of so many MiB: what is above it is not to be had."""

    def start(limit_mib, *arguments):
        llm = f'{get_package_prefix("minicpmo_ros")}/lib/minicpmo_ros/llm'
        path = tmp_path / f'bounded_{limit_mib}'
        path.write_text(f'#!/bin/sh\nulimit -v {limit_mib * 1024}\nexec {llm} "$@"\n')
        path.chmod(0o755)
        return graph.start(str(path), *arguments, env={'MALLOC_ARENA_MAX': '1'})

    return start


def test_a_context_that_cannot_be_allocated_is_a_failure_in_words(graph, bounded, tmp_path):
    synthetic.write_model(tmp_path / 'far', replace(TINY, context_length=2**20))
    process = bounded(
        1800, '-p', f'model_dir:={tmp_path / "far"}', '-p', f'n_ctx:={2**20}',
        '-p', 'kv_type:=f32', '-p', 'memory_reserve_mib:=0',
    )  # fmt: skip
    a_failure(graph, 'made no context of 1048576 positions', 'lower n_ctx')
    # What is asked for less of is there.
    set_integer(graph, 'n_ctx', 4096)
    assert graph.change_state('llm', 'configure') and graph.change_state('llm', 'activate')
    graph.wait_ready()
    assert graph.ask('?', max_tokens=2).success
    assert process.end() == 0


@pytest.mark.parametrize('limit_mib', [300, 640])
def test_where_an_allocation_fails_the_process_says_so_or_ends(
    graph, bounded, tiny_model_dir, limit_mib
):
    """It may end at any line; then it is started again (respawn). It does not hang."""
    process = bounded(limit_mib, '-p', f'model_dir:={tiny_model_dir}', *LARGE)
    decided = (Status.FAILED, Status.READY)
    graph.spin_until(
        lambda: not process.is_running or (graph.status and graph.status.state in decided),
        'an end, or words',
    )
    if process.is_running:
        assert graph.status.state == Status.READY or graph.status.remedy
        assert process.end() == 0
    else:
        assert process.popen.returncode != 0 and process.log
