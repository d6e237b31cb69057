# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Other tools' files of a report hold what they need, and tell the same."""

import json
import re
from dataclasses import replace

import pytest
from scored_clips import write_question_set

from minicpmo_ros.cli import main as cli
from minicpmo_ros.evaluation.report import interchange
from minicpmo_ros.evaluation.report.comparison import judge
from minicpmo_ros.evaluation.report.runs import RunReport
from minicpmo_ros.evaluation.results import Given, Results, Run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Give a folder with a set of questions and two runs; of 'after' two are wrong, one failed."""
    folder = tmp_path_factory.mktemp('runs')
    questions = write_question_set(folder, (1, 2) * 4)
    for name, wrong in (('before', ()), ('after', ('0-scene', '2-source'))):
        start = {'time': '2026-02-03T04:05:06+00:00', 'software': {'numpy': '2.0'}}
        facts = {'model': 'nano', 'count': 16}
        results = Results(folder / name, facts, questions, start)
        for question in questions.questions:
            error = 'the bag is cut.' if question.id in wrong[1:] else ''
            text = '' if error else 'blue' if question.id in wrong else 'red'
            results.add(Given(question.id, text, 10.0, error=error))
        results.close()
    return folder


def report(runs, folder, *more, names=('before', 'after')) -> int:
    arguments = ['report', *(str(runs / name) for name in names)]
    arguments += ['--questions', str(runs / 'questions.json'), '--out', str(folder / 'page.html')]
    return cli.main([*arguments, *more])


def written(runs, folder) -> dict:
    """Give the files of the last run, by the part of their name before the time."""
    assert report(runs, folder, '--json', str(folder / 'json')) == 0
    files = {path.name: path for path in (folder / 'json' / 'after').iterdir()}
    return {re.sub(r'_?2026-.*', '', name): path for name, path in files.items()}


def test_lm_eval_finds_results_and_samples(runs, tmp_path):
    files = written(runs, tmp_path)
    assert set(files) == {'results', 'samples_scene', 'samples_source', ''}
    assert files['results'].name == 'results_2026-02-03T04-05-06+00-00.json'
    found = json.loads(files['results'].read_text())
    assert found['results']['scene']['acc,none'] == 7 / 8
    assert found['results']['test']['acc,none'] == 14 / 16
    assert 0 < found['results']['test']['acc_stderr,none'] < 0.2
    assert found['n-samples']['source'] == {'original': 8, 'effective': 8}
    for name in ('versions', 'n-shot', 'higher_is_better', 'group_subtasks'):
        assert set(found['results']) <= set(found[name])  # as its table of results asks for
    assert found['group_subtasks']['test'] == ['scene', 'source']
    lines = files['samples_scene'].read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 8 and first['acc'] == 0.0 and first['filtered_resps'] == ['blue']
    assert first['doc']['question'] == 'what about the scene?' and first['target'] == ['red']


def test_inspect_finds_a_log(runs, tmp_path):
    path = written(runs, tmp_path)['']
    assert re.fullmatch(r'2026-02-03T04-05-06\+00-00_test_\w{22}\.json', path.name)
    log = json.loads(path.read_text())
    assert (log['version'], log['status']) == (2, 'success')
    assert {'created', 'task', 'dataset', 'model', 'config'} <= set(log['eval'])
    assert log['results']['scores'][0]['metrics']['accuracy'] == {
        'name': 'accuracy',
        'value': 14 / 16,
    }
    assert log['results']['completed_samples'] == 15 and log['eval']['packages']['numpy'] == '2.0'
    samples = {sample['id']: sample for sample in log['samples']}
    assert samples['0-scene']['scores']['right'] == {'value': 'I', 'answer': 'blue'}
    assert samples['1-scene']['output']['choices'][0]['message']['content'] == 'red'
    assert samples['2-source']['error']['message'] == 'the bag is cut.'


def test_a_build_fails_below_the_share_that_is_asked_for(runs, tmp_path, capsys):
    assert report(runs, tmp_path, '--fail-under', '87.5') == 0
    assert report(runs, tmp_path, '--fail-under', '88') == 1
    assert 'after: 87.5 % are right, fewer than 88 %.' in capsys.readouterr().err
    assert report(runs, tmp_path, '--fail-under', '88', names=('before',)) == 0
    with pytest.raises(SystemExit):
        report(runs, tmp_path, '--fail-under', '101')


def test_a_run_without_answers_fails_a_build(runs, tmp_path, capsys):
    results = Results(tmp_path / 'empty', {'count': 16})
    for i in range(8):
        for family in ('scene', 'source'):
            results.add(Given(f'{i}-{family}', '', error='no bag.'))
    results.close()
    assert report(runs, tmp_path, names=('before', tmp_path / 'empty')) == 1
    assert 'empty has no answer to any question.' in capsys.readouterr().err


def test_names_that_files_cannot_have_lose_nothing(tmp_path):
    made = write_question_set(tmp_path, (1,) * 4)
    families = ('a/b', 'a b', '声音' * 200, 'test', '..')
    asked = tuple(replace(q, family=families[i % 5]) for i, q in enumerate(made.questions))
    questions = replace(made, questions=asked)
    results = Results(tmp_path / 'run', {'count': 8})
    for question in asked:
        results.add(Given(question.id, 'red'))
    results.close()
    judged = [judge(name, Run.read(tmp_path / 'run'), questions) for name in ('q4/1', 'q4 1')]
    found = interchange.write(RunReport(questions, judged), tmp_path / 'json')
    assert len({path for path in found}) == len(found) == 2 * (5 + 2)
    results = json.loads(found[0].read_text())['results']
    assert set(results) == {*families, 'test (all)'}
