# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Measure what model directories cost on this machine.

Tables of a live second by its parts, first token, decode speed, memory, the ratios by which the
design is judged, and how best to hold the weights. Times are those of the processor with one
thread, so that other load does not count; on a GPU they are those that pass. The ratios against
llama-cpp-python's loop, libmtmd and PyTorch need the source tree: make bench.
"""

import argparse
import json
import sys
from pathlib import Path

SUMMARY = 'measure time and memory of model directories'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'directories', type=Path, nargs='+', metavar='DIR', help='model directories'
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures there')
    parser.add_argument(
        '--no-ratios', action='store_true', help='leave out the ratios, which take longest'
    )
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
    from minicpmo_ros.evaluation.bench_report import Report, measure, measure_ratios
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.nodes.memory import pss_mib
    from minicpmo_ros.tools.machine import machine_facts

    a = arguments
    options = BenchOptions(
        a.device, a.threads, a.n_ctx, a.kv_type, a.repack, a.pairs, a.units, tokens=a.tokens
    )
    models = [ModelDirectory.open(directory) for directory in a.directories]
    report = Report(machine_facts(), options, command)
    for model in models:
        entry = measure(model, options, pss_mib)
        ratios = None
        if not a.no_ratios and entry['shape'] not in report.data['ratios']:
            baselines = baselines_of(model, options)
            ratios = measure_ratios(model, options, entry['unit_ms'], baselines)
        name = f'{model.path.name} ({"/".join(model.precision.values())})'
        report.add(name, entry, ratios)
        if a.json:
            write(report, a.json)  # what is measured is kept, whatever comes
    print(report.markdown(), end='')
    return report


def write(report, path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.data, indent=1) + '\n')
