# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The file of questions: read as written, and a wrong one refused in words."""

import json
from dataclasses import replace

import pytest
from scored_clips import START_S, write_question_set

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, precision_name
from minicpmo_ros.evaluation.questions import QuestionSet, by_window


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
        ({'chance': 7}, 'from 0 to 1'),
        ({'hard': 'yes'}, 'true or false'),
        ({'colour': 'red'}, "'colour'; known are id"),
        ({'text': None}, 'text is'),
        ({'id': '0-source'}, 'two questions'),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path, change, told):
    write_question_set(tmp_path)
    path = tmp_path / 'questions.json'
    data = json.loads(path.read_text())
    data['questions'][0].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=told):
        QuestionSet.read(path)


@pytest.mark.parametrize(
    'text, told',
    [
        ('{', 'not JSON'),
        ('[]', 'format is None'),
        ('{"format": 3}', 'format is 3'),
        ('{"format": "minicpmo_ros questions 1"}', 'no list of questions'),
        ('{"format": "minicpmo_ros questions 1", "questions": [7]}', 'not an object'),
        ('{"format": "minicpmo_ros questions 1", "questions": [{"id": "a"}]}', 'has no clip'),
        ('{"a": 1, "a": 2}', 'occurs twice'),
        ('[' * 100000, 'not JSON'),
        ('\xff', 'not JSON'),
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
