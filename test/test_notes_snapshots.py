# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Snapshots of notes: kept within bounds, forgotten whole, and seen again as they were seen."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timezone
from pathlib import Path

import numpy as np
import pytest

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.live.question import Question
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.notes.database import MIGRATIONS, insert
from minicpmo_ros.notes.note import Filter, Note
from minicpmo_ros.notes.recall import Recaller
from minicpmo_ros.notes.snapshots import PERIODIC_S, PeriodicSnapshots, Snapshot
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.streams.pairing import Unit

ROOT = Path(__file__).parents[1]
ASKED = (
    'what shape is shown now?', 'what color is shown now?', 'how many shapes are shown now?',
    'what do you hear now?',
)  # fmt: skip
DAY_S = 86_400
SPACE = 'nano/1'


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'day.db'


def unit_of(second, value=1.0, **fields):
    rows = np.full((4, 8), value, np.float32)
    return Unit(second, **{'image_rows': rows, 'audio_rows': rows[:2] + 1, **fields})


def note_of(n, kind='periodic'):
    return Note(n, n + 1, f'note {n}', kind)


def recaller(store, space=SPACE):
    return Recaller(lambda read: read(store), len, timezone.utc, 10_000, space=space)


@pytest.mark.parametrize('tiles', ((3, 1), (0, 0, 'front', 'left')))
@pytest.mark.parametrize('missing', ('', 'image_rows', 'audio_rows'))
def test_a_second_comes_back_as_it_was_kept(path, rng, missing, tiles):
    rows = rng.normal(size=(4, 8)).astype(np.float16).astype(np.float32)
    unit = unit_of(7, image_rows=rows, tiles=tiles)
    if missing:
        unit = replace(unit, **{missing: None})
    with NoteStore(path) as store:
        added = store.add(note_of(7), Snapshot(unit, SPACE))
    with NoteStore(path, is_read_only=True) as store:
        assert [note.snapshot for note in store.list()] == [True] and added.snapshot
        found = store.snapshot(added.id)
        assert store.snapshot(added.id + 1) is None
    assert (found.space, found.unit.second, found.unit.tiles) == (SPACE, 7, tiles)
    for name in ('image_rows', 'audio_rows'):
        np.testing.assert_equal(getattr(found.unit, name), getattr(unit, name))


def test_the_newest_are_kept_and_those_of_periodic_notes_go_first(path):
    with NoteStore(path, snapshots=3) as store:
        for n, kind in enumerate(('alert', 'periodic', 'periodic', 'user', 'periodic', 'alert')):
            store.add(note_of(n, kind), Snapshot(unit_of(n), SPACE))
        assert [int(note.begin_s) for note in store.list() if note.snapshot] == [0, 3, 5]
        store.add(note_of(9, 'user'), Snapshot(unit_of(9), SPACE))
        assert [int(note.begin_s) for note in store.list() if note.snapshot] == [3, 5, 9]
        assert len(store) == 7
    with NoteStore(path, snapshots=0) as store:
        assert not store.add(note_of(10), Snapshot(unit_of(10), SPACE)).snapshot


def test_a_file_that_is_too_large_loses_its_snapshots_before_its_notes(path):
    large = np.ones((1000, 64), np.float32)
    with NoteStore(path, max_mib=0.5) as store:
        for n in range(10):
            store.add(note_of(n), Snapshot(unit_of(n, image_rows=large, audio_rows=None), SPACE))
        assert store.prune(100) == 0
        kept = [int(note.begin_s) for note in store.list() if note.snapshot]
        assert 1 <= len(kept) <= 4 and kept == list(range(10))[-len(kept) :]


def test_after_forget_no_byte_of_a_second_is_in_a_file(path):
    secret = np.full((64, 64), 1234.0, np.float32)
    with NoteStore(path) as store:
        for n in range(8):
            rows = secret if n == 4 else np.full((64, 64), float(n), np.float32)
            unit = unit_of(n, image_rows=rows, audio_rows=None)
            store.add(note_of(n), Snapshot(unit, SPACE))
        assert any(
            secret.astype('<f2').tobytes()[:64] in f.read_bytes() for f in path.parent.iterdir()
        )
        assert store.forget(Filter(3.5, 5.5)) == 3
        for file in path.parent.iterdir():
            assert secret.astype('<f2').tobytes()[:64] not in file.read_bytes(), file
        assert [store.snapshot(note.id).unit.second for note in store.list()] == [0, 1, 2, 6, 7]


def test_a_note_with_a_snapshot_is_not_merged_and_an_extended_one_shows_its_newest(path):
    with NoteStore(path) as store:
        for n in range(6):
            store.add(note_of(n), Snapshot(unit_of(n), SPACE) if n == 2 else None)
        store.add(Note(6, 7, 'again'), Snapshot(unit_of(6), SPACE))
        store.add(Note(7, 8, 'again'), Snapshot(unit_of(7), SPACE))
        store.prune(2 * DAY_S)
        notes = store.list()
        assert [note.text for note in notes if note.snapshot] == ['note 2', 'again']
        assert store.snapshot(notes[-1].id).unit.second == 7 and len(notes) == 3


def test_a_file_of_the_format_before_is_read_and_brought_up_to_date(path):
    db = sqlite3.connect(path)
    db.executescript(f'{MIGRATIONS[0]} PRAGMA user_version = 1;')
    insert(db, note_of(3))
    db.commit()
    db.close()
    with NoteStore(path, is_read_only=True) as store:
        assert [note.snapshot for note in store.list()] == [False]
    with NoteStore(path) as store:
        store.add(note_of(4), Snapshot(unit_of(4), SPACE))
        assert [note.snapshot for note in store.list()] == [False, True]
        assert [note.snapshot for note, _ in store.search(['note'])] == [True, False]


def test_another_models_second_and_a_damaged_one_are_not_read_and_that_is_told(path):
    with NoteStore(path) as store:
        store.add(Note(1, 2, 'a red cup', 'user'), Snapshot(unit_of(1), 'nano/2'))
        store.add(Note(3, 4, 'a red cup', 'user'), Snapshot(unit_of(3), SPACE))
        with closing(sqlite3.connect(path)) as other, other:
            other.execute('UPDATE snapshots SET data = zeroblob(7) WHERE note_id = 2')
        found = recaller(store).recollect('which color is the cup?', 'only', 100)
        assert found.units == () and [note.id for note in found.notes] == [1, 2]
        assert 'damaged' in found.problems[0] and 'made for nano/2' in found.problems[1]
        assert recaller(store, 'nano/2').recollect('the cup?', 'only', 9).units[0].second == 1


def test_in_the_present_the_seconds_are_asked_alone_and_in_the_past_with_their_notes(path):
    with NoteStore(path) as store:
        store.add(Note(1, 2, 'a red cup', 'user'), Snapshot(unit_of(1), SPACE))
        store.add(Note(3, 4, 'a dog'))
        find = recaller(store)
        alone = find.recollect('what is on the cup?', 'only', 100)
        assert (alone.text, len(alone.units), alone.notes[0].text) == ('', 1, 'a red cup')
        for memory in ('only', 'auto'):
            both = find.recollect('what was on the cup?', memory, 100)
            assert 'a red cup' in both.text and len(both.units) == 1
        assert not find.recollect('what is on the cup?', 'auto', 100).units
        assert not find.recollect('what was on the cup?', 'off', 100).units


def test_periodic_snapshots_are_rare_and_of_images_that_have_changed():
    periodic = PeriodicSnapshots()
    assert not periodic.wants(None) and not periodic.wants(unit_of(0, image_rows=None))
    assert periodic.wants(unit_of(1)) and not periodic.wants(unit_of(2, 2.0))
    assert not periodic.wants(unit_of(1 + PERIODIC_S))
    assert periodic.wants(unit_of(2 + PERIODIC_S, 2.0))
    assert periodic.wants(unit_of(1, 3.0))  # the clock was set back


def test_a_second_looked_at_again_is_answered_as_it_was_live_however_long_ago(tmp_path):
    core, cases = Core(ModelDirectory.open(ROOT / 'models/nano')), []
    session, space = core.session, core.model.exact_space
    try:
        for number in range(3):
            session.reset()
            for unit in core.stream(read_clip(ROOT / f'demo/clips/{number:03}.mcap')):
                session.append(unit)
                cases.append((unit, [core.ask(text).text for text in ASKED]))
        same = []
        for number, (unit, live) in enumerate(cases):
            now_s = unit.second + 60 * 10**number  # from a minute to centuries
            with NoteStore(tmp_path / f'{number}.db') as store:
                store.add(Note(unit.second, unit.second + 1, 'see'), Snapshot(unit, space))
                find = recaller(store, space)
                found = find.recollect('see', 'only', now_s)
                session.options = replace(session.options, recall=lambda *_, f=found: f)
                for text, expected in zip(ASKED, live):
                    answer = session.ask(Question(text, memory='only')).complete()
                    assert answer.snapshots == (unit.second,) and answer.units == 0
                    same.append(answer.text == expected)
    finally:
        core.close()
    assert len(same) >= 30 and sum(same) >= 0.98 * len(same)
