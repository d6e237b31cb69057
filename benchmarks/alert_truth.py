# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions that nano can answer, and when each holds in clips of its world.

    make alerts                                     # python -m benchmarks.alert_truth

The held-out clips say in words what each second shows ("1 orange square, top center; bell"); the
truth of the rules is read from there. Writes how right the alerts are to build/alerts.json, by
figure and what it was measured on, beside what else is there.
"""

import argparse
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from minicpmo_ros.process import prepare

prepare()

from minicpmo_ros.alerts.rules import AlertRule  # noqa: E402
from minicpmo_ros.evaluation.alert_scores import AlertTruth, score  # noqa: E402
from minicpmo_ros.evaluation.alerts import (  # noqa: E402
    AlertRun,
    blank_units,
    fit_run,
    watch_all,
    watch_blank,
    watch_units,
)
from minicpmo_ros.evaluation.questions import FORMAT  # noqa: E402
from minicpmo_ros.evaluation.runner import Core, CoreOptions  # noqa: E402
from minicpmo_ros.evaluation.statistics import poisson_interval, wilson  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NANO, CLIPS = ROOT / 'models' / 'nano', ROOT / 'demo' / 'clips'
OUT = ROOT / 'build' / 'alerts.json'
SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
COLORS = ('red', 'green', 'blue', 'yellow', 'orange', 'purple', 'white', 'black')


def _rule(word: str) -> AlertRule:
    words = SHAPES if word in SHAPES else COLORS
    what = 'what shape is shown now?' if word in SHAPES else 'what color is the shape now?'
    others = tuple(other for other in words if other != word)
    return AlertRule(word, what, (word,), others, on=0.8, until_s=1.0)


RULES = tuple(map(_rule, ('square', 'star', 'red', 'blue')))


def truth_of(clips: dict, rules=RULES) -> list:
    """Return alerts_truth of {clip: what each second shows}, as a file of questions has it."""
    return [
        {'id': rule.id, 'clip': clip, 'begin_s': begin, 'end_s': end, 'relative': True}
        for clip, seconds in clips.items()
        for rule in rules
        for begin, end in _spans([_holds(rule.id, shown) for shown in seconds])
    ]


def write_truth(path: Path, clips=None, rules=RULES, folder: Path = CLIPS) -> None:
    """Write a file with the truth of some clips of a folder; None: of all that it tells of."""
    shown = json.loads((folder / 'questions.json').read_text(encoding='utf-8'))['clips']
    shown = {name: shown[name] for name in clips or shown}
    data = {
        'format': FORMAT,
        'clips': dict.fromkeys(shown, ''),
        'alerts_truth': truth_of(shown, rules),
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding='utf-8')


def _holds(word: str, shown: str) -> bool:
    image = shown.split(';')[0].split(',')[0]
    return bool(re.search(rf'\b{word}\b', image))


def _spans(holds: list) -> list:
    """Return (begin, end) of each run of seconds in which something holds."""
    edges = [i for i, (a, b) in enumerate(zip([False, *holds], [*holds, False])) if a != b]
    return list(zip(edges[::2], edges[1::2]))


def begins(folder: Path = CLIPS, blank_s: int = 600) -> dict:
    """Return how right nano's alerts are, over the clips of a folder and a blank time.

    begins_right: share of true begins that are told within 2 s, with the interval of 95 percent;
    begins_within_1_s: the same at the end of the second that they begin in; false_per_hour: false
    alerts of all rules in the clips and in `blank_s` seconds of a grey image and silence; ece:
    expected calibration error in the seconds of the clips, each by a fit to the others.
    """
    core = Core(ModelDirectory.open(NANO), CoreOptions(device='cpu', max_forks=len(RULES)))
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / 'truth.yaml'
        write_truth(file, folder=folder)
        truth = AlertTruth.read(file, folder)
    try:
        run = AlertRun(RULES, watch_all(core, RULES, truth), truth, watch_blank(core, RULES), {})
        blank = list(watch_units(core, RULES, blank_units(core, blank_s), 'blank'))
    finally:
        core.close()
    scores, fitted = run.scores, fit_run(run).fitted
    n_read = sum(one.seconds for one in fitted)
    false = sum(s.false for s in scores)
    false_blank = sum(s.false for s in score(RULES, AlertTruth((), ('blank',), folder), blank))
    right = wilson(sum(s.right for s in scores), sum(s.begins for s in scores))
    delays_s = [delay_s for s in scores for delay_s in s.delays_s]
    hours = scores[0].hours + blank_s / 3600
    _, high = poisson_interval(false + false_blank)
    return {
        'begins': sum(s.begins for s in scores),
        'begins_right': right.share,
        'begins_right_low': right.low,
        'begins_within_1_s': sum(d <= 1 for d in delays_s) / sum(s.begins for s in scores),
        'false': false,
        'false_in_blank': false_blank,
        'false_per_hour': (false + false_blank) / hours,
        'false_per_hour_high': high / hours,
        'ece': sum(one.error_after * one.seconds for one in fitted) / n_read,
        'ece_of': n_read,
        'watched_s': round(3600 * hours),
        'rules': [rule.id for rule in RULES],
    }


def record(found: dict, path: Path = OUT) -> None:
    """Write {measured on: {figure: value}} into a file of {figure: {measured on: value}}."""
    data = json.loads(path.read_text()) if path.exists() else {}
    for measured_on, figures in found.items():
        for name, value in figures.items():
            data[name] = data.get(name, {}) | {measured_on: value}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + '\n')


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--clips', type=Path, default=CLIPS, help='folder of held-out clips')
    parser.add_argument('--blank', type=int, default=600, help='seconds of a grey image, silence')
    given = parser.parse_args()
    found = begins(given.clips, given.blank)
    print('| figure | nano |\n|---|---:|')
    for name, value in found.items():
        print(f'| {name} | {", ".join(value) if name == "rules" else f"{value:.3g}"} |')
    record({f'nano, {found["watched_s"]} s of clips and blank': found})


if __name__ == '__main__':
    main()
