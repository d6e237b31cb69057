# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""StreamingBench's annotation files, as published, become a QuestionSet about bags.

A file is a JSON list of {"video_path", "questions": [{"task_type", "question", "time_stamp",
"answer", "options"}]}; the omni-source and the real-time tasks have this form. A question is asked
when its time stamp is reached, about the `context_s` seconds before it, in the official wording,
and scored by the official rule. What is malformed is used the official way where there is one and
listed either way. Source: https://github.com/THUNLP-MT/StreamingBench (annotations under MIT).
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.questions import MAX_FILE_BYTES, QuestionSet, ScoredQuestion
from minicpmo_ros.evaluation.scoring import LETTERS

CONTEXT_S = 60  # of the published main setting
START_S = 1_000_000_000  # stamp of a video's first instant in its bag
PROMPT = (
    'You are an advanced video question-answering AI assistant. You have been provided with some '
    'frames from the video and a multiple-choice question related to the video. Your task is to '
    'carefully analyze the video and provide the best answer to question, choosing from the four '
    'options provided. Respond with only the letter (A, B, C, or D) of the correct option.\n\n'
    'Question: {question}\n\nOptions:\n{options}\n\nThe best option is:'
)


@dataclass(frozen=True)
class Annotated:
    """One question as it stands in the file."""

    index: int  # of the question in the file, from 0
    video: str  # path as told
    task: str
    question: str
    options: tuple  # four, each with its letter
    letter: str
    at_s: int  # of the video

    @property
    def bag(self) -> str:
        """The name its video has as a bag."""
        return PurePosixPath(self.video).stem + '.mcap'


def read_annotations(path) -> tuple:
    """Read a file; give its Annotated questions and a list of sentences on what is malformed.

    Raises InputError where the file is not of this form at all.
    """
    path = Path(path)
    found, defects, index = [], [], 0
    for number, entry in enumerate(_entries(path)):
        video = entry.get('video_path') if isinstance(entry, dict) else None
        asked = entry.get('questions') if isinstance(entry, dict) else None
        if not isinstance(video, str) or not isinstance(asked, list):
            defects.append(f'entry {number} has no video_path or no questions: left out')
            continue
        for question in asked:
            try:
                found.append(_annotated(index, video, question, defects))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                defects.append(f'question {index} of entry {number}: {error!r}: left out')
            index += 1
    if not found:
        raise InputError(
            f'{path}: no question of StreamingBench is in it. The omni-source and real-time '
            'files have the form [{"video_path": ..., "questions": [...]}].'
        )
    return tuple(found), defects


def question_set(
    annotated: tuple, folder, context_s: int = CONTEXT_S, name: str = ''
) -> QuestionSet:
    """Give the questions about bags in `folder`; context_s 0 or less: all that came before."""
    questions = []
    for one in annotated:
        start_s = max(0, one.at_s - context_s) if context_s > 0 else 0
        questions.append(
            ScoredQuestion(
                id=f'{one.index:05}',
                clip=one.bag,
                start_s=START_S + start_s,
                end_s=START_S + max(one.at_s, start_s + 1),
                family=one.task,
                text=PROMPT.format(question=one.question, options='\n'.join(one.options)),
                answers=(one.letter,),
                kind=one.task,
                chance=1 / len(LETTERS),
                rule='letter',
                options=one.options,
            )
        )
    return QuestionSet(tuple(questions), name or 'StreamingBench', folder=Path(folder))


def seconds_of(time_stamp: str) -> int:
    """Give the seconds of '00:01:10', also of '1:10' or '70'; ValueError for other text."""
    total = 0.0
    for part in time_stamp.strip().split(':'):
        total = 60 * total + float(part)
    if not 0 <= total < 10**6:
        raise ValueError(f'time_stamp {time_stamp!r}')
    return int(total)


def _entries(path: Path) -> list:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f'{path}: it is larger than {MAX_FILE_BYTES >> 20} MiB.')
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: it is not JSON ({error}).') from error
    if not isinstance(data, list):
        raise InputError(f'{path}: a list of entries is expected, {type(data).__name__} is there.')
    return data


def _annotated(index: int, video: str, question: dict, defects: list) -> Annotated:
    where = f'question {index} ({PurePosixPath(video).stem})'
    letter = question['answer'].strip()
    if letter not in LETTERS or len(letter) != 1:
        raise ValueError(f'answer {letter!r}')
    options, at_s = [str(o) for o in question['options']], seconds_of(question['time_stamp'])
    if len(options) < len(LETTERS):
        raise ValueError(f'{len(options)} options')
    if len(options) > len(LETTERS):
        defects.append(
            f'{where} has {len(options)} options: the first four are used, as officially'
        )
    if len(question['time_stamp'].strip()) != len('00:00:00'):
        defects.append(f'{where} has the time stamp {question["time_stamp"]!r}: read as it stands')
    options = options[: len(LETTERS)]
    if not options[0].startswith('A.'):
        options = [f'{letter}. {option}' for letter, option in zip(LETTERS, options)]
    return Annotated(
        index,
        video,
        question['task_type'].strip(),
        question['question'],
        tuple(options),
        letter,
        at_s,
    )
