# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The verbs replay, which asks a model questions about bags, and merge, which joins its shards."""

import re
import sys
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

from minicpmo_ros.cli import alerts
from minicpmo_ros.cli.options import (
    HELP,
    add_core_arguments,
    add_topic_arguments,
    all_core_options,
    count,
    model_path,
    sources_of,
)
from minicpmo_ros.errors import InputError


def add_replay_arguments(parser) -> None:
    """Declare the options of `replay`."""
    parser.add_argument('model', type=model_path, metavar='DIR', help=HELP)
    parser.add_argument(
        'questions', type=Path, metavar='FILE', help='JSON or YAML file in the folder of its bags'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='folder of the run'
    )
    parser.add_argument(
        '--alerts',
        type=Path,
        metavar='RULES',
        help='file of standing questions: follow them over the bags instead of asking, and '
        'compare with alerts_truth of FILE',
    )
    parser.add_argument(
        '--bag',
        type=Path,
        metavar='BAG',
        help='folder of the bags, or a single bag to ask about; default: the folder of FILE',
    )
    add_topic_arguments(parser)
    parser.add_argument('--limit', type=count, metavar='N', help='ask only the first N')
    _add_runner_arguments(parser)
    _add_share_arguments(parser)
    add_core_arguments(parser)
    _add_input_arguments(parser)


def _add_runner_arguments(parser) -> None:
    """Declare whether the live graph is asked, and what of it is written."""
    parser.add_argument(
        '--runner',
        choices=('offline', 'graph'),
        default='offline',
        help='offline: without ROS, as fast as possible; graph: the installed nodes, '
        'through topics and services, in lock-step with simulated time',
    )
    parser.add_argument(
        '--record',
        choices=('', 'answers', 'all'),
        default='',
        help='with --runner graph, write bags into FOLDER/bags. answers: the answers; '
        'all: also what was played',
    )


def _add_input_arguments(parser) -> None:
    """Declare what the model gets beside the question."""
    parser.add_argument(
        '--memory',
        default='',
        metavar='NOTES',
        help="file of notes for questions with asked_at_s, or 'oracle': the note that belongs to "
        'each; default: the window alone',
    )
    parser.add_argument(
        '--audio',
        choices=('streaming', 'offline'),
        default='streaming',
        help='streaming: encode second by second; offline: one spectrum of the whole window',
    )
    parser.add_argument(
        '--input',
        choices=('all', 'no_picture', 'no_sound'),
        default='all',
        help='inputs that the model gets',
    )


def _add_share_arguments(parser) -> None:
    """Declare who works on the run, and on how much of it."""
    parser.add_argument(
        '--workers', type=count, default=1, help='number of processes; each loads the model'
    )
    parser.add_argument(
        '--gpus',
        type=_numbers,
        default=(),
        metavar='LIST',
        help='numbers of the GPUs, which are assigned to the workers in turn '
        '(CUDA_VISIBLE_DEVICES)',
    )
    parser.add_argument(
        '--shard',
        metavar='I/N',
        help='ask only about the bags of shard I of N, from 0/N to N-1/N, in the folder '
        'FOLDER/shards/I-of-N; `merge` joins them',
    )
    parser.add_argument(
        '--cluster',
        metavar='ADDRESS',
        help='ask shards on a Ray cluster and join them: ray://HOST:10001, auto (the one of this '
        'machine), or local (one for this run)',
    )
    parser.add_argument(
        '--shards',
        type=count,
        metavar='N',
        help='with --cluster, into how many shards the run is cut; default: 64',
    )
    parser.add_argument(
        '--list-bags',
        action='store_true',
        help='print the bags that the questions, or those of the shard, are about, and end',
    )


def run_replay(arguments) -> int:
    """Ask a model all questions about bags; an interrupted run resumes in its folder.

    The same files give the same answers, byte for byte, whatever the number of workers. With other
    threads, processors or GPUs, a tie between two tokens may, rarely, be decided differently.
    `report` scores and compares the folders.

    With --alerts, standing questions are followed over the bags and compared with alerts_truth of
    FILE; the folder gets probabilities.csv, probabilities.svg and alerts.json. A FILE of
    StreamingBench's proactive task is followed as published.
    """
    from minicpmo_ros.evaluation.shards import Shard
    from minicpmo_ros.evaluation.streamingbench import is_proactive

    options = all_core_options(arguments)
    if arguments.cluster is None and arguments.shards:
        raise InputError('--shards is for --cluster; --shard I/N asks one of them here.')
    if arguments.alerts:
        return _follow(arguments, options, alerts.watch_rules)
    if is_proactive(arguments.questions):
        return _follow(arguments, options, alerts.follow_proactive)
    if arguments.cluster:
        return _ask_on_cluster(arguments)
    shard = Shard(0, 1) if arguments.shard is None else Shard.parse(arguments.shard)
    if arguments.list_bags:
        return _list_bags(arguments, shard)
    return _ask_here(arguments, options, shard)


def _ask_here(arguments, options, shard) -> int:
    """Ask all questions, or those of the shard, and tell what became of it."""
    from minicpmo_ros.evaluation.results import Results, Run
    from minicpmo_ros.evaluation.runner import Variant
    from minicpmo_ros.ros.framework.machine import run_start

    variant = Variant(arguments.input, arguments.audio)
    plan = _planned(arguments, options, variant)
    facts, places = plan.facts('graph' if arguments.runner == 'graph' else 'core'), None
    if arguments.shard:
        arguments.out = shard.folder(arguments.out)
        plan, facts, places = shard.cut(plan, facts)
        plan.questions.require_clips(arguments.questions)
    if plan.refused:
        print(plan.refusals(), file=sys.stderr)
    open_answerer = _answerer(arguments, variant)
    begun = run_start(arguments.threads, arguments.workers)
    results = Results(arguments.out, facts, plan.questions, begun, places)
    _tell_resumed(plan, results)
    _ask_all(arguments, plan, results, open_answerer)
    made = Run.read(arguments.out)
    for sentence in made.summary():
        print(sentence, file=sys.stderr)
    return int(made.is_empty and not arguments.shard)


def _planned(arguments, options, variant):
    """Return the ReplayPlan of the whole run."""
    from minicpmo_ros.evaluation.replay import ReplayPlan
    from minicpmo_ros.modelset.directory import ModelDirectory

    questions = _questions(arguments, needs_clips=not arguments.shard)
    sources, model = sources_of(arguments), ModelDirectory.open(arguments.model)
    return ReplayPlan.make(model, questions, options, variant, sources, arguments.memory)


def _ask_all(arguments, plan, results, open_answerer) -> None:
    """Answer what has not been answered yet, and write it down."""
    from minicpmo_ros.evaluation import replay

    workers = replay.Workers(arguments.workers, tuple(arguments.gpus))
    try:
        replay.run(plan, results, open_answerer, workers, _tell)
        if arguments.shard:
            results.begin()  # it may have no bag
    finally:
        results.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _ask_on_cluster(arguments) -> int:
    from minicpmo_ros.cli.cluster import replay_on_cluster

    alone = [name for name in ('shard', 'list_bags', 'gpus') if getattr(arguments, name)]
    if alone:
        raise InputError(f'--{alone[0].replace("_", "-")} does not go with --cluster.')
    replay_on_cluster(arguments, lambda told: print(told, file=sys.stderr, flush=True))
    return 0


def _questions(arguments, **kwargs):
    """Return the questions of a run, or of the run that a shard is a part of."""
    from minicpmo_ros.evaluation.questions import QuestionSet

    questions = QuestionSet.read(arguments.questions, arguments.bag, **kwargs)
    return questions.first(arguments.limit) if arguments.limit else questions


def _list_bags(arguments, shard) -> int:
    arguments.bag = None  # where they will be
    for clip in _questions(arguments, needs_clips=False).by_clip():
        if shard.takes(clip):
            print(clip)
    return 0


def _tell_resumed(plan, results) -> None:
    before = sum(question.id in results.done for question in plan.questions.questions)
    if before:
        print(f'{before} questions were answered before', file=sys.stderr)
    if not plan.questions.questions:
        print('No bag is in this shard: nothing is asked, and it is complete', file=sys.stderr)


def add_merge_arguments(parser) -> None:
    """Declare the options of `merge`."""
    parser.add_argument('out', type=Path, metavar='FOLDER', help='folder of the whole run')
    parser.add_argument(
        'shards',
        type=Path,
        nargs='*',
        metavar='SHARD',
        help='folders of all shards, in any order; default: those in FOLDER/shards',
    )


def run_merge(arguments) -> int:
    """Join the shards of `replay --shard` to the run that one replay of all would have made.

    The answers are the same, byte for byte. A shard of another model, other options or other
    questions is refused, as is one that is missing, given twice or not complete.
    """
    from minicpmo_ros.evaluation.shards import FOLDER, join

    shards = arguments.shards
    if not shards and (arguments.out / FOLDER).is_dir():
        shards = sorted(path for path in (arguments.out / FOLDER).iterdir() if path.is_dir())
    for sentence in join(arguments.out, shards).sentences(arguments.out):
        print(sentence, file=sys.stderr)
    return 0


def _follow(arguments, options, follow) -> int:
    """Watch bags second by second, in this process and without ROS."""
    default = {'runner': 'offline', 'workers': 1, 'gpus': (), 'record': '', 'shard': None}
    default.update(audio='streaming', input='all', list_bags=False, cluster=None)
    changed = [name for name, value in default.items() if getattr(arguments, name) != value]
    if changed:
        raise InputError(
            f'--{changed[0].replace("_", "-")} is for questions; standing questions and the '
            'proactive task are followed in one process. Leave it out.'
        )
    return follow(arguments, options, sources_of(arguments))


def _answerer(arguments, variant):
    """Return what makes the one who answers, in every worker."""
    if arguments.runner == 'offline':
        from minicpmo_ros.evaluation.replay import CoreAnswerer
        from minicpmo_ros.memory.proc import pss_mib

        if arguments.record:
            raise InputError('--record is for --runner graph, which has messages to record.')
        return partial(CoreAnswerer, memory_mib=pss_mib)
    if arguments.memory:
        raise InputError('--memory is for --runner offline; give a node the file: memory.path.')
    from minicpmo_ros.ros.framework.main import stay_on_this_machine
    from minicpmo_ros.ros.replay.graph import GraphAnswerer, check

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
