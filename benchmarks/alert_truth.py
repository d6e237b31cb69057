# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions that nano can answer, when each holds in clips of its world, and how right
the alerts and the probabilities are.

    make alerts                                     # python -m benchmarks.alert_truth

The held-out clips say in words what each second shows ("1 orange square, top center; bell"); the
truth is read from there. The encoders see every clip once; its units are strung together, in order
or at random, and renumbered: the rules then follow a stream of any length in one window.

begins_right     share of the true begins that are told within 2 s
begins_within_1_s  the same, told at the end of the second that they begin in
false_per_hour   false alerts of all rules; `_high`: its 95 percent bound
ece              expected calibration error of yes/no questions about the newest second and those
                 before, each half of the clips by a fit to the other half; `ece_before` without
yes_no_right     share of them whose likelier answer is right

With --graph the long stream is also played to the live graph in simulated time (alert_graph.py):

states_equal     share of the states that it tells that are those of the core after that second
seconds_told     share of the rules' seconds of which it tells a state
events_equal     1: it tells the events that the core tells, and no others

For clips with much that is hard to see and to hear, and for an hour of many clips:

    python -m training.heldout build/heldout
    python -m training.heldout build/verify --families verify --seed 7

Writes build/alerts.json, by figure and what it was measured on, beside what else is there.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from minicpmo_ros.process import prepare

prepare()

from benchmarks.streams import TOLD  # noqa: E402
from minicpmo_ros.alerts.calibration import Calibration, calibration_error, fit  # noqa: E402
from minicpmo_ros.alerts.reader import RuleReader  # noqa: E402
from minicpmo_ros.alerts.rules import AlertRule  # noqa: E402
from minicpmo_ros.config import ALERTS_TOGETHER  # noqa: E402
from minicpmo_ros.errors import InputError  # noqa: E402
from minicpmo_ros.evaluation.alert_scores import AlertTruth, TrueAlert, score  # noqa: E402
from minicpmo_ros.evaluation.alerts import blank_units, watch_units  # noqa: E402
from minicpmo_ros.evaluation.bags.clip_reading import read_clip  # noqa: E402
from minicpmo_ros.evaluation.questions import FORMAT  # noqa: E402
from minicpmo_ros.evaluation.runner import Core, CoreOptions  # noqa: E402
from minicpmo_ros.evaluation.statistics import poisson_interval, wilson  # noqa: E402
from minicpmo_ros.modelset.directory import ModelDirectory  # noqa: E402
from training.questions import Clip, make_question  # noqa: E402
from training.world import Picture, Sound  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NANO, CLIPS = ROOT / 'models' / 'nano', ROOT / 'demo' / 'clips'
OUT = ROOT / 'build' / 'alerts.json'
HELD_OUT, VERIFY = ROOT / 'build' / 'heldout', ROOT / 'build' / 'verify'  # where they were made
START_S, STREAM = 1_000_000_000, 'stream'
N_CTX = 2048  # half a minute of units
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
    shown = told_of(folder)
    shown = {name: shown[name] for name in clips or shown}
    data = {
        'format': FORMAT,
        'clips': dict.fromkeys(shown, ''),
        'alerts_truth': truth_of(shown, rules),
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding='utf-8')


def told_of(folder: Path) -> dict:
    """Return {clip: what each second shows and lets be heard} of a folder of clips."""
    return json.loads((folder / 'questions.json').read_text(encoding='utf-8'))['clips']


def _holds(word: str, shown: str) -> bool:
    image = shown.split(';')[0].split(',')[0]
    return bool(re.search(rf'\b{word}\b', image))


def _spans(holds: list) -> list:
    """Return (begin, end) of each run of seconds in which something holds."""
    edges = [i for i, (a, b) in enumerate(zip([False, *holds], [*holds, False])) if a != b]
    return list(zip(edges[::2], edges[1::2]))


@dataclass(frozen=True)
class EncodedClip:
    """A clip as the language model reads it, and what it shows."""

    units: list
    told: list  # of every second, in words

    def facts(self, end: int) -> Clip:
        """Return what its first `end` seconds show, as questions are made of it."""
        seconds = [_second(line) for line in self.told[:end]]
        return Clip(tuple(p for p, _ in seconds), tuple(s for _, s in seconds))


def _second(line: str) -> tuple:
    found = TOLD.match(line)
    if found is None:
        raise InputError(f'{line!r} is not understood.')
    count, color, shape, word, other = found.groups()
    sound = Sound('speech', word) if word else Sound(other)
    return Picture(shape, color, int(count)), sound


def encode(core: Core, folder: Path) -> list:
    """Return the EncodedClips of a folder; the encoders see each once."""
    found = []
    for name, told in told_of(folder).items():
        units = list(core.stream(read_clip(folder / name)))
        if len(units) != len(told):
            raise InputError(f'{name} has {len(units)} seconds, {len(told)} are described.')
        found.append(EncodedClip(units, told))
    return found


def strung(clips: list, rng=None) -> Iterator[tuple]:
    """Yield (Unit, what it shows) of all clips in order; with rng again and again, at random."""
    number = START_S
    while True:
        for i in range(len(clips)) if rng is None else rng.permutation(len(clips)):
            for unit, told in zip(clips[i].units, clips[i].told):
                yield replace(unit, second=number, restarted=False), told
                number += 1
        if rng is None:
            return


def begins(core: Core, stream: list, blank_s: int = 0) -> dict:
    """Return how right the alerts are over (Unit, what it shows), and in a blank time behind it.

    Blank is a grey image and silence; there the rules are asked in every second.
    """
    watched = list(watch_units(core, RULES, (unit for unit, _ in stream), STREAM))
    units = blank_units(core, blank_s, START_S) if blank_s else ()
    watched += watch_units(core, RULES, units, 'blank', every_second=True)
    return judged(watched, [told for _, told in stream])


def judged(watched: list, told: list) -> dict:
    """Return how right the alerts of WatchedSeconds are; told: what the stream shows."""
    alerts = tuple(TrueAlert(**alert) for alert in truth_of({STREAM: told}))
    truth = AlertTruth(alerts, (STREAM,), ROOT)
    scores = score(RULES, truth, watched)
    n_begins, n_false = sum(s.begins for s in scores), sum(s.false for s in scores)
    right = wilson(sum(s.right for s in scores), n_begins)
    hours = scores[0].hours
    return {
        'begins': n_begins,
        'begins_right': right.share,
        'begins_right_low': right.low,
        'begins_within_1_s': sum(d <= 1 for s in scores for d in s.delays_s) / n_begins,
        'false': n_false,
        'false_in_blank': sum(e.kind.name == 'BEGIN' for w in watched if w.clip == 'blank'
                              for e in w.events),
        'false_per_hour': n_false / hours,
        'false_per_hour_high': poisson_interval(n_false)[1] / hours,
        'watched_s': round(3600 * hours),
    }  # fmt: skip


def on_graph(model: ModelDirectory, folder: Path, seconds: int) -> dict:
    """Return how right the alerts of the live graph are, and how far the core agrees."""
    from benchmarks.alert_graph import compare, joined, watch_graph, watched

    rng = np.random.default_rng(1)
    clip, told = joined(folder, told_of(folder), seconds, START_S, rng)
    options = CoreOptions(device='cpu', n_ctx=N_CTX, max_forks=ALERTS_TOGETHER)
    core = Core(model, options)
    try:
        of_core = list(watch_units(core, RULES, core.stream(clip), STREAM))
    finally:
        core.close()
    begun_s = time.monotonic()
    heard = watch_graph(model, options, RULES, clip, of_core)
    took_s = time.monotonic() - begun_s
    found = judged(watched(of_core, heard), told) | compare(of_core, heard)
    return found | {'begins_within_1_s_of_core': judged(of_core, told)['begins_within_1_s'],
                    'seconds_of_stream_a_second': seconds / took_s}  # fmt: skip


def yes_no(core: Core, clips: list, number: int, seed: int = 1) -> dict:
    """Return how calibrated the answers to yes/no questions are; at least `number` of them."""
    rng, asked = np.random.default_rng(seed), []  # of (kind, clip, log-odds, truth, mass)
    each = -(-number // sum(len(clip.units) for clip in clips))
    for i, clip in enumerate(clips):
        core.session.reset()
        for n, unit in enumerate(clip.units, 1):
            questions = [make_question(clip.facts(n), 'verify', rng) for _ in range(each)]
            readers = [RuleReader(AlertRule('q', q.text), core.session) for q in questions]
            report = core.session.append(unit, (), [reader.riders[0] for reader in readers])
            for question, reader, logits in zip(questions, readers, report.riders):
                reading, is_yes = reader.read([logits]), question.answer == 'yes'
                asked.append((question.kind, i, reading.log_odds, is_yes, reading.mass))
    kinds, of_clip, log_odds, held, mass = (np.array(column) for column in zip(*asked))
    fitted = np.empty(len(held))
    for kind in set(kinds.tolist()):
        for half in (0, 1):
            mine, other = ((kinds == kind) & (of_clip % 2 == h) for h in (half, 1 - half))
            fitted[mine] = fit(log_odds[other], held[other]).probability(log_odds[mine])
    return {
        'ece': calibration_error(fitted, held),
        'ece_before': calibration_error(Calibration().probability(log_odds), held),
        'ece_of': len(held),
        'yes_no_right': float(np.mean((log_odds > 0) == held)),
        'yes_no_unsure': float(np.mean((fitted > 0.1) & (fitted < 0.9))),
        'yes_no_mass': float(np.median(mass)),
        'yes_no_clips': len(clips),
    }


def record(found: dict, path: Path = OUT) -> None:
    """Write {measured on: {figure: value}} into a file of {figure: {measured on: value}}."""
    data = json.loads(path.read_text()) if path.exists() else {}
    for measured_on, figures in found.items():
        for name, value in figures.items():
            data[name] = data.get(name, {}) | {measured_on: value}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + '\n')


def measure(given) -> dict:
    """Return {measured on: {figure: value}}."""
    options = CoreOptions(device='cpu', n_ctx=N_CTX, max_forks=ALERTS_TOGETHER)
    core = Core(ModelDirectory.open(given.model), options)
    try:
        demo, clips = encode(core, CLIPS), encode(core, given.clips)
        verify = clips if given.verify == given.clips else encode(core, given.verify)
        hour = islice(strung(clips, np.random.default_rng(1)), given.seconds)
        found = {
            'the demo and blank': begins(core, list(strung(demo)), given.blank),
            f'{given.seconds} s of {len(clips)} clips': begins(core, list(hour)),
            'yes/no questions': yes_no(core, verify, given.questions),
        }
    finally:
        core.close()
    return {f'{given.model.name}, {what}': figures for what, figures in found.items()}


def measure_graph(given) -> dict:
    """Return {measured on: {figure: value}} of the live graph."""
    n_clips = len(told_of(given.clips))
    name = f'{given.model.name}, live graph, {given.seconds} s of {n_clips} clips'
    return {name: on_graph(ModelDirectory.open(given.model), given.clips, given.seconds)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    made = [folder if (folder / 'questions.json').exists() else CLIPS
            for folder in (HELD_OUT, VERIFY)]  # fmt: skip
    parser.add_argument('--model', type=Path, default=NANO)
    parser.add_argument('--clips', type=Path, default=made[0], help='folder of held-out clips')
    parser.add_argument('--verify', type=Path, default=made[1], help='the same, for yes and no')
    parser.add_argument('--seconds', type=int, default=3600, help='of the long stream')
    parser.add_argument('--blank', type=int, default=600, help='seconds of a grey image, silence')
    parser.add_argument('--questions', type=int, default=2000, help='yes/no questions, at least')
    parser.add_argument(
        '--graph', action='store_true', help='follow the long stream on the live graph instead'
    )
    given = parser.parse_args()
    found = measure_graph(given) if given.graph else measure(given)
    print('| figure | measured on | value |\n|---|---|---:|')
    for measured_on, figures in found.items():
        for name, value in figures.items():
            print(f'| {name} | {measured_on} | {value:.4g} |')
    record(found)


if __name__ == '__main__':
    main()
