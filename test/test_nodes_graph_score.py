# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The questions of a file asked through the live graph get the core's answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.models.directory import ModelDirectory

ROOT = Path(__file__).parents[1]
MODEL, QUESTIONS = ROOT / 'models' / 'nano', ROOT / 'demo' / 'clips' / 'questions.json'
LIMIT = 12  # questions: two clips


@pytest.mark.parametrize('shown', ['all', 'no_picture', 'no_sound'])
def test_the_graph_answers_as_the_core(ros_domain, tmp_path, shown):
    out = tmp_path / 'answers.json'
    subprocess.run(
        [sys.executable, '-m', 'minicpmo_ros.nodes.graph_score', MODEL, '--input', shown]
        + ['--questions', QUESTIONS, '--out', out, '--limit', str(LIMIT)],
        check=True,
        timeout=120,
    )
    core = Core(ModelDirectory.open(MODEL), CoreOptions(device='cpu'))
    try:
        questions = QuestionSet.read(QUESTIONS).first(LIMIT)
        (expected,) = answer_all(core, questions, [Variant(shown)])
    finally:
        core.close()
    found = AnswerSet.read(out)
    assert (found.path, found.input, found.precision) == ('graph', shown, expected.precision)
    assert found.model == expected.model
    assert found.answers == expected.answers
