# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The file of questions: read as written, and a wrong one refused in words."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scored_clips import START_S, write_question_set

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, precision_name
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.pairing import Unit


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Give a folder with a question set, for further files beside it."""
    folder = tmp_path_factory.mktemp('asked')
    write_question_set(folder)
    return folder


def test_questions_are_read_as_written(tmp_path):
    questions = write_question_set(tmp_path)
    assert [q.id for q in questions.questions] == ['0-scene', '0-source', '1-scene', '1-source']
    assert questions.questions[0].answers == ('red',)
    assert questions.questions[3].seconds == 3 and questions.questions[3].hard
    before = (tmp_path / 'questions.json').read_bytes()
    questions.write(tmp_path / 'questions.json')
    assert (tmp_path / 'questions.json').read_bytes() == before
    assert list(by_window(questions.by_clip()['1.mcap'], 0)) == [(START_S + 100, START_S + 103)]


def test_a_yaml_file_with_seconds_of_the_clip_is_read(tmp_path):
    write_question_set(tmp_path)
    (tmp_path / 'mine.yaml').write_text(
        'format: minicpmo_ros questions 1\n'
        'questions:\n'
        '- {id: lamp, clip: 1.mcap, relative: true, start_s: 1, end_s: 3, family: lamps,\n'
        '   text: "Which lamp is lit?", answers: [the red one, red]}\n'
    )
    (question,) = QuestionSet.read(tmp_path / 'mine.yaml').questions
    assert question.window(first_s=100) == (101, 103)
    assert question.is_right('Red.') and not question.is_right('blue')
    (tmp_path / 'mine.yaml').write_text('format: [')
    with pytest.raises(InputError, match='not YAML'):
        QuestionSet.read(tmp_path / 'mine.yaml')


SEEN = """format: minicpmo_ros questions 1
questions:
- id: seen
  clip: 1.mcap
  relative: true
  start_s: 1
  end_s: 3
  family: seen
  text: What is seen?
  answers: ['{"color": "red", "count": 1}']
  json_schema:
    type: object
    properties: {color: {enum: [red, blue]}, count: {enum: [1, 2]}}
    required: [color, count]
"""


def test_a_question_with_a_schema_is_answered_in_json_and_compared_as_data(
    tmp_path, tiny_model_dir
):
    write_question_set(tmp_path)
    (tmp_path / 'mine.yaml').write_text(SEEN)
    asked = QuestionSet.read(tmp_path / 'mine.yaml')
    (question,) = asked.questions
    assert question.is_right('{"count":1, "color":"red"}')
    assert question.is_right('{"count":1.0, "color":"red"}')
    assert not question.is_right('{"count":true, "color":"red"}')
    assert not question.is_right('{"count":2, "color":"red"}')
    assert not question.is_right('{"count":1, "col') and not question.is_right('red')
    asked.write(tmp_path / 'again.json')
    again = QuestionSet.read(tmp_path / 'again.json')
    assert again.questions == asked.questions and again.sha256 == asked.sha256
    assert replace(question, json_schema='').sha256 != question.sha256
    core = Core(ModelDirectory.open(tiny_model_dir), CoreOptions(device='cpu', max_tokens=64))
    try:
        (answer,) = core.answer([Unit(5, audio_rows=np.ones((25, 256), np.float16))], [question])
    finally:
        core.close()
    assert set(json.loads(answer.text)) == {'color', 'count'}


@pytest.mark.parametrize(
    'old, new, told',
    [
        ('type: object', 'type: objekt', 'objekt'),
        ('"count": 1}', '"count": 1', 'is no JSON'),
        ('"count": 1}', '"count": NaN}', 'is no JSON'),
        (
            '"red", "count": 1',
            '"green", "count": 1',
            r'not fit json_schema \(#/properties/color/enum',
        ),
        (
            '"red", "count": 1',
            '"red"',
            r'not fit json_schema \(#/required\): it can never be given',
        ),
        ('  json_schema:', '  choices: [a]\n  json_schema:', 'no choices'),
    ],
)
def test_a_schema_that_is_wrong_is_refused_with_its_question(tmp_path, old, new, told):
    write_question_set(tmp_path)
    (tmp_path / 'mine.yaml').write_text(SEEN.replace(old, new))
    with pytest.raises(InputError, match=told) as error:
        QuestionSet.read(tmp_path / 'mine.yaml')
    assert "'seen'" in str(error.value)


@pytest.mark.parametrize(
    'change, told',
    [
        ({'id': ''}, 'id'),
        ({'clip': '../0.mcap'}, "clip is '../0.mcap'"),
        ({'clip': '/0.mcap'}, 'relative'),
        ({'clip': 'x.mcap'}, 'x.mcap of the question'),
        ({'start_s': 1.5}, 'whole number'),
        ({'start_s': True}, 'whole number'),
        ({'end_s': START_S}, 'its window is'),
        ({'answers': []}, 'one text or more'),
        ({'answers': 'red'}, 'one text or more'),
        ({'choices': ['green', 'blue']}, 'not among its choices'),
        ({'text': '\ud800'}, 'text is'),
        ({'clip': 'a' * 300}, 'clip is'),
        ({'clip': 'a\0'}, 'clip is'),
        ({'start_s': 10**30}, 'whole number'),
        ({'chance': 7}, 'from 0 to 1'),
        ({'hard': 'yes'}, 'true or false'),
        ({'colour': 'red'}, "'colour'; known are id"),
        ({'text': None}, 'text is'),
        ({'id': '0-source'}, 'two questions'),
    ],
)
def test_a_wrong_field_is_refused_by_name(folder, change, told):
    data, path = json.loads((folder / 'questions.json').read_text()), folder / 'wrong.json'
    data['questions'][0].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=told):
        QuestionSet.read(path)


def test_the_folder_that_lacks_a_clip_is_named_also_where_it_is_this_one(folder, monkeypatch):
    monkeypatch.chdir(folder)
    data = json.loads((folder / 'questions.json').read_text())
    data['questions'][0]['clip'] = 'x.mcap'
    (folder / 'wrong.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match=f'is not in {folder}'):
        QuestionSet.read('wrong.json')


def test_an_empty_text_asks_to_answer_what_was_said(folder):
    data, path = json.loads((folder / 'questions.json').read_text()), folder / 'spoken.json'
    data['questions'][0]['text'] = ''
    path.write_text(json.dumps(data))
    assert QuestionSet.read(path).questions[0].text == ''


NESTED = '[' * 1000 + ']' * 1000
LAUGHS = 'a: &a [x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 8)}]\n' for a, b in zip('abcdefgh', 'bcdefghi')
)
QUESTION = '{"id": "a", "clip": "0.mcap", "start_s": 0, "end_s": 1, "family": "f", "text": "t", '
QUESTION += '"answers": ["a"], %s}'


def with_head(text: str) -> str:
    return f'{{"format": "minicpmo_ros questions 1", {text}}}'


@pytest.mark.parametrize('suffix', ['json', 'yaml'])
@pytest.mark.parametrize(
    'text',
    [
        NESTED,
        with_head(f'"questions": {NESTED}'),
        with_head(f'"questions": [{NESTED}]'),
        with_head(f'"clips": {NESTED}, "questions": [{QUESTION % NESTED}]'),
        *(
            with_head(f'"questions": [{QUESTION % f"{chr(34)}{name}{chr(34)}: {value}"}]')
            for name in ('kind', 'choices', 'hard', 'chance', 'rule', 'options', 'relative', 'x')
            for value in (
                '[' * 60 + ']' * 60,
                '{"a": [{}]}',
                '-1',
                'null',
                '[null]',
                '[]',
            )
            if (name, value) not in {('choices', '[]'), ('options', '[]')}
        ),
        *(
            with_head(f'"{name}": {value}, "questions": [{QUESTION % chr(34)}kind": "k"]')
            for name in ('name', 'notes', 'clips')
            for value in ('7', '["a"]', '{"a": 1}', '"\\ud800"')
        ),
    ],
)
def test_wrong_types_anywhere_become_a_sentence(folder, text, suffix):
    path = folder / f'strange.{suffix}'
    path.write_text(text)
    with pytest.raises(InputError, match='strange') as told:
        QuestionSet.read(path)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    'text',
    [
        'format: !!bool x',
        'format: !!timestamp x',
        'format: !!float ""',
        'format: !!int ""',
        'format: 2026-99-99',
        'format: 0x' + 'f' * 9000,
        'format: *a',
        'format: &a [*a]',
        '? [a]\n: b',
        '!!python/object:os.system x',
        'a: 1\na: 2',
        LAUGHS + 'format: *i',
        'format: minicpmo_ros questions 1\nname: &a [*a]\nquestions: [{}]',
        'format: minicpmo_ros questions 1\nquestions: [{? [a] : b}]',
        'format: minicpmo_ros questions 1\nquestions: [{1: b}]',
        'format: minicpmo_ros questions 1\nquestions: [{id: 2026-01-01, id: 3}]',
        LAUGHS + 'format: minicpmo_ros questions 1\nquestions: [{id: *i}]',
    ],
)
def test_strange_yaml_becomes_a_sentence(tmp_path, text):
    path = tmp_path / 'strange.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match='strange') as told:
        QuestionSet.read(path)
    assert len(str(told.value)) < 500


def test_a_yes_that_yaml_reads_as_true_is_explained(tmp_path):
    write_question_set(tmp_path)
    path = tmp_path / 'mine.yaml'
    path.write_text(
        'format: minicpmo_ros questions 1\n'
        'questions:\n'
        '- {id: a, clip: 0.mcap, start_s: 1, end_s: 3, family: f, text: t, answers: [yes]}\n'
    )
    with pytest.raises(InputError, match='quote them'):
        QuestionSet.read(path)


@pytest.mark.parametrize(
    'text, told',
    [
        ('{', 'not JSON'),
        ('[]', 'does not say what it is'),
        ('{"format": 3}', 'format is 3'),
        ('{"format": "minicpmo_ros questions 1"}', 'no list of questions'),
        ('{"format": "minicpmo_ros questions 1", "questions": [7]}', 'not an object'),
        ('{"format": "minicpmo_ros questions 1", "questions": [{"id": "a"}]}', 'has no clip'),
        ('{"a": 1, "a": 2}', 'occurs twice'),
        ('[' * 100000, 'not JSON'),
        ('\xff', 'no text in UTF-8'),
    ],
)
def test_what_is_no_file_of_questions_is_refused(tmp_path, text, told):
    path = tmp_path / 'questions.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(InputError, match=told):
        QuestionSet.read(path)


def test_answers_are_read_as_written_and_belong_to_the_questions(tmp_path):
    questions = write_question_set(tmp_path)
    given = AnswerSet({q.id: 'red' for q in questions.questions}, 'pytorch', 'f32')
    given.write(tmp_path / 'answers.json')
    assert AnswerSet.read(tmp_path / 'answers.json') == given
    assert given.of(questions) == ['red'] * 4
    with pytest.raises(InputError, match='3 of 4 questions have no answer'):
        AnswerSet({'0-source': 'red'}).of(questions)
    with pytest.raises(InputError, match="audio of answers is 'loud'; allowed are streaming"):
        AnswerSet({}, audio='loud')


@pytest.mark.parametrize('precision', ['bf16', 'GPTQ int4'])
def test_answers_made_elsewhere_have_the_names_of_elsewhere(tmp_path, precision):
    given = AnswerSet({'a': 'red'}, 'vLLM 0.6', precision)
    given.write(tmp_path / 'answers.json')
    assert AnswerSet.read(tmp_path / 'answers.json') == given
    for wrong in ('', ' ', None, 4):
        with pytest.raises(InputError, match='precision of answers is'):
            AnswerSet({}, precision=wrong)


def test_the_digest_is_of_what_is_asked_and_not_of_what_is_right(tmp_path):
    questions = write_question_set(tmp_path)
    first, *rest = questions.questions

    def digest(**change):
        return replace(questions, questions=(replace(first, **change), *rest)).sha256

    assert digest() == digest(answers=('blue',), chance=0.5, family='other') == questions.sha256
    for change in ({'text': 'what?'}, {'end_s': first.end_s + 1}, {'choices': ('red', 'blue')}):
        assert digest(**change) != questions.sha256
    assert questions.first(3).sha256 != questions.sha256


def test_a_whole_second_is_the_same_with_a_point(tmp_path):
    questions, path = write_question_set(tmp_path), tmp_path / 'points.json'
    data = json.loads((tmp_path / 'questions.json').read_text())
    for entry in data['questions']:
        entry.update(start_s=float(entry['start_s']), end_s=float(entry['end_s']))
    path.write_text(json.dumps(data))
    assert QuestionSet.read(path).sha256 == questions.sha256


def test_answers_that_are_not_texts_are_refused(tmp_path):
    path = tmp_path / 'answers.json'
    AnswerSet({'a': 'red'}).write(path)
    path.write_text(path.read_text().replace('"red"', '5'))
    with pytest.raises(InputError, match='not texts'):
        AnswerSet.read(path)


def test_the_precision_of_a_directory_is_one_word():
    assert precision_name({'llm': 'q4_K', 'vision': 'q4_0', 'audio': 'q4_0'}) == 'q4'
    assert precision_name({'llm': 'q4_0', 'vision': 'f16', 'audio': 'q4_0'}) == 'mixed'
    for kind in ('f32', 'q5_0'):
        assert precision_name({'llm': kind, 'vision': kind, 'audio': kind}) == kind
