# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A score's report as Markdown tables for a person."""

from minicpmo_ros.evaluation.questions import SUBSETS
from minicpmo_ros.evaluation.score import KEY, SHORT_S


def markdown(found: dict) -> str:
    """Give a report as tables: families, windows, what the senses add, agreements."""
    parts = ['Right answers, percent', _table(found['rows'])]
    parts += ['By window', _window_table(found['details'])]
    gains = [('Points above the better of picture blanked and sound removed', found['rows'])]
    if 0 < len(found['short_rows']) and found['short_rows'] != found['rows']:
        parts += [f'Windows up to {SHORT_S} s', _table(found['short_rows'])]
        gains.append((f'The same, windows up to {SHORT_S} s', found['short_rows']))
    for title, rows in gains:
        table = _gain_table(rows)
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


def _table(rows: list) -> str:
    families = list(dict.fromkeys(family for row in rows for family in row['families']))
    lines = [
        (
            *(row[name] for name in (*KEY, 'subset')),
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
                    '',
                    '',
                    '',
                    subset,
                    '',
                    *(_percent(row['chance'].get(family)) for family in families),
                    '',
                    '',
                )
            )
    return _lines((*KEY, 'subset', 'overall', *families, 'same as f32', 'questions'), lines)


def _window_table(details: list) -> str:
    windows = sorted({w for detail in details for w in detail['windows']}, key=int)
    lines = [
        (
            *(detail[name] for name in (*KEY, 'subset')),
            *(_percent(detail['windows'].get(window, {}).get('right')) for window in windows),
        )
        for detail in details
    ]
    return _lines((*KEY, 'subset', *(f'{window} s' for window in windows)), lines)


def _gain_table(rows: list) -> str:
    """Compare with the better of both blank inputs, where both were tried."""
    by_key = {tuple(row[name] for name in (*KEY, 'subset')): row for row in rows}
    families = list(dict.fromkeys(family for row in rows for family in row['families']))
    lines = []
    for row in rows:
        blind = [
            by_key.get((*(row[name] for name in KEY[:3]), name, row['subset']))
            for name in ('no_picture', 'no_sound')
        ]
        if row['input'] == 'all' and all(blind):
            lines.append(
                (
                    *(row[name] for name in KEY[:3]),
                    row['subset'],
                    *(_gain(family, row, blind) for family in families),
                )
            )
    return _lines((*KEY[:3], 'subset', *families), lines) if lines else ''


def _gain(family: str, row: dict, blind: list) -> str:
    if family not in row['families']:
        return ''
    return f'{100 * (row["families"][family] - max(b["families"][family] for b in blind)):+.1f}'


def _lines(title: tuple, rows: list) -> str:
    return '\n'.join(
        '| ' + ' | '.join(cells) + ' |' for cells in (title, ('---',) * len(title), *rows)
    )


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'
