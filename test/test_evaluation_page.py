# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A report stands alone, tells the same in all its forms, and shows what to look at."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from scored_clips import write_question_set

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import page
from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.clips import read_clip
from minicpmo_ros.evaluation.comparison import judge
from minicpmo_ros.evaluation.results import Given, Results, Run
from minicpmo_ros.evaluation.sheet import contact_sheet
from minicpmo_ros.tools import cli

LENGTHS = (2, 1) * 6


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    return write_question_set(tmp_path_factory.mktemp('set'), LENGTHS)


def run_of(questions, folder, wrong=(), text='red'):
    results = Results(folder, {'model': 'nano', 'count': len(questions.questions)})
    for i, question in enumerate(questions.questions):
        said = 'blue <b>&' if question.id in wrong else text
        results.add(Given(question.id, said, 10.0 + i, 30.0, 1, 2, 100.0 + i))
    results.close()
    return Run.read(folder)


@pytest.fixture(scope='module')
def report(questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    wrong = [q.id for q in questions.questions if q.family == 'scene'][:10]
    runs = {
        'before': run_of(questions, folder / 'a'),
        'after': run_of(questions, folder / 'b', wrong),
    }
    return page.Report(questions, [judge(name, run, questions) for name, run in runs.items()])


def test_the_headline_says_which_questions_got_worse_and_whether_it_is_real(report):
    assert report.headline() == (
        'after against before: -41.7 points, p = 0.002: real. It lost most on scene '
        '(-83.3 points, p = 0.002: real).'
    )
    assert report.agreement() == (
        'Same text on 14 of 24 questions (58.3 %); another one on 0-scene, 1-scene, 2-scene, '
        '3-scene, 4-scene, 5-scene, 6-scene, 7-scene, 8-scene, 9-scene.'
    )
    assert report.family_rows()[1][0] == 'scene'  # the worst change first


def test_the_page_needs_nothing_from_outside(report):
    text = page.html(report, 'Threshold <8>')
    outside = re.findall(r'(?:src|href)\s*=\s*"(?!data:|#)([^"]*)"', text)
    assert not outside and '<script' not in text and '@import' not in text
    assert 'Threshold &lt;8&gt;' in text and 'blue &lt;b&gt;&amp;' in text
    assert text.count('<svg') == 3 and text.count('data:image/jpeg;base64,') == 10

    class Balance(HTMLParser):
        open_tags = []

        def handle_starttag(self, tag, attrs):
            if tag not in ('meta', 'img', 'br', 'path', 'use', 'rect'):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag in ('path', 'use', 'rect', 'br'):
                return
            assert self.open_tags.pop() == tag

    checked = Balance()
    checked.feed(text)
    assert not checked.open_tags


def test_the_same_runs_give_the_same_page(report):
    assert page.html(report) == page.html(report)


def test_markdown_and_csv_tell_what_the_page_tells(report):
    rows = report.rows()
    lines = page.markdown(report).split('\n')
    for row in (*rows, *report.family_rows()):
        assert '| ' + ' | '.join(row) + ' |' in lines
    told = list(csv.DictReader(io.StringIO(page.as_csv(report))))
    assert len(told) == len(report.questions.questions)
    assert sum(int(row['after: right']) for row in told) == len(told) - 10
    assert rows[2][rows[0].index('all')] == f'{100 * (len(told) - 10) / len(told):.1f}'


def test_tables_have_the_shape_of_the_published_ones(questions, tmp_path):
    tasks = list(page.TASKS)
    asked = tuple(replace(q, family=tasks[-1 - i % 6]) for i, q in enumerate(questions.questions))
    named = replace(questions, questions=asked)
    wrong = [q.id for q in asked if q.family == 'Source Discrimination'][:1]
    report = page.Report(named, [judge('q4', run_of(named, tmp_path, wrong), named)])
    assert page.table_csv(report) == (
        'run,MCU,SD,ER,ACU,SU,MA,all\nq4,100.0,75.0,100.0,100.0,100.0,100.0,95.8\n'
    )
    assert '| run | MCU | SD | ER | ACU | SU | MA | all |' in page.markdown(report)


def test_letters_are_scored_both_ways(questions, tmp_path):
    asked = tuple(
        replace(
            q, rule='letter', answers=('B',), options=('A. Red', 'B. Blue', 'C. Green', 'D. No')
        )
        for q in questions.questions
    )
    lettered = replace(questions, questions=asked)
    judged = judge('run', run_of(lettered, tmp_path, text='It is blue.'), lettered)
    assert not any(judged.right) and all(judged.tolerant)
    table = page.Report(lettered, [judged]).rows()
    assert table[1][table[0].index('all, tolerant')] == '100.0'


def test_answers_made_elsewhere_stand_beside_ours(questions, tmp_path, capsys):
    texts = {q.id: 'red' for q in questions.questions}
    AnswerSet(texts, 'pytorch', 'f32').write(tmp_path / 'theirs.json')
    run_of(questions, tmp_path / 'ours', wrong=[questions.questions[0].id])
    asked, page_path = questions.folder / 'questions.json', tmp_path / 'page.html'
    arguments = ['report', str(tmp_path / 'theirs.json'), f'mine={tmp_path / "ours"}']
    assert cli.main([*arguments, '--questions', str(asked), '--out', str(page_path)]) == 0
    told = capsys.readouterr().out
    assert 'mine against theirs: -4.2 points, p = 1: chance would do.' in told
    assert page_path.read_text().count('data:image/jpeg') == 1
    twice = ['report', arguments[1], arguments[1], '--questions', str(asked)]
    assert cli.main([*twice, '--out', str(page_path)]) == 2
    assert 'named alike' in capsys.readouterr().err


def test_the_headline_counts_what_has_no_answer(questions, tmp_path):
    facts = {'model': 'nano', 'count': len(questions.questions)}
    results = Results(tmp_path / 'broken', facts)
    for i, question in enumerate(questions.questions):
        error, text = ('0.mcap: it is cut.', '') if i < 9 else ('', 'red')
        results.add(Given(question.id, text, error=error))
    results.close()
    broken = judge('broken', Run.read(tmp_path / 'broken'), questions)
    well = judge('well', run_of(questions, tmp_path / 'well'), questions)
    told = page.Report(questions, [well, broken]).headline()
    assert 'Without an answer, and counted as wrong, of 24: broken 9, well 0.' in told
    assert 'of 24: broken 9.' in page.Report(questions, [broken]).headline()
    assert 'Without an answer' not in page.Report(questions, [well]).headline()
    head, *rows = page.Report(questions, [well, broken]).rows()
    assert [row[head.index('no answer')] for row in rows] == ['0', '9']


def test_a_run_is_judged_by_the_questions_it_was_asked(questions, tmp_path):
    results = Results(tmp_path, {'questions_sha256': questions.sha256, 'questions': 'doors'})
    for question in questions.questions:
        results.add(Given(question.id, 'red'))
    results.close()
    run = Run.read(tmp_path)
    first, *rest = questions.questions
    for change, is_asked in (({'answers': ('blue',)}, True), ({'text': 'what else?'}, False)):
        other = replace(questions, questions=(replace(first, **change), *rest))
        if is_asked:
            assert not judge('mine', run, other).right[0]
            continue
        with pytest.raises(InputError, match=f"mine: .* {questions.sha256[:12]}.* 'doors'"):
            judge('mine', run, other)


def test_only_the_windows_that_are_shown_are_read(report, monkeypatch):
    read = []

    def reading(*arguments):
        read.append(read_clip(*arguments))
        return read[-1]

    monkeypatch.setattr(page, 'read_clip', reading)
    shown = report.questions.questions[0]
    late = replace(shown, start_s=shown.start_s + 1)
    page._pictures(replace(report.questions, questions=(late,)), page.Sources())
    (clip,) = read
    assert {shot.stamp_ns // 10**9 for shot in clip.pictures} == {late.start_s}
    assert sum(len(samples) for _, samples in clip.sound) <= 16000 * 1.1


def test_a_bag_that_is_gone_is_told_on_the_page(tmp_path, capsys):
    questions = write_question_set(tmp_path, (2, 1))
    for name in ('v1.2', 'v1.3'):
        run_of(questions, tmp_path / name, text='blue')
    (tmp_path / '0.mcap').unlink()
    arguments = ['report', str(tmp_path / 'v1.3'), '--questions', str(questions.folder)]
    arguments[-1] += '/questions.json'
    assert cli.main([*arguments, '--out', str(tmp_path / 'page.html')]) == 0
    text = (tmp_path / 'page.html').read_text()
    assert text.count('there is no such bag') == 2 and text.count('data:image/jpeg') == 2
    capsys.readouterr()
    arguments.insert(1, str(tmp_path / 'v1.2'))
    assert cli.main([*arguments, '--out', str(tmp_path / 'both.html')]) == 0
    assert 'v1.3 against v1.2: ' in capsys.readouterr().out
    assert cli.main([*arguments, '--out', str(tmp_path / 'page.md')]) == 2
    assert 'ends in .html' in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(questions, tmp_path):
    run = run_of(questions.first(3), tmp_path)
    with pytest.raises(InputError, match=f'21 of {len(questions.questions)} questions are not'):
        judge('half', run, questions)


def test_a_sheet_shows_every_second_and_its_sound(questions):
    clip = read_clip(questions.path_of('0.mcap'))
    sheet = contact_sheet(clip)
    assert sheet.size == (2 * 132 + 4, 190)
    first, second = (sheet.crop((4 + i * 132, 18, 132 + i * 132, 146)) for i in range(2))
    assert first.getpixel((45, 55))[0] > 150 > first.getpixel((45, 55))[1]  # a red square
    assert second.getpixel((45, 55))[1] > 120 > second.getpixel((45, 55))[0]  # a green one
    wave = sheet.crop((4, 147, 132, 186))
    assert len(Image.Image.getcolors(wave)) >= 2
    with pytest.raises(InputError, match='do not fit'):
        contact_sheet(clip, clip.first_s, clip.first_s + 5000)
