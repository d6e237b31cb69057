# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a robot that keeps notes remembers, how soon, and what that costs; build/memory.json.

    make memory

Seconds of the held-out clips go through nano once. What it notes of each, when that is the newest,
is put at stamps of a day that is drawn at random, a note a minute; so hours of stream cost no
hours. Questions about what was noted have their truth from the clips, not from the notes. Figures:

kills_lost             notes that were added and were gone after kill -9, in 100 kills
query_p90_ms           of finding the notes of a question among 50,000, 90 % are found sooner;
                       `query_cpu_p90_ms`: in so much CPU time, whatever else runs;
                       `open_ms`: of opening that file
file_mib_hour          the file after an hour with a note every ten seconds, without snapshots
cpu_share              CPU time of asking for those notes and writing them, a share of the hour;
                       `store_cpu_share`: of writing alone
recall_at_8            the note of that minute is among the eight recalled, by minutes back
when_right             the newest note that names a sound ends when that sound was last there
past_right             answers to questions about the past with notes (by minutes back too),
past_right_oracle      with the right note alone,
past_right_without     and with the window alone
now_loss               points lost by questions about now because notes are kept
snapshot_same          seconds looked at again hours later are answered as they were live

Answers are only as good as the model: one that was not trained to read notes cannot use them.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timezone
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.streams import open_core, question_file, read_seconds, units_of  # noqa: E402
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from minicpmo_ros.notes.note import Note  # noqa: E402
from minicpmo_ros.notes.recall import Recalled, Recaller, Recollection, preface, recall  # noqa: E402
from minicpmo_ros.notes.snapshots import Snapshot  # noqa: E402
from minicpmo_ros.notes.store import NoteStore  # noqa: E402
from training.world import COLORS, COUNTS, SHAPES  # noqa: E402

OUT = Path('build/memory.json')
NOW = {
    'shape': 'what shape is shown now?',
    'color': 'what color is the shape now?',
    'count': 'how many shapes are shown now?',
    'sound': 'what do you hear now?',
}
PAST = 'what {label} was noted {minutes} minutes ago?'
MINUTES = (1, 5, 15, 60)
MIDNIGHT = 1_750_032_000  # UTC
HOUR_S, WINDOW = 3600, 8
UTC = timezone.utc
OLDEST = 90  # minutes of notes in a drawn day


@dataclass(frozen=True)
class Scene:
    """A second: its embeddings, by label what is in it, and what the model said of it live."""

    unit: object  # Unit
    truth: dict
    said: dict

    @property
    def text(self) -> str:
        """What is noted of it."""
        return '; '.join(f'{label}: {said}' for label, said in self.said.items())


class Robot:
    """A core whose questions are asked with or without notes."""

    def __init__(self, model: Path):
        self.core = open_core(ModelDirectory.open(model), WINDOW)
        self.space = self.core.model.exact_space

    def ask(self, text: str, recollection: Recollection | None = None, memory: str = 'off'):
        """Give the Answer, of which `recollection` is read before the question."""
        session = self.core.session
        session.options = replace(session.options, recall=lambda *_: recollection)
        if recollection is None:
            session.options = replace(session.options, recall=None)
        return session.ask(Question(text, memory=memory)).complete()

    def recaller(self, store: NoteStore) -> Recaller:
        """Give what finds the notes of a question, as the node has it."""
        encode = self.core.session.model.vocabulary.encode
        return Recaller(
            lambda read: read(store), lambda text: len(encode(text)), UTC, space=self.space
        )

    def scenes(self, clips: int) -> tuple:
        """Read clips; give (their Scenes, CPU seconds of what is asked for a note)."""
        shown, scenes, spent_s = read_seconds(question_file(), clips), [], 0.0
        for unit, one in zip(units_of(self.core, shown), shown):
            self.core.session.append(unit)
            begun_s = time.process_time()
            said = {label: self.ask(text).text.strip() for label, text in NOW.items()}
            spent_s += time.process_time() - begun_s
            sound = 'speech' if one.is_word else one.sound
            seen = one.shape, one.color, COUNTS[one.count - 1], sound
            scenes.append(Scene(unit, dict(zip(NOW, seen)), said))
        return scenes, spent_s / len(scenes)


def kills(folder: Path, times: int, seed: int) -> dict:
    """Kill a process that writes notes; give how many of those that it had added are gone."""
    draw, path, newest, lost = random.Random(seed), folder / 'killed.db', -1, 0
    for _ in range(times):
        receiver, sender = os.pipe()
        pid = os.fork()
        if not pid:
            _write_for_ever(path, sender)
        os.close(sender)
        with os.fdopen(receiver) as told:
            for _ in range(draw.randrange(1, 40)):
                newest = int(told.readline())
            time.sleep(draw.uniform(0, 0.003))
            os.kill(pid, signal.SIGKILL)
            rest = [line for line in told if line.endswith('\n')]
            os.waitpid(pid, 0)
        newest = int(rest[-1]) if rest else newest
        with NoteStore(path) as store:
            there = {int(note.text.split()[-1]) for note in store.list(limit=10**6)}
            lost += len(set(range(newest + 1)) - there) + bool(store.problem)
    return {'kills': times, 'kills_notes': newest + 1, 'kills_lost': lost}


def _write_for_ever(path: Path, sender: int) -> None:
    """Write numbered notes and tell each once it is added; in a process that is killed."""
    try:
        store = NoteStore(path)
        for n in range(len(store), 10**9):
            store.add(Note(n, n + 1, f'note number {n}', 'user'))
            os.write(sender, f'{n}\n'.encode())
    finally:
        os._exit(1)


def queries(folder: Path, notes: int, asked: int, seed: int) -> dict:
    """Give how long finding takes among so many notes, a minute apart."""
    draw, path = random.Random(seed), folder / 'many.db'
    pools = [list(SHAPES), list(COLORS), list(COUNTS), ['bell', 'siren', 'knock', 'speech']]
    with NoteStore(path) as store:
        for n in range(notes):
            text = '; '.join(f'{k}: {draw.choice(pool)}' for k, pool in zip(NOW, pools))
            end_s = MIDNIGHT + 60 * n
            store.add(Note(end_s - 1, end_s, text, 'user'))
    begun_s, now_s, spent_ms, cpu_ms = time.perf_counter(), MIDNIGHT + 60 * notes, [], []
    with NoteStore(path, is_read_only=True) as store:
        open_ms = 1e3 * (time.perf_counter() - begun_s)
        for _ in range(asked):
            words = draw.choice(pools[0]), draw.choice(pools[1]), draw.randrange(2, 60)
            text = draw.choice((
                'when did you last see a {1} {0}?', 'what color was noted {2} minutes ago?',
                'was there a {0} {2} hours ago?', 'what happened in the last {2} minutes?',
            )).format(*words)  # fmt: skip
            begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
            recall(store, text, now_s, UTC)
            cpu_ms.append(1e3 * (time.thread_time() - begun_cpu_s))
            spent_ms.append(1e3 * (time.perf_counter() - begun_s))
    return {
        'notes': notes,
        'query_p50_ms': float(np.percentile(spent_ms, 50)),
        'query_p90_ms': float(np.percentile(spent_ms, 90)),
        'query_cpu_p90_ms': float(np.percentile(cpu_ms, 90)),
        'open_ms': open_ms,
    }


def hour(folder: Path, scenes: list, asking_s: float, seed: int) -> dict:
    """Give what an hour with a note every ten seconds costs."""
    draw, path, begun_s = random.Random(seed), folder / 'hour.db', time.process_time()
    with NoteStore(path) as store:
        for n in range(360):
            end_s = MIDNIGHT + 10 * (n + 1)
            store.add(Note(end_s - 10, end_s, draw.choice(scenes).text))
        writing_s, size = time.process_time() - begun_s, store.size_bytes
    return {
        'file_mib_hour': size / 2**20,
        'cpu_share': (360 * asking_s + writing_s) / HOUR_S,
        'store_cpu_share': writing_s / HOUR_S,
    }


def past(folder: Path, robot: Robot, scenes: list, days: int, seed: int) -> dict:
    """Ask about minutes of drawn days: with notes, with the right one alone, without."""
    draw, found = random.Random(seed), {name: [] for name in ('recall', 'when', 'with', 'oracle')}
    found['without'] = []
    for day in range(days):
        shown = _drawn(scenes, draw)  # the newest first
        now_s = MIDNIGHT + 12 * HOUR_S + draw.randrange(HOUR_S)
        notes = [Note(now_s - 60 * n - 1, now_s - 60 * n, s.text) for n, s in enumerate(shown)]
        robot.core.session.reset()
        for n, scene in enumerate(reversed(shown[:4])):
            robot.core.session.append(replace(scene.unit, second=now_s - 4 + n))
        with NoteStore(folder / f'day_{day}.db') as store:
            for note in reversed(notes):
                store.add(note)
            found['when'] += _when(store, shown, now_s)
            for minutes in MINUTES:
                for label in NOW:
                    _ask_past(robot, store, notes, shown, (minutes, label, now_s), found)
    by_age = {
        name: {m: _share(right for age, right in found[name] if age == m) for m in MINUTES}
        for name in ('recall', 'with')
    }
    return {
        'recall_at_8': by_age['recall'],
        'when_right': _share(found['when']),
        'past_right': _share(right for _, right in found['with']),
        'past_right_by_minutes': by_age['with'],
        'past_right_oracle': _share(right for _, right in found['oracle']),
        'past_right_without': _share(right for _, right in found['without']),
        'past_questions': len(found['with']),
    }


def _drawn(scenes: list, draw: random.Random) -> list:
    """Draw the scenes of a day; two that are noted alike, one after the other, are one note."""
    shown = [draw.choice(scenes)]
    while len(shown) < OLDEST:
        scene = draw.choice(scenes)
        if scene.text != shown[-1].text:
            shown.append(scene)
    return shown


def _ask_past(robot: Robot, store, notes: list, shown: list, asked: tuple, found: dict) -> None:
    minutes, label, now_s = asked
    text, right = PAST.format(label=label, minutes=minutes), shown[minutes].truth[label]
    if minutes == 1:
        text = text.replace('1 minutes', '60 seconds')  # as its note is told
    recalled = [one.note for one in recall(store, text, now_s, UTC)]
    found['recall'].append((minutes, any(n.end_s == notes[minutes].end_s for n in recalled)))
    recaller = robot.recaller(store)
    oracle = preface([Recalled(notes[minutes], 1.0)], now_s, UTC, recaller.count_tokens, 10**6)
    for name, recollection in (
        ('with', recaller.recollect(text, 'auto', now_s)),
        ('oracle', Recollection(*oracle)),
        ('without', None),
    ):
        found[name].append((minutes, robot.ask(text, recollection).text.strip() == right))


def _when(store: NoteStore, shown: list, now_s: int) -> list:
    """Tell of each sound whether the newest note that names it is of when it was there last."""
    rights = []
    for sound in sorted({scene.truth['sound'] for scene in shown}):
        last_s = now_s - 60 * [scene.truth['sound'] for scene in shown].index(sound)
        recalled = recall(store, f'When did you last hear {sound}?', now_s, UTC)
        rights.append(bool(recalled) and abs(recalled[0].note.end_s - last_s) <= 1)
    return rights


def now(folder: Path, robot: Robot, scenes: list) -> dict:
    """Ask about now with a file of notes and without."""
    rights, same = {True: [], False: []}, []
    with NoteStore(folder / 'now.db') as store:
        for n, scene in enumerate(scenes):
            end_s = MIDNIGHT + n + 1
            robot.core.session.append(replace(scene.unit, second=end_s - 1))
            store.add(Note(end_s - 1, end_s, scene.text))
            for label, text in NOW.items():
                recollection = robot.recaller(store).recollect(text, 'auto', end_s)
                given = {
                    True: robot.ask(text, recollection, 'auto').text,
                    False: robot.ask(text).text,
                }
                same.append(given[True] == given[False])
                for keeps, answer in given.items():
                    rights[keeps].append(answer.strip() == scene.truth[label])
    loss = 100 * (_share(rights[False]) - _share(rights[True]))
    return {'now_loss': loss, 'now_same': _share(same), 'now_questions': len(same)}


def snapshots(folder: Path, robot: Robot, scenes: list, cases: int, seed: int) -> dict:
    """Look at seconds again, up to a month later; tell how often the answer is the live one."""
    draw, same = random.Random(seed), []
    pairs = [(n, label) for n in range(len(scenes)) for label in NOW]
    draw.shuffle(pairs)
    with NoteStore(folder / 'snapshots.db', snapshots=len(scenes)) as store:
        for n, scene in enumerate(scenes):
            unit = replace(scene.unit, second=MIDNIGHT + 60 * n)
            note = Note(unit.second, unit.second + 1, f'place {n}', 'user')
            store.add(note, Snapshot(unit, robot.space))
        recaller = robot.recaller(store)
        for n, label in pairs[:cases]:
            now_s = MIDNIGHT + 60 * n + int(10 ** draw.uniform(1.8, 6.4))
            found = recaller.recollect(f'place {n}', 'only', now_s)
            answer = robot.ask(NOW[label], found, 'only')
            if answer.snapshots[-1:] != (MIDNIGHT + 60 * n,):
                raise SystemExit(f'place {n} is not looked at: {answer.snapshots}')
            same.append(answer.text.strip() == scenes[n].said[label])
    return {'snapshot_same': _share(same), 'snapshot_cases': len(same)}


def _share(rights) -> float:
    return float(np.mean(list(rights)))


def tell(figures: dict) -> None:
    """Add figures to the file, beside what others have measured."""
    OUT.parent.mkdir(exist_ok=True)
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**known, **figures}, indent=1) + '\n')
    for name, value in figures.items():
        print(f'{name:22} {value}', flush=True)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', type=Path, default=Path('models/nano'))
    parser.add_argument('--clips', type=int, default=24, help='that the scenes are from')
    parser.add_argument('--days', type=int, default=20, help='drawn; 16 questions each')
    parser.add_argument('--notes', type=int, default=50_000, help='among which is searched')
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--seed', type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell(kills(folder, given.kills, given.seed))  # forks: before there are threads
        tell(queries(folder, given.notes, 200, given.seed))
        robot = Robot(given.model)
        try:
            scenes, asking_s = robot.scenes(given.clips)
            tell({'model': robot.space, 'scenes': len(scenes)})
            tell(hour(folder, scenes, asking_s, given.seed))
            tell(snapshots(folder, robot, scenes, 300, given.seed))
            tell(now(folder, robot, scenes))
            tell(past(folder, robot, scenes, given.days, given.seed))
        finally:
            robot.core.close()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f'peak of memory: {peak_mib:.0f} MiB', file=sys.stderr)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
