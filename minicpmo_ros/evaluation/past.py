# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about what has left the window, answered with notes, without, and with an oracle's.

Such a question has `asked_at_s`, and its evidence is older than the window that it is asked in.
With notes of a file it is answered as a robot would with that file; with the oracle's, the note
that belongs to it, `note`, is read: what is then wrong, no better search can mend.
"""

from dataclasses import replace
from datetime import timezone
from functools import partial
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.looks import NOTHING
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.recall import Recalled, Recaller, Recollection, preface
from minicpmo_ros.notes.store import NoteStore

ORACLE = 'oracle'


class NoteMemory:
    """What a core's questions about the past are answered with: a file of notes, or ORACLE."""

    def __init__(self, source: str):
        """Open the file for reading; raises StoreError."""
        self._store = None if source == ORACLE else NoteStore(Path(source), is_read_only=True)

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()

    def answer(self, core, units: list, questions: list, now_s: int, view=NOTHING) -> list:
        """Return an Answer to each question, asked at the stamp `now_s` behind these units.

        Those that are asked about the window read no notes. Times of the day are those of UTC.
        """
        session, answers = core.session, []
        for question in questions:
            recall = None
            if question.asked_at_s is not None:
                recall = partial(self._recall, core, question, now_s)
            session.options = replace(session.options, recall=recall)
            answers += core.answer(units, [question], view)
        session.options = replace(session.options, recall=None)
        return answers

    def _recall(self, core, scored, now_s: int, question, seconds, count_tokens) -> Recollection:
        if self._store is not None:
            space = core.model.exact_space
            recaller = Recaller(self._read, count_tokens, timezone.utc, space=space)
            return recaller.recollect(question.text, question.memory, now_s, seconds)
        if not scored.note:
            raise InputError(f'The question {scored.id!r} has no note for the oracle.')
        end_s = now_s - scored.age_s
        note = Note(end_s - scored.seconds, end_s, scored.note)
        budget = core.options.n_ctx
        return Recollection(
            *preface([Recalled(note, 1.0)], now_s, timezone.utc, count_tokens, budget)
        )

    def _read(self, read):
        return read(self._store)


def units_inside(units: list, asked: list, start_s: int, end_s: int, strict: bool) -> list:
    """Return the units of the window [start_s, end_s) that questions are asked in.

    Raises InputError if none is there, or if `strict` and one is missing; where all questions are
    about the past, the clip may be over by then.
    """
    inside = [unit for unit in units if start_s <= unit.second < end_s]
    if all(question.asked_at_s is not None for question in asked):
        return inside
    if not inside or (strict and len(inside) != end_s - start_s):
        raise InputError(
            f'{len(inside)} seconds of the window [{start_s}, {end_s}) have an '
            'image or audio. Correct start_s and end_s.'
        )
    return inside


def answer_window(core, units: list, asked: list, now_s: int, view=NOTHING) -> list:
    """Return an Answer to each question about a window that ends at the stamp `now_s`."""
    if core.memory is None:
        return core.answer(units, asked, view)
    return core.memory.answer(core, units, asked, now_s, view)
