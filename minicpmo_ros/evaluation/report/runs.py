# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a report of runs tells, in rows and in sentences, which Markdown, CSV and the page show."""

import csv
import io
from dataclasses import dataclass, field

import numpy as np

from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.report.comparison import (
    CHANGES,
    LOST,
    OTHER_WRONG,
    REWORDED,
    WON,
    Judged,
    by_group,
    changes,
    differing,
    verdict,
)
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.statistics import FEWEST_CLIPS

# Task types of StreamingBench's omni-source task, in the order of the published tables.
TASKS = {
    'Misleading Context Understanding': 'MCU',
    'Source Discrimination': 'SD',
    'Emotion Recognition': 'ER',
    'Anomaly Context Understanding': 'ACU',
    'Scene Understanding': 'SU',
    'Multimodal Alignment': 'MA',
}
MOST_NAMED = 20  # questions with another text, in the headline
# Of a start, what tells two runs apart; the time always differs.
OF_A_START = ('software', 'python', 'host', 'processor', 'threads')
LEFT_OUT = ('format', 'count', 'questions_sha256')
MOST_VALUE = 60  # characters of a value
# What begins so, a spreadsheet computes instead of showing it.
FORMULA = ('=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠')


@dataclass(frozen=True)
class RunReport:
    """What a page tells; `runs` are Judged, the first is the baseline."""

    questions: QuestionSet
    runs: list
    families: dict = field(init=False)
    total: list = field(init=False)

    def __post_init__(self):
        """Count."""
        found = by_group(self.questions, self.runs, lambda question: question.family)
        object.__setattr__(self, 'families', found)
        everything = by_group(self.questions, self.runs, lambda question: 'all')
        object.__setattr__(self, 'total', everything['all'])

    @property
    def names(self) -> list:
        """Of the runs."""
        return [run.name for run in self.runs]

    @property
    def is_by_letter(self) -> bool:
        """Whether the tolerant reading can differ."""
        return any(question.rule == 'letter' for question in self.questions.questions)

    @property
    def looks(self) -> bool:
        """Whether a question looks at an image closer than the window has it."""
        return any(question.looks for question in self.questions.questions)

    def rows(self, has_families: bool = True) -> list:
        """Return the table: a row a run, a column a family, as the published tables are.

        Without families its width does not depend on the questions.
        """
        families = self.families if has_families else {}
        head = ['run', *families, 'all', '95 % interval', 'against the first']
        head += ['all, tolerant'] if self.is_by_letter else []
        head += ['no answer', 'first token, median ms', '95 % of them, ms']
        head += ['look, median ms'] if self.looks else []
        head += ['memory, MiB']
        rows = [head]
        for k, run in enumerate(self.runs):
            total = self.total[k]
            row = [run.name]
            row += [f'{100 * cells[k].right.share:.1f}' for cells in families.values()]
            row += [
                f'{100 * total.right.share:.1f}',
                f'{100 * total.right.low:.1f} to {100 * total.right.high:.1f}',
                verdict(total),
            ]
            row += [f'{100 * total.tolerant:.1f}'] if self.is_by_letter else []
            rows.append([*row, str(run.unanswered), *_costs(run, self.looks)])
        return rows

    def worst_first(self) -> dict:
        """Return `families`, first what the last run lost most on; of one run, knows least."""
        return dict(sorted(self.families.items(), key=lambda item: _gain(item[1])))

    def family_rows(self) -> list:
        """Return what became of every family: by run its share, interval and verdict."""
        rows = [['questions about', 'run', 'right', '95 % interval', 'against the first']]
        for family, cells in self.worst_first().items():
            for name, cell in zip(self.names, cells):
                low, high = 100 * cell.right.low, 100 * cell.right.high
                rows.append(
                    [
                        family,
                        name,
                        f'{100 * cell.right.share:.1f}',
                        f'{low:.1f} to {high:.1f}',
                        verdict(cell),
                    ]
                )
        return rows

    def headline(self) -> str:
        """Return a sentence on the result, and another on what was not answered."""
        asked = len(self.questions.questions)
        if len(self.runs) == 1:
            cell = self.total[0].right
            told = (
                f'{self.names[0]} answers {100 * cell.share:.1f} % of {asked} questions rightly '
                f'(95 % interval {100 * cell.low:.1f} to {100 * cell.high:.1f}).'
            )
        else:
            told = f'{self.names[-1]} against {self.names[0]}: {verdict(self.total[-1])}.'
            family, cells = min(self.families.items(), key=lambda item: _gain(item[1]))
            if _gain(cells) < 0:
                told += f' It lost most on {family} ({verdict(cells[-1])}).'
            clips = len({question.clip for question in self.questions.questions})
            if clips < FEWEST_CLIPS:
                n_clips = '1 clip is' if clips == 1 else f'{clips} clips are'
                told += f' {n_clips} too few to call any difference real.'
        shown = [self.runs[-1], *self.runs[:-1][:1]]
        if any(run.unanswered for run in shown):
            counts = ', '.join(f'{run.name} {run.unanswered}' for run in shown)
            told += f' Without an answer, and counted as wrong, of {asked}: {counts}.'
        return told

    def sentences(self) -> list:
        """Return what stands above all tables."""
        told = (self.headline(), self.made_differently(), self.agreement())
        return [sentence for sentence in told if sentence]

    def made_differently(self) -> str:
        """Return in which ways the other runs were made otherwise than the first."""
        return ' '.join(_made_differently(self.runs[0], run) for run in self.runs[1:])

    def what_changed(self) -> dict:
        """Return {index of a question: one of CHANGES}; of one run, what is wrong."""
        if len(self.runs) > 1:
            return changes(self.questions, self.runs)
        return {i: 'wrong' for i, right in enumerate(self.runs[0].right) if not right}

    def change_counts(self) -> str:
        """Return how many answers changed, and how."""
        found = list(self.what_changed().values())
        if len(self.runs) == 1:
            return f'{len(found)} answers are wrong'
        counts = {change: found.count(change) for change in CHANGES}
        return (
            f'{counts[LOST]} answers lost, {counts[WON]} won, {counts[OTHER_WRONG]} wrong as '
            f'before but with another answer, {counts[REWORDED]} only worded otherwise'
        )

    def agreement(self) -> str:
        """Return on how many questions the last run says what the first says, and where not."""
        if len(self.runs) == 1:
            return ''
        asked, others = self.questions.questions, differing(self.runs)
        same = len(asked) - len(others)
        told = f'Same text on {same} of {len(asked)} questions ({100 * same / len(asked):.1f} %)'
        if not others:
            return f'{told}.'
        shown = ', '.join(asked[i].id for i in others[:MOST_NAMED])
        more = f' and {len(others) - MOST_NAMED} more' if len(others) > MOST_NAMED else ''
        return f'{told}; another one on {shown}{more}. {self.change_counts()}.'

    def published_rows(self) -> list:
        """Return the table as StreamingBench's are published: a row a run, a column a task type,
        in percent and nothing else.
        """
        known = [family for family in TASKS if family in self.families]
        columns = [*known, *(family for family in self.families if family not in TASKS)]
        rows = [['run', *(TASKS.get(family, family) for family in columns), 'all']]
        for k, run in enumerate(self.runs):
            shares = [self.families[family][k].right.share for family in columns]
            shares.append(self.total[k].right.share)
            rows.append([run.name, *(f'{100 * share:.1f}' for share in shares)])
        return rows


def _made_differently(first: Judged, run: Judged) -> str:
    found, bags = differences(first.run, run.run), different_bags(first.run, run.run)
    told = f'{run.name} was made like {first.name}: same model, options and software.'
    if found:
        told = f'{run.name} was made otherwise than {first.name}: {"; ".join(found)}.'
    if bags:
        told += (
            f' They were not asked about the same recordings: {", ".join(bags[:MOST_NAMED])} '
            f'({len(bags)} bags) changed between them.'
        )
    return told


def _gain(cells: list) -> float:
    return cells[-1].against.gain if cells[-1].against else cells[-1].right.share


def _costs(run, has_looks: bool) -> list:
    latencies, looks, memory = run.latencies_ms(), run.looks_ms(), run.memory_mib()
    told = [f'{np.percentile(latencies, p):.0f}' if len(latencies) else '' for p in (50, 95)]
    if has_looks:
        told.append(f'{np.median(looks):.0f}' if len(looks) else '')
    return [*told, f'{memory.max():.0f}' if len(memory) else '']


def differences(first: Run, second: Run) -> list:
    """Return a phrase for everything in which the second run's head differs from the first's."""
    mine, base = _flat(_facts(second)), _flat(_facts(first))
    names = list(dict.fromkeys([*base, *mine]))
    return [
        f'{name} {_short(mine.get(name))} (was {_short(base.get(name))})'
        for name in names
        if mine.get(name) != base.get(name)
    ]


def different_bags(first: Run, second: Run) -> list:
    """Return the names of bags that were not the same for both runs."""
    bags = first.head.bags, second.head.bags
    return [
        name
        for name in bags[0]
        if name in bags[1] and _hash(bags[0], name) != _hash(bags[1], name)
    ]


def _facts(run: Run) -> dict:
    facts = {name: value for name, value in run.facts.items() if name not in LEFT_OUT}
    start = run.head.starts[-1] if run.head.starts else {}
    return {**facts, **{name: start[name] for name in OF_A_START if name in start}}


def _flat(facts: dict, before: str = '') -> dict:
    """Return {'options n_ctx': 4096, ...} of objects within objects."""
    flat = {}
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f'{before}{name} '))
        else:
            flat[before + name] = value
    return flat


def _short(value) -> str:
    if value is None or value == '':
        return 'not told' if value is None else 'none'
    text = str(value)
    is_hash = len(text) == 64 and not set(text) - set('0123456789abcdef')
    most = 12 if is_hash else MOST_VALUE
    return text if len(text) <= most else text[:most] + '…'


def _hash(bags: dict, name: str) -> str:
    return bags[name].get('sha256', '')


def markdown(report: RunReport) -> str:
    """Return the tables as Markdown."""
    parts = [
        ' '.join(map(_markdown_text, report.sentences())),
        _markdown_table(report.published_rows()),
        _markdown_table(report.rows()),
        _markdown_table(report.family_rows()),
    ]
    return '\n\n'.join(parts) + '\n'


def _markdown_table(rows: list) -> str:
    lines = ['| ' + ' | '.join(map(_markdown_cell, row)) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def _markdown_text(text: str) -> str:
    return text.replace('<', '&lt;').replace('\n', ' ')


def _markdown_cell(text: str) -> str:
    """Return a text that stays within its cell."""
    return _markdown_text(' '.join(text.split('\r'))).replace('\\', '\\\\').replace('|', '\\|')


def as_csv(report: RunReport) -> str:
    """Return a row a question: what was asked, what each run said, whether it is right."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    head = ['id', 'clip', 'start_s', 'end_s', 'family', 'kind', 'text', 'accepted']
    head += ['look'] if report.looks else []
    for name in report.names:
        head += [f'{name}: answer', f'{name}: right', f'{name}: first_token_ms']
        head += [f'{name}: look_ms'] if report.looks else []
    writer.writerow(map(_csv_cell, head))
    for i, q in enumerate(report.questions.questions):
        row = [q.id, q.clip, q.start_s, q.end_s, q.family, q.kind, q.text, ' / '.join(q.answers)]
        row += [q.looks or 'live'] if report.looks else []
        for run in report.runs:
            cost = run.run.costs.get(q.id, {})
            row += [run.texts[i], int(run.right[i]), cost.get('first_token_ms', '')]
            row += [cost.get('look_ms', '')] if report.looks else []
        writer.writerow(map(_csv_cell, row))
    return file.getvalue()


def table_csv(report: RunReport) -> str:
    """Return the table in the published shape."""
    file = io.StringIO()
    rows = [[_csv_cell(cell) for cell in row] for row in report.published_rows()]
    csv.writer(file, lineterminator='\n').writerows(rows)
    return file.getvalue()


def _csv_cell(value):
    """Return a value that a spreadsheet shows as it is, texts not as formulas."""
    is_formula = isinstance(value, str) and value.lstrip(' ').startswith(FORMULA)
    return "'" + value if is_formula else value
