# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A report of runs as one HTML page that needs no network."""

import base64
import io
import json
from dataclasses import replace
from html import escape

from jinja2 import Environment, StrictUndefined

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import Clip, Sources
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, in_portions
from minicpmo_ros.evaluation.report import plots
from minicpmo_ros.evaluation.report.plots import contact_sheet
from minicpmo_ros.evaluation.report.runs import RunReport

LONGEST_NUMBER = 14  # characters of a cell that is not broken: an interval
MOST_SHOWN = 40  # questions with their images
LONGEST_SHOWN_S = 30  # of a window: its end is what was asked about
MOST_HELD_S = 120  # of a clip: a raw image a second is large
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --band: #f2f4f6; --faint: #5b6470;
  --line: #ccd1d7; --lost: #a40000; --won: #00622a }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #15181c; --band: #20252b;
  --faint: #9aa4b0; --line: #3b434d; --lost: #ff8a80; --won: #74d99f } }
body { font: 15px/1.45 system-ui, "Noto Sans", "Noto Sans CJK SC", "Noto Sans Arabic", sans-serif;
  margin: 2em auto; max-width: 75em; padding: 0 1em; color: var(--ink); background: var(--paper);
  overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1em 0; max-width: 100% }
td, th { padding: .25em .6em; text-align: right; vertical-align: top }
th { font-weight: 600; border-bottom: 1px solid var(--line) }
td:first-child, th:first-child { text-align: start }
tbody tr:nth-child(even) { background: var(--band) }
td.short { white-space: nowrap }
.lost { color: var(--lost); font-weight: 600 } .won { color: var(--won) }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start }
.plots svg { max-width: 100%; height: auto; font-family: inherit }
.question { border-top: 1px solid var(--line); padding: .8em 0 }
.question img { max-width: 100%; background: #fff }
.headline { font-size: 1.35em; font-weight: 600 }
pre { white-space: pre-wrap; font-size: .9em } .question pre { margin: .3em 0 }
small { color: var(--faint) }
@media (max-width: 640px) {
  body { margin: 1em auto; padding: 0 .7em } .headline { font-size: 1.15em }
  table, tbody, tr, td { display: block } thead { display: none }
  tbody tr { padding: .4em 0; border-top: 1px solid var(--line) }
  td, td:first-child { text-align: start; padding: .1em .4em; display: flex; gap: 1em }
  td::before { content: attr(data-label); flex: 0 0 9em; color: var(--faint) }
}
"""
PAGE = """
{%- macro table(rows) -%}
<table><thead><tr>{% for cell in rows[0] %}<th><bdi>{{ cell }}</bdi></th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows[1:] %}
<tr>{% for cell in row %}<td data-label="{{ rows[0][loop.index0] }}" class="{{ mark(cell) }}"
><bdi>{{ cell }}</bdi></td>{% endfor %}</tr>
{%- endfor %}
</tbody></table>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style | safe }}</style></head><body>
<h1 dir="auto">{{ title }}</h1>
<p class="headline" dir="auto">{{ sentences[0] }}</p>
{% for sentence in sentences[1:] %}<p dir="auto">{{ sentence }}</p>
{% endfor -%}
<div class="plots">{% for drawing in drawings %}{{ drawing | safe }}{% endfor %}</div>
{{ table(rows) }}
<h2>By what was asked, the worst change first</h2>
{{ table(family_rows) }}
<h2>{{ changes }}</h2>
{% if is_cut %}<p>The first {{ shown | length }} of each family in turn; all are in the CSV.</p>
{% endif -%}
{% for one in shown -%}
<div class="question"><small><bdi>{{ one.question.family }}</bdi>,
<bdi>{{ one.question.id }}</bdi>, <bdi>{{ one.question.clip }}</bdi>: {{ one.change }}</small>
<pre dir="auto">{{ one.question.text }}</pre>
accepted: <bdi>{{ one.question.answers | join(' / ') }}</bdi>
{%- for said in one.said %}<br><span class="{{ 'won' if said.right else 'lost' }}">
{{- '' }}<bdi>{{ said.name }}</bdi>: <bdi>{{ said.text }}</bdi></span>
{%- if said.note %} <small>{{ said.note }}</small>{% endif %}
{%- endfor %}<br>{{ one.image | safe }}</div>
{% endfor -%}
<h2>The runs</h2>
{% for name, facts in runs %}<pre dir="auto">{{ name }}: {{ facts }}</pre>
{% endfor -%}
</body></html>
"""


def html(report: RunReport, title: str = 'Replay') -> str:
    """Return the page."""
    drawings = (
        plots.accuracy({**report.worst_first(), 'all': report.total}, report.names),
        plots.distribution(
            {run.name: run.latencies_ms() for run in report.runs}, 'first token, milliseconds'
        ),
        plots.course({run.name: run.memory_mib() for run in report.runs}, 'memory, MiB'),
    )
    found = report.what_changed()
    shown = _in_turn(report.questions.questions, list(found))[:MOST_SHOWN]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    return page.render(
        title=title,
        style=STYLE,
        sentences=report.sentences(),
        drawings=[drawing for drawing in drawings if drawing],
        rows=report.rows(has_families=False),
        family_rows=report.family_rows(),
        mark=_mark,
        changes=report.change_counts(),
        shown=_shown_questions(report, shown, found),
        is_cut=len(found) > len(shown),
        runs=[(run.name, _facts(run.run)) for run in report.runs],
    )


def _facts(run) -> str:
    facts = {**run.facts, **({'made with': run.head.starts} if run.head.starts else {})}
    return json.dumps(facts, ensure_ascii=False, default=str)


def _mark(cell: str) -> str:
    """Return the classes of a cell: a difference that is real has a colour, a number one line."""
    kinds = ['short'] * (len(cell) <= LONGEST_NUMBER)
    if cell.endswith(': real'):
        kinds.append('lost' if cell.startswith('-') else 'won')
    return ' '.join(kinds)


def _shown_questions(report: RunReport, shown: list, found: dict) -> list:
    """Return what the page tells of these questions, with what was seen and heard."""
    asked, facts = report.questions.questions, report.runs[0].run.facts
    names = ('image_topic', 'audio_topic', 'audio_channel', 'audio_format')
    sources = Sources(**{name: facts[name] for name in names if name in facts})
    chosen = replace(report.questions, questions=tuple(asked[i] for i in shown))
    images = {**find_images(chosen, sources), **_replaced(chosen, report.runs)}
    return [
        {
            'question': asked[i],
            'change': found[i],
            'said': [_said(run, asked[i].id, i) for run in report.runs],
            'image': images[asked[i].id],
        }
        for i in shown
    ]


def _replaced(questions: QuestionSet, runs: list) -> dict:
    """Return, by id, where the bag that is there is not the one that a run was asked about."""
    told = {}
    for clip in {question.clip: None for question in questions.questions}:
        heads = [run.run.head for run in runs]
        found = [head.replaced(clip, questions.path_of(clip)) for head in heads]
        if any(found):
            told[clip] = f'<small>{escape(next(filter(None, found)))}</small>'
    return {q.id: told[q.clip] for q in questions.questions if q.clip in told}


def _said(run, name: str, i: int) -> dict:
    cost = run.run.costs.get(name, {})
    text = run.texts[i] or cost.get('error') or 'nothing'
    return {'name': run.name, 'right': run.right[i], 'text': text, 'note': cost.get('note')}


def _in_turn(questions: tuple, indices: list) -> list:
    """Order indices so that the families take turns."""
    rank, seen = {}, {}
    for i in indices:
        rank[i] = seen[questions[i].family] = seen.get(questions[i].family, -1) + 1
    return sorted(indices, key=lambda i: rank[i])


def find_images(questions: QuestionSet, sources: Sources) -> dict:
    """Return every question's window as an image inside the page, or why there is none, by id.

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
                found.update({question.id: _image(clip, question) for question in portion})
            except InputError as error:
                why = f'<small>{escape(str(error))}</small>'
                found.update({question.id: why for question in portion})
    return found


def _image(clip: Clip, question) -> str:
    start_s, end_s = question.window(clip.first_s)
    sheet = contact_sheet(clip.between(start_s, end_s), start_s, end_s)
    file = io.BytesIO()
    sheet.save(file, 'JPEG', quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="what was seen and heard" src="data:image/jpeg;base64,{data}">'
