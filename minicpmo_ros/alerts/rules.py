# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Rules of standing questions, and the YAML file that holds them.

    format: minicpmo_ros alerts 1
    alerts:
    - id: fall
      question: Is a person lying on the floor?
      on: 0.8
    - {id: sound, question: "what is heard?", on_change: true, answers: [bell, siren, silence]}

What is wrong is an InputError that names the alert and the field. Words are words here: unlike
plain YAML, the file reads on, off, yes and no as text.
"""

import math
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from minicpmo_ros.config import SENSES
from minicpmo_ros.documents import StrictLoader, appearing, is_utf8, parse_yaml, told
from minicpmo_ros.errors import InputError

FORMAT = 'minicpmo_ros alerts 1'
MOST_RULES = 64
MOST_FILE_BYTES = 2**20
MOST_WORDS = 64  # of one list
LONGEST_S = 86_400.0
ID = re.compile(r'[A-Za-z](_?[A-Za-z0-9])*')  # it is part of a topic's name
RESERVED_IDS = ('state',)  # of topics beside those of the rules


@dataclass(frozen=True)
class AlertRule:
    """One standing question, and when it speaks. Durations are of the stream, by its stamps."""

    id: str
    question: str
    positive: tuple = ('yes',)  # answers that mean that the condition holds
    negative: tuple = ('no',)  # answers that mean that it does not
    on: float = 0.7  # it begins when the probability is at least this
    off: float = 0.3  # it ends when the probability is at most this
    after_s: float = 1.0  # how long the probability must be at `on` before it begins
    until_s: float = 2.0  # how long it must be at `off` before it ends
    cooldown_s: float = 0.0  # after an end, before it may begin again
    max_s: float = 0.0  # it is repeated as ongoing after every so long; 0: never
    on_change: bool = False  # no threshold: it speaks when its answer differs from the last
    answers: tuple = ()  # the answers it tells apart, for on_change
    period_s: float = 1.0  # between evaluations, at least
    priority: int = (
        0  # 0 to 9; with 1 a rule gets twice the turns of one with 0, where time is short
    )
    senses: tuple = ()  # it needs a second with these, 'image', 'audio'; none: all that come
    half_life_s: float = 0.0  # of earlier seconds in a smoothed probability; 0: not smoothed
    scale: float = 1.0  # of the log-odds, from calibration
    bias: float = 0.0  # added to the scaled log-odds, from calibration
    describe: str = ''  # a question that is asked when it begins; its answer becomes the text
    picture: bool = False  # the image of the second goes with the event

    def __post_init__(self):
        """Check the fields; InputError names the one that is wrong."""
        for name, (is_right, allowed) in CHECKS.items():
            value = getattr(self, name)
            if not is_right(value):
                given = told(list(value) if isinstance(value, tuple) else value)
                raise InputError(f'{name} is {given}, {allowed} is expected.')
        if self.on_change:
            self._check_answers()
        elif self.answers:
            raise InputError(
                'answers are for on_change: true. Add that, or give positive instead.'
            )
        else:
            self._check_words()

    @property
    def words(self) -> tuple:
        """All answers that it reads the probabilities of."""
        return self.answers if self.on_change else (*self.positive, *self.negative)

    def _check_answers(self) -> None:
        if len(self.answers) < 2:
            raise InputError(
                'on_change needs answers, a list of two texts or more: it speaks when another of '
                'them becomes the likeliest.'
            )
        default = {f.name: f.default for f in fields(self)}
        for name in ('positive', 'negative', 'on', 'off', 'until_s', 'max_s', 'scale', 'bias'):
            if getattr(self, name) != default[name]:
                raise InputError(f'{name} has no meaning with on_change: true. Leave it out.')

    def _check_words(self) -> None:
        if self.off > self.on:
            raise InputError(
                f'off is {self.off:g} and on is {self.on:g}: off must not be above on.'
            )
        plain = {word.casefold().strip() for word in self.positive}
        both = [word for word in self.negative if word.casefold().strip() in plain]
        if both:
            raise InputError(f'{both[0]!r} is in positive and in negative. It can mean one only.')


def _is_text(value) -> bool:
    return is_utf8(value) and bool(value.strip()) and '\0' not in value


def _is_number(low: float, high: float):
    def check(value) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and low <= value <= high and math.isfinite(value)

    return check


def _is_words(value) -> bool:
    is_list = isinstance(value, tuple) and len(value) <= MOST_WORDS and all(map(_is_text, value))
    return is_list and len({word.casefold().strip() for word in value}) == len(value)


def _is_bool(value) -> bool:
    return isinstance(value, bool)


_DURATION = _is_number(0.0, LONGEST_S), f'a number of seconds from 0 to {LONGEST_S:g}'
_is_share = _is_number(0.0, 1.0)
_WORDS = f'a list of different texts, 1 to {MOST_WORDS},'
CHECKS = {
    'id': (
        lambda v: _is_text(v) and len(v) <= 64 and bool(ID.fullmatch(v)) and v not in RESERVED_IDS,
        'a name of letters from a to z (or A to Z), digits and single underscores that begins '
        'with a letter, at most 64 characters and not "state" (it becomes a topic)',
    ),
    'question': (_is_text, 'a text'),
    'positive': (lambda v: _is_words(v) and bool(v), _WORDS),
    'negative': (lambda v: _is_words(v) and bool(v), _WORDS),
    'on': (lambda v: _is_share(v) and v > 0, 'a number from 0 to 1, but not 0,'),
    'off': (lambda v: _is_share(v) and v < 1, 'a number from 0 to 1, but not 1,'),
    'after_s': _DURATION,
    'until_s': _DURATION,
    'cooldown_s': _DURATION,
    'max_s': _DURATION,
    'on_change': (_is_bool, 'true or false'),
    'answers': (_is_words, _WORDS),
    'period_s': (_is_number(1.0, LONGEST_S), f'a number of seconds from 1 to {LONGEST_S:g}'),
    'priority': (lambda v: _is_number(0, 9)(v) and v == int(v), 'a whole number from 0 to 9'),
    'senses': (
        lambda v: _is_words(v) and set(v) <= set(SENSES),
        f'a list of {" and ".join(SENSES)}',
    ),
    'half_life_s': _DURATION,
    'scale': (_is_number(0.01, 100.0), 'a number from 0.01 to 100'),
    'bias': (_is_number(-100.0, 100.0), 'a number from -100 to 100'),
    'describe': (lambda v: v == '' or _is_text(v), 'a question, true or false'),
    'picture': (_is_bool, 'true or false'),
}
LISTS = ('positive', 'negative', 'answers', 'senses')
WHAT_HAPPENS = 'What is happening now?'  # for describe: true
SWITCHES = {  # for describe, where a message or this file's YAML makes a text of it
    **dict.fromkeys(('true', 'yes', 'on'), WHAT_HAPPENS),
    **dict.fromkeys(('false', 'no', 'off', 'none', 'null'), ''),
}


def make_rule(entry: dict) -> AlertRule:
    """Make an AlertRule of an object with its fields; raises InputError."""
    if not isinstance(entry, dict):
        raise InputError(f'it is {told(entry)}, an object with id and question is expected.')
    for name in entry:
        if name not in CHECKS:
            raise InputError(f'it has {told(name)}; known are {", ".join(CHECKS)}.')
    for name in ('id', 'question'):
        if name not in entry:
            raise InputError(f'it has no {name}.')
    values = {}
    for name, value in entry.items():
        if name in LISTS:
            value = tuple(value) if isinstance(value, (list, tuple)) else value
        elif name == 'describe':
            value = _describing(value)
        values[name] = value
    return AlertRule(**values)


def _describing(value):
    """Return the question that `describe` stands for; what is wrong is left as it is."""
    if value is None:
        return ''
    if isinstance(value, (bool, str)):
        return SWITCHES.get(str(value).casefold().strip(), value)
    return value


def check_together(rules: Iterable, most: int = MOST_RULES) -> tuple:
    """Return the rules as a tuple; InputError where an id repeats or there are too many."""
    rules, seen = tuple(rules), set()
    if len(rules) > most:
        raise InputError(
            f'There are {len(rules)} alerts, at most {most} are allowed. Remove some'
            + (
                f', or raise alerts.max_rules (to {MOST_RULES} at most).'
                if most < MOST_RULES
                else '.'
            )
        )
    for rule in rules:
        if rule.id in seen:
            raise InputError(f'Two alerts have the id {rule.id!r}; ids are unique.')
        seen.add(rule.id)
    return rules


class _RulesLoader(StrictLoader):
    """YAML in which only true and false are truth values, not on, off, yes and no."""


_RulesLoader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] != 'tag:yaml.org,2002:bool']
    for first, resolvers in StrictLoader.yaml_implicit_resolvers.items()
}
_RulesLoader.add_implicit_resolver(
    'tag:yaml.org,2002:bool', re.compile(r'true|True|TRUE|false|False|FALSE'), list('tTfF')
)


def read_rules(path, most: int = MOST_RULES) -> tuple:
    """Read a file of rules; InputError names the file, the alert and the field."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise InputError(f'{path}: it is larger than {MOST_FILE_BYTES >> 20} MiB.')
        data = parse_yaml(path.read_bytes(), _RulesLoader)
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    except ValueError as error:
        hint = ' Within { } a text with a question mark must be quoted.' * (
            "but got '?'" in str(error)
        )
        raise InputError(f'{path}: it is not YAML ({error}).{hint}') from error
    found = data.get('format') if isinstance(data, dict) else None
    if found != FORMAT:
        raise InputError(f'{path}: its format is {told(found)}, {FORMAT!r} is expected.')
    entries = data.get('alerts')
    if entries is None and 'alerts' in data:
        entries = []  # the last one was removed
    if not isinstance(entries, list):
        raise InputError(f'{path}: alerts is {told(entries)}, a list is expected.')
    rules = []
    for number, entry in enumerate(entries, 1):
        name = entry.get('id') if isinstance(entry, dict) else None
        try:
            rules.append(make_rule(entry))
        except InputError as error:
            raise InputError(f'{path}: alert {number} ({told(name)}): {error}') from error
    try:
        return check_together(rules, most)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def write_rules(path, rules) -> None:
    """Write a file of rules, whole or not at all; the comments at its begin are kept.

    Fields at their default are left out. Raises InputError where it cannot be written.
    """
    path = Path(path).resolve()  # a link stays one
    default = {f.name: f.default for f in fields(AlertRule)}
    entries = [
        {
            name: list(value) if name in LISTS else value
            for name, value in asdict(rule).items()
            if value != default[name]
        }
        for rule in rules
    ]
    text = yaml.safe_dump(
        {'format': FORMAT, 'alerts': entries}, sort_keys=False, allow_unicode=True, width=99
    )
    try:
        data = (_comments(path) + text).encode()
        if len(data) > MOST_FILE_BYTES:  # it could not be read again
            raise InputError(
                f'{path}: the rules take {len(data)} bytes, at most {MOST_FILE_BYTES} are read. '
                'Shorten a question or its answers, or remove a rule.'
            )
        with appearing(path) as file:
            file.write(data)
    except OSError as error:
        raise InputError(
            f'{path}: it cannot be written ({error.strerror}). Correct the permissions, or give '
            'another alerts.file.'
        ) from error


class KeptRules:
    """A file that one node reads and writes: over nothing that it has not read.

    Somebody may edit the file while the node runs, or it may hold rules that could not be read.
    """

    def __init__(self, path):
        self.path, self._known = Path(path).expanduser(), None  # its bytes as this node knows them

    def read(self) -> tuple:
        """Return its rules; raises InputError."""
        data, rules = self._data(), read_rules(self.path)
        self._known = data
        return rules

    def write(self, rules) -> None:
        """Write these rules; raises InputError where that fails, or something would be lost."""
        if self._data() not in (None, self._known):
            raise InputError(
                f'{self.path} holds what this node has not read: it was changed since, or could '
                'not be read. Nothing is written over it. Correct it, and configure the node anew '
                '(or move the file away).'
            )
        write_rules(self.path, rules)
        self._known = self._data()

    def _data(self) -> bytes | None:
        """Return what is in the file, one byte more than is read at most; None: no file."""
        if not self.path.is_file():
            return None
        try:
            with self.path.open('rb') as file:
                return file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise InputError(f'{self.path}: it cannot be read ({error.strerror}).') from error


def _comments(path: Path) -> str:
    """Return the comments at the begin of a file; '' where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ''
    # As YAML is read: in UTF-16 where it begins so.
    encoding = 'utf-16' if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else 'utf-8-sig'
    kept = []
    for line in data.decode(encoding, errors='replace').splitlines(keepends=True):
        if line.strip() and not line.startswith('#'):
            break
        kept.append(line)
    return ''.join(kept)
