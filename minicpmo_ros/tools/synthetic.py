# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write a model of random weights in the published layouts, for tests and benchmarks."""

from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.layouts import FFN_NAMES, PRECISIONS
from minicpmo_ros.models.shapes import SHAPES

SUMMARY = 'write a model of random weights'
FILES = ('llm.gguf', 'vision.gguf', 'audio.gguf', 'manifest.yaml')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directory', type=Path, metavar='DIR', help='where to write; made if it is not there'
    )
    parser.add_argument(
        '--shape', choices=SHAPES, default='tiny', help='2.6 and 4.5 have the true sizes'
    )
    parser.add_argument('--seed', type=_seed, default=1, help='the same seed gives the same bytes')
    for role in ('llm', 'vision', 'audio'):
        parser.add_argument(
            f'--{role}', choices=PRECISIONS, default='f16', help=f'precision of {role}.gguf'
        )
    parser.add_argument(
        '--ffn-naming',
        choices=FFN_NAMES,
        default='swapped',
        help='names of the vision feed-forward; swapped: as published',
    )
    parser.add_argument(
        '--pad-ffn',
        action='store_true',
        help='widen the rows of the vision '
        'feed-forward to whole blocks instead of storing them in f16',
    )
    parser.add_argument(
        '--no-hashes', action='store_true', help='leave SHA-256 out of the manifest'
    )
    parser.add_argument('--force', action='store_true', help='overwrite a model')


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise ArgumentTypeError('a seed is not negative')
    return seed


def run(arguments) -> None:
    """Write the files and print their sizes."""
    from minicpmo_ros.models.synthetic import write_model

    directory = arguments.directory
    present = [name for name in FILES if (directory / name).exists()]
    if present and not arguments.force:
        raise InputError(
            f'{directory} already holds {", ".join(present)}; give another '
            'directory, or --force to overwrite them.'
        )
    write_model(
        directory,
        arguments.shape,
        arguments.seed,
        arguments.llm,
        arguments.vision,
        arguments.audio,
        arguments.ffn_naming,
        arguments.pad_ffn,
        not arguments.no_hashes,
    )
    for name in FILES[:3]:
        print(f'{directory / name}  {(directory / name).stat().st_size / 2**20:.1f} MiB')
