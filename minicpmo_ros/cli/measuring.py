# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs that measure a model: bench (time and memory), score and report (right answers)."""

import argparse
import json
import re
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
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
from minicpmo_ros.documents import make_folder, make_place, write_text
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AUDIO, INPUTS
from minicpmo_ros.verbs.arguments import number_of

CONFIGURATION = 'configuration'


def add_bench_arguments(parser) -> None:
    """Declare the options of `bench`."""
    parser.add_argument('directories', type=model_path, nargs='+', metavar='DIR', help=HELP)
    parser.add_argument(
        '--json', type=Path, metavar='OUT', help='write the figures into this file'
    )
    add_measuring(parser)


def add_measuring(parser) -> None:
    """Declare how is measured."""
    parser.add_argument(
        '--device', choices=('cpu', 'gpu'), default='cpu', help='where the model runs'
    )
    parser.add_argument('--threads', type=count, default=1, help='CPU threads that compute')
    parser.add_argument(
        '--n-ctx', type=count, default=4096, help='size of the context in positions'
    )
    parser.add_argument(
        '--kv-type', choices=('f16', 'q8_0'), default='f16', help='type of keys and values'
    )
    parser.add_argument('--repack', action='store_true', help='repack the language model')
    parser.add_argument(
        '--pairs',
        type=count,
        default=20,
        help='repetitions of each ratio; fewer for long measurements',
    )
    parser.add_argument('--units', type=count, default=7, help='live seconds that are counted')
    parser.add_argument(
        '--only',
        type=lambda text: tuple(text.split(',')),
        metavar='LIST',
        help=f'of {CONFIGURATION} (the parts of a second, tokens, memory) and the ratios; all '
        'where it is not given',
    )
    parser.add_argument('--tokens', type=_tokens, default=16, help='tokens of an answer')


def _tokens(text: str) -> int:
    n_tokens = count(text)
    if not 2 <= n_tokens <= 64:
        raise argparse.ArgumentTypeError('2 to 64 are expected')
    return n_tokens


def run_bench(arguments) -> None:
    """Measure the time and memory of model directories on this machine.

    Prints tables of a live second by its parts, the first token, decode speed, memory, the ratios
    by which the design is judged, and the best layout of the weights. With one thread, times are
    CPU times, so that other load does not count; with more threads, or on a GPU, they are wall
    times. The ratios against llama-cpp-python's loop, libmtmd and PyTorch need the source tree:
    make bench.
    """
    measure_all(arguments, lambda model, options: {}, f'minicpmo {" ".join(sys.argv[1:])}')


def measure_all(arguments, baselines_of, command: str):
    """Measure all directories, print and write; give the Report.

    baselines_of(model, options) gives what measure_ratios calls baselines. Ratios are taken of the
    first directory of a shape.
    """
    from minicpmo_ros.evaluation.bench.bench import BenchOptions
    from minicpmo_ros.evaluation.bench.report import (
        RATIOS,
        BenchReport,
        describe,
        measure,
        measure_ratios,
    )
    from minicpmo_ros.memory.proc import pss_mib
    from minicpmo_ros.modelset.directory import ModelDirectory
    from minicpmo_ros.ros.framework.machine import machine_facts

    a = arguments
    options = BenchOptions(
        a.device, a.threads, a.n_ctx, a.kv_type, a.repack, a.pairs, a.units, tokens=a.tokens
    )
    models = [ModelDirectory.open(directory) for directory in a.directories]
    if a.json:
        make_place(a.json, b'{')
    report = BenchReport(machine_facts(), options, command)
    only = _checked_only(a.only, (CONFIGURATION, *RATIOS))
    wanted = tuple(name for name in RATIOS if name in only)
    for model in models:
        entry, ratios = describe(model), None
        if CONFIGURATION in only:
            entry.update(measure(model, options, pss_mib))
        if wanted and entry['shape'] not in report.data['ratios']:
            ratios = measure_ratios(model, options, baselines_of(model, options), wanted, _tell)
        report.add(f'{model.path} ({"/".join(model.precision.values())})', entry, ratios)
        if a.json:
            write(report, a.json)  # what is measured is kept, whatever comes
    print(report.markdown(), end='')
    return report


def _checked_only(only, known: tuple) -> tuple:
    """Return what is to be measured, all if nothing is named; InputError for what is not known."""
    unknown = set(only or ()) - set(known)
    if unknown:
        raise InputError(
            f'--only names {", ".join(sorted(unknown))}; known are {", ".join(known)}.'
        )
    return only or known


def _tell(name: str, found) -> None:
    """Print progress: a ratio takes minutes on a small machine."""
    print(f'{name}: {getattr(found, "value", found)}', file=sys.stderr, flush=True)


def write(report, path: Path) -> None:
    """Write the figures as JSON."""
    write_text(path, json.dumps(report.data, indent=1) + '\n')


def add_score_arguments(parser) -> None:
    """Declare the options of `score`."""
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
        help=f'of {",".join(INPUTS)}: with images blanked, with audio removed',
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
        help='also score these answers, which were given by another path: a file, or the '
        'folder of a replay; may be repeated',
    )
    parser.add_argument(
        '--save', type=Path, metavar='FOLDER', help='write all answers into files in this folder'
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the report into this file')
    add_asking_arguments(parser)


def run_score(arguments) -> None:
    """Ask a model about clips whose answers are known, through the engine without ROS.

    Prints accuracy by family, window and input, and how often the answers equal those of an f32
    model among the directories. The same files give the same answers each time.
    """
    from minicpmo_ros.evaluation.answers import AnswerSet, markdown, report, short_names
    from minicpmo_ros.evaluation.results import Run
    from minicpmo_ros.modelset.directory import ModelDirectory

    if not arguments.directories and not arguments.answers:
        raise InputError('Nothing to score was given. Give model directories, or --answers.')
    if arguments.json:
        make_place(arguments.json, b'{')
    if arguments.save:
        make_folder(arguments.save)
    questions = asked_questions(arguments)
    imported = [
        Run.read(given).answer_set() if given.is_dir() else AnswerSet.read(given)
        for given in arguments.answers
    ]
    names = short_names([*arguments.directories, *arguments.answers])
    imported = [
        replace(answers, name=answers.name or name)
        for answers, name in zip(imported, names[len(arguments.directories) :])
    ]
    models = [ModelDirectory.open(directory) for directory in arguments.directories]
    given = [
        replace(answers, name=name if len(names) > 1 else '')
        for model, name in zip(models, names)
        for answers in _answers(model, questions, arguments)
    ]
    if arguments.save:
        for answers in given:
            answers.write(arguments.save / f'{re.sub("[ /]", "-", answers.title)}.json')
    found = report(questions, given + imported)
    print(markdown(found), end='')
    if arguments.json:
        write_text(arguments.json, json.dumps(found, indent=1) + '\n')


def _answers(model, questions, arguments) -> list:
    from minicpmo_ros.evaluation.looks import with_room
    from minicpmo_ros.evaluation.runner import Core, Variant, answer_all

    variants = [
        Variant(name, audio)
        for audio in arguments.audio
        for name in arguments.inputs
        if audio == 'streaming' or name == 'all'
    ]
    options = with_room(core_options(arguments), questions.questions, model.headers['vision'])
    core = Core(model, options)
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


def add_report_arguments(parser) -> None:
    """Declare the options of `report`."""
    parser.add_argument(
        'runs',
        type=Path,
        nargs='+',
        metavar='RUN',
        help='folders of runs; NAME=FOLDER gives a run a name',
    )
    parser.add_argument(
        '--questions',
        type=Path,
        required=True,
        metavar='FILE',
        help='the questions that were asked',
    )
    parser.add_argument(
        '--bag',
        type=Path,
        metavar='BAG',
        help='as it was given to replay; default: the folder of FILE',
    )
    _add_page_arguments(parser)
    parser.add_argument(
        '--fail-under',
        type=_percent,
        metavar='PERCENT',
        help='exit with status 1 if the last run has a smaller percentage of right answers',
    )


def _add_page_arguments(parser) -> None:
    """Declare what `report` writes."""
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='PAGE.html',
        help='page to write; .md, .csv and .table.csv are written to the same folder',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='FOLDER',
        help='also write a folder for each run, in the formats of lm-evaluation-harness '
        '(results_*.json, samples_*.jsonl) and inspect_ai (a log)',
    )
    parser.add_argument('--title', default='Replay', help='title of the page')


def run_report(arguments) -> int:
    """Score runs over the same questions and compare them with the first run.

    Writes one HTML page that needs no network, a Markdown file with the same tables, and a CSV
    file with a row for each question. The shares alone, in the shape of StreamingBench's published
    tables, go to PAGE.table.csv. The exit status is 1 if the last run has no answer at all, or is
    below --fail-under.
    """
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.report.comparison import judge
    from minicpmo_ros.evaluation.report.runs import RunReport

    if arguments.out.suffix.lower() not in ('.html', '.htm'):
        raise InputError(
            f'--out is {arguments.out}; a name that ends in .html is expected. The other files '
            'are written beside it.'
        )
    make_place(arguments.out, b'<')
    if arguments.json:
        make_folder(arguments.json)
    read = _read_runs(arguments.runs)
    questions = QuestionSet.read(arguments.questions, arguments.bag, needs_clips=False)
    questions = read[0][1].of(questions)
    report = RunReport(questions, [judge(name, one, questions) for name, one in read])
    _write_report(report, arguments)
    return _status(report, arguments.fail_under)


def _write_report(report, arguments) -> None:
    """Write the page and the files beside it; print its tables."""
    from minicpmo_ros.evaluation.report import interchange, page, runs

    told = runs.markdown(report)
    write_text(arguments.out, page.html(report, arguments.title))
    write_text(arguments.out.with_suffix('.md'), told)
    write_text(arguments.out.with_suffix('.csv'), runs.as_csv(report))
    write_text(arguments.out.with_suffix('.table.csv'), runs.table_csv(report))
    if arguments.json:
        interchange.write(report, arguments.json)
    print(told, end='')


def _read_runs(given: list) -> list:
    """Return [(name, Run)] of the options; InputError where two have one name."""
    from minicpmo_ros.evaluation.results import Run

    read = [
        (name, Run.of_answers(run) if run.is_file() else Run.read(run))
        for name, run in map(_named, given)
    ]
    names = [name for name, _ in read]
    if len(set(names)) < len(names):
        raise InputError(f'Two runs are named alike: {", ".join(names)}. Give NAME=RUN.')
    return read


def _status(report, fail_under: float | None) -> int:
    """Return the exit status; print on stderr why a build should fail."""
    last, share = report.runs[-1], 100 * report.total[-1].right.share
    if last.run.texts and last.run.is_empty:
        print(f'{last.name} has no answer to any question.', file=sys.stderr)
        return 1
    if fail_under is not None and share < fail_under:
        print(
            f'{last.name}: {share:.1f} % are right, fewer than {fail_under:g} %.', file=sys.stderr
        )
        return 1
    return 0


def _percent(text: str) -> float:
    value = number_of(text)
    if not 0 <= value <= 100:
        raise ArgumentTypeError(f'{text} is given, 0 to 100 are expected')
    return value


def _named(argument: Path) -> tuple:
    name, given, run = str(argument).rpartition('=')
    own = argument.stem if argument.is_file() else argument.resolve().name
    return (name, Path(run)) if given else (own, argument)
