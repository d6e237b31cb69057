# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The plots of a report, as SVG that stands inside a page."""

import io

import numpy as np

MOST_POINTS = 2000  # of a curve: more are not seen


def accuracy(groups: dict, names: list) -> str:
    """Draw bars with 95 percent intervals, a group of bars a group of questions.

    groups: as comparison.by_group gives them. names: of the runs.
    """
    figure, axes = _figure(max(6, 1.1 * len(groups) * max(1, len(names) ** 0.5)), 3.2)
    at, width = np.arange(len(groups)), 0.8 / len(names)
    for k, name in enumerate(names):
        cells = [cells[k].right for cells in groups.values()]
        share = np.array([100 * cell.share for cell in cells])
        low, high = (
            np.array([100 * getattr(cell, side) for cell in cells]) for side in ('low', 'high')
        )
        axes.bar(
            at + (k - (len(names) - 1) / 2) * width,
            share,
            0.92 * width,
            yerr=(share - low, high - share),
            capsize=2,
            label=name,
        )
    axes.set_xticks(at, [name.replace(' ', '\n') for name in groups])
    axes.set_ylim(0, 100)
    axes.set_ylabel('right, percent')
    axes.grid(axis='y', alpha=0.3)
    axes.legend(fontsize='small', ncol=3, loc='upper center', bbox_to_anchor=(0.5, 1.2))
    return _svg(figure)


def distribution(values: dict, label: str) -> str:
    """Draw which share of the questions took at most so long; {run: (n,) values}."""
    figure, axes = _figure(5.2, 2.8)
    for name, found in values.items():
        if len(found):
            ordered = np.sort(found)
            shown = np.unique(np.linspace(0, len(ordered) - 1, MOST_POINTS).astype(int))
            axes.step(ordered[shown], 100 * (shown + 1) / len(ordered), where='post', label=name)
    axes.set_xlabel(label)
    axes.set_ylabel('questions, percent')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small', loc='lower right')
    return _svg(figure)


def course(values: dict, label: str) -> str:
    """Draw values over the questions in the order of answering; {run: (n,) values}."""
    figure, axes = _figure(5.2, 2.8)
    for name, found in values.items():
        shown = np.unique(np.linspace(0, max(0, len(found) - 1), MOST_POINTS).astype(int))
        if len(found):
            axes.plot(shown, found[shown], label=name)
    axes.set_xlabel('question')
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small', loc='lower right')
    return _svg(figure)


def _figure(width_inch: float, height_inch: float):
    import matplotlib

    matplotlib.rcParams['svg.hashsalt'] = 'minicpmo_ros'  # equal data give equal bytes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inch, height_inch), layout='constrained')
    return figure, figure.subplots()


def _svg(figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    text = file.getvalue()
    return text[text.index('<svg') :]
