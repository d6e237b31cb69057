# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The processes that the launch files start, as plain data: executable, parameters, remappings.

Every decision of a launch file is made here, where it can be tested without `launch`, which only
a ROS 2 distribution has.

Parameters come from these sources, and later ones win: the preset, the including launch file
(SetParameter), `params_file`, the given arguments. In `launch`, an argument takes the value of an
including file's argument of the same name; so a `params_file` meant for other nodes must not
replace the preset (parameter_sources.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.config import NODES
from minicpmo_ros.errors import InputError
from minicpmo_ros.ros.launch.parameter_sources import ParameterSource, resolve

# Name, default, description. An argument left empty is not given: it overrides nothing.
ARGUMENTS = (
    ('preset', 'nano', 'Name of a preset, a YAML file in share/minicpmo_ros/config'),
    (
        'model_dir',
        '',
        'Model directory, or the name of a model that ships with the package; empty: as in the '
        'preset',
    ),
    ('params_file', '', 'YAML file of parameters that override those of the preset'),
    ('namespace', '', 'Namespace of all nodes'),
    ('use_sim_time', '', 'Take time from /clock; empty: as an including launch file sets it'),
    ('autostart', '', 'Nodes configure and activate themselves; false: a lifecycle manager does'),
    ('log_level', 'info', 'debug, info, warn, error'),
    (
        'composed',
        'true',
        'One process (true) or three (false), which do not let live seconds go before an answer',
    ),
    ('respawn', 'true', 'Restart a node that has ended'),
    ('voice', 'false', 'Also run node voice, so that a spoken question is answered'),
    (
        'image_topic',
        'image',
        'Topic of the camera; compressed images are expected on this name with /compressed',
    ),
    ('audio_topic', 'audio', 'Topic of the microphone'),
    (
        'audio_info_topic',
        '',
        'Topic with the format of the audio; empty: x_info for audio_topic x or x_stamped',
    ),
    ('play', '', 'A file to play as camera and microphone'),
    (
        'source',
        '',
        'A camera to read that has no ROS driver: rtsp://HOST/PATH, or a device such as '
        '/dev/video0 (docs/cameras.md)',
    ),
    (
        'microphone',
        '',
        'A microphone of this machine to read: default, or a name or number of python -m '
        'sounddevice',
    ),
    ('record', '', 'A bag to write the answers to, such as answers.mcap'),
    ('record_inputs', 'false', 'Also record images and audio'),
    ('keep', '0', 'So many newest seconds are kept in memory for recorder/save_bag; 0: none'),
    ('speaker', 'false', 'Also run node speaker, which says the answers aloud (docs/speaker.md)'),
    ('web', 'false', 'Also serve the page that shows what is seen and heard (docs/web.md)'),
)
REPLAY_ARGUMENTS = (
    ('questions', '', 'Questions, JSON or YAML'),
    (
        'bag',
        '',
        'Folder of the bags, or a single bag to ask about; empty: the folder of the questions',
    ),
    ('image_topic', '', 'The camera, if a bag has several'),
    ('audio_topic', '', 'The microphone, if a bag has several'),
    (
        'audio_channel',
        '',
        'mean of the channels of the audio, or the number of one channel, counted from 0',
    ),
    ('audio_format', '', 'Format of raw audio in a bag without AudioInfo, such as 16000,1,S16LE'),
    ('out', 'replay', 'Folder of the run; an existing run is continued'),
    ('limit', '0', 'Ask only this many questions; 0: all'),
    ('input', 'all', 'Inputs the model gets: all, no_picture, no_sound'),
    ('max_tokens', '16', 'The longest answer'),
    ('record', '', 'Write bags into the folder: answers, or all'),
    ('preset', 'nano', 'Name of a preset, a YAML file in share/minicpmo_ros/config'),
    (
        'model_dir',
        '',
        'Model directory, or the name of a model that ships with the package; empty: as in the '
        'preset',
    ),
    ('params_file', '', 'YAML file of parameters that override those of the preset'),
    ('namespace', 'replay', 'Namespace of all nodes'),
    ('log_level', 'info', 'debug, info, warn, error'),
)
# Of simulated time, in a replay: longer than it ever goes on while a second is waited for.
UNIT_DEADLINE_S = 5.0
# What a replay has otherwise than the robot whose parameters it takes: it plays one camera and
# one microphone with the recording's stamps, and keeps no memory of what it plays.
REPLAYED = {
    'llm': {'unit_deadline': UNIT_DEADLINE_S, 'wait_for': 'both', 'memory.enabled': False,
            'memory.black_box_s': 0, 'alerts.file': '', 'alerts.persist': False},
    'vision_encoder': {'cameras': '', 'image_transport': 'compressed', 'image.stamps': 'header'},
    'streaming_encoder': {'audio.stamps': 'header', 'audio.sample_rate': 0,
                          'audio.channel': 'mean'},
}  # fmt: skip
EMBEDDINGS = (
    ('audio_embedding', 'streaming_encoder/embedding'),
    ('image_embedding', 'vision_encoder/embedding'),
    ('read_audio', 'streaming_encoder/read_audio'),
    ('look', 'vision_encoder/look'),
)
PLAYER = 'media_player'
NAME = re.compile(r'/?[a-z_]\w*(/[a-z_]\w*)*', re.ASCII | re.IGNORECASE)
NAMES = 'it takes letters, digits and _, no digit first, with / between the parts'
LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


@dataclass(frozen=True)
class ProcessSpec:
    """One process: an executable and what it is given."""

    executable: str
    parameters: dict  # {node: {name: value}}
    remappings: tuple  # of (name in the node, name in the graph)
    name: str | None = None  # None: the executable's own; `live` has three and takes no name
    respawn: bool = False
    shutdown_on_exit: bool = False  # when it ends, the launch ends
    arguments: tuple = ()  # of the executable, beside those of ROS
    told: str = ''  # where its parameters come from


@dataclass(frozen=True)
class Around:
    """What an including launch file has set."""

    parameters: tuple = ()  # Sources
    namespace: str = ''  # pushed


def process_specs(given: dict, config: Path, around: Around = Around()) -> tuple:
    """Return the ProcessSpecs for launch arguments {name: text}, all of ARGUMENTS.

    `config`: the folder of presets.

    Raises InputError if the preset does not exist, a boolean is neither true nor false, or a name
    is none.
    """
    require_level(given)
    inputs = input_names(given)
    own = {name: boolean(given, name) for name in ('use_sim_time', 'autostart') if given[name]}
    common = dict(respawn=boolean(given, 'respawn'))
    voices = ('voice',) * boolean(given, 'voice')
    beside = dict(_beside(given, NODES + voices))
    parameters, told = parameters_of(given, config, around, own, NODES + voices, tuple(beside))
    _refuse_robots(parameters['llm'])
    alone = {name: parameters.pop(name) for name in beside}
    if cameras := parameters['vision_encoder'].get('cameras'):
        alone.get('recorder', {}).setdefault('cameras', cameras)  # those that are seen
    common['told'] = told
    if boolean(given, 'composed'):
        arguments = tuple(f'--{name}' for name in voices)
        nodes = (ProcessSpec('live', parameters, inputs, arguments=arguments, **common),)
    else:
        # The llm has images, too: for the pictures of alerts and of notes.
        remappings = (inputs, inputs, (*EMBEDDINGS, *inputs), inputs)
        nodes = tuple(
            ProcessSpec(name, {name: parameters[name]}, names, name=name, **common)
            for name, names in zip(NODES + voices, remappings)
        )
    use_sim_time = bool(parameters['llm'].get('use_sim_time', False))
    for name, values in beside.items():
        # Simulated time comes from the one who plays.
        of_time = 'publish_clock' if name == PLAYER else 'use_sim_time'
        merged = {**alone[name], **values, of_time: use_sim_time}
        nodes += (ProcessSpec(name, {name: merged}, inputs, name),)
    return nodes


def _refuse_robots(of_llm: dict) -> None:
    """Raise InputError where several robots are named."""
    if any(robots := of_llm.get('robots') or ()):
        raise InputError(
            f'robots is {robots!r}, and this launch file starts the nodes of one robot, which '
            'encode, too. Start executable llm with it, and the encoders of each robot in its '
            'namespace (docs/robots.md); or leave robots empty'
        )


def input_names(given: dict) -> tuple:
    """Return the remappings of camera and microphone."""
    audio, image = topic(given, 'audio_topic'), topic(given, 'image_topic')
    image = image.removesuffix('/compressed')
    return (
        ('image', image),
        ('image/compressed', f'{image}/compressed'),
        ('audio', audio),
        ('audio_info', topic(given, 'audio_info_topic') or info_topic(audio)),
    )


def _beside(given: dict, nodes: tuple) -> Iterator[tuple]:
    """Yield (name, parameters that are given) of all that is wanted beside the `nodes`."""
    keep_s = whole_number(given, 'keep')
    if given['record'] or keep_s:
        kept = {
            'bag': given['record'],
            'inputs': boolean(given, 'record_inputs'),
            'keep_s': float(keep_s),
        }
        yield 'recorder', {name: value for name, value in kept.items() if value}
    for name in ('speaker', 'web'):
        if boolean(given, name):
            yield name, {}
    senses = {name: given[name] for name in ('source', 'microphone') if given[name]}
    if senses and given['play']:
        raise InputError(
            f'play and {" and ".join(senses)} are given, and both are camera or microphone; give '
            'only one of them'
        )
    if senses:
        yield 'media_capture', senses
    if given['play']:
        yield (
            PLAYER,
            {
                'file': given['play'],
                'wait_for_subscribers': True,
                'wait_for_nodes': ','.join(nodes),
            },
        )


def replay_specs(given: dict, config: Path, around: Around = Around()) -> tuple:
    """Return the ProcessSpecs for launch arguments {name: text}, all of REPLAY_ARGUMENTS.

    Raises InputError if the preset does not exist or a number is none.
    """
    require_level(given)
    own = {'use_sim_time': True, 'autostart': True}
    own.update(reliable_input_overrides(whole_namespace(given, around)))
    parameters, told = parameters_of(given, config, around, own)
    for node, values in REPLAYED.items():
        parameters[node].update(values)
    clock = ('/clock', 'clock')  # the time is of this run alone
    texts = ('questions', 'bag', 'image_topic', 'audio_topic', 'audio_channel',
             'audio_format', 'out', 'input', 'record')  # fmt: skip
    asked = {name: given[name] for name in texts if given[name]}
    asked.update({name: whole_number(given, name) for name in ('limit', 'max_tokens')})
    return (
        ProcessSpec('live', parameters, (clock,), shutdown_on_exit=True, told=told),
        ProcessSpec('replay', {'replay': asked}, (clock,), name='replay', shutdown_on_exit=True),
    )


def reliable_input_overrides(namespace: str) -> dict:
    """Return the parameters with which `live` in a namespace loses no input."""
    policies = {'image/compressed': {'depth': 20, 'reliability': 'reliable'}}
    policies['audio'] = {'reliability': 'reliable'}
    return {
        f'qos_overrides.{namespace}/{topic}.subscription.{name}': value
        for topic, of_topic in policies.items()
        for name, value in of_topic.items()
    }


def info_topic(audio_topic: str) -> str:
    """Return the topic of a microphone's AudioInfo, named as audio_capture does."""
    return audio_topic.removesuffix('_stamped') + '_info'


def whole_number(given: dict, name: str) -> int:
    """Return the value of a launch argument that is a whole number."""
    if not given[name].isdigit():
        raise InputError(f'{name} is {given[name]!r}; it takes a whole number')
    return int(given[name])


def parameters_of(
    given: dict, config: Path, around: Around, own: dict, names: tuple = NODES, beside: tuple = ()
) -> tuple:
    """Return ({node: {parameter: value}} of these nodes, a sentence on their sources).

    What is said of all nodes is of models and devices: those `beside` do not take it.
    """
    if given['model_dir']:
        own = {**own, 'model_dir': given['model_dir']}
    sources = [
        ParameterSource(f'preset {given["preset"]}', preset_path(given, config)),
        *around.parameters,
    ]
    if given['params_file']:
        sources.append(ParameterSource('params_file', given['params_file']))
    if own:
        sources.append(ParameterSource('arguments', values=tuple(own.items())))
    nodes = {name: f'{whole_namespace(given, around)}/{name}' for name in names + beside}
    told = ', then '.join(source.told(nodes) for source in sources)
    return resolve(sources, nodes, beside), f'parameters of {told}; the later ones win'


def whole_namespace(given: dict, around: Around) -> str:
    """Return the namespace of the nodes, such as /robot/eyes; '' for the root."""
    own = namespace(given)
    return own if own.startswith('/') else f'{_joined(f"/{around.namespace}")}/{own}'.rstrip('/')


def namespace(given: dict) -> str:
    """Return the launch argument of that name, as ROS takes it: without a slash too many."""
    name = _joined(given['namespace'])
    if name and not NAME.fullmatch(name):
        raise InputError(f'namespace is {given["namespace"]!r}; {NAMES}, such as robot1')
    return name


def _joined(name: str) -> str:
    """Return a name without empty parts."""
    parts = '/'.join(filter(None, name.split('/')))
    return f'/{parts}' if name.startswith('/') and parts else parts


def topic(given: dict, name: str) -> str:
    """Return the launch argument that is a topic, by default where it is empty."""
    found = given[name] or next(default for known, default, _ in ARGUMENTS if known == name)
    if found and not NAME.fullmatch(found.removeprefix('~')):
        raise InputError(f'{name} is {found!r}; {NAMES}, such as /camera/image_raw')
    return found


def require_level(given: dict) -> None:
    """Raise InputError where log_level is none."""
    if given['log_level'].rpartition(':=')[2].lower() not in LEVELS:
        raise InputError(f'log_level is {given["log_level"]!r}; it is one of {", ".join(LEVELS)}')


def preset_path(given: dict, config: Path) -> str:
    """Return the path of a preset's file."""
    path = config / f'{given["preset"]}.yaml'
    if not path.is_file():
        names = ', '.join(sorted(p.stem for p in config.glob('*.yaml')))
        raise InputError(f'there is no preset {given["preset"]!r}; there are: {names}')
    return str(path)


def boolean(given: dict, name: str) -> bool:
    """Return the value of a launch argument that is true or false."""
    try:
        return BOOLEANS[given[name].lower()]
    except KeyError:
        raise InputError(f'{name} is {given[name]!r}; it takes true or false') from None
