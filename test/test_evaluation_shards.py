# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Shards of a run are joined to the bytes of one run, or refused by what is wrong."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scored_clips import write_question_set

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import replay, shards
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.results import ANSWERS, COSTS, HEAD, Given, Results, Run
from minicpmo_ros.evaluation.shards import Shard, join

FACTS = {'model': 'nano', 'options': {'n_ctx': 1024, 'speech': False}}
TEXTS = ('red', '"at": 3}', 'a\nb \\', '颜色, "at": 7}', '\x01', '', '", "at": 1}\n')


def planned(questions) -> replay.ReplayPlan:
    return replay.ReplayPlan(None, questions)


def questions_about(bags, rng) -> QuestionSet:
    """Make questions about bags, in any order, of which some share a window."""
    made = []
    for i in range(bags):
        for k in range(rng.randint(1, 4)):
            start_s = rng.randint(0, 2)
            made.append(
                ScoredQuestion(f'{i}-{k}', f'{i}.mcap', start_s, 3, 'all', f'what {k}?', ('red',))
            )
    rng.shuffle(made)
    return QuestionSet(tuple(made), 'bags', folder=Path('/nowhere'))


def answers_to(questions) -> list:
    """Give the answers in the order of a run, of texts that look like the end of a line."""
    asked = sum(questions.by_clip().values(), [])
    return [Given(q.id, TEXTS[sum(map(ord, q.id)) % len(TEXTS)] + q.id) for q in asked]


def facts_of(questions, **changes) -> dict:
    return {
        **FACTS, 'count': len(questions.questions), 'questions_sha256': questions.sha256, **changes
    }  # fmt: skip


def write_whole(folder, questions) -> bytes:
    results = Results(folder, facts_of(questions), questions, {'time': 'now'})
    for given in answers_to(questions):
        results.add(given)
    results.close()
    return (folder / ANSWERS).read_bytes()


def write_shard(out, shard, questions, most=None, **changes) -> Path:
    """Answer the questions of a shard, or what is left of them, at most so many."""
    plan, facts, places = shard.cut(planned(questions), facts_of(questions, **changes))
    folder = shard.folder(out)
    results = Results(folder, facts, plan.questions, {'time': 'now', 'software': {}}, places)
    left = [given for given in answers_to(plan.questions) if given.id not in results.done]
    for given in left[:most]:
        results.add(given)
    results.begin()
    results.close()
    return folder


@pytest.mark.parametrize('seed', range(30))
def test_any_split_joins_to_the_bytes_of_the_whole_run(tmp_path, seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(shards, 'LEAST_BUFFER', rng.choice((1, 40, 4096)))
    monkeypatch.setattr(shards, 'BUFFERS_BYTES', 1)
    monkeypatch.setattr(shards, 'AT_ONCE', rng.choice((1, 3, 2**20)))
    questions = questions_about(rng.randint(1, 12), rng)
    count = rng.randint(1, 14)
    expected = write_whole(tmp_path / 'whole', questions)
    folders = []
    for index in range(count):
        for _ in range(rng.randint(0, 3)):  # killed: a line is whole, cut, or not there
            folder = write_shard(tmp_path, Shard(index, count), questions, rng.randint(0, 2))
            path = folder / ANSWERS
            path.write_bytes(path.read_bytes()[: -rng.choice((1, 1, 3, 30))])
        folders.append(write_shard(tmp_path, Shard(index, count), questions))
    rng.shuffle(folders)
    joined = join(tmp_path / 'joined', folders)
    assert (tmp_path / 'joined' / ANSWERS).read_bytes() == expected
    assert (joined.shards, joined.answers) == (count, len(questions.questions))
    run, whole = Run.read(tmp_path / 'joined'), Run.read(tmp_path / 'whole')
    assert run.texts == whole.texts and run.costs == whole.costs and run.count == whole.count


def test_a_bag_keeps_its_shard_whatever_is_asked_beside_it():
    rng = random.Random(1)
    questions = questions_about(40, rng)
    turned = replace(questions, questions=questions.questions[::-1])
    few = replace(questions, questions=questions.questions[::3])
    for index in range(8):
        shard = Shard(index, 8)
        (plan, _, places), (other, _, _), (less, _, _) = (
            shard.cut(planned(some), {}) for some in (questions, turned, few)
        )
        assert {q.id for q in plan.questions.questions} == {
            q.id for q in other.questions.questions
        }
        kept = {q.id for q in less.questions.questions}
        assert kept == {q.id for q in plan.questions.questions} & {q.id for q in few.questions}
        assert all(shard.takes(clip) for clip in places)
    taken = [sum(Shard(i, 8).takes(q.clip) for q in questions.questions) for i in range(8)]
    assert sum(taken) == len(questions.questions) and max(taken) < len(questions.questions)


def test_what_is_no_shard_is_refused():
    for text in ('64/64', '3', '-1/4', '0/0', '1/2/3', 'a/b', '0/999999'):
        with pytest.raises(InputError, match='is no shard'):
            Shard.parse(text)
    assert str(Shard.parse('3/64')) == '3/64'
    assert Shard.parse('3/64').folder('run') == Path('run/shards/003-of-064')


@pytest.fixture
def split(tmp_path):
    """Four shards of a run, (questions, their folders)."""
    questions = questions_about(12, random.Random(2))
    return questions, [write_shard(tmp_path, Shard(i, 4), questions) for i in range(4)]


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'model': 'other'}, 'model "other" instead of "nano"'),
        ({'options': {'n_ctx': 2048, 'speech': False}}, 'options n_ctx 2048 instead of 1024'),
        ({'questions_sha256': '0' * 64}, 'questions_sha256 "000'),
        ({'input': 'no_sound'}, 'input "no_sound" instead of null'),
    ],
)
def test_a_shard_of_another_run_is_refused_by_what_differs(tmp_path, split, changes, said):
    questions, folders = split
    folders[2] = write_shard(tmp_path / 'other', Shard(2, 4), questions, **changes)
    with pytest.raises(InputError) as told:
        join(tmp_path / 'joined', folders)
    assert said in str(told.value) and str(folders[2]) in str(told.value)
    assert not (tmp_path / 'joined').exists()


def test_shards_that_are_missing_or_there_twice_are_named(tmp_path, split):
    questions, folders = split
    with pytest.raises(InputError, match='2 of 4 shards are missing: 1, 3'):
        join(tmp_path / 'joined', folders[::2])
    again = shutil.copytree(folders[1], tmp_path / 'again')
    with pytest.raises(InputError, match=r'again are both shard 1/4'):
        join(tmp_path / 'joined', [*folders, again])
    with pytest.raises(InputError, match='is one of 5 shards'):
        join(tmp_path / 'joined', [*folders, write_shard(tmp_path, Shard(0, 5), questions)])
    with pytest.raises(InputError, match='there is no shard'):
        join(tmp_path / 'joined', [])
    write_whole(tmp_path / 'whole', questions)
    with pytest.raises(InputError, match='a whole run and no shard'):
        join(tmp_path / 'joined', [tmp_path / 'whole'])
    with pytest.raises(InputError, match='nowhere'):
        join(tmp_path / 'joined', [tmp_path / 'nowhere'])
    assert not (tmp_path / 'joined').exists()


def test_answers_that_are_missing_twice_or_damaged_are_found(tmp_path, split):
    _, folders = split
    path = folders[0] / ANSWERS
    whole = path.read_bytes()
    lines = whole.splitlines(True)
    damaged = bytearray(whole)
    damaged[whole.index(b'"text"') + 1] ^= 1
    for data, said in (
        (b''.join(lines[:-1]), rf'0/4 \({len(lines) - 2} of {len(lines) - 1} answers\)'),
        (b''.join(lines[:2] + lines[3:]), 'are not complete'),
        (whole + lines[-1], 'has answers twice'),
        (b''.join([lines[0], *lines[:0:-1]]), 'out of their order'),
        (bytes(damaged), 'is damaged'),
        (whole.replace(b'"at": ', b'"at": 99'), 'behind the last'),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=said):
            join(tmp_path / 'joined', folders)
    path.write_bytes(whole[:-1])  # the end of the last line is all that a kill took
    assert join(tmp_path / 'joined', folders).shards == 4
    with pytest.raises(InputError, match='a run is there already'):
        join(tmp_path / 'joined', folders)


def test_a_shard_that_is_being_written_is_refused(tmp_path, split):
    questions, folders = split
    plan, facts, places = Shard(1, 4).cut(planned(questions), facts_of(questions))
    results = Results(folders[1], facts, plan.questions, {}, places)
    with pytest.raises(InputError, match='a replay is writing there'):
        join(tmp_path / 'joined', folders)
    results.close()
    assert join(tmp_path / 'joined', folders).shards == 4


def test_a_shard_does_not_grow_and_its_folder_takes_no_other(tmp_path, split):
    questions, folders = split
    more = ScoredQuestion('new', '0.mcap', 0, 3, 'all', 'what new?', ('red',))
    grown = replace(questions, questions=(*questions.questions, more))
    with pytest.raises(
        InputError, match='another run is there: count .* instead of .*, questions_sha256'
    ):
        write_shard(tmp_path, Shard(0, 4), grown)
    folders[0].rename(Shard(0, 5).folder(tmp_path))
    with pytest.raises(InputError, match='another run is there: shard'):
        write_shard(tmp_path, Shard(0, 5), questions)


def test_starts_and_costs_of_all_shards_are_kept(tmp_path, split):
    questions, folders = split
    with (folders[0] / HEAD).open('a') as file:
        file.write('{"begun": {"software": {"numpy": "1"}, "count": 1}}\n{"cut')
    with (folders[0] / COSTS).open('a') as file:
        file.write('{"id": "cut')
    joined = join(tmp_path / 'joined', folders)
    assert joined.software == ('{"numpy": "1"}', '{}')
    run = Run.read(tmp_path / 'joined')
    assert [start['shard'] for start in run.head.starts] == ['0/4', '0/4', '1/4', '2/4', '3/4']
    assert all(cost for cost in run.costs.values()) and len(run.costs) == len(questions.questions)


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    """Arguments of a replay of real questions by a model of random weights, without --out."""
    from minicpmo_ros.synthetic.model import write_model

    folder = tmp_path_factory.mktemp('asked')
    model = write_model(folder / 'nano', 'nano', llm_type='f32')
    write_question_set(folder, (1, 2, 1, 1))
    options = ['--device', 'cpu', '--n-ctx', '1024', '--max-tokens', '4', '--threads', '1']
    return ['replay', str(model), str(folder / 'questions.json'), *options, '--out']


def test_the_command_line_asks_shards_and_joins_them(asked, tmp_path, capsys):
    assert cli.main([*asked, str(tmp_path / 'whole')]) == 0
    out = tmp_path / 'run'
    bags = []
    for index in range(5):  # more than there are bags: some have none
        shard = [*asked, str(out), '--shard', f'{index}/5']
        capsys.readouterr()
        assert cli.main([*shard, '--list-bags']) == 0
        mine = capsys.readouterr().out.split()
        bags += mine
        assert cli.main(shard) == 0
        assert ('No bag is in this shard' in capsys.readouterr().err) == (not mine)
        assert cli.main(shard) == 0  # nothing is left to do
    assert sorted(bags) == ['0.mcap', '1.mcap', '2.mcap', '3.mcap']
    assert cli.main(['merge', str(out)]) == 0
    assert '8 answers of 5 shards' in capsys.readouterr().err
    assert (out / ANSWERS).read_bytes() == (tmp_path / 'whole' / ANSWERS).read_bytes()
    assert Run.read(out).head.bags == Run.read(tmp_path / 'whole').head.bags
    assert cli.main([*asked, str(out)]) == 0  # it is a run like any other
    assert '8 questions were answered before' in capsys.readouterr().err


def test_a_shard_needs_its_own_bags_only(asked, tmp_path, capsys):
    folder = tmp_path / 'here'
    folder.mkdir()
    source = Path(asked[2]).parent
    shutil.copy(source / 'questions.json', folder)
    mine = next(Shard(i, 2) for i in range(2) if Shard(i, 2).takes('0.mcap'))
    for path in source.glob('*.mcap'):
        if mine.takes(path.name):
            shutil.copy(path, folder)
    asked = [*asked[:2], str(folder / 'questions.json'), *asked[3:], str(tmp_path / 'run')]
    assert cli.main([*asked, '--shard', str(mine)]) == 0
    (folder / '0.mcap').unlink()
    assert cli.main([*asked, '--shard', str(mine)]) == 2
    assert 'the clip 0.mcap' in capsys.readouterr().err
    assert cli.main([*asked, '--shard', '2/2']) == 2
    assert '2/2 is no shard' in capsys.readouterr().err


def test_a_shard_leaves_the_room_that_the_longest_question_of_all_needs(asked):
    from minicpmo_ros.modelset.directory import ModelDirectory

    questions = QuestionSet.read(asked[2])
    longest = replace(questions.questions[0], text='and then ' * 300)
    questions = replace(questions, questions=(longest, *questions.questions[1:]))
    options = replay.CoreOptions(device='cpu', max_question_tokens=0)
    model = ModelDirectory.open(asked[1])
    plan = replay.ReplayPlan.make(model, questions, options, replay.Variant(), replay.Sources())
    for index in range(3):
        cut, facts, _ = Shard(index, 3).cut(plan, plan.facts())
        assert cut.options == plan.options and plan.options.max_question_tokens > 600
        assert {**facts, 'shard': None} == {**plan.facts(), 'shard': None}
