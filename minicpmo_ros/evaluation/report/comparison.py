# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Runs over the same questions side by side: how right, how sure, how quick, how large.

The first run is the baseline: every other is compared with it question by question, with clips as
the unit of chance; what is said of several groups holds for all of them together (Holm). A
question that is scored by its letter counts by the official rule; the tolerant reading stands
beside it.
"""

from dataclasses import dataclass, replace

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.matching import extract_letter, is_letter_tolerantly, normal
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.statistics import (
    Comparison,
    Interval,
    compare,
    holm,
    share_by_clip,
)


@dataclass(frozen=True)
class Judged:
    """One run's answers, judged in the order of the questions."""

    name: str
    run: Run
    texts: tuple
    right: tuple  # of bool, by the question's rule
    tolerant: tuple  # of bool, as right but for letters found anywhere in the answer
    unanswered: int = 0  # questions without an answer, which are wrong

    def latencies_ms(self) -> np.ndarray:
        """Return the time to the first token of every question that was answered, (n,)."""
        return self._costs('first_token_ms')

    def looks_ms(self) -> np.ndarray:
        """Return how much of it the questions that looked closer took to look, (n,)."""
        told = self._costs('look_ms')
        return told[told > 0]

    def memory_mib(self) -> np.ndarray:
        """Return the memory over the questions, (n,)."""
        return self._costs('memory_mib')

    def _costs(self, name: str) -> np.ndarray:
        answered = [cost for cost in self.run.costs.values() if not cost.get('error')]
        told = [cost.get(name) for cost in answered]
        return np.array([value for value in told if isinstance(value, (int, float))], float)


@dataclass(frozen=True)
class Cell:
    """One run on one group of questions."""

    right: Interval
    tolerant: float
    against: Comparison | None  # with the baseline; None for the baseline itself


def judge(name: str, run: Run, questions: QuestionSet) -> Judged:
    """Judge a run; InputError where it was not asked just these questions, or is not finished."""
    _check_asked(name, run, questions)
    missing = [q.id for q in questions.questions if q.id not in run.texts]
    if missing:
        raise InputError(
            f'{name}: {len(missing)} of {len(questions.questions)} questions are not answered, '
            f'{missing[0]!r} first. Go on with the run, or give its own questions.'
        )
    texts = tuple(run.texts[q.id] for q in questions.questions)
    pairs = list(zip(questions.questions, texts))
    return Judged(
        name,
        run,
        texts,
        tuple(q.is_right(text) for q, text in pairs),
        tuple(_is_right_tolerantly(q, text) for q, text in pairs),
        sum(q.id in run.unanswered for q in questions.questions),
    )


def _check_asked(name: str, run: Run, questions: QuestionSet) -> None:
    told = run.facts.get('questions_sha256')
    others = [q.id for q in questions.questions if run.asked.get(q.id, q.sha256) != q.sha256]
    is_other = bool(others) if run.asked else told not in (None, questions.sha256)
    if is_other:
        first = f'{len(others)} of them, {others[0]!r} first' if others else ''
        raise InputError(
            f'{name}: it was asked other questions (sha256 {told or "unknown":.12}…, these have '
            f'{questions.sha256:.12}…): of the file {run.facts.get("questions")!r}, '
            f'{first or run.facts.get("count")}, bag {run.facts.get("bag")!r}. Give the file and '
            'the bag that were given to replay.'
        )


def _is_right_tolerantly(question: ScoredQuestion, text: str) -> bool:
    if question.rule == 'letter':
        return is_letter_tolerantly(question.answers[0], text, question.options)
    return question.is_right(text)


def by_group(questions: QuestionSet, runs: list, name_of) -> dict:
    """Return {group: [Cell a run]}; `name_of(question)` names the group. The first run is the
    baseline; p-values are corrected for the number of comparisons.
    """
    groups = {}
    for i, question in enumerate(questions.questions):
        groups.setdefault(name_of(question), []).append(i)
    clips = [question.clip for question in questions.questions]
    cells = {
        name: [_cell(runs, k, chosen, clips) for k in range(len(runs))]
        for name, chosen in groups.items()
    }
    tested = [(name, k) for name in cells for k in range(1, len(runs))]
    corrected = holm([cells[name][k].against for name, k in tested])
    for (name, k), against in zip(tested, corrected):
        cells[name][k] = replace(cells[name][k], against=against)
    return cells


def _cell(runs: list, k: int, chosen: list, clips: list) -> Cell:
    mine, base = ([run.right[i] for i in chosen] for run in (runs[k], runs[0]))
    about = [clips[i] for i in chosen]
    return Cell(
        share_by_clip(mine, about),
        sum(runs[k].tolerant[i] for i in chosen) / len(chosen),
        compare(base, mine, about) if k else None,
    )


LOST, WON, OTHER_WRONG, REWORDED = 'lost', 'won', 'another wrong answer', 'worded otherwise'
CHANGES = (LOST, WON, OTHER_WRONG, REWORDED)  # worth looking at in this order


def changes(questions: QuestionSet, runs: list) -> dict:
    """Return {index of a question: how its answer changed from the first run to the last}.

    In the order of CHANGES; questions with the same text are left out.
    """
    found = {change: [] for change in CHANGES}
    for i in differing(runs):
        found[_change(questions.questions[i], runs[0], runs[-1], i)].append(i)
    return {i: change for change, indices in found.items() for i in indices}


def _change(question: ScoredQuestion, first: Judged, last: Judged, i: int) -> str:
    if first.right[i] != last.right[i]:
        return WON if last.right[i] else LOST
    if first.right[i] or _meaning(question, first.texts[i]) == _meaning(question, last.texts[i]):
        return REWORDED
    return OTHER_WRONG


def _meaning(question: ScoredQuestion, text: str) -> str:
    """What an answer says, however it is worded: its letter, or its text without case and stop."""
    letter = extract_letter(text, question.options) if question.rule == 'letter' else ''
    return letter or normal(text)


def differing(runs: list) -> list:
    """Return the indices of the questions that the last run answers with another text."""
    return [i for i, (a, b) in enumerate(zip(runs[0].texts, runs[-1].texts)) if a != b]


def verdict(cell: Cell) -> str:
    """Return a few words on whether a run differs from the baseline."""
    against = cell.against
    if against is None:
        return 'baseline'
    points, p_value = 100 * against.gain, against.p_value
    sure = 'real' if against.is_real else 'chance would do'
    return f'{points:+.1f} points, p = {p_value:.2g}: {sure}'
