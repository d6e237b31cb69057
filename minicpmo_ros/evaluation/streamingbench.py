# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""StreamingBench's annotation files, as published, become a QuestionSet about bags.

A file is a JSON list of {"video_path", "questions": [{"task_type", "question", "time_stamp",
"answer", "options"}]}; the omni-source and the real-time tasks have this form. A question is asked
when its time stamp is reached, about the `context_s` seconds before it, in the official wording,
and scored by the official rule. What is malformed is used the official way where there is one and
listed either way; time stamps may be written in any way that can be read.

The proactive task has {"question": 'When X, output "Y".', "time_stamp", "ground_truth_time_stamp",
"ground_truth_output"} instead. It is followed as published (`follow`): every second from the
question's time stamp on the model is asked whether it is the time to output Y, about the video
since then, up to 4 s after the truth; at the first answer with a yes it is asked the question. The
time is right within 2 s of the truth, the answer if Y is in it, too.
Source: https://github.com/THUNLP-MT/StreamingBench (annotations under MIT).
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minicpmo_ros.documents import read_bounded, told
from minicpmo_ros.errors import InputError, in_words
from minicpmo_ros.evaluation.bags.clip import LONGEST_WINDOW_S, Clip
from minicpmo_ros.evaluation.bags.writing import START_S
from minicpmo_ros.evaluation.matching import LETTERS
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion, check
from minicpmo_ros.evaluation.runner import Core

CONTEXT_S = 60  # of the published main setting
PROMPT = (
    'You are an advanced video question-answering AI assistant. You have been provided with some '
    'frames from the video and a multiple-choice question related to the video. Your task is to '
    'carefully analyze the video and provide the best answer to question, choosing from the four '
    'options provided. Respond with only the letter (A, B, C, or D) of the correct option.\n\n'
    'Question: {question}\n\nOptions:\n{options}\n\nThe best option is:'
)


PROACTIVE_PROMPT = (
    'You are an advanced image question-answering AI assistant. You have been provided with '
    'images and a question related to the images. Your task is to carefully analyze the images '
    'and provide the answer to the question. You need to carefully confirm whether the images '
    'content meet the conditions of the question, and then output the correct content.\n\n'
    'Question: {question}\n\nThe answer is:\n'
)
POLL = '{question} Is it the right time to output "{output}"? You can only answer yes or no.'
LAST_POLL_S = 4  # after the truth


@dataclass(frozen=True)
class _OfVideo:
    """A question about a video, as it stands in the file."""

    index: int  # of the question in the file, from 0
    video: str  # path as told

    @property
    def place(self) -> PurePosixPath:
        """Where its video is in the folder of the videos: several may have one name."""
        path = PurePosixPath(self.video.replace('\\', '/'))
        parts = [part for part in path.parts if part not in ('/', '..')]
        if 'videos' in parts[:-1]:
            parts = parts[len(parts) - parts[::-1].index('videos') :]
        is_whole = path.is_absolute() or ':' in (path.parts or ('',))[0]  # on somebody's machine
        return PurePosixPath(*parts[-1:]) if is_whole else PurePosixPath(*parts)

    @property
    def bag(self) -> str:
        """The name its video has as a bag."""
        return '-'.join((*self.place.parts[:-1], self.place.stem)) + '.mcap'

    def find(self, files: list) -> Path:
        """Return its video; InputError where none or several are at its place."""
        parts = self.place.parts
        found = [file for file in files if file.parts[-len(parts) :] == parts]
        if len(found) != 1:
            what = f'it may be {found[0]} or {found[1]}' if found else 'not in the videos'
            raise InputError(f'{self.place}: {what}.')
        return found[0]


@dataclass(frozen=True)
class Annotated(_OfVideo):
    """One question with four options."""

    task: str
    question: str
    options: tuple  # four, each with its letter
    letter: str
    at_s: int  # of the video


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
            except InputError as error:
                defects.append(f'question {index} of entry {number}: {error} It is left out.')
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
    """Return the questions about bags in `folder`; context_s 0 or less: all that came before,
    a day of it at most.
    """
    questions = tuple(_asked(one, context_s) for one in annotated)
    return QuestionSet(questions, name or 'StreamingBench', folder=Path(folder))


def _asked(one: Annotated, context_s: int) -> ScoredQuestion:
    context_s = min(context_s, LONGEST_WINDOW_S) if context_s > 0 else LONGEST_WINDOW_S
    start_s = max(0, one.at_s - context_s)
    return ScoredQuestion(
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


@dataclass(frozen=True)
class Proactive(_OfVideo):
    """One question of the proactive task."""

    question: str
    asked_s: int  # of the video
    truth_s: int
    output: str

    @property
    def span(self) -> tuple:
        """(start_s, end_s), the stamps of what is shown at most."""
        return START_S + self.asked_s, START_S + self.truth_s + LAST_POLL_S


@dataclass(frozen=True)
class Spoken:
    """When the model spoke in the proactive task, and what it said."""

    asked: Proactive
    at_s: int | None  # of the video; None: it did not speak
    text: str = ''

    @property
    def is_in_time(self) -> bool:
        """Whether it spoke within 2 s of the truth."""
        return self.at_s is not None and abs(self.at_s - self.asked.truth_s) <= 2

    @property
    def is_right(self) -> bool:
        """Whether it spoke in time and said what it was to say."""
        return self.is_in_time and self.asked.output in self.text


def is_proactive(path) -> bool:
    """Return whether a file has the form of the proactive task."""
    try:
        questions = [q for entry in _entries(Path(path)) for q in entry['questions']]
        return bool(questions) and all('ground_truth_time_stamp' in q for q in questions)
    except (InputError, KeyError, TypeError):
        return False


def read_proactive(path) -> tuple:
    """Read the proactive task's file; give Proactive questions, and sentences on defects."""
    found, defects, index = [], [], 0
    for entry in _entries(Path(path)):
        for question in entry['questions']:
            try:
                found.append(_proactive(index, entry.get('video_path'), question))
            except InputError as error:
                defects.append(f'question {index}: {error} It is left out.')
            index += 1
    if not found:
        raise InputError(f'{path}: no question of the proactive task can be read. {defects[0]}')
    return tuple(found), defects


def _proactive(index: int, video, question: dict) -> Proactive:
    names = ('question', 'time_stamp', 'ground_truth_time_stamp', 'ground_truth_output')
    for name, value in [('video_path', video), *((name, question.get(name)) for name in names)]:
        if not isinstance(value, str) or not value.strip():
            raise InputError(f'{name} is {told(value)}, a text is expected.')
    asked, at, truth, output = (question[name] for name in names)
    return Proactive(index, video, asked, _read_time(at), _read_time(truth), output)


def poll_of(asked: Proactive) -> str:
    """Return what the model is asked every second."""
    return PROACTIVE_PROMPT.format(question=POLL.format(**vars(asked)))


def follow(core: Core, clip: Clip, asked: Proactive) -> Spoken:
    """Show a clip of asked.span second by second and ask as published; return what was said."""
    session, first_s = core.session, asked.span[0]
    session.reset()
    poll = poll_of(asked)
    for unit in core.stream(clip):
        session.append(unit)
        if 'yes' in core.ask(poll).text.strip().lower():
            answer = core.ask(PROACTIVE_PROMPT.format(question=asked.question))
            return Spoken(asked, unit.second + 1 - first_s + asked.asked_s, answer.text)
    return Spoken(asked, None)


def seconds_of(time_stamp: str) -> int:
    """Return the seconds of '00:01:10', also of '1:10' or '70'; ValueError for other text."""
    total = 0.0
    for part in time_stamp.strip().split(':'):
        total = 60 * total + float(part)
    if not 0 <= total < 10**6:
        raise ValueError(f'time_stamp {time_stamp!r}')
    return int(total)


def _entries(path: Path) -> list:
    try:
        data = json.loads(read_bounded(path))
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: it is not JSON ({in_words(error)}).') from error
    if not isinstance(data, list):
        raise InputError(f'{path}: a list of entries is expected, {type(data).__name__} is there.')
    return data


def _annotated(index: int, video: str, question, defects: list) -> Annotated:
    """Read a question, and list what is malformed in it; InputError where it cannot be asked."""
    if not isinstance(question, dict):
        raise InputError(f'it is {told(question)}, an object is expected.')
    told_by = {name: question.get(name) for name in ('task_type', 'question', 'time_stamp')}
    for name, value in told_by.items():
        if not isinstance(value, str):
            raise InputError(f'{name} is {told(value)}, a text is expected.')
    letter = str(question.get('answer')).strip() if _is_plain(question.get('answer')) else ''
    if letter not in tuple(LETTERS):
        raise InputError(f'answer is {told(question.get("answer"))}, one of A to D is expected.')
    where = f'question {index} ({PurePosixPath(video).stem})'
    one = Annotated(
        index,
        video,
        told_by['task_type'].strip(),
        told_by['question'],
        _four_options(question.get('options'), where, defects),
        letter,
        _read_time(told_by['time_stamp']),
    )
    if not one.place.name:
        raise InputError(f'video_path is {told(video)}, the path of a file is expected.')
    check(_asked(one, CONTEXT_S))  # what `replay` would refuse
    return one


def _four_options(options, where: str, defects: list) -> tuple:
    """Return the options that are asked: the first four, each with its letter."""
    if not isinstance(options, list) or not all(map(_is_plain, options)):
        raise InputError(f'options are {told(options)}, a list of texts is expected.')
    if len(options) < len(LETTERS):
        raise InputError(f'it has {len(options)} options, {len(LETTERS)} are expected.')
    if len(options) > len(LETTERS):
        defects.append(
            f'{where} has {len(options)} options: the first four are used, as officially'
        )
    options = [str(option) for option in options[: len(LETTERS)]]
    if not all(map(str.strip, options)):
        defects.append(f'{where} has an empty option: asked as it stands, as officially')
    if not options[0].startswith('A.'):
        options = [f'{letter}. {option}' for letter, option in zip(LETTERS, options)]
    return tuple(options)


def _read_time(time_stamp: str) -> int:
    try:
        return seconds_of(time_stamp)
    except ValueError as error:
        raise InputError(
            f'time_stamp is {told(time_stamp)}, such as 00:01:10 is expected.'
        ) from error


def _is_plain(value) -> bool:
    return isinstance(value, (str, int, float))
