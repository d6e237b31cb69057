# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Model files that change under a running node are told of; what ended it is told by the next."""

import os
import shutil
import signal

import pytest
from ros_graph import END_TIMEOUT_S

from minicpmo_ros.msg import Status
from minicpmo_ros.ros.model_watch import ModelWatch, facts_of, last_end
from minicpmo_ros.synthetic.model import write_model


@pytest.fixture
def model_dir(tiny_model_dir, tmp_path):
    """Give a copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_model_dir, tmp_path / 'model')


def start(graph, model_dir, *parameters):
    return graph.start(
        'llm', '-p', f'model_dir:={model_dir}', *parameters,
        env={'ROS_LOG_DIR': str(graph.log_dir / 'ros')},
    )  # fmt: skip


def records(graph):
    return list((graph.log_dir / 'ros/minicpmo_ros').glob('*'))


def test_a_file_that_changes_under_a_running_node_is_told_before_it_matters(graph, model_dir):
    process = start(graph, model_dir)
    graph.wait_ready()
    assert len(records(graph)) == 1
    vision, llm = model_dir / 'vision.gguf', model_dir / 'llm.gguf'
    shutil.copy(vision, model_dir / 'new')
    os.replace(model_dir / 'new', vision)
    graph.spin_until(
        lambda: f'{vision} is another file than the one that was loaded' in process.log, 'a word'
    )
    os.utime(llm)
    graph.spin_until(lambda: f'{llm} was changed where it lies' in process.log, 'a word')
    assert 'SIGBUS' in process.log and process.is_running
    assert process.end() == 0
    assert records(graph) == []
    again = start(graph, model_dir)
    graph.forget_statuses()
    graph.wait_ready()
    assert 'did not end properly' not in again.log


def test_a_node_that_a_cut_file_ended_says_so_when_it_starts_again(graph, model_dir):
    process = start(graph, model_dir)
    graph.wait_ready()
    llm = model_dir / 'llm.gguf'
    os.truncate(llm, 200_000)
    graph.ask_client.call_async(graph.ask_client.srv_type.Request(question='Anybody?'))
    assert process.wait(END_TIMEOUT_S) == -signal.SIGBUS
    graph.forget_statuses()
    again = start(graph, model_dir)
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'a failure'
    )
    assert 'did not end properly, and what it had mapped has changed since' in again.log
    assert 'SIGBUS' in again.log and '200000 now' in again.log
    assert 'cut short' in graph.status.reason
    assert records(graph) == []


def test_a_context_in_which_answers_are_reported_to_break_is_told_at_loading(graph, tmp_path):
    directory = write_model(tmp_path / 'model', 'tiny-4.5', 1, hashes=False)
    process = start(graph, directory, '-p', 'n_ctx:=16384')
    graph.wait_ready()
    told = 'n_ctx is 16384, but users report that answers of minicpm-o-4.5 break beyond about'
    assert told in process.log and 'Set n_ctx to 11264 or less' in process.log


def watch_of(folder, mapped=('llm',)):
    paths = {role: folder / f'{role}.gguf' for role in ('llm', 'vision')}
    for path in paths.values():
        path.write_bytes(b'0' * 100)
    return ModelWatch(paths, frozenset(mapped), folder / 'r/record.json'), paths


def test_changes_are_told_once_and_only_those_of_mapped_files_are_dangerous(tmp_path):
    watch, paths = watch_of(tmp_path)
    assert watch.changes() == []
    for path in paths.values():
        os.truncate(path, 50)
    (dangerous, llm), (harmless, vision) = watch.changes()
    assert dangerous and 'SIGBUS' in llm and '100 bytes before, 50 now' in llm
    assert not harmless and 'what is loaded goes on' in vision
    assert watch.changes() == []
    paths['llm'].unlink()
    assert 'no longer there' in watch.changes()[0][1]
    paths['llm'].write_bytes(b'1')
    assert 'another file' in watch.changes()[0][1]


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": "x"}', '[' * 5000, '{"pid": 1e400}',
                                     '{"pid": 7, "started": 1, "files": [1]}'])  # fmt: skip
def test_a_record_that_is_none_says_nothing(tmp_path, content):
    (tmp_path / 'record.json').write_text(content)
    assert last_end(tmp_path / 'record.json') == ''


def test_a_record_of_a_process_that_goes_on_says_nothing_and_a_proper_end_removes_it(tmp_path):
    watch, _ = watch_of(tmp_path)
    assert last_end(tmp_path / 'r/record.json') == ''
    watch.close()
    assert os.listdir(tmp_path / 'r') == []


def test_a_log_folder_that_cannot_be_written_costs_nothing_but_the_record(tmp_path):
    (tmp_path / 'r').write_text('a file')
    watch, paths = watch_of(tmp_path)
    os.utime(paths['llm'], (1, 1))
    assert watch.changes()[0][0]
    watch.close()
    assert facts_of(tmp_path / 'nothing') == []
