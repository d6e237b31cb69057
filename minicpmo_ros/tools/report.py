# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Score runs over the same questions and compare them with the first.

Writes one HTML page that needs no network, a Markdown file with the same tables, and a CSV file
with a row a question; the shares alone, in the shape of StreamingBench's published tables, go to
PAGE.table.csv.
"""

from pathlib import Path

from minicpmo_ros.errors import InputError

SUMMARY = 'score and compare runs: an HTML page, Markdown, CSV'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument(
        'runs', type=Path, nargs='+', metavar='RUN', help='folders; NAME=FOLDER names one'
    )
    parser.add_argument(
        '--questions', type=Path, required=True, metavar='FILE', help='that were asked'
    )
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='PAGE.html',
        help='beside it: .md, .csv and .table.csv',
    )
    parser.add_argument(
        '--bag', type=Path, metavar='BAG', help='as it was given to replay; default: beside FILE'
    )
    parser.add_argument('--title', default='Replay', help='of the page')


def run(arguments) -> None:
    """Read, judge, write."""
    from minicpmo_ros.evaluation import page
    from minicpmo_ros.evaluation.comparison import judge
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.results import Run

    if arguments.out.suffix.lower() not in ('.html', '.htm'):
        raise InputError(
            f'--out is {arguments.out}; a name that ends in .html is expected. The other files '
            'are written beside it.'
        )
    read = [
        (name, Run.of_answers(run) if run.is_file() else Run.read(run))
        for name, run in map(_named, arguments.runs)
    ]
    names = [name for name, _ in read]
    if len(set(names)) < len(names):
        raise InputError(f'Two runs are named alike: {", ".join(names)}. Give NAME=RUN.')
    questions = QuestionSet.read(arguments.questions, arguments.bag, needs_clips=False)
    questions = questions.first(read[0][1].facts.get('count'))
    report = page.Report(questions, [judge(name, one, questions) for name, one in read])
    arguments.out.write_text(page.html(report, arguments.title), encoding='utf-8')
    tables = page.markdown(report)
    arguments.out.with_suffix('.md').write_text(tables, encoding='utf-8')
    arguments.out.with_suffix('.csv').write_text(page.as_csv(report), encoding='utf-8')
    arguments.out.with_suffix('.table.csv').write_text(page.table_csv(report), encoding='utf-8')
    print(tables, end='')


def _named(argument: Path) -> tuple:
    name, given, run = str(argument).rpartition('=')
    own = argument.stem if argument.is_file() else argument.resolve().name
    return (name, Path(run)) if given else (own, argument)
