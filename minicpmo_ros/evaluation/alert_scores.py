# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What truly happened in bags, and how right the alerts of standing questions were.

The truth stands in a file of questions, beside them or instead of them:

    format: minicpmo_ros questions 1
    clips: {kitchen.mcap: "a person falls twice", night.mcap: "nothing happens"}
    alerts_truth:
    - {id: fall, clip: kitchen.mcap, begin_s: 12, end_s: 20, relative: true}

All these bags are watched, those where nothing happens too: they tell how often an alert is
false. A begin is right if it is told at most RIGHT_S before or after the true one, as in
StreamingBench's proactive task; it can be told at the end of the second it begins in.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minicpmo_ros.alerts.monitor import LEAST_MASS, Event, Kind
from minicpmo_ros.alerts.rules import AlertRule
from minicpmo_ros.documents import read_json, told
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import CHECKS, FORMAT, read_head
from minicpmo_ros.evaluation.statistics import poisson_interval

UNCLEAR_SHARE = 0.1  # of seconds, above which it is told
RIGHT_S = 2  # between a begin that is right and the true one


@dataclass(frozen=True)
class TrueAlert:
    """A condition held in [begin_s, end_s) of a clip."""

    id: str  # of the rule
    clip: str
    begin_s: float
    end_s: float
    relative: bool = False  # the times count from the clip's first second
    answer: str = ''  # what is right meanwhile, for a rule with on_change


@dataclass(frozen=True)
class AlertTruth:
    """What happens in some bags."""

    alerts: tuple
    clips: tuple  # all that are watched, in the file's order
    folder: Path

    @classmethod
    def read(cls, path, bag=None) -> 'AlertTruth':
        """Read alerts_truth of a file of questions; raises InputError.

        bag: the folder of the bags, if they are not beside the file, or a single bag.
        """
        path, bag = Path(path), Path(bag) if bag else None
        data = read_json(path, FORMAT)
        entries = data.get('alerts_truth')
        if not isinstance(entries, list):
            raise InputError(
                f'{path}: alerts_truth is {told(entries)}, a list of objects with id, clip, '
                'begin_s and end_s is expected, or an empty one where nothing happens.'
            )
        is_one = bag is not None and not (bag.is_dir() and not (bag / 'metadata.yaml').exists())
        folder = path.parent if bag is None else bag.parent if is_one else bag
        alerts = tuple(_true_alert(path, i, e, bag) for i, e in enumerate(entries, 1))
        questions = data.get('questions') or []
        if not isinstance(questions, list):
            raise InputError(f'{path}: questions is {told(questions)}, a list is expected.')
        asked = [q.get('clip') for q in questions if isinstance(q, dict)]
        named = [*read_head(path, data)['clips'], *asked, *(alert.clip for alert in alerts)]
        clips = tuple(dict.fromkeys(name for name in named if isinstance(name, str)))
        if is_one:
            clips = (bag.name,)
            alerts = tuple(alert for alert in alerts if alert.clip == bag.name)
        if not clips:
            raise InputError(f'{path}: it names no clip. Add them to clips.')
        if missing := [clip for clip in clips if not (folder / clip).exists()]:
            raise InputError(
                f'{path}: the clip {missing[0]} is not in {folder.absolute()}. Fetch the clips '
                'with the file, or tell where they are (bag).'
            )
        return cls(alerts, clips, folder)

    @classmethod
    def of_entries(cls, entries: dict, folder: Path) -> 'AlertTruth':
        """Make one of what `entries` gave; ValueError or TypeError where something else did."""
        alerts = tuple(TrueAlert(**alert) for alert in entries['alerts'])
        if not all(_is_time(a.begin_s) and _is_time(a.end_s) for a in alerts):
            raise ValueError('a begin or an end is no time')
        return cls(alerts, tuple(entries['clips']), folder)

    def entries(self) -> dict:
        """Return it as plain values."""
        return {'clips': list(self.clips), 'alerts': [asdict(alert) for alert in self.alerts]}

    def check(self, rules: tuple) -> None:
        """Raise InputError where the truth is of rules that there are not."""
        known = {rule.id for rule in rules}
        for alert in self.alerts:
            if alert.id not in known:
                raise InputError(
                    f'alerts_truth has the id {alert.id!r}; the rules have {", ".join(known)}.'
                )

    def of(self, rule: str, clip: str, first_s: int) -> list:
        """Return the TrueAlerts of a rule in a clip, in stamps and in order."""
        found = [
            TrueAlert(a.id, a.clip, a.begin_s + shift_s, a.end_s + shift_s, answer=a.answer)
            for a in self.alerts
            for shift_s in [first_s if a.relative else 0]
            if (a.id, a.clip) == (rule, clip)
        ]
        return sorted(found, key=lambda alert: alert.begin_s)


@dataclass
class RuleScore:
    """How right one rule was."""

    rule: str
    hours: float = 0.0  # that were watched
    begins: int = 0  # true ones
    right: int = 0  # told within RIGHT_S
    late: int = 0  # told later, while the condition held
    missed: int = 0
    outside: int = 0  # of them, those of which no second was watched
    repeated: int = 0  # told again while the condition held
    false: int = 0  # told although it did not hold
    lost: int = 0  # times that sight was lost
    evaluated: int = 0  # seconds
    unclear: int = 0  # of them, those of which the model would say something else than the words
    is_judged: bool = True  # False: it tells answers, and the truth has none of them
    delays_s: list = field(default_factory=list)  # of those that are right or late

    @property
    def false_per_hour(self) -> tuple:
        """(rate, low, high): the rate of false alerts with its 95 percent interval."""
        low, high = poisson_interval(self.false)
        hours = self.hours or math.nan
        return self.false / hours, low / hours, high / hours

    def delay_s(self, percent: float) -> float:
        """Return a percentile of the delays; nan without any."""
        return float(np.percentile(self.delays_s, percent)) if self.delays_s else math.nan

    def add(self, seconds: list, truth: list) -> None:
        """Count what was told in the WatchedSeconds of one clip against its TrueAlerts."""
        self.hours += len(seconds) / 3600
        events = [event for second in seconds for event in second.events]
        self.lost += sum(e.reason.startswith('lost sight') for e in events)
        self.evaluated += sum(not math.isnan(second.log_odds) for second in seconds)
        self.unclear += sum(map(_is_unclear, seconds))
        if self.is_judged:
            self._judge(events, truth)
            span = seconds[0].second, seconds[-1].second + 1
            self.outside += sum(a.end_s <= span[0] or span[1] <= a.begin_s for a in set(truth))

    def _judge(self, events: list, truth: list) -> None:
        found = {alert: [] for alert in truth}
        self.begins += len(found)
        for event in (e for e in events if e.kind in (Kind.BEGIN, Kind.CHANGE)):
            nearest = min(
                (alert for alert in truth if _is_of(event, alert)),
                key=lambda alert: abs(event.at_s - alert.begin_s - 1),
                default=None,
            )
            if nearest is None:
                self.false += 1
            else:
                found[nearest].append(event.at_s)
        self.missed += sum(not at_s for at_s in found.values())
        for alert, at_s in found.items():
            self.repeated += max(0, len(at_s) - 1)
            for delay_s in [at_s[0] - alert.begin_s] if at_s else ():
                self.delays_s.append(delay_s)
                self.right += delay_s <= RIGHT_S
                self.late += delay_s > RIGHT_S

    def summary(self) -> dict:
        """Return the figures for a JSON file."""
        rate, low, high = self.false_per_hour
        figures = {
            **{name: value for name, value in asdict(self).items() if name != 'delays_s'},
            'false_per_hour': rate,
            'false_per_hour_low': low,
            'false_per_hour_high': high,
            'delay_median_s': self.delay_s(50),
            'delay_p90_s': self.delay_s(90),
        }
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in figures.items()
        }


def _is_of(event: Event, alert: TrueAlert) -> bool:
    """Return whether an event can tell of a true alert: within RIGHT_S around it."""
    is_near = alert.begin_s - RIGHT_S <= event.at_s <= alert.end_s + RIGHT_S
    return is_near and event.text == alert.answer


def score(rules: tuple, truth: AlertTruth, watched: list) -> list:
    """Return a RuleScore of every rule; watched: the WatchedSeconds of all clips."""
    known = {alert.id for alert in truth.alerts}
    scores = {
        rule.id: RuleScore(rule.id, is_judged=rule.id in known or not rule.on_change)
        for rule in rules
    }
    clips = {}
    for second in watched:
        clips.setdefault((second.rule, second.clip), []).append(second)
    for (rule, clip), seconds in clips.items():
        scores[rule].add(seconds, truth.of(rule, clip, seconds[0].second))
    return list(scores.values())


def table(scores: list) -> str:
    """Return a Markdown table of RuleScores, and what is to be known of them."""
    lines = [
        '| alert | begins | right | late | missed | repeated | false | false an hour (95 %) | '
        'delay median, p90 [s] | sight lost |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for s in scores:
        rate, low, high = s.false_per_hour
        delays = f'{s.delay_s(50):.1f}, {s.delay_s(90):.1f}' if s.delays_s else '-'
        figures = (s.begins, s.right, s.late, s.missed, s.repeated, s.false)
        told = [*figures, f'{rate:.1f} ({low:.1f} to {high:.1f})', delays]
        told = told if s.is_judged else ['-'] * len(told)
        lines.append(f'| {s.rule} | {" | ".join(map(str, told))} | {s.lost} |')
    hours = scores[0].hours if scores else 0.0
    lines += ['', f'{3600 * hours:.0f} s were watched.', *map(_unclear_told, scores)]
    lines += [
        f'{s.rule}: of {s.outside} of {s.begins} begins no second was watched: they count as '
        'missed. Check begin_s and end_s; with `relative: true` they count from the begin of '
        'the bag, without it they are stamps.'
        for s in scores
        if s.outside
    ]
    lines += [
        f'{s.rule}: alerts_truth says nothing of it, so its answers are not judged.'
        for s in scores
        if not s.is_judged
    ]
    return '\n'.join(line for line in lines if line is not None) + '\n'


def _unclear_told(score: RuleScore) -> str | None:
    if score.unclear <= UNCLEAR_SHARE * score.evaluated:
        return None
    return (
        f'{score.rule}: in {score.unclear} of {score.evaluated} seconds the model would say '
        f'something else than its words (mass below {LEAST_MASS:g}). Ask it the question '
        '(minicpmo ask) and use the words that it answers.'
    )


def _is_unclear(second) -> bool:
    return second.mass < LEAST_MASS and not math.isnan(second.log_odds)


def held_seconds(truth: AlertTruth, rule: AlertRule, watched: list) -> tuple:
    """Return log-odds (n,) of the seconds a rule was read in, whether it held (n,) bool, clips.

    It held in a second if it did so in its middle. Seconds of which the model would say something
    else than the words of the rule are left out: a live robot does not judge them either.
    """
    first_s, log_odds, held, clips = {}, [], [], []
    for second in watched:
        first_s.setdefault(second.clip, second.second)
        if second.rule != rule.id or math.isnan(second.log_odds) or _is_unclear(second):
            continue
        alerts = truth.of(rule.id, second.clip, first_s[second.clip])
        log_odds.append(second.log_odds)
        held.append(any(a.begin_s <= second.second + 0.5 < a.end_s for a in alerts))
        clips.append(second.clip)
    return np.array(log_odds), np.array(held, bool), clips


def _true_alert(path: Path, number: int, entry, bag: Path | None) -> TrueAlert:
    where = f'{path}: alerts_truth {number}'
    if not isinstance(entry, dict):
        raise InputError(f'{where} is {told(entry)}, an object is expected.')
    entry = {'clip': bag.name, **entry} if bag is not None else dict(entry)
    for name in ('id', 'clip', 'begin_s', 'end_s'):
        if name not in entry:
            raise InputError(f'{where} has no {name}.')
    checks = {
        'id': CHECKS['id'],
        'clip': CHECKS['clip'],
        'begin_s': (_is_time, 'a number of seconds'),
        'end_s': (_is_time, 'a number of seconds'),
        'relative': CHECKS['relative'],
        'answer': CHECKS['kind'],
    }
    for name, value in entry.items():
        if name not in checks:
            raise InputError(f'{where} has {told(name)}; known are {", ".join(checks)}.')
        is_right, allowed = checks[name]
        if not is_right(value):
            raise InputError(f'{where}: {name} is {told(value)}, {allowed} is expected.')
    if not entry['begin_s'] < entry['end_s']:
        raise InputError(f'{where}: begin_s must be before end_s.')
    return TrueAlert(**entry)


def _is_time(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 2**31  # nor NaN, which is none
