# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A report of runs: one HTML page that needs no network, the same as Markdown and as CSV."""

import base64
import csv
import io
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation import plots
from minicpmo_ros.evaluation.clips import Clip, Sources, read_clip
from minicpmo_ros.evaluation.comparison import by_group, changed, differing, verdict
from minicpmo_ros.evaluation.questions import QuestionSet, in_portions
from minicpmo_ros.evaluation.sheet import contact_sheet

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
MOST_SHOWN = 40  # questions with their pictures
LONGEST_SHOWN_S = 30  # of a window: its end is what was asked about
MOST_HELD_S = 120  # of a clip: a raw picture a second is large
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .25em .7em; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
.lost { color: #a00; font-weight: 600 } .won { color: #060 } .plots svg { max-width: 100% }
.question { border-top: 1px solid #ccc; padding: .8em 0 } .question img { max-width: 100% }
.headline { font-size: 1.35em; font-weight: 600 }
pre { white-space: pre-wrap } .question pre { margin: .3em 0 } small { color: #666 }
"""


@dataclass(frozen=True)
class Report:
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

    def rows(self) -> list:
        """Give the table: a row a run, a column a family, as the published tables are."""
        head = ['run', *self.families, 'all', '95 % interval', 'against the first']
        head += ['all, tolerant'] if self.is_by_letter else []
        head += ['no answer', 'first token, median ms', '95 % of them, ms', 'memory, MiB']
        rows = [head]
        for k, run in enumerate(self.runs):
            total = self.total[k]
            row = [run.name]
            row += [f'{100 * cells[k].right.share:.1f}' for cells in self.families.values()]
            row += [
                f'{100 * total.right.share:.1f}',
                f'{100 * total.right.low:.1f} to {100 * total.right.high:.1f}',
                verdict(total),
            ]
            row += [f'{100 * total.tolerant:.1f}'] if self.is_by_letter else []
            rows.append([*row, str(run.unanswered), *_costs(run)])
        return rows

    def worst_first(self) -> dict:
        """Give `families`, first what the last run lost most on; of one run, knows least."""
        return dict(sorted(self.families.items(), key=lambda item: _gain(item[1])))

    def family_rows(self) -> list:
        """Give what became of every family: by run its share, interval and verdict."""
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
        """Say in a sentence what came out, and in another what was not answered."""
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
        shown = [self.runs[-1], *self.runs[:-1][:1]]
        if any(run.unanswered for run in shown):
            counts = ', '.join(f'{run.name} {run.unanswered}' for run in shown)
            told += f' Without an answer, and counted as wrong, of {asked}: {counts}.'
        return told

    def agreement(self) -> str:
        """Say on how many questions the last run says the same as the first, and on which not."""
        if len(self.runs) == 1:
            return ''
        asked, others = self.questions.questions, differing(self.runs)
        same = len(asked) - len(others)
        told = f'Same text on {same} of {len(asked)} questions ({100 * same / len(asked):.1f} %)'
        shown = ', '.join(asked[i].id for i in others[:MOST_NAMED])
        more = f' and {len(others) - MOST_NAMED} more' if len(others) > MOST_NAMED else ''
        return f'{told}; another one on {shown}{more}.' if others else f'{told}.'

    def published_rows(self) -> list:
        """Give the table as StreamingBench's are published: a row a run, a column a task type,
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


def _gain(cells: list) -> float:
    return cells[-1].against.gain if cells[-1].against else cells[-1].right.share


def _costs(run) -> list:
    latencies, memory = run.latencies_ms(), run.memory_mib()
    told = [f'{np.percentile(latencies, p):.0f}' if len(latencies) else '' for p in (50, 95)]
    return [*told, f'{memory.max():.0f}' if len(memory) else '']


def markdown(report: Report) -> str:
    """Give the tables as Markdown."""
    parts = [
        ' '.join(filter(None, (report.headline(), report.agreement()))),
        _markdown_table(report.published_rows()),
        _markdown_table(report.rows()),
        _markdown_table(report.family_rows()),
    ]
    return '\n\n'.join(parts) + '\n'


def _markdown_table(rows: list) -> str:
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def as_csv(report: Report) -> str:
    """Give a row a question: what was asked, what each run said, whether it is right."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    head = ['id', 'clip', 'start_s', 'end_s', 'family', 'kind', 'text', 'accepted']
    for name in report.names:
        head += [f'{name}: answer', f'{name}: right', f'{name}: first_token_ms']
    writer.writerow(head)
    for i, q in enumerate(report.questions.questions):
        row = [q.id, q.clip, q.start_s, q.end_s, q.family, q.kind, q.text, ' / '.join(q.answers)]
        for run in report.runs:
            latency_ms = run.run.costs.get(q.id, {}).get('first_token_ms', '')
            row += [run.texts[i], int(run.right[i]), latency_ms]
        writer.writerow(row)
    return file.getvalue()


def table_csv(report: Report) -> str:
    """Give the table in the published shape."""
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows(report.published_rows())
    return file.getvalue()


def html(report: Report, title: str = 'Replay') -> str:
    """Give the page."""
    drawings = [
        plots.accuracy({**report.worst_first(), 'all': report.total}, report.names),
        plots.distribution(
            {run.name: run.latencies_ms() for run in report.runs}, 'first token, milliseconds'
        ),
        plots.course({run.name: run.memory_mib() for run in report.runs}, 'memory, MiB'),
    ]
    body = [
        f'<h1>{escape(title)}</h1><p class="headline">{escape(report.headline())}</p>',
        f'<p><small>{escape(report.agreement())}</small></p>',
        '<div class="plots">' + ''.join(drawings) + '</div>',
        _html_table(report.rows()),
        '<h2>By what was asked, the worst change first</h2>',
        _html_table(report.family_rows()),
        _shown_questions(report),
        '<h2>The runs</h2>',
        *(f'<pre>{escape(run.name)}: {escape(str(run.run.facts))}</pre>' for run in report.runs),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head><body>'
        + '\n'.join(body)
        + '</body></html>\n'
    )


def _html_table(rows: list) -> str:
    def line(row, tag):
        return (
            '<tr>'
            + ''.join(f'<{tag}{_mark(cell)}>{escape(cell)}</{tag}>' for cell in row)
            + '</tr>'
        )

    return (
        '<table>' + line(rows[0], 'th') + ''.join(line(row, 'td') for row in rows[1:]) + '</table>'
    )


def _mark(cell: str) -> str:
    """Colour a difference that is real."""
    if cell.endswith(': real'):
        return ' class="lost"' if cell.startswith('-') else ' class="won"'
    return ''


def _shown_questions(report: Report) -> str:
    indices = changed(report.questions, report.runs)
    first, last = report.runs[0].right, report.runs[-1].right
    lost, won = (sum(a == k and b != k for a, b in zip(first, last)) for k in (True, False))
    what = f'{len(indices)} answers are wrong'
    if len(report.runs) > 1:
        what = f'{lost} answers lost, {won} won, {len(indices) - lost - won} only worded otherwise'
    parts = [f'<h2>{what}</h2>']
    if len(indices) > MOST_SHOWN:
        parts.append(f'<p>The first {MOST_SHOWN} of each family in turn; all are in the CSV.</p>')
    shown = _in_turn(report.questions.questions, indices)[:MOST_SHOWN]
    asked, facts = report.questions.questions, report.runs[0].run.facts
    sources = Sources(facts.get('image_topic', ''), facts.get('audio_topic', ''))
    chosen = replace(report.questions, questions=tuple(asked[i] for i in shown))
    pictures = _pictures(chosen, sources)
    parts += [_shown_question(report, i, pictures[asked[i].id]) for i in shown]
    return '\n'.join(parts)


def _in_turn(questions: tuple, indices: list) -> list:
    """Order indices so that the families take turns."""
    rank, seen = {}, {}
    for i in indices:
        rank[i] = seen[questions[i].family] = seen.get(questions[i].family, -1) + 1
    return sorted(indices, key=lambda i: rank[i])


def _shown_question(report: Report, i: int, picture: str) -> str:
    question = report.questions.questions[i]
    said = ''
    for run in report.runs:
        cost = run.run.costs.get(question.id, {})
        text = run.texts[i] or cost.get('error') or 'nothing'
        kind = 'won' if run.right[i] else 'lost'
        said += f'<br><span class="{kind}">{escape(run.name)}: {escape(text)}</span>'
        said += f' <small>{escape(cost["note"])}</small>' if cost.get('note') else ''
    return (
        f'<div class="question"><small>{escape(question.family)}, {escape(question.id)}, '
        f'{escape(question.clip)}</small><pre>{escape(question.text)}</pre>'
        f'accepted: {escape(" / ".join(question.answers))}{said}<br>{picture}</div>'
    )


def _pictures(questions: QuestionSet, sources: Sources) -> dict:
    """Give every question's window as an image inside the page, or why there is none, by id.

    Of every bag no more is held than a few windows.
    """
    late = (
        replace(q, start_s=max(q.start_s, q.end_s - LONGEST_SHOWN_S)) for q in questions.questions
    )
    found = {}
    for name, shown in replace(questions, questions=tuple(late)).by_clip().items():
        for portion in in_portions(shown, MOST_HELD_S):
            try:
                windows = [(question.span, question.relative) for question in portion]
                clip = read_clip(questions.path_of(name), windows, sources)
                found.update({question.id: _picture(clip, question) for question in portion})
            except InputError as error:
                why = f'<small>{escape(str(error))}</small>'
                found.update({question.id: why for question in portion})
    return found


def _picture(clip: Clip, question) -> str:
    start_s, end_s = question.window(clip.first_s)
    sheet = contact_sheet(clip.between(start_s, end_s), start_s, end_s)
    file = io.BytesIO()
    sheet.save(file, 'JPEG', quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="what was seen and heard" src="data:image/jpeg;base64,{data}">'
