# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the launch files start, as plain data: which executables, parameters and remappings.

All that a launch file decides is decided here, where it can be tested without `launch`, which
comes with a ROS 2 distribution only.
"""

from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.errors import InputError

# Name, default, description. An argument left empty is not given: it overrides nothing.
ARGUMENTS = (
    ('preset', 'nano', 'Name of a YAML in share/minicpmo_ros/config'),
    ('model_dir', '', 'Model directory, or the name of an embedded model; empty: of the preset'),
    ('params_file', '', 'YAML of parameters instead of a preset'),
    ('namespace', '', 'Namespace of all nodes'),
    ('use_sim_time', 'false', 'Time comes from /clock'),
    ('log_level', 'info', 'debug, info, warn, error'),
    ('composed', 'true', 'One process (true) or three (false)'),
    ('respawn', 'true', 'Start a node again that ended'),
    ('image_topic', 'image', 'Camera; compressed pictures on this name with /compressed'),
    ('audio_topic', 'audio', 'Microphone'),
    ('audio_info_topic', '', 'Format of the sound; empty: x_info for audio_topic x or x_stamped'),
    ('play', '', 'A file to play as camera and microphone'),
    ('record', '', 'A bag to write the answers to, such as answers.mcap'),
    ('record_inputs', 'false', 'Write pictures and sound to it, too'),
)
REPLAY_ARGUMENTS = (
    ('questions', '', 'Questions, JSON or YAML'),
    ('bag', '', 'A folder of bags, or a single one to ask about; empty: beside the questions'),
    ('image_topic', '', 'Of a bag with several cameras'),
    ('audio_topic', '', 'Of a bag with several microphones'),
    ('out', 'replay', 'Folder of the run; a run that is there is gone on with'),
    ('limit', '0', 'Ask only the first so many; 0: all'),
    ('input', 'all', 'Senses given: all, no_picture, no_sound'),
    ('max_tokens', '16', 'Of an answer'),
    ('record', '', 'Write into bags in the folder: answers, or all'),
    ('preset', 'nano', 'Name of a YAML in share/minicpmo_ros/config'),
    ('model_dir', '', 'Model directory, or the name of an embedded model; empty: of the preset'),
    ('params_file', '', 'YAML of parameters instead of a preset'),
    ('namespace', 'replay', 'Namespace of all nodes'),
    ('log_level', 'info', 'debug, info, warn, error'),
)
# Of simulated time, in a replay: longer than it ever goes on while a second is waited for.
UNIT_DEADLINE_S = 5.0
EMBEDDINGS = (
    ('audio_embedding', 'streaming_encoder/embedding'),
    ('image_embedding', 'vision_encoder/embedding'),
)
BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


@dataclass(frozen=True)
class Start:
    """One process: an executable and what it is given, parameters in the order of their weight."""

    executable: str
    parameters: tuple  # of files (str) and of {name: value}; the later ones win
    remappings: tuple  # of (name in the node, name in the graph)
    name: str | None = None  # None: the executable's own; `live` has three and takes no name
    respawn: bool = False
    ends_all: bool = False  # its end is the end of the launch


def starts(given: dict, config: Path) -> tuple:
    """Give the Starts for launch arguments {name: text}, all of ARGUMENTS; `config` has presets.

    Raises InputError on a preset that is not there, and on what is neither true nor false.
    """
    use_sim_time = boolean(given, 'use_sim_time')
    inputs = (
        ('image', given['image_topic']),
        ('image/compressed', given['image_topic'] + '/compressed'),
        ('audio', given['audio_topic']),
        ('audio_info', given['audio_info_topic'] or info_topic(given['audio_topic'])),
    )
    own = {'use_sim_time': use_sim_time}
    if given['model_dir']:
        own['model_dir'] = given['model_dir']
    common = dict(parameters=(params_file(given, config), own), respawn=boolean(given, 'respawn'))
    if boolean(given, 'composed'):
        nodes = (Start('live', remappings=inputs, **common),)
    else:
        nodes = (
            Start('streaming_encoder', remappings=inputs, name='streaming_encoder', **common),
            Start('vision_encoder', remappings=inputs, name='vision_encoder', **common),
            Start('llm', remappings=EMBEDDINGS, name='llm', **common),
        )
    if given['record']:
        taping = {
            'bag': given['record'],
            'inputs': boolean(given, 'record_inputs'),
            'use_sim_time': use_sim_time,
        }
        nodes += (Start('recorder', (taping,), inputs, name='recorder'),)
    if not given['play']:
        return nodes
    # The one who plays is where simulated time comes from.
    playing = {
        'file': given['play'],
        'wait_for_subscribers': True,
        'publish_clock': use_sim_time,
    }
    return (*nodes, Start('media_player', (playing,), inputs, name='media_player'))


def replay_starts(given: dict, config: Path) -> tuple:
    """Give the Starts for launch arguments {name: text}, all of REPLAY_ARGUMENTS.

    Raises InputError on a preset that is not there, and on what is no number.
    """
    namespace = '/' + given['namespace'].strip('/')
    own = {'use_sim_time': True, 'unit_deadline': UNIT_DEADLINE_S}
    own.update(lossless('' if namespace == '/' else namespace))
    if given['model_dir']:
        own['model_dir'] = given['model_dir']
    clock = ('/clock', 'clock')  # the time is of this run alone
    texts = ('questions', 'bag', 'image_topic', 'audio_topic', 'out', 'input', 'record')
    asked = {name: given[name] for name in texts if given[name]}
    asked.update({name: whole_number(given, name) for name in ('limit', 'max_tokens')})
    return (
        Start('live', (params_file(given, config), own), (clock,), ends_all=True),
        Start('replay', (asked,), (clock,), name='replay', ends_all=True),
    )


def lossless(namespace: str) -> dict:
    """Give the parameters by which `live` in a namespace loses no input."""
    policies = {'image/compressed': {'depth': 20, 'reliability': 'reliable'}}
    policies['audio'] = {'reliability': 'reliable'}
    return {
        f'qos_overrides.{namespace}/{topic}.subscription.{name}': value
        for topic, of_topic in policies.items()
        for name, value in of_topic.items()
    }


def info_topic(audio_topic: str) -> str:
    """Give where the format of a microphone's sound is told, as audio_capture names its topics."""
    return audio_topic.removesuffix('_stamped') + '_info'


def whole_number(given: dict, name: str) -> int:
    """Give a launch argument that is a number."""
    if not given[name].isdigit():
        raise InputError(f'{name} is {given[name]!r}; it takes a whole number')
    return int(given[name])


def params_file(given: dict, config: Path) -> str:
    """Give the file of parameters: the one that is given, or the preset's."""
    if given['params_file']:
        return given['params_file']
    path = config / f'{given["preset"]}.yaml'
    if not path.is_file():
        names = ', '.join(sorted(p.stem for p in config.glob('*.yaml')))
        raise InputError(f'there is no preset {given["preset"]!r}; there are: {names}')
    return str(path)


def boolean(given: dict, name: str) -> bool:
    """Give a launch argument that is true or false."""
    try:
        return BOOLEANS[given[name].lower()]
    except KeyError:
        raise InputError(f'{name} is {given[name]!r}; it takes true or false') from None
