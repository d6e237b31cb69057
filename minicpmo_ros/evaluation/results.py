# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of a long run, in a file that is only ever appended.

The first line says what the run is, every further line is one answer; what one question cost goes
to a file beside it, so that the answers of two equal runs are equal, byte for byte. A line is
written whole or, where the process is killed in the middle, without its end; such a line is closed
and not counted when the run goes on. So a question is answered once, whatever happens. One process
writes a run at a time.
"""

import fcntl
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, precision_name

FORMAT = 'minicpmo_ros run 1'
ANSWERS, COSTS = 'answers.jsonl', 'costs.jsonl'
MOST_TOLD = 5  # reasons, in a summary


@dataclass(frozen=True)
class Given:
    """One question's answer, and what it took."""

    id: str
    text: str
    first_token_ms: float = 0.0
    answer_ms: float = 0.0
    tokens: int = 0
    units: int = 0  # seconds the answer is based on
    memory_mib: float = 0.0  # of the process, when the answer was given
    error: str = ''  # why there is no answer, a sentence; the text is empty then
    note: str = ''  # sentences: what was asked about and is not there


class Results:
    """A run's folder, open for going on with it."""

    def __init__(self, folder, facts: dict):
        """Open or begin a run; InputError where another run is there, or another process writes.

        facts: what makes the run, JSON values: model, questions, options. They are written with
        the first answer: a run that could not begin is in nobody's way.
        """
        self.folder, self._head = Path(folder), {'format': FORMAT, **facts}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._answers, self._costs = (
                _Appended(self.folder / name) for name in (ANSWERS, COSTS)
            )
        except OSError as error:
            raise InputError(
                f'{self.folder}: no run can be written there ({error.strerror}). Name another '
                'folder.'
            ) from error
        try:
            self._answers.lock()
            self._has_head, self.done = self._read_answers()
        except BaseException:
            self.close()
            raise

    def _read_answers(self) -> tuple:
        """Give whether the file has a head, and the ids in it."""
        told, given = _read(self.folder / ANSWERS)
        if told is not None and told != self._head:
            differing = sorted(k for k in {*told, *self._head} if told.get(k) != self._head.get(k))
            raise InputError(
                f'{self.folder}: a run with another {", ".join(differing)} is there. Name '
                'another folder, or remove it.'
            )
        return told is not None, {line['id'] for line in given}

    def add(self, given: Given) -> None:
        """Append an answer; ValueError for a question that was answered."""
        if given.id in self.done:
            raise ValueError(f'{given.id} was answered')
        if not self._has_head:
            self._answers.write(self._head)
            self._has_head = True
        cost = {name: value for name, value in vars(given).items() if name != 'text'}
        self._costs.write(cost)  # first: an answer never lacks its cost
        self._answers.write({'id': given.id, 'text': given.text})
        self.done.add(given.id)

    def close(self) -> None:
        """Close the files."""
        self._answers.close()
        self._costs.close()


@dataclass(frozen=True)
class Run:
    """A run as it was written."""

    facts: dict
    texts: dict  # id: text, in the order of answering
    costs: dict  # id: the other fields of Given

    @classmethod
    def of_answers(cls, path) -> 'Run':
        """Take a file of answers that came by another way, as answers.AnswerSet has it."""
        answers = AnswerSet.read(path)
        facts = {name: value for name, value in vars(answers).items() if name != 'answers'}
        return cls(facts, answers.answers, {})

    @classmethod
    def read(cls, folder) -> 'Run':
        """Read a folder; raises InputError."""
        head, given = _read(Path(folder) / ANSWERS)
        if head is None:
            raise InputError(f'{folder}: there is no run in it ({ANSWERS} is missing or empty).')
        texts = {}
        for line in given:
            if line['id'] in texts:
                raise InputError(f'{folder}: {line["id"]!r} is answered twice.')
            texts[line['id']] = line['text']
        # A kill between the two files leaves a cost whose answer came later: the last one holds.
        _, costs = _read(Path(folder) / COSTS, has_head=False)
        by_id = {line.pop('id'): line for line in costs}
        return cls(head, texts, {name: by_id.get(name, {}) for name in texts})

    @property
    def unanswered(self) -> dict:
        """{id: why there is no answer}."""
        return self._told('error')

    def summary(self) -> list:
        """Say in sentences how many questions have no answer, or one with a note, and why."""
        sentences = []
        for found, what in (
            (self.unanswered, 'have no answer'),
            (self._told('note'), 'rest on what is not whole'),
        ):
            reasons = Counter(found.values())
            told = ' '.join(f'{why} ({n} times)' for why, n in reasons.most_common(MOST_TOLD))
            more = f' And {len(reasons) - MOST_TOLD} reasons more.' * (len(reasons) > MOST_TOLD)
            if found:
                sentences.append(f'{len(found)} of {len(self.texts)} {what}: {told}{more}')
        return sentences

    def _told(self, name: str) -> dict:
        told = {key: cost.get(name) for key, cost in self.costs.items()}
        return {key: why for key, why in told.items() if why}

    def answer_set(self) -> AnswerSet:
        """Give the answers as `score` takes them; InputError for a run of other facts."""
        facts = self.facts
        precision = facts.get('precision', 'mixed')
        if isinstance(precision, dict):
            precision = precision_name(precision)
        path, audio, given = (facts.get(name) for name in ('path', 'audio', 'input'))
        return AnswerSet(self.texts, path, precision, audio, given, str(facts.get('model', '')))


class _Appended:
    """A file of JSON lines that grows only."""

    def __init__(self, path: Path):
        self.path, self._has_begun = path, False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def lock(self) -> None:
        """Let no other process lock it until it is closed, by whatever end of this one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f'{self.path.parent}: another replay is writing there. Wait for its end, or name '
                'another folder.'
            ) from error
        except OSError:
            pass  # a file system without locks

    def write(self, line: dict) -> None:
        data = (json.dumps(line, ensure_ascii=False) + '\n').encode()
        size = os.fstat(self._file).st_size
        if not self._has_begun and size and os.pread(self._file, 1, size - 1) != b'\n':
            data = b'\n' + data  # closes what a kill has cut
        self._has_begun = True
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        os.close(self._file)


def _read(path: Path, has_head: bool = True) -> tuple:
    """Give the head or None, and the whole lines behind it; a kill cuts others."""
    try:
        lines = path.read_bytes().split(b'\n')
    except FileNotFoundError:
        return None, []
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    read = [entry for entry in map(_parsed, lines) if entry]
    if not has_head:
        return None, [entry for entry in read if 'id' in entry]
    if not read:
        return None, []
    if read[0].get('format') != FORMAT:
        raise InputError(f'{path}: it does not begin with the format {FORMAT!r}: no run.')
    return read[0], [entry for entry in read[1:] if {'id', 'text'} <= entry.keys()]


def _parsed(line: bytes) -> dict:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
