# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Ask a model all questions about bags, into a folder that a killed run goes on with.

The same files give the same answers, byte for byte, whatever the number of workers. `report`
scores and compares such folders.
"""

import hashlib
import sys
from pathlib import Path

SUMMARY = 'ask a model about bags; goes on where it was killed'


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('model', type=Path, metavar='DIR', help='a model directory')
    parser.add_argument(
        'questions', type=Path, metavar='FILE', help='JSON or YAML beside its bags'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='of the run')
    parser.add_argument('--workers', type=int, default=1, help='processes; each loads the model')
    parser.add_argument('--limit', type=int, metavar='N', help='ask only the first N')
    parser.add_argument(
        '--device', choices=('auto', 'cpu', 'gpu'), default='auto', help='of the model'
    )
    parser.add_argument('--threads', type=int, default=2, help='of each worker, on the CPU')
    parser.add_argument('--n-ctx', type=int, default=4096, help='positions of the context')
    parser.add_argument('--kv-type', choices=('f16', 'q8_0'), default='f16', help='of the cache')
    parser.add_argument('--max-tokens', type=int, default=16, help='of an answer')
    parser.add_argument('--max-tiles', type=int, default=1, help='of a picture')
    parser.add_argument('--prompt', default='en', help='layout of the prompt: en or zh')
    parser.add_argument(
        '--audio',
        choices=('streaming', 'offline'),
        default='streaming',
        help='spectrum by second or clip',
    )
    parser.add_argument(
        '--input', choices=('all', 'no_picture', 'no_sound'), default='all', help='senses given'
    )


def run(arguments) -> None:
    """Answer what has not been answered, with progress on stderr."""
    from minicpmo_ros.evaluation import replay
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.results import Results
    from minicpmo_ros.evaluation.runner import CoreOptions, Variant
    from minicpmo_ros.models.directory import ModelDirectory
    from minicpmo_ros.nodes.memory import pss_mib

    questions = QuestionSet.read(arguments.questions)
    if arguments.limit:
        questions = questions.first(arguments.limit)
    names = ('device', 'threads', 'prompt', 'n_ctx', 'kv_type', 'max_tokens', 'max_tiles')
    options = CoreOptions(**{name: getattr(arguments, name) for name in names})
    variant = Variant(arguments.input, arguments.audio)
    plan = replay.Plan(ModelDirectory.open(arguments.model), questions, options, variant)
    digest = hashlib.sha256(arguments.questions.read_bytes()).hexdigest()
    results = Results(arguments.out, plan.facts(digest))
    if results.done:
        print(f'{len(results.done)} questions were answered before', file=sys.stderr)
    try:
        replay.run(plan, results, arguments.workers, pss_mib, _tell)
    finally:
        results.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _tell(progress) -> None:
    if sys.stderr.isatty() or progress.done % 100 == 0 or progress.done == progress.total:
        end = '' if sys.stderr.isatty() else '\n'
        print(
            f'\r{progress.done} of {progress.total} questions, {_duration(progress.left_s)} left ',
            end=end,
            file=sys.stderr,
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'
