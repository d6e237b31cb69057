# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A run through the live graph: the core's answers, gone on with after a kill, recorded."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scored_clips import START_S, jpeg, sound, write_test_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.results import ANSWERS, Run
from minicpmo_ros.ros.playback.recorder import definitions
from minicpmo_ros.units import NS

ROOT = Path(__file__).parents[1]
MODEL, QUESTIONS = ROOT / 'models' / 'nano', ROOT / 'demo' / 'clips' / 'questions.json'
LIMIT = 12  # questions: two clips
ONE_CLIP = 6
LONGEST_S = 600  # until a broken test fails: a run takes minutes on a machine that is very busy
CPU = ('--device', 'cpu', '--threads', '1')


def graph(questions, out, *more, wait=True, stderr=None):
    """Start `minicpmo replay --runner graph` in a process of its own."""
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main', 'replay', MODEL, questions]
    command += ['--runner', 'graph', '--out', out, *CPU, *more]
    process = subprocess.Popen(command, stderr=stderr)
    if wait:
        assert process.wait(LONGEST_S) == 0
    return process


def offline(questions, out, *more):
    arguments = ['replay', str(MODEL), str(questions), '--out', str(out), *CPU, *more]
    assert cli.main(arguments) == 0
    return Run.read(out)


@pytest.mark.parametrize('shown', ['all', 'no_picture', 'no_sound'])
def test_the_graph_answers_as_the_core(ros_domain, tmp_path, shown):
    count = LIMIT if shown == 'all' else ONE_CLIP
    more = ('--input', shown, '--limit', str(count))
    graph(QUESTIONS, tmp_path / 'graph', *more)
    found, expected = Run.read(tmp_path / 'graph'), offline(QUESTIONS, tmp_path / 'core', *more)
    assert found.texts == expected.texts and len(found.texts) == count
    assert {k: v for k, v in found.facts.items() if k != 'path'} == {
        k: v for k, v in expected.facts.items() if k != 'path'
    }
    answers = found.answer_set()
    assert (answers.path, answers.input) == ('graph', shown)
    assert all(c['first_token_ms'] > 0 and c['memory_mib'] > 10 for c in found.costs.values())


def test_killed_the_graph_goes_on_and_leaves_nothing_running(ros_domain, tmp_path):
    out, more = tmp_path / 'run', ('--limit', str(LIMIT), '--record', 'all')
    for lines in (1, 4):
        process = graph(QUESTIONS, out, *more, wait=False)
        end_s = time.monotonic() + LONGEST_S
        while lines_of(out) <= lines and time.monotonic() < end_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    graph(QUESTIONS, out, *more)
    assert len(Run.read(out).texts) == LIMIT  # Run.read refuses what is answered twice
    assert Run.read(out).texts == offline(QUESTIONS, tmp_path / 'core', *more[:2]).texts
    end_s = time.monotonic() + LONGEST_S
    while (left := lives(process.pid)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not left
    check_recording(out, Run.read(out))


def test_ended_by_sigterm_it_says_so_and_leaves_nothing_running(ros_domain, tmp_path):
    out, log = tmp_path / 'run', tmp_path / 'log'
    with log.open('wb') as told:
        process = graph(QUESTIONS, out, '--limit', str(LIMIT), wait=False, stderr=told)
        end_s = time.monotonic() + LONGEST_S
        while lines_of(out) < 1 and time.monotonic() < end_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        code = process.wait(LONGEST_S)
    assert lines_of(out) < LIMIT, 'it was ended in the middle'
    assert code == 128 + signal.SIGTERM and 'replay: it was ended by SIGTERM' in log.read_text()
    assert 'Traceback' not in log.read_text() and 'never retrieved' not in log.read_text()
    end_s = time.monotonic() + LONGEST_S
    while (left := lives(process.pid)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not left


def lines_of(out):
    try:
        return (out / ANSWERS).read_text().count('\n')
    except FileNotFoundError:
        return 0


def lives(pid):
    """Give the processes that were started for a run, by its namespace."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if f'/replay_{pid}'.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def check_recording(out, run):
    """What the runs recorded, killed ones too, is there for all that read bags."""
    told, tapes = {}, sorted((out / 'bags').glob('*.mcap'))
    asked = {q.id: q for q in QuestionSet.read(QUESTIONS).first(LIMIT).questions}
    for path in tapes:
        for log_ns, answer in recorded_answers(path):
            told[answer.question, answer.window_end.sec] = answer.text
            assert log_ns == answer.header.stamp.sec * NS == answer.window_end.sec * NS
    assert told == {(q.text, q.end_s): run.texts[q.id] for q in asked.values()}
    name = next(iter(asked.values())).clip
    whole, played = read_clip(QUESTIONS.parent / name), read_clip(tapes[-1])
    assert {shot.stamp_ns for shot in played.images} and played.audio
    assert whole.first_s > 0


def test_windows_that_lack_a_half_are_answered_as_by_the_core(ros_domain, tmp_path):
    deaf = [(i * NS + NS // 2, jpeg((200, 30, 30))) for i in range(2)]
    write_clip(tmp_path / 'deaf.mcap', START_S, deaf, sound(1)[:0])
    write_clip(tmp_path / 'holes.mcap', START_S, deaf[1:], sound(3))
    write_test_clip(tmp_path / 'whole.mcap', 2)
    windows = {'deaf': 2, 'holes': 3, 'whole': 2}
    questions = [
        ScoredQuestion(n, f'{n}.mcap', START_S, START_S + s, 'scene', 'what color?', ('red',))
        for n, s in windows.items()
    ]
    questions.append(
        ScoredQuestion('none', 'whole.mcap', START_S + 50, START_S + 52, 'scene', '?', ('red',))
    )
    QuestionSet(tuple(questions)).write(tmp_path / 'q.json')
    graph(tmp_path / 'q.json', tmp_path / 'graph')
    found = Run.read(tmp_path / 'graph')
    expected = offline(tmp_path / 'q.json', tmp_path / 'core')
    assert found.texts == expected.texts
    units = {name: cost['units'] for name, cost in found.costs.items()}
    assert units == {name: cost['units'] for name, cost in expected.costs.items()}
    assert 'Correct start_s' in found.costs['none']['error']


def test_windows_of_one_sense_lose_nothing_and_wait_for_nobody(ros_domain, tmp_path):
    """Between windows of both, so that the graph must find out what each has."""
    colors = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))
    images = [(i * NS + NS // 2, jpeg(color)) for i, color in enumerate(colors)]
    write_clip(tmp_path / 'deaf.mcap', START_S, images, sound(1)[:0])
    write_clip(tmp_path / 'blind.mcap', START_S, [], sound(4))
    write_test_clip(tmp_path / 'whole.mcap', 2)
    windows = [
        (name, start, end)
        for lone in ('deaf', 'blind')
        for name, start, end in (
            (lone, 0, 2), (lone, 0, 3), (lone, 0, 4), ('whole', 0, 2), (lone, 1, 3)
        )
    ]  # fmt: skip
    questions = [
        ScoredQuestion(
            f'{i}', f'{name}.mcap', START_S + start, START_S + end, 'scene', 'what color?',
            ('red',),
        )
        for i, (name, start, end) in enumerate(windows)
    ]  # fmt: skip
    QuestionSet(tuple(questions)).write(tmp_path / 'q.json')
    graph(tmp_path / 'q.json', tmp_path / 'graph')
    found = Run.read(tmp_path / 'graph')
    expected = offline(tmp_path / 'q.json', tmp_path / 'core')
    assert found.texts == expected.texts and len(found.texts) == len(windows)
    units = {name: cost['units'] for name, cost in found.costs.items()}
    assert units == {name: cost['units'] for name, cost in expected.costs.items()}


def test_questions_that_look_are_answered_as_by_the_core(ros_domain, tmp_path):
    """Sharp, in tiles, at an image that is sent, and where there is none to look at."""
    write_test_clip(tmp_path / 'real.mcap', 3)
    write_clip(tmp_path / 'blind.mcap', START_S, [], sound(2))
    (tmp_path / 'sent.jpg').write_bytes(jpeg((200, 30, 30), 320, 240))
    (tmp_path / 'cut.jpg').write_bytes(jpeg((200, 30, 30))[:200])
    changes = {
        'live': {}, 'sharp': {'look': 'sharp'}, 'tiles': {'look': 'tiles'},
        'sent': {'image': 'sent.jpg'}, 'cut': {'image': 'cut.jpg'},
        'blind': {'clip': 'blind.mcap', 'end_s': START_S + 2, 'look': 'sharp'},
        'again': {'start_s': START_S + 1, 'look': 'sharp'},
    }  # fmt: skip
    base = {
        'clip': 'real.mcap', 'start_s': START_S, 'end_s': START_S + 3, 'family': 'color',
        'text': 'what color is shown now?', 'answers': ['red'],
    }  # fmt: skip
    asked = [{'id': name, **base, **change} for name, change in changes.items()]
    path = tmp_path / 'q.json'
    path.write_text(json.dumps({'format': 'minicpmo_ros questions 1', 'questions': asked}))
    more = ('--area', '0.25')
    graph(path, tmp_path / 'graph', *more, '--record', 'answers')
    found, expected = Run.read(tmp_path / 'graph'), offline(path, tmp_path / 'core', *more)
    assert found.texts == expected.texts and set(found.texts) == set(changes)
    for name in ('units', 'note', 'error', 'look_stamp_s'):
        assert {k: cost.get(name) for k, cost in found.costs.items()} == {
            k: cost.get(name) for k, cost in expected.costs.items()
        }
    looked = {name for name, cost in found.costs.items() if cost['look_ms'] > 0}
    assert looked == {'sharp', 'tiles', 'sent', 'again'}
    assert list(found.unanswered) == ['cut'] and 'no image' in found.costs['blind']['note']
    at_s = found.costs['sharp']['look_stamp_s']
    assert START_S + 2 <= at_s < START_S + 3, 'the newest image'
    for recording in (tmp_path / 'graph' / 'bags').glob('real_*.mcap'):
        for _, answer in recorded_answers(recording):
            ends = {answer.window_end.sec, answer.image_end.sec, answer.audio_end.sec}
            assert ends == {START_S + 3}, "the clip's own stamps"
            assert answer.look_stamp.sec in (0, START_S + 2)


def recorded_answers(path):
    """Yield (log_ns, Answer) of a recording."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for kind in ('minicpmo_ros/msg/Note', 'minicpmo_ros/msg/Answer'):
        store.register(get_types_from_msg(definitions()[kind], kind))
    for message in Bag(path).messages(['minicpmo_ros/msg/Answer']):
        yield message.log_ns, store.deserialize_cdr(message.data, message.kind)


def test_what_the_graph_cannot_do_is_refused(tmp_path, capsys):
    common = ['replay', str(MODEL), str(QUESTIONS), '--out', str(tmp_path / 'o')]
    assert cli.main([*common, '--runner', 'graph', '--audio', 'offline']) == 2
    assert 'Use the offline runner' in capsys.readouterr().err
    assert cli.main([*common, '--record', 'all']) == 2
    assert '--runner graph' in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()


def test_a_recording_that_cannot_be_written_is_refused_in_words(ros_domain, tmp_path):
    command = [sys.executable, '-m', 'minicpmo_ros.ros.playback.recorder', '--ros-args', '-p']
    for name, why in (('nope/a.mcap', 'No such file'), ('a.mcap', 'there already')):
        (tmp_path / 'a.mcap').touch()
        done = subprocess.run(
            [*command, f'bag:={tmp_path / name}'],
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
        assert done.returncode == 1 and 'Traceback' not in done.stderr
        assert name in done.stderr and why in done.stderr


def test_stamps_off_the_grid_of_samples_and_odd_questions_are_as_by_the_core(
    ros_domain, tmp_path, monkeypatch, capsys
):
    """A second that is never played would be waited for in vain, or begin the core's window."""
    written = writing.audio_messages

    def late(types, start_ns, samples):
        return written(types, start_ns + 37_123_456, samples)

    monkeypatch.setattr(writing, 'audio_messages', late)
    write_test_clip(tmp_path / 'real.mcap', 5)
    whole = ScoredQuestion(
        'whole', 'real.mcap', START_S + 1, START_S + 3, 'scene', 'what color?', ('red',)
    )
    questions = (
        whole,
        replace(whole, id='long', text='and then ' * 300),
        replace(whole, id='wide', choices=('red', 'a' * 17)),
        replace(whole, id='nested', end_s=START_S + 2),
        replace(whole, id='short', start_s=START_S - 1, end_s=START_S + 2),
    )
    QuestionSet(questions).write(tmp_path / 'q.json')
    bounded = ('--max-question-tokens', '384')
    graph(tmp_path / 'q.json', tmp_path / 'graph', *bounded)
    found = Run.read(tmp_path / 'graph')
    expected = offline(tmp_path / 'q.json', tmp_path / 'core', *bounded)
    told = capsys.readouterr().err
    assert found.texts == expected.texts and list(found.texts) == list(expected.texts)
    assert set(found.unanswered) == set(expected.unanswered) == {'long', 'wide'}
    for name in ('units', 'note'):
        assert {k: cost[name] for k, cost in found.costs.items()} == {
            k: cost[name] for k, cost in expected.costs.items()
        }
    assert expected.costs['whole']['units'] == 2 and '2 of 3' in expected.costs['short']['note']
    assert '2 of 5 have no answer: ' in told and '1 of 5 rest on what is not whole: ' in told


def test_one_bag_can_be_asked_about(tmp_path):
    bag = QUESTIONS.parent / '001.mcap'
    about = [q for q in QuestionSet.read(QUESTIONS).questions if q.clip == bag.name]
    found = QuestionSet.read(QUESTIONS, bag)
    assert list(found.questions) == about and found.bag == bag.name
    lone = json.loads(QUESTIONS.read_text())['questions'][0]
    del lone['clip']
    (tmp_path / 'q.json').write_text(
        json.dumps({'format': 'minicpmo_ros questions 1', 'questions': [lone]})
    )
    assert QuestionSet.read(tmp_path / 'q.json', bag).questions[0].clip == bag.name
    assert QuestionSet.read(QUESTIONS, QUESTIONS.parent).bag == ''
    assert os.path.samefile(found.path_of(bag.name), bag)
