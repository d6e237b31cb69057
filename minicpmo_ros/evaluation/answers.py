# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers to a file of questions, by whatever path they came, and how many of them are right.

The file is JSON: {"format": FORMAT, "path": ..., "precision": ..., "audio": ..., "input": ...,
"model": ..., "answers": {id: text, ...}}. Path and precision are names of any kind, such as
"pytorch" and "bf16". The same answers give the same bytes.

A report is {"rows": [...], "short_rows": [...], "details": [...], "agreements": [...]}. A row is
an AnswerSet on a subset: {"name", "path", "precision", "audio", "input", "subset", "overall",
"families", "chance", "same_as_f32", "questions"}; same_as_f32 is the share of answers that are the
same text as by the core in f32 with the same audio and input, None where there are none. Short
rows count windows up to SHORT_S only. Details have `windows` (by seconds) and `kinds` in the
place of families, `ages` of what those about the past are about (by seconds), and `looks`: how
what was asked about was looked at, if any question looks. Agreements
compare two AnswerSets with all input that differ in one of path, precision and audio, or in their
name alone. Shares are rounded to 4 digits. `markdown` prints a report as tables.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from minicpmo_ros.config import LOOKS
from minicpmo_ros.documents import is_utf8, read_json, told
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import SUBSETS, QuestionSet

FORMAT = 'minicpmo_ros answers 1'
AUDIO = ('streaming', 'offline')
INPUTS = ('all', 'no_picture', 'no_sound')
NAMES = ('path', 'precision', 'audio', 'input')
ALLOWED = {'audio': AUDIO, 'input': INPUTS}  # of the other two any text
SHORT_S = 4  # what nano promises most for
NAMED = ('name', *NAMES)


@dataclass(frozen=True)
class AnswerSet:
    """Answers by question, and how they came about."""

    answers: dict  # id of the question: text
    path: str = 'core'  # without ROS; graph: through the live graph; pytorch: as trained
    precision: str = 'f16'  # of the model
    audio: str = 'streaming'  # offline: one spectrum of the whole window, with one maximum
    input: str = 'all'  # no_picture: images are grey; no_sound: samples are zero
    model: str = ''  # its model_id
    name: str = ''  # by which a person tells it from others that are alike in all that

    def __post_init__(self):
        """Check the four names."""
        for name in NAMES:
            given, allowed = getattr(self, name), ALLOWED.get(name)
            is_text = isinstance(given, str) and bool(given.strip())
            if not (given in allowed if allowed else is_text):
                raise InputError(
                    f'The {name} of answers is {told(given)}; allowed '
                    f'{"are " + ", ".join(allowed) if allowed else "is a name"}.'
                )

    @classmethod
    def read(cls, path) -> 'AnswerSet':
        """Read and check a file; raises InputError."""
        path = Path(path)
        data = read_json(path, FORMAT)
        answers = data.get('answers')
        if not isinstance(answers, dict) or not all(map(is_utf8, chain(*answers.items()))):
            raise InputError(f'{path}: its answers are not texts (UTF-8) by question.')
        try:
            rest = (told_text(data, 'model'), told_text(data, 'name'))
            return cls(answers, *(data.get(name) for name in NAMES), *rest)
        except InputError as error:
            raise InputError(f'{path}: {error}') from error

    def write(self, path) -> None:
        """Write the file."""
        facts = {name: value for name, value in vars(self).items() if name != 'answers'}
        if not self.name:
            del facts['name']
        text = json.dumps(
            {'format': FORMAT, **facts, 'answers': self.answers}, ensure_ascii=False, indent=1
        )
        Path(path).write_text(text + '\n', encoding='utf-8')

    def of(self, questions: QuestionSet) -> list:
        """Return the texts in the order of the questions; InputError if one is missing."""
        missing = [q.id for q in questions.questions if q.id not in self.answers]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(questions.questions)} questions have no '
                f'answer by {self.title}, {missing[0]!r} first. Do the answers '
                'belong to these questions?'
            )
        return [self.answers[q.id] for q in questions.questions]

    @property
    def title(self) -> str:
        """A short name."""
        parts = [self.name] * bool(self.name) + [self.path, self.precision]
        parts += [self.audio] if self.audio != 'streaming' else []
        return ' '.join(parts + [self.input] * (self.input != 'all'))


def told_text(data: dict, name: str) -> str:
    """Return a text of a file's head, '' where it is none."""
    return data[name] if isinstance(data.get(name), str) else ''


def short_names(paths: list) -> list:
    """Name paths by as few of their last parts as tell them apart; equal paths by their number."""
    parts = [Path(path).resolve().parts for path in paths]
    longest = max(map(len, parts), default=0)
    names = ['/'.join(one) for one in parts]
    for count in range(1, longest + 1):
        names = ['/'.join(one[-count:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    seen = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[i] = f'{name} ({seen[name]})' if seen[name] > 1 else name
    return names


def precision_name(precision: dict) -> str:
    """Return the precisions of the three files (part: precision) in one word: q4, mixed."""
    names = {'q4' if kind.startswith('q4') else kind for kind in precision.values()}
    return names.pop() if len(names) == 1 else 'mixed'


def report(questions: QuestionSet, answer_sets: list) -> dict:
    """Return the report; raises InputError where an AnswerSet lacks an answer."""
    rows, details = _rows(questions, answer_sets)
    short_rows, _ = _rows(questions.up_to(SHORT_S), answer_sets)
    return {
        'rows': rows,
        'short_rows': short_rows,
        'details': details,
        'agreements': _agreements([(a, a.of(questions)) for a in answer_sets]),
    }


def _rows(questions: QuestionSet, answer_sets: list) -> tuple:
    """Return rows and details."""
    given = [(answers, answers.of(questions)) for answers in answer_sets]
    rows, details = [], []
    for answers, texts in given:
        reference = _reference(answers, given)
        for subset in SUBSETS:
            # Of every chosen question: itself, the text, the text by f32 or None.
            chosen = [
                entry
                for entry in zip(questions.questions, texts, reference)
                if subset == 'all' or entry[0].hard
            ]
            if chosen:
                facts = {**_facts(answers), 'subset': subset}
                rows.append({**facts, **_row(chosen)})
                details.append({**facts, **_detail(chosen)})
    return rows, details


def _facts(answers: AnswerSet) -> dict:
    return {name: getattr(answers, name) for name in NAMED}


def _key(answers: AnswerSet) -> tuple:
    return tuple(getattr(answers, name) for name in NAMES)


def _reference(answers: AnswerSet, given: list) -> list:
    wanted = ('core', 'f32', answers.audio, answers.input)
    found = [texts for other, texts in given if _key(other) == wanted]
    return found[0] if found else [None] * len(given[0][1])


def _row(chosen: list) -> dict:
    by_family = _grouped(chosen, lambda question: question.family)
    has_reference = chosen[0][2] is not None
    return {
        'overall': _right(chosen),
        'families': {family: _right(group) for family, group in by_family.items()},
        'chance': {
            family: round(sum(entry[0].chance for entry in group) / len(group), 4)
            for family, group in by_family.items()
        },
        'same_as_f32': _share(a == b for _, a, b in chosen) if has_reference else None,
        'questions': len(chosen),
    }


def _detail(chosen: list) -> dict:
    windows = _grouped(chosen, lambda question: str(question.seconds))
    kinds = _grouped(chosen, lambda question: f'{question.family}/{question.kind}')
    late = [entry for entry in chosen if entry[0].asked_at_s is not None]
    ages = _grouped(late, lambda question: str(question.age_s))
    looks = _grouped(chosen, lambda question: question.looks or LOOKS[0])
    looks = {} if [*looks] == [LOOKS[0]] else looks
    return {
        name: {
            value: {'right': _right(group), 'questions': len(group)}
            for value, group in groups.items()
        }
        for name, groups in (
            ('windows', windows),
            ('kinds', kinds),
            ('ages', ages),
            ('looks', looks),
        )
    }


def _agreements(given: list) -> list:
    found = []
    for (a, texts), (b, others) in combinations(given, 2):
        differences = sum(x != y for x, y in zip(_key(a), _key(b)))
        is_alike = differences == 1 or (not differences and a.name != b.name)
        if is_alike and a.input == b.input == 'all':
            found.append(
                {'a': a.title, 'b': b.title, 'same': _share(x == y for x, y in zip(texts, others))}
            )
    return found


def _grouped(chosen: list, name_of) -> dict:
    """Sort entries into groups by the name of their question, names of digits by their number."""
    groups = defaultdict(list)
    for entry in chosen:
        groups[name_of(entry[0])].append(entry)
    return dict(sorted(groups.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0))


def _right(group: list) -> float:
    return _share(question.is_right(text) for question, text, _ in group)


def _share(truths) -> float:
    truths = list(truths)
    return round(sum(truths) / len(truths), 4)


def markdown(found: dict) -> str:
    """Return a report as tables: families, windows, what the senses add, agreements."""
    key = NAMED[0 if len({row['name'] for row in found['rows']}) > 1 else 1 :]
    parts = ['Right answers, percent', _table(found['rows'], key)]
    parts += ['By window', _detail_table(found['details'], key, 'windows', ' s')]
    if any(detail['ages'] for detail in found['details']):
        parts += ['By age of the evidence', _detail_table(found['details'], key, 'ages', ' s')]
    if any(detail['looks'] for detail in found['details']):
        parts += ['By look', _detail_table(found['details'], key, 'looks')]
    gains = [('Points above the better of image blanked and audio removed', found['rows'])]
    if 0 < len(found['short_rows']) and found['short_rows'] != found['rows']:
        parts += [f'Windows up to {SHORT_S} s', _table(found['short_rows'], key)]
        gains.append((f'The same, windows up to {SHORT_S} s', found['short_rows']))
    for title, rows in gains:
        table = _gain_table(rows, key[:-1])
        parts += [title, table] if table else []
    if found['agreements']:
        parts += [
            'Same answers, percent',
            _lines(
                ('one', 'other', 'same'),
                [(pair['a'], pair['b'], _percent(pair['same'])) for pair in found['agreements']],
            ),
        ]
    return '\n\n'.join(parts) + '\n'


def _table(rows: list, key: tuple) -> str:
    families = list(dict.fromkeys(family for row in rows for family in row['families']))
    lines = [
        (
            *(row[name] for name in (*key, 'subset')),
            _percent(row['overall']),
            *(_percent(row['families'].get(family)) for family in families),
            _percent(row['same_as_f32']),
            str(row['questions']),
        )
        for row in rows
    ]
    for subset in SUBSETS:
        row = next((row for row in rows if row['subset'] == subset), None)
        if row:
            lines.append(
                (
                    'chance',
                    *[''] * (len(key) - 1),
                    subset,
                    '',
                    *(_percent(row['chance'].get(family)) for family in families),
                    '',
                    '',
                )
            )
    return _lines((*key, 'subset', 'overall', *families, 'same as f32', 'questions'), lines)


def _detail_table(details: list, key: tuple, name: str, unit: str = '') -> str:
    columns = {value for detail in details for value in detail[name]}
    columns = sorted(columns, key=int if unit else LOOKS.index)
    lines = [
        (
            *(detail[fact] for fact in (*key, 'subset')),
            *(_percent(detail[name].get(column, {}).get('right')) for column in columns),
        )
        for detail in details
    ]
    return _lines((*key, 'subset', *(f'{column}{unit}' for column in columns)), lines)


def _gain_table(rows: list, key: tuple) -> str:
    """Compare with the better of both blank inputs, where both were tried."""
    by_key = {tuple(row[name] for name in (*NAMED, 'subset')): row for row in rows}
    families = list(dict.fromkeys(family for row in rows for family in row['families']))
    lines = []
    for row in rows:
        blind = [
            by_key.get((*(row[name] for name in NAMED[:-1]), name, row['subset']))
            for name in ('no_picture', 'no_sound')
        ]
        if row['input'] == 'all' and all(blind):
            lines.append(
                (
                    *(row[name] for name in key),
                    row['subset'],
                    *(_gain(family, row, blind) for family in families),
                )
            )
    return _lines((*key, 'subset', *families), lines) if lines else ''


def _gain(family: str, row: dict, blind: list) -> str:
    if family not in row['families']:
        return ''
    return f'{100 * (row["families"][family] - max(b["families"][family] for b in blind)):+.1f}'


def _lines(title: tuple, rows: list) -> str:
    return '\n'.join(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
        for cells in (title, ('---',) * len(title), *rows)
    )


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'
