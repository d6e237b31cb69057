# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Counting right answers."""

import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, markdown, report, short_names
from minicpmo_ros.evaluation.matching import is_text
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion

QUESTIONS = QuestionSet(
    tuple(
        ScoredQuestion(
            str(i),
            'c',
            0,
            2 + i % 2,
            ('scene', 'count')[i // 4],
            'what?',
            ('red', 'a'),
            kind='color',
            chance=(0.1, 0.3)[i % 2],
            hard=i in (0, 5),
        )
        for i in range(8)
    )
)
RIGHT, WRONG = 'red', 'blue'


def answers(pattern, **facts):
    return AnswerSet(
        {str(i): RIGHT if mark == '1' else WRONG for i, mark in enumerate(pattern)}, **facts
    )


def test_a_right_answer_is_the_text_itself_but_for_case_and_stop():
    question = QUESTIONS.questions[0]
    for text in ('red', ' Red.', '"RED"', 'a\n'):
        assert question.is_right(text)
    for text in ('', 'reddish', 'not red', 'red red', 'blue'):
        assert not question.is_right(text)


@pytest.mark.parametrize(
    'accepted, text',
    [
        ('红色', '红色。'),
        ('3 个', '“３ 个！”'),
        ('はい', '「はい」'),
        ('हाँ', 'हाँ।'),
        ('نعم', '«نعم»؟'),
        ('sí', '¡Sí!'),
        ('ja', '„Ja.“'),
        ('café', 'cafe\u0301…'),
        ("it's on", 'It’s on'),
        ('...', '…'),
    ],
)
def test_quotes_stops_and_forms_of_any_script_do_not_count(accepted, text):
    assert is_text([accepted], text) and is_text([text], accepted)
    assert not is_text([accepted], '') and not is_text([accepted], f'{accepted} x')


def test_answers_that_no_file_can_hold_are_refused_when_they_are_read(tmp_path):
    path = tmp_path / 'answers.json'
    AnswerSet({'0': 'red'}).write(path)
    assert AnswerSet.read(path).answers == {'0': 'red'}
    path.write_text(path.read_text().replace('red', '\\ud800'))
    with pytest.raises(InputError, match='its answers are not texts'):
        AnswerSet.read(path)


def test_rows_are_those_of_the_score_file():
    found = report(QUESTIONS, [answers('11000000', precision='f32'), answers('10000001')])
    assert [(row['precision'], row['subset']) for row in found['rows']] == [
        ('f32', 'all'),
        ('f32', 'hard'),
        ('f16', 'all'),
        ('f16', 'hard'),
    ]
    assert found['rows'][2] == {
        'name': '',
        'path': 'core',
        'precision': 'f16',
        'audio': 'streaming',
        'input': 'all',
        'subset': 'all',
        'overall': 0.25,
        'families': {'scene': 0.25, 'count': 0.25},
        'chance': {'scene': 0.2, 'count': 0.2},
        'same_as_f32': 0.75,
        'questions': 8,
    }
    assert found['rows'][3] == {
        'name': '',
        'path': 'core',
        'precision': 'f16',
        'audio': 'streaming',
        'input': 'all',
        'subset': 'hard',
        'overall': 0.5,
        'families': {'scene': 1.0, 'count': 0.0},
        'chance': {'scene': 0.1, 'count': 0.3},
        'same_as_f32': 1.0,
        'questions': 2,
    }
    assert found['details'][2]['windows'] == {
        '2': {'right': 0.25, 'questions': 4},
        '3': {'right': 0.25, 'questions': 4},
    }
    assert found['details'][2]['kinds']['scene/color'] == {'right': 0.25, 'questions': 4}


def test_the_reference_has_the_same_sound_and_input():
    sets = [
        answers('00000000', precision='f32'),
        answers('11110000', precision='f32', input='no_picture'),
        answers('11111111', input='no_picture'),
        answers('11111111', audio='offline'),
    ]
    same = {
        (row['precision'], row['input'], row['audio']): row['same_as_f32']
        for row in report(QUESTIONS, sets)['rows']
        if row['subset'] == 'all'
    }
    assert same == {
        ('f32', 'all', 'streaming'): 1.0,
        ('f32', 'no_picture', 'streaming'): 1.0,
        ('f16', 'no_picture', 'streaming'): 0.5,
        ('f16', 'all', 'offline'): None,
    }


def test_agreements_compare_what_differs_in_one_way():
    sets = [
        answers('11110000'),
        answers('11110001', audio='offline'),
        answers('11110011', path='graph'),
        answers('00000000', input='no_sound'),
    ]
    assert report(QUESTIONS, sets)['agreements'] == [
        {'a': 'core f16', 'b': 'core f16 offline', 'same': 0.875},
        {'a': 'core f16', 'b': 'graph f16', 'same': 0.75},
    ]


def test_the_tables_hold_every_row_window_and_what_the_senses_add():
    sets = [
        answers('11110111'),
        answers('11000000', input='no_picture'),
        answers('10000000', input='no_sound'),
    ]
    text = markdown(report(QUESTIONS, sets))
    assert '| core | f16 | streaming | all | all | 87.5 | 100.0 | 75.0 |  | 8 |' in text
    assert '| chance |  |  |  | hard |  | 10.0 | 30.0 |  |  |' in text
    assert '| core | f16 | streaming | no_picture | all | 25.0 | 25.0 |' in text  # windows
    assert '| core | f16 | streaming | all | +50.0 | +75.0 |' in text


def test_directories_that_are_alike_in_all_but_their_name_are_told_apart():
    sets = [
        answers('11110111', name='iq4_xs'),
        answers('11000000', name='iq4_xs', input='no_picture'),
        answers('10000000', name='iq4_xs', input='no_sound'),
        answers('00000000', name='q4|0'),
        answers('00000000', name='q4|0', input='no_picture'),
        answers('00000000', name='q4|0', input='no_sound'),
    ]
    found = report(QUESTIONS, sets)
    assert found['agreements'] == [{'a': 'iq4_xs core f16', 'b': 'q4|0 core f16', 'same': 0.125}]
    text = markdown(found)
    assert '| iq4_xs | core | f16 | streaming | all | all | 87.5 | 100.0 | 75.0 |  | 8 |' in text
    assert '| q4\\|0 | core | f16 | streaming | all | all | 0.0 | 0.0 | 0.0 |  | 8 |' in text
    assert '| iq4_xs | core | f16 | streaming | all | +50.0 | +75.0 |' in text
    assert '| q4\\|0 | core | f16 | streaming | all | +0.0 | +0.0 |' in text


def test_paths_are_named_by_what_tells_them_apart(tmp_path):
    assert short_names(['build/q4', 'models/q8']) == ['q4', 'q8']
    assert short_names(['build/q4', 'models/q4']) == ['build/q4', 'models/q4']
    assert short_names(['a/q4', 'a/q4']) == ['q4', 'q4 (2)'] and short_names([]) == []


def test_short_windows_have_rows_of_their_own():
    questions = QuestionSet(
        tuple(
            ScoredQuestion(str(i), 'c', 0, 4 + i % 2, 'scene', 'what?', ('red',)) for i in range(8)
        )
    )
    found = report(questions, [answers('10101011')])
    assert [(row['overall'], row['questions']) for row in found['rows']] == [(0.625, 8)]
    assert [(row['overall'], row['questions']) for row in found['short_rows']] == [(1.0, 4)]
    assert 'Windows up to 4 s' in markdown(found)
    assert 'Windows up to' not in markdown(report(questions.up_to(4), [answers('10101011')]))
    assert report(questions.up_to(3), [answers('1')])['rows'] == []
