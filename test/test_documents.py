# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A YAML document is a value or a sentence; no parser's error reaches who reads a file."""

import random
import subprocess
import sys

import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.documents import MAX_FILE_BYTES, parse_yaml, read_bounded, read_json, told
from minicpmo_ros.errors import InputError

DEEP = '[' * 1000 + ']' * 1000
HOSTILE = (
    DEEP, '{a: ' * 1000 + '1' + '}' * 1000, '\n'.join(' ' * i + 'a:' for i in range(2000)),
    '!!timestamp soon', '2026-13-45', '2026-02-30', '0001-01-01 00:00:00 +23:00', "!!int ''",
    '!!int _', '!!float x', '!!bool perhaps', '!!binary ä', '!!python/object:os.system x',
    '? [a]\n: b', '&a [*a]', '*nobody', '%YAML 9.9', '\x00', '\ud800', 'a: b: c', '"',
    '!!set {a, b}', '!!omap [a]', '!!pairs [[a]]', '<<: 3', '{<<: [1]}', '9' * 5000, '1:2:3:99:-',
    '0x', '0b', '!!null x', '- - - -', '\t', '---\n---\n',
)  # fmt: skip


@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_a_document_is_a_value_or_a_reason_in_one_line(text):
    try:
        value = parse_yaml(text)
    except ValueError as error:
        assert str(error) and '\n' not in str(error) and len(str(error)) < 500
    else:
        assert len(told(value)) <= 100


def test_damaged_documents_are_values_or_reasons():
    sound = b'family: "x"\nfiles: {llm: {path: a, date: 2026-01-02 03:04:05 +01:00, n: 0x1f}}\n'
    chance = random.Random(1)
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(chance.choice((1, 1, 2, 5))):
            data[chance.randrange(len(data))] = chance.choice(b'0:-!&*[]{}\n \t"\'#x9\x80\xff')
        try:
            parse_yaml(bytes(data))
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize('where', ['file', 'set'])
def test_a_plan_from_parameters_that_are_none_is_refused_in_a_sentence(tmp_path, capsys, where):
    path = tmp_path / 'p.yaml'
    path.write_text(f'/**/llm:\n  ros__parameters:\n    n_ctx: {DEEP}\n')
    given = ['--preset', str(path)] if where == 'file' else ['--set', f'n_ctx={DEEP}']
    assert cli.main(['plan', 'nano', *given]) == 2
    err = capsys.readouterr().err
    assert 'nested too deep' in err and 'Traceback' not in err


@pytest.mark.parametrize('value', ['[' * 1000 + ']' * 1000, '[[1, 2], [3]]', '[]', '[true, 1]'])
def test_a_node_refuses_a_value_that_ros_does_not_know(tmp_path, ros_domain, value):
    path = tmp_path / 'p.yaml'
    path.write_text(f'/**/llm:\n  ros__parameters:\n    n_ctx: {value}\n')
    code = 'import sys\nfrom minicpmo_ros.ros.live import main\nsys.exit(main())\n'
    child = subprocess.run(
        [sys.executable, '-c', code, '--ros-args', '--params-file', str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert 'Traceback' not in child.stderr, child.stderr
    assert child.returncode == 1
    assert 'parameter n_ctx' in child.stderr or 'arguments cannot be read' in child.stderr


@pytest.mark.parametrize(
    'name, data, why',
    (
        ('a.json', b'', 'it is empty'),
        ('a.yaml', b' \n', 'it is empty'),
        ('a.json', b'[{"video": "a.mp4"}]', 'a list of 1 is there'),
        ('a.json', b'{"info": 1, "data": []}', "one with 'info', 'data' is there"),
        ('a.json', b'7', '7 is there'),
        ('a.json', b'\x89MCAP0\r\n', 'no text in UTF-8 (byte 0)'),
        ('a.json', '{"a": "heiß"}'.encode('latin-1'), 'no text in UTF-8 (byte 10)'),
        ('a.json', b'{"format": "other"}', "its format is 'other'"),
        ('a.json', b'{"format": 1}\n{"format": 1}', 'not JSON'),
    ),
)
def test_a_file_of_another_program_is_told_by_what_is_in_it(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_json(tmp_path / name, 'this format')
    assert why in str(refused.value) and 'codec' not in str(refused.value)


def test_the_ending_of_a_name_tells_yaml_in_capitals_too(tmp_path):
    (tmp_path / 'a.YAML').write_text('format: this format\n')
    assert read_json(tmp_path / 'a.YAML', 'this format') == {'format': 'this format'}


def test_what_is_too_large_for_a_document_is_refused_before_it_fills_the_memory(tmp_path, capsys):
    """Files of zeros that take no room, as a device that has no end."""
    for name in ('manifest.yaml', 'preset.yaml', 'questions.json', 'rules.yaml'):
        with (tmp_path / name).open('wb') as file:
            file.truncate(2**35)
    (tmp_path / 'zero').symlink_to('/dev/zero')
    zero, out = str(tmp_path / 'zero'), str(tmp_path / 'out')
    for words in (
        ['check', str(tmp_path)],
        ['plan', 'nano', '--preset', str(tmp_path / 'preset.yaml')],
        ['replay', 'nano', str(tmp_path / 'questions.json'), '--out', out],
        ['replay', 'nano', zero, '--out', out],
        ['streamingbench', zero, '--videos', str(tmp_path), '--out', out],
        ['quantize', 'nano', out, '--rules', str(tmp_path / 'rules.yaml')],
    ):
        assert cli.main(words) == 2
        told_of = capsys.readouterr().err
        assert 'larger than' in told_of and 'Errno' not in told_of, words
    (tmp_path / 'largest').write_bytes(b' ' * 1000)
    assert len(read_bounded(tmp_path / 'largest')) == 1000 < MAX_FILE_BYTES
