# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""YAML files of node parameters, and what they mean to a plan; `/**` holds for every node."""

from dataclasses import fields
from pathlib import Path

import yaml

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.context import KV_TYPES
from minicpmo_ros.models.plan import PlanOptions

NODES = ('llm', 'vision_encoder', 'streaming_encoder')
EVERYWHERE = '/**'
# Option of a plan: node and parameter, where they differ from `llm` and the option's own name.
SOURCES = {
    'max_tiles': ('vision_encoder', 'vision.max_tiles'),
    'isolated': ('streaming_encoder', 'isolated'),
    'vision_device': ('vision_encoder', 'device'),
    'audio_device': ('streaming_encoder', 'device'),
}

CHOICES = {'kv_type': tuple(KV_TYPES), 'device': ('auto', 'cpu', 'gpu')}
MINIMUM = {'n_ctx': 256, 'n_ubatch': 16, 'gpu_layers': -1, 'vision.max_tiles': 1}


def read_parameters(path) -> dict:
    """Give {node: {parameter: value}} of the three nodes; InputError where it is no such file."""
    try:
        record = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
        sections = {
            key.rpartition('/')[2] or key: dict(value['ros__parameters'])
            for key, value in record.items()
            if key != EVERYWHERE
        }
        common = dict(record.get(EVERYWHERE, {'ros__parameters': {}})['ros__parameters'])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f'{path} is no file of ROS parameters ({" ".join(str(error).split())}); expected is '
            '/**/llm: with ros__parameters: below it'
        ) from None
    return {node: {**common, **sections.get(node, {})} for node in NODES}


def plan_options(parameters: dict) -> PlanOptions:
    """Give the options of {node: {parameter: value}}; what is missing is the node's default."""
    given = {}
    for row in fields(PlanOptions):
        node, name = SOURCES.get(row.name, ('llm', row.name))
        if name in parameters.get(node, {}):
            given[row.name] = _checked(name, parameters[node][name], row.default)
    return PlanOptions(**given)


def _checked(name: str, value, default):
    if type(value) is not type(default):
        kind = {int: 'an int', str: 'a text', bool: 'true or false'}[type(default)]
        raise InputError(f'{name} is {value!r}; {kind} is expected')
    if name in CHOICES and value not in CHOICES[name]:
        raise InputError(f'{name} is {value!r}; allowed are {", ".join(CHOICES[name])}')
    if name in MINIMUM and value < MINIMUM[name]:
        raise InputError(f'{name} is {value}; {MINIMUM[name]} is the least')
    return value
