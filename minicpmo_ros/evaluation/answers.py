# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers to a file of questions, by whatever path they came; importable from a file.

The file is JSON: {"format": FORMAT, "path": ..., "precision": ..., "audio": ..., "input": ...,
"model": ..., "answers": {id: text, ...}}. Path and precision are names of any kind, such as
"pytorch" and "bf16". The same answers give the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import QuestionSet, read_json

FORMAT = 'minicpmo_ros answers 1'
AUDIO = ('streaming', 'offline')
INPUTS = ('all', 'no_picture', 'no_sound')
NAMES = ('path', 'precision', 'audio', 'input')
ALLOWED = {'audio': AUDIO, 'input': INPUTS}  # of the other two any text


@dataclass(frozen=True)
class AnswerSet:
    """Answers by question, and how they came about."""

    answers: dict  # id of the question: text
    path: str = 'core'  # without ROS; graph: through the live graph; pytorch: as trained
    precision: str = 'f16'  # of the model
    audio: str = 'streaming'  # offline: one spectrum of the whole window, with one maximum
    input: str = 'all'  # no_picture: pictures are grey; no_sound: samples are zero
    model: str = ''  # its model_id

    def __post_init__(self):
        """Check the four names."""
        for name in NAMES:
            given, allowed = getattr(self, name), ALLOWED.get(name)
            is_text = isinstance(given, str) and bool(given.strip())
            if not (given in allowed if allowed else is_text):
                raise InputError(
                    f'The {name} of answers is {given!r}; allowed '
                    f'{"are " + ", ".join(allowed) if allowed else "is a name"}.'
                )

    @classmethod
    def read(cls, path) -> 'AnswerSet':
        """Read and check a file; raises InputError."""
        path = Path(path)
        data = read_json(path, FORMAT)
        answers = data.get('answers')
        if not isinstance(answers, dict) or not all(isinstance(a, str) for a in answers.values()):
            raise InputError(f'{path}: its answers are not texts by question.')
        try:
            return cls(answers, *(data.get(name) for name in NAMES), str(data.get('model', '')))
        except InputError as error:
            raise InputError(f'{path}: {error}') from error

    def write(self, path) -> None:
        """Write the file."""
        facts = {name: value for name, value in vars(self).items() if name != 'answers'}
        text = json.dumps(
            {'format': FORMAT, **facts, 'answers': self.answers}, ensure_ascii=False, indent=1
        )
        Path(path).write_text(text + '\n', encoding='utf-8')

    def of(self, questions: QuestionSet) -> list:
        """Give the texts in the order of the questions; InputError where one was not answered."""
        missing = [q.id for q in questions.questions if q.id not in self.answers]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(questions.questions)} questions have no '
                f'answer by {self.title}, {missing[0]!r} first. Do the answers '
                'belong to these questions?'
            )
        return [self.answers[q.id] for q in questions.questions]

    @property
    def title(self) -> str:
        """A short name."""
        parts = [self.path, self.precision]
        parts += [self.audio] if self.audio != 'streaming' else []
        return ' '.join(parts + [self.input] * (self.input != 'all'))


def precision_name(precision: dict) -> str:
    """Name the precisions of the three files (role: precision) in one word: q4, mixed."""
    names = {'q4' if kind.startswith('q4') else kind for kind in precision.values()}
    return names.pop() if len(names) == 1 else 'mixed'
