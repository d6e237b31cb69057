# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs that make a model smaller: quantize, importance and search."""

import os
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from functools import partial
from pathlib import Path

from minicpmo_ros.cli.options import (
    HELP,
    add_asking_arguments,
    asked_questions,
    core_options,
    count,
    end_progress,
    model_path,
    progress,
)
from minicpmo_ros.config import PARTS
from minicpmo_ros.errors import InputError
from minicpmo_ros.quantize.rules import LADDER, TYPES, Rule
from minicpmo_ros.verbs.arguments import number_of

PRINTED = Path('-')
OF_ALL = '--type, --rule or --rules'


def add_quantize_arguments(parser) -> None:
    """Declare the options of `quantize`."""
    parser.add_argument(
        'source',
        type=model_path,
        metavar='FILE|DIR',
        help=f'a GGUF file of a model, or a {HELP}',
    )
    parser.add_argument(
        'target', type=Path, metavar='FILE|DIR', help='the file or directory to write'
    )
    _add_rule_arguments(parser)
    parser.add_argument(
        '--importance',
        type=Path,
        metavar='FILE',
        help="importance of the columns, as `minicpmo importance` or llama.cpp's imatrix "
        'writes it',
    )
    parser.add_argument(
        '--report',
        type=Path,
        nargs='?',
        const=PRINTED,
        metavar='FILE',
        help='print every tensor (types, sizes, relative error), or write this to '
        'FILE.json or FILE.md',
    )
    parser.add_argument(
        '--threads',
        type=count,
        default=len(os.sched_getaffinity(0)),
        help='threads that quantise; the result does not depend on their number',
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite an existing file or directory'
    )


def _add_rule_arguments(parser) -> None:
    """Declare what says which tensor gets which type."""
    parser.add_argument(
        '--no-pad',
        action='store_true',
        help='store rows of the vision '
        'feed-forward that no block fits in f16 instead of widening them with '
        'zeros, for use with stock llama.cpp',
    )
    parser.add_argument(
        '--type',
        choices=TYPES,
        metavar='TYPE',
        help=f'precision of the file, or of every file of a directory: {", ".join(TYPES)}',
    )
    for part in PARTS:
        parser.add_argument(
            f'--{part}',
            choices=TYPES,
            metavar='TYPE',
            help=f'precision of the {part} file of a directory; without it and --type as it is',
        )
    parser.add_argument(
        '--rule',
        action='append',
        default=[],
        metavar='PATTERN=TYPE',
        help="for example 'blk.*.attn_v.weight=q8_0'; may be given several times; the "
        'first rule that fits a tensor decides',
    )
    parser.add_argument(
        '--rules',
        type=Path,
        metavar='FILE',
        help='YAML file with types and rules for each network, such as '
        'docs/quantization_rules.yaml',
    )
    parser.add_argument(
        '--write-rules', type=Path, metavar='FILE', help='save the types and rules of this run'
    )


def run_quantize(arguments) -> None:
    """Write a model file or a model directory in another precision.

    Layers that a model depends on most keep more bits than --type says. --rule overrides this,
    tensor by tensor, and comes before the rules of --rules. Rules apply to tensors of two and more
    dimensions whose names end in '.weight'.
    """
    from minicpmo_ros.documents import require_place
    from minicpmo_ros.quantize.importance import Importance
    from minicpmo_ros.quantize.quantizer import QuantizeOptions
    from minicpmo_ros.quantize.report import HEAD, check_path, write_report
    from minicpmo_ros.quantize.rules import RulesFile

    for path in (arguments.write_rules, arguments.report):
        if path not in (None, PRINTED) and path.parent != arguments.target:  # which is made
            require_place(path)
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
    from minicpmo_ros.quantize.quantizer import quantize_directory

    precisions = {
        part: getattr(arguments, part) or arguments.type or filed.precisions.get(part)
        for part in PARTS
    }
    precisions = {part: name for part, name in precisions.items() if name}
    if not precisions and not options.rules:
        raise InputError(f'Nothing is to change: give --llm, --vision, --audio, {OF_ALL}.')
    model, reports = quantize_directory(
        arguments.source, arguments.target, precisions, options, _teller(arguments)
    )
    for part in PARTS:
        _print_summary(model.headers[part].path, model.precision[part], reports[part])
    return model.headers, precisions, reports


def _run_file(arguments, options, filed) -> tuple:
    from minicpmo_ros.ggml.gguf_file import read_header
    from minicpmo_ros.modelset.directory import part_of
    from minicpmo_ros.quantize.quantizer import quantize_file

    if any(getattr(arguments, part) for part in PARTS):
        raise InputError('--llm, --vision and --audio are for directories; give --type.')
    part = part_of(read_header(arguments.source))
    # A file of rules may speak of the other networks too.
    own = [rule for rule in options.rules if rule.part in ('', part)]
    precision = arguments.type or filed.precisions.get(part) or ('keep' if own else None)
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
    headers = {part: read_header(arguments.target)}
    return headers, {part: precision}, {arguments.target.name: reports}


def _teller(arguments):
    """Return what tells of each tensor when it is done: a row of the table, or its name."""
    from minicpmo_ros.quantize.report import row

    def progress(part, report) -> None:
        if sys.stderr.isatty():
            print(f'\r{part} {report.name}\033[K', end='\r', file=sys.stderr, flush=True)

    if arguments.report == PRINTED:
        return lambda _, report: print(row(report))
    return progress


def _print_summary(path, precision: str, reports: list) -> None:
    from minicpmo_ros.quantize.quantizer import overall_error

    old, new = (
        sum(getattr(report, name) for report in reports) / 2**20
        for name in ('old_bytes', 'new_bytes')
    )
    print(
        f'{path}  {precision}  {old:.1f} -> {new:.1f} MiB  '
        f'error {100 * overall_error(reports):.2f} %'
    )


def add_importance_arguments(parser) -> None:
    """Declare the options of `importance`."""
    parser.add_argument(
        'directory',
        type=model_path,
        metavar='DIR',
        help=f'{HELP}, in as high a precision as there is',
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FILE', help='the .gguf file to write'
    )
    add_asking_arguments(parser)


def run_importance(arguments) -> None:
    """Run a model over clips and record how strongly each column of its weights is used.

    `minicpmo quantize --importance FILE` then spends its bits on the columns that matter.
    llama.cpp's own tools read the file too.
    """
    from minicpmo_ros.documents import require_other, require_place
    from minicpmo_ros.evaluation.precision_search import collect
    from minicpmo_ros.modelset.directory import ModelDirectory

    require_place(arguments.out)
    model, questions = ModelDirectory.open(arguments.directory), asked_questions(arguments)
    require_other(arguments.out, model.llm_path, model.vision_path, model.audio_path)
    importance = collect(model, questions, core_options(arguments), progress(model.path))
    end_progress()
    importance.write(arguments.out)
    print(
        f'{arguments.out}  {len(importance.names)} tensors from '
        f'{len(questions.questions)} questions'
    )


def add_search_arguments(parser) -> None:
    """Declare the options of `search`."""
    parser.add_argument('directory', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        '--agreement',
        type=_share,
        default=0.98,
        metavar='SHARE',
        help='share of the answers that must be the same text',
    )
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='FILE',
        help='YAML file of rules to write; FILE.json keeps what was asked, delete it to '
        'start again',
    )
    parser.add_argument(
        '--types',
        type=_types,
        default=LADDER,
        metavar='LIST',
        help="types to choose from; if rows do not fit a type, llama.cpp's substitute is used",
    )
    parser.add_argument(
        '--evaluations', type=count, default=40, metavar='N', help='ask at most N sets of types'
    )
    parser.add_argument(
        '--importance', type=Path, metavar='FILE', help='file that `minicpmo importance` wrote'
    )
    add_asking_arguments(parser)


def _share(text: str) -> float:
    share = number_of(text)
    if not 0 <= share <= 1:
        raise ArgumentTypeError('0 to 1 is expected')
    return share


def _types(text: str) -> tuple:
    names = tuple(dict.fromkeys(text.split(',')))
    allowed = [name for name in TYPES if name != 'keep']
    if not set(names) <= set(allowed):
        raise ArgumentTypeError(f'{text!r} is not a list of {",".join(allowed)}')
    return names


def run_search(arguments) -> None:
    """Find the smallest types with which a model still gives the same answers.

    Reduces kinds of tensors one after the other, those with the smallest error first. Every set of
    types that it accepts was written, loaded and asked. The best set so far is always in the rules
    file, for `minicpmo quantize --rules`. A search that was stopped resumes.
    """
    from minicpmo_ros.evaluation.precision_search import Journal, Search, facts_of
    from minicpmo_ros.modelset.directory import ModelDirectory
    from minicpmo_ros.quantize.importance import Importance
    from minicpmo_ros.quantize.quantizer import QuantizeOptions
    from minicpmo_ros.quantize.report import measured_groups

    out = arguments.out
    if out.suffix not in ('.yaml', '.yml') or not out.parent.is_dir():
        raise InputError(f'{out} must be a .yaml in a folder that exists.')
    model, questions = ModelDirectory.open(arguments.directory), asked_questions(arguments)
    importance = arguments.importance and Importance.read(arguments.importance)
    quantizing = QuantizeOptions(threads=arguments.threads, importance=importance)
    groups = measured_groups(model, arguments.types, quantizing, out.parent, _tell_measuring)
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
    search.rules(search.best).write(out)
    best = search.run(arguments.evaluations, partial(_keep_and_tell, search, out))
    print(
        f'{out}  {whole / 2**20:.2f} -> {best.size_bytes / 2**20:.2f} MiB, same answers '
        f'{100 * best.agreement:.1f} % of {len(questions.questions)} questions, '
        f'{search.n_tried} sets of types asked'
    )


def _tell_measuring(precision: str) -> None:
    print(f'measuring the error of {precision}', flush=True)


def _keep_and_tell(search, out: Path, tried, accepted: bool) -> None:
    """Write the rules of the best set of types so far, and print what was tried."""
    if tried is search.best:
        search.rules(tried).write(out)
    print(
        f'{search.n_tried:3} {tried.size_bytes / 2**20:9.2f} MiB  same answers '
        f'{100 * tried.agreement:5.1f} %  {"accepted" if accepted else "refused"}; best '
        f'{search.best.size_bytes / 2**20:.2f} MiB',
        flush=True,
    )
