# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes of bags: what they say is what the model answers, with the stamps of the seconds."""

from pathlib import Path

import numpy as np
import pytest
from mcap.writer import Writer
from scored_clips import write_long_clip

from minicpmo_ros.cli.main import main
from minicpmo_ros.config import LLM, MEMORY
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import (
    IMAGE,
    LONGEST_WINDOW_S,
    Clip,
    ClipImage,
    Decoding,
    type_store,
)
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.notes import remember_clip
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.notes.note import Filter
from minicpmo_ros.notes.periodic import NOT_THEN, Schedule, read_questions
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.units import NS

ROOT = Path(__file__).parents[1]
CLIPS = [ROOT / f'demo/clips/{number:03}.mcap' for number in (0, 1, 2)]
ASK = 'shape: what shape is shown now?; what color is shown now?'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp('notes') / 'day.db'
    assert (
        main(['remember', *map(str, CLIPS), '--out', str(path), '--every', '2', '--ask', ASK]) == 0
    )
    with NoteStore(path, is_read_only=True) as opened:
        yield opened


def test_notes_say_what_the_model_answers_at_that_second(store):
    core = Core(ModelDirectory.open(ROOT / 'models/nano'))
    try:
        for path in CLIPS:
            clip = read_clip(path)
            core.session.reset()
            answers = {}
            for unit in core.stream(clip):
                core.session.append(unit)
                shape, color = (
                    core.ask(f'what {what} is shown now?').text for what in ('shape', 'color')
                )
                answers[unit.second + 1] = f'shape: {shape}; {color}'
            notes = store.list(Filter(min(answers), max(answers)))
            assert [(note.end_s, note.text) for note in notes] == [
                (end_s, answers[end_s]) for end_s in sorted(answers)[1::2]
            ]
            assert all(note.end_s - note.begin_s == 2 for note in notes)
    finally:
        core.close()


def test_what_is_left_out_of_a_bag_of_more_than_a_day_is_told(tmp_path, capsys):
    write_long_clip(tmp_path / 'day.mcap', LONGEST_WINDOW_S - 3)
    write_long_clip(tmp_path / 'longer.mcap', LONGEST_WINDOW_S + 5)
    bags = [str(tmp_path / name) for name in ('day.mcap', 'longer.mcap')]
    assert main(['remember', *bags, '--out', str(tmp_path / 'day.db'), '--every', '2']) == 0
    told = capsys.readouterr().err
    more = 'longer.mcap: its first 24 h are read; it goes on for 8 s, which are left out.'
    assert more in told and told.count('goes on') == 1, told


@pytest.mark.parametrize('ends', ['images', 'audio'])
def test_a_note_of_an_input_that_has_ended_says_so(tmp_path, ends):
    core, begin_s = Core(ModelDirectory.open(ROOT / 'models/nano')), 1_000_000_000
    grey = Decoding(lambda _: Decoded.whole(np.full((112, 112, 3), 128, np.uint8)))
    stamps_ns = [second * NS for second in range(begin_s, begin_s + 12)]
    images = tuple(ClipImage(stamp_ns, grey, None) for stamp_ns in stamps_ns)
    audio = tuple((stamp_ns, np.zeros(16_000, np.float32)) for stamp_ns in stamps_ns)
    clip = Clip(images[:2], audio) if ends == 'images' else Clip(images, audio[:2])
    try:
        with NoteStore(tmp_path / 'day.db') as store:
            remember_clip(core, clip, (), store, Schedule(read_questions(ASK), 1))
            notes = store.list()
    finally:
        core.close()
    is_old_s = begin_s + 2 + LLM.max_staleness_s  # from there on
    assert {note.text.endswith(NOT_THEN) for note in notes} == {True, False}
    for note in notes:
        assert (
            note.text.endswith(NOT_THEN) == (note.end_s > is_old_s) == (note.begin_s >= is_old_s)
        )


def test_every_note_has_a_small_image_of_its_time(store):
    images = [store.image(note.id) for note in store.list()]
    assert all(image.startswith(b'\xff\xd8') and len(image) < 8192 for image in images)


def test_a_damaged_image_at_the_end_of_a_note_is_replaced_by_the_one_before(tmp_path):
    types, path, channels = type_store(), tmp_path / 'damaged.mcap', {}
    messages = list(Bag(CLIPS[0]).messages())  # with audio, so that the second is there
    last = [m for m in messages if m.kind == IMAGE][-1]
    with path.open('wb') as file:
        writer = Writer(file)
        writer.start('ros2')
        for one in messages:
            data = one.data
            if one is last:
                told = types.deserialize_cdr(one.data, IMAGE)
                told.data = told.data[:40]
                data = bytes(types.serialize_cdr(told, IMAGE))
            if one.topic not in channels:
                schema = writer.register_schema(one.kind, 'ros2msg', b'')
                channels[one.topic] = writer.register_channel(one.topic, 'cdr', schema)
            writer.add_message(channels[one.topic], one.log_ns, data, one.log_ns)
        writer.finish()
    out, n_seconds = tmp_path / 'notes.db', len(read_clip(path).images)
    every = ('--every', str(n_seconds))  # one note, as one that says the same extends the last
    assert main(['remember', str(path), '--out', str(out), *every, '--ask', ASK]) == 0
    with NoteStore(out, is_read_only=True) as notes:
        (note,) = notes.list()
        assert note.end_s == last.log_ns // NS + 1
        assert notes.image(note.id).startswith(b'\xff\xd8')


def test_a_note_is_due_when_its_seconds_are_over_and_again_after_a_reset():
    questions, schedule = read_questions('what happened?'), None
    schedule = Schedule(questions, 10)
    assert schedule.due(0) is None and schedule.due(100) is None and schedule.due(109) is None
    due = schedule.due(110)
    assert (due.begin_s, due.end_s) == (100, 110)
    assert schedule.due(111).end_s == 111  # the one before was not written
    schedule.written(due)
    assert schedule.due(119) is None
    assert schedule.due(50) is None and schedule.due(59) is None  # the clock was set back
    assert (schedule.due(60).begin_s, schedule.due(200).begin_s) == (50, 190)
    assert Schedule(questions, 0).due(100) is None


@pytest.mark.parametrize(
    ('every_s', 'told'), [(1, '1 second'), (10, '10 seconds'), (60, '60 seconds'),
                          (600, '10 minutes')]
)  # fmt: skip
def test_a_note_is_asked_for_about_as_long_a_time_as_it_is_of(every_s, told):
    schedule = Schedule(read_questions(MEMORY.questions), every_s)
    assert schedule.due(1000) is None
    (question,) = schedule.due(1000 + every_s).left
    assert f'in the last {told}?' in question.text


def test_a_note_without_an_answer_is_none():
    schedule = Schedule(read_questions('a: first?; second?'), 1)
    schedule.due(1)
    due = schedule.due(2)
    due.take(' ')
    due.take('')
    assert due.note() is None


@pytest.mark.parametrize(
    ('arguments', 'told'), ((['--ask', ' ; '], '0 questions'), (['--every', '0'], '--every is 0'))
)
def test_what_makes_no_sense_is_refused_in_words(capsys, tmp_path, arguments, told):
    out = tmp_path / 'day.db'
    assert main(['remember', str(CLIPS[0]), '--out', str(out), *arguments]) == 2
    assert told in capsys.readouterr().err and not out.exists()
