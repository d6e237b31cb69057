# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Ask a model about clips whose answers are known, through the engine without ROS.

Prints accuracy by family, window and input, and how often the answers are those of an f32 model
among the directories. The same files give the same answers each time.
"""

import json
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.errors import InputError

SUMMARY = 'ask a model about clips and count the right answers'
INPUTS = ('all', 'no_picture', 'no_sound')
AUDIO = ('streaming', 'offline')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directories',
        type=Path,
        metavar='DIR',
        nargs='*',
        help='model directories, of one model in several precisions; none: only '
        'the answers given by --answers are scored',
    )
    parser.add_argument(
        '--questions',
        type=Path,
        metavar='FILE',
        help='questions.json beside its clips; default: those that ship',
    )
    parser.add_argument('--limit', type=_count, metavar='N', help='ask only the first N')
    parser.add_argument(
        '--inputs',
        type=_list_of(INPUTS),
        default=INPUTS,
        metavar='LIST',
        help=f'of {",".join(INPUTS)}: with pictures blanked, with sound removed',
    )
    parser.add_argument(
        '--audio',
        type=_list_of(AUDIO),
        default=AUDIO[:1],
        metavar='LIST',
        help=f'of {",".join(AUDIO)}; offline: a whole clip has one spectrum',
    )
    parser.add_argument(
        '--answers',
        type=Path,
        metavar='ANSWERS',
        action='append',
        default=[],
        help='also score these answers, given by another path: a file, or the folder of a '
        'replay; repeatable',
    )
    parser.add_argument('--save', type=Path, metavar='FOLDER', help='write all answers there')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the report there')
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'gpu'),
        default='auto',
        help='where the model runs; auto: GPU where there is one',
    )
    parser.add_argument(
        '--threads',
        type=_count,
        default=len(os.sched_getaffinity(0)),
        help='of computation on the CPU',
    )


def run(arguments) -> None:
    """Answer, score, print."""
    from minicpmo_ros.evaluation.answers import AnswerSet
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.report import markdown
    from minicpmo_ros.evaluation.results import Run
    from minicpmo_ros.evaluation.score import report
    from minicpmo_ros.models.directory import ModelDirectory

    if not arguments.directories and not arguments.answers:
        raise InputError('Nothing to score was given. Give model directories, or --answers.')
    path = arguments.questions or shipped_questions()
    questions = QuestionSet.read(path)
    if arguments.limit:
        questions = questions.first(arguments.limit)
    imported = [
        Run.read(given).answer_set() if given.is_dir() else AnswerSet.read(given)
        for given in arguments.answers
    ]
    models = [ModelDirectory.open(directory) for directory in arguments.directories]
    given = [answers for model in models for answers in _answers(model, questions, arguments)]
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        for answers in given:
            answers.write(arguments.save / f'{answers.title.replace(" ", "-")}.json')
    found = report(questions, given + imported)
    print(markdown(found), end='')
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + '\n')


def _answers(model, questions, arguments) -> list:
    from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all

    variants = [
        Variant(name, audio)
        for audio in arguments.audio
        for name in arguments.inputs
        if audio == 'streaming' or name == 'all'
    ]
    core = Core(model, CoreOptions(device=arguments.device, threads=arguments.threads))
    try:
        return answer_all(core, questions, variants, _progress(model.path))
    finally:
        core.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _progress(path: Path):
    """Tell how far it is, on a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f'\r{path}: {done} of {total} questions', end='', file=sys.stderr, flush=True
    )


def shipped_questions() -> Path:
    """Find the questions that come with the package, in the source tree or installed."""
    source = Path(__file__).resolve().parents[2] / 'demo' / 'clips' / 'questions.json'
    if source.is_file():
        return source
    from ament_index_python.packages import get_package_share_directory

    try:
        return Path(get_package_share_directory('minicpmo_ros')) / 'demo/clips/questions.json'
    except (LookupError, OSError) as error:
        raise InputError(
            'The questions that ship are in the source tree and in an installed '
            'package that is sourced. Source it, or give --questions.'
        ) from error


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ArgumentTypeError('1 or more is expected')
    return count


def _list_of(allowed: tuple):
    def read(text: str) -> tuple:
        names = tuple(dict.fromkeys(text.split(',')))
        if not set(names) <= set(allowed):
            raise ArgumentTypeError(f'{text!r} is not a list of {",".join(allowed)}')
        return names

    return read
