# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""StreamingBench's annotation files are read whole, asked and scored the official way."""

import json

import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.scoring import extract_letter, is_letter
from minicpmo_ros.evaluation.streamingbench import (
    START_S,
    question_set,
    read_annotations,
    seconds_of,
)

TASKS = ('Scene Understanding', 'Source Discrimination', 'Multimodal Alignment')


def entry(number, **changes):
    question = {
        'task_type': TASKS[number % 3],
        'question': f'Which lamp is lit in room {number}?',
        'time_stamp': '00:01:10',
        'answer': 'ABCD'[number % 4],
        'options': ['A. Red', 'B. Blue', 'C. Green', 'D. None'],
        'required_ability': 'episodic memory',
        **changes,
    }
    return {
        'time': '[0:01:00 - 0:02:00]',
        'video_categories': 'demo',
        'video_path': f'./videos/sample_{number // 5}_demo.mp4',
        'questions': [question],
    }


def write(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_a_file_is_read_whole(tmp_path):
    annotated, defects = read_annotations(
        write(tmp_path / 'a.json', [entry(i) for i in range(15)])
    )
    assert len(annotated) == 15 and not defects
    assert [sum(a.task == task for a in annotated) for task in TASKS] == [5, 5, 5]
    assert {a.bag for a in annotated} == {f'sample_{i}_demo.mcap' for i in range(3)}


OMNI = (
    'Misleading Context Understanding',
    'Source Discrimination',
    'Emotion Recognition',
    'Anomaly Context Understanding',
    'Scene Understanding',
    'Multimodal Alignment',
)


def test_a_file_of_the_published_size_is_read_whole(tmp_path):
    """1500 questions, each an entry, five a video; 13 with 5 to 7 options, 20 without ability."""
    entries = [entry(i, task_type=OMNI[i // 5 % 6]) for i in range(1500)]
    broken = [7 + 113 * k for k in range(13)]
    for k, i in enumerate(broken):
        entries[i]['questions'][0]['options'] += ['E. More', 'B. Blue', ''][: 1 + k % 3]
    for i in range(0, 1500, 75):
        del entries[i]['questions'][0]['required_ability']
    annotated, defects = read_annotations(write(tmp_path / 'questions_omni.json', entries))
    asked = question_set(annotated, tmp_path).questions
    assert len(asked) == 1500 and len({a.bag for a in annotated}) == 300
    assert {task: sum(q.family == task for q in asked) for task in OMNI} == dict.fromkeys(
        OMNI, 250
    )
    assert {letter: sum(a.letter == letter for a in annotated) for letter in 'ABCD'} == (
        dict.fromkeys('ABCD', 375)
    )
    assert len(defects) == 13 and all(
        f'question {i} ' in told and 'first four' in told for i, told in zip(broken, defects)
    )
    assert all(len(a.options) == 4 for a in annotated)


def test_several_questions_of_one_entry_are_read(tmp_path):
    two = entry(0)
    two['questions'] += entry(1)['questions']
    annotated, _ = read_annotations(write(tmp_path / 'a.json', [two, entry(2)]))
    assert [a.index for a in annotated] == [0, 1, 2]


def test_malformed_questions_are_listed_and_used_as_officially_where_they_can(tmp_path):
    entries = [
        entry(0, options=['A. Red', 'B. Blue', 'B. Blue', 'C. Green', 'D. None']),
        entry(1, options=['Red', 'Blue', 'Green', 'None']),
        entry(2, time_stamp='0:01:10'),
        entry(3, answer='E'),
        entry(4, options=['A. Red']),
        entry(5, time_stamp='soon'),
        {'questions': []},
        'nothing',
    ]
    del entries[1]['questions'][0]['required_ability']
    annotated, defects = read_annotations(write(tmp_path / 'a.json', entries))
    assert [a.index for a in annotated] == [0, 1, 2]
    assert annotated[0].options == ('A. Red', 'B. Blue', 'B. Blue', 'C. Green')
    assert annotated[1].options == ('A. Red', 'B. Blue', 'C. Green', 'D. None')
    assert annotated[2].at_s == 70
    assert len(defects) == 7
    assert 'first four' in defects[0] and "'0:01:10'" in defects[1] and "'E'" in defects[2]


@pytest.mark.parametrize('text', ['{}', '[]', '[1]', 'nothing', '[{"questions": []}]'])
def test_another_file_is_refused_in_words(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(InputError, match=r'a\.json'):
        read_annotations(tmp_path / 'a.json')


def test_windows_end_where_the_question_is_asked(tmp_path):
    entries = [entry(0), entry(1, time_stamp='00:00:20'), entry(2, time_stamp='00:00:00')]
    annotated, _ = read_annotations(write(tmp_path / 'a.json', entries))
    windows = [q.window(0) for q in question_set(annotated, tmp_path).questions]
    assert windows == [
        (START_S + 10, START_S + 70),
        (START_S, START_S + 20),
        (START_S, START_S + 1),
    ]
    whole = question_set(annotated, tmp_path, context_s=-1).questions
    assert whole[0].window(0) == (START_S, START_S + 70)


def test_the_set_survives_its_file(tmp_path):
    annotated, _ = read_annotations(write(tmp_path / 'a.json', [entry(0)]))
    (tmp_path / annotated[0].bag).touch()
    made = question_set(annotated, tmp_path)
    made.write(tmp_path / 'questions.json')
    assert QuestionSet.read(tmp_path / 'questions.json').questions == made.questions
    asked = made.questions[0]
    assert asked.text.endswith(
        'Question: Which lamp is lit in room 0?\n\n'
        'Options:\nA. Red\nB. Blue\nC. Green\nD. None\n\nThe best option is:'
    )
    assert asked.is_right('A. Red') and not asked.is_right('The answer is A')


def test_time_stamps_are_sums_to_the_base_of_60():
    told = {'00:01:10': 70, '1:10': 70, '70': 70, '05:11:00': 18660, '0:00:07.9': 7}
    assert {text: seconds_of(text) for text in told} == told
    for text in ('', 'soon', '-1', '1:x', 'nan', 'inf'):
        with pytest.raises(ValueError):
            seconds_of(text)


LIKE_ANY = (
    '{} is correct',
    'Option {} is correct.',
    'The answer is {} because of the bell',
    '{}, the one on the left',
    '{} - it rings',
    "I'd say {}",
    'It is {}',
    '{} (left)',
    '{}\nbecause it rings',
)
OPTIONS = ('A. A red lamp', 'B. Blue', 'C. Green', 'D. None of them')


@pytest.mark.parametrize(
    'text, letter',
    [
        ('B', 'B'),
        ('B.', 'B'),
        ('(B)', 'B'),
        ('b', 'B'),
        ('B. Blue', 'B'),
        ('**C**', 'C'),
        ('Option D', 'D'),
        ('The best option is: B', 'B'),
        ('The answer is (C) Green.', 'C'),
        ('Answer: A', 'A'),
        ('It is blue.', 'B'),
        ('A red lamp is lit', 'A'),
        ('A green lamp', 'C'),
        ('I think it is D', 'D'),
        ('Blue or green', ''),
        ('Because of that', ''),
        ('', ''),
        # A as any other letter, and an article that is none.
        *((text.format(letter), letter) for letter in 'AB' for text in LIKE_ANY),
        ('A or B', ''),
        ('B or C', ''),
        ('A and C', ''),
        ('D is wrong, it is B', ''),
        ('A circle', ''),
        ('c est la vie', ''),
        ('a blue one', 'B'),
        ('(a) a red lamp', 'A'),
    ],
)
def test_a_letter_is_found_where_the_answer_means_one(text, letter):
    assert extract_letter(text, OPTIONS) == letter


def test_a_letter_inside_an_option_is_not_an_answer():
    options = ('A. Plan B', 'B. Vitamin C', 'C. 7', 'D. D')
    told = {'B. Vitamin C': 'B', 'vitamin C': 'B', 'Plan B': 'A', 'it shows 7': 'C', 'C': 'C'}
    assert {text: extract_letter(text, options) for text in told} == told


def test_the_official_rule_reads_one_character():
    assert is_letter('B', 'B') and is_letter('B', 'Blue')
    assert not is_letter('B', ' B') and not is_letter('B', 'b') and not is_letter('B', '')
