# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A file of questions about clips, and the answers that count as right.

The file is JSON or YAML: {"format": FORMAT, "name": ..., "notes": ..., "clips": {...},
"questions": [...]}; each question is an object with the fields of ScoredQuestion, and `clips` may
tell a person what each clip shows. Everything is checked when it is read; what is wrong is an
InputError that names the question and the field.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

from minicpmo_ros.documents import is_utf8, read_json, told
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import LONGEST_WINDOW_S
from minicpmo_ros.evaluation.looks import SentImage
from minicpmo_ros.evaluation.matching import is_data, is_letter, is_text
from minicpmo_ros.evaluation.question_fields import (
    CHECKS,
    SECONDS,
    has_truth,
    is_inside,
    is_lines,
    read_schema,
)

FORMAT = 'minicpmo_ros questions 1'
SUBSETS = ('all', 'hard')
ASKED = ('id', 'clip', 'start_s', 'end_s', 'relative', 'text', 'choices')  # what an answer is to
RARE = (
    'rule',
    'options',
    'relative',
    'json_schema',
    'asked_at_s',
    'note',
    'look',
    'image',
)  # written where not at their default


@dataclass(frozen=True)
class ScoredQuestion:
    """One question, asked when the second before `end_s` has been read."""

    id: str
    clip: str  # a bag, relative to the file
    start_s: int  # of the window: the seconds [start_s, end_s) of the clip's stamps; the question
    end_s: int  # is asked at its end
    family: str
    text: str  # as it is asked, options included
    answers: tuple  # texts that count as right
    choices: tuple = ()  # the answer is held to one of these; none: it is open
    kind: str = ''  # of question, within the family
    chance: float = 0.0  # of a guess that knows neither image nor audio
    hard: bool = False  # of a clip whose seconds have nothing to do with each other
    rule: str = 'text'  # by which an answer is right, as in matching.py
    options: tuple = ()  # told in the text, for the tolerant reading of a letter
    relative: bool = False  # start_s and end_s count from the clip's first second
    json_schema: str = ''  # the answer is JSON of this schema, and is compared as data
    asked_at_s: int | None = None  # when it is asked, if its window is then long past
    note: str = ''  # what an oracle would have noted of its window
    look: str = ''  # of config.LOOKS: how the newest image, or `image`, is looked at
    image: SentImage | None = None  # that is sent along with it

    @property
    def seconds(self) -> int:
        """Length of the window."""
        return self.end_s - self.start_s

    @property
    def sha256(self) -> str:
        """Of what is asked; what counts as right may change without it."""
        return hashlib.sha256(json.dumps(self._asked).encode()).hexdigest()

    @property
    def _asked(self) -> list:
        schema = [self.json_schema] if self.json_schema else []
        late = [] if self.asked_at_s is None else ['asked_at_s', self.asked_at_s, self.note]
        sent = self.image.sha256 if self.image else ''
        looks = ['look', self.looks, sent] if self.looks else []
        return [getattr(self, name) for name in ASKED] + schema + late + looks

    @property
    def looks(self) -> str:
        """How an image is read before it: sharp or tiles; '': none is."""
        if self.look in ('', 'live'):
            return 'sharp' if self.image else ''
        return self.look

    def is_right(self, text: str) -> bool:
        """Return whether a text answers this question, by its rule."""
        if self.json_schema:
            return is_data(self.answers, text)
        rule = is_text if self.rule == 'text' else is_letter
        return rule(self.answers if self.rule == 'text' else self.answers[0], text)

    def can_be(self, answer: str) -> bool:
        """Return whether an accepted text is one of the choices, as the rule compares them."""
        return is_text(self.choices, answer) if self.rule == 'text' else answer in self.choices

    @property
    def span(self) -> tuple:
        """The window that it is asked in, as told; of the past's: as long, until asked_at_s."""
        if self.asked_at_s is not None:
            return self.asked_at_s - self.seconds, self.asked_at_s
        return self.start_s, self.end_s

    @property
    def age_s(self) -> int:
        """How long ago its evidence ended; 0: it is the window."""
        return 0 if self.asked_at_s is None else self.asked_at_s - self.end_s

    def window(self, first_s: int) -> tuple:
        """Return the window in stamps, (start_s, end_s); first_s: the clip's first second."""
        shift_s = first_s if self.relative else 0
        start_s, end_s = self.span
        return start_s + shift_s, end_s + shift_s


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file, in its order."""

    questions: tuple
    name: str = ''
    notes: str = ''
    clips: dict = field(default_factory=dict)  # clip: what it shows, second by second
    folder: Path = Path()  # that the clips' paths are relative to
    bag: str = ''  # the only one, where one was given for all questions

    @classmethod
    def read(cls, path, bag=None, needs_clips: bool = True) -> 'QuestionSet':
        """Read and check a file; raises InputError.

        bag: where the bags are, if not beside the file: a folder of them, or a single bag: then
        only the questions about it are taken, which are those that name it or no clip.
        needs_clips: refuse a file whose bags are not all there.
        """
        path, bag = Path(path), Path(bag) if bag else None
        data = read_json(path, FORMAT)
        if not isinstance(data.get('questions'), list) or not data['questions']:
            raise InputError(f'{path}: it has no list of questions.')
        entries, one = list(data['questions']), None
        if bag is not None:
            one = None if _is_folder_of(bag, entries) else bag.name
            entries = _about(path, entries, one) if one else entries
        folder = path.parent if bag is None else bag.parent if one else bag
        questions = tuple(_read_question(path, i, entry) for i, entry in enumerate(entries))
        _check_ids(path, questions)
        head = read_head(path, data)
        rest = head['name'], head['notes'], dict(head['clips']), folder, one or ''
        if needs_clips:
            cls(questions, *rest).require_clips(path)
        return cls(questions, *rest)

    def write(self, path) -> None:
        """Write the file, a question a line; the same questions give the same bytes."""
        head = {'format': FORMAT, 'name': self.name, 'notes': self.notes, 'clips': self.clips}
        lines = [json.dumps(_told(q), ensure_ascii=False) for q in self.questions]
        text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
        Path(path).write_text(
            text + ',\n "questions": [\n' + ',\n'.join(lines) + '\n]}\n', encoding='utf-8'
        )

    def require_clips(self, path) -> None:
        """Refuse the questions of a file whose bags are not all there."""
        for question in self.questions:
            if not self.path_of(question.clip).exists():
                raise InputError(
                    f'{path}: the clip {question.clip} of the question {question.id!r} is not in '
                    f'{self.folder.absolute()}. Fetch the clips with the file, or tell where they '
                    'are (bag).'
                )

    @property
    def families(self) -> tuple:
        """In the order of their first question."""
        return tuple(dict.fromkeys(q.family for q in self.questions))

    def first(self, count: int) -> 'QuestionSet':
        """The first `count` questions."""
        return replace(self, questions=self.questions[:count])

    def up_to(self, seconds: int) -> 'QuestionSet':
        """The questions about windows of at most so many seconds."""
        return replace(self, questions=tuple(q for q in self.questions if q.seconds <= seconds))

    @property
    def sha256(self) -> str:
        """Of what is asked; what counts as right may change without it."""
        told = [q._asked for q in self.questions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def by_clip(self) -> dict:
        """Return the questions by clip, those about one window together, else in their order."""
        clips = {}
        for question in self.questions:
            windows = clips.setdefault(question.clip, {})
            windows.setdefault((question.span, question.relative), []).append(question)
        return {clip: sum(windows.values(), []) for clip, windows in clips.items()}

    def path_of(self, clip: str) -> Path:
        """Where a clip lies."""
        return self.folder / clip


def read_head(path: Path, data: dict) -> dict:
    """Return name, notes and clips, checked."""
    head = {'name': '', 'notes': '', 'clips': {}}
    head.update({name: data[name] for name in head if data.get(name) is not None})
    for name in ('name', 'notes'):
        if not is_utf8(head[name]):
            raise InputError(f'{path}: {name} is {told(head[name])}, a text is expected.')
    clips = head['clips']
    if not isinstance(clips, dict) or not all(
        is_utf8(clip) and (is_utf8(shown) or is_lines(shown)) for clip, shown in clips.items()
    ):
        raise InputError(
            f'{path}: clips is {told(clips)}, an object with a text or a list of texts a clip is '
            'expected.'
        )
    return head


def _is_folder_of(bag: Path, entries: list) -> bool:
    """Return whether a folder holds bags that questions name, or is one bag itself."""
    named = (entry.get('clip') for entry in entries if isinstance(entry, dict))
    return bag.is_dir() and any(is_inside(name) and (bag / name).exists() for name in named)


def _about(path: Path, entries: list, bag: str) -> list:
    """Return the questions about one bag."""
    about = [
        {**entry, 'clip': bag}
        for entry in entries
        if isinstance(entry, dict) and entry.get('clip', bag) == bag
    ]
    if not about:
        raise InputError(
            f'{path}: no question is about {bag}. Questions name it as their clip, or none.'
        )
    return about


def _check_ids(path: Path, questions: tuple) -> None:
    seen = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f'{path}: two questions have the id {question.id!r}; ids are unique.')
        seen.add(question.id)


def _told(question: ScoredQuestion) -> dict:
    """What a file says of a question; rarer fields only where they are not at their default."""
    rare = {f.name: f.default for f in fields(question) if f.name in RARE}
    image = question.image and question.image.name
    told = {**vars(question), 'image': image}.items()
    return {name: value for name, value in told if name not in rare or value != rare[name]}


def by_window(questions, first_s: int) -> dict:
    """Sort questions about one clip, whose first second is given, by their window in stamps."""
    windows = {}
    for question in questions:
        windows.setdefault(question.window(first_s), []).append(question)
    return windows


def in_portions(questions: list, most_s: int) -> list:
    """Cut questions about one clip, in their order, where their windows cover more than most_s."""
    portions, covered = [[]], set()
    for question in questions:
        window = {(question.relative, second) for second in range(*question.span)}
        if portions[-1] and len(covered | window) > most_s:
            portions.append([])
            covered = set()
        covered |= window
        portions[-1].append(question)
    return portions


REQUIRED = tuple(f.name for f in fields(ScoredQuestion) if f.default is MISSING)


def _read_question(path: Path, index: int, entry) -> ScoredQuestion:
    if not isinstance(entry, dict):
        raise InputError(f'{path}: question {index} is not an object.')
    where = f'{path}: question {index} ({told(entry.get("id"))})'
    for name in REQUIRED:
        if name not in entry:
            raise InputError(f'{where} has no {name}.')
    for name, value in entry.items():
        if name not in CHECKS:
            raise InputError(f'{where} has {told(name)}; known are {", ".join(CHECKS)}.')
        is_right, allowed = CHECKS[name]
        if not is_right(value):
            hint = ' YAML reads yes and no as true and false: quote them.' * has_truth(value)
            raise InputError(f'{where}: {name} is {told(value)}, {allowed} is expected.{hint}')
    lists = ('answers', 'choices', 'options')
    known = {name: tuple(entry[name]) for name in lists if name in entry}
    known.update({name: int(entry[name]) for name in SECONDS if name in entry})  # 30.0 is 30
    if 'image' in entry:
        known['image'] = SentImage.read(where, path.parent, entry['image'])
    question = ScoredQuestion(**{**entry, **known, 'json_schema': read_schema(where, entry)})
    if not 1 <= question.seconds <= LONGEST_WINDOW_S:
        raise InputError(
            f'{where}: its window is [{question.start_s}, {question.end_s}); 1 to '
            f'{LONGEST_WINDOW_S} s are allowed.'
        )
    if question.asked_at_s is not None and question.age_s < question.seconds:
        raise InputError(
            f'{where}: asked_at_s is {question.asked_at_s}; its evidence has left a window of '
            f'{question.seconds} s from {question.end_s + question.seconds} on.'
        )
    strange = [answer for answer in question.answers if not question.can_be(answer)]
    if question.choices and strange:
        raise InputError(
            f'{where}: {told(strange[0])} counts as right, but is not among its choices: it can '
            'never be given. Add it to choices, or leave it out of answers.'
        )
    return question


def check(question: ScoredQuestion) -> None:
    """Raise InputError where a file with this question would be refused."""
    lists = ('answers', 'choices', 'options')
    entry = {name: list(v) if name in lists else v for name, v in _told(question).items()}
    _read_question(Path('questions'), 0, entry)
