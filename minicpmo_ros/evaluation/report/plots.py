# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a report: plots as SVG, and a clip at a glance.

A plot stands inside a page and takes its colours and fonts. Texts stay texts: the reader's machine
has the fonts of its languages, and puts right-to-left text in order. A contact sheet shows the
image of every second of a clip, and the waveform of its audio below.
"""

import io
import textwrap
import warnings
from contextlib import contextmanager
from unicodedata import east_asian_width

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import SAMPLE_RATE_HZ, Clip
from minicpmo_ros.units import NS

MOST_POINTS = 2000  # of a curve: more are not seen
INK = '#010203'  # stands for the colour of the page's text
WIDTH = 5.2  # inches: letters are still read where the page is 400 pixels wide
MOST_NAME = 40  # characters of a run's name
LABEL_WIDTH, LABEL_LINES = 24, 2  # of a bar's label: narrow characters a line, and lines
STYLE = {
    'svg.hashsalt': 'minicpmo_ros',  # equal data give equal bytes
    'svg.fonttype': 'none',
    'font.family': ['sans-serif'],
    **{
        name: INK
        for name in (
            'text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color',
            'grid.color', 'legend.labelcolor', 'hatch.color',
        )
    },
}  # fmt: skip
COLUMNS = 10  # seconds a row
CELL, WAVE, LABEL, GAP = 128, 40, 14, 4  # pixels: width and height of an image, heights, space
PAPER, PEN, GONE = (255, 255, 255), (40, 40, 40), (225, 225, 225)
MOST_CELLS = 1200
LINE, LINES = 20, 9  # of a reason in a cell


def accuracy(groups: dict, names: list) -> str:
    """Draw bars with 95 percent intervals, a group of bars a group of questions.

    groups: as comparison.by_group gives them. names: of the runs.
    """
    width = 0.8 / len(names)
    figure, axes = _figure(WIDTH, 1.1 + len(groups) * max(0.42, 0.2 * len(names)))
    at = np.arange(len(groups))
    for k in range(len(names)):
        cells = [cells[k].right for cells in groups.values()]
        share = np.array([100 * cell.share for cell in cells])
        low, high = (
            np.array([100 * getattr(cell, side) for cell in cells]) for side in ('low', 'high')
        )
        axes.barh(
            at + (k - (len(names) - 1) / 2) * width,
            share,
            0.92 * width,
            xerr=(share - low, high - share),
            ecolor=INK,
            capsize=2,
            label=f'{k}',
        )
    labels = [_label(name) for name in groups]
    axes.set_yticks(at, map(_as_wide, labels), parse_math=False, fontsize='small')
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel('right, percent')
    axes.grid(axis='x', alpha=0.3)
    _legend(axes, names, loc='lower center', bbox_to_anchor=(0.4, 1.0))
    with _without_fonts():
        figure.draw_without_rendering()  # finds the room that labels need
    figure.set_layout_engine('none')
    axes.set_yticks(at, labels, parse_math=False, fontsize='small')
    return _svg(figure)


def distribution(values: dict, label: str) -> str:
    """Draw which share of the questions took at most so long; {run: (n,) values}; '' of none."""
    values = {name: found for name, found in values.items() if len(found)}
    if not values:
        return ''
    figure, axes = _figure(WIDTH, 2.8)
    for k, found in enumerate(values.values()):
        ordered = np.sort(found)
        shown = np.unique(np.linspace(0, len(ordered) - 1, MOST_POINTS).astype(int))
        axes.step(ordered[shown], 100 * (shown + 1) / len(ordered), where='post', label=f'{k}')
    axes.set_xlabel(label)
    axes.set_ylabel('questions, percent')
    axes.grid(alpha=0.3)
    _legend(axes, list(values), loc='lower right')
    return _svg(figure)


def course(values: dict, label: str) -> str:
    """Draw values over the questions in the order of answering; {run: (n,) values}; '' of none."""
    values = {name: found for name, found in values.items() if len(found) and np.any(found)}
    if not values:
        return ''
    figure, axes = _figure(WIDTH, 2.8)
    for k, found in enumerate(values.values()):
        shown = np.unique(np.linspace(0, len(found) - 1, MOST_POINTS).astype(int))
        axes.plot(shown, found[shown], label=f'{k}')
    axes.set_xlabel('question')
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _legend(axes, list(values), loc='lower right')
    return _svg(figure)


def alert_course(rules: dict, edges: list) -> str:
    """Draw the probabilities of standing questions over the seconds of all clips, one below the
    other.

    rules: {id: (probability (n,), held (n,) bool, on, off)}; edges: where a clip begins, of n.
    """
    figure, axes = _figure(2 * WIDTH, 0.6 + 1.1 * len(rules), len(rules))
    for rows, (name, (probability, held, on, off)) in zip(np.atleast_1d(axes), rules.items()):
        at = np.arange(len(probability))
        rows.fill_between(at, 0, held, step='mid', alpha=0.25, label='true', linewidth=0)
        rows.plot(at, probability, linewidth=1)
        for threshold in (on, off):
            rows.axhline(threshold, color=INK, linestyle='--', linewidth=0.5)
        for edge in edges:
            rows.axvline(edge - 0.5, color=INK, alpha=0.2, linewidth=0.5)
        rows.set_ylim(-0.05, 1.05)
        rows.set_xlim(-0.5, max(0.5, len(probability) - 0.5))
        rows.set_ylabel(name, parse_math=False, fontsize='small')
    np.atleast_1d(axes)[-1].set_xlabel('seconds watched; shaded: the condition holds')
    return _svg(figure)


def reliability_diagram(rules: dict) -> str:
    """Draw how often a condition held over the probability that was told; {id: list of Bin}."""
    figure, axes = _figure(WIDTH, WIDTH)
    axes.plot([0, 1], [0, 1], color=INK, linestyle='--', linewidth=0.5)
    for k, bins in enumerate(rules.values()):
        axes.plot([b.probability for b in bins], [b.share for b in bins], marker='o', label=f'{k}')
    axes.set_xlabel('probability told, mean of each tenth')
    axes.set_ylabel('share of seconds in which it held')
    axes.grid(alpha=0.3)
    if rules:
        _legend(axes, list(rules), loc='upper left')
    return _svg(figure)


def _legend(axes, names: list, **place) -> None:
    """Name what was drawn with labels 0, 1, ...; a name may begin with _ and hold a $."""
    legend = axes.legend(fontsize='small', frameon=False, labelcolor=INK, **place)
    for text in legend.get_texts():
        name = names[int(text.get_text())]
        text.set_parse_math(False)
        text.set_text(name if len(name) <= MOST_NAME else name[: MOST_NAME - 1] + '…')


def _label(name: str) -> str:
    """Shorten a name to two lines of words; to one of a script that has no font here, whose lines
    would not be put below each other.
    """
    wide = {character for character in name if east_asian_width(character) in 'WF'}
    if wide:
        kept = name[: LABEL_WIDTH // 2]
        return kept + '…' * (kept != name)
    lines = textwrap.wrap(name, LABEL_WIDTH) or ['']
    return '\n'.join(lines[:LABEL_LINES]) + '…' * (len(lines) > LABEL_LINES)


def _as_wide(label: str) -> str:
    """Return a text as wide as the label in a font that is here."""
    return ''.join('W' if east_asian_width(c) in 'WF' else c for c in label)


def _figure(width_inch: float, height_inch: float, rows: int = 1):
    import matplotlib

    with matplotlib.rc_context(STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width_inch, height_inch), layout='constrained')
        return figure, figure.subplots(rows)


@contextmanager
def _without_fonts():
    """Draw texts that have no font here without a word: the reader's machine has one."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')
        yield


def _svg(figure) -> str:
    file = io.StringIO()
    with _without_fonts():
        figure.savefig(file, format='svg', metadata={'Date': None}, transparent=True)
    text = file.getvalue().replace(INK, 'currentColor')
    return text[text.index('<svg') :]


def contact_sheet(clip: Clip, start_s: int | None = None, end_s: int | None = None) -> Image.Image:
    """Draw the seconds [start_s, end_s), by default all.

    A second shows its newest image, or on grey why it has none; labels count from the first
    second drawn. Waveforms are drawn to full scale. Raises InputError for more than MOST_CELLS
    seconds.
    """
    newest = {}
    for image in clip.images:
        newest[image.stamp_ns // NS] = image
    audio = samples_by_second(clip)
    told = [*newest, *audio]
    if not told:
        raise InputError('No second there has an image or audio. Check --start and --seconds.')
    start_s = min(told) if start_s is None else start_s
    end_s = max(told) + 1 if end_s is None else end_s
    seconds = range(start_s, end_s)
    if not 0 < len(seconds) <= MOST_CELLS:
        raise InputError(
            f'{len(seconds)} seconds do not fit on a sheet; 1 to {MOST_CELLS} do. Give a window.'
        )
    columns, rows = min(COLUMNS, len(seconds)), -(-len(seconds) // COLUMNS)
    height = LABEL + CELL + WAVE + GAP
    sheet = Image.new('RGB', (columns * (CELL + GAP) + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, second in enumerate(seconds):
        left, top = GAP + i % COLUMNS * (CELL + GAP), GAP + i // COLUMNS * height
        draw.text((left, top), f'{second - start_s} s', fill=PEN)
        _draw_image(sheet, draw, newest.get(second), left, top + LABEL)
        _draw_wave(draw, audio.get(second), left, top + LABEL + CELL)
    return sheet


def samples_by_second(clip: Clip) -> dict:
    """Return the samples of every second that has some, (16000,) float32."""
    seconds, at_ns = {}, 0
    for stamp_ns, samples in clip.audio:
        begin_ns = at_ns if stamp_ns is None else stamp_ns
        at_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        begin = begin_ns * SAMPLE_RATE_HZ // NS
        while len(samples):
            second, offset = divmod(begin, SAMPLE_RATE_HZ)
            part, samples = np.split(samples, [SAMPLE_RATE_HZ - offset])
            kept = seconds.setdefault(second, np.zeros(SAMPLE_RATE_HZ, np.float32))
            kept[offset : offset + len(part)] = part
            begin += len(part)
    return seconds


def _draw_image(sheet, draw, image, left: int, top: int) -> None:
    problem = 'no image' if image is None else image.rgb.problem
    if problem:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=GONE)
        lines = textwrap.wrap(problem, LINE, max_lines=LINES, placeholder=' ...')
        draw.multiline_text((left + GAP, top + GAP), '\n'.join(lines), fill=PEN, spacing=1)
        return
    small = ImageOps.contain(Image.fromarray(image.rgb()), (CELL, CELL))
    sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))


def _draw_wave(draw, samples, left: int, top: int) -> None:
    middle = top + WAVE // 2
    if samples is None:
        draw.line((left, middle, left + CELL - 1, middle), fill=GONE)
        return
    parts = samples[: len(samples) // CELL * CELL].reshape(CELL, -1)  # (128, 125)
    for i, (low, high) in enumerate(zip(parts.min(1), parts.max(1))):
        ends = (np.clip((-high, -low), -1, 1) * (WAVE // 2 - 1)).round()
        draw.line((left + i, middle + ends[0], left + i, middle + ends[1]), fill=PEN)
