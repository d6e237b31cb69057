# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments of the verbs about a running robot, and their entry points; quick to import."""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from minicpmo_ros.config import LOOKS, NOTES_READ

NAMESPACE = re.compile(r'/?([a-z_]\w*(/[a-z_]\w*)*/?)?', re.ASCII | re.IGNORECASE)
VERBS = {  # verb: what it does
    'ask': 'ask the running model a question',
    'watch': 'print answers, standing questions and turns of speech as they come',
    'status': 'print what the running model is doing',
    'top': 'a live table of seconds, work and memory',
}


def number_of(text: str, kind: type = float) -> float:
    """Return the number of a text, NaN for none: of that no comparison is true."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


def amount(text: str) -> float:
    """Read an option that is a number from 0 on, of seconds, MiB or shares."""
    number = number_of(text)
    if not (math.isfinite(number) and number >= 0):
        raise ArgumentTypeError('a number from 0 on is expected')
    return number


def count(text: str) -> int:
    """Read an option that is a whole number from 0 on."""
    number = number_of(text, int)
    if not number >= 0:
        raise ArgumentTypeError('a whole number from 0 on is expected')
    return number


def namespace(text: str) -> str:
    """Read an option that is a namespace of ROS; '' and '/' are the one of all."""
    if not NAMESPACE.fullmatch(text):
        raise ArgumentTypeError(
            f'{text!r} is no namespace; names of letters, digits and _ are expected, with / '
            'between them, such as /robot1'
        )
    return text.rstrip('/')


def add_arguments(verb: str, parser) -> None:
    """Declare the options of a verb."""
    parser.add_argument('--namespace', type=namespace, default='', help='of the nodes: /robot1')
    if verb == 'ask':
        _add_question_arguments(parser)
    elif verb == 'status':
        parser.add_argument('--json', action='store_true', help='all fields, as JSON')
    else:
        parser.add_argument(
            '--count', type=count, default=0, help='end after so many lines or tables; 0: go on'
        )


def _add_question_arguments(parser) -> None:
    """Declare a question and how it is to be answered."""
    parser.add_argument(
        'question', nargs='?', default='', help='plain text; left out: answer what was said'
    )
    parser.add_argument(
        '--choices',
        nargs='+',
        default=[],
        metavar='TEXT',
        help='the answer is one of these; write them behind the question',
    )
    parser.add_argument('--remember', action='store_true', help='later questions know of this one')
    parser.add_argument(
        '--look',
        choices=LOOKS,
        default=LOOKS[0],
        help='at the newest image: sharp: with all of the area; tiles: also in tiles',
    )
    parser.add_argument(
        '--image', type=Path, help='a JPEG, PNG or WebP that is read before the question'
    )
    parser.add_argument(
        '--memory',
        choices=NOTES_READ,
        default=NOTES_READ[0],
        help='whether notes of before are read; only: without the window',
    )
    parser.add_argument('--max-tokens', type=int, default=0, help="0: the node's own")
    parser.add_argument('--temperature', type=float, help="0: greedy; left out: the node's own")
    parser.add_argument('--timeout', type=amount, default=60.0, help='seconds')


def runner(verb: str) -> Callable:
    """Return the function that does a verb: it takes the parsed arguments."""

    def run(arguments) -> int:
        from minicpmo_ros.verbs import robot

        return getattr(robot, verb)(arguments)

    return run
