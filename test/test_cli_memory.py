# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo memory`: what it prints, and what it refuses."""

import json

import pytest

from minicpmo_ros.cli.main import main
from minicpmo_ros.notes.note import Note, Pose
from minicpmo_ros.notes.store import NoteStore


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'day.db'
    with NoteStore(path) as store:
        store.add(Note(1_000, 1_010, 'The bell rang.'))
        store.add(Note(2_000, 2_010, 'A red cup.', 'user', Pose('map', 1.0, 2.0)))
    return path


def run(capsys, *arguments):
    """Run the verb; return (exit status, standard output, standard error)."""
    status = main(['memory', *map(str, arguments)])
    return status, *capsys.readouterr()


def test_notes_are_listed_found_and_exported(capsys, path, tmp_path):
    status, out, err = run(capsys, path)
    assert status == 0 and out.index('The bell rang.') < out.index('A red cup.  (1.0, 2.0) map')
    assert '2 notes' in err
    status, out, err = run(capsys, path, 'find', 'where is my cup')
    assert out.count('\n') == 1 and '1 of 2 notes' in err
    status, out, err = run(capsys, path, 'find', 'the elephant')
    assert status == 0 and not out and '0 of 2 notes' in err
    assert 'bell' in run(capsys, path, 'find', 'cup', '--from', 900, '--to', 1500)[1]
    status, out, _ = run(capsys, path, 'export')
    assert [json.loads(line)['text'] for line in out.splitlines()] == [
        'The bell rang.', 'A red cup.',
    ]  # fmt: skip
    run(capsys, path, 'export', '--out', tmp_path / 'notes.jsonl')
    assert (tmp_path / 'notes.jsonl').read_text() == out


@pytest.mark.parametrize('stamp_s', [10**12, -(10**12)])
def test_a_note_that_no_calendar_dates_is_listed_and_found(capsys, path, stamp_s):
    with NoteStore(path) as store:
        store.add(Note(stamp_s, stamp_s + 1, 'A blue cup.'))
    for action in ([], ['find', 'cup']):
        status, out, _ = run(capsys, path, *action)
        assert status == 0 and f'by a broken clock, {stamp_s} s  periodic  A blue cup.' in out
        assert 'A red cup.' in out


def test_what_is_forgotten_is_gone(capsys, path):
    status, out, _ = run(capsys, path, 'forget', '--from', 900, '--to', '1970-01-01T23:00')
    assert status == 0 and 'deleted' in out
    assert b'bell' not in path.read_bytes()


@pytest.mark.parametrize(
    ('arguments', 'told'),
    (
        (['forget'], '--from TIME --to TIME'),
        (['forget', '--from', 'noon', '--to', '9'], "'noon' is no time"),
        (['find'], 'find needs them'),
        (['list', 'cup'], 'Words are for find'),
        (['--limit', '0'], '--limit is 0'),
        (['--from', '9', '--to', '8'], 'ends before it begins'),
        (['--from', 'nan'], "'nan' is no time"),
        (['forget', '--from', 'nan', '--to', 'inf'], "'nan' is no time"),
        (['--limit', str(10**30)], '1 to 1000000000 are expected'),
        (['list', '--out', 'notes.jsonl'], '--out is for export'),
    ),
)
def test_what_makes_no_sense_is_refused_in_words(capsys, path, arguments, told):
    status, out, err = run(capsys, path, *arguments)
    assert status == 2 and told in err and not out


def test_a_file_that_is_none_is_refused(capsys, tmp_path):
    assert 'no such file' in run(capsys, tmp_path / 'none.db')[2]
    assert 'no such file' in run(capsys, tmp_path / 'none.db', 'forget', '--from', 1, '--to', 2)[2]
    (tmp_path / 'text.db').write_text('This is a text, and no database, whatever its name. ' * 20)
    assert 'no file of notes' in run(capsys, tmp_path / 'text.db')[2]
    assert 'no file of notes' in run(capsys, tmp_path)[2]
    assert not (tmp_path / 'none.db').exists()
