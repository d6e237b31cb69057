# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The file of notes: what it keeps, through kills, damage and full disks; what it forgets."""

import math
import os
import queue
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext

import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.notes.database import StoreError
from minicpmo_ros.notes.keeper import NoteKeeper
from minicpmo_ros.notes.note import Filter, Note, Pose
from minicpmo_ros.notes.store import NoteStore

WRITER = """
import sys
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.store import NoteStore
store = NoteStore(sys.argv[1])
for n in range(len(store), 100_000):
    store.add(Note(n, n + 1, f'note number {n}'))
    print(n, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'day.db'


def test_a_note_comes_back_as_it_was_added(path):
    note = Note(5.0, 7.5, 'A cup.', 'alert', Pose('map', 1, 2, 3, 4), 'nano', b'jpeg', 9.0)
    with NoteStore(path) as store:
        added = store.add(note)
    with NoteStore(path, is_read_only=True) as store:
        (found,) = store.list()
        assert store.image(found.id) == b'jpeg'
    assert found == Note(
        5.0, 7.5, 'A cup.', 'alert', Pose('map', 1, 2, 3, 4), 'nano', b'', 9.0, 1, 1
    )
    assert added.id == found.id
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf, 1e308])
@pytest.mark.parametrize('field', ['x', 'y', 'z', 'yaw'])
def test_a_place_where_no_robot_can_be_is_refused_and_in_a_file_read_as_none(path, field, number):
    with pytest.raises(InputError, match='x, y, z in metres'):
        Pose(**{'frame': 'map', 'x': 1, 'y': 2, field: number})
    with NoteStore(path) as store:
        store.add(Note(0, 1, 'A cup.', pose=Pose('map', 1, 2)))
        store.add(Note(2, 3, 'A box.', pose=Pose('map', 1, 2)))
    with sqlite3.connect(path) as db:  # as an earlier release wrote it
        db.execute(f'UPDATE notes SET {field} = ? WHERE text = ?', (number, 'A cup.'))
    with NoteStore(path, is_read_only=True) as store:
        assert {note.text: note.pose is None for note in store.list()} == {
            'A cup.': True,
            'A box.': False,
        }


def test_no_note_that_was_added_is_lost_by_kill_9(path):
    draw = random.Random(5)
    newest = -1
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(draw.randrange(1, 60)):
            newest = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        newest = max([newest, *map(int, rest[:-1])])  # the last line may be cut
        with NoteStore(path) as store:
            assert not store.problem
            numbers = [int(note.text.split()[-1]) for note in store.list()]
        assert numbers[-1] >= newest
        assert numbers == list(range(numbers[-1] + 1))[-len(numbers) :]


def test_the_same_words_at_the_same_place_extend_the_newest_note(path):
    with NoteStore(path) as store:
        store.add(Note(0, 10, 'Nothing moves.'))
        store.add(Note(10, 20, 'Nothing moves.'))
        store.add(Note(20, 30, 'A dog.'))
        store.add(Note(30, 40, 'Nothing moves.', pose=Pose('map', 0, 0)))
        store.add(Note(40, 50, 'Nothing moves.', pose=Pose('map', 5, 0)))
        assert [(note.begin_s, note.end_s) for note in store.list()] == [
            (0, 20), (20, 30), (30, 40), (40, 50),
        ]  # fmt: skip


def test_notes_are_in_the_order_in_which_they_were_added_when_the_clock_is_set_back(path):
    with NoteStore(path) as store:
        for begin_s in (1000, 1010, 20, 30):
            store.add(Note(begin_s, begin_s + 10, f'At {begin_s}.', written_s=begin_s))
        assert [note.begin_s for note in store.list()] == [1000, 1010, 20, 30]


@pytest.mark.parametrize('seed', range(4))
def test_a_span_of_time_has_all_its_notes_however_long_they_are_and_whoever_asks(path, seed):
    draw, notes = random.Random(seed), {}
    with NoteStore(path) as store, NoteStore(path, is_read_only=True) as reader:
        for n in range(150):
            begin_s = draw.uniform(0, 60_000)  # the clock is set to and fro
            last = notes[max(notes)] if notes and n % 3 == 0 else None
            if last is not None:  # the same words: the newest one goes on, for hours perhaps
                begin_s = last.end_s + draw.uniform(0, 3000)
            end_s = begin_s + draw.choice((1, 10, 9000))
            note = store.add(Note(begin_s, end_s, last.text if last else f'note {n}'))
            notes[note.id] = note
            for asked in (store, reader):
                at_s, width_s = (
                    draw.uniform(0, 60_000),
                    draw.choice((0, 60, 7200, 86_000)),
                )
                wanted, limit = Filter(at_s, at_s + width_s), draw.choice((3, 1000))
                fitting = [
                    one.id
                    for one in notes.values()
                    if one.end_s >= at_s and one.begin_s <= at_s + width_s
                ]
                assert [one.id for one in asked.list(wanted, limit)] == sorted(fitting)[-limit:]
        assert len(notes) < 150  # some were extended


def test_after_forget_the_words_are_in_no_file(path):
    with NoteStore(path) as store:
        for n in range(200):
            secret = 'zanzibarian whispers' if 50 <= n < 60 else 'plain talk'
            store.add(Note(n, n + 1, f'{secret} {n}', image=b'zanzibarian' if n == 55 else b''))
        assert store.forget(Filter(50, 59.5)) == 11  # those that touch the span
        assert not store.search(['zanzibarian'])
        for file in path.parent.iterdir():
            content = file.read_bytes().lower()
            assert b'zanzib' not in content and b'whisper' not in content, file
        assert len(store) == 189 and len(store.search(['plain'], limit=500)) == 189


def test_a_damaged_file_is_put_aside_and_what_can_be_read_is_taken_over(path):
    with NoteStore(path) as store:
        for n in range(2000):
            store.add(Note(n, n + 1, f'note {n} ' + 'x' * 50))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b'\xff' * 8192
    content[100:200] = b'\xff' * 100  # of the first page
    path.write_bytes(content)
    with NoteStore(path) as store:
        assert 'was damaged' in store.problem and 'damaged-1' in store.problem
        store.add(Note(5000, 5001, 'It goes on.'))
        assert store.search(['goes'])
    path.write_bytes(bytes(4096) + content[4096:])  # as a power failure leaves a page
    with NoteStore(path) as store:
        assert '0 notes' in store.problem and len(store) == 0
    assert (path.parent / 'day.db.damaged-2').exists()


def test_a_second_writer_is_refused_with_the_process_that_has_it(path):
    with NoteStore(path) as store:
        store.add(Note(0, 1, 'A cup.'))
        with pytest.raises(StoreError, match=f'process {os.getpid()}'):
            NoteStore(path)
        with NoteStore(path, is_read_only=True) as reader:
            assert len(reader) == 1
            with pytest.raises(StoreError, match='reading only'):
                reader.add(Note(0, 1, 'no'))
    NoteStore(path).close()


def test_a_disk_that_takes_no_more_is_told_and_the_store_goes_on_when_there_is_room(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with NoteStore(path) as store:
        store.add(Note(0, 1, 'before'))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (store.size_bytes, limits[1]))
            with pytest.raises(StoreError, match='Check the disk'):
                for n in range(1000):
                    store.add(Note(n, n + 1, f'{n} ' + 'x' * 1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        count = len(store)
        store.add(Note(9000, 9001, 'after'))
        assert len(store) == count + 1 and store.search(['after']) and store.search(['before'])


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    with pytest.raises(StoreError, match='file'):
        NoteStore(file / 'day.db')


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes read-only files too')
def test_a_read_only_file_is_told(path):
    NoteStore(path).close()
    path.chmod(0o400)
    with pytest.raises(StoreError, match='only be read'), NoteStore(path) as store:
        store.add(Note(0, 1, 'A cup.'))


def test_a_file_of_a_newer_package_and_another_database_are_refused(path):
    NoteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute('PRAGMA user_version = 99')
    db.close()
    with pytest.raises(StoreError, match='version 99'):
        NoteStore(path)
    with pytest.raises(StoreError, match='no such file'):
        NoteStore(path.parent / 'none.db', is_read_only=True)


def test_old_notes_are_merged_and_then_go_by_age(path):
    day_s = 24 * 3600
    with NoteStore(path, retention_h=72) as store:
        for n in range(360):
            store.add(Note(10 * n, 10 * n + 10, f'The lamp is {"on" if n % 2 else "off"}.'))
        store.add(Note(100, 110, 'The bell rang.', 'alert'))
        assert store.prune(3600 + 2 * day_s) > 300
        texts = [note.text for note in store.list()]
        assert texts == ['The lamp is off.; The lamp is on.', 'The bell rang.']
        assert store.list()[0].count == 360
        assert store.search(['lamp']) and store.search(['bell'])
        store.prune(3600 + 4 * day_s)
        assert len(store) == 0


def test_a_clock_that_is_years_ahead_for_a_moment_takes_no_notes_with_it(path):
    year_s = 365 * 24 * 3600
    with NoteStore(path, retention_h=72) as store:
        for n in range(640):
            ahead_s = 20 * year_s if n % 64 == 63 else 0
            store.add(Note(n + ahead_s, n + 1 + ahead_s, f'note {n}', 'user'))
        assert len(store) == 640
        for n in range(64):
            store.add(Note(year_s + n, year_s + n + 1, f'a year later {n}', 'user'))
        assert len(store) == 64 + 10  # those that say they are of the future


def test_the_file_stays_within_its_size(path):
    with NoteStore(path, max_mib=0.5) as store:
        for n in range(4000):
            store.add(Note(n, n + 1, f'note {n}', 'user', image=os.urandom(1000)))
        newest = store.list(limit=1)[0]
        assert newest.text == 'note 3999' and 64 < len(store) < 4000
        store.prune(4000)
        assert store.size_bytes < 4 * 2**20  # with what was freed and is not yet written


@pytest.mark.parametrize(
    ('note', 'told'),
    (
        (Note(0, 1, '  '), 'needs a text'),
        (Note(2, 1, 'A cup.'), 'ends before it begins'),
        (Note(0, float('nan'), 'A cup.'), 'ends before it begins'),
        (Note(0, 1, 'A cup.', 'odd'), "'odd' is no kind"),
    ),
)
def test_a_note_that_makes_no_sense_is_refused(path, note, told):
    with NoteStore(path) as store, pytest.raises(InputError, match=told):
        store.add(note)


@pytest.mark.parametrize('table', ('mine (words TEXT)', 'notes (id INTEGER, title TEXT)'))
@pytest.mark.parametrize('is_damaged', (False, True))
def test_a_database_of_another_program_is_left_as_it_is(path, table, is_damaged):
    with closing(sqlite3.connect(path)) as db:
        db.execute(f'CREATE TABLE {table}')
        db.execute('CREATE TABLE more (words TEXT)')
        db.commit()
    theirs = bytearray(path.read_bytes())
    if is_damaged:
        theirs[100:108] = b'\xff' * 8
        path.write_bytes(theirs)
    is_told = table.startswith('mine') or not is_damaged
    with pytest.raises(StoreError, match='another program') if is_told else nullcontext():
        NoteStore(path).close()
    kept = path if is_told else path.with_name('day.db.damaged-1')
    assert kept.read_bytes() == theirs


@pytest.mark.parametrize(
    'head', (b'\x89MCAP0\r\n', b'RIFF$..WAVEfmt ', b'format: minicpmo_ros questions 1\n', b'GGUF')
)
def test_a_file_of_another_program_is_left_as_it_is(path, head):
    path.write_bytes(head * 1000)
    with pytest.raises(StoreError, match='a file of another program, and is left as it is'):
        NoteStore(path)
    assert path.read_bytes() == head * 1000
    assert sorted(p.name for p in path.parent.iterdir()) == ['day.db', 'day.db.lock']


def test_a_pipe_is_left_as_it_is(path):
    pipe = path.with_name('pipe')
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match='is there, and no file'):
        NoteStore(pipe)
    assert pipe.is_fifo()


def test_a_file_that_is_just_being_made_is_read_as_empty(path):
    for i in range(20):
        keeper = NoteKeeper(path.with_name(f'{i}.notes'))
        assert keeper.read(lambda store: store.list()) == []
        assert keeper.close()


def test_notes_go_into_a_file_that_is_there_after_somebody_removed_it(path):
    problems = []
    keeper = NoteKeeper(path, on_problem=problems.append)
    assert kept_by(keeper, 'before') and path.exists()
    for part in path.parent.glob(f'{path.name}*'):
        part.unlink()
    with pytest.raises(StoreError, match='no such file'):
        keeper.read(lambda store: store.list())  # not what was deleted
    assert kept_by(keeper, 'behind')
    assert [note.text for note in keeper.read(lambda store: store.list())] == ['behind']
    assert any('was removed by somebody' in problem for problem in problems)
    assert keeper.close()
    with NoteStore(path) as store:
        assert [note.text for note in store.list()] == ['behind']


def kept_by(keeper, text: str):
    """Add a note of these words by a keeper, and return it."""
    done = queue.Queue()
    keeper.do(lambda store: store.add(Note(0, 1, text)), lambda *result: done.put(result))
    note, reason = done.get(timeout=60)
    assert not reason
    return note
