# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The curves of one or more trainings as a picture:

    python -m training.plot build/nano build/nano_seed2 --out docs/nano_curves.svg

Above the loss of each stage, below how often it is right; further trainings are dashed.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use('svg')
matplotlib.rcParams['svg.hashsalt'] = 'nano'  # the same curves give the same file
from matplotlib import pyplot  # noqa: E402

STAGES = {'vision': 'vision encoder', 'audio': 'audio encoder', 'llm': 'language model'}
NOT_SHARES = ('step', 'cpu_s', 'loss')
STYLES = ('-', '--', ':')


def read_curve(path):
    """The rows of a .jsonl file; of a step that was done twice (after a kill) the later one."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({row['step']: row for row in rows}.values())


def shares_of(row):
    """What a row says of right answers: by slot for an encoder (of unseen voices, for the
    sound), by family for the language.
    """
    named = row.get('families') or row.get('unseen') or row
    return {name: share for name, share in named.items() if name not in NOT_SHARES}


def draw(folders, out):
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6), sharex='col')
    for column, (stage, title) in enumerate(STAGES.items()):
        upper, lower = axes[:, column]
        for folder, style in zip(folders, STYLES):
            rows = read_curve(folder / f'{stage}.jsonl')
            steps = [row['step'] for row in rows]
            upper.semilogy(steps, [row['loss'] for row in rows], style, color='black')
            for i, name in enumerate(shares_of(rows[0])):
                values = [100 * shares_of(row)[name] for row in rows]
                label = name if style == STYLES[0] else None
                lower.plot(steps, values, style, color=f'C{i}', label=label)
        upper.set_title(title)
        lower.set_xlabel('step')
        lower.set_ylim(0, 102)
        lower.legend(loc='lower right', fontsize='small')
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel('loss')
    axes[1, 0].set_ylabel('right, percent')
    figure.tight_layout()
    figure.savefig(out, metadata={'Date': None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folders', type=Path, nargs='+', metavar='FOLDER')
    parser.add_argument('--out', type=Path, required=True)
    options = parser.parse_args()
    draw(options.folders, options.out)


if __name__ == '__main__':
    main()
