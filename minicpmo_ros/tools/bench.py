# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Measure what model directories cost on this machine.

Tables of a live second by its parts, first token, decode speed, memory, the ratios by which the
design is judged, and how best to hold the weights. Times are CPU time with one thread, so that
other load does not count; with more, or on a GPU, they are those that pass. The ratios against
llama-cpp-python's loop, libmtmd and PyTorch need the source tree: make bench.
"""

import argparse
import json
import sys
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'measure time and memory of model directories'
CONFIGURATION = 'configuration'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('directories', type=model_path, nargs='+', metavar='DIR', help=HELP)
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures there')
    add_measuring(parser)


def add_measuring(parser) -> None:
    """Declare how is measured."""
    parser.add_argument(
        '--device', choices=('cpu', 'gpu'), default='cpu', help='where the model runs'
    )
    parser.add_argument('--threads', type=_count, default=1, help='of computation on the CPU')
    parser.add_argument('--n-ctx', type=_count, default=4096, help='positions of the context')
    parser.add_argument(
        '--kv-type', choices=('f16', 'q8_0'), default='f16', help='of keys and values'
    )
    parser.add_argument('--repack', action='store_true', help='repack the language model')
    parser.add_argument(
        '--pairs', type=_count, default=20, help='of a ratio; fewer of what takes longer'
    )
    parser.add_argument('--units', type=_count, default=7, help='live seconds that count')
    parser.add_argument(
        '--only',
        type=lambda text: tuple(text.split(',')),
        metavar='LIST',
        help=f'of {CONFIGURATION} (the parts of a second, tokens, memory) and the ratios; all '
        'where it is not given',
    )
    parser.add_argument('--tokens', type=_tokens, default=16, help='of an answer')


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError('1 or more is expected')
    return count


def _tokens(text: str) -> int:
    count = _count(text)
    if not 2 <= count <= 64:
        raise argparse.ArgumentTypeError('2 to 64 are expected')
    return count


def run(arguments) -> None:
    """Measure and print."""
    measure_all(arguments, lambda model, options: {}, f'minicpmo {" ".join(sys.argv[1:])}')


def measure_all(arguments, baselines_of, command: str):
    """Measure all directories, print and write; give the Report.

    baselines_of(model, options) gives what measure_ratios calls baselines. Ratios are taken of the
    first directory of a shape.
    """
    from minicpmo_ros.evaluation.bench import BenchOptions
    from minicpmo_ros.evaluation.bench_report import (
        RATIOS,
        Report,
        describe,
        measure,
        measure_ratios,
    )
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.nodes.memory import pss_mib
    from minicpmo_ros.tools.machine import machine_facts

    a = arguments
    options = BenchOptions(
        a.device, a.threads, a.n_ctx, a.kv_type, a.repack, a.pairs, a.units, tokens=a.tokens
    )
    models = [ModelDirectory.open(directory) for directory in a.directories]
    report = Report(machine_facts(), options, command)
    a.only = a.only or (CONFIGURATION, *RATIOS)
    unknown = set(a.only) - {CONFIGURATION, *RATIOS}
    if unknown:
        raise InputError(
            f'--only names {", ".join(sorted(unknown))}; known are '
            f'{", ".join((CONFIGURATION, *RATIOS))}.'
        )
    wanted = tuple(name for name in RATIOS if name in a.only)
    for model in models:
        entry, ratios = describe(model), None
        if CONFIGURATION in a.only:
            entry.update(measure(model, options, pss_mib))
        if wanted and entry['shape'] not in report.data['ratios']:
            ratios = measure_ratios(model, options, baselines_of(model, options), wanted, _tell)
        report.add(f'{model.path} ({"/".join(model.precision.values())})', entry, ratios)
        if a.json:
            write(report, a.json)  # what is measured is kept, whatever comes
    print(report.markdown(), end='')
    return report


def _tell(name: str, found) -> None:
    """Tell how far it is: a ratio takes minutes where the machine is small."""
    print(f'{name}: {getattr(found, "value", found)}', file=sys.stderr, flush=True)


def write(report, path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.data, indent=1) + '\n')
