# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How often two precisions of a model give the same answer, text for text."""

from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.models.directory import ModelDirectory


def answered(
    model: ModelDirectory, questions: QuestionSet, options: CoreOptions | None = None
) -> AnswerSet:
    """Load a model, answer every question once with all input, and unload it."""
    core = Core(model, options)
    try:
        (answers,) = answer_all(core, questions, [Variant()])
    finally:
        core.close()
    return answers


def agreement(questions: QuestionSet, first: AnswerSet, second: AnswerSet) -> float:
    """Return the share of questions with the same text from both."""
    pairs = zip(first.of(questions), second.of(questions))
    return sum(a == b for a, b in pairs) / len(questions.questions)
