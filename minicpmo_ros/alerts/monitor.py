# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The state of one rule: what is read of each second goes in, events come out.

              p >= on for after_s                  p <= off for until_s
    INACTIVE ---------------------> ACTIVE ------------------------------> INACTIVE
        ^      BEGIN                  |  every max_s: ONGOING      END
        |                             |
        +--- p < on ---- UNKNOWN <----+  END, "lost sight: ..."; from INACTIVE: UNKNOWN

A rule is UNKNOWN at first, and again when sight is lost: nothing was read for three periods (for
ten while only its turn did not come), the window was reset, time went back, or for until_s the
model would rather have said something else (mass). A condition that holds at the first reading
after that begins with `at_start`: nobody saw it begin. After an END nothing begins for cooldown_s.

A rule with on_change has no threshold: CHANGE tells each answer that has been the likeliest for
after_s and differs from the one that was told last, at most one in cooldown_s.

All times are stamps of the stream in seconds; there is no clock here.
"""

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

from minicpmo_ros.alerts.calibration import MOST_LOG_ODDS
from minicpmo_ros.alerts.rules import AlertRule

LOST_AFTER_PERIODS = 3
LOST_AFTER_TURNS = 10  # periods, where seconds come and there is no time to read them for the rule
LEAST_MASS = 0.5  # of the probability, on the words of the rule: below, it says something else
SECOND_S = 1  # a reading is of the second before its stamp
TIME_WENT_BACK = 'time went back'


class Kind(IntEnum):
    """What an event tells; the numbers are those of the Alert message."""

    BEGIN = 0
    ONGOING = 1
    END = 2
    UNKNOWN = 3
    CHANGE = 4


class Condition(Enum):
    """Whether the condition of a rule holds."""

    UNKNOWN = 'unknown'
    INACTIVE = 'inactive'
    ACTIVE = 'active'


@dataclass(frozen=True)
class AlertReading:
    """What the model would answer, read off its logits.

    log_odds: logarithm of the probability of the positive words over that of the negative ones;
    with on_change, of the likeliest answer over that of the others.
    """

    log_odds: float
    mass: float = 1.0  # share of the probability on the words of the rule
    answer: str = ''  # the likeliest one, for on_change


@dataclass(frozen=True)
class Event:
    """Something to tell."""

    rule: str
    kind: Kind
    at_s: float  # end of the second it was decided in
    probability: float  # 0 to 1, calibrated and smoothed
    mass: float
    begin_s: float  # start of the first second in which the condition held
    at_start: bool = False  # it held at the first reading: the true begin may be earlier
    text: str = ''  # the answer, for CHANGE
    reason: str = ''


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - sigmoid(-x)


class RuleMonitor:
    """Follows one rule; one thread uses it."""

    def __init__(self, rule: AlertRule):
        self.rule = rule
        self.state, self.since_s = Condition.UNKNOWN, 0.0
        self.probability, self.mass, self.answer = math.nan, math.nan, ''  # of the last reading
        self.last_s = None  # end of the second that was read last
        self._passed_s = -math.inf  # end of the newest second in which its turn did not come
        self._quiet_until_s = -math.inf
        self._forget()

    def read(self, at_s: float, reading: AlertReading) -> list:
        """Take the reading of the second that ends at `at_s`; return the Events."""
        events = self.expire(at_s)
        if self.last_s is not None and at_s <= self.last_s:
            events += self.lose(self.last_s, TIME_WENT_BACK)
        before_s, self.last_s = self.last_s, at_s
        self.mass = reading.mass
        if not reading.mass >= LEAST_MASS:
            return events + self._read_unclear(at_s)
        self._unclear_s = None
        self.probability = self._smoothed(at_s, before_s, reading.log_odds)
        if self.rule.on_change:
            return events + self._read_answer(at_s, reading.answer)
        if self.state is Condition.ACTIVE:
            return events + self._read_active(at_s)
        return events + self._read_inactive(at_s)

    def expire(self, now_s: float) -> list:
        """Lose sight if nothing was read for too long before `now_s`; return the Events."""
        if self.last_s is None:
            return []
        period_s = self.rule.period_s
        lost_s = max(self.last_s, self._passed_s) + LOST_AFTER_PERIODS * period_s
        lost_s = min(lost_s, self.last_s + LOST_AFTER_TURNS * period_s)
        if now_s <= lost_s:
            return []
        waited_s, self.last_s = lost_s - self.last_s, None
        return self.lose(lost_s, f'nothing was read for {waited_s:g} s')

    def pass_over(self, at_s: float) -> list:
        """Take it that the second that ends at `at_s` could be read, but others had their turn."""
        self._passed_s = at_s
        return self.expire(at_s)

    def lose(self, at_s: float, reason: str) -> list:
        """Become UNKNOWN, because the window or the time was lost; return the Events."""
        events = self._become_unknown(at_s, f'lost sight: {reason}')
        self.last_s = None
        if reason == TIME_WENT_BACK:
            self._quiet_until_s = self._passed_s = -math.inf  # stamps of another time
        return events

    def stop(self, at_s: float, reason: str) -> list:
        """Become UNKNOWN, because somebody paused or removed the rule; return the Events."""
        was_active = self.state is Condition.ACTIVE
        events = self._become_unknown(at_s, reason)
        self.last_s = None
        return events if was_active else []

    def _forget(self) -> None:
        """Forget what was read before sight was lost."""
        self._is_new = True  # no reading yet that says that the condition does not hold
        self._run_s = None  # start of the seconds at `on`, or at `off` while active
        self._run_answer = ''  # the answer of that run
        self._unclear_s = None  # start of the seconds of too little mass
        self._smooth = None  # log-odds
        self._begin_s = self._told_s = 0.0

    def _smoothed(self, at_s: float, before_s: float | None, log_odds: float) -> float:
        """Return the calibrated probability; seconds before count less by half_life_s."""
        scaled = self.rule.scale * log_odds + self.rule.bias
        log_odds = max(-MOST_LOG_ODDS, min(MOST_LOG_ODDS, scaled))
        if self.rule.half_life_s and self._smooth is not None and before_s is not None:
            kept = 0.5 ** ((at_s - before_s) / self.rule.half_life_s)
            log_odds = kept * self._smooth + (1 - kept) * log_odds
        self._smooth = log_odds
        return sigmoid(log_odds)

    def _read_unclear(self, at_s: float) -> list:
        self._run_s = None
        if self._unclear_s is None:
            self._unclear_s = at_s - SECOND_S
        if self.state is Condition.UNKNOWN or at_s - self._unclear_s < self.rule.until_s:
            return []
        return self._become_unknown(
            at_s, f'lost sight: the model would say something else (mass {self.mass:.2f})'
        )

    def _read_inactive(self, at_s: float) -> list:
        if self.probability < self.rule.on:
            self._run_s, self._is_new = None, False
            self._enter(Condition.INACTIVE, at_s)
            return []
        if self._run_s is None:
            self._run_s = at_s - SECOND_S
        if at_s - self._run_s < self.rule.after_s or at_s < self._quiet_until_s:
            return []
        self._begin_s, self._told_s, self._run_s = self._run_s, at_s, None
        self._enter(Condition.ACTIVE, self._begin_s)
        return [self._event(Kind.BEGIN, at_s, at_start=self._is_new)]

    def _read_active(self, at_s: float) -> list:
        if self.probability > self.rule.off:
            self._run_s = None
        elif self._run_s is None:
            self._run_s = at_s - SECOND_S
        if self._run_s is not None and at_s - self._run_s >= self.rule.until_s:
            event = self._event(Kind.END, at_s)
            self._quiet_until_s = at_s + self.rule.cooldown_s
            self._enter(Condition.INACTIVE, self._run_s)
            self._run_s, self._is_new = None, False
            return [event]
        if self.rule.max_s and at_s - self._told_s >= self.rule.max_s:
            self._told_s = at_s
            return [self._event(Kind.ONGOING, at_s)]
        return []

    def _read_answer(self, at_s: float, answer: str) -> list:
        if self._run_s is None or answer != self._run_answer:
            self._run_s, self._run_answer = at_s - SECOND_S, answer
        if answer == self.answer and self.state is Condition.ACTIVE:
            return []
        if at_s - self._run_s < self.rule.after_s or at_s < self._quiet_until_s:
            return []
        self._begin_s, self.answer = self._run_s, answer
        self._quiet_until_s = at_s + self.rule.cooldown_s
        event = self._event(Kind.CHANGE, at_s, at_start=self._is_new, text=answer)
        self._is_new = False
        self._enter(Condition.ACTIVE, self._begin_s)
        return [event]

    def _become_unknown(self, at_s: float, reason: str) -> list:
        was, events = self.state, []
        if was is Condition.ACTIVE and not self.rule.on_change:
            events = [self._event(Kind.END, at_s, reason=reason)]
            self._quiet_until_s = at_s + self.rule.cooldown_s
        elif was is not Condition.UNKNOWN and at_s >= self._quiet_until_s:
            events = [self._event(Kind.UNKNOWN, at_s, reason=reason)]
        self._forget()
        self._enter(Condition.UNKNOWN, at_s)
        return events

    def _enter(self, state: Condition, at_s: float) -> None:
        if state is not self.state:
            self.state, self.since_s = state, at_s

    def _event(self, kind: Kind, at_s: float, **more) -> Event:
        return Event(self.rule.id, kind, at_s, self.probability, self.mass, self._begin_s, **more)
