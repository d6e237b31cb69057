# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The processes that the launch files start, as plain data: executable, parameters, remappings.

Every decision of a launch file is made here, where it can be tested without `launch`, which only
a ROS 2 distribution has.

Parameters come from these sources, and later ones win: the preset, the including launch file
(SetParameter), `params_file`, the given arguments. In `launch`, an argument takes the value of an
including file's argument of the same name; so a `params_file` meant for other nodes must not
replace the preset.

Given several files, rcl does not go by their order but by that of their keys: what a preset says
for /**/llm goes before what any other file, or a -p, says for /**, once a key /** has come before.
So a launch resolves what holds for each of its nodes itself, and each process gets one file.
"""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from minicpmo_ros.config import NODES
from minicpmo_ros.documents import parse_yaml
from minicpmo_ros.errors import InputError

PARAMETERS = 'ros__parameters'
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
EMBEDDINGS = (
    ('audio_embedding', 'streaming_encoder/embedding'),
    ('image_embedding', 'vision_encoder/embedding'),
    ('read_audio', 'streaming_encoder/read_audio'),
    ('look', 'vision_encoder/look'),
)
BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


@dataclass(frozen=True)
class ParameterSource:
    """Where parameters come from: a file, or values that hold for every node."""

    name: str  # as it is told
    path: str = ''
    values: tuple = ()  # of (name, value)

    def told(self, nodes: dict) -> str:
        """Return what it is and, of a file, whether it says anything for these nodes."""
        if not self.path:
            return f'{self.name} ({", ".join(name for name, _ in self.values)})'
        is_used = any(self.of(fqn) for fqn in nodes.values())
        nothing = '' if is_used else ', in which nothing is for these nodes'
        return f'{self.name} ({self.path}{nothing})'

    def of(self, fqn: str) -> dict:
        """Return {parameter: value} of a node, by its whole name."""
        found = dict(self.values)
        for pattern, values in _read(self.path) if self.path else ():
            if _matches(pattern, fqn):
                found.update(values)
        return found


def resolve(sources, nodes: dict) -> dict:
    """Return {name: {parameter: value}} for nodes {name: whole name}; the later sources win."""
    return {
        name: {key: value for source in sources for key, value in source.of(fqn).items()}
        for name, fqn in nodes.items()
    }


def write(parameters: dict) -> str:
    """Write {node: {parameter: value}} as a file for rcl, and give its path; /tmp keeps it."""
    sections = {
        f'/**/{node}': {PARAMETERS: {name: _quoted(value) for name, value in values.items()}}
        for node, values in parameters.items()
        if values
    }
    text = yaml.dump(sections or {'/**': {PARAMETERS: {}}}, Dumper=_Dumper)
    with tempfile.NamedTemporaryFile(
        'w', prefix='minicpmo_ros_', suffix='.yaml', delete=False, encoding='utf-8'
    ) as file:
        file.write(text)
    return file.name


def _read(path: str) -> list:
    """Return [(pattern of a node's name, {parameter: value})] in the order of the file."""
    try:
        record = parse_yaml(Path(path).read_text(encoding='utf-8'), _Loader) or {}
        return list(_sections(record, ''))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is no file of ROS parameters ({" ".join(str(error).split())}); expected is '
            f'/**/llm: with {PARAMETERS}: below it'
        ) from None


def _sections(record: dict, prefix: str):
    for key, value in record.items():
        if key == PARAMETERS:
            yield prefix or '/', dict(_flat(value or {}, ''))
        else:
            yield from _sections(value, f'{prefix}/{str(key).strip("/")}')


def _flat(values: dict, prefix: str):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{key}.')
        elif value is not None:
            yield f'{prefix}{key}', value


def _matches(pattern: str, fqn: str) -> bool:
    """Return whether a key of a file is for a node: * is one part of a name, ** any number."""
    parts = [re.escape(part) for part in pattern.strip('/').split('/')]
    wild = {r'\*': r'/\w+', r'\*\*': r'(/\w+)*'}
    return bool(re.fullmatch(''.join(wild.get(part, f'/{part}') for part in parts), fqn))


class _Text(str):
    """Is quoted, or rcl would make a number of the text 7."""


class _Dumper(yaml.SafeDumper):
    pass


class _Loader(yaml.SafeLoader):
    pass


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='"')
)
# 1e-3 is a number for rcl.
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+[eE][-+]?[0-9]+$'), list('-+0123456789')
)


def _quoted(value):
    if isinstance(value, str):
        return _Text(value)
    return [_quoted(item) for item in value] if isinstance(value, list | tuple) else value


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

    Raises InputError if the preset does not exist or a boolean is neither true nor false.
    """
    inputs = (
        ('image', given['image_topic']),
        ('image/compressed', given['image_topic'] + '/compressed'),
        ('audio', given['audio_topic']),
        ('audio_info', given['audio_info_topic'] or info_topic(given['audio_topic'])),
    )
    own = {name: boolean(given, name) for name in ('use_sim_time', 'autostart') if given[name]}
    common = dict(respawn=boolean(given, 'respawn'))
    voices = ('voice',) * boolean(given, 'voice')
    parameters, told = parameters_of(given, config, around, own, NODES + voices)
    common['told'] = told
    if boolean(given, 'composed'):
        arguments = tuple(f'--{name}' for name in voices)
        nodes = (ProcessSpec('live', parameters, inputs, arguments=arguments, **common),)
    else:
        nodes = tuple(
            ProcessSpec(name, {name: parameters[name]}, names, name=name, **common)
            for name, names in zip(NODES + voices, (inputs, inputs, EMBEDDINGS, inputs))
        )
    use_sim_time = bool(parameters['llm'].get('use_sim_time', False))
    return nodes + tuple(
        ProcessSpec(name, {name: values}, inputs, name=name)
        for name, values in _beside(given, use_sim_time, NODES + voices)
    )


def _beside(given: dict, use_sim_time: bool, nodes: tuple) -> Iterator[tuple]:
    """Yield (name, parameters) of recorder, speaker, page and player, as far as wanted."""
    keep_s = whole_number(given, 'keep')
    if given['record'] or keep_s:
        yield (
            'recorder',
            {
                'bag': given['record'],
                'inputs': boolean(given, 'record_inputs'),
                'keep_s': float(keep_s),
                'use_sim_time': use_sim_time,
            },
        )
    if boolean(given, 'speaker'):
        yield 'speaker', {'use_sim_time': use_sim_time}
    if boolean(given, 'web'):
        yield 'web', {'use_sim_time': use_sim_time}
    if given['play']:
        yield (
            'media_player',
            {
                'file': given['play'],
                'wait_for_subscribers': True,
                'wait_for_nodes': ','.join(nodes),
                'publish_clock': use_sim_time,  # simulated time comes from the one who plays
            },
        )


def replay_specs(given: dict, config: Path, around: Around = Around()) -> tuple:
    """Return the ProcessSpecs for launch arguments {name: text}, all of REPLAY_ARGUMENTS.

    Raises InputError if the preset does not exist or a number is none.
    """
    own = {'use_sim_time': True, 'unit_deadline': UNIT_DEADLINE_S, 'wait_for': 'both'}
    own.update(reliable_input_overrides(whole_namespace(given, around)))
    parameters, told = parameters_of(given, config, around, own)
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
    given: dict, config: Path, around: Around, own: dict, names: tuple = NODES
) -> tuple:
    """Return ({node: {parameter: value}} of these nodes, a sentence on their sources)."""
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
    nodes = {name: f'{whole_namespace(given, around)}/{name}' for name in names}
    told = ', then '.join(source.told(nodes) for source in sources)
    return resolve(sources, nodes), f'parameters of {told}; the later ones win'


def whole_namespace(given: dict, around: Around) -> str:
    """Return the namespace of the nodes, such as /robot/eyes; '' for the root."""
    parts = f'{around.namespace}/{given["namespace"]}'.split('/')
    return ''.join(f'/{part}' for part in parts if part)


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
