# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The file of a session gives back what was written last, and loses only what was damaged."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minicpmo_ros.sessions import session_file
from minicpmo_ros.sessions.black_box import BlackBox, NotOursError
from minicpmo_ros.sessions.keeper import MOST_WAITING_S, SessionKeeper
from minicpmo_ros.sessions.session_file import (
    FIRST_PLACE,
    PAGE,
    SessionFileError,
    SessionReader,
    newest_run,
    window_of,
)
from minicpmo_ros.streams.pairing import Unit

SPACE, WIDTH, WAIT_S = 'model of the test', 64, 60


def unit_of(second: int, kind: int = 0, restarted: bool = False) -> Unit:
    """Give a unit whose rows tell its second; `kind` says which halves and tiles it has."""
    rng = np.random.default_rng(second)
    image, audio, tiles = rng.normal(size=(64, WIDTH)), rng.normal(size=(25, WIDTH)), (0, 0)
    if kind == 1:
        image = None
    elif kind == 2:
        audio = None
    elif kind == 3:
        tiles, image = (2, 1), rng.normal(size=(3 * 64, WIDTH))
    elif kind == 4:
        tiles, image = (0, 0, 'front', 'left'), rng.normal(size=(2 * 64, WIDTH))
    halves = [None if half is None else half.astype(np.float16) for half in (image, audio)]
    return Unit(second, halves[0], tiles, halves[1], restarted=restarted)


def open_box(path, n=8, space=SPACE):
    return BlackBox(path, n, space, WIDTH)


def is_same(read: Unit, written: Unit) -> bool:
    """Whether a unit is read as it was written."""
    halves = [(read.image_rows, written.image_rows), (read.audio_rows, written.audio_rows)]
    return (read.second, read.tiles) == (written.second, written.tiles) and all(
        a is b is None or np.array_equal(a, b.astype(np.float32)) for a, b in halves
    )


def seconds_of(stored) -> list:
    return [one.second for one in stored]


@pytest.mark.parametrize('seed', range(6))
def test_any_history_restores_exactly_the_window_of_the_last_seconds(tmp_path, seed):
    rng, path, n_places = np.random.default_rng(seed), tmp_path / 'box', 12
    box, second, window, written, taken = open_box(path, n_places), 5000, [], {}, []
    for _ in range(60):
        act = rng.integers(0, 20)
        if act == 0:
            box.clear()
            window, taken = [], []
            if rng.integers(0, 2):
                box.wipe()
        elif act == 1:
            box.close()
            box = open_box(path, n_places)
        else:
            restarted = act == 2
            second = second - 30 if restarted else second + int(rng.integers(1, 4))
            unit = unit_of(second, int(rng.integers(0, 5)), restarted)
            if restarted:
                window, taken = [], []
            window = [*window, second][-int(rng.integers(3, 8)) :]
            box.append(unit, tuple(window))
            written[second] = unit
            taken += [second] * (3 if unit.tiles[:2] != (0, 0) else 1 + bool(unit.cameras))
        held = [s for s in window if taken[-n_places:].count(s) == taken.count(s)]
        found = box.window()
        assert seconds_of(found) == held
        assert all(is_same(box.reader.read(one), written[one.second]) for one in found)
    box.close()


@pytest.mark.parametrize('seed', range(8))
def test_damage_loses_only_the_damaged_seconds(tmp_path, seed):
    rng, path = np.random.default_rng(seed), tmp_path / 'box'
    box = open_box(path, 10)
    for second in range(25):
        box.append(unit_of(second), tuple(range(second + 1)))
    places = {one.second: one.places[0] for one in box.window()}
    box.close()
    assert len(places) == 10
    geometry = session_file.Geometry.of(SPACE, WIDTH, 10)
    hit = set()
    for at in rng.integers(FIRST_PLACE, geometry.file_bytes, int(rng.integers(1, 4))):
        place, within = divmod(int(at) - FIRST_PLACE, geometry.place_bytes)
        used = PAGE + 2 * WIDTH * 89
        is_read = within < session_file.FACTS.size + 4 * 25 or PAGE <= within < used
        with open(path, 'r+b') as file:
            file.seek(int(at))
            byte = file.read(1)[0]
            file.seek(int(at))
            file.write(bytes([byte ^ int(rng.integers(1, 256))]))
        hit |= {place} if is_read else set()
    cut = int(rng.integers(FIRST_PLACE, geometry.file_bytes)) if seed % 2 else geometry.file_bytes
    os.truncate(path, cut)
    hit |= {place for place in places.values() if geometry.offset(place + 1) > cut}
    expected = [second for second, place in places.items() if place not in hit]
    reader = SessionReader.open(path)
    stored, damaged = reader.scan()
    assert seconds_of(newest_run(stored)) == expected and set(damaged) == hit
    assert all(is_same(reader.read(one), unit_of(one.second)) for one in stored)
    reader.close()
    box = open_box(path, 10)  # and the box goes on, whole again
    assert seconds_of(box.window()) == expected and path.stat().st_size == geometry.file_bytes
    box.append(unit_of(25), tuple(range(26)))
    assert seconds_of(box.window())[-1] == 25
    box.close()


@pytest.mark.parametrize('cut', (0, 1, 7, 100, PAGE - 1, PAGE, PAGE + 5, FIRST_PLACE))
def test_a_file_cut_in_its_header_is_no_session_and_the_box_begins_anew(tmp_path, cut):
    path = tmp_path / 'box'
    box = open_box(path)
    box.append(unit_of(1), (1,))
    box.close()
    os.truncate(path, cut)
    if cut < PAGE:
        with pytest.raises(SessionFileError, match='no file of a session'):
            SessionReader.open(path)
    box = open_box(path)
    assert bool(box.told) == (cut < PAGE) and not box.window()
    box.append(unit_of(2), (2,))
    assert seconds_of(box.window()) == [2]
    box.close()


def test_another_model_a_newer_version_and_a_damaged_header_are_told(tmp_path):
    path = tmp_path / 'box'
    open_box(path).close()
    box = open_box(path, space='another')
    assert "'model of the test'" in box.told and "'another'" in box.told and 'anew' in box.told
    box.close()
    page = bytearray(path.read_bytes())
    page[8:12] = (2).to_bytes(4, 'little')
    path.write_bytes(page)
    with pytest.raises(SessionFileError, match='version 2 .* knows 1'):
        SessionReader.open(path)
    page[8:12] = (1).to_bytes(4, 'little')
    page[30] ^= 1
    path.write_bytes(page)
    with pytest.raises(SessionFileError, match='header is damaged'):
        SessionReader.open(path)


@pytest.mark.parametrize('n', (3, 20))
def test_a_box_of_another_length_keeps_its_newest_seconds(tmp_path, n):
    path = tmp_path / 'box'
    box = open_box(path, 8)
    for second in range(11):
        box.append(unit_of(second), tuple(range(second + 1)))
    box.close()
    box = open_box(path, n)
    kept = list(range(11 - min(n, 8), 11))
    assert seconds_of(box.window()) == kept and not box.told
    assert all(is_same(box.reader.read(one), unit_of(one.second)) for one in box.window())
    box.append(unit_of(11), tuple(range(12)))
    assert seconds_of(box.window()) == [*kept, 11][-n:]
    box.close()


def test_a_second_writer_is_told_and_a_reader_is_not_kept_out(tmp_path):
    path = tmp_path / 'box'
    box = open_box(path)
    box.append(unit_of(1), (1,))
    with pytest.raises(NotOursError, match='another node'):
        open_box(path)
    reader = SessionReader.open(path)
    assert seconds_of(window_of(reader.scan()[0])) == [1]
    reader.close()
    box.close()
    open_box(path).close()


def test_only_the_owner_may_read_the_file(tmp_path):
    path = tmp_path / 'box'
    open_box(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    open_box(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_of_what_is_forgotten_no_byte_is_left(tmp_path):
    path = tmp_path / 'box'
    box = open_box(path)
    for second in range(20, 28):
        box.append(unit_of(second, second % 4), tuple(range(20, second + 1)))
    bytes_of = {
        second: half[3].tobytes()
        for second in range(20, 28)
        for half in [unit_of(second, second % 4).audio_rows]
        if half is not None
    }
    kept = seconds_of(box.window())
    there = lambda second: bytes_of[second] in path.read_bytes()  # noqa: E731
    assert all(there(second) for second in kept if second in bytes_of)
    assert box.forget(24.5, 25.5) == 2
    assert seconds_of(box.window()) == [second for second in kept if second not in (24, 25)]
    assert not there(24) and not there(25) and there(27)
    box.clear()
    assert not box.window() and there(27)
    box.wipe()
    assert not any(map(there, bytes_of))
    box.close()
    box = open_box(path)
    assert not box.window()
    box.append(unit_of(5), (5,))
    box.close()
    reader = SessionReader.open(path)
    assert seconds_of(reader.scan()[0]) == [5]
    reader.close()


def test_values_that_no_encoder_gives_are_not_read(tmp_path):
    path = tmp_path / 'box'
    box = open_box(path)
    for second, value in ((1, np.nan), (2, np.inf), (3, 6e4), (4, 1.0)):
        audio = np.full((25, WIDTH), value, np.float16)
        box.append(Unit(second, None, (0, 0), audio), (1, 2, 3, second))
    stored = {one.second: box.reader.read(one) for one in box.reader.scan()[0]}
    assert [second for second, unit in stored.items() if unit is not None] == [4]
    box.close()


CHILD = """
import sys
import numpy as np
from minicpmo_ros.sessions.black_box import BlackBox
from minicpmo_ros.streams.pairing import Unit
box = BlackBox(sys.argv[1], 8, 'model of the test', 4096)
first = max([one.second for one in box.window()], default=0) + 1
for second in range(first, first + 10**6):
    rows = np.full((25, 4096), second % 1000, np.float16)
    box.append(Unit(second, None, (0, 0), rows), tuple(range(max(1, second - 6), second + 1)))
    print(second, flush=True)
"""


def test_a_killed_writer_loses_the_second_it_was_writing_at_most(tmp_path, rng):
    path = tmp_path / 'box'
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, '-c', CHILD, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(int(rng.integers(1, 30))):
            told = int(child.stdout.readline())
        threading.Event().wait(float(rng.uniform(0, 0.003)))  # where the kill hits is by chance
        child.kill()
        told = int([told, *child.stdout.read().split()][-1])
        child.wait()
        reader = SessionReader.open(path)
        stored, damaged = reader.scan()
        last = stored[-1].second
        assert last in (told, told + 1) and len(damaged) <= 1
        window = seconds_of(window_of(stored))
        assert window == list(range(max(1, last - 6), last + 1))
        for one in window_of(stored):
            assert (reader.read(one).audio_rows == one.second % 1000).all()
        reader.close()


class Calls:
    """Collects what a keeper's thread says."""

    def __init__(self):
        self.problems, self.done = [], threading.Event()

    def take(self, result, reason):
        self.result, self.reason = result, reason
        self.done.set()

    def of(self, begin, *arguments):
        """Begin a piece of work and give its (result, reason)."""
        self.done.clear()
        begin(*arguments, self.take)
        assert self.done.wait(WAIT_S)
        return self.result, self.reason


def keeper_of(path, calls, n=8):
    return SessionKeeper(path, n, lambda: (SPACE, WIDTH), calls.problems.append)


def test_a_saved_session_holds_the_window_and_is_loaded_anywhere(tmp_path):
    calls, saved = Calls(), tmp_path / 'saved'
    keeper = keeper_of(tmp_path / 'box', calls)
    for second in range(30, 36):
        keeper.put(unit_of(second, second % 5), tuple(range(30, second + 1)))
    assert calls.of(keeper.save, saved, [33, 34, 35]) == (3, '')
    assert saved.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if 'saved' in path.name] == ['saved']
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)  # which nobody writes: to open it would wait for ever
    assert calls.of(keeper.load, pipe) == (None, f'{pipe} is no file. Name a saved session.')
    no_file = pipe, 'is there, and no file'
    for path, reason in (
        (tmp_path / 'box', 'black box itself'), (tmp_path / 'no/x', 'no folder'), no_file,
    ):  # fmt: skip
        result, told = calls.of(keeper.save, path, [33])
        assert result is None and reason in told
    assert keeper.close()
    other = keeper_of('', calls, n=0)
    session, reason = calls.of(other.load, saved)
    assert session.seconds == [33, 34, 35] and not session.told and not reason
    for one in session.stored:
        assert is_same(session.reader.read(one), unit_of(one.second, one.second % 5))
    session.close()
    data = bytearray(saved.read_bytes())
    data[FIRST_PLACE + PAGE + 10] ^= 1
    saved.write_bytes(data)
    session, _ = calls.of(other.load, saved)
    assert len(session.seconds) == 2 and 'places of' in session.told
    session.close()
    saved.write_bytes(data[:FIRST_PLACE])
    assert 'none of its' in calls.of(other.load, saved)[1]
    assert other.close()
    stranger = SessionKeeper('', 0, lambda: ('another', WIDTH))
    assert 'Only the same model' in calls.of(stranger.load, saved)[1]
    assert stranger.close()


def test_what_was_read_before_a_clear_is_not_written_after_it(tmp_path, monkeypatch):
    calls, is_held, is_writing = Calls(), threading.Event(), threading.Event()
    real = BlackBox.append

    def append(box, unit, window, is_current):
        is_writing.set()
        assert is_held.wait(WAIT_S)
        real(box, unit, window, is_current)

    monkeypatch.setattr(BlackBox, 'append', append)
    keeper = keeper_of(tmp_path / 'box', calls)
    assert keeper.stored() is None
    for second in (1, 2):
        keeper.put(unit_of(second), (1, second))
    assert is_writing.wait(WAIT_S)
    assert keeper.clear() == ''
    keeper.put(unit_of(3), (3,))
    is_held.set()
    assert keeper.close()
    reader = SessionReader.open(tmp_path / 'box')
    assert seconds_of(reader.scan()[0]) == [3]
    reader.close()


def test_a_slow_disk_holds_up_nobody_and_what_is_lost_is_told(tmp_path, monkeypatch):
    calls, is_held = Calls(), threading.Event()
    monkeypatch.setattr(BlackBox, 'append', lambda *_: is_held.wait(WAIT_S))
    keeper = keeper_of(tmp_path / 'box', calls)
    assert keeper.stored() is None  # it is open
    for second in range(MOST_WAITING_S + 5):
        keeper.put(unit_of(second), (second,))
    assert 'too slow' in keeper.problem and calls.problems
    is_held.set()
    assert keeper.close()
    assert keeper.problem == ''


def test_a_full_disk_is_told_and_the_box_goes_on_when_there_is_room(tmp_path, monkeypatch):
    calls, is_full, real = Calls(), [], os.pwrite

    def pwrite(descriptor, data, at):
        if is_full:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return real(descriptor, data, at)

    monkeypatch.setattr(os, 'pwrite', pwrite)
    keeper = keeper_of(tmp_path / 'box', calls)
    keeper.put(unit_of(1), (1,))
    assert calls.of(keeper.save, tmp_path / 'saved', [1]) == (1, '')
    is_full.append(True)
    keeper.put(unit_of(2), (1, 2))
    result, reason = calls.of(keeper.save, tmp_path / 'saved', [1])
    assert result is None and 'Make room on the disk' in reason
    assert 'Make room' in keeper.problem and 'Make room' in keeper.clear()
    is_full.clear()
    assert calls.of(keeper.forget, 1, 1) == (0, '')  # the clear is made good as soon as possible
    for second in range(3, 20):
        keeper.put(unit_of(second), (1, second))
        calls.of(keeper.forget, 0, 0)
    assert keeper.problem == '' and keeper.close()
    box = open_box(tmp_path / 'box')
    assert seconds_of(box.window())[-1] == 19 and 1 not in seconds_of(box.reader.scan()[0])
    box.close()


@pytest.mark.parametrize('kind', ('folder', 'pipe', 'text', 'locked', 'removed'))
def test_a_file_that_cannot_be_used_is_told_and_nothing_else_ends(tmp_path, kind):
    calls, path, others = Calls(), tmp_path / 'box', None
    if kind == 'folder':
        path.mkdir()
    elif kind == 'text':
        path.write_text('no session')
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'locked':
        others = open_box(path)
    keeper = keeper_of(path, calls)
    assert keeper.stored() is None
    if kind == 'removed':
        path.unlink()
    keeper.put(unit_of(1), (1,))
    result, reason = calls.of(keeper.save, tmp_path / 'saved', [1])
    words = {'locked': 'another node', 'removed': 'was removed', 'text': 'another program'}
    word = words.get(kind, 'is there, and no file')
    assert result is None and word in reason and word in calls.problems[-1]
    assert kind != 'pipe' or path.is_fifo()
    assert kind != 'text' or path.read_text() == 'no session'
    assert keeper.close()
    if others is not None:
        others.close()


def test_a_second_too_large_for_the_file_is_told(tmp_path):
    box = open_box(tmp_path / 'box', 2)
    with pytest.raises(SessionFileError, match='takes 3 places, the file has 2'):
        box.append(unit_of(1, 3), (1,))
    box.append(unit_of(2), (2,))
    assert seconds_of(box.window()) == [2]
    box.close()


def test_the_same_box_cannot_be_loaded_over_itself(tmp_path):
    calls, path = Calls(), tmp_path / 'box'
    keeper = keeper_of(path, calls)
    keeper.put(unit_of(1), (1,))
    assert 'Copy it' in calls.of(keeper.load, path)[1]
    copy = Path(f'{path}.copy')
    copy.write_bytes(path.read_bytes())
    session, _ = calls.of(keeper.load, copy)
    assert session.seconds == [1]
    session.close()
    assert keeper.close()


def test_an_engine_that_looks_for_seconds_while_the_box_closes_waits_for_no_disk(tmp_path):
    calls = Calls()
    keeper = keeper_of(tmp_path / 'box', calls)
    assert keeper.close(WAIT_S)
    assert keeper.stored() is None and not keeper.problem and not calls.problems
