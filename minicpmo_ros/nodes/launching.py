# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What `live.launch.py` starts, as plain data: which executables, parameters and remappings.

All that the launch file decides is decided here, where it can be tested without `launch`, which
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
    ('audio_info_topic', '', 'Format of the sound; empty: audio_topic with _info'),
    ('play', '', 'A file to play as camera and microphone'),
)
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


def starts(given: dict, config: Path) -> tuple:
    """Give the Starts for launch arguments {name: text}, all of ARGUMENTS; `config` has presets.

    Raises InputError on a preset that is not there, and on what is neither true nor false.
    """
    use_sim_time = boolean(given, 'use_sim_time')
    inputs = (
        ('image', given['image_topic']),
        ('image/compressed', given['image_topic'] + '/compressed'),
        ('audio', given['audio_topic']),
        ('audio_info', given['audio_info_topic'] or given['audio_topic'] + '_info'),
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
    if not given['play']:
        return nodes
    # The one who plays is where simulated time comes from.
    playing = {
        'file': given['play'],
        'wait_for_subscribers': True,
        'publish_clock': use_sim_time,
    }
    return (*nodes, Start('media_player', (playing,), inputs, name='media_player'))


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
