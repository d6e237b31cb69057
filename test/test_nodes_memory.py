# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Memory that is short, or not there at all: less is done, words are found, nothing hangs."""

import os
import shutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
from ament_index_python.packages import get_package_prefix
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from test_nodes_diagnostics import ERROR, WARN, told, wait_level  # noqa: F401 (told: fixture)

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import read_header
from minicpmo_ros.models import synthetic
from minicpmo_ros.models.shapes import TINY
from minicpmo_ros.msg import AudioEmbedding, Status
from minicpmo_ros.nodes import memory
from minicpmo_ros.nodes.memory_room import require_room_for_encoder
from minicpmo_ros.nodes.messages import put_rows, to_time

# Keys and values take 64 MiB, of a process of 150 or so.
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
    graph.spin_until(lambda: graph.status.memory_mib > 64, 'a measure with the context in it')
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


# --- fault: a model, or its context, is larger than the memory -----------------------------------


def a_failure(graph, *words):
    """Wait for a status that says why there is no model; give its sentence."""
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'a failure'
    )
    text = f'{graph.status.reason}. {graph.status.remedy}'
    assert all(word in text for word in words), text
    assert graph.lifecycle_state('llm') == 'unconfigured'
    reply = graph.ask('Anybody?')
    assert not reply.success and words[0] in reply.reason
    return text


def write_hollow(writer, plans, rows, precision):
    """Write what `synthetic` writes, with holes for the tensors: 60 GiB take no room on a disk."""
    types = [synthetic._stored_type(plan, precision) for plan in plans]
    sizes = [synthetic.byte_count(plan.shape, kind) for plan, kind in zip(plans, types)]
    for plan, kind, size in zip(plans, types, sizes):
        writer.add_tensor_info(
            plan.name, plan.shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType(kind)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    path = writer.path
    start = writer.fout[0].tell()
    writer.close()
    start += -start % writer.data_alignment
    os.truncate(path, start + sum(size + -size % writer.data_alignment for size in sizes))


def test_a_model_larger_than_the_memory_is_refused_with_numbers(
    graph, tiny_model_dir, tmp_path, monkeypatch
):
    directory = tmp_path / 'large'
    shutil.copytree(tiny_model_dir, directory)
    monkeypatch.setattr(synthetic, '_write', write_hollow)
    total_mib = memory.meminfo_mib()['MemTotal']
    layers = int(2 * total_mib / (3 * 256 * 2**20 * 2 / 2**20)) + 1  # two times the memory
    (directory / 'llm.gguf').unlink()
    shape = replace(TINY, llm_ffn=2**20, llm_layers=layers)
    synthetic.write_llm(directory / 'llm.gguf', shape, precision='f16')
    assert (directory / 'llm.gguf').stat().st_size > total_mib * 2**20
    process = graph.start('llm', '-p', f'model_dir:={directory}')
    text = a_failure(graph, 'llm.gguf', 'it needs', 'there is room for', 'smaller file')
    assert text in process.log and 'Traceback' not in process.log
    assert process.is_running


def test_a_context_larger_than_the_limit_is_refused_with_the_one_that_fits(graph, tiny_model_dir):
    graph.start(
        'llm', '-p', f'model_dir:={tiny_model_dir}', *LARGE, '-p', 'memory_limit_mib:=110',
        env={'MALLOC_ARENA_MAX': '1'},
    )  # fmt: skip
    text = a_failure(graph, 'llm.gguf', 'keys and values 64', 'Lower n_ctx to', 'memory_limit_mib')
    fits = int(text.split('Lower n_ctx to ')[1].split(',')[0])
    assert 1024 <= fits < 32768 and fits % 256 == 0


def test_an_encoder_larger_than_the_memory_is_refused_with_numbers(tiny_model_dir):
    header = read_header(tiny_model_dir / 'vision.gguf')
    require_room_for_encoder(header, 'cpu')
    with pytest.raises(ModelFileError, match=r'need 16777216 MiB; there is room for \d+'):
        require_room_for_encoder(replace(header, size_bytes=2**44), 'cpu')


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
