# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A long run gives the same file however many processes work on it and however often it dies."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest
from scored_clips import write_question_set

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import replay
from minicpmo_ros.evaluation.bags.clip import Sources
from minicpmo_ros.evaluation.results import ANSWERS, Results, Run
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model

OPTIONS = CoreOptions(device='cpu', threads=1, n_ctx=1024, max_tokens=4)
KILLS = 12


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp('replay')
    model = write_model(folder / 'nano', 'nano', llm_type='f32')
    questions = write_question_set(folder, lengths=(2, 1, 3, 1, 2, 1))
    return replay.ReplayPlan(ModelDirectory.open(model), questions, OPTIONS)


def answer(plan, folder, workers=1, gpus=()):
    results = Results(folder, plan.facts())
    try:
        replay.run(plan, results, replay.CoreAnswerer, replay.Workers(workers, gpus))
    finally:
        results.close()
    return (folder / ANSWERS).read_bytes()


@pytest.fixture(scope='module')
def whole(plan, tmp_path_factory):
    return answer(plan, tmp_path_factory.mktemp('whole') / 'run')


def test_a_run_answers_as_the_score_does(plan, whole, tmp_path):
    (tmp_path / ANSWERS).write_bytes(whole)
    core = Core(plan.model, OPTIONS)
    (scored,) = answer_all(core, plan.questions, [Variant()])
    core.close()
    assert Run.read(tmp_path).texts == scored.answers


def test_three_workers_leave_the_same_bytes_and_each_sees_the_gpu_it_was_given(
    plan, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7')
    seen = []

    kind = type(multiprocessing.get_context('spawn')).Process
    start = kind.start

    def noting(process):
        seen.append(os.environ.get('CUDA_VISIBLE_DEVICES'))
        start(process)

    monkeypatch.setattr(kind, 'start', noting)
    assert answer(plan, tmp_path / 'run', workers=3, gpus=('0', '3')) == whole
    assert seen == ['0', '3', '0'] and os.environ['CUDA_VISIBLE_DEVICES'] == '7'
    with pytest.raises(InputError, match='0 workers'):
        replay.Workers(0)


def test_killed_at_random_a_run_ends_with_every_question_answered_once(plan, whole, tmp_path):
    folder, rng = tmp_path / 'run', random.Random(3)
    # A server that has imported everything forks quickly, and has no threads.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__, 'minicpmo_ros.evaluation.replay'])
    for _ in range(KILLS):
        process = context.Process(target=answer, args=(plan, folder))
        process.start()
        size = _size(folder)
        # Now and then before the first answer, mostly after one or two more.
        wanted, end_s = size + rng.choice((0, 1, 1, 60)), time.monotonic() + 60
        while _size(folder) < wanted and process.is_alive() and time.monotonic() < end_s:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    answer(plan, folder)
    found, expected = Run.read(folder), whole.decode().splitlines()
    assert len(found.texts) == len(plan.questions.questions)
    written = (folder / ANSWERS).read_text().splitlines()
    assert [line for line in written if line in expected] == expected


def _size(folder):
    try:
        return (folder / ANSWERS).stat().st_size
    except FileNotFoundError:
        return 0


def test_a_bad_clip_costs_its_questions_only(plan, whole, tmp_path):
    spoilt = plan.questions.path_of('2.mcap')
    kept = spoilt.read_bytes()
    spoilt.write_bytes(b'nothing')
    answer(plan, tmp_path / 'run')
    spoilt.write_bytes(kept)
    run = Run.read(tmp_path / 'run')
    assert len(run.texts) == len(plan.questions.questions)
    bad = [name for name, cost in run.costs.items() if cost['error']]
    assert bad == ['2-scene', '2-source'] and 'damaged' in run.costs['2-scene']['error']
    (tmp_path / ANSWERS).write_bytes(whole)
    others = {k: v for k, v in Run.read(tmp_path).texts.items() if k not in bad}
    assert {k: v for k, v in run.texts.items() if k not in bad} == others


def test_a_bad_window_costs_its_question_only(plan, tmp_path):
    questions = list(plan.questions.questions)
    questions[1] = replace(questions[1], start_s=questions[1].start_s + 5000, end_s=2**30 + 10**9)
    questions[1] = replace(questions[1], end_s=questions[1].start_s + 2)
    spoilt = replace(plan, questions=replace(plan.questions, questions=tuple(questions[:4])))
    answer(spoilt, tmp_path / 'run')
    run = Run.read(tmp_path / 'run')
    assert [name for name, cost in run.costs.items() if cost['error']] == [questions[1].id]
    assert run.costs[questions[0].id]['units'] == 2


def changed(plan, *changes):
    """Give a plan whose first questions are changed; the others are left out."""
    asked = tuple(replace(q, **c) for q, c in zip(plan.questions.questions, changes))
    return replace(plan, questions=replace(plan.questions, questions=asked))


def test_a_question_that_cannot_be_asked_costs_itself_only(plan, tmp_path):
    long, wide = {'text': 'and then ' * 300}, {'choices': ('red', 'a' * 17)}
    some = changed(plan, {}, {'id': 'a', **long}, {'id': 'b', **wide}, {'id': 'c'})
    answer(some, tmp_path / 'run')
    run = Run.read(tmp_path / 'run')
    assert set(run.unanswered) == {'a', 'b'}
    assert 'tokens long' in run.unanswered['a'] and 'max_tokens allows 4' in run.unanswered['b']


def test_questions_too_long_are_told_before_a_bag_is_read(plan, tmp_path, monkeypatch):
    some = changed(plan, {}, {'id': 'a', 'text': 'and then ' * 300})
    options = replace(OPTIONS, max_question_tokens=100)
    arguments = (plan.model, some.questions, options, plan.variant, plan.sources)
    made = replay.ReplayPlan.make(*arguments)
    assert list(made.refused) == ['a'] and made.refusals().startswith('1 of 2 questions cannot')
    only = replace(made, questions=replace(made.questions, questions=made.questions.questions[1:]))
    monkeypatch.setattr(replay, 'read_windows', lambda *_: pytest.fail('a bag was read'))
    answer(only, tmp_path / 'run')
    assert 'at most 100 are allowed' in Run.read(tmp_path / 'run').unanswered['a']


def test_what_is_not_whole_is_noted_with_its_answers(plan, tmp_path):
    path = tmp_path / '0.mcap'
    data = plan.questions.path_of('0.mcap').read_bytes()
    longer = changed(plan, {}, {'end_s': plan.questions.questions[1].end_s + 3})
    path.write_bytes(data)
    here = replace(longer, questions=replace(longer.questions, folder=tmp_path))
    answer(here, tmp_path / 'short')
    costs = Run.read(tmp_path / 'short').costs
    assert [cost['note'] for cost in costs.values()] == [
        '',
        '2 of 5 seconds have an image or audio.',
    ]
    path.write_bytes(data[: len(data) * 6 // 10])
    answer(changed(here, {}), tmp_path / 'cut')
    (cost,) = Run.read(tmp_path / 'cut').costs.values()
    assert not cost['error'] and cost['note'].startswith('0.mcap: ')
    assert 'rest on what is not whole' in Run.read(tmp_path / 'cut').summary()[0]


def test_a_run_gone_on_with_leaves_the_bytes_of_one_that_was_not_killed(plan, tmp_path):
    """Whatever the order of windows in the file, and whichever begin together."""
    start_s = plan.questions.questions[4].start_s  # of a clip of 3 s
    windows = ((0, 2), (1, 3), (0, 3), (0, 2), (1, 3))
    asked = tuple(
        replace(
            plan.questions.questions[4], id=f'{i}', start_s=start_s + begin, end_s=start_s + end
        )
        for i, (begin, end) in enumerate(windows)
    )
    mixed = replace(plan, questions=replace(plan.questions, questions=asked))
    expected = answer(mixed, tmp_path / 'whole')
    assert list(Run.read(tmp_path / 'whole').texts) == ['0', '3', '1', '4', '2']
    for lines in (2, 4):  # the head and one or three answers
        folder = tmp_path / f'{lines}'
        folder.mkdir()
        (folder / ANSWERS).write_bytes(b''.join(expected.splitlines(True)[:lines]))
        assert answer(mixed, folder) == expected


def test_what_decides_about_answers_is_in_the_head(plan):
    facts = plan.facts()
    assert facts['device'] == 'cpu' and facts['options']['n_ubatch'] == OPTIONS.n_ubatch
    for other in (
        replace(plan, options=replace(OPTIONS, n_ubatch=64)),
        replace(plan, sources=Sources('/camera')),
        changed(plan, {}),
    ):
        assert other.facts() != facts


def test_how_answers_open_is_of_the_run_as_it_was_decided(plan, tmp_path):
    def told(speech):
        return replace(plan, options=replace(OPTIONS, speech=speech)).facts()

    assert told('auto') == told('true') == told(True) and told('auto')['options']['speech']
    assert told('false') != told('auto')
    model = replace(plan.model, manifest=replace(plan.model.manifest, speech=False))
    assert not replace(plan, model=model).facts()['options']['speech']


def test_why_a_worker_cannot_work_is_told_and_refuses_no_other_run(plan, tmp_path, capfd):
    options = replace(OPTIONS, prompt='klingon')
    with pytest.raises(replay.EngineError, match="no prompt 'klingon'"):
        answer(replace(plan, options=options), tmp_path / 'run', workers=2)
    assert 'Traceback' not in capfd.readouterr().err
    assert len(answer(changed(plan, {}), tmp_path / 'run').splitlines()) == 2


def test_a_run_grows_from_the_command_line_and_its_head_says_with_what(plan, tmp_path, capsys):
    out, asked = tmp_path / 'run', plan.questions.folder / 'questions.json'
    arguments = ['replay', str(plan.model.path), str(asked), '--out', str(out), '--device', 'cpu']
    arguments += ['--n-ctx', '2048', '--max-tokens', '4', '--threads', '1']
    assert cli.main([*arguments, '--limit', '2']) == 0
    assert cli.main([*arguments, '--limit', '4']) == 0
    assert '2 questions were answered before' in capsys.readouterr().err
    run = Run.read(out)
    assert len(run.texts) == run.count == 4
    first, second = run.head.starts
    assert (first['count'], second['count'], first['threads']) == (2, 4, 1)
    assert first['host'] and first['time'].endswith('+00:00')
    assert first['software']['llama-cpp-python'][0].isdigit()
    assert set(run.head.bags) == {'0.mcap', '1.mcap'}
    assert cli.main([*arguments[:3], '--out', str(tmp_path / 'whole'), *arguments[5:]]) == 0
    whole = Run.read(tmp_path / 'whole').texts
    assert run.texts == {name: whole[name] for name in run.texts}


def test_a_run_without_any_answer_ends_with_a_status(plan, tmp_path, capsys):
    folder = tmp_path / 'set'
    folder.mkdir()
    for name in ('0.mcap', '1.mcap'):
        (folder / name).write_bytes(b'nothing')
    replace(plan.questions, questions=plan.questions.questions[:4]).write(folder / 'q.json')
    arguments = ['replay', str(plan.model.path), str(folder / 'q.json'), '--device', 'cpu']
    assert cli.main([*arguments, '--out', str(tmp_path / 'run')]) == 1
    assert '4 of 4 have no answer' in capsys.readouterr().err
