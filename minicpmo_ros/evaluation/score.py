# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How many answers are right: by family, subset, window and kind, and how many stay the same.

A report is {"rows": [...], "short_rows": [...], "details": [...], "agreements": [...]}. A row is
an AnswerSet on a subset: {"path", "precision", "audio", "input", "subset", "overall", "families",
"chance", "same_as_f32", "questions"}; same_as_f32 is the share of answers that are the same text
as by the core in f32 with the same sound and input, None where there are none. Short rows count
windows up to SHORT_S only. Details have `windows` (by seconds) and `kinds` in the place of
families. Agreements compare two AnswerSets with all input that differ in one of path, precision
and audio. Shares are rounded to 4 digits.
"""

from collections import defaultdict
from itertools import combinations

from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.questions import SUBSETS, QuestionSet

SHORT_S = 4  # what nano promises most for
KEY = ('path', 'precision', 'audio', 'input')


def report(questions: QuestionSet, answer_sets: list) -> dict:
    """Give the report; raises InputError where an AnswerSet lacks an answer."""
    rows, details = _rows(questions, answer_sets)
    short_rows, _ = _rows(questions.up_to(SHORT_S), answer_sets)
    return {
        'rows': rows,
        'short_rows': short_rows,
        'details': details,
        'agreements': _agreements([(a, a.of(questions)) for a in answer_sets]),
    }


def _rows(questions: QuestionSet, answer_sets: list) -> tuple:
    """Give rows and details."""
    given = [(answers, answers.of(questions)) for answers in answer_sets]
    rows, details = [], []
    for answers, texts in given:
        reference = _reference(answers, given)
        for subset in SUBSETS:
            # Of every chosen question: itself, the text, the text by f32 or None.
            chosen = [
                entry
                for entry in zip(questions.questions, texts, reference)
                if subset == 'all' or entry[0].hard
            ]
            if chosen:
                facts = {**_facts(answers), 'subset': subset}
                rows.append({**facts, **_row(chosen)})
                details.append({**facts, **_detail(chosen)})
    return rows, details


def _facts(answers: AnswerSet) -> dict:
    return {name: getattr(answers, name) for name in KEY}


def _reference(answers: AnswerSet, given: list) -> list:
    wanted = {**_facts(answers), 'path': 'core', 'precision': 'f32'}
    found = [texts for other, texts in given if _facts(other) == wanted]
    return found[0] if found else [None] * len(given[0][1])


def _row(chosen: list) -> dict:
    by_family = _grouped(chosen, lambda question: question.family)
    has_reference = chosen[0][2] is not None
    return {
        'overall': _right(chosen),
        'families': {family: _right(group) for family, group in by_family.items()},
        'chance': {
            family: round(sum(entry[0].chance for entry in group) / len(group), 4)
            for family, group in by_family.items()
        },
        'same_as_f32': _share(a == b for _, a, b in chosen) if has_reference else None,
        'questions': len(chosen),
    }


def _detail(chosen: list) -> dict:
    windows = _grouped(chosen, lambda question: str(question.seconds))
    kinds = _grouped(chosen, lambda question: f'{question.family}/{question.kind}')
    return {
        name: {
            value: {'right': _right(group), 'questions': len(group)}
            for value, group in groups.items()
        }
        for name, groups in (('windows', windows), ('kinds', kinds))
    }


def _agreements(given: list) -> list:
    found = []
    for (a, texts), (b, others) in combinations(given, 2):
        differences = sum(_facts(a)[name] != _facts(b)[name] for name in KEY)
        if differences == 1 and a.input == b.input == 'all':
            found.append(
                {'a': a.title, 'b': b.title, 'same': _share(x == y for x, y in zip(texts, others))}
            )
    return found


def _grouped(chosen: list, name_of) -> dict:
    """Sort entries into groups by the name of their question, names of digits by their number."""
    groups = defaultdict(list)
    for entry in chosen:
        groups[name_of(entry[0])].append(entry)
    return dict(sorted(groups.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0))


def _right(group: list) -> float:
    return _share(question.is_right(text) for question, text, _ in group)


def _share(truths) -> float:
    truths = list(truths)
    return round(sum(truths) / len(truths), 4)
