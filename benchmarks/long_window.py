# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a thinned window answers about what a plain one of the same size has long forgotten.

    make build && source environment/env.sh && python -m benchmarks.long_window

Seconds of the held-out clips, seen and heard once, are strung together at random to many streams;
each is read into two windows of the same room. At a moment when both are full the oldest second
that the policy `long` still holds is three times as old as the oldest of `recent`. The questions
are about that second and name its sound, which is heard nowhere else in the stream: what colour,
what shape? Answers are held to the words of the kind, so that chance is one in as many. What
`recent` answers, which holds nothing of that second, is the measured chance.
Writes build/long_window.json.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.streams import (  # noqa: E402
    open_core,
    question_file,
    read_seconds,
    unit_rows,
    units_of,
)
from minicpmo_ros.live.question import Question  # noqa: E402
from minicpmo_ros.live.window import POLICIES, Window  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from training.world import COLORS, SHAPES  # noqa: E402

KINDS = {
    'color': ('what color is the shape when you hear {}?', COLORS),
    'shape': ('what shape is shown when you hear {}?', SHAPES),
}


def moment(n_units: int, rows: int) -> tuple:
    """Give (last second, oldest of `recent`, oldest of `long`) when `long` reaches far enough."""
    windows = {policy: Window(0, n_units * rows, policy) for policy in POLICIES}
    for second in range(20 * n_units):
        for window in windows.values():
            window.remove(window.spans_to_evict(rows))
            window.append(second, rows)
        recent, long = (windows[policy].seconds[0] for policy in ('recent', 'long'))
        if second > 4 * n_units and second - long >= 3 * (second - recent):
            return second, recent, long
    raise SystemExit(f'A window of {n_units} units never reaches three times as far.')


def draw(pool: list, length: int, asked: int, rng) -> list:
    """Give which seconds of the pool make a stream.

    That at place `asked` has a sound of its own in it, which names no answer.
    """
    answers = {'silence', *COLORS, *SHAPES}
    sounds = [(shown.sound, shown.is_word) for shown in pool]
    fit = [i for i, (sound, _) in enumerate(sounds) if sound not in answers]
    marked = fit[rng.integers(len(fit))]
    others = [i for i, sound in enumerate(sounds) if sound != sounds[marked]]
    stream = [others[i] for i in rng.integers(len(others), size=length)]
    stream[asked] = marked
    return stream


def ask(session, text: str, choices: tuple):
    """Give the Answer."""
    return session.ask(Question(text, choices)).complete()


def measure(model_dir, questions, clips: int, n_streams: int, n_units: int, seed: int) -> dict:
    """Give how often each policy is right, by kind, and what was asked of what."""
    model, pool = ModelDirectory.open(model_dir), read_seconds(questions, clips)
    cores = {policy: open_core(model, n_units, window_policy=policy) for policy in POLICIES}
    last, recent, asked = moment(n_units, unit_rows(cores['recent']))
    right = {policy: Counter() for policy in POLICIES}
    units = list(units_of(cores['recent'], pool))
    rng = np.random.default_rng(seed)
    for _ in range(n_streams):
        stream = draw(pool, last + 1, asked, rng)
        marked = pool[stream[asked]]
        heard = f'"{marked.sound}"' if marked.is_word else f'the {marked.sound}'
        for policy, core in cores.items():
            core.session.reset()
            for second, which in enumerate(stream):
                core.session.append(replace(units[which], second=second))
            for kind, (text, words) in KINDS.items():
                answer = ask(core.session, text.format(heard), words)
                assert (asked in answer.seconds) == (policy == 'long'), answer.seconds
                right[policy][kind] += answer.text == getattr(marked, kind)
    for core in cores.values():
        core.close()
    shares = {
        policy: {kind: 100 * counts[kind] / n_streams for kind in KINDS}
        for policy, counts in right.items()
    }
    shares['chance'] = {kind: 100 / len(words) for kind, (_, words) in KINDS.items()}
    for share in shares.values():
        share['all'] = float(np.mean(list(share.values())))
    return {
        'questions': n_streams * len(KINDS),
        'units': n_units,
        'oldest age of recent': last - recent,
        'age of the second asked about': last - asked,
        'right': shares,
        'model': model.space,
    }


def table(figures: dict) -> str:
    """Give the Markdown table."""
    kinds = (*KINDS, 'all')
    lines = [
        f'{figures["questions"]} questions about a second '
        f'{figures["age of the second asked about"]} s ago; the oldest of the plain window of '
        f'{figures["units"]} units is {figures["oldest age of recent"]} s old.',
        '',
        '| window_policy | ' + ' | '.join(kinds) + ' |',
        '|---|' + '---:|' * len(kinds),
    ]
    for name, right in figures['right'].items():
        lines.append(f'| {name} | ' + ' | '.join(f'{right[kind]:.1f}' for kind in kinds) + ' |')
    return '\n'.join(lines)


def main() -> int:
    """Measure, print and write; 1 where `long` is not 30 points better than chance."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='models/nano')
    parser.add_argument('--asked-of', type=Path, default=question_file(), dest='file')
    parser.add_argument('--clips', type=int, default=60, help='read so many of the file')
    parser.add_argument('--streams', type=int, default=75)
    parser.add_argument('--units', type=int, default=10, help='that a plain window holds')
    parser.add_argument('--seed', type=int, default=4)
    options = parser.parse_args()
    figures = measure(
        options.model,
        options.file,
        options.clips,
        options.streams,
        options.units,
        options.seed,
    )
    print(table(figures))
    Path('build').mkdir(exist_ok=True)
    Path('build/long_window.json').write_text(json.dumps(figures, indent=1) + '\n')
    better = figures['right']['long']['all'] - figures['right']['chance']['all']
    return 0 if better >= 30 else 1


if __name__ == '__main__':
    raise SystemExit(main())
