# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""All standing questions of one stream: what is asked of each second, and what that tells.

For every second that becomes part of the window, whoever reads it calls

    rules = watch.begin_second(second, senses, unchanged)     the rules to evaluate with it
    events = watch.end_second({id: AlertReading}, cost_ms)

and otherwise `reset` where the window is emptied and `expire` as time passes without a second. A
rule whose senses have shown the same since its reading keeps that (`reused`), for ten of its
periods at most. The live engine and the evaluation of bags both work like this, so that
they agree. Rules may be added, removed and paused from any thread at any time.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from minicpmo_ros.alerts.monitor import SECOND_S, TIME_WENT_BACK, Condition, RuleMonitor
from minicpmo_ros.alerts.rules import MOST_RULES, AlertRule, check_together
from minicpmo_ros.documents import told
from minicpmo_ros.errors import InputError

MOST_REUSED_PERIODS = 10
INTERVALS = 10  # of the period that is told
NEWEST = 0.3  # weight of the newest cost in the mean


class Turns:
    """Chooses which rules are evaluated with a second: those that are due, within a budget.

    Whoever has waited longest for its period goes first, a priority of n counts n + 1 times. So no
    rule waits for ever: where time is short all periods are longer, those of important ones least.

    The budget is in milliseconds a second, and an evaluation costs as many rows as it reads. What
    is left of the budget is kept for the next second, the longest evaluation's worth at most; what
    an evaluation took too much is paid back by the seconds that follow.
    """

    def __init__(self, budget_ms: float = math.inf):
        self.budget_ms = budget_ms  # a second; may be changed
        self.row_ms = 0.0  # what a row costs, as measured; 0: not known yet
        self._saved_ms, self._at_s = 0.0, None

    def choose(self, at_s: float, waiting: list, most: float = math.inf) -> list:
        """Return the rules to evaluate, the most urgent first.

        waiting: of (AlertRule, seconds since its last evaluation; inf: never, rows that it reads)
        in the user's order.
        """
        due = [one for one in waiting if one[1] >= one[0].period_s]
        due.sort(key=_urgency, reverse=True)  # stable
        longest = max((n_rows for *_, n_rows in waiting), default=0)
        n_affordable = self._affordable(at_s, [n_rows for *_, n_rows in due], longest)
        return [rule for rule, *_ in due[: int(min(most, n_affordable))]]

    def book(self, n_rows: int, cost_ms: float) -> None:
        """Book what the evaluations that have read so many rows have cost together."""
        if n_rows:
            known = self.row_ms > 0
            self.row_ms += (cost_ms / n_rows - self.row_ms) * (NEWEST if known else 1.0)
            self._saved_ms -= cost_ms

    def forget_time(self) -> None:
        """Begin anew after a jump of the stamps."""
        self._at_s = None

    def _affordable(self, at_s: float, due: list, longest: int) -> int:
        """Return how many evaluations of `due` rows there is time for, from the first one on."""
        if math.isinf(self.budget_ms):
            return len(due)
        passed_s = 1.0 if self._at_s is None else max(0.0, at_s - self._at_s)
        self._at_s = at_s
        most_ms = self.budget_ms + self.row_ms * longest
        self._saved_ms = min(self._saved_ms + passed_s * self.budget_ms, most_ms)
        if not self.row_ms:
            return 1  # its cost tells how many there may be
        return sum(self.row_ms * n_rows <= self._saved_ms + 1e-6 for n_rows in accumulate(due))


def _urgency(entry: tuple) -> tuple:
    rule, waited_s, _ = entry
    periods = waited_s / rule.period_s
    return (periods * (1 + rule.priority), rule.priority)


@dataclass(frozen=True)
class RuleStatus:
    """A snapshot of one rule."""

    rule: AlertRule
    state: Condition
    since_s: float  # stamp; 0: nothing was read yet
    probability: float  # of the newest reading; nan: none
    mass: float
    answer: str  # that was told last, for on_change
    period_s: float  # between its newest readings, in the mean; 0: fewer than two
    paused: bool
    problem: str  # why it cannot be evaluated, in words; '': it can
    evaluated: int
    reused: int  # readings that were kept because nothing had changed


@dataclass
class _Followed:
    """A rule with all that is known of it."""

    monitor: RuleMonitor
    paused: bool = False
    problem: str = ''
    reading: object = None  # the newest AlertReading; None: it is of another window
    has_changed: bool = False  # what its senses show, since that reading
    evaluated_s: float | None = None  # end of the second it is of
    evaluated: int = 0
    reused: int = 0
    stamps_s: deque = field(default_factory=lambda: deque(maxlen=INTERVALS + 1))

    @property
    def rule(self) -> AlertRule:
        return self.monitor.rule

    @property
    def may_be_read(self) -> bool:
        return not self.paused and not self.problem

    def forget(self) -> None:
        self.reading = self.evaluated_s = None
        self.stamps_s.clear()


class AlertWatch:
    """The rules and their states; see the module.

    budget_ms: of computing a second, for all rules together; inf: no limit. `rules`: a tuple, in
    the user's order.
    """

    def __init__(
        self, rules: Iterable = (), turns: Turns | None = None, most_rules: int = MOST_RULES
    ):
        self._turns, self._most_rules = turns or Turns(), most_rules
        self._lock = threading.Lock()
        self._followed = {}
        self._at_s, self._seen, self._events = None, set(), []
        # Of the second that was begun: rules to read, ids of those that keep their reading, and of
        # those that are due.
        self._asked, self._reused, self._due = [], set(), set()
        for rule in check_together(rules, most_rules):
            self._followed[rule.id] = _Followed(RuleMonitor(rule))
        self._note_rules()

    # --- the rules ----------------------------------------------------------------------------

    def _note_rules(self) -> None:
        # A new tuple at every change: it is read without the lock.
        self.rules = tuple(followed.rule for followed in self._followed.values())

    def with_rule(self, rule: AlertRule, replace: bool = False) -> tuple:
        """Return the rules as `add` would leave them; raises what that raises."""
        rules = {known.id: known for known in self.rules}
        if rule.id in rules and not replace:
            raise InputError(
                f'There is an alert {rule.id!r} already. Remove it first, or set replace.'
            )
        return check_together({**rules, rule.id: rule}.values(), self._most_rules)

    def without(self, name: str) -> tuple:
        """Return the rules as `remove` would leave them; raises what that raises."""
        self._require(name)
        return tuple(rule for rule in self.rules if rule.id != name)

    def add(self, rule: AlertRule, replace: bool = False) -> list:
        """Add a rule, or put it in the place of one; return the Events of that one's end."""
        with self._lock:
            self.with_rule(rule, replace)
            former = self._followed.get(rule.id)
            self._followed[rule.id] = _Followed(RuleMonitor(rule))
            self._note_rules()
            return [] if former is None else former.monitor.stop(self._now_s(), 'replaced')

    def remove(self, name: str) -> list:
        """Remove a rule; return the Events of its end."""
        with self._lock:
            self._require(name)
            events = self._followed.pop(name).monitor.stop(self._now_s(), 'removed')
            self._note_rules()
            return events

    def pause(self, name: str, paused: bool = True) -> list:
        """Pause a rule, or let it go on; name '': all. Return the Events of their end."""
        with self._lock:
            if name:
                self._require(name)
            events = []
            for followed in [self._followed[name]] if name else self._followed.values():
                if followed.paused is paused:
                    continue
                if paused:
                    events += followed.monitor.stop(self._now_s(), 'paused')
                followed.paused = paused
                followed.forget()
            return events

    def set_problem(self, name: str, problem: str) -> None:
        """Note why a rule cannot be evaluated, in words; '': it can."""
        with self._lock:
            if name in self._followed:
                self._followed[name].problem = problem

    def set_budget(self, budget_ms: float) -> None:
        """Set the budget, in milliseconds a second."""
        with self._lock:
            self._turns.budget_ms = budget_ms

    def states(self) -> list:
        """Return a RuleStatus of every rule, in the user's order."""
        with self._lock:
            return [_status(followed) for followed in self._followed.values()]

    # --- the stream ---------------------------------------------------------------------------

    def begin_second(
        self,
        second: int,
        senses: set,
        unchanged: set = frozenset(),
        most: float = math.inf,
        rows_of: Callable[[AlertRule], int] = lambda rule: 1,
    ) -> list:
        """Return the Rules to evaluate with this second, `most` of them at most.

        senses: of 'image' and 'audio', those that the second has; unchanged: those of them that
        show what they showed in the second before; rows_of: how many rows a rule reads.
        """
        with self._lock:
            at_s = second + SECOND_S
            if self._at_s is not None and at_s <= self._at_s:
                self._lose_all(TIME_WENT_BACK)
            is_next = self._at_s is not None and at_s - self._at_s == SECOND_S
            self._at_s, self._reused, self._due = at_s, set(), set()
            self._seen |= senses
            waiting = []
            for name, followed in self._followed.items():
                needed = set(followed.rule.senses) or self._seen
                followed.has_changed |= not (is_next and needed <= set(unchanged))
                if not followed.may_be_read or not needed <= set(senses):
                    continue
                waited_s = at_s - followed.stamps_s[-1] if followed.stamps_s else math.inf
                if self._may_reuse(followed):
                    self._reused |= {name} if waited_s >= followed.rule.period_s else set()
                else:
                    waiting.append((followed.rule, waited_s, rows_of(followed.rule)))
                    self._due |= {name} if waited_s >= followed.rule.period_s else set()
            self._asked = self._turns.choose(at_s, waiting, most)
            return list(self._asked)

    def end_second(self, readings: dict, cost_ms: float = 0.0, n_rows: int = 0) -> list:
        """Take the readings {id: AlertReading} of the second that was begun; return the Events.

        They are in the order of their stamps, at one stamp in that of the rules.
        cost_ms: what the evaluation of these rules took, beside the second itself; n_rows: that
        were read for it.
        """
        with self._lock:
            self._turns.book(n_rows, cost_ms)
            asked, self._asked = self._asked, []
            lost, self._events = self._events, []
            events = []
            for name, followed in self._followed.items():
                if not followed.may_be_read:
                    continue
                # Another rule may have taken its name meanwhile.
                if name in readings and any(rule is followed.rule for rule in asked):
                    followed.reading, followed.evaluated_s = readings[name], self._at_s
                    followed.evaluated, followed.has_changed = followed.evaluated + 1, False
                elif name in self._reused and followed.reading is not None:
                    followed.reused += 1
                else:
                    monitor = followed.monitor
                    is_late = name in self._due  # not by its senses, but for want of time or room
                    events += (monitor.pass_over if is_late else monitor.expire)(self._at_s)
                    continue
                followed.stamps_s.append(self._at_s)
                events += followed.monitor.read(self._at_s, followed.reading)
            return lost + sorted(events, key=lambda event: event.at_s)

    @property
    def newest_end_s(self) -> float | None:
        """The end of the newest second; None: there is none, or time has gone back since."""
        return self._at_s

    def expire(self, end_s: float, waited_s: float) -> list:
        """Lose sight of what was not read for too long; return the Events.

        waited_s: how long ago the newest second, which ended at `end_s`, came. If it is not the
        newest any more, as after a jump of the stamps, nothing is lost.
        """
        with self._lock:
            if end_s != self._at_s:
                return []
            now_s = end_s + waited_s
            return [
                event
                for followed in self._followed.values()
                if followed.may_be_read
                for event in followed.monitor.expire(now_s)
            ]

    def reset(self, reason: str) -> list:
        """Lose sight because the window was emptied; return the Events."""
        with self._lock:
            self._lose_all(reason)
            events, self._events = self._events, []
            return events

    def _lose_all(self, reason: str) -> None:
        for followed in self._followed.values():
            if followed.may_be_read:
                self._events += followed.monitor.lose(self._now_s(), reason)
            followed.forget()
        self._seen = set()
        if reason == TIME_WENT_BACK:
            self._at_s = None
            self._turns.forget_time()

    def _may_reuse(self, followed: _Followed) -> bool:
        if followed.reading is None or followed.has_changed:
            return False
        return self._at_s - followed.evaluated_s <= MOST_REUSED_PERIODS * followed.rule.period_s

    def _now_s(self) -> float:
        return self._at_s or 0.0

    def _require(self, name: str) -> None:
        if name not in self._followed:
            known = ', '.join(self._followed) or 'none'
            raise InputError(f'There is no alert {told(name)}. There are: {known}.')


def _status(followed: _Followed) -> RuleStatus:
    monitor, stamps_s = followed.monitor, followed.stamps_s
    n_intervals = max(1, len(stamps_s) - 1)
    return RuleStatus(
        followed.rule,
        monitor.state,
        monitor.since_s,
        monitor.probability,
        monitor.mass,
        monitor.answer,
        (stamps_s[-1] - stamps_s[0]) / n_intervals if stamps_s else 0.0,
        followed.paused,
        followed.problem,
        followed.evaluated,
        followed.reused,
    )
