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
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath

import yaml

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.scoring import is_letter, is_text

FORMAT = 'minicpmo_ros questions 1'
MAX_FILE_BYTES = 64 * 2**20
LONGEST_WINDOW_S = 24 * 3600
RULES = ('text', 'letter')
SUBSETS = ('all', 'hard')
ASKED = ('id', 'clip', 'start_s', 'end_s', 'relative', 'text', 'choices')  # what an answer is to


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
    chance: float = 0.0  # of a guess that knows neither picture nor sound
    hard: bool = False  # of a clip whose seconds have nothing to do with each other
    rule: str = 'text'  # by which an answer is right, as scoring has them
    options: tuple = ()  # told in the text, for the tolerant reading of a letter
    relative: bool = False  # start_s and end_s count from the clip's first second

    @property
    def seconds(self) -> int:
        """Length of the window."""
        return self.end_s - self.start_s

    def is_right(self, text: str) -> bool:
        """Tell whether a text answers this question, by its rule."""
        rule = is_text if self.rule == 'text' else is_letter
        return rule(self.answers if self.rule == 'text' else self.answers[0], text)

    @property
    def span(self) -> tuple:
        """(start_s, end_s), as told."""
        return self.start_s, self.end_s

    def window(self, first_s: int) -> tuple:
        """Give the window in stamps, (start_s, end_s); first_s: the clip's first second."""
        shift_s = first_s if self.relative else 0
        return self.start_s + shift_s, self.end_s + shift_s


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
        _check_together(path, questions, folder if needs_clips else None)
        return cls(
            questions,
            str(data.get('name', '')),
            str(data.get('notes', '')),
            dict(data.get('clips') or {}),
            folder,
            one or '',
        )

    def write(self, path) -> None:
        """Write the file, a question a line; the same questions give the same bytes."""
        head = {'format': FORMAT, 'name': self.name, 'notes': self.notes, 'clips': self.clips}
        lines = [json.dumps(_told(q), ensure_ascii=False) for q in self.questions]
        text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
        Path(path).write_text(
            text + ',\n "questions": [\n' + ',\n'.join(lines) + '\n]}\n', encoding='utf-8'
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
        told = [[getattr(q, name) for name in ASKED] for q in self.questions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def by_clip(self) -> dict:
        """Give the questions by clip, those about one window together, else in their order."""
        clips = {}
        for question in self.questions:
            windows = clips.setdefault(question.clip, {})
            windows.setdefault((question.span, question.relative), []).append(question)
        return {clip: sum(windows.values(), []) for clip, windows in clips.items()}

    def path_of(self, clip: str) -> Path:
        """Where a clip lies."""
        return self.folder / clip


def _is_folder_of(bag: Path, entries: list) -> bool:
    """Tell whether a folder holds bags that questions name, or is one bag itself."""
    named = (entry.get('clip') for entry in entries if isinstance(entry, dict))
    return bag.is_dir() and any(_is_inside(name) and (bag / name).exists() for name in named)


def _about(path: Path, entries: list, bag: str) -> list:
    """Give the questions about one bag."""
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


def _check_together(path: Path, questions: tuple, folder: Path | None) -> None:
    """Check that ids are unique and the clips are in a folder, if any."""
    seen = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f'{path}: two questions have the id {question.id!r}; ids are unique.')
        seen.add(question.id)
        if folder is not None and not (folder / question.clip).exists():
            raise InputError(
                f'{path}: the clip {question.clip} of the question {question.id!r} is not in '
                f'{folder}. Fetch the clips with the file, or tell where they are (bag).'
            )


def _told(question: ScoredQuestion) -> dict:
    """What a file says of a question; rarer fields only where they are not at their default."""
    rare = {
        f.name: f.default for f in fields(question) if f.name in ('rule', 'options', 'relative')
    }
    told = vars(question).items()
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


def read_json(path: Path, expected_format: str) -> dict:
    """Read a JSON or YAML object that says it is of this format; raises InputError."""
    is_yaml = path.suffix in ('.yaml', '.yml')
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f'{path}: it is larger than {MAX_FILE_BYTES >> 20} MiB.')
        data = yaml.safe_load(path.read_bytes()) if is_yaml else _parsed(path.read_bytes())
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # or UTF-8, a repeated name
        kind = 'YAML' if is_yaml else 'JSON'
        raise InputError(f'{path}: it is not {kind} ({error}).') from error
    found = data.get('format') if isinstance(data, dict) else None
    if found != expected_format:
        raise InputError(f'{path}: its format is {found!r}, {expected_format!r} is expected.')
    return data


def _parsed(data: bytes):
    return json.loads(data, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list) -> dict:
    read = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f'the name {name!r} occurs twice')
        read[name] = value
    return read


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_second(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _is_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_share(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_inside(value) -> bool:
    """A path that does not leave the folder."""
    if not _is_text(value) or '\\' in value or '\0' in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and '..' not in path.parts


CHECKS: dict[str, tuple[Callable, str]] = {
    'id': (_is_text, 'a text'),
    'clip': (_is_inside, 'a path relative to the file'),
    'start_s': (_is_second, 'a whole number of seconds'),
    'end_s': (_is_second, 'a whole number of seconds'),
    'family': (_is_text, 'a text'),
    'text': (_is_text, 'a text'),
    'answers': (lambda v: _is_texts(v) and bool(v), 'a list of one text or more'),
    'choices': (_is_texts, 'a list of texts'),
    'kind': (lambda v: isinstance(v, str), 'a text'),
    'chance': (_is_share, 'a number from 0 to 1'),
    'hard': (lambda v: isinstance(v, bool), 'true or false'),
    'rule': (lambda v: v in RULES, f'one of {", ".join(RULES)}'),
    'options': (_is_texts, 'a list of texts'),
    'relative': (lambda v: isinstance(v, bool), 'true or false'),
}
REQUIRED = tuple(f.name for f in fields(ScoredQuestion) if f.default is MISSING)


def _read_question(path: Path, index: int, entry) -> ScoredQuestion:
    if not isinstance(entry, dict):
        raise InputError(f'{path}: question {index} is not an object.')
    where = f'{path}: question {index} ({entry.get("id")!r})'
    for name in REQUIRED:
        if name not in entry:
            raise InputError(f'{where} has no {name}.')
    for name, value in entry.items():
        if name not in CHECKS:
            raise InputError(f'{where} has {name!r}; known are {", ".join(CHECKS)}.')
        is_right, allowed = CHECKS[name]
        if not is_right(value):
            raise InputError(f'{where}: {name} is {str(value)[:80]!r}, {allowed} is expected.')
    lists = ('answers', 'choices', 'options')
    tuples = {name: tuple(entry[name]) for name in lists if name in entry}
    question = ScoredQuestion(**{**entry, **tuples})
    if not 1 <= question.seconds <= LONGEST_WINDOW_S:
        raise InputError(
            f'{where}: its window is [{question.start_s}, {question.end_s}); 1 to '
            f'{LONGEST_WINDOW_S} s are allowed.'
        )
    if question.choices and not set(question.answers) <= set(question.choices):
        raise InputError(f'{where}: an answer is not among its choices.')
    return question
