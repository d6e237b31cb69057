# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Ask a model about clips whose answers are known, through the engine without ROS.

Prints accuracy by family, window and input, and how often the answers are those of an f32 model
among the directories. The same files give the same answers each time.
"""

import json
from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.tools.asking import (
    add_asking_arguments,
    asked_questions,
    core_options,
    end_progress,
    progress,
)
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'ask a model about clips and count the right answers'
INPUTS = ('all', 'no_picture', 'no_sound')
AUDIO = ('streaming', 'offline')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directories',
        type=model_path,
        metavar='DIR',
        nargs='*',
        help=f'{HELP}; several: of one model in several precisions; none: only '
        'the answers given by --answers are scored',
    )
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
    add_asking_arguments(parser)


def run(arguments) -> None:
    """Answer, score, print."""
    from minicpmo_ros.evaluation.answers import AnswerSet
    from minicpmo_ros.evaluation.report import markdown
    from minicpmo_ros.evaluation.results import Run
    from minicpmo_ros.evaluation.score import report
    from minicpmo_ros.models.directory import ModelDirectory

    if not arguments.directories and not arguments.answers:
        raise InputError('Nothing to score was given. Give model directories, or --answers.')
    questions = asked_questions(arguments)
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
    from minicpmo_ros.evaluation.runner import Core, Variant, answer_all

    variants = [
        Variant(name, audio)
        for audio in arguments.audio
        for name in arguments.inputs
        if audio == 'streaming' or name == 'all'
    ]
    core = Core(model, core_options(arguments))
    try:
        return answer_all(core, questions, variants, progress(model.path))
    finally:
        core.close()
        end_progress()


def _list_of(allowed: tuple):
    def read(text: str) -> tuple:
        names = tuple(dict.fromkeys(text.split(',')))
        if not set(names) <= set(allowed):
            raise ArgumentTypeError(f'{text!r} is not a list of {",".join(allowed)}')
        return names

    return read
