# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Runs over the same questions side by side: how right, how sure, how quick, how large.

The first run is the baseline: every other is compared with it question by question (McNemar). A
question that is scored by its letter counts by the official rule; the tolerant reading stands
beside it.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.evaluation.scoring import extract_letter
from minicpmo_ros.evaluation.statistics import Comparison, Interval, compare, wilson


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
        """Give the time to the first token of every question that was answered, (n,)."""
        return self._costs('first_token_ms')

    def memory_mib(self) -> np.ndarray:
        """Give the memory over the questions, (n,)."""
        return self._costs('memory_mib')

    def _costs(self, name: str) -> np.ndarray:
        told = [
            cost[name]
            for cost in self.run.costs.values()
            if name in cost and not cost.get('error')
        ]
        return np.array(told, float)


@dataclass(frozen=True)
class Cell:
    """One run on one group of questions."""

    right: Interval
    tolerant: float
    against: Comparison | None  # with the baseline; None for the baseline itself


def judge(name: str, run: Run, questions: QuestionSet) -> Judged:
    """Judge a run; InputError where it was not asked just these questions, or is not finished."""
    told = run.facts.get('questions_sha256')
    if told not in (None, questions.sha256):
        raise InputError(
            f'{name}: it was asked other questions (sha256 {told:.12}…, these have '
            f'{questions.sha256:.12}…): of the file {run.facts.get("questions")!r}, '
            f'{run.facts.get("count")} of them, bag {run.facts.get("bag")!r}. Give the file and '
            'the bag that were given to replay.'
        )
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


def _is_right_tolerantly(question: ScoredQuestion, text: str) -> bool:
    if question.rule == 'letter':
        return extract_letter(text, question.options) == question.answers[0]
    return question.is_right(text)


def by_group(questions: QuestionSet, runs: list, name_of) -> dict:
    """Give {group: [Cell a run]}; `name_of(question)` names the group. The first run is the
    baseline.
    """
    groups = {}
    for i, question in enumerate(questions.questions):
        groups.setdefault(name_of(question), []).append(i)
    return {
        name: [_cell(runs, k, chosen) for k in range(len(runs))] for name, chosen in groups.items()
    }


def _cell(runs: list, k: int, chosen: list) -> Cell:
    mine, base = ([run.right[i] for i in chosen] for run in (runs[k], runs[0]))
    return Cell(
        wilson(sum(mine), len(mine)),
        sum(runs[k].tolerant[i] for i in chosen) / len(chosen),
        compare(base, mine) if k else None,
    )


def changed(questions: QuestionSet, runs: list) -> list:
    """Give indices worth looking at: what the last run lost against the baseline, then what it
    won, then what it only says otherwise; with one run, what is wrong.
    """
    last, base = runs[-1].right, runs[0].right
    if len(runs) == 1:
        return [i for i, right in enumerate(last) if not right]
    lost = [i for i, (a, b) in enumerate(zip(base, last)) if a and not b]
    won = [i for i, (a, b) in enumerate(zip(base, last)) if b and not a]
    return lost + won + [i for i in differing(runs) if base[i] == last[i]]


def differing(runs: list) -> list:
    """Give indices of the questions that the last run answers with another text than the first."""
    return [i for i, (a, b) in enumerate(zip(runs[0].texts, runs[-1].texts)) if a != b]


def verdict(cell: Cell) -> str:
    """Say in a few words whether a run differs from the baseline."""
    against = cell.against
    if against is None:
        return 'baseline'
    points, p_value = 100 * against.gain, against.p_value
    sure = 'real' if against.is_real else 'chance would do'
    return f'{points:+.1f} points, p = {p_value:.2g}: {sure}'
