# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Lessons in reading notes without a window: text alone, many questions behind the same notes.

To find a label in a text and copy what stands behind it takes tens of thousands of lessons before
anything is learned. Behind a window of embeddings each costs ten times as much.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .codes import WORDS
from .noted import lesson
from .prompt import TAIL, Template
from .runs import autocast
from .world import choose

# Notes at most, and lessons of a batch: about as many rows each.
SIZES = ((1, 10), (2, 7), (4, 5), (8, 3))
SIZE_WEIGHTS = (0.4, 0.2, 0.25, 0.15)
QUESTIONS = 8  # behind the same notes


@dataclass(frozen=True)
class Lessons:
    """Rows of notes, each with its questions behind it, as ids padded at the right."""

    ids: torch.Tensor  # (b, l)
    positions: torch.Tensor  # (b, l) behind the header
    sees: torch.Tensor  # (b, l, l) whether a row is seen by another
    answer_at: torch.Tensor  # (n, 2) lesson and row whose logits choose an answer
    answers: torch.Tensor  # (n,) ids

    @classmethod
    def make(cls, tokenizer, lessons):
        """Of (notes, [(question, answer), ...])."""
        tail, rows, at, answers = tokenizer.encode_template(TAIL), [], [], []
        for number, (notes, asked) in enumerate(lessons):
            ids = tokenizer.encode(notes)
            positions, parts = list(range(len(ids))), [0] * len(ids)
            start, ids = len(ids), list(ids)
            for part, (text, answer) in enumerate(asked, 1):
                question = [*tokenizer.encode(text), *tail]
                ids += question
                positions += range(start, start + len(question))
                parts += [part] * len(question)
                at.append((number, len(ids) - 1))
                answers += tokenizer.encode(answer)
            rows.append((ids, positions, parts))
        length = max(len(ids) for ids, _, _ in rows)
        filled = np.zeros((3, len(rows), length), np.int64)
        filled[2] = -1
        for i, row in enumerate(rows):
            filled[:, i, : len(row[0])] = row
        ids, positions, parts = torch.from_numpy(filled)
        same = (parts[:, :, None] == parts[:, None]) | (parts[:, None] == 0)
        sees = same & torch.ones(length, length, dtype=torch.bool).tril()
        return cls(ids, positions, sees, torch.tensor(at), torch.tensor(answers))


def random_lessons(tokenizer, rng, most=None):
    """Return Lessons of one size; `most` notes, drawn where None."""
    size = choose(rng, SIZES, SIZE_WEIGHTS) if most is None else (most, dict(SIZES)[most])
    return Lessons.make(
        tokenizer, [lesson(QUESTIONS, rng, size[0], WORDS) for _ in range(size[1])]
    )


def read(language, template: Template, lessons):
    """Return the logits of the answers after the last layer and after layer 5, (n, tokens)."""
    outs = language.read(
        language.embed(template.header)[None],
        language.embed(lessons.ids),
        lessons.positions,
        lessons.sees,
    )
    return [language.logits(outs[i][tuple(lessons.answer_at.T)]).float() for i in (-1, 4)]


def reading_loss(language, template, lessons, help_weight=1.0):
    """Return the loss, and (whether it was read right) of every question."""
    with autocast():
        logits, early = read(language, template, lessons)
    loss = F.cross_entropy(logits, lessons.answers)
    loss = loss + help_weight * 0.4 * F.cross_entropy(early, lessons.answers)
    return loss, (logits.argmax(-1) == lessons.answers).tolist()
