# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Resolves what holds for each node among sources of parameters, and writes it as one file.

Given several files, rcl does not go by their order but by that of their keys: what a preset says
for /**/llm goes before what any other file, or a -p, says for /**, once a key /** has come before.
So a launch resolves what holds for each of its nodes itself, and each process gets one file.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from minicpmo_ros.documents import parse_yaml, read_bounded
from minicpmo_ros.errors import InputError, in_words

PARAMETERS = 'ros__parameters'


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

    def of(self, fqn: str, is_alone: bool = False) -> dict:
        """Return {parameter: value} of a node, by its whole name; alone: less what is of all."""
        found = {} if is_alone else dict(self.values)
        for pattern, values in _read(self.path) if self.path else ():
            if _matches(pattern, fqn) and not (is_alone and pattern.endswith('*')):
                found.update(values)
        return found


def resolve(sources, nodes: dict, beside=()) -> dict:
    """Return {name: {parameter: value}} for nodes {name: whole name}; the later sources win.

    `beside`: those which take only what is said of them alone.
    """
    return {
        name: {k: v for source in sources for k, v in source.of(fqn, name in beside).items()}
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
        record = parse_yaml(read_bounded(Path(path).expanduser()), _Loader) or {}
        return list(_sections(record, ''))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is no file of ROS parameters ({in_words(error)}); expected is '
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
