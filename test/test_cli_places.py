# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What verbs write, and where: nothing that is read or another program's, and told before work."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import wave
from queue import Queue

import numpy as np
import pytest
from scored_clips import START_S, jpeg

from minicpmo_ros.cli.main import main
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.store import NoteStore, StoreError
from minicpmo_ros.sessions.black_box import BlackBox, NotOursError
from minicpmo_ros.sessions.keeper import SessionKeeper
from minicpmo_ros.units import NS


def run(capsys, *arguments) -> tuple:
    """Run a verb; return (status, what it told)."""
    status = main([*map(str, arguments)])
    told = capsys.readouterr()
    return status, told.err


def is_refusal(status: int, told: str) -> bool:
    """Whether that is a refusal in words: one line, no error of the system as programs see it."""
    return status == 2 and told.count('\n') == 1 and 'Errno' not in told


@pytest.fixture
def sound(tmp_path):
    """A second of sound, under the name of a bag."""
    with wave.open(str(tmp_path / 'sound.mcap'), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    return tmp_path / 'sound.mcap'


@pytest.fixture
def bag(tmp_path):
    """Three seconds of a clip."""
    images = [(i * NS + NS // 2, jpeg((40 * i, 99, 9))) for i in range(3)]
    write_clip(tmp_path / 'clip.mcap', START_S, images, np.zeros(48000))
    return tmp_path / 'clip.mcap'


@pytest.fixture
def questions(tmp_path, bag):
    """A question about it."""
    asked = {'id': 'a', 'clip': bag.name, 'start_s': 0, 'end_s': 3, 'relative': True}
    asked |= {'family': 'f', 'text': 'what color?', 'answers': ['red']}
    path = tmp_path / 'questions.json'
    path.write_text(json.dumps({'format': 'minicpmo_ros questions 1', 'questions': [asked]}))
    return path


def database(path):
    """Write what rosbag2 begins a bag of its sqlite3 storage with."""
    connection = sqlite3.connect(path)
    connection.execute('CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT)')
    connection.execute("INSERT INTO topics VALUES (1, '/image')")
    connection.commit()
    connection.close()
    return path


def test_a_verb_never_writes_over_what_it_reads(tmp_path, capsys, sound, bag, tiny_model_dir):
    notes, model = tmp_path / 'day.db', tmp_path / 'model'
    with NoteStore(notes) as store:
        store.add(Note(1, 2, 'A bell.'))
    shutil.copytree(tiny_model_dir, model)
    (tmp_path / 'other.mcap').symlink_to(sound)
    for read, words in (
        (sound, ('bag', sound, '--out', sound)),
        (sound, ('bag', sound, '--out', tmp_path / 'other.mcap')),
        (bag, ('look', bag, '--mcap', bag)),
        (notes, ('memory', notes, 'export', '--out', notes)),
        (model / 'llm.gguf', ('importance', model, '--out', model / 'llm.gguf')),
    ):
        before = read.read_bytes()
        status, told = run(capsys, *words)
        assert is_refusal(status, told) and 'one of the files to be read' in told, words
        assert read.read_bytes() == before


@pytest.mark.parametrize('kind', ('bag', 'database', 'text'))
def test_notes_are_not_written_into_a_file_of_another_kind(tmp_path, capsys, bag, kind):
    target = tmp_path / 'target'
    if kind == 'bag':
        shutil.copy(bag, target)
    elif kind == 'database':
        database(target)
    else:
        target.write_text('My own words.')
    before = target.read_bytes()
    for words in (('remember', bag, '--out', target),
                  ('memory', target, 'forget', '--from', 1, '--to', 2)):  # fmt: skip
        status, told = run(capsys, *words)
        assert is_refusal(status, told) and 'no file of notes' in told
        assert target.read_bytes() == before and not list(tmp_path.glob('*damaged*'))


def test_figures_are_not_written_over_a_recording(
    tmp_path, capsys, bag, questions, tiny_model_dir
):
    notes, before = tmp_path / 'day.db', bag.read_bytes()
    with NoteStore(notes) as store:
        store.add(Note(1, 2, 'A bell.'))
    for words in (
        ('bench', tiny_model_dir, '--json', bag),
        ('score', tiny_model_dir, '--questions', questions, '--json', bag),
        ('memory', notes, 'export', '--out', bag),
    ):
        status, told = run(capsys, *words)
        assert is_refusal(status, told) and 'a file of another kind' in told, words
        assert bag.read_bytes() == before
    for _ in range(2):  # its own file of before is written over
        assert main(['memory', str(notes), 'export', '--out', str(tmp_path / 'a.jsonl')]) == 0


def test_a_bag_that_is_not_there_is_told_before_a_file_of_notes_is_made(tmp_path, capsys, bag):
    target = tmp_path / 'day.db'
    status, told = run(capsys, 'remember', bag, tmp_path / 'no.mcap', '--out', target)
    assert is_refusal(status, told) and 'no.mcap: there is no such bag' in told
    assert not target.exists()


def test_a_run_is_not_added_to_a_file_of_another_program(tmp_path, capsys, questions):
    (tmp_path / 'run').mkdir()
    answers = tmp_path / 'run' / 'answers.jsonl'
    answers.write_text('version https://git-lfs.github.com/spec/v1\n')
    status, told = run(capsys, 'replay', 'nano', questions, '--out', tmp_path / 'run')
    assert is_refusal(status, told) and 'a file of another program: no run' in told
    assert answers.read_text() == 'version https://git-lfs.github.com/spec/v1\n'


def test_the_name_of_a_file_that_is_no_text_is_printed(tmp_path, bag):
    environment = {**os.environ, 'PYTHONIOENCODING': 'utf-8:strict'}
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main']
    out = os.fsencode(tmp_path) + b'/\xff.png'
    words = [*command, 'look', str(bag), '--out', out]
    done = subprocess.run(words, capture_output=True, env=environment)
    assert done.returncode == 0 and b'udcff.png' in done.stdout and not done.stderr


def test_a_node_does_not_add_notes_to_a_database_of_another_program(tmp_path):
    path = database(tmp_path / 'bag.db3')
    before = path.read_bytes()
    with pytest.raises(StoreError, match='another program, with the tables topics'):
        NoteStore(path)
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_left_as_it_is_by_a_black_box_and_by_save(tmp_path, bag):
    before = bag.read_bytes()
    with pytest.raises(NotOursError, match='left as it is. Set memory.black_box_path'):
        BlackBox(bag, 4, 'model of the test', 64)
    keeper = SessionKeeper(tmp_path / 'box', 4, lambda: ('model of the test', 64))
    told = Queue()
    keeper.save(bag, range(4), lambda *done: told.put(done))
    done, reason = told.get(timeout=60)
    assert done is None and 'a file of another program' in reason
    assert keeper.close(60)
    assert bag.read_bytes() == before


def test_a_robot_forgets_although_its_black_box_is_a_file_of_another_program(bag):
    keeper = SessionKeeper(bag, 4, lambda: ('model of the test', 64))
    assert keeper.stored() is None and 'another program' in keeper.problem
    assert keeper.clear() == ''
    told = Queue()
    keeper.forget(0, 9, lambda *done: told.put(done))
    assert told.get(timeout=60) == (0, '')
    assert keeper.close(60)


@pytest.mark.parametrize(
    'words',
    (
        ('score', 'nano', '--questions', 'QUESTIONS', '--json', 'FOLDER'),
        ('score', 'nano', '--questions', 'QUESTIONS', '--json', 'FILE/a.json'),
        ('score', 'nano', '--questions', 'QUESTIONS', '--save', 'FILE'),
        ('bench', 'nano', '--json', 'FOLDER'),
        ('memory', 'NOTES', 'export', '--out', 'FOLDER'),
        ('look', 'BAG', '--out', 'FILE/a.png'),
        ('bag', 'SOUND', '--out', 'FILE/a.mcap'),
        ('bag', 'SOUND', '--out', 'FOLDER'),
        ('report', 'QUESTIONS', '--questions', 'QUESTIONS', '--out', 'FILE/a.html'),
        ('quantize', 'nano', 'FILE', '--type', 'q4_0'),
        ('synthetic', 'FILE'),
        ('adopt', 'FOLDER', '--out', 'FILE'),
        ('replay', 'nano', 'QUESTIONS', '--out', 'FILE'),
    ),
    ids=' '.join,
)
def test_where_nothing_can_be_written_is_told_in_words_before_any_work(
    tmp_path, capsys, questions, bag, sound, words
):
    (tmp_path / 'folder.json').mkdir()
    (tmp_path / 'file').write_text('My own words.')
    with NoteStore(tmp_path / 'day.db') as store:
        store.add(Note(1, 2, 'A bell.'))
    places = {'FOLDER': tmp_path / 'folder.json', 'FILE': tmp_path / 'file', 'BAG': bag}
    places |= {'QUESTIONS': questions, 'NOTES': tmp_path / 'day.db', 'SOUND': sound}
    given = []
    for word in words:
        first, slash, rest = word.partition('/')
        given.append(f'{places[first]}{slash}{rest}' if first in places else word)
    status, told = run(capsys, *given)
    assert is_refusal(status, told) and ('file' in told or 'folder' in told), told
    assert (tmp_path / 'file').read_text() == 'My own words.'


@pytest.mark.parametrize(
    'option, told',
    (
        (('--crop', '1 2'), 'vision.crop'),
        (('--crop', '0 0 nan 1'), 'vision.crop'),
        (('--area', '0'), '0.25 to 1'),
        (('--area', '7'), '0.25 to 1'),
        (('--audio-channel', 'left'), 'allowed are mean'),
        (('--threads', '100000'), '1 to 512'),
        (('--prompt', 'fr'), "no prompt 'fr'"),
        (('--n-ctx', '10'), 'n_ctx'),
    ),
    ids=lambda value: ' '.join(value) if isinstance(value, tuple) else '',
)
def test_an_option_that_no_question_can_be_asked_with_spoils_no_run(
    tmp_path, capsys, questions, option, told
):
    words = 'replay', 'nano', questions, '--out', tmp_path / 'run'
    status, refusal = run(capsys, *words, *option)
    assert is_refusal(status, refusal) and told in refusal
    assert run(capsys, *words)[0] == 0  # into the same folder


def test_an_empty_shard_is_none_and_not_all_of_them(tmp_path, capsys, questions):
    """As a job whose variable is not set gives it."""
    status, told = run(capsys, 'replay', 'nano', questions, '--out', tmp_path / 'r', '--shard', '')
    assert is_refusal(status, told) and "'' is no shard" in told
    assert not (tmp_path / 'r').exists()


def test_the_installed_command_asks_in_several_processes(tmp_path, questions, bag):
    """Each of them imports the command's own file, which must not run in it again."""
    shutil.copy(bag, tmp_path / 'other.mcap')
    file = json.loads(questions.read_text())
    file['questions'].append({**file['questions'][0], 'id': 'b', 'clip': 'other.mcap'})
    questions.write_text(json.dumps(file))
    words = 'replay', 'nano', questions, '--out', tmp_path / 'run', '--workers', '2'
    done = subprocess.run(
        [shutil.which('minicpmo'), *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and '2 of 2 questions' in done.stderr, done.stderr
    assert (tmp_path / 'run' / 'answers.jsonl').read_text().count('\n') == 3  # and its head


def test_a_model_that_is_given_as_a_file_is_told_to_be_a_directory(tiny_model_dir, capsys):
    for name in ('llm.gguf', 'manifest.yaml'):
        for verb in ('check', 'plan', 'bench'):
            status, told = run(capsys, verb, tiny_model_dir / name)
            assert is_refusal(status, told) and 'a model is a directory' in told
            assert 'adopt' not in told


def test_who_stops_reading_what_is_printed_gets_no_message():
    command = (
        f'{sys.executable} -m minicpmo_ros.cli.main parameters | true; echo ${{PIPESTATUS[0]}}'
    )
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.stdout.strip() in ('0', '141') and not done.stderr


def test_a_full_disk_behind_what_is_printed_is_told_in_words():
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main', 'parameters']
    with open('/dev/full', 'w') as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert is_refusal(done.returncode, done.stderr) and 'Free some room' in done.stderr
