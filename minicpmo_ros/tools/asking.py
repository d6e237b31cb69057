# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What verbs that ask a model about clips have in common: options, questions, progress."""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.errors import InputError


def add_asking_arguments(parser) -> None:
    """Declare --questions, --limit, --device and --threads."""
    parser.add_argument(
        '--questions',
        type=Path,
        metavar='FILE',
        help='questions.json beside its clips; default: those that ship',
    )
    parser.add_argument('--limit', type=count, metavar='N', help='ask only the first N')
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'gpu'),
        default='auto',
        help='where the model runs; auto: GPU where there is one',
    )
    parser.add_argument(
        '--threads',
        type=count,
        default=len(os.sched_getaffinity(0)),
        help='of computation on the CPU',
    )


def add_topic_arguments(parser) -> None:
    """Declare --image-topic and --audio-topic."""
    parser.add_argument(
        '--image-topic',
        default='',
        metavar='TOPIC',
        help='of a bag with several cameras; compressed pictures on this name with /compressed',
    )
    parser.add_argument(
        '--audio-topic', default='', metavar='TOPIC', help='of a bag with several microphones'
    )


def asked_questions(arguments):
    """Read the questions that the options name."""
    from minicpmo_ros.evaluation.questions import QuestionSet

    questions = QuestionSet.read(arguments.questions or shipped_questions())
    return questions.first(arguments.limit) if arguments.limit else questions


def core_options(arguments):
    """Return how the model runs."""
    from minicpmo_ros.evaluation.runner import CoreOptions

    return CoreOptions(device=arguments.device, threads=arguments.threads)


def progress(what):
    """Return what tells how many questions are done, on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f'\r{what}: {done} of {total} questions', end='', file=sys.stderr, flush=True
    )


def end_progress() -> None:
    """End the line of progress()."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


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


def count(text: str) -> int:
    """Read an option that is a whole number from 1 on."""
    count = int(text)
    if count < 1:
        raise ArgumentTypeError('1 or more is expected')
    return count
