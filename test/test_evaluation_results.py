# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A run's folder keeps every answer once, wherever the run was killed."""

import hashlib
import os
from dataclasses import replace

import pytest
from scored_clips import write_question_set, write_test_clip

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.report.comparison import judge
from minicpmo_ros.evaluation.results import ANSWERS, COSTS, HEAD, Given, Results, Run, bag_facts

FACTS = {'model': 'nano', 'count': 3}
GIVEN = [Given(f'q{i}', f'größe {i}\n', 10.0 * i, 20.0, 1, 3, 99.5) for i in range(3)]


def write(folder, given=GIVEN, facts=FACTS):
    results = Results(folder, facts)
    for one in given:
        if one.id not in results.done:
            results.add(one)
    results.close()


def test_what_was_added_is_read(tmp_path):
    write(tmp_path / 'run')
    run = Run.read(tmp_path / 'run')
    assert run.facts['model'] == 'nano'
    assert run.texts == {one.id: one.text for one in GIVEN}
    assert run.costs['q2']['first_token_ms'] == 20.0 and run.costs['q2']['memory_mib'] == 99.5


@pytest.mark.parametrize('name', [ANSWERS, COSTS])
def test_a_run_cut_at_any_byte_ends_with_every_answer_once(tmp_path, name):
    write(tmp_path / 'whole')
    whole = (tmp_path / 'whole' / name).read_bytes()
    folder = tmp_path / 'cut'
    write(folder)
    for cut in range(len(whole) + 1):
        # A kill between the two files leaves a cost without its answer, never the other way.
        (folder / COSTS).write_bytes((tmp_path / 'whole' / COSTS).read_bytes())
        (folder / ANSWERS).write_bytes(b'' if name == COSTS else whole[:cut])
        if name == COSTS:
            (folder / COSTS).write_bytes(whole[:cut])
        before = (folder / ANSWERS).read_bytes()
        write(folder)
        run = Run.read(folder)
        assert list(run.texts.items()) == [(one.id, one.text) for one in GIVEN]
        assert all(cost['tokens'] == 1 for cost in run.costs.values())
        assert (folder / ANSWERS).read_bytes().startswith(before)  # only ever appended


def test_a_question_is_never_answered_twice(tmp_path):
    results = Results(tmp_path, FACTS)
    results.add(GIVEN[0])
    with pytest.raises(ValueError):
        results.add(GIVEN[0])
    results.close()
    again = Results(tmp_path, FACTS)
    assert again.done == {'q0'}
    again.close()


def test_another_run_in_the_folder_is_refused_by_what_differs(tmp_path):
    write(tmp_path)
    with pytest.raises(
        InputError, match='another run is there: count 4 instead of 3, model "other" instead of'
    ):
        Results(tmp_path, {'model': 'other', 'count': 4})
    assert len(Run.read(tmp_path).texts) == 3


def test_one_process_writes_a_run_at_a_time(tmp_path):
    results = Results(tmp_path, FACTS)
    with pytest.raises(InputError, match='another replay is writing there'):
        Results(tmp_path, FACTS)
    results.add(GIVEN[0])
    results.close()
    write(tmp_path)
    assert list(Run.read(tmp_path).texts) == [one.id for one in GIVEN]


def test_a_run_that_could_not_begin_refuses_no_other(tmp_path):
    Results(tmp_path, {'prompt': 'wrong'}).close()
    write(tmp_path)
    assert Run.read(tmp_path).facts['model'] == 'nano'


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='no run can be written there'):
        Results(tmp_path / 'file', FACTS)


def test_a_summary_tells_how_many_have_no_answer_and_why(tmp_path):
    bad = [Given(f'b{i}', '', error='bag: it is cut.') for i in range(2)]
    short = Given('s', 'red', note='1 of 3 seconds have an image or audio.')
    write(tmp_path, [*GIVEN, *bad, short])
    run = Run.read(tmp_path)
    assert run.unanswered == {'b0': 'bag: it is cut.', 'b1': 'bag: it is cut.'}
    assert run.summary() == [
        '2 of 6 have no answer: bag: it is cut. (2 times)',
        '1 of 6 rest on what is not whole: 1 of 3 seconds have an image or audio. (1 times)',
    ]
    write(tmp_path / 'well')
    assert Run.read(tmp_path / 'well').summary() == []


def grown(folder, questions, count, begun='one'):
    """Open a run about the first `count` questions and answer what is not answered."""
    chosen = questions.first(count)
    facts = {'model': 'nano', 'count': count, 'questions_sha256': chosen.sha256}
    results = Results(folder, facts, chosen, {'time': begun, 'threads': 2})
    asked = [q for q in chosen.questions if q.id not in results.done]
    for question in asked:
        results.add(Given(question.id, 'red'))
    results.close()
    return [question.id for question in asked]


def test_a_run_grows(tmp_path):
    questions = write_question_set(tmp_path, (1, 2, 3))
    ids = [q.id for q in questions.questions]
    assert grown(tmp_path / 'run', questions, 3) == ids[:3]
    assert grown(tmp_path / 'run', questions, 6, 'two') == ids[3:]
    run = Run.read(tmp_path / 'run')
    assert list(run.texts) == ids and run.count == 6 and not run.is_empty
    assert [start['time'] for start in run.head.starts] == ['one', 'two']
    # Questions between those that were there, and fewer of them.
    more = replace(questions.questions[0], id='new')
    mixed = replace(questions, questions=(questions.questions[0], more, *questions.questions[1:]))
    assert grown(tmp_path / 'run', mixed, 7) == ['new']
    assert len(Run.read(tmp_path / 'run').of(mixed).questions) == 7
    assert grown(tmp_path / 'run', questions, 2) == []
    judged = judge('grown', Run.read(tmp_path / 'run'), mixed)
    assert all(judged.right)


def test_a_question_that_changed_is_no_growth(tmp_path):
    questions = write_question_set(tmp_path, (1, 2))
    grown(tmp_path / 'run', questions, 2)
    first, *rest = questions.questions
    other = replace(questions, questions=(replace(first, text='what else?'), *rest))
    with pytest.raises(InputError, match="1 questions were changed .*, '0-scene' first"):
        grown(tmp_path / 'run', other, 4)
    only_right = replace(questions, questions=(replace(first, answers=('blue',)), *rest))
    assert len(grown(tmp_path / 'run', only_right, 4)) == 2
    with pytest.raises(InputError, match='other questions'):
        judge('mine', Run.read(tmp_path / 'run'), other)


def test_a_bag_that_was_replaced_is_noticed(tmp_path):
    questions = write_question_set(tmp_path, (1, 2))
    grown(tmp_path / 'run', questions, 2)
    bags = Run.read(tmp_path / 'run').head.bags
    path = questions.path_of('0.mcap')
    assert list(bags) == ['0.mcap'] and bags['0.mcap']['bytes'] == path.stat().st_size
    assert bags['0.mcap']['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    os.utime(path, (1, 1))  # copied: the same bag
    grown(tmp_path / 'run', questions, 3)
    write_test_clip(path, 2)
    with pytest.raises(InputError, match='0.mcap is not the bag that was read'):
        grown(tmp_path / 'run', questions, 4)
    path.unlink()
    assert grown(tmp_path / 'run', questions, 4) == ['1-source']


def test_a_bag_of_several_files_is_hashed_whole(tmp_path):
    folder = tmp_path / 'bag'
    folder.mkdir()
    for name in ('a.mcap', 'b.mcap'):
        (folder / name).write_bytes(name.encode())
    before = bag_facts(folder)
    (folder / 'b.mcap').rename(folder / 'c.mcap')
    assert bag_facts(folder)['bytes'] == before['bytes'] == 12
    assert bag_facts(folder)['sha256'] != before['sha256']


@pytest.mark.parametrize('line', ['[]', '7', '{"id": [1], "text": "x"}', '{"id": "a", "text": 7}'])
def test_a_line_of_another_form_is_left_out(tmp_path, line):
    write(tmp_path)
    for name in (ANSWERS, COSTS, HEAD):
        with (tmp_path / name).open('a') as file:
            file.write(line + '\n' + '[' * 2000 + '\n')
    assert len(Run.read(tmp_path).texts) == 3


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match='no run'):
        Run.read(tmp_path)
    (tmp_path / ANSWERS).write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(InputError, match='no run'):
        Run.read(tmp_path)
