# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The launch file and the presets.

`launch_ros` comes with a ROS 2 distribution only; there the launch file itself is run. The
other tests run everywhere what it would run: the same executables with the same arguments.
"""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import get_package_share_directory
from rcl_interfaces.srv import GetParameters, ListParameters
from rosbags.highlevel import AnyReader

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import AUDIO, IMAGE
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_clip
from minicpmo_ros.ggml.devices import Devices
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import Status
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.image_node import VisionNode
from minicpmo_ros.ros.launch.parameter_sources import ParameterSource, write
from minicpmo_ros.ros.launch.process_specs import (
    ARGUMENTS,
    REPLAY_ARGUMENTS,
    Around,
    namespace,
    process_specs,
    replay_specs,
    whole_namespace,
)
from minicpmo_ros.ros.llm_node import LlmNode

LAUNCH = """
import sys
from launch import LaunchService, LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]))])
)
raise SystemExit(service.run())
"""
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
    return process_specs(DEFAULTS | given, ROOT / 'config')


def command_line(spec):
    """Give the ROS arguments that launch_ros makes of a ProcessSpec."""
    parts = ['-r', f'__node:={spec.name}'] if spec.name else []
    for old, new in spec.remappings:
        parts += ['-r', f'{old}:={new}']
    return [*parts, '--params-file', write(spec.parameters), '--log-level', 'info']


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
        assert launched.wait(60) == 0


@pytest.mark.parametrize('name', ['live', 'replay'])
def test_a_launch_file_compiles_and_declares_what_is_documented(name):
    for path in (f'launch/{name}.launch.py', 'minicpmo_ros/ros/launch/actions.py'):
        compile((ROOT / path).read_text(), path, 'exec')
    arguments = ARGUMENTS if name == 'live' else REPLAY_ARGUMENTS
    assert 'preset' in dict(a[:2] for a in arguments) and all(a[2] for a in arguments)


@pytest.mark.parametrize('composed', ['true', 'false'])
def test_all_nodes_that_take_images_or_audio_have_the_names_that_are_given(composed):
    # The llm takes images for alerts and notes.
    started = plan(composed=composed, voice='true', image_topic='/eye/raw', audio_topic='/ear')
    assert len(started) == (1 if composed == 'true' else 4)
    wanted = {('image/compressed', '/eye/raw/compressed'), ('audio', '/ear')}
    assert all(wanted <= set(spec.remappings) for spec in started)


ROBOT = """
/**/vision_encoder: {ros__parameters: {cameras: [front, left], image.stamps: arrival}}
/**/streaming_encoder: {ros__parameters: {audio.stamps: arrival, audio.sample_rate: 48000}}
/**/llm:
  ros__parameters:
    memory: {enabled: true, path: FOLDER/notes.db, black_box_s: 60, black_box_path: FOLDER/box}
    temperature: 2.0
    autostart: false
"""


@pytest.mark.parametrize('robot', ['', ROBOT])
def test_a_replay_is_launched_asks_all_questions_and_ends(graph, tmp_path, robot):
    """Also with the parameters of a robot, of whose cameras and memory it has none."""
    clip = SHARE / 'demo' / 'clips' / '010.mcap'
    (tmp_path / 'robot.yaml').write_text(robot.replace('FOLDER', str(tmp_path)))
    given = {name: default for name, default, _ in REPLAY_ARGUMENTS}
    given |= {'namespace': graph.namespace, 'bag': str(clip), 'record': 'answers'}
    given |= {'questions': str(clip.parent / 'questions.json'), 'out': str(tmp_path / 'run')}
    given |= {'params_file': str(tmp_path / 'robot.yaml')}
    live, asking = replay_specs(given, ROOT / 'config')
    assert live.shutdown_on_exit and asking.shutdown_on_exit and not live.respawn
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
    assert not (tmp_path / 'box').exists() and not (tmp_path / 'notes.db').exists()


def told_at_s(process, words: str) -> float:
    """Give the time by which a process logged a line."""
    line = next(line for line in process.log.splitlines() if words in line)
    return float(line.split('[')[2].partition(']')[0])


def test_the_newest_seconds_are_kept_with_a_bag_or_without():
    assert 'recorder' not in [spec.executable for spec in plan()]
    for given, bag in (({}, ''), ({'record': 'a.mcap'}, 'a.mcap')):
        (recorder,) = [s for s in plan(keep='60', **given) if s.executable == 'recorder']
        assert recorder.parameters['recorder']['keep_s'] == 60.0
        assert recorder.parameters['recorder'].get('bag', '') == bag
        assert ('image', 'image') in recorder.remappings
    with pytest.raises(InputError, match='keep is .* takes a whole number'):
        plan(keep='a minute')


def test_the_images_that_are_seen_are_kept_also_of_several_cameras(tmp_path):
    file = tmp_path / 'two.yaml'
    for said, kept in ({}, 'front, left'), ({'cameras': ['left']}, ['left']):
        nodes = {'vision_encoder': {'cameras': 'front, left'}, 'recorder': said}
        file.write_text(
            yaml.dump({f'/**/{n}': {'ros__parameters': of} for n, of in nodes.items()})
        )
        *_, recorder = plan(keep='60', params_file=str(file))
        assert recorder.parameters['recorder']['cameras'] == kept


def test_playing_begins_when_all_nodes_are_ready_though_a_recorder_listens(
    graph, tiny_model_dir, tmp_path
):
    clip, bag = SHARE / 'demo' / 'clips' / '010.mcap', tmp_path / 'answers.mcap'
    plans = plan(model_dir=str(tiny_model_dir), play=str(clip), record=str(bag),
                 record_inputs='true', composed='false', image_topic='camera/front')  # fmt: skip
    # The player and the recorder first, as a quick start of theirs would have it.
    *nodes, player = [graph.start(s.executable, *command_line(s)) for s in reversed(plans)][::-1]
    graph.wait_ready()
    assert 'encoders are not in this process' in nodes[2].log  # the llm's
    graph.spin_until(lambda: 'playing /' in player.log, 'playing')
    begun_s = told_at_s(player, 'playing /')
    assert all(told_at_s(node, 'ready: ') < begun_s for node in nodes[:3])
    graph.spin_until(lambda: graph.status.units_read >= 2, 'two seconds of the clip')
    assert graph.count_publishers(f'{graph.namespace}/camera/front/compressed') == 1
    assert graph.ask('?', max_tokens=2).answer.units >= 2


def test_live_answers_are_recorded_beside_their_input(graph, tiny_model_dir, tmp_path):
    clip, bag = SHARE / 'demo' / 'clips' / '010.mcap', tmp_path / 'answers.mcap'
    started = [
        graph.start(spec.executable, *command_line(spec))
        for spec in plan(model_dir=str(tiny_model_dir), play=str(clip), record=str(bag),
                          record_inputs='true')
    ]  # fmt: skip
    graph.wait_ready()
    answers = f'{graph.namespace}/llm/answer'
    graph.spin_until(lambda: graph.count_subscribers(answers), 'the recorder')
    graph.spin_until(lambda: graph.status.units_read >= 1, 'a second of the clip')
    text = graph.ask('?', max_tokens=2).answer.text
    found, wanted = Bag(bag), {'minicpmo_ros/msg/Answer', IMAGE, AUDIO}
    graph.spin_until(
        lambda: wanted <= {message.kind for message in found.messages()},
        'the answer, images and audio in the bag',
    )
    recorder = started[1]
    assert recorder.end() == 0, recorder.log
    assert wanted <= {message.kind for message in found.messages()} and not found.losses
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
        replay_specs(given | {'limit': 'few'}, ROOT / 'config')


def test_what_the_launch_file_starts_is_a_graph_that_works(graph, tiny_model_dir):
    clip = SHARE / 'demo' / 'clips' / '010.mcap'
    specs = plan(model_dir=str(tiny_model_dir), play=str(clip), image_topic='camera/front')
    live, _ = [graph.start(spec.executable, *command_line(spec)) for spec in specs]
    graph.wait_ready()
    assert 'encoders are not in this process' not in live.log
    graph.spin_until(lambda: graph.status.units_read >= 2, 'two seconds of the clip')
    assert graph.count_publishers(f'{graph.namespace}/camera/front/compressed') == 1
    assert graph.ask('?', max_tokens=2).answer.units >= 2
    assert parameter(graph, 'vision_encoder', 'model_dir').string_value == str(tiny_model_dir)


def test_an_argument_that_is_not_given_overrides_nothing(graph, tmp_path, tiny_model_dir):
    params = tmp_path / 'mine.yaml'
    params.write_text(f'/**/llm:\n  ros__parameters:\n    model_dir: {tiny_model_dir}\n')
    (spec,) = plan(params_file=str(params))
    assert spec.parameters['llm'] == preset_parameters(ROOT / 'config/nano.yaml')['llm'] | {
        'model_dir': str(tiny_model_dir)
    }
    graph.start(spec.executable, *command_line(spec))
    graph.wait_ready()
    assert 'random-tiny' in graph.status.model
    (spec,) = plan(model_dir='7')
    assert spec.parameters['llm']['model_dir'] == '7'
    assert 'model_dir: "7"' in Path(write(spec.parameters)).read_text()


FOREIGN = 'controller_server:\n  ros__parameters:\n    gain: 0.2\n'


def test_a_params_file_of_another_leaves_the_preset_as_it_is(tmp_path):
    other = tmp_path / 'other.yaml'
    other.write_text(FOREIGN)
    (spec,), (alone,) = plan(params_file=str(other)), plan()
    assert spec.parameters == alone.parameters and spec.parameters['llm']['n_ctx']
    assert 'preset nano' in spec.told and str(other) in spec.told
    assert 'in which nothing is for these nodes' in spec.told


def test_the_nearer_source_wins_however_its_keys_are_written(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(
        '/**:\n  ros__parameters: {n_ctx: 1, threads: 2, temperature: 1e-1}\n'
        'eyes:\n  llm:\n    ros__parameters: {n_ctx: 3, qos_overrides: {/a: {publisher: '
        '{depth: 4}}}}\n'
        '/other/llm:\n  ros__parameters: {n_ctx: 5}\n'
    )
    around = Around(
        (
            ParameterSource(
                'the including launch file', values=(('n_ctx', 2), ('kv_type', 'q8_0'))
            ),
            ParameterSource('the including launch file', values=(('use_sim_time', True),)),
        ),
        '/robot',
    )
    given = DEFAULTS | {'params_file': str(file), 'namespace': 'eyes', 'play': 'clip.mp4'}
    config = ROOT / 'config'
    live, player = process_specs(given, config, around)
    llm = live.parameters['llm']
    assert llm['n_ctx'] == 1 and llm['kv_type'] == 'q8_0' and llm['temperature'] == 0.1
    assert llm['use_sim_time'] is True and player.parameters['media_player']['publish_clock']
    assert 'use_sim_time' in live.told and 'kv_type' in live.told
    live, _ = process_specs(given, config, replace(around, namespace=''))
    assert live.parameters['llm']['n_ctx'] == 3
    assert live.parameters['llm']['qos_overrides./a.publisher.depth'] == 4
    assert live.parameters['vision_encoder']['threads'] == 2
    live, player = process_specs(given | {'use_sim_time': 'false'}, config, around)
    assert live.parameters['llm']['use_sim_time'] is False
    assert not player.parameters['media_player']['publish_clock']
    assert (
        process_specs(given | {'autostart': 'false'}, config)[0].parameters['llm']['autostart']
        is False
    )


def test_a_node_gets_what_was_resolved(graph, tiny_model_dir, tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('/**:\n  ros__parameters: {n_ctx: 2048, autostart: false, seed: 7}\n')
    (spec,) = plan(params_file=str(file), model_dir=str(tiny_model_dir))
    graph.start(spec.executable, *command_line(spec))
    assert parameter(graph, 'llm', 'n_ctx').integer_value == 2048  # the preset has it for /**/llm
    assert parameter(graph, 'llm', 'seed').integer_value == 7
    assert parameter(graph, 'vision_encoder', 'model_dir').string_value == str(tiny_model_dir)
    assert graph.lifecycle_state('vision_encoder') == 'unconfigured'


@pytest.mark.parametrize('text', ['/**:\n\tllm: 1', 'llm', 'llm: 5', '/**:\n ros__parameters: 5'])
def test_a_file_of_parameters_that_is_none_is_refused_in_words(tmp_path, text):
    file = tmp_path / 'wrong.yaml'
    file.write_text(text)
    with pytest.raises(InputError, match='is no file of ROS parameters'):
        plan(params_file=str(file))
    with pytest.raises(InputError, match='is no file of ROS parameters'):
        plan(params_file=str(tmp_path / 'none.yaml'))


BRINGUP = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace, SetParameter

def tell(context):
    print('left behind:', sorted(set(context.launch_configurations) - {OWN}))

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('params_file', default_value='{other}'),
        DeclareLaunchArgument('namespace', default_value='{namespace}'),
        PushRosNamespace('{namespace}'),
        SetParameter('use_sim_time', True),
        SetParameter('n_ctx', 2048),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource('{live}'),
            launch_arguments={'model_dir': '{model}'}.items(),
        ),
        OpaqueFunction(function=tell),
    ])
"""


def test_a_bringup_with_arguments_of_its_own_includes_the_launch_file(
    graph, tiny_model_dir, tmp_path
):
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS 2 distribution')
    other, bringup = tmp_path / 'other.yaml', tmp_path / 'bringup.launch.py'
    other.write_text(FOREIGN)
    text = BRINGUP
    for name, value in {
        'other': other, 'live': SHARE / 'launch/live.launch.py', 'model': tiny_model_dir,
        'namespace': graph.namespace,
    }.items():  # fmt: skip
        text = text.replace(f'{{{name}}}', str(value))
    own = {'params_file', 'namespace', 'ros_namespace', 'global_params', 'model_dir'}
    bringup.write_text(text.replace('{OWN}', repr(own)))
    command = [sys.executable, '-c', LAUNCH, str(bringup)]
    log = open(tmp_path / 'launch.log', 'w+')
    launched = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
    try:
        graph.wait_ready()  # in the namespace once, not twice
        assert parameter(graph, 'llm', 'n_ctx').integer_value == 2048
        assert parameter(graph, 'llm', 'use_sim_time').bool_value
        assert parameter(graph, 'vision_encoder', 'model_dir').string_value == str(tiny_model_dir)
    finally:
        launched.send_signal(signal.SIGINT)
        assert launched.wait(60) == 0
    said = (tmp_path / 'launch.log').read_text()
    assert 'left behind: []' in said
    assert f'params_file ({other}, in which nothing is for these nodes)' in said
    assert 'the including launch file (n_ctx)' in said


def test_what_cannot_be_launched_is_refused_in_words():
    with pytest.raises(InputError, match="no preset 'big'; there are: .*nano"):
        plan(preset='big')
    with pytest.raises(InputError, match="composed is 'maybe'; it takes true or false"):
        plan(composed='maybe')


@pytest.mark.parametrize(
    'given',
    (
        {'image_topic': 'image raw'}, {'image_topic': '/cam-1/image'}, {'image_topic': '1cam'},
        {'audio_topic': '/mic/'}, {'audio_info_topic': 'a//b'}, {'namespace': 'my robot'},
        {'namespace': 'robot/1'}, {'namespace': '~'}, {'log_level': 'warning'}, {'log_level': ''},
    ),
)  # fmt: skip
def test_a_name_with_which_no_process_would_start_is_refused(given):
    ((name, value),) = given.items()
    with pytest.raises(InputError, match=f'{name} is {re.escape(repr(value))}; it '):
        plan(**given)


def test_names_are_taken_as_they_are_meant(tmp_path, monkeypatch):
    inputs = dict(plan(image_topic='/camera/image_raw/compressed', audio_topic='')[0].remappings)
    assert inputs == dict(plan(image_topic='/camera/image_raw')[0].remappings)
    assert inputs['image/compressed'] == '/camera/image_raw/compressed'
    found = {text: namespace(DEFAULTS | {'namespace': text}) for text in ('', '/', 'a/', '/a//b/')}
    assert found == {'': '', '/': '', 'a/': 'a', '/a//b/': '/a/b'}
    for text, whole in (('', '/push/ed'), ('a', '/push/ed/a'), ('/a', '/a')):
        given = DEFAULTS | {'namespace': text}
        assert whole_namespace(given, Around(namespace='/push/ed')) == whole
    assert whole_namespace(DEFAULTS, Around()) == ''
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.yaml').write_text('/**/llm:\n  ros__parameters:\n    n_ctx: 2048\n')
    assert plan(params_file='~/mine.yaml')[0].parameters['llm']['n_ctx'] == 2048


def test_what_runs_beside_the_nodes_takes_what_a_file_says_of_it_alone(tmp_path):
    said = {
        'recorder': {'keep_mib': 99, 'keep_s': 9.0, 'inputs': True},
        'speaker': {'device': 'default'},  # a loudspeaker; that of the others computes
        'web': {'port': 8081},
        'media_player': {'loop': True},
    }
    file = tmp_path / 'mine.yaml'
    everywhere = {'/**': {'device': 'cpu', 'use_sim_time': True}}
    sections = {**everywhere, **{f'/**/{name}': values for name, values in said.items()}}
    file.write_text(yaml.dump({key: {'ros__parameters': of} for key, of in sections.items()}))
    asked = dict(keep='60', speaker='true', web='true', play='clip.mp4')
    live, *beside = plan(params_file=str(file), **asked)
    assert live.parameters['llm']['device'] == 'cpu' and set(live.parameters) == set(NODES)
    got = {spec.name: spec.parameters[spec.name] for spec in beside}
    assert got['recorder'] == {**said['recorder'], 'keep_s': 60.0, 'use_sim_time': True}
    assert got['speaker'] == {**said['speaker'], 'use_sim_time': True}
    assert got['web'] == {**said['web'], 'use_sim_time': True}
    assert got['media_player'].items() >= {'loop': True, 'publish_clock': True}.items()
    assert 'device' not in got['media_player'] and 'use_sim_time' not in got['media_player']


def test_what_is_said_of_one_beside_the_nodes_reaches_it_though_it_is_said_of_all_too(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(
        '/**/speaker: {ros__parameters: {autostart: false, device: default}}\n'
        '/**: {ros__parameters: {device: cpu, watchdog: 9.0}}\n'
    )
    live, speaker, web = plan(params_file=str(file), autostart='false', speaker='true', web='true')
    assert live.parameters['llm']['autostart'] is False
    said = {'autostart': False, 'device': 'default', 'use_sim_time': False}
    assert speaker.parameters['speaker'] == said
    assert web.parameters['web'] == {'use_sim_time': False}


def test_only_what_plays_without_a_robot_makes_time():
    *_, player = plan(play='clip.mp4', use_sim_time='true')
    assert player.executable == 'media_player' and not player.respawn
    assert player.parameters['media_player']['publish_clock'] is True
    assert all(spec.respawn for spec in plan(composed='false'))
    assert ('audio_info', 'mic_info') in plan(audio_topic='mic')[0].remappings
    stamped = plan(audio_topic='/audio/audio_stamped')[0].remappings  # audio_capture's names
    assert ('audio_info', '/audio/audio_info') in stamped
    assert ('audio_info', 'format') in plan(audio_info_topic='format')[0].remappings


def test_a_camera_and_a_microphone_without_a_driver_are_read_beside_the_nodes(tmp_path):
    file, url = tmp_path / 'camera.yaml', 'rtsp://camera/live'
    file.write_text('/**/media_capture:\n  ros__parameters:\n    transport: udp\n')
    asked = {'source': url, 'microphone': 'default', 'image_topic': 'front'}
    live, capture = plan(**asked, params_file=str(file), model_dir='nano')
    assert capture.executable == 'media_capture' and set(live.parameters) == set(NODES)
    assert capture.parameters['media_capture'] == {
        'transport': 'udp', 'source': url, 'microphone': 'default', 'use_sim_time': False
    }  # fmt: skip
    assert ('image/compressed', 'front/compressed') in capture.remappings
    with pytest.raises(InputError, match='play and source are given'):
        plan(source=url, play='clip.mp4')


@pytest.mark.parametrize('name', ['orin_nano_8gb', 'desktop_gpu'])  # all others start with nano's
def test_live_starts_with_a_preset_as_launched(graph, tiny_model_dir, name):
    (spec,), preset = (
        plan(preset=name, model_dir=str(tiny_model_dir)),
        ROOT / f'config/{name}.yaml',
    )
    # No GPU here: what a preset for one says is all tried but that.
    graph.start('live', *command_line(spec), '-p', 'device:=cpu')
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
        Devices('gpu')
    except EngineError:
        pass
    else:
        pytest.skip('llama.cpp finds a GPU')
    (spec,) = plan(preset='orin_nano_8gb', model_dir=str(tiny_model_dir))
    graph.start('llm', *command_line(spec))
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


@pytest.mark.parametrize('composed', ['true', 'false'])
def test_several_robots_are_refused_where_one_robots_encoders_are_started(tmp_path, composed):
    path = tmp_path / 'robots.yaml'
    given = {'model_dir': 'nano', 'robots': ['a', 'b']}
    path.write_text(yaml.safe_dump({'/**/llm': {'ros__parameters': given}}))
    with pytest.raises(InputError, match=r"robots is \['a', 'b'\].*Start executable llm"):
        plan(params_file=str(path), composed=composed)
    path.write_text(yaml.safe_dump({'/**/llm': {'ros__parameters': given | {'robots': ['']}}}))
    assert plan(params_file=str(path), composed=composed)
