# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Find the smallest types with which a model still gives the answers it gives as it is.

Kinds of tensors get smaller types one after the other, cheapest in error first; every accepted
set of types was written, loaded and asked. The best so far is always in the rules file, for
`minicpmo quantize --rules`; a search that was stopped goes on where it was.
"""

from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.quantize_rules import TYPES
from minicpmo_ros.tools.asking import (
    add_asking_arguments,
    asked_questions,
    core_options,
    count,
)
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'find the smallest types that keep the answers'
LADDER = 'q8_0,q6_K,q5_K,q4_K,q4_0,q3_K,q2_K'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('directory', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        '--agreement',
        type=_share,
        default=0.98,
        metavar='SHARE',
        help='of answers that must be the same text',
    )
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='FILE',
        help='rules to write, in YAML; what was asked is kept beside it in FILE.json, delete that '
        'to begin anew',
    )
    parser.add_argument(
        '--types',
        type=_types,
        default=LADDER,
        metavar='LIST',
        help="to choose from; where rows do not fit one, llama.cpp's substitute is taken",
    )
    parser.add_argument(
        '--evaluations', type=count, default=40, metavar='N', help='ask at most N sets of types'
    )
    parser.add_argument(
        '--importance', type=Path, metavar='FILE', help='as `minicpmo importance` writes it'
    )
    add_asking_arguments(parser)


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ArgumentTypeError('0 to 1 is expected')
    return share


def _types(text: str) -> tuple:
    names = tuple(dict.fromkeys(text.split(',')))
    allowed = [name for name in TYPES if name != 'keep']
    if not set(names) <= set(allowed):
        raise ArgumentTypeError(f'{text!r} is not a list of {",".join(allowed)}')
    return names


def run(arguments) -> None:
    """Search, and print every set of types that was asked."""
    from minicpmo_ros.evaluation.precision_search import Journal, Search, facts_of
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.models.importance import Importance
    from minicpmo_ros.models.precision_steps import measured_groups
    from minicpmo_ros.models.quantize import QuantizeOptions

    out = arguments.out
    if out.suffix not in ('.yaml', '.yml') or not out.parent.is_dir():
        raise InputError(f'{out} must be a .yaml in a folder that exists.')
    model, questions = ModelDirectory.open(arguments.directory), asked_questions(arguments)
    importance = arguments.importance and Importance.read(arguments.importance)
    quantizing = QuantizeOptions(threads=arguments.threads, importance=importance)
    groups = measured_groups(
        model,
        arguments.types,
        quantizing,
        out.parent,
        lambda precision: print(f'measuring the error of {precision}', flush=True),
    )
    facts = facts_of(model, questions, groups, arguments.importance)
    journal = Journal(out.with_name(out.name + '.json'), facts)
    search = Search(
        model,
        groups,
        questions,
        arguments.agreement,
        core_options(arguments),
        quantizing,
        journal,
        out.parent,
    )
    whole = search.best.size_bytes

    def tell(tried, accepted) -> None:
        if tried is search.best:
            search.rules(tried).write(out)
        print(
            f'{search.n_tried:3} {tried.size_bytes / 2**20:9.2f} MiB  same answers '
            f'{100 * tried.agreement:5.1f} %  {"accepted" if accepted else "refused"}; best '
            f'{search.best.size_bytes / 2**20:.2f} MiB',
            flush=True,
        )

    search.rules(search.best).write(out)
    best = search.run(arguments.evaluations, tell)
    print(
        f'{out}  {whole / 2**20:.2f} -> {best.size_bytes / 2**20:.2f} MiB, same answers '
        f'{100 * best.agreement:.1f} % of {len(questions.questions)} questions, '
        f'{search.n_tried} sets of types asked'
    )
