# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a model is asked for a note of the newest seconds, and when.

The questions are one text, `question; question; ...`. Each may have a label in front, `label:
question`, for models that answer in a word: the note is then 'shape: star; color: blue'. What
stands as {every} in a question is the time that a note is about, such as '10 seconds'.
"""

import re
from dataclasses import dataclass, field, replace

from minicpmo_ros.errors import InputError
from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.times import duration

MOST_QUESTIONS = 16
# Ends a note for which an input was missing or old. No question is searched for a word of it.
NOT_THEN = ' (seen or heard before, not then)'
EVERY = '{every}'
LABEL = re.compile(r'(?P<label>[\w -]{1,32}):\s+(?P<question>.+)', re.DOTALL)


@dataclass(frozen=True)
class NoteQuestion:
    """One question of a note; its answer is told behind the label, if there is one."""

    text: str
    label: str = ''

    def told(self, answer: str) -> str:
        """Return an answer as a part of a note; '' where there is none."""
        answer = ' '.join(answer.split())
        return f'{self.label}: {answer}' if self.label and answer else answer


def read_questions(text: str) -> tuple:
    """Return the NoteQuestions of a text; raises InputError."""
    questions = []
    for part in filter(None, (part.strip() for part in text.split(';'))):
        match = LABEL.fullmatch(part)
        questions.append(
            NoteQuestion(match['question'], match['label']) if match else NoteQuestion(part)
        )
    if not 0 < len(questions) <= MOST_QUESTIONS:
        raise InputError(
            f'There are {len(questions)} questions for a note in {text!r}; 1 to {MOST_QUESTIONS} '
            'are allowed, with a semicolon between two.'
        )
    return tuple(questions)


@dataclass
class PeriodicNote:
    """A note that is being asked for: the questions that are left, and the answers so far."""

    begin_s: int
    end_s: int
    left: list
    parts: list = field(default_factory=list)
    is_stale: bool = False  # an input was missing or old

    def take(self, answer: str, is_stale: bool = False) -> None:
        """Take the answer to the question that was left first."""
        self.is_stale |= is_stale
        if told := self.left.pop(0).told(answer):
            self.parts.append(told)

    def note(self, **fields) -> Note | None:
        """Return the note; None where nothing was answered."""
        text = '; '.join(self.parts)
        text += NOT_THEN * (self.is_stale and bool(text))
        return Note(self.begin_s, self.end_s, text, **fields) if text else None


class Schedule:
    """Which seconds the next periodic note is about; `every_s` 0: none is written."""

    def __init__(self, questions: tuple, every_s: int):
        self._questions = [
            replace(each, text=each.text.replace(EVERY, duration(every_s))) for each in questions
        ]
        self._every_s, self._end_s = every_s, None

    def due(self, window_end_s: int) -> PeriodicNote | None:
        """Return the note to be asked for now that the window ends there, or None.

        A window that ends earlier than the note before was reset, or its clock was set back.
        """
        if not self._every_s or not window_end_s:
            return None
        if self._end_s is None or window_end_s < self._end_s:
            self._end_s = window_end_s  # begin counting here
            return None
        if window_end_s - self._end_s < self._every_s:
            return None
        begin_s = max(self._end_s, window_end_s - self._every_s)
        return PeriodicNote(begin_s, window_end_s, list(self._questions))

    def written(self, note: PeriodicNote) -> None:
        """Note that it is in the store; the next one begins where it ends."""
        self._end_s = note.end_s
