# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions watched over bags, second by second, without ROS.

The rules are followed from an empty window on for each bag, by the parts that the live engine has:
equal bags give equal bytes. There is no budget: every rule has its period.

Where the truth of the bags is known, calibration and thresholds are fitted to it. Half of the
clips are fitted to judge the other half, and the reverse, so that the errors told are those of
seconds that were not fitted; the values that are proposed are fitted to all. Where the fit is no
better than what a rule has, scale and bias stay.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minicpmo_ros.alerts.calibration import (
    Calibration,
    blank_bias,
    calibration_error,
    fit,
    reliability,
    thresholds,
    trade_off,
)
from minicpmo_ros.alerts.reader import AlertAsker
from minicpmo_ros.alerts.rules import AlertRule, read_rules, write_rules
from minicpmo_ros.alerts.watch import AlertWatch
from minicpmo_ros.documents import read_bounded
from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.evaluation.alert_scores import AlertTruth, RuleScore, held_seconds, score
from minicpmo_ros.evaluation.bags.clip import SAMPLE_RATE_HZ, Clip, ClipImage, Decoding, Sources
from minicpmo_ros.evaluation.bags.clip_reading import first_day
from minicpmo_ros.evaluation.looks import GREY
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.units import NS

BLANK_S = 5  # of a grey image and silence: what a model says of nothing
FIELDS = ('clip', 'second', 'rule', 'log_odds', 'probability', 'mass', 'answer', 'state', 'events')
NUMBERS = ('log_odds', 'probability', 'mass')
COURSE, SUMMARY, RULES = 'probabilities.csv', 'alerts.json', 'rules.yaml'  # of a run's folder


@dataclass(frozen=True)
class WatchedSecond:
    """What one rule said of one second."""

    clip: str
    second: int
    rule: str
    log_odds: float  # nan: it was not evaluated with this second
    probability: float
    mass: float
    answer: str
    state: str
    events: tuple = ()

    @classmethod
    def of_row(cls, row: dict) -> 'WatchedSecond':
        """Make one of a row of a CSV, but for its events; ValueError if it was cut."""
        if None in row.values():
            raise ValueError(f'{COURSE} ends in the middle of a row')
        numbers = {name: float(row[name] or 'nan') for name in NUMBERS}
        texts = {name: row[name] for name in ('clip', 'rule', 'answer', 'state')}
        return cls(second=int(row['second']), **texts, **numbers)

    def row(self) -> dict:
        """Return it as a row of a CSV; equal seconds give equal bytes."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {
            **{name: getattr(self, name) for name in FIELDS},
            **{name: '' if math.isnan(n) else f'{n:.6f}' for name, n in numbers.items()},
            'events': ' '.join(event.kind.name for event in self.events),
        }


def watch_units(
    core: Core, rules: tuple, units, clip: str = '', every_second: bool = False
) -> Iterator[WatchedSecond]:
    """Follow rules over Units from an empty window on, as the live engine does.

    every_second: ask also where nothing has changed.
    """
    session, watch = core.session, AlertWatch(rules)
    session.reset()
    events = []
    asker = AlertAsker(watch, events.extend, every_second=every_second)
    asker.bind(session)
    for unit in units:
        riders = asker.begin(unit)
        if problem := next((status.problem for status in watch.states() if status.problem), ''):
            raise InputError(problem)
        events.clear()
        asker.end(session.append(unit, (), riders))
        for status in watch.states():
            name, reading = status.rule.id, asker.readings.get(status.rule.id)
            yield WatchedSecond(
                clip,
                unit.second,
                name,
                reading.log_odds if reading else math.nan,
                status.probability,
                status.mass,
                reading.answer if reading else '',
                status.state.value,
                tuple(event for event in events if event.rule == name),
            )


def watch_bag(
    core: Core, rules: tuple, path: Path, sources: Sources | None, name: str, tell: Callable
) -> list:
    """Return the WatchedSeconds of a bag; InputError where it is damaged. `tell`: of first_day."""
    with first_day(path, sources, tell) as clip:
        return list(watch_units(core, rules, core.stream(clip), name))


def watch_all(
    core: Core,
    rules: tuple,
    truth: AlertTruth,
    sources: Sources | None = None,
    on_clip: Callable[[str, int], None] = lambda clip, number: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list:
    """Return the WatchedSeconds of all clips; on_clip(clip, number from 1) is called before each.

    `tell` as first_day has it. Raises InputError, naming the clip, where one is damaged: the
    figures would mean nothing.
    """
    watched = []
    for number, clip in enumerate(truth.clips, 1):
        on_clip(clip, number)
        watched += watch_bag(core, rules, truth.folder / clip, sources, clip, tell)
    return watched


def watch_blank(core: Core, rules: tuple, seconds: int = BLANK_S) -> dict:
    """Return {rule: log-odds} after some seconds of a grey image and silence."""
    found = {}
    for second in watch_units(core, rules, blank_units(core, seconds), every_second=True):
        if not math.isnan(second.log_odds):
            found[second.rule] = round(second.log_odds, 6)
    return found


def blank_units(core: Core, seconds: int, start_s: int = 1_000_000_000) -> Iterator[Unit]:
    """Yield Units of a grey image and silence."""
    stamps_ns = [second * NS for second in range(start_s, start_s + seconds)]
    grey = Decoding(lambda _: Decoded.whole(np.full((112, 112, 3), GREY, np.uint8)))
    silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
    images = tuple(ClipImage(stamp_ns, grey, None) for stamp_ns in stamps_ns)
    yield from core.stream(Clip(images, tuple((stamp_ns, silence) for stamp_ns in stamps_ns)))


@dataclass(frozen=True)
class AlertRun:
    """The folder of a run: the rules, what they said of every second, and how right they were."""

    rules: tuple
    watched: list  # WatchedSeconds
    truth: AlertTruth
    blank: dict  # log-odds by rule, of a blank window
    facts: dict  # of the model, as a replay's file begins

    @property
    def scores(self) -> list:
        """A RuleScore of every rule."""
        return score(self.rules, self.truth, self.watched)

    def write(self, folder: Path) -> None:
        """Write the files; the same run gives the same bytes."""
        write_rules(folder / RULES, self.rules)
        with open(folder / COURSE, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(second.row() for second in self.watched)
        summary = {
            **self.facts,
            'blank_log_odds': self.blank,
            'truth': self.truth.entries(),
            'alerts': [RuleScore.summary(one) for one in self.scores],
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        (folder / SUMMARY).write_text(text + '\n', encoding='utf-8')

    @classmethod
    def read(cls, folder: Path) -> 'AlertRun':
        """Read what `write` wrote; the seconds come without their events. Raises InputError."""
        try:
            summary = json.loads(read_bounded(folder / SUMMARY))
            truth = AlertTruth.of_entries(summary.pop('truth'), folder)
            blank = {name: float(found) for name, found in summary.pop('blank_log_odds').items()}
            with open(folder / COURSE, newline='', encoding='utf-8') as file:
                rows = csv.DictReader(file)
                if not {*FIELDS, *NUMBERS} <= {*(rows.fieldnames or ())}:
                    raise ValueError(f'{COURSE} has other columns')
                watched = [WatchedSecond.of_row(row) for row in rows]
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
        ) as error:  # fmt: skip
            raise InputError(
                f'{folder}: it is not the folder of a run of replay --alerts ({in_words(error)}).'
            ) from error
        rules = read_rules(folder / RULES)
        known = {rule.id for rule in rules}
        if unknown := sorted({second.rule for second in watched} - known):
            raise InputError(
                f'{folder}: {COURSE} has the rule {unknown[0]!r}, {RULES} has {", ".join(known)}. '
                'Are they of one run?'
            )
        return cls(rules, watched, truth, blank, summary)


@dataclass(frozen=True)
class FittedRule:
    """One rule before and after."""

    before: AlertRule
    after: AlertRule
    seconds: int  # that were evaluated
    held: int  # in which the condition held
    error_before: float  # expected calibration error, 0 to 1
    error_after: float  # of seconds that were not fitted
    blank: float  # log-odds of a blank window; nan: not known
    bins: tuple  # of the reliability diagram, after
    trade_off: tuple  # of (threshold, precision, recall), after

    def lines(self) -> list:
        """Return it as lines of Markdown."""
        rule, p = self.after, Calibration(self.after.scale, self.after.bias).probability
        told = [
            f'## {rule.id}',
            '',
            f'{self.seconds} seconds, {self.held} of them with the condition. Calibration error '
            f'{self.error_before:.1%} before, {self.error_after:.1%} after.',
        ]
        if not self.seconds:
            return [
                *told[:2],
                'There is no second in which the model would say one of its words: the rule stays '
                'as it is. Ask the model the question, and use the words that it answers.',
                '',
            ]
        if not self.held or self.held == self.seconds:
            told.append(
                'It was always so or never: only the bias of a blank window is taken back, and '
                'the thresholds stay. Label bags with both.'
            )
        if not math.isnan(self.blank):
            before = Calibration(self.before.scale, self.before.bias).probability(self.blank)
            told.append(
                f'Of a blank window it says {float(before):.3f} before, '
                f'{float(p(self.blank)):.3f} after.'
            )
        told += [
            '',
            f'scale: {rule.scale:g}, bias: {rule.bias:g}, on: {rule.on:g}, off: {rule.off:g}',
            '',
            '| threshold | precision | recall |',
            '|---|---|---|',
            *(f'| {at:g} | {_share(p)} | {_share(r)} |' for at, p, r in self.trade_off),
            '',
        ]  # fmt: skip
        return told


@dataclass(frozen=True)
class Fitted:
    """All rules of a run."""

    fitted: tuple

    @property
    def rules(self) -> tuple:
        """The AlertRules with what fits."""
        return tuple(one.after for one in self.fitted)

    def report(self) -> str:
        """Return Markdown."""
        return '\n'.join(line for one in self.fitted for line in one.lines()) + '\n'


def fit_run(run: AlertRun) -> Fitted:
    """Fit all rules with a threshold; those with on_change stay as they are."""
    return Fitted(tuple(_fit_rule(run, rule) for rule in run.rules if not rule.on_change))


def _fit_rule(run: AlertRun, rule: AlertRule) -> FittedRule:
    blank = run.blank.get(rule.id, math.nan)
    log_odds, held, clips = held_seconds(run.truth, rule, run.watched)
    before, found = Calibration(rule.scale, rule.bias), _fit(log_odds, held, blank)
    tells = held.any() and not held.all()
    error_before = calibration_error(before.probability(log_odds), held)
    error_after = calibration_error(_unfitted(log_odds, held, clips, blank), held)
    if not len(held) or (tells and error_after >= error_before):
        found, error_after = before, error_before
    p = found.probability(log_odds)
    on, off = thresholds(p, held) if tells else (rule.on, rule.off)
    return FittedRule(
        rule,
        replace(rule, scale=found.scale, bias=found.bias, on=on, off=off),
        len(held),
        int(held.sum()),
        error_before,
        error_after,
        blank,
        tuple(reliability(p, held)),
        tuple(trade_off(p, held)),
    )


def _fit(log_odds: np.ndarray, held: np.ndarray, blank: float) -> Calibration:
    if held.any() and not held.all():
        return fit(log_odds, held)
    return Calibration(1.0, 0.0 if math.isnan(blank) else blank_bias(blank))


def _unfitted(log_odds, held, clips, blank: float) -> np.ndarray:
    """Return probabilities (n,), those of each half of the clips as fitted to the other half."""
    half = np.array([list(dict.fromkeys(clips)).index(clip) % 2 for clip in clips], int)
    p = np.empty(len(held))
    for k in (0, 1):
        mine, other = half == k, half != k
        if mine.any():
            source = other if other.any() else mine
            p[mine] = _fit(log_odds[source], held[source], blank).probability(log_odds[mine])
    return p


def _share(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.3f}'
