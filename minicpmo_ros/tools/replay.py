# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Ask a model all questions about bags, into a folder that a killed run goes on with.

The same files give the same answers, byte for byte, whatever the number of workers. `report`
scores and compares such folders.
"""

import re
import sys
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.tools.asking import add_topic_arguments, count
from minicpmo_ros.tools.model_path import HELP, model_path

SUMMARY = 'ask a model about bags; goes on where it was killed'
OPTIONS = (
    'device', 'threads', 'prompt', 'n_ctx', 'kv_type', 'window_policy', 'max_tokens',
    'max_question_tokens', 'max_tiles', 'unchanged_threshold',
)  # fmt: skip


def add_arguments(parser) -> None:
    """Declare the options."""
    parser.add_argument('model', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        'questions', type=Path, metavar='FILE', help='JSON or YAML beside its bags'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='of the run')
    parser.add_argument(
        '--runner',
        choices=('offline', 'graph'),
        default='offline',
        help='offline: without ROS, as fast as it goes; graph: the installed nodes, by topics and '
        'services, in lock-step with simulated time',
    )
    parser.add_argument(
        '--bag',
        type=Path,
        metavar='BAG',
        help='a folder the bags are in, or a single one to ask about; default: beside FILE',
    )
    add_topic_arguments(parser)
    parser.add_argument('--workers', type=count, default=1, help='processes; each loads the model')
    parser.add_argument(
        '--gpus',
        type=_numbers,
        default=(),
        metavar='LIST',
        help='numbers of GPUs that the workers take in turn, one each (CUDA_VISIBLE_DEVICES)',
    )
    parser.add_argument(
        '--record',
        choices=('', 'answers', 'all'),
        default='',
        help='with --runner graph: write the answers into bags in FOLDER/bags; all: what was '
        'played beside them',
    )
    parser.add_argument('--limit', type=count, metavar='N', help='ask only the first N')
    parser.add_argument(
        '--device', choices=('auto', 'cpu', 'gpu'), default='auto', help='of the model'
    )
    parser.add_argument('--threads', type=count, default=2, help='of each worker, on the CPU')
    parser.add_argument('--n-ctx', type=count, default=4096, help='positions of the context')
    parser.add_argument('--kv-type', choices=('f16', 'q8_0'), default='f16', help='of the cache')
    parser.add_argument(
        '--window-policy', choices=('recent', 'long'), default='recent', help='of a full context'
    )
    parser.add_argument(
        '--unchanged-threshold',
        type=float,
        default=8.0,
        help='a picture as like the last one is not encoded again; of 255, 0: encode all',
    )
    parser.add_argument('--max-tokens', type=count, default=16, help='of an answer')
    parser.add_argument('--max-question-tokens', type=count, default=384, help='of a question')
    parser.add_argument('--max-tiles', type=count, default=1, help='of a picture')
    parser.add_argument('--prompt', default='en', help='layout of the prompt: en or zh')
    parser.add_argument(
        '--audio',
        choices=('streaming', 'offline'),
        default='streaming',
        help='spectrum by second or window',
    )
    parser.add_argument(
        '--input', choices=('all', 'no_picture', 'no_sound'), default='all', help='senses given'
    )


def run(arguments) -> None:
    """Answer what has not been answered; progress, and what has no answer, go to stderr."""
    from minicpmo_ros.evaluation import replay
    from minicpmo_ros.evaluation.clips import Sources
    from minicpmo_ros.evaluation.questions import QuestionSet
    from minicpmo_ros.evaluation.results import Results, Run
    from minicpmo_ros.evaluation.runner import CoreOptions, Variant
    from minicpmo_ros.models.directory import ModelDirectory

    questions = QuestionSet.read(arguments.questions, arguments.bag)
    if arguments.limit:
        questions = questions.first(arguments.limit)
    options = CoreOptions(**{name: getattr(arguments, name) for name in OPTIONS})
    variant = Variant(arguments.input, arguments.audio)
    sources = Sources(arguments.image_topic, arguments.audio_topic)
    plan = replay.Plan(ModelDirectory.open(arguments.model), questions, options, variant, sources)
    open_answerer = _answerer(arguments, variant)
    path = 'graph' if arguments.runner == 'graph' else 'core'
    results = Results(arguments.out, plan.facts(path))
    if results.done:
        print(f'{len(results.done)} questions were answered before', file=sys.stderr)
    workers = replay.Workers(arguments.workers, tuple(arguments.gpus))
    try:
        replay.run(plan, results, open_answerer, workers, _tell)
    finally:
        results.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)
    for sentence in Run.read(arguments.out).summary():
        print(sentence, file=sys.stderr)


def _answerer(arguments, variant):
    """Give what makes the one who answers, in every worker."""
    if arguments.runner == 'offline':
        from minicpmo_ros.evaluation.replay import CoreAnswerer
        from minicpmo_ros.nodes.memory import pss_mib

        if arguments.record:
            raise InputError('--record is for --runner graph, which has messages to record.')
        return partial(CoreAnswerer, memory_mib=pss_mib)
    from minicpmo_ros.nodes.graph_replay import GraphAnswerer, check
    from minicpmo_ros.nodes.spinning import stay_on_this_machine

    stay_on_this_machine()
    check(variant, arguments.record)
    return partial(GraphAnswerer, folder=arguments.out / 'bags', record=arguments.record)


def _tell(progress) -> None:
    if sys.stderr.isatty() or progress.done % 100 == 0 or progress.done == progress.total:
        end = '' if sys.stderr.isatty() else '\n'
        print(f'\r{progress} ', end=end, file=sys.stderr, flush=True)


def _numbers(text: str) -> list:
    if not re.fullmatch(r'\d+(,\d+)*', text):
        raise ArgumentTypeError(f'{text!r}; numbers of GPUs are expected, such as 0,1')
    return text.split(',')
