# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about what has left the window: with notes, without, and with an oracle's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minicpmo_ros.cli.main import main
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, markdown, report
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.past import NoteMemory, answer_window
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion, check
from minicpmo_ros.evaluation.runner import Core, Variant, answer_clip
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.store import NoteStore

ROOT = Path(__file__).parents[1]
CLIP = '004.mcap'  # eight seconds
MINUTE = ScoredQuestion(
    'minute', CLIP, 0, 2, 'past', 'what color was noted 1 minute ago?', ('black',), relative=True,
    asked_at_s=62, note='shape: square; color: black',
)  # fmt: skip
SOON = replace(MINUTE, id='soon', text='what color was noted before?', asked_at_s=6)
NOW = ScoredQuestion('now', CLIP, 4, 6, 'now', 'what color is shown now?', ('x',), relative=True)


@pytest.fixture(scope='module')
def core():
    core = Core(ModelDirectory.open(ROOT / 'models/nano'))
    yield core
    core.close()


@pytest.fixture(scope='module')
def clip():
    return read_clip(ROOT / 'demo/clips' / CLIP)


def answers_of(core, clip, questions):
    return {q.id: a for _, q, a in answer_clip(core, clip, questions, [Variant()])}


def with_memory(core, memory, clip, questions):
    core.memory = memory
    try:
        return answers_of(core, clip, questions)
    finally:
        core.memory = None
        memory.close()


def test_the_window_of_a_question_about_the_past_ends_when_it_is_asked(core, clip):
    assert (MINUTE.window(100), MINUTE.age_s, MINUTE.seconds) == ((160, 162), 60, 2)
    assert (SOON.span, SOON.age_s, NOW.age_s) == ((4, 6), 4, 0)
    found = answers_of(core, clip, [MINUTE, SOON, NOW])
    assert [found[name].units for name in ('minute', 'soon', 'now')] == [0, 2, 2]
    assert found['soon'].seconds == found['now'].seconds
    assert not any(answer.recalled for answer in found.values())


def test_with_an_oracle_each_reads_its_own_note_with_its_age(core, clip):
    other = replace(SOON, id='other', note='shape: star')
    found = with_memory(core, NoteMemory('oracle'), clip, [MINUTE, SOON, other, NOW])
    told = {name: [note.text for note in answer.recalled] for name, answer in found.items()}
    assert told == {
        'minute': [MINUTE.note], 'soon': [SOON.note], 'other': ['shape: star'], 'now': [],
    }  # fmt: skip
    begin_s = clip.first_s
    assert {(n.begin_s, n.end_s) for n in found['minute'].recalled + found['soon'].recalled} == {
        (begin_s, begin_s + 2)
    }
    without = answers_of(core, clip, [SOON])['soon']
    assert found['soon'].prompt_tokens > without.prompt_tokens
    assert found['now'].prompt_tokens == answers_of(core, clip, [NOW])['now'].prompt_tokens
    with pytest.raises(InputError, match="'soon' has no note"):
        with_memory(core, NoteMemory('oracle'), clip, [replace(SOON, note='')])


def test_with_a_file_those_notes_are_read_that_belong_to_the_question(core, clip, tmp_path):
    path, begin_s = tmp_path / 'day.db', clip.first_s
    with NoteStore(path) as store:
        store.add(Note(begin_s - 500, begin_s - 498, 'color: white'))
        store.add(Note(begin_s, begin_s + 2, MINUTE.note))
    found = with_memory(core, NoteMemory(path), clip, [MINUTE, NOW])
    assert [note.text for note in found['minute'].recalled] == [MINUTE.note]
    assert not found['now'].recalled


def test_answers_are_scored_by_the_age_of_what_they_are_about():
    hour = replace(MINUTE, id='hour', asked_at_s=3602)
    questions = QuestionSet((MINUTE, hour, NOW))
    given = AnswerSet({'minute': 'Black.', 'hour': 'white', 'now': 'x'})
    found = report(questions, [given])
    assert found['details'][0]['ages'] == {
        '60': {'right': 1.0, 'questions': 1}, '3600': {'right': 0.0, 'questions': 1},
    }  # fmt: skip
    table = markdown(found).split('By age of the evidence')[1].split('\n\n')[1]
    assert '| 60 s | 3600 s |' in table and '| 100.0 | 0.0 |' in table
    assert 'By age' not in markdown(report(QuestionSet((NOW,)), [given]))


def test_a_file_keeps_when_it_is_asked_and_refuses_what_is_in_the_window(tmp_path):
    path = tmp_path / 'questions.json'
    QuestionSet((MINUTE, NOW)).write(path)
    assert QuestionSet.read(path, needs_clips=False).questions == (MINUTE, NOW)
    assert MINUTE.sha256 != replace(MINUTE, asked_at_s=70).sha256
    assert 'asked_at_s' not in json.loads(path.read_text())['questions'][1]
    with pytest.raises(InputError, match='has left a window of 2 s from 4 on'):
        check(replace(MINUTE, asked_at_s=3))


@pytest.mark.parametrize('memory', ('oracle', 'none.db'))
def test_a_run_says_with_which_memory_it_was_made(capsys, tmp_path, memory):
    run, file = tmp_path / 'run', tmp_path / 'questions.json'
    QuestionSet((MINUTE,)).write(file)
    options = ['--bag', str(ROOT / 'demo/clips'), '--out', str(run), '--memory', memory]
    status = main(['replay', str(ROOT / 'models/nano'), str(file), *options])
    told = capsys.readouterr().err
    if memory != 'oracle':
        assert status == 2 and 'none.db: there is no such file' in told
        return
    assert status == 0
    head, answer = map(json.loads, (run / 'answers.jsonl').read_text().splitlines())
    assert head['memory'] == 'oracle' and answer['id'] == 'minute' and answer['text']
    refused = main(['replay', str(ROOT / 'models/nano'), str(file), *options, '--runner', 'graph'])
    assert refused == 2 and '--memory is for --runner offline' in capsys.readouterr().err


def test_without_memory_a_window_is_answered_as_ever(core, clip):
    units = [unit for unit in core.stream(clip) if unit.second < clip.first_s + 2]
    (answer,) = answer_window(core, units, [NOW], clip.first_s + 2)
    assert answer.text == core.answer(units, [NOW])[0].text and answer.units == 2
