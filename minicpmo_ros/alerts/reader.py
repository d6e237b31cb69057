# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the rules read of a second: rows that ride with its unit, and readings off their logits.

    riders = asker.begin(unit)      rows of the questions that are due, (n, width) each
    asker.end(session.append(unit, (), riders))

Nothing is generated: the answers are told apart by the probabilities of their first tokens. A
sense has not changed if the image is the same as in the second before, and if the audio was quiet
then and is now. A live stream calls `try_begin` and `try_end`, while there are rules, and
`try_lose`: there, an unforeseen error costs a second's readings.
"""

import logging
import threading
from collections.abc import Callable

import numpy as np

from minicpmo_ros.alerts.monitor import TIME_WENT_BACK, AlertReading
from minicpmo_ros.alerts.rules import AlertRule
from minicpmo_ros.alerts.watch import AlertWatch
from minicpmo_ros.config import LLM
from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.probability import WordGroups
from minicpmo_ros.streams.pairing import Unit

log = logging.getLogger(__name__)


class RuleReader:
    """A rule made ready for the model of a Session; InputError where that cannot read it so.

    `riders` are the rows (n, width) of its question; where answers of different meaning begin
    with the same token, the question with that token, too.
    """

    def __init__(self, rule: AlertRule, session):
        self.rule = rule
        ids = _encoded(rule.question, 'The question', session)
        groups = [(word,) for word in rule.answers] or [rule.positive, rule.negative]
        self._groups = WordGroups(session.model.vocabulary, groups)
        self._require_room(max(map(len, self._groups.paths)), session.options.max_tokens)
        question, rows = session.prompt.question(ids), session.model.token_rows.rows
        self.riders = [
            np.concatenate([question, rows(list(path))]) if path else question
            for path in self._groups.paths
        ]

    @property
    def n_rows(self) -> int:
        """How many rows are read for it."""
        return sum(map(len, self.riders))

    def _require_room(self, n_alike: int, most: int) -> None:
        """Check that what is read behind the question is not more than an answer may have."""
        if n_alike > most:
            raise InputError(
                f'Two answers begin with the same {n_alike} tokens, at most {most} are read. '
                'Shorten them, or raise max_tokens.'
            )

    def read(self, logits: list) -> AlertReading:
        """Return what the logits (vocabulary,) behind each of `riders` say."""
        words, mass = self._groups.read(logits)  # words: (groups,)
        best = int(np.argmax(words)) if self.rule.on_change else 0
        others = np.logaddexp.reduce(np.delete(words, best))
        answer = self.rule.answers[best] if self.rule.on_change else ''
        return AlertReading(float(words[best] - others), float(mass), answer)


def _encoded(question: str, name: str, session) -> list:
    """Return the tokens of a question; InputError, which names it, where they are too many."""
    ids, longest = session.model.vocabulary.encode(question), session.options.max_question_tokens
    if len(ids) > longest:
        raise InputError(
            f'{name} is {len(ids)} tokens long, at most {longest} are allowed. Shorten it, or '
            'raise max_question_tokens.'
        )
    return ids


class AlertAsker:
    """Asks the rules of an AlertWatch about the units of one session; one thread uses it.

    `on_events(events)` is called after every second while there are rules, and where sight is
    lost. A rule that this model cannot read has a problem, and the others go on. `quiet_dbfs`: the
    level below which audio is quiet; `every_second`: ask also where nothing has changed.
    """

    def __init__(
        self,
        watch: AlertWatch | None = None,
        on_events: Callable[[list], None] = lambda events: None,
        quiet_dbfs: float = LLM.quiet_dbfs,
        every_second: bool = False,
    ):
        self.watch, self._on_events = watch or AlertWatch(), on_events
        self._quiet_dbfs, self._every_second = quiet_dbfs, every_second
        self._session, self._lock = None, threading.Lock()  # the session stays while it is held
        self._readers, self._asked = {}, []  # RuleReaders by AlertRule; those of this second
        self._before = None  # the unit before
        self.readings = {}  # by id, of the newest second
        self.n_rows = 0  # of all rules together, if they were due with one second
        self.failures, self.newest_failure = 0, ''  # unforeseen errors that were caught

    def bind(self, session) -> None:
        """Ask the model of this Session from now on, before the first unit; None: it closes."""
        with self._lock:
            self._session = session
        self._readers = {}

    def check(self, rule: AlertRule) -> bool:
        """Raise InputError where the model cannot read a rule, or describe; for any thread.

        Return False where that cannot be told, because no model is loaded.
        """
        with self._lock:
            if self._session is None:
                return False
            RuleReader(rule, self._session)
            _encoded(rule.describe, 'describe', self._session)
            return True

    def begin(self, unit: Unit) -> list:
        """Return the rows (n, width) of the questions that are due with this unit."""
        rules = self.watch.rules
        if unit.restarted:
            self.lose(TIME_WENT_BACK)
        self._prepare(rules)
        senses = {'image': unit.image_rows, 'audio': unit.audio_rows}
        due = self.watch.begin_second(
            unit.second,
            {sense for sense, found in senses.items() if found is not None},
            set() if self._every_second else self._unchanged(unit),
            rows_of=self._rows_of,
        )
        self._before = unit
        self._asked = [self._readers[rule] for rule in due if self._readers.get(rule)]
        return [rows for reader in self._asked for rows in reader.riders]

    def try_begin(self, unit: Unit) -> list:
        """As `begin`; what goes wrong is logged and counted, and nothing is asked of this unit.

        Of a restored one nothing is asked: it is past.
        """
        self._asked = None
        try:
            return [] if unit.is_restored else self.begin(unit)
        except Exception as error:
            self._asked = []
            self._note(error)
            return []

    def try_end(self, report) -> None:
        """As `end`; what goes wrong is logged and counted."""
        try:
            if self._asked is not None:
                self.end(report)
        except Exception as error:
            self._note(error)

    def end(self, report) -> None:
        """Take the UnitReport of the unit with what `begin` returned as its riders.

        Of the time that the decode took, its share by rows is what the questions cost.
        """
        asked, self._asked = self._asked or [], []
        if not self._readers:
            return
        self.readings, logits, n_rows = {}, iter(report.riders), 0
        for reader in asked:
            found = [next(logits) for _ in reader.riders]
            if all(row is not None for row in found):
                self.readings[reader.rule.id] = reader.read(found)
                n_rows += reader.n_rows
        cost_ms = report.prefill_ms * n_rows / (n_rows + report.rows)
        self._on_events(self.watch.end_second(self.readings, cost_ms, n_rows))

    def lose(self, reason: str) -> None:
        """Lose sight, because what was seen is no longer in the window."""
        if self._readers:
            self._on_events(self.watch.reset(reason))

    def try_lose(self, reason: str) -> None:
        """As `lose`; what goes wrong is logged and counted."""
        try:
            self.lose(reason)
        except Exception as error:
            self._note(error)

    def _unchanged(self, unit: Unit) -> set:
        """Return the senses that show what they showed in the unit before."""
        before, found = self._before, set()
        if before is None:
            return found
        rows, rows_before = unit.image_rows, before.image_rows
        if rows is not None and rows_before is not None and np.array_equal(rows, rows_before):
            found.add('image')
        if all(one.audio_rows is not None and self._is_quiet(one) for one in (before, unit)):
            found.add('audio')
        return found

    def _is_quiet(self, unit: Unit) -> bool:
        return np.float32(unit.level_dbfs) < self._quiet_dbfs  # as messages carry it

    def _note(self, error: Exception) -> None:
        self.failures, self.newest_failure = self.failures + 1, repr(error)
        log.exception('the standing questions are left out for a second')

    def _prepare(self, rules: tuple) -> None:
        """Make the readers of rules that are new, and forget those of rules that are gone."""
        for rule in rules:
            if self._readers.get(rule) is None:
                try:
                    self._readers[rule] = RuleReader(rule, self._session)
                    problem = ''
                except InputError as error:
                    self._readers[rule], problem = None, str(error)
                self.watch.set_problem(rule.id, problem)
        if len(self._readers) > len(rules):
            self._readers = {rule: self._readers[rule] for rule in rules}
        self.n_rows = sum(reader.n_rows for reader in self._readers.values() if reader)

    def _rows_of(self, rule: AlertRule) -> int:
        reader = self._readers.get(rule)  # None: it has a problem, or was added this moment
        return reader.n_rows if reader else 0
