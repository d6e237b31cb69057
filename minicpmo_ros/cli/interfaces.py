# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verb interfaces, which prints docs/interfaces.md from the installed message definitions."""

import re
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.errors import InputError

INTRODUCTION = """# Interfaces

Every message, service and action, field by field. `minicpmo interfaces > docs/interfaces.md` makes
this page from the definitions in `msg/`, `srv/` and `action/`. [Topics](topics.md) says which node
publishes, takes or serves what, and [clients](clients.md) shows how to ask from programs.
`ros2 interface show minicpmo_ros/msg/Answer` prints a definition in a terminal.

A field that is left out of a request or of a goal has its default: the one in the table, else 0,
false or empty.
"""
# The parts of a definition, which lines of three dashes separate.
PARTS = {
    'msg': ('',),
    'srv': ('Request', 'Response'),
    'action': ('Goal', 'Result', 'Feedback'),
}
GROUPS = {'msg': 'Messages', 'srv': 'Services', 'action': 'Actions'}
CONSTANT = re.compile(r'(\w+) +(\w+) *= *(\S+)')
FIELD = re.compile(r'([\w/]+(?:\[[^\]]*\])?) +(\w+) *(.*)')


@dataclass(frozen=True)
class Member:
    """A field or a constant of a definition; `value` of a constant, or the default of a field."""

    type: str
    name: str
    value: str
    comment: str
    is_constant: bool


def add_interfaces_arguments(parser) -> None:
    """Declare the options of `interfaces`."""


def run_interfaces(arguments) -> int:
    """Print every message, service and action as Markdown tables, from their definitions.

    docs/interfaces.md is what this prints:

        minicpmo interfaces > docs/interfaces.md
    """
    from ament_index_python.packages import get_package_share_directory

    print(page(Path(get_package_share_directory('minicpmo_ros'))), end='')
    return 0


def page(folder: Path) -> str:
    """Return the page of the definitions in msg/, srv/ and action/ of a folder."""
    files = {
        group: sorted((folder / group).glob(f'*.{group}'), key=lambda path: path.stem)
        for group in PARTS
    }
    known = {path.stem for path in files['msg']}
    sections = []
    for group, paths in files.items():
        lines = '\n'.join(_summary(path) for path in paths)
        sections.append(f'\n## {GROUPS[group]}\n\n{lines}\n')
        sections += [_section(path, known) for path in paths]
    return INTRODUCTION + ''.join(sections)


def read_definition(text: str) -> tuple:
    """Read a definition: what it is for, and a list of members for each of its parts.

    Raises InputError with the line that is not a comment, a constant or a field.
    """
    about, parts = [], [[]]
    for number, line in enumerate(text.splitlines(), 1):
        code, _, comment = (part.strip() for part in line.partition('#'))
        if code == '---':
            parts.append([])
        elif code:
            parts[-1].append(_member(code, comment, number))
        elif comment and parts[-1]:  # it goes on with the comment of the line before
            before = parts[-1][-1]
            parts[-1][-1] = Member(
                **{**vars(before), 'comment': f'{before.comment} {comment}'.strip()}
            )
        elif comment:
            about.append(comment)
    return ' '.join(about), parts


def _member(code: str, comment: str, number: int) -> Member:
    if found := CONSTANT.fullmatch(code):
        return Member(*found.groups(), comment, True)
    if found := FIELD.fullmatch(code):
        return Member(*found.groups(), comment, False)
    raise InputError(f'line {number} is neither a constant nor a field: {code}')


def _title(path: Path) -> str:
    return f'{path.suffix[1:]}/{path.stem}'


def _link(title: str, text: str) -> str:
    """Link to a section of this page, by the anchor that Markdown makes of its heading."""
    return f'[{text}](#{title.replace("/", "").lower()})'


def _summary(path: Path) -> str:
    about, _ = read_definition(path.read_text(encoding='utf-8'))
    return f'- {_link(_title(path), path.stem)}: {_first_sentence(about)}'


def _first_sentence(text: str) -> str:
    sentence = re.split(r'(?<=\.)\s', text, maxsplit=1)[0]
    return _escaped(sentence[:1].lower() + sentence[1:].rstrip('.'))


def _section(path: Path, known: set) -> str:
    about, parts = read_definition(path.read_text(encoding='utf-8'))
    lines = [f'\n### {_title(path)}\n', _escaped(about)]
    for title, members in zip(PARTS[path.suffix[1:]], parts):
        if title:
            lines.append(f'\n**{title}**{"" if members else ": empty"}')
        constants = [member for member in members if member.is_constant]
        fields = [member for member in members if not member.is_constant]
        if constants:
            lines += ['\n| constant | value | meaning |', '|---|---|---|']
            lines += [f'| `{c.name}` | {c.value} | {_escaped(c.comment)} |' for c in constants]
        if fields:
            lines += ['', *_field_table(fields, known)]
    return '\n'.join(lines) + '\n'


def _field_table(fields: list, known: set) -> list:
    if not any(field.value for field in fields):
        rows = [_cells(field, known) for field in fields]
        return ['| field | type | meaning |', '|---|---|---|', *(_row(row) for row in rows)]
    lines = ['| field | type | default | meaning |', '|---|---|---|---|']
    for field in fields:
        name, kind, meaning = _cells(field, known)
        lines.append(_row((name, kind, f'`{field.value}`' if field.value else '', meaning)))
    return lines


def _row(cells) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def _cells(field: Member, known: set) -> tuple:
    base = re.sub(r'\[.*', '', field.type)
    kind = f'`{field.type}`'
    if base in known:
        kind = _link(f'msg/{base}', base) + field.type[len(base) :].replace('[', '\\[')
    return f'`{field.name}`', kind, _escaped(field.comment)


def _escaped(text: str) -> str:
    """Keep the signs of a comment from being read as Markdown."""
    return re.sub(r'([|<*\[\]])', r'\\\1', text)
