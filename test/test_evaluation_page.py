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
from scored_clips import write_question_set, write_test_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.report import page, runs
from minicpmo_ros.evaluation.report.comparison import judge
from minicpmo_ros.evaluation.report.plots import contact_sheet
from minicpmo_ros.evaluation.report.runs import TASKS, RunReport
from minicpmo_ros.evaluation.results import Given, Results, Run

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
    return RunReport(questions, [judge(name, run, questions) for name, run in runs.items()])


def test_the_headline_says_which_questions_got_worse_and_whether_it_is_real(report):
    assert report.headline() == (
        'after against before: -41.7 points, p = 0.002: real. It lost most on scene '
        '(-83.3 points, p = 0.0039: real).'
    )
    assert report.agreement() == (
        'Same text on 14 of 24 questions (58.3 %); another one on 0-scene, 1-scene, 2-scene, '
        '3-scene, 4-scene, 5-scene, 6-scene, 7-scene, 8-scene, 9-scene. 10 answers lost, 0 won, '
        '0 wrong as before but with another answer, 0 only worded otherwise.'
    )
    assert report.family_rows()[1][0] == 'scene'  # the worst change first


def judged(questions, folder, texts: dict, facts=None, name='run', start=None):
    """Give a run with these texts by id, 'red' for others."""
    results = Results(folder, {'count': len(questions.questions), **(facts or {})}, None, start)
    for question in questions.questions:
        results.add(Given(question.id, texts.get(question.id, 'red')))
    results.close()
    return judge(name, Run.read(folder), questions)


def test_the_way_an_answer_changed_is_told(questions, tmp_path):
    before = judged(
        questions, tmp_path / 'a', {'0-scene': 'blue', '1-scene': 'Blue', '2-scene': 'x'}
    )
    said = {'0-scene': 'green', '1-scene': 'blue.', '3-scene': 'Red.', '4-scene': 'blue'}
    after = judged(questions, tmp_path / 'b', said, name='after')
    report = RunReport(questions, [before, after])
    ids = {questions.questions[i].id: change for i, change in report.what_changed().items()}
    assert ids == {
        '4-scene': 'lost',
        '2-scene': 'won',
        '0-scene': 'another wrong answer',
        '1-scene': 'worded otherwise',
        '3-scene': 'worded otherwise',
    }
    told = (
        '1 answers lost, 1 won, 1 wrong as before but with another answer, 2 only worded otherwise'
    )
    assert told in report.agreement() and told in page.html(report)
    assert '0.mcap</bdi>: another wrong answer' in page.html(report)


def test_what_the_runs_were_made_with_is_compared_in_words(questions, tmp_path):
    facts = {'model': 'nano', 'options': {'n_ctx': 4096}, 'weights': {'llm': 'a' * 64}}
    start = {'software': {'llama-cpp-python': '0.3.36'}, 'host': 'orin', 'time': 'monday'}
    first = judged(questions, tmp_path / 'a', {}, facts, 'before', start)
    other = {**facts, 'options': {'n_ctx': 8192}, 'weights': {'llm': 'b' * 64}}
    later = {**start, 'software': {'llama-cpp-python': '0.3.40'}, 'time': 'friday'}
    second = judged(questions, tmp_path / 'b', {}, other, 'after', later)
    report = RunReport(questions, [first, second])
    assert report.made_differently() == (
        'after was made otherwise than before: options n_ctx 8192 (was 4096); weights llm '
        'bbbbbbbbbbbb… (was aaaaaaaaaaaa…); software llama-cpp-python 0.3.40 (was 0.3.36).'
    )
    for text in (page.html(report), runs.markdown(report)):
        assert text.index('options n_ctx 8192 (was 4096)') < text.index('95 % interval')
    alike = RunReport(questions, [first, replace(first, name='again')])
    assert alike.made_differently() == (
        'again was made like before: same model, options and software.'
    )


def test_a_bag_that_differs_between_the_runs_is_told(tmp_path):
    questions = write_question_set(tmp_path, (1, 2))
    made = []
    for name in 'ab':
        results = Results(tmp_path / name, {'count': 4}, questions, {})
        for question in questions.questions:
            results.add(Given(question.id, 'red'))
        results.close()
        made.append(judge(name, Run.read(tmp_path / name), questions))
        write_test_clip(questions.path_of('1.mcap'), 3)
    report = RunReport(questions, made)
    told = report.made_differently()
    assert 'They were not asked about the same recordings: 1.mcap (1 bags)' in told
    # Nor does the page show one recording as what was seen in another.
    wrong = replace(made[1], right=(False,) * 4, texts=('blue',) * 4)
    text = page.html(RunReport(questions, [made[0], wrong]))
    assert text.count('1.mcap is not the bag that was read') == 2
    assert text.count('data:image/jpeg') == 2


def test_names_and_answers_stay_texts_in_every_form(questions, tmp_path):
    strange = '=1+1|x\\|<b>\n@y'
    asked = tuple(replace(q, family=strange, text='+49') for q in questions.questions)
    odd = replace(questions, questions=asked)
    one = replace(judged(odd, tmp_path / 'a', {'0-scene': '-2+3'}), name='=cmd|x')
    two = replace(judged(odd, tmp_path / 'b', {'0-scene': '\t=1'}), name='_$x$')
    report = RunReport(odd, [one, two])
    rows = list(csv.reader(io.StringIO(runs.as_csv(report))))
    assert rows[0][8] == "'=cmd|x: answer" and rows[1][4] == "'" + strange
    assert rows[1][6] == "'+49" and rows[1][8] == "'-2+3" and rows[1][11] == "'\t=1"
    assert next(csv.reader(io.StringIO(runs.table_csv(report))))[1] == "'" + strange
    for line in runs.markdown(report).split('\n'):
        if line.startswith('| '):
            columns = re.sub(r'\\.', '', line).count('|') - 1
            assert columns in (3, 5, 9) and '<b>' not in line
    text = page.html(report)
    assert '<b>' not in text and '=cmd|x' in text and '_$x$' in text


def test_charts_name_what_they_show_in_any_script(questions, tmp_path):
    families = ('场景理解', 'فهم المشهد', '_under $a$ b', 'Scene')
    asked = tuple(replace(q, family=families[i % 4]) for i, q in enumerate(questions.questions))
    odd = replace(questions, questions=asked)
    report = RunReport(
        odd, [run_judged(odd, tmp_path / name, name) for name in ('_q4', '量化 $x$')]
    )
    drawn = page.plots.accuracy({**report.families, 'all': report.total}, report.names)
    told = re.findall(r'<text[^>]*>([^<]*)</text>', drawn)
    assert {*families, *report.names, 'all'} <= set(told)
    assert 'currentColor' in drawn and page.plots.INK not in drawn


def run_judged(questions, folder, name):
    return judge(name, run_of(questions, folder), questions)


def test_plots_of_nothing_are_left_out(questions, tmp_path):
    bare = judged(questions, tmp_path / 'a', {})
    bare.run.costs.clear()
    assert page.html(RunReport(questions, [bare])).count('<svg') == 1
    AnswerSet({q.id: 'red' for q in questions.questions}, 'pytorch').write(tmp_path / 'x.json')
    imported = judge('theirs', Run.of_answers(tmp_path / 'x.json'), questions)
    assert page.html(RunReport(questions, [imported])).count('<svg') == 1


def test_few_clips_prove_nothing(tmp_path):
    few = write_question_set(tmp_path, (1,) * 5)
    runs = [
        run_of(few, tmp_path / 'a'),
        run_of(few, tmp_path / 'b', [q.id for q in few.questions]),
    ]
    report = RunReport(few, [judge(name, run, few) for name, run in zip('ab', runs)])
    assert 'b against a: -100.0 points, p = 0.062: chance would do.' in report.headline()
    assert '5 clips are too few to call any difference real.' in report.headline()


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
    lines = runs.markdown(report).split('\n')
    for row in (*rows, *report.family_rows()):
        assert '| ' + ' | '.join(row) + ' |' in lines
    told = list(csv.DictReader(io.StringIO(runs.as_csv(report))))
    assert len(told) == len(report.questions.questions)
    assert sum(int(row['after: right']) for row in told) == len(told) - 10
    assert rows[2][rows[0].index('all')] == f'{100 * (len(told) - 10) / len(told):.1f}'


def test_tables_have_the_shape_of_the_published_ones(questions, tmp_path):
    tasks = list(TASKS)
    asked = tuple(replace(q, family=tasks[-1 - i % 6]) for i, q in enumerate(questions.questions))
    named = replace(questions, questions=asked)
    wrong = [q.id for q in asked if q.family == 'Source Discrimination'][:1]
    report = RunReport(named, [judge('q4', run_of(named, tmp_path, wrong), named)])
    assert runs.table_csv(report) == (
        'run,MCU,SD,ER,ACU,SU,MA,all\nq4,100.0,75.0,100.0,100.0,100.0,100.0,95.8\n'
    )
    assert '| run | MCU | SD | ER | ACU | SU | MA | all |' in runs.markdown(report)


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
    table = RunReport(lettered, [judged]).rows()
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
    told = RunReport(questions, [well, broken]).headline()
    assert 'Without an answer, and counted as wrong, of 24: broken 9, well 0.' in told
    assert 'of 24: broken 9.' in RunReport(questions, [broken]).headline()
    assert 'Without an answer' not in RunReport(questions, [well]).headline()
    head, *rows = RunReport(questions, [well, broken]).rows()
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
    page.find_images(replace(report.questions, questions=(late,)), page.Sources())
    (clip,) = read
    assert {shot.stamp_ns // 10**9 for shot in clip.images} == {late.start_s}
    assert sum(len(samples) for _, samples in clip.audio) <= 16000 * 1.1


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
