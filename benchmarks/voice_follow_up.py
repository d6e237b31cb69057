# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a remembered question with its answer costs the question that comes behind it."""

import math

import numpy as np

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, EncodedClip, Variant
from minicpmo_ros.live.question import Question

FIRST = 'what shape is shown now?'  # asked before a question that is spoken


def right_behind_turns(core: Core, questions: QuestionSet) -> dict:
    """Return {family: (n, 2) bools}: whether each is answered right alone, and behind a turn.

    The turn is another question about the clip, by turns, with what the model answers. Behind it
    the others are asked. One that is spoken at the end of the clip comes behind FIRST, which was
    asked a second before.
    """
    right, by_clip = {}, {}
    for question in questions.questions:
        by_clip.setdefault(question.clip, []).append(question)
    for number, (name, asked) in enumerate(by_clip.items()):
        clip = EncodedClip(core, read_clip(questions.path_of(name)), asked[0].start_s)
        units = clip.units(Variant(), asked[0].end_s)
        spoken = [unit for unit in units[-1:] if not asked[0].text.strip()]
        alone = [one.text for one in core.answer(units, asked)]
        turn = FIRST if spoken else asked[number % len(asked)].text
        core.answer(units[: len(units) - len(spoken)], [])
        _remember(core, turn)
        for unit in spoken:
            core.session.append(unit)
        for question, text in zip(asked, alone):
            if question.text != turn:
                texts = text, core.ask(question.text).text
                told = [said.strip() in question.answers for said in texts]
                right.setdefault(question.family, []).append(told)
    return {family: np.array(told) for family, told in right.items()}


def lost_points(right: np.ndarray) -> tuple:
    """Return (percentage points lost behind a turn, standard error) of (n, 2) bools."""
    lost = 100.0 * (right[:, 0].astype(float) - right[:, 1])  # (n,)
    return float(lost.mean()), float(lost.std() / math.sqrt(len(lost)))


def _remember(core: Core, text: str) -> None:
    answer = core.session.ask(Question(text, remember=True)).complete()
    if not answer.remembered:
        raise RuntimeError(f'{text!r} is not remembered: {answer}')
