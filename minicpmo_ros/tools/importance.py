# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Run a model over clips and keep how strongly each column of its weights is used.

`minicpmo quantize --importance FILE` then spends its bits on the columns that matter. llama.cpp's
own tools read the file too.
"""

from pathlib import Path

from minicpmo_ros.tools.asking import (
    add_asking_arguments,
    asked_questions,
    core_options,
    end_progress,
    progress,
)
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'measure which columns of the weights matter'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directory',
        type=model_path,
        metavar='DIR',
        help=f'{HELP}, in as high a precision as there is',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='a .gguf to write')
    add_asking_arguments(parser)


def run(arguments) -> None:
    """Answer the questions, write the file, say what is in it."""
    from minicpmo_ros.evaluation.importance import collect
    from minicpmo_ros.models.appearing import require_folder
    from minicpmo_ros.models.directory import ModelDirectory

    require_folder(arguments.out)
    model, questions = ModelDirectory.open(arguments.directory), asked_questions(arguments)
    importance = collect(model, questions, core_options(arguments), progress(model.path))
    end_progress()
    importance.write(arguments.out)
    print(
        f'{arguments.out}  {len(importance.names)} tensors from '
        f'{len(questions.questions)} questions'
    )
