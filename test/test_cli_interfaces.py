# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""docs/interfaces.md, which `minicpmo interfaces` prints, against what rosidl made."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from minicpmo_ros.cli import interfaces
from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'interfaces.md').read_text()
FILES = sorted(path for group in ('msg', 'srv', 'action') for path in (ROOT / group).iterdir())


def test_the_page_is_current(capsys):
    assert PAGE == interfaces.page(ROOT), 'run: minicpmo interfaces > docs/interfaces.md'
    assert cli.main(['interfaces']) == 0
    assert capsys.readouterr().out == PAGE  # also from the installed definitions


def section(path: Path) -> list:
    """Give what the page says of a definition: the text of each of its parts."""
    title = f'{path.parent.name}/{path.stem}'
    text = PAGE.split(f'\n### {title}\n', 1)[1].split('\n##', 1)[0]
    return re.split(r'^\*\*\w+\*\*.*$', text, flags=re.MULTILINE)


def of_rosidl(kind: str) -> str:
    """Give a type of the page as rosidl writes it."""
    plain = re.sub(r'\[(\w+)\]\(#msg\w+\)', r'minicpmo_ros/\1', kind).strip('`').replace('\\', '')
    base = plain.removesuffix('[]')
    base = {'bool': 'boolean', 'float32': 'float', 'float64': 'double'}.get(base, base)
    return f'sequence<{base}>' if plain.endswith('[]') else base


def rows(text: str, head: str) -> list:
    """Give the cells of the rows of the table that begins with a head."""
    table = re.search(rf'^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n?)*)', text, re.MULTILINE)
    lines = table[1].splitlines() if table else []
    return [re.split(r' (?<!\\)\| ', line[2:-2]) for line in lines]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_the_page_has_the_fields_and_constants_that_rosidl_has(path):
    made = getattr(import_module(f'minicpmo_ros.{path.parent.name}'), path.stem)
    names = interfaces.PARTS[path.parent.name]
    parts = [getattr(made, name) if name else made for name in names]
    texts = section(path)
    assert len(texts) == len(parts) + (names[0] != '')
    for part, text in zip(parts, texts[names[0] != '' :]):
        told = {row[0].strip('`'): row[1] for row in rows(text, 'field')}
        known = part.get_fields_and_field_types()
        assert list(told) == [n for n in known if 'structure_needs' not in n]
        for name, kind in told.items():
            assert of_rosidl(kind) == known[name], name
        for name, value, meaning in rows(text, 'constant'):
            assert str(getattr(part, name.strip('`'))) == value and meaning


def test_every_link_to_a_message_leads_to_its_section():
    links = re.findall(r'\]\(#(\w+)\)', PAGE)
    titles = re.findall(r'^### (\w+/\w+)$', PAGE, re.MULTILINE)
    assert len(links) > len(FILES) == len(titles)
    assert set(links) == {title.replace('/', '').lower() for title in titles}


def test_a_comment_goes_on_in_the_next_lines():
    about, (members,) = interfaces.read_definition(
        '# A colour\n# of paint.\n\nuint8 RED=2   # warm\nfloat32[3] rgb [0, 0, 1]  # red, green\n'
        '                         # and blue\nstring note\n'
    )
    assert about == 'A colour of paint.'
    red, rgb, note = members
    assert (red.name, red.value, red.is_constant) == ('RED', '2', True)
    assert (rgb.type, rgb.value, rgb.comment) == ('float32[3]', '[0, 0, 1]', 'red, green and blue')
    assert (note.value, note.comment) == ('', '')


def test_a_line_that_is_nothing_is_named():
    with pytest.raises(InputError, match='line 2 .*: colour'):
        interfaces.read_definition('# A colour.\ncolour\n')


def test_a_comment_is_no_markdown(tmp_path):
    for group in interfaces.PARTS:
        (tmp_path / group).mkdir()
    (tmp_path / 'msg' / 'A.msg').write_text('# Of <b> | [c](d)\n\nint8 x  # a | b\n')
    page = interfaces.page(tmp_path)
    assert r'Of \<b> \| \[c\](d)' in page and r'| a \| b |' in page
