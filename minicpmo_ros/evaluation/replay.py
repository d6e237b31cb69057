# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Long runs over many clips, in one process or several: killed and gone on with at will.

Clips are worked on in the order of the questions, and answers are written in that order whatever
the number of workers, so that equal runs leave equal files. A clip or a window that cannot be
read costs its questions, each with the reason, never the run.
"""

import ctypes
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.evaluation.clips import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.evaluation.results import Given, Results
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_clip
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.process import prepare

PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Plan:
    """What a run is."""

    model: ModelDirectory
    questions: QuestionSet
    options: CoreOptions = CoreOptions()
    variant: Variant = Variant()

    def facts(self, questions_sha256: str) -> dict:
        """Give what the run's file begins with."""
        kept = ('prompt', 'n_ctx', 'kv_type', 'max_tokens', 'max_tiles', 'unchanged_threshold')
        return {
            'path': 'core',
            'model': self.model.model_id,
            'precision': self.model.precision,
            'questions': self.questions.name,
            'questions_sha256': questions_sha256,
            'count': len(self.questions.questions),
            'audio': self.variant.audio,
            'input': self.variant.input,
            'options': {name: getattr(self.options, name) for name in kept},
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    total: int
    left_s: float  # at the pace so far


def run(
    plan: Plan,
    results: Results,
    workers: int = 1,
    memory_mib: Callable[[], float] = float,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Answer what has not been answered yet."""
    tasks = [
        (name, [q for q in asked if q.id not in results.done])
        for name, asked in plan.questions.by_clip().items()
    ]
    tasks = [task for task in tasks if task[1]]
    total = sum(len(asked) for _, asked in tasks)
    began_s, done = perf_counter(), 0
    work = _in_processes if min(workers, len(tasks)) > 1 else _in_this_process
    for answer in work(plan, tasks, workers, memory_mib):
        results.add(answer)
        done += 1
        if on_progress is not None:
            left_s = (perf_counter() - began_s) / done * (total - done)
            on_progress(Progress(len(results.done), len(plan.questions.questions), left_s))


def _in_this_process(plan: Plan, tasks: list, _workers: int, memory_mib) -> Iterator[Given]:
    if not tasks:
        return
    core = Core(plan.model, plan.options, strict=False)
    try:
        for name, asked in tasks:
            yield from _answer(core, plan, name, asked, memory_mib)
    finally:
        core.close()


def _in_processes(plan: Plan, tasks: list, workers: int, memory_mib) -> Iterator[Given]:
    """Worker k of n takes the tasks k, k + n, ...; what they give is given in the tasks' order."""
    context = get_context('spawn')  # a fork would share the library's threads
    workers = min(workers, len(tasks))
    pipes, processes = [], []
    try:
        for k in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            share = (sender, plan, tasks[k::workers], memory_mib)
            processes.append(context.Process(target=_work, args=share, daemon=True))
            processes[-1].start()
            sender.close()
            pipes.append(receiver)
        for i, (name, _) in enumerate(tasks):
            try:
                yield from pipes[i % workers].recv()
            except EOFError as error:
                raise EngineError(
                    f'A worker ended at {name}; see what it wrote. The run can go on from here.'
                ) from error
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(pipe, plan: Plan, tasks: list, memory_mib) -> None:
    prepare()
    # A worker whose run was killed would go on alone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    core = Core(plan.model, plan.options, strict=False)
    for task in tasks:
        pipe.send(list(_answer(core, plan, *task, memory_mib)))
    core.close()


def _answer(core: Core, plan: Plan, name: str, asked: list, memory_mib) -> Iterator[Given]:
    """Answer questions about one clip, in their order."""
    try:
        clip = read_clip(plan.questions.path_of(name))
    except InputError as error:
        yield from (Given(question.id, '', error=str(error)) for question in asked)
        return
    left = {question.id: question for question in asked}
    try:
        for given in _answers(core, plan, clip, asked, memory_mib):
            left.pop(given.id)
            yield given
    except InputError:
        # One of its windows is no good: each by itself.
        for window in by_window(left.values(), clip.first_s).values():
            try:
                yield from _answers(core, plan, clip, window, memory_mib)
            except InputError as error:
                yield from (Given(question.id, '', error=str(error)) for question in window)


def _answers(core: Core, plan: Plan, clip, asked: list, memory_mib) -> Iterator[Given]:
    began_s = perf_counter()
    for _, question, answer in answer_clip(core, clip, asked, [plan.variant]):
        now_s = perf_counter()
        given = Given(
            question.id,
            answer.text,
            round(answer.first_token_ms, 2),
            round(1e3 * (now_s - began_s), 2),
            answer.answer_tokens,
            answer.units,
            round(memory_mib(), 1),
            str(answer.error or ''),
        )
        began_s = now_s
        yield given
