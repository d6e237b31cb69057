# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions of a file that look closer at the newest image, or at one that is sent with them."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from scored_clips import COLORS, START_S, jpeg, sound, write_question_set, write_test_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, markdown, report
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.replay import ReplayPlan, Sources
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all, answer_clip
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.units import NS

NANO = Path(__file__).parents[1] / 'models' / 'nano'
OPTIONS = CoreOptions(device='cpu', threads=1, n_ctx=1024, area=0.25)


def write_asked(folder, *changes, clip='0.mcap', seconds=3) -> Path:
    """Write a clip, two images and a question for each change of one; give the file."""
    if not (folder / clip).exists():
        write_test_clip(folder / clip, seconds)
    for name, color in (('red.jpg', COLORS[0]), ('blue.jpg', COLORS[2])):
        (folder / name).write_bytes(jpeg(color, 320, 240))
    base = {
        'clip': clip, 'start_s': START_S, 'end_s': START_S + seconds, 'family': 'color',
        'text': 'what color is shown now?', 'answers': ['red'],
    }  # fmt: skip
    questions = [{'id': str(i), **base, **change} for i, change in enumerate(changes)]
    path = folder / 'asked.json'
    path.write_text(json.dumps({'format': 'minicpmo_ros questions 1', 'questions': questions}))
    return path


def replay(path, out, *more) -> Run:
    arguments = ['replay', str(NANO), str(path), '--out', str(out), '--area', '0.25', *more]
    assert cli.main([*arguments, '--device', 'cpu', '--threads', '1']) == 0
    return Run.read(out)


def test_what_is_looked_at_is_read_as_written(tmp_path):
    path = write_asked(tmp_path, {'look': 'tiles'}, {'image': 'red.jpg'}, {'look': 'live'}, {})
    asked = QuestionSet.read(path)
    assert [question.looks for question in asked.questions] == ['tiles', 'sharp', '', '']
    asked.write(tmp_path / 'again.json')
    again = QuestionSet.read(tmp_path / 'again.json')
    assert again.questions == asked.questions and again.sha256 == asked.sha256
    hashes = [replace(question, id='x').sha256 for question in asked.questions]
    assert len({*hashes}) == 3 and hashes[2] == hashes[3], 'live is as without'
    (tmp_path / 'red.jpg').write_bytes(jpeg(COLORS[1]))
    changed = [replace(q, id='x').sha256 for q in QuestionSet.read(path).questions]
    assert [a == b for a, b in zip(hashes, changed)] == [True, False, True, True]


@pytest.mark.parametrize(
    'change, told',
    [
        ({'look': 'closer'}, "look is 'closer', one of live, sharp, tiles is expected"),
        ({'look': True}, 'look is True'),
        ({'image': 'none.jpg'}, 'its image none.jpg cannot be read'),
        ({'image': '/red.jpg'}, 'a path relative to the file'),
        ({'image': '../red.jpg'}, 'a path relative to the file'),
    ],
)
def test_a_look_that_there_is_not_is_refused_with_its_question(tmp_path, change, told):
    with pytest.raises(InputError, match=told) as error:
        QuestionSet.read(write_asked(tmp_path, {}, change))
    assert "question 1 ('1')" in str(error.value)


def test_a_run_says_what_was_looked_at_and_for_how_long(tmp_path):
    path = write_asked(tmp_path, {}, {'look': 'sharp'}, {'look': 'tiles'}, {'image': 'red.jpg'})
    run = replay(path, tmp_path / 'run')
    costs = [run.costs[str(i)] for i in range(4)]
    newest_s = read_clip(tmp_path / '0.mcap').images[-1].stamp_ns / NS
    assert [cost['look_stamp_s'] for cost in costs] == [0, newest_s, newest_s, 0]
    assert costs[0]['look_ms'] == 0
    assert all(0 < cost['look_ms'] < cost['first_token_ms'] for cost in costs[1:])
    assert all(not cost['error'] and not cost['note'] for cost in costs)
    assert all(cost['units'] == 3 for cost in costs), 'it takes no room of the window'
    lone = replay(write_asked(tmp_path, {}), tmp_path / 'lone')
    assert run.texts['0'] == lone.texts['0'], 'others are asked as ever'


def prompt_tokens(core, path, shown='all') -> dict:
    (clip,) = QuestionSet.read(path).by_clip().items()
    found = answer_clip(core, read_clip(path.parent / clip[0]), clip[1], [Variant(shown)])
    return {question.id: (answer.prompt_tokens, answer.token_log_probabilities)
            for _, question, answer in found}  # fmt: skip


def test_each_reads_its_image_on_its_fork_alone(tmp_path):
    changes = {}, {'look': 'sharp'}, {'image': 'red.jpg'}, {'image': 'blue.jpg'}, {}
    path = write_asked(tmp_path, *changes)
    with closing(Core(ModelDirectory.open(NANO), OPTIONS)) as core:
        told, grey = (prompt_tokens(core, path, shown) for shown in ('all', 'no_picture'))
    n_read = [told[str(i)][0] for i in range(5)]
    assert n_read[0] == n_read[4] < n_read[1] == n_read[2] == n_read[3]
    assert told['0'] == told['4'], 'the window is as it was'
    assert len({told[str(i)][1] for i in range(4)}) == 4, 'every image tells'
    assert grey['2'] == grey['3'], 'what is blanked is blanked on the fork too'


def test_there_is_room_for_a_look_beside_a_full_window(tmp_path):
    """Its positions are kept free: a second that left the window would change what follows."""
    path = write_asked(tmp_path, {'look': 'tiles'}, {}, seconds=5)
    run = replay(path, tmp_path / 'run', '--n-ctx', '1024', '--max-question-tokens', '64')
    assert all(cost['units'] == 5 and not cost['error'] for cost in run.costs.values())
    lone = replay(write_asked(tmp_path, {}, seconds=5), tmp_path / 'lone', '--n-ctx', '1024')
    assert run.texts['1'] == lone.texts['0']


def test_what_cannot_be_looked_at_is_told(tmp_path):
    write_clip(tmp_path / 'blind.mcap', START_S, [], sound(3))
    path = write_asked(tmp_path, {'look': 'sharp'}, clip='blind.mcap')
    cost = replay(path, tmp_path / 'blind').costs['0']
    assert 'The newest image was not looked at closer: its window has no image.' in cost['note']
    assert not cost['error'] and cost['look_ms'] == 0 == cost['look_stamp_s']
    path = write_asked(tmp_path, {'image': 'cut.jpg'}, {})
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'red.jpg').read_bytes()[:200])
    run = replay(path, tmp_path / 'cut')
    assert 'The image was not read: ' in run.costs['0']['error'] and run.texts['1']
    assert not run.texts['0'] and not run.costs['0']['note']


def test_without_memory_for_a_look_it_is_refused_before_a_bag_is_read(tmp_path):
    path = write_asked(tmp_path, {'look': 'sharp'}, {})
    options = replace(OPTIONS, look_tiles=0)
    model, asked = ModelDirectory.open(NANO), QuestionSet.read(path)
    plan = ReplayPlan.make(model, asked, options, Variant(), Sources())
    assert list(plan.refused) == ['0'] and 'vision.look_tiles' in plan.refusals()


def test_a_strict_core_refuses_an_image_that_cannot_be_read(tmp_path):
    path = write_asked(tmp_path, {'image': 'cut.jpg'})
    (tmp_path / 'cut.jpg').write_bytes(b'no image')
    with closing(Core(ModelDirectory.open(NANO), OPTIONS)) as core:
        with pytest.raises(InputError, match='neither JPEG, PNG nor WebP'):
            answer_all(core, QuestionSet.read(path), [Variant()])


def test_score_tells_right_answers_by_look(tmp_path):
    asked = write_question_set(tmp_path)
    plain = AnswerSet({q.id: 'red' for q in asked.questions})
    assert 'By look' not in markdown(report(asked, [plain]))
    looking = (replace(asked.questions[0], look='sharp'), *asked.questions[1:])
    texts = {**plain.answers, asked.questions[1].id: 'blue'}
    found = report(replace(asked, questions=looking), [AnswerSet(texts)])
    assert found['details'][0]['looks'] == {
        'live': {'right': 0.6667, 'questions': 3}, 'sharp': {'right': 1.0, 'questions': 1},
    }  # fmt: skip
    table = markdown(found).split('By look\n\n')[1].splitlines()
    assert table[0].endswith('| subset | live | sharp |') and '| all | 66.7 | 100.0 |' in table[2]
