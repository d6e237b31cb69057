# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The code blocks of the pages, and a check for every command that stands in one.

A command is parsed by what would read it: the verbs' own parsers, the launch files' arguments, the
message definitions. A program that no check knows is an error.
"""

import ast
import importlib
import importlib.util
import re
import shlex
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_prefix

from minicpmo_ros.cli.main import make_parser
from minicpmo_ros.errors import InputError
from minicpmo_ros.ros.launch.process_specs import (
    ARGUMENTS,
    REPLAY_ARGUMENTS,
    process_specs,
    replay_specs,
)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)
# Programs of the system and of ROS 2 that are named, not described, by our pages.
OTHERS = {
    'ssh',
    'sudo',
    'export',
    'rosdep',
    'touch',
    'nvpmodel',
    'tegrastats',
    'colcon',
    'cd',
    'mkdir',
    'git',
}
LAUNCHES = {
    'live.launch.py': (ARGUMENTS, process_specs),
    'replay.launch.py': (REPLAY_ARGUMENTS, replay_specs),
}
NODES = (
    'llm',
    'streaming_encoder',
    'vision_encoder',
    'media_player',
    'recorder',
    'voice',
    'speaker',
)


@dataclass(frozen=True)
class Block:
    """One block: where it stands, its language, its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Name it, for a test's id."""
        return f'{self.page}:{self.line}'

    @property
    def commands(self) -> list:
        """Give the commands of a block of bash, each a list of words."""
        joined = self.text.replace('\\\n', ' ')
        lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [part for line in lines for part in _parted(line) if part]


def blocks(*languages: str) -> list:
    """Give the blocks of all pages in some languages; without any: all."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            line = text[: match.start()].count('\n') + 1
            found.append(Block(page.name, line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def _parted(words: list) -> list:
    parts = [[]]
    for word in words:
        if word in ('&&', '|', ';'):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def check_command(words: list, page_blocks: list) -> None:
    """Check a command; AssertionError says what of it does not exist."""
    program, *rest = words
    if re.fullmatch(r'\w+=.*', program):
        return check_command(rest, page_blocks) if rest else None
    if program in OTHERS:
        return None
    known = {
        'minicpmo': _check_verb,
        'make': _check_make,
        'ros2': _check_ros2,
        'python': _check_python,
        'python3': _check_python,
        'source': _check_source,
        'pip': _check_files,
    }
    assert program in known, f'no check knows {program!r}'
    if program.startswith('python'):
        return _check_python(rest, page_blocks)
    return known[program](rest)


def _check_verb(words: list) -> None:
    words = words[: words.index('>')] if '>' in words else words
    told = StringIO()
    try:
        with redirect_stderr(told):
            make_parser().parse_args([w.removesuffix('...') for w in words])
    except SystemExit as error:
        raise AssertionError(f'minicpmo {" ".join(words)}: {told.getvalue()}') from error


def _check_make(words: list) -> None:
    makefile = (ROOT / 'Makefile').read_text()
    for word in words:
        name, _, value = word.partition('=')
        if value or word.endswith('='):
            assert re.search(rf'\b{name}\b', makefile), f'make {name}='
        else:
            assert re.search(rf'^{re.escape(word)}:', makefile, re.MULTILINE), f'make {word}'


def _check_source(words: list) -> None:
    made = ('/opt/ros/', 'install/setup.bash', '.venv/bin/activate')  # by others, and by a build
    assert words[0].startswith(made) or (ROOT / words[0]).is_file(), words


def _check_files(words: list) -> None:
    """Check the paths that a command of others is given: what has a slash is in the checkout."""
    for word in words:
        if '/' in word and not word.startswith(('-', '/', '~')):
            assert (ROOT / word).exists(), word


def _check_python(words: list, page_blocks: list) -> None:
    if words[0] == '-c':
        check_imports(words[1])
    elif words[:2] == ['-m', 'minicpmo_ros.cli.main']:
        _check_verb(words[2:])
    elif words[0] == '-m':
        own = words[1].startswith(('minicpmo_ros', 'training', 'benchmarks'))
        assert not own or _is_module(words[1]), words
        _check_files(words[2:] if words[1] in ('pytest', 'colcon') else [])
    else:
        named = any(block.text.startswith(f'# {words[0]}\n') for block in page_blocks)
        assert named or (ROOT / words[0]).is_file(), words


def _is_module(name: str) -> bool:
    path = ROOT / name.replace('.', '/')
    return path.with_suffix('.py').is_file() or (path / '__main__.py').is_file()


def check_imports(text: str) -> None:
    """Check that a program is Python, and that what it takes from this package exists."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('minicpmo_ros'):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f'{node.module}.{name.name}'
        elif isinstance(node, ast.Import):
            for name in node.names:
                assert importlib.util.find_spec(name.name.partition('.')[0]), name.name


def _check_ros2(words: list) -> None:
    verb, *rest = words
    checks = {
        'launch': _check_launch,
        'run': _check_run,
        'service': _check_call,
        'action': _check_call,
        'topic': _check_topic,
        'lifecycle': lambda rest: None,
        'param': lambda rest: None,
        'security': lambda rest: None,
    }
    assert verb in checks, words
    checks[verb](rest)


def _check_launch(words: list) -> None:
    package, file, *given = words
    if package != 'minicpmo_ros':
        return
    assert file in LAUNCHES and (ROOT / 'launch' / file).is_file(), file
    arguments, made = LAUNCHES[file]
    told = dict(word.split(':=', 1) for word in given)
    known = {name: default for name, default, *_ in arguments}
    assert set(told) <= set(known), set(told) - set(known)
    try:
        assert made(known | told, ROOT / 'config')
    except InputError as error:
        raise AssertionError(f'{file}: {error}') from error


def _check_run(words: list) -> None:
    package, program, *rest = words
    if package != 'minicpmo_ros':
        return
    assert (Path(get_package_prefix(package)) / 'lib' / package / program).exists(), program
    for flag, word in zip(rest, rest[1:]):
        if flag == '-p':
            node, _, name = word.partition(':=')[0].rpartition(':')  # node: of several in it
            assert node in ('', *NODES), word
            _check_parameter(program, name)


def _check_parameter(program: str, name: str) -> None:
    tables = (ROOT / 'docs' / 'parameters.md').read_text()
    assert f'| `{name}` |' in tables, f'{program} has no parameter {name}'


def _check_call(words: list) -> None:
    words = [word for word in words if word not in ('-f', '--feedback')]
    _, name, kind, told = words
    assert name.rpartition('/')[0].strip('/') in NODES, name
    package, group, message = kind.split('/')
    made = getattr(importlib.import_module(f'{package}.{group}'), message)
    message = (made.Request if group == 'srv' else made.Goal)()
    _fill(message, yaml.safe_load(told))


def _fill(message, told: dict) -> None:
    for field, value in told.items():
        assert field in message.get_fields_and_field_types(), f'{type(message)} has no {field}'
        if isinstance(value, dict):
            _fill(getattr(message, field), value)
        else:
            setattr(message, field, value)  # it checks the type


def _check_topic(words: list) -> None:
    (topic,) = [word for word in words if word.startswith('/')]
    known = '\n'.join(path.read_text() for path in (ROOT / 'minicpmo_ros' / 'ros').rglob('*.py'))
    node, _, rest = topic.strip('/').partition('/')
    assert topic == '/diagnostics' or (node in NODES and f'~/{rest}' in known), topic
