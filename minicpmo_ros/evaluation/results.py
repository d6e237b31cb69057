# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of a long run, in a file that is only ever appended.

The first line says what the run is, every further line is one answer; what one question cost goes
to a file beside it, and what the run was made with to another (RunHead), so that the answers of
two equal runs are equal, byte for byte. A run can grow: more questions may be asked into it, as
long as none that was answered has changed and no bag was replaced. A line is written whole or,
where the process is killed in the middle, without its end; such a line is closed and not counted
when the run goes on. So a question is answered once, whatever happens. One process writes a run at
a time.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from minicpmo_ros.documents import differences, is_of_another_kind
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet, precision_name
from minicpmo_ros.evaluation.questions import QuestionSet

FORMAT = 'minicpmo_ros run 1'
MAGIC = json.dumps({'format': FORMAT})[:-1].encode()
ANSWERS, COSTS = 'answers.jsonl', 'costs.jsonl'
MOST_TOLD = 5  # reasons, in a summary
GROWING = ('count', 'questions', 'questions_sha256')  # facts of the head that a run outgrows
HEAD = 'head.jsonl'
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class RunHead:
    """The file as it was read."""

    starts: list = field(default_factory=list)  # of dicts, in order
    bags: dict = field(default_factory=dict)  # name: the facts of bag_facts

    @classmethod
    def of_lines(cls, lines: list) -> 'RunHead':
        """Take the lines that are whole; what is of another form is left out."""
        bags = {line['bag']: line for line in lines if _is_bag(line)}
        return cls([line['begun'] for line in lines if isinstance(line.get('begun'), dict)], bags)

    def replaced(self, name: str, path: Path) -> str:
        """Return how a bag differs from the one that was read; '' where it does not or is gone."""
        known = self.bags.get(name)
        if known is None or not path.exists():
            return ''
        size, changed_ns = _size_and_time(path)
        if [size, changed_ns] == [known.get('bytes'), known.get('changed_ns')]:
            return ''
        now = bag_facts(path)['sha256']
        if now == known['sha256']:  # copied or touched
            return ''
        return (
            f'{name} is not the bag that was read (sha256 {known["sha256"]:.12}…, now {now:.12}…)'
        )


def bag_facts(path: Path) -> dict:
    """Return size, time of change and SHA-256 of a bag, of a folder's files together."""
    size, changed_ns = _size_and_time(path)
    digest = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            digest.update(f'{file.relative_to(path)}\0{file.stat().st_size}\0'.encode())
        with file.open('rb') as opened:
            while chunk := opened.read(CHUNK_BYTES):
                digest.update(chunk)
    return {'bytes': size, 'changed_ns': changed_ns, 'sha256': digest.hexdigest()}


def _size_and_time(path: Path) -> tuple:
    facts = [file.stat() for file in _files(path)]
    return sum(f.st_size for f in facts), max((f.st_mtime_ns for f in facts), default=0)


def _files(path: Path) -> list:
    return sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]


def _is_bag(line: dict) -> bool:
    return isinstance(line.get('bag'), str) and isinstance(line.get('sha256'), str)


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
    look_ms: float = 0.0  # of first_token_ms: until its image was encoded; 0: it looked at none
    look_stamp_s: float = 0.0  # stamp of that image in the bag; 0: none, or one that was sent


class Results:
    """A run's folder, open for going on with it."""

    def __init__(
        self,
        folder,
        facts: dict,
        questions: QuestionSet | None = None,
        begun: dict | None = None,
        places: dict | None = None,
    ):
        """Open or begin a run; InputError where another run is there, or another process writes.

        facts: what makes the run, JSON values: model, questions, options. They are written with
        the first answer: a run that could not begin is in nobody's way.
        questions: that are to be asked; begun: software, machine and time of this start.
        places: of a shard, {clip: place of its first answer in the whole run}; answers say theirs.
        """
        self.folder, self._head = Path(folder), {'format': FORMAT, **facts}
        self._questions = {q.id: q for q in questions.questions} if questions else {}
        self._path_of = questions.path_of if questions else Path
        self._begun = {**(begun or {}), **{name: facts.get(name) for name in GROWING}}
        self._has_begun, self._hashed = begun is None, set()
        self._places, self._given = places, Counter()  # how many answers a clip has
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._answers, self._costs, self._made = (
                _Appended(self.folder / name) for name in (ANSWERS, COSTS, HEAD)
            )
        except OSError as error:
            raise InputError(
                f'{self.folder}: no run can be written there ({error.strerror}). Name another '
                'folder.'
            ) from error
        try:
            self._answers.lock()
            self._has_head, self.done = self._read_answers()
            self._given.update(self._questions[i].clip for i in self.done if i in self._questions)
            self._check_bags()
        except BaseException:
            self.close()
            raise

    def _read_answers(self) -> tuple:
        """Return whether the file has a head, and the ids in it."""
        told, given = _read(self.folder / ANSWERS)
        mine = self._head
        if told is None:
            return False, set()
        differing = [name for name in {*told, *mine} if told.get(name) != mine.get(name)]
        changed = [line['id'] for line in given if self._has_changed(line)]
        # Without a hash of every question nobody knows whether those that were answered are here.
        # A shard does not grow: what is asked beside it has moved its answers' places.
        is_told = self._questions and all('asked' in line for line in given)
        is_told = is_told and self._places is None
        other = sorted(name for name in differing if not is_told or name not in GROWING)
        if other:
            there, here = ({name: of[name] for name in other if name in of} for of in (told, mine))
            raise InputError(
                f'{self.folder}: another run is there: {differences(there, here)}. Name another '
                'folder, or remove it.'
            )
        if changed:
            raise InputError(
                f'{self.folder}: {len(changed)} questions were changed since they were answered, '
                f'{changed[0]!r} first. Give what is new an id of its own, or name another folder.'
            )
        return True, {line['id'] for line in given}

    def _has_changed(self, line: dict) -> bool:
        question = self._questions.get(line['id'])
        return question is not None and line.get('asked', question.sha256) != question.sha256

    def _check_bags(self) -> None:
        """Refuse to go on where a bag was replaced since it was read."""
        head = RunHead.of_lines(_read(self.folder / HEAD, has_head=False)[1])
        clips = dict.fromkeys(question.clip for question in self._questions.values())
        replaced = [told for clip in clips if (told := head.replaced(clip, self._path_of(clip)))]
        if replaced:
            raise InputError(
                f'{self.folder}: {replaced[0]}; {len(replaced)} were replaced. One run would mix '
                'two recordings: put the former back, or name another folder.'
            )
        self._hashed = set(head.bags)

    def add(self, given: Given) -> None:
        """Append an answer; ValueError for a question that was answered."""
        if given.id in self.done:
            raise ValueError(f'{given.id} was answered')
        if not self._has_begun:
            self._made.write({'begun': self._begun})
            self._has_begun = True
        question = self._questions.get(given.id)
        if question is not None:
            self._note_bag(question.clip)
        self.begin()
        cost = {name: value for name, value in vars(given).items() if name != 'text'}
        self._costs.write(cost)  # first: an answer never lacks its cost
        asked = {'asked': question.sha256} if question is not None else {}
        if self._places is not None:
            asked['at'] = self._places[question.clip] + self._given[question.clip]
            self._given[question.clip] += 1
        self._answers.write({'id': given.id, 'text': given.text, **asked})
        self.done.add(given.id)

    def begin(self) -> None:
        """Write what the run is, once: the first answer does, or who has no question to ask."""
        if not self._has_head:
            self._answers.write(self._head)
            self._has_head = True

    def _note_bag(self, clip: str) -> None:
        """Write down which bag this is, once."""
        if clip in self._hashed:
            return
        self._hashed.add(clip)
        try:
            self._made.write({'bag': clip, **bag_facts(self._path_of(clip))})
        except OSError:
            pass  # it is gone or cannot be read; the answers about it say so

    def close(self) -> None:
        """Close the files."""
        self._answers.close()
        self._costs.close()
        self._made.close()


@dataclass(frozen=True)
class Run:
    """A run as it was written."""

    facts: dict
    texts: dict  # id: text, in the order of answering
    costs: dict  # id: the other fields of Given
    head: RunHead = field(default_factory=RunHead)
    asked: dict = field(default_factory=dict)  # id: SHA-256 of the question

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
        texts, asked = {}, {}
        for line in given:
            if line['id'] in texts:
                raise InputError(f'{folder}: {line["id"]!r} is answered twice.')
            texts[line['id']] = line['text']
            if isinstance(line.get('asked'), str):
                asked[line['id']] = line['asked']
        # A kill between the two files leaves a cost whose answer came later: the last one holds.
        _, costs = _read(Path(folder) / COSTS, has_head=False)
        by_id = {line.pop('id'): line for line in costs if isinstance(line.get('id'), str)}
        made = RunHead.of_lines(_read(Path(folder) / HEAD, has_head=False)[1])
        costs = {name: by_id.get(name, {}) for name in texts}
        return cls(head, texts, costs, made, asked)

    @property
    def count(self) -> int | None:
        """How many questions were to be asked; None where nothing says so."""
        told = [start.get('count') for start in self.head.starts] or [self.facts.get('count')]
        return told[-1] if isinstance(told[-1], int) else None

    def of(self, questions: QuestionSet) -> QuestionSet:
        """Return those of the questions that were to be asked."""
        if self.count is None:
            return questions
        answered = tuple(q for q in questions.questions if q.id in self.texts)
        if len(answered) < self.count:
            return questions.first(self.count)
        return replace(questions, questions=answered)

    @property
    def unanswered(self) -> dict:
        """{id: why there is no answer}."""
        return self._told('error')

    @property
    def is_empty(self) -> bool:
        """Whether no question has an answer."""
        return len(self.unanswered) == len(self.texts)

    def summary(self) -> list:
        """Return sentences on how many questions have no answer, or one with a note, and why."""
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
        """Return the answers as `score` takes them; InputError for a run of other facts."""
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
    """Return the head or None, and the whole lines behind it; a kill cuts others."""
    try:
        lines = path.read_bytes().split(b'\n')
    except FileNotFoundError:
        return None, []
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    read = [entry for entry in map(_parsed, lines) if entry]
    if not has_head:
        return None, read
    if not read:
        if is_of_another_kind(path, MAGIC):
            raise InputError(f'{path}: it is a file of another program: no run.')
        return None, []
    if read[0].get('format') != FORMAT:
        raise InputError(f'{path}: it does not begin with the format {FORMAT!r}: no run.')
    return read[0], [entry for entry in read[1:] if _is_answer(entry)]


def _is_answer(entry: dict) -> bool:
    return all(isinstance(entry.get(name), str) for name in ('id', 'text'))


def _parsed(line: bytes) -> dict:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
