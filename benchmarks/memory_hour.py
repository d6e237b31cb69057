# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An hour of live stream with notes and without: the same answers, and what the notes cost.

    python -m benchmarks.memory_hour

Seconds of held-out clips follow each other for an hour, as fast as they can be read. Questions
about now are asked at seconds that are drawn at random. It is done twice, without notes and with
notes, which are written by the thread that a node has for it, every ten seconds, of four questions
to the model. Images and audio are encoded once, before; what that takes is counted for every
second.

hour_same          share of the questions whose answers are the same in both
hour_cpu_share     CPU time that the notes cost, a share of the hour, of one core
hour_cpu_of_live   the same, a share of the CPU time of the hour without notes
hour_file_mib      the file of notes behind it
hour_times_real    how many times faster than the stream the hour with notes went

Adds its figures to build/memory.json.
"""

import argparse
import random
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.remembering import HOUR_S, MIDNIGHT, NOW, UTC, Robot, tell
from benchmarks.streams import question_file, read_seconds, units_of
from minicpmo_ros.notes.keeper import NoteKeeper
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.periodic import Schedule, read_questions
from minicpmo_ros.notes.recall import Recaller

EVERY_S = 10  # between notes
QUESTIONS = read_questions('; '.join(f'{label}: {text}' for label, text in NOW.items()))


class Hour:
    """One hour, with a NoteKeeper or without."""

    def __init__(self, robot: Robot, keeper: NoteKeeper | None):
        self._robot, self._keeper, self._schedule = robot, keeper, Schedule(QUESTIONS, EVERY_S)
        self.notes, self.answers = [], []
        if keeper is not None:
            encode = robot.core.session.model.vocabulary.encode
            self._recaller = Recaller(
                keeper.read, lambda text: len(encode(text)), UTC, space=robot.space
            )

    def second(self, unit, question: str | None) -> None:
        """Read a second; write a note if one is due, and ask the question, if there is one."""
        self._robot.core.session.append(unit)
        now_s = unit.second + 1
        if self._keeper is not None and (asked := self._schedule.due(now_s)) is not None:
            while asked.left:
                asked.take(self._robot.ask(asked.left[0].text).text)
            self._schedule.written(asked)
            note = asked.note(model=self._robot.space)
            self._keeper.do(partial(_add, note), self._on_added)
        if question is None:
            return
        recollection = None
        if self._keeper is not None:
            recollection = self._recaller.recollect(question, 'auto', now_s)
        self.answers.append(self._robot.ask(question, recollection, 'auto').text)

    def _on_added(self, note: Note | None, reason: str) -> None:
        if note is None:
            raise SystemExit(f'a note was not written: {reason}')
        self.notes.append(note)


def _add(note: Note, store) -> Note:
    return store.add(note)


def measure(robot: Robot, units: list, encoding_s: float, folder: Path, given) -> dict:
    """Go through the hour with notes and without; give the figures."""
    draw = random.Random(given.seed)
    stream = [
        replace(draw.choice(units), second=MIDNIGHT + n, arrived=None)
        for n in range(given.seconds)
    ]
    texts = list(NOW.values())
    asked = {n: draw.choice(texts) for n in draw.sample(range(given.seconds), given.questions)}
    answers, cpu_s, wall_s, path = {}, {}, {}, folder / 'hour.db'
    for keeps in (False, True):
        keeper = NoteKeeper(path) if keeps else None
        robot.core.session.reset()
        hour = Hour(robot, keeper)
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        for n, unit in enumerate(stream):
            hour.second(unit, asked.get(n))
        if keeper is not None and not keeper.close(60.0):
            raise SystemExit('the notes are not written')
        cpu_s[keeps] = time.process_time() - begun_cpu_s
        wall_s[keeps], answers[keeps] = time.perf_counter() - begun_s, hour.answers
    extra_s, live_s = cpu_s[True] - cpu_s[False], cpu_s[False] + given.seconds * encoding_s
    same = sum(a == b for a, b in zip(answers[True], answers[False]))
    return {
        'hour_seconds': given.seconds,
        'hour_questions': len(asked),
        'hour_notes': len(hour.notes),
        'hour_same': same / len(asked),
        'hour_cpu_share': extra_s / given.seconds,
        'hour_cpu_of_live': extra_s / live_s,
        'hour_live_cpu_share': live_s / given.seconds,
        'hour_file_mib': path.stat().st_size / 2**20,
        'hour_times_real': given.seconds / wall_s[True],
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', type=Path, default=Path('models/nano'))
    parser.add_argument('--clips', type=int, default=24, help='that the seconds are from')
    parser.add_argument('--seconds', type=int, default=HOUR_S)
    parser.add_argument('--questions', type=int, default=500)
    parser.add_argument('--seed', type=int, default=5)
    given = parser.parse_args()
    robot = Robot(given.model)
    try:
        shown = read_seconds(question_file(), given.clips)
        begun_s = time.process_time()
        units = list(units_of(robot.core, shown))
        encoding_s = (time.process_time() - begun_s) / len(units)
        with tempfile.TemporaryDirectory() as name:
            tell(measure(robot, units, encoding_s, Path(name), given))
    finally:
        robot.core.close()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
