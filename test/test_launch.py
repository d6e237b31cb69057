# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The launch file and the presets.

`launch_ros` comes with a ROS 2 distribution only; there the launch file itself is run. The
other tests run everywhere what it would run: the same executables with the same arguments.
"""

import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import get_package_share_directory
from rcl_interfaces.srv import GetParameters, ListParameters
from rosbags.highlevel import AnyReader

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.evaluation.bags import Bag
from minicpmo_ros.evaluation.clips import PICTURE, SOUND, read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_clip
from minicpmo_ros.ggml.runtime import check_device
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.msg import Status
from minicpmo_ros.nodes.launching import ARGUMENTS, REPLAY_ARGUMENTS, replay_starts, starts
from minicpmo_ros.nodes.llm import LlmNode
from minicpmo_ros.nodes.streaming_encoder import StreamingEncoder
from minicpmo_ros.nodes.vision_encoder import VisionNode

ROOT = Path(__file__).parents[1]
SHARE = Path(get_package_share_directory('minicpmo_ros'))
PRESETS = sorted((ROOT / 'config').glob('*.yaml'))
NODES = {'streaming_encoder': StreamingEncoder, 'vision_encoder': VisionNode, 'llm': LlmNode}
DEFAULTS = {name: default for name, default, _ in ARGUMENTS}


def preset_parameters(path):
    """Give {node: {parameter: value}} of a preset."""
    sections = {
        key: value['ros__parameters'] for key, value in yaml.safe_load(path.read_text()).items()
    }
    common = sections.pop('/**', {})
    return {node: common | sections.pop(f'/**/{node}', {}) for node in NODES} | sections


def plan(**given):
    """Give what is started for launch arguments."""
    return starts(DEFAULTS | given, ROOT / 'config')


def command_line(start):
    """Give the ROS arguments that launch_ros makes of a Start."""
    parts = ['-r', f'__node:={start.name}'] if start.name else []
    for old, new in start.remappings:
        parts += ['-r', f'{old}:={new}']
    for values in start.parameters:
        if isinstance(values, str):
            parts += ['--params-file', values]
        else:
            for name, value in values.items():
                text = str(value).lower() if isinstance(value, bool) else value
                parts += ['-p', f'{name}:={text}']
    return [*parts, '--log-level', 'info']


def parameter(graph, node, name):
    """Give the value that a running node has of a parameter."""
    client = graph.create_client(GetParameters, f'{node}/get_parameters')
    graph.spin_until(client.service_is_ready, node)
    reply = graph.result_of(client.call_async(GetParameters.Request(names=[name])), node)
    graph.destroy_client(client)
    return reply.values[0]


def test_the_launch_file_brings_the_graph_up(graph, tiny_model_dir):
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS 2 distribution')
    command = ['ros2', 'launch', 'minicpmo_ros', 'live.launch.py',
               f'namespace:={graph.namespace}', f'model_dir:={tiny_model_dir}']  # fmt: skip
    launched = subprocess.Popen(command, start_new_session=True)
    try:
        graph.wait_ready()
    finally:
        launched.send_signal(signal.SIGINT)
        assert launched.wait(10) == 0


@pytest.mark.parametrize('name', ['live', 'replay'])
def test_a_launch_file_compiles_and_declares_what_is_documented(name):
    for path in (f'launch/{name}.launch.py', 'minicpmo_ros/nodes/launch_actions.py'):
        compile((ROOT / path).read_text(), path, 'exec')
    arguments = ARGUMENTS if name == 'live' else REPLAY_ARGUMENTS
    assert 'preset' in dict(a[:2] for a in arguments) and all(a[2] for a in arguments)


def test_a_replay_is_launched_asks_all_questions_and_ends(graph, tmp_path):
    clip = SHARE / 'demo' / 'clips' / '010.mcap'
    given = {name: default for name, default, _ in REPLAY_ARGUMENTS}
    given |= {'namespace': graph.namespace, 'bag': str(clip), 'record': 'answers'}
    given |= {'questions': str(clip.parent / 'questions.json'), 'out': str(tmp_path / 'run')}
    live, asking = replay_starts(given, ROOT / 'config')
    assert live.ends_all and asking.ends_all and not live.respawn
    graph.start('live', *command_line(live))
    process = graph.start('replay', *command_line(asking))
    graph.spin_until(lambda: not process.is_running, 'the end of the replay')
    assert process.popen.returncode == 0, process.log
    run = Run.read(tmp_path / 'run')
    about = QuestionSet.read(given['questions'], clip).questions
    assert list(run.texts) == [q.id for q in about] and 'unknown parameters' not in process.log
    core = Core(ModelDirectory.open(SHARE / 'models' / 'nano'), CoreOptions('cpu', 1))
    texts = [answer.text for *_, answer in answer_clip(core, read_clip(clip), about, [Variant()])]
    core.close()
    assert list(run.texts.values()) == texts
    messages = list(Bag(tmp_path / 'run' / 'bags' / '010_0.mcap').messages())
    assert len(messages) == len(about)


def test_live_answers_are_recorded_beside_their_input(graph, tiny_model_dir, tmp_path):
    clip, bag = SHARE / 'demo' / 'clips' / '010.mcap', tmp_path / 'answers.mcap'
    started = [
        graph.start(start.executable, *command_line(start))
        for start in plan(model_dir=str(tiny_model_dir), play=str(clip), record=str(bag),
                          record_inputs='true')
    ]  # fmt: skip
    graph.wait_ready()
    answers = f'{graph.namespace}/llm/answer'
    graph.spin_until(lambda: graph.count_subscribers(answers), 'the recorder')
    graph.spin_until(lambda: graph.status.units_read >= 1, 'a second of the clip')
    text = graph.ask('?', max_tokens=2).answer.text
    found = Bag(bag)
    graph.spin_until(
        lambda: any(m.topic == answers for m in found.messages()), 'the answer in the bag'
    )
    recorder = started[1]
    assert recorder.end() == 0, recorder.log
    kinds = {message.kind for message in found.messages()}
    assert not found.losses and {'minicpmo_ros/msg/Answer', PICTURE, SOUND} <= kinds
    with AnyReader([bag]) as reader:
        told = [
            reader.deserialize(data, connection.msgtype).text
            for connection, _, data in reader.messages()
            if connection.topic == answers
        ]
    assert told == [text]


def test_a_wrong_number_is_refused_in_words():
    given = {name: default for name, default, _ in REPLAY_ARGUMENTS}
    with pytest.raises(InputError, match="limit is 'few'; it takes a whole number"):
        replay_starts(given | {'limit': 'few'}, ROOT / 'config')


@pytest.mark.parametrize('composed', ['true', 'false'])
def test_what_the_launch_file_starts_is_a_graph_that_works(graph, tiny_model_dir, composed):
    clip = SHARE / 'demo' / 'clips' / '010.mcap'
    for start in plan(
        model_dir=str(tiny_model_dir),
        composed=composed,
        play=str(clip),
        image_topic='camera/front',
    ):
        graph.start(start.executable, *command_line(start))
    graph.wait_ready()
    graph.spin_until(lambda: graph.status.units_read >= 2, 'two seconds of the clip')
    assert graph.count_publishers(f'{graph.namespace}/camera/front/compressed') == 1
    assert graph.ask('?', max_tokens=2).answer.units >= 2
    assert parameter(graph, 'vision_encoder', 'model_dir').string_value == str(tiny_model_dir)


def test_an_argument_that_is_not_given_overrides_nothing(graph, tmp_path, tiny_model_dir):
    params = tmp_path / 'mine.yaml'
    params.write_text(f'/**/llm:\n  ros__parameters:\n    model_dir: {tiny_model_dir}\n')
    (start,) = plan(params_file=str(params))
    assert [set(v) for v in start.parameters if isinstance(v, dict)] == [{'use_sim_time'}]
    graph.start(start.executable, *command_line(start))
    graph.wait_ready()
    assert 'random-tiny' in graph.status.model
    assert plan(model_dir='7')[0].parameters[-1]['model_dir'] == '7'


def test_what_cannot_be_launched_is_refused_in_words():
    with pytest.raises(InputError, match="no preset 'big'; there are: .*nano"):
        plan(preset='big')
    with pytest.raises(InputError, match="composed is 'maybe'; it takes true or false"):
        plan(composed='maybe')


def test_only_what_plays_without_a_robot_makes_time():
    *_, player = plan(play='clip.mp4', use_sim_time='true')
    assert player.executable == 'media_player' and not player.respawn
    assert player.parameters[0]['publish_clock'] is True
    assert all(start.respawn for start in plan(composed='false'))
    assert ('audio_info', 'mic_info') in plan(audio_topic='mic')[0].remappings
    stamped = plan(audio_topic='/audio/audio_stamped')[0].remappings  # audio_capture's names
    assert ('audio_info', '/audio/audio_info') in stamped
    assert ('audio_info', 'format') in plan(audio_info_topic='format')[0].remappings


@pytest.mark.parametrize('name', ['nano', 'orin_nano_8gb', 'desktop_gpu'])
def test_live_starts_with_a_preset_as_launched(graph, tiny_model_dir, name):
    (start,), preset = (
        plan(preset=name, model_dir=str(tiny_model_dir)),
        ROOT / f'config/{name}.yaml',
    )
    # No GPU here: what a preset for one says is all tried but that.
    graph.start('live', *command_line(start), '-p', 'device:=cpu')
    graph.wait_ready()
    for node, given in preset_parameters(preset).items():
        client = graph.create_client(ListParameters, f'{node}/list_parameters')
        graph.spin_until(client.service_is_ready, node)
        reply = graph.result_of(client.call_async(ListParameters.Request()), node)
        assert set(given) <= set(reply.result.names)
        graph.destroy_client(client)
    assert graph.status.context_size >= preset_parameters(preset)['llm']['n_ctx']
    assert 'unknown parameters' not in graph.processes[0].log


def test_a_preset_for_a_gpu_takes_no_cpu_in_silence(graph, tiny_model_dir):
    try:
        check_device('gpu')
    except EngineError:
        pass
    else:
        pytest.skip('llama.cpp finds a GPU')
    (start,) = plan(preset='orin_nano_8gb', model_dir=str(tiny_model_dir))
    graph.start('llm', *command_line(start))
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'the refusal'
    )
    assert 'finds no GPU' in graph.status.reason


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_no_key_that_ros_would_ignore_in_silence(preset):
    parameters = preset_parameters(preset)
    assert set(parameters) == set(NODES)
    for node, given in parameters.items():
        known = {row.name: row for row in NODES[node].PARAMETERS}
        assert set(given) <= set(known)
        for name, value in given.items():
            assert not known[name].problem(value)
            assert type(value) is type(known[name].default)


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_every_parameter_of_a_preset_says_what_it_gives_and_costs(preset):
    before = ''
    for line in preset.read_text().splitlines():
        if line.startswith('    ') and not line.strip().startswith('#'):
            assert before.strip().startswith('#'), f'{preset.name}: {line}'
        before = line
