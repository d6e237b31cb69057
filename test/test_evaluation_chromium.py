# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A report as a browser shows it: nothing is wider than the screen, and the dark is dark.

Needs Chromium (apt install chromium); without it the tests are skipped, which pytest's summary
says.
"""

import html
import json
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from scored_clips import write_question_set

from minicpmo_ros.evaluation.report import page
from minicpmo_ros.evaluation.report.comparison import judge
from minicpmo_ros.evaluation.report.runs import TASKS, RunReport
from minicpmo_ros.evaluation.results import Given, Results, Run

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason='Chromium is not installed: no page was measured (apt install chromium)',
)
FAMILIES = (
    *TASKS,
    '场景理解与声音来源辨别的问题以及其他许多问题',
    'فهم المشهد',
    'x' * 80,
    'Costs $5, $6_x',
)
NAMES = ('before', '_q4_0 $x$ 量化 ' + 'y' * 60)
SAID = ('B', 'A', '选B', '答案是C，因为红灯在左边', 'الجواب B', 'z' * 300)
MEASURE = """
const found = {width: document.documentElement.scrollWidth, wide: [], small: []};
for (const e of document.body.querySelectorAll('*')) {
  const box = e.getBoundingClientRect();
  if (box.width && box.right > innerWidth + 1) found.wide.push(e.tagName + ' ' + e.className);
}
for (const e of document.querySelectorAll('svg text')) {
  const box = e.getBoundingClientRect(), svg = e.ownerSVGElement.getBoundingClientRect();
  if (box.height && box.height < 7) found.small.push(e.textContent);
  if (box.left < svg.left - 1 || box.right > svg.right + 1) found.wide.push(e.textContent);
}
const style = getComputedStyle(document.body);
found.paper = style.backgroundColor; found.ink = style.color;
found.label = getComputedStyle(document.querySelector('svg text')).fill;
parent.document.getElementById('measured').textContent = JSON.stringify(found);
"""


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    """Give the page of two runs whose names, families and answers are as long as can be."""
    folder = tmp_path_factory.mktemp('page')
    made = write_question_set(folder, (2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 30))
    asked = tuple(
        replace(q, family=FAMILIES[i % len(FAMILIES)], text=q.text + ' 这是什么颜色？' + 'w' * 300)
        for i, q in enumerate(made.questions)
    )
    questions = replace(made, questions=asked)
    chosen, judged = random.Random(1), []
    for k, name in enumerate(NAMES):
        facts = {'model': 'm' * 200, 'count': len(asked), 'options': {'n_ctx': 4096 * (k + 1)}}
        results = Results(folder / f'{k}', facts, questions, {'host': 'h' * 100})
        for question in asked:
            results.add(Given(question.id, chosen.choice(SAID), 20 * chosen.random(), 9, 1, 2, 99))
        results.close()
        judged.append(judge(name, Run.read(folder / f'{k}'), questions))
    return page.html(RunReport(questions, judged), 'Report 报告 ' + 't' * 200)


def measured(text: str, folder, width: int, is_dark: bool) -> dict:
    """Show a page in a frame of a width, and give what its script finds."""
    inside = text.replace('</body>', f'<script>onload = () => {{{MEASURE}}}</script></body>')
    outer = folder / 'outer.html'
    outer.write_text(
        '<!doctype html><meta charset="utf-8"><pre id="measured"></pre>'
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inside)}">'
    )
    command = [
        CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
        '--disable-dev-shm-usage',
        f'--user-data-dir={folder / "profile"}', '--window-size=1600,1000',
        f'--blink-settings=preferredColorScheme={0 if is_dark else 1}', outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="measured">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize('is_dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 400])
def test_nothing_is_wider_than_the_screen_or_too_small_to_read(text, tmp_path, width, is_dark):
    found = measured(text, tmp_path, width, is_dark)
    assert found['width'] <= width and not found['wide'] and not found['small']
    paper, ink, label = (
        sum(map(int, re.findall(r'\d+', found[name])[:3])) for name in ('paper', 'ink', 'label')
    )
    assert (paper < 150) is is_dark and abs(paper - ink) > 450 and abs(paper - label) > 450


def test_the_measuring_sees_a_table_that_is_too_wide(text, tmp_path):
    wide = text.replace('<tbody>', '<tbody style="white-space: nowrap">', 1).replace(
        'td.short', 'td { min-width: 300px; white-space: nowrap } td.short'
    )
    assert measured(wide, tmp_path, 1280, False)['wide']
