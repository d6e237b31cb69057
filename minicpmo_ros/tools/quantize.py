# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write a model file or a model directory in another precision.

Layers that a model depends on most keep more bits than --type says; --rule overrides that, tensor
by tensor. Rules speak of tensors of two and more dimensions whose names end in '.weight'.
"""

import argparse
import os
import sys
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.quantize_rules import TYPES, Rule

SUMMARY = 'write model files in other precisions'
ROLES = ('llm', 'vision', 'audio')


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'source',
        type=Path,
        metavar='FILE|DIR',
        help='a GGUF file of a model, or a model directory',
    )
    parser.add_argument('target', type=Path, metavar='FILE|DIR', help='what to write')
    parser.add_argument(
        '--type',
        choices=TYPES,
        metavar='TYPE',
        help=f'precision of the file, or of every file of a directory: {", ".join(TYPES)}',
    )
    for role in ROLES:
        parser.add_argument(
            f'--{role}',
            choices=TYPES,
            metavar='TYPE',
            help=f'precision of the {role} file of a directory; without it and --type as it is',
        )
    parser.add_argument(
        '--rule',
        action='append',
        default=[],
        metavar='PATTERN=TYPE',
        help="for example 'blk.*.attn_v.weight=q8_0'; may be given several "
        'times, the first that fits a tensor decides',
    )
    parser.add_argument(
        '--no-pad',
        action='store_true',
        help='store rows of the vision '
        'feed-forward that no block fits in f16 instead of widening them with '
        'zeros, for use with stock llama.cpp',
    )
    parser.add_argument(
        '--report', action='store_true', help='print every tensor: types, sizes, relative error'
    )
    parser.add_argument(
        '--threads',
        type=_count,
        default=len(os.sched_getaffinity(0)),
        help='the bytes written do not depend on it',
    )
    parser.add_argument('--force', action='store_true', help='overwrite what is there')


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError('one thread at least')
    return count


def run(arguments) -> None:
    """Write the files and print their sizes and errors."""
    from minicpmo_ros.models.quantize import QuantizeOptions

    options = QuantizeOptions(
        [Rule.parse(text) for text in arguments.rule],
        not arguments.no_pad,
        arguments.threads,
        arguments.force,
    )
    if arguments.report:
        print('| tensor | shape | was | is | was MiB | is MiB | error % |')
        print('|---|---|---|---|---:|---:|---:|')
    if arguments.source.is_dir():
        _run_directory(arguments, options)
    else:
        _run_file(arguments, options)


def _run_directory(arguments, options) -> None:
    from minicpmo_ros.models.quantize import quantize_directory

    precisions = {role: getattr(arguments, role) or arguments.type for role in ROLES}
    precisions = {role: name for role, name in precisions.items() if name}
    if not precisions and not options.rules:
        raise InputError('Nothing is to change: give --llm, --vision, --audio, --type or --rule.')
    model, reports = quantize_directory(
        arguments.source, arguments.target, precisions, options, _teller(arguments)
    )
    for role in ROLES:
        _print_summary(model.headers[role].path, model.precision[role], reports[role])


def _run_file(arguments, options) -> None:
    from minicpmo_ros.models.quantize import quantize_file

    if any(getattr(arguments, role) for role in ROLES):
        raise InputError('--llm, --vision and --audio are for directories; give --type.')
    precision = arguments.type or ('keep' if options.rules else None)
    if not precision:
        raise InputError('Nothing is to change: give --type or --rule.')
    tell = _teller(arguments)
    reports = quantize_file(
        arguments.source, arguments.target, precision, options, lambda report: tell('', report)
    )
    _print_summary(arguments.target, precision, reports)


def _teller(arguments):
    """Return what tells of each tensor when it is done: a row of the table, or its name."""

    def row(_, report) -> None:
        print(
            f'| {report.name} | {"x".join(map(str, report.shape))} | {report.old_type.name} '
            f'| {report.new_type.name} | {report.old_bytes / 2**20:.2f} '
            f'| {report.new_bytes / 2**20:.2f} | {100 * report.relative_error:.3f} |'
        )

    def progress(role, report) -> None:
        if sys.stderr.isatty():
            print(f'\r{role} {report.name}\033[K', end='\r', file=sys.stderr, flush=True)

    return row if arguments.report else progress


def _print_summary(path, precision: str, reports: list) -> None:
    from minicpmo_ros.models.quantize import overall_error

    old, new = (
        sum(getattr(report, name) for report in reports) / 2**20
        for name in ('old_bytes', 'new_bytes')
    )
    print(
        f'{path}  {precision}  {old:.1f} -> {new:.1f} MiB  '
        f'error {100 * overall_error(reports):.2f} %'
    )
