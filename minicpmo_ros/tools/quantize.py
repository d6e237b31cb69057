# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write a model file or a model directory in another precision.

Layers that a model depends on most keep more bits than --type says; --rule overrides that, tensor
by tensor, and comes before the rules of --rules. Rules speak of tensors of two and more dimensions
whose names end in '.weight'.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.quantize_rules import TYPES, Rule
from minicpmo_ros.tools.asking import count
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'write model files in other precisions'
ROLES = ('llm', 'vision', 'audio')
PRINTED = Path('-')
OF_ALL = '--type, --rule or --rules'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'source',
        type=model_path,
        metavar='FILE|DIR',
        help=f'a GGUF file of a model, or a {HELP}',
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
        '--rules',
        type=Path,
        metavar='FILE',
        help='types and rules by network, in YAML; docs/quantization_rules.yaml is one',
    )
    parser.add_argument(
        '--write-rules', type=Path, metavar='FILE', help='save the types and rules of this run'
    )
    parser.add_argument(
        '--no-pad',
        action='store_true',
        help='store rows of the vision '
        'feed-forward that no block fits in f16 instead of widening them with '
        'zeros, for use with stock llama.cpp',
    )
    parser.add_argument(
        '--importance',
        type=Path,
        metavar='FILE',
        help="what columns count, as `minicpmo importance` or llama.cpp's imatrix writes it",
    )
    parser.add_argument(
        '--report',
        type=Path,
        nargs='?',
        const=PRINTED,
        metavar='FILE',
        help='print every tensor (types, sizes, relative error), or write that to FILE.json or '
        'FILE.md',
    )
    parser.add_argument(
        '--threads',
        type=count,
        default=len(os.sched_getaffinity(0)),
        help='the bytes written do not depend on it',
    )
    parser.add_argument('--force', action='store_true', help='overwrite what is there')


def run(arguments) -> None:
    """Write the files and print their sizes and errors."""
    from minicpmo_ros.models.appearing import require_folder
    from minicpmo_ros.models.importance import Importance
    from minicpmo_ros.models.quantize import QuantizeOptions
    from minicpmo_ros.models.quantize_report import HEAD, check_path, write_report
    from minicpmo_ros.models.rules_file import RulesFile

    for path in (arguments.write_rules, arguments.report):
        if path not in (None, PRINTED) and path.parent != arguments.target:  # which is made
            require_folder(path)
    filed = RulesFile.read(arguments.rules) if arguments.rules else RulesFile()
    options = QuantizeOptions(
        [*(Rule.parse(text) for text in arguments.rule), *filed.rules],
        not arguments.no_pad,
        arguments.threads,
        arguments.force,
        arguments.importance and Importance.read(arguments.importance),
    )
    if arguments.report == PRINTED:
        print(HEAD)
    elif arguments.report:
        check_path(arguments.report)
    of_kind = _run_directory if arguments.source.is_dir() else _run_file
    headers, precisions, reports = of_kind(arguments, options, filed)
    if arguments.write_rules:
        RulesFile.of_run(headers, precisions, options.rules).write(arguments.write_rules)
    if arguments.report not in (None, PRINTED):
        write_report(arguments.report, reports)


def _run_directory(arguments, options, filed) -> tuple:
    from minicpmo_ros.models.quantize import quantize_directory

    precisions = {
        role: getattr(arguments, role) or arguments.type or filed.precisions.get(role)
        for role in ROLES
    }
    precisions = {role: name for role, name in precisions.items() if name}
    if not precisions and not options.rules:
        raise InputError(f'Nothing is to change: give --llm, --vision, --audio, {OF_ALL}.')
    model, reports = quantize_directory(
        arguments.source, arguments.target, precisions, options, _teller(arguments)
    )
    for role in ROLES:
        _print_summary(model.headers[role].path, model.precision[role], reports[role])
    return model.headers, precisions, reports


def _run_file(arguments, options, filed) -> tuple:
    from minicpmo_ros.ggml.header import read_header
    from minicpmo_ros.models.directory import role_of
    from minicpmo_ros.models.quantize import quantize_file

    if any(getattr(arguments, role) for role in ROLES):
        raise InputError('--llm, --vision and --audio are for directories; give --type.')
    role = role_of(read_header(arguments.source))
    # A file of rules may speak of the other networks too.
    own = [rule for rule in options.rules if rule.role in ('', role)]
    precision = arguments.type or filed.precisions.get(role) or ('keep' if own else None)
    if not precision:
        raise InputError(f'Nothing is to change: give {OF_ALL}.')
    tell = _teller(arguments)
    reports = quantize_file(
        arguments.source,
        arguments.target,
        precision,
        replace(options, rules=own),
        lambda report: tell('', report),
    )
    _print_summary(arguments.target, precision, reports)
    headers = {role: read_header(arguments.target)}
    return headers, {role: precision}, {arguments.target.name: reports}


def _teller(arguments):
    """Return what tells of each tensor when it is done: a row of the table, or its name."""
    from minicpmo_ros.models.quantize_report import row

    def progress(role, report) -> None:
        if sys.stderr.isatty():
            print(f'\r{role} {report.name}\033[K', end='\r', file=sys.stderr, flush=True)

    if arguments.report == PRINTED:
        return lambda _, report: print(row(report))
    return progress


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
