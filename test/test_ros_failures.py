# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What can be wrong is said: by the lifecycle, the log, the status and the service."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix
from lifecycle_msgs.srv import GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_graph import TIMEOUT_S
from ros_source import FIRST, UNUSABLE, Source, jpeg, picture_of, sound_of

from minicpmo_ros.modelset.gguf_layouts import HALF_B, TINY
from minicpmo_ros.msg import AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.srv import Ask
from minicpmo_ros.synthetic.model import write_model


def set_model_dir(graph, node, directory):
    """Set the parameter and give (successful, reason)."""
    client = graph.create_client(SetParameters, f'{node}/set_parameters')
    graph.spin_until(client.service_is_ready, 'set_parameters')
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(directory))
    request = SetParameters.Request(parameters=[Parameter(name='model_dir', value=value)])
    reply = graph.result_of(client.call_async(request), 'set_parameters')
    graph.destroy_client(client)
    return reply.results[0].successful, reply.results[0].reason


def without_audio(directory):
    (directory / 'audio.gguf').unlink()
    return 'audio.gguf'


def with_cut_vision(directory):
    path = directory / 'vision.gguf'
    path.write_bytes(path.read_bytes()[:-1000])
    return 'vision.gguf'


def with_swapped_files(directory):
    (directory / 'vision.gguf').rename(directory / 'other')
    (directory / 'audio.gguf').rename(directory / 'vision.gguf')
    (directory / 'other').rename(directory / 'audio.gguf')
    return 'vision.gguf'


def with_another_width(directory):
    other = write_model(directory / 'wide', replace(TINY, width=384, llm_heads=6), seed=3)
    shutil.copy(other / 'audio.gguf', directory / 'audio.gguf')
    return 'audio.gguf'


def with_an_empty_llm(directory):
    (directory / 'llm.gguf').write_bytes(b'')
    return 'llm.gguf'


def that_is_no_directory(directory):
    shutil.rmtree(directory)
    return directory.name


DAMAGES = (without_audio, with_cut_vision, with_swapped_files, with_another_width,
           with_an_empty_llm, that_is_no_directory)  # fmt: skip


def test_a_damaged_model_directory_fails_in_words_and_a_good_one_then_works(
    graph, tiny_model_dir, tmp_path
):
    process = graph.start('llm', '-p', 'autostart:=false')
    assert graph.lifecycle_state('llm') == 'unconfigured'
    for damage in DAMAGES:
        directory = tmp_path / damage.__name__
        shutil.copytree(tiny_model_dir, directory)
        culprit = damage(directory)
        assert set_model_dir(graph, 'llm', directory) == (True, '')
        # On a busy machine the check takes longer than the transition waits for it.
        refused = not graph.change_state('llm', 'configure')
        assert refused or damage is not that_is_no_directory
        graph.spin_until(
            lambda told=(damage.__name__, culprit): (
                graph.status.state == Status.FAILED
                and all(word in graph.status.reason for word in told)
            ),
            f'a status that names {culprit} ({damage.__name__})',
        )
        assert graph.lifecycle_state('llm') == 'unconfigured', damage.__name__
        assert graph.status.remedy
        assert culprit in process.log
        reply = graph.ask('Anybody?')
        assert not reply.success and culprit in reply.reason

    assert set_model_dir(graph, 'llm', tiny_model_dir) == (True, '')
    assert graph.change_state('llm', 'configure') and graph.change_state('llm', 'activate')
    graph.wait_ready()
    assert graph.ask('Anybody?', max_tokens=2).success
    successful, reason = set_model_dir(graph, 'llm', tmp_path)
    assert not successful and 'clean up' in reason
    assert process.end() == 0


def test_state_and_questions_are_answered_while_a_model_loads(graph, tmp_path):
    # The vocabulary of the published model takes llama.cpp its time.
    slow = replace(HALF_B, llm_layers=2, vision_layers=1, audio_layers=1)
    directory = write_model(tmp_path / 'slow', slow, llm_type='q4_0')
    graph.start('llm', '-p', 'autostart:=false', '-p', f'model_dir:={directory}')
    get_state = graph.create_client(GetState, 'llm/get_state')
    for client in (get_state, graph.ask_client):
        graph.spin_until(client.service_is_ready, 'the services')
    assert graph.change_state('llm', 'configure')
    state = graph.result_of(get_state.call_async(GetState.Request()), 'the state')
    reply = graph.result_of(graph.ask_client.call_async(Ask.Request(question='?')), 'it')
    assert state.current_state.label == 'inactive'
    assert not reply.success and 'loading' in reply.reason
    graph.wait_ready()


@pytest.mark.parametrize(
    'wrong, named',
    [
        ('kv_type:=q2', "'q8_0'"),
        ('max_waiting:=many', 'max_waiting'),
    ],
)
def test_a_wrong_parameter_ends_the_process_with_a_sentence(graph, tiny_model_dir, wrong, named):
    process = graph.start('llm', '-p', wrong, '-p', f'model_dir:={tiny_model_dir}')
    assert process.wait(TIMEOUT_S) == 1
    assert named in process.log and 'Traceback' not in process.log


@pytest.mark.parametrize('executable', ['live', 'media_player', 'demo'])
def test_an_argument_that_nobody_reads_ends_the_process_with_a_sentence(executable, graph):
    path = Path(get_package_prefix('minicpmo_ros')) / 'lib' / 'minicpmo_ros' / executable

    def told(*arguments):
        command = [path, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)

    forgotten, asked = told('-p', 'model_dir:=DIR'), told('--help', '--ros-args', '-p', 'x:=1')
    assert forgotten.returncode and 'model_dir:=DIR' in forgotten.stderr
    assert asked.returncode == 0 and asked.stdout.startswith('usage: ')
    assert not forgotten.stdout and not asked.stderr


def test_an_unknown_parameter_is_told(graph, tiny_model_dir):
    given = ('-p', 'n_context:=4096', '-p', 'llm:top_k:=3')
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}', *given)
    graph.wait_ready()
    assert 'unknown parameters, ignored: n_context (meant n_ctx?)' in process.log
    assert 'llm:top_k:=3 has no effect' in process.log  # the graph is in a namespace


def test_no_picture_and_no_sound_ends_the_node(graph, tiny_model_dir):
    process = graph.start('live', '-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.wait_ready()
    seen, heard = [], []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.create_subscription(AudioEmbedding, 'streaming_encoder/embedding', heard.append, 50)
    source = Source(graph, sample_format='F32LE')
    source.wait_heard()
    good = jpeg(picture_of(1))
    for i, data in enumerate((b'', b'text', good[: len(good) // 2], b'\x89PNG\r\n\x1a\n' * 9)):
        source.picture((FIRST + 2 * i) * 10**9, data)
        source.picture((FIRST + 2 * i + 1) * 10**9, good)  # closes the second before
        graph.spin_until(lambda i=i: len(seen) > 2 * i, 'the embedding of a damaged picture')
        assert seen[2 * i].second == FIRST + 2 * i
        assert seen[2 * i].status == ImageEmbedding.LOST and not seen[2 * i].tokens
    assert process.log.count('[WARN]') < 4  # throttled
    source.raw_sound(FIRST * 10**9, UNUSABLE)
    for i in range(3):
        source.sound((FIRST + i) * 10**9, sound_of(i))
    graph.spin_until(lambda: heard, 'a second of sound after a damaged one')
    assert heard[0].status == AudioEmbedding.OK
    assert process.is_running
    assert graph.ask('Still there?', max_tokens=2).success


def test_embeddings_of_another_model_are_refused(graph, tiny_model_dir):
    process = graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.wait_ready()
    publisher = graph.create_publisher(AudioEmbedding, 'audio_embedding', 10)
    graph.spin_until(publisher.get_subscription_count, 'the llm')
    model = graph.status.model
    bad = (
        AudioEmbedding(model='other/256/x', second=1, tokens=1, width=256),
        AudioEmbedding(model=model, second=2, tokens=25, width=255, data=bytes(2 * 25 * 255)),
        AudioEmbedding(model=model, second=3, tokens=25, width=256, data=bytes(100)),
        AudioEmbedding(model=model, second=4, tokens=1, width=256, data=b'\xff\xff' * 256),
    )
    for i, message in enumerate(bad):
        publisher.publish(message)
        graph.spin_until(lambda i=i: graph.status.refused == i + 1, 'a refusal')
    assert graph.status.units_read == 0 and process.is_running
