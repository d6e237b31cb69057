# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Importance by running a model: what its weights meet while it answers questions about clips."""

from collections.abc import Callable

from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.importance import Importance
from minicpmo_ros.models.quantize_rules import may_change


def collect(
    model: ModelDirectory,
    questions: QuestionSet,
    options: CoreOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Answer the questions and return the importance of all three networks' tensors.

    Weights that are only looked up (embeddings that are not the output too) or folded while
    loading (the resampler's queries) meet nothing and have none; nor have the convolutions, whose
    rows are kernels. Errors as answer_all.
    """
    importance = Importance([questions.name or str(questions.folder)])
    tensors = {
        name: info for header in model.headers.values() for name, info in header.tensors.items()
    }

    def on_product(name, rows) -> None:
        info = tensors.get(name)
        if info is not None and may_change(info) and info.shape[-1] == rows.shape[1]:
            importance.add(name, rows)

    core = Core(model, options, on_product=on_product)
    try:
        answer_all(core, questions, [Variant()], on_progress)
    finally:
        core.close()
    return importance
