# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Long runs over many clips, in one process or several: killed and gone on with at will.

Clips are worked on in the order of the questions, and answers are written in that order whatever
the number of workers, so that equal runs leave equal files. A clip or a window that cannot be
read costs its questions, each with the reason, never the run.

Who answers is an Answerer: CoreAnswerer here, without ROS; another one goes through the graph.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from time import perf_counter
from typing import Protocol

from minicpmo_ros.errors import EngineError, Error, InputError
from minicpmo_ros.evaluation.bags.clip import Clip, Sources
from minicpmo_ros.evaluation.bags.clip_reading import read_windows
from minicpmo_ros.evaluation.looks import refused_looks, with_room
from minicpmo_ros.evaluation.past import NoteMemory
from minicpmo_ros.evaluation.questions import QuestionSet, by_window, in_portions
from minicpmo_ros.evaluation.results import Given, Results
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_clip
from minicpmo_ros.ggml.devices import REMOTE, gpu_name
from minicpmo_ros.llm.model import load_vocabulary
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.process import end_with_parent, prepare, visible_gpu
from minicpmo_ros.units import NS

MOST_HELD_S = 1800  # seconds of one clip in memory, unless one window is longer
LONGEST_GAP_S = 5  # between images; slower cameras are told of
LEAST_TOKENS = 384  # what is kept for a question, however short all are
# Of the file of a run; max_question_tokens decides about refusals alone: a run may outgrow it.
KEPT_OPTIONS = (
    'prompt', 'n_ctx', 'n_ubatch', 'kv_type', 'attention', 'window_policy', 'still', 'max_tokens',
    'max_tiles', 'area', 'crop', 'sharp_every', 'look_tiles', 'tile_rule', 'tile_alpha',
    'unchanged_threshold',
)  # fmt: skip


@dataclass(frozen=True)
class QuestionLengths:
    """Lengths by id of a question, and why others cannot be asked, by id."""

    tokens: dict
    refused: dict

    @classmethod
    def count(cls, model: ModelDirectory, questions: QuestionSet) -> 'QuestionLengths':
        """Count; only the vocabulary of the model is loaded."""
        vocabulary, tokens, refused = (
            load_vocabulary(model.llm_path, model.manifest.pre_tokenizer),
            {},
            {},
        )
        for question in questions.questions:
            try:
                tokens[question.id] = len(vocabulary.encode(question.text))
            except InputError as error:
                refused[question.id] = str(error)
        return cls(tokens, refused)

    @property
    def enough(self) -> int:
        """A max_question_tokens with which none is too long."""
        return max([LEAST_TOKENS, *self.tokens.values()])

    def refused_within(self, max_question_tokens: int) -> dict:
        """Return {id: why}, of the questions that cannot be asked within so many tokens."""
        too_long = {
            name: f'The question is {count} tokens long, at most {max_question_tokens} are '
            f'allowed. Shorten it, or raise max_question_tokens to {self.enough}.'
            for name, count in self.tokens.items()
            if count > max_question_tokens
        }
        return {**self.refused, **too_long}


@dataclass(frozen=True)
class ReplayPlan:
    """What a run is."""

    model: ModelDirectory
    questions: QuestionSet
    options: CoreOptions = CoreOptions()
    variant: Variant = Variant()
    sources: Sources = Sources()
    refused: dict = field(default_factory=dict)  # id: why a question is not asked
    memory: str = ''  # a file of notes, or past.ORACLE, for questions about the past

    @classmethod
    def make(
        cls,
        model: ModelDirectory,
        questions: QuestionSet,
        options: CoreOptions,
        variant: Variant,
        sources: Sources,
        memory: str = '',
    ) -> 'ReplayPlan':
        """Check all questions before any work: which cannot be asked, and how long they are.

        options.max_question_tokens 0: as many as the longest question needs.
        """
        lengths = QuestionLengths.count(model, questions)
        allowed = options.max_question_tokens or lengths.enough
        refused = lengths.refused_within(allowed)
        refused |= refused_looks(questions.questions, options.look_tiles)
        options = replace(options, max_question_tokens=allowed)
        options = with_room(options, questions.questions, model.headers['vision'])
        return cls(model, questions, options, variant, sources, refused, memory)

    def refusals(self) -> str:
        """Return a sentence on the questions that will not be asked; '' if all will be."""
        if not self.refused:
            return ''
        name, why = next(iter(self.refused.items()))
        asked = len(self.questions.questions)
        return f'{len(self.refused)} of {asked} questions cannot be asked, {name!r} first: {why}'

    def facts(self, path: str = 'core') -> dict:
        """Return what the run's file begins with."""
        on_cpu = self.options.device == 'cpu'
        remote = REMOTE if self.options.rpc_servers else ''
        return {
            'path': path,
            'model': self.model.model_id,
            'precision': self.model.precision,
            'weights': self.model.fingerprint,
            'questions': self.questions.name,
            'questions_sha256': self.questions.sha256,
            'bag': self.questions.bag,
            **vars(self.sources),
            'count': len(self.questions.questions),
            'audio': self.variant.audio,
            'input': self.variant.input,
            **({'memory': self.memory} if self.memory else {}),
            'device': 'cpu' if on_cpu else remote or gpu_name() or 'cpu',
            'options': {
                **{name: getattr(self.options, name) for name in KEPT_OPTIONS},
                'speech': self.model.speech(self.options.speech),
            },
        }


class Answerer(Protocol):
    """Answers questions about clips; one thread uses it."""

    def answer(self, clip: Clip, asked: list) -> Iterator[Given]:
        """Answer questions about a clip, in their order; InputError where a window is no good."""

    def close(self) -> None:
        """Free everything."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    total: int
    left_s: float  # at the pace so far

    def __str__(self) -> str:
        """Return it in a few words."""
        minutes, seconds = divmod(round(self.left_s), 60)
        hours, minutes = divmod(minutes, 60)
        left = f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'
        return f'{self.done} of {self.total} questions, {left} left'


@dataclass(frozen=True)
class Workers:
    """How many processes work; `devices`: numbers of GPUs, which they take in turn."""

    count: int = 1
    devices: tuple = ()

    def __post_init__(self):
        """Check."""
        if self.count < 1:
            raise InputError(f'{self.count} workers were asked for; 1 or more can work.')

    def device_of(self, worker: int) -> str | None:
        """Return the GPU of a worker, None: as the environment has it."""
        return str(self.devices[worker % len(self.devices)]) if self.devices else None


def run(
    plan: ReplayPlan,
    results: Results,
    open_answerer: Callable[[ReplayPlan], Answerer],
    workers: Workers = Workers(),
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Answer what has not been answered yet; `open_answerer` is called in every process."""
    tasks = [
        (name, [q for q in asked if q.id not in results.done])
        for name, asked in plan.questions.by_clip().items()
    ]
    tasks = [task for task in tasks if task[1]]
    if not tasks:
        return
    total = sum(len(asked) for _, asked in tasks)
    began_s, done, asked = perf_counter(), 0, len(plan.questions.questions)
    alone = min(workers.count, len(tasks)) == 1 and not workers.devices
    work = _in_this_process if alone else _in_processes
    for answer in work(plan, tasks, open_answerer, workers):
        results.add(answer)
        done += 1
        if on_progress is not None:
            left_s = (perf_counter() - began_s) / done * (total - done)
            on_progress(Progress(asked - total + done, asked, left_s))


def _in_this_process(plan: ReplayPlan, tasks: list, open_answerer, _workers) -> Iterator[Given]:
    answerer = open_answerer(plan)
    try:
        for name, asked in tasks:
            yield from answer_about(answerer, plan, name, asked)
    finally:
        answerer.close()


def _in_processes(
    plan: ReplayPlan, tasks: list, open_answerer, workers: Workers
) -> Iterator[Given]:
    """Worker k of n takes the tasks k, k + n, ...; what they give is given in the tasks' order.

    A worker sends what is Given, None behind every task, and a sentence where it cannot go on.
    """
    context = get_context('spawn')  # a fork would share the library's threads
    count = min(workers.count, len(tasks))
    pipes, processes = [], []
    try:
        for k in range(count):
            receiver, sender = context.Pipe(duplex=False)
            share = (sender, plan, tasks[k::count], open_answerer)
            process = context.Process(target=_work, args=share, daemon=True)
            with visible_gpu(workers.device_of(k)):
                process.start()
            processes.append(process)
            sender.close()
            pipes.append(receiver)
        for i, (name, _) in enumerate(tasks):
            try:
                while (answer := pipes[i % count].recv()) is not None:
                    if isinstance(answer, str):
                        raise EngineError(answer)
                    yield answer
            except EOFError as error:
                raise EngineError(
                    f'A worker ended at {name}; see what it wrote. The run can go on from here.'
                ) from error
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(pipe, plan: ReplayPlan, tasks: list, open_answerer) -> None:
    prepare()
    end_with_parent()  # a worker whose run was killed would go on alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answerer = open_answerer(plan)
        try:
            for name, asked in tasks:
                for given in answer_about(answerer, plan, name, asked):
                    pipe.send(given)
                pipe.send(None)
        finally:
            answerer.close()
    except Error as error:
        pipe.send(str(error))


def answer_about(answerer: Answerer, plan: ReplayPlan, name: str, asked: list) -> Iterator[Given]:
    """Answer questions about one clip, in their order, so many at a time as memory has room."""
    refused = plan.refused
    yield from (Given(q.id, '', error=refused[q.id]) for q in asked if q.id in refused)
    asked = [question for question in asked if question.id not in refused]
    if not asked:
        return
    windows = [(q.span, q.relative) for q in asked]
    try:
        kept = read_windows(plan.questions.path_of(name), windows, plan.sources)
    except InputError as error:
        yield from (Given(question.id, '', error=str(error)) for question in asked)
        return
    with kept:
        for portion in in_portions(asked, MOST_HELD_S):
            clip = kept.clip([(q.span, q.relative) for q in portion])
            by_id = {question.id: question for question in portion}
            for given in _answer_portion(answerer, clip, portion):
                note = _note(given, clip, by_id[given.id], plan.variant.input)
                yield replace(given, note=' '.join(filter(None, [given.note, note])))


def _note(given: Given, clip: Clip, question, shown: str) -> str:
    """Return what is not there of what a question is about."""
    told, seconds = list(clip.losses), question.seconds
    if not given.error and given.units < seconds:
        told.append(f'{given.units} of {seconds} seconds have an image or audio.')
    if not given.error and shown != 'no_picture':
        told += missing_images(clip, *question.window(clip.first_s))
    return ' '.join(told)


def _answer_portion(answerer: Answerer, clip: Clip, asked: list) -> Iterator[Given]:
    left = {question.id: question for question in asked}
    try:
        for given in answerer.answer(clip, asked):
            left.pop(given.id)
            yield given
    except InputError:
        # One of its windows is no good: each by itself.
        for window in by_window(left.values(), clip.first_s).values():
            try:
                yield from answerer.answer(clip, window)
            except InputError as error:
                yield from (Given(question.id, '', error=str(error)) for question in window)


class CoreAnswerer:
    """Answers without ROS; `memory_mib` is asked for after every answer."""

    def __init__(self, plan: ReplayPlan, memory_mib: Callable[[], float] = float):
        self._core = Core(plan.model, plan.options, strict=False)
        self._variant, self._memory_mib = plan.variant, memory_mib
        try:
            self._core.memory = NoteMemory(plan.memory) if plan.memory else None
        except Error:
            self._core.close()
            raise

    def close(self) -> None:
        """Free the model."""
        if self._core.memory is not None:
            self._core.memory.close()
        self._core.close()

    def answer(self, clip: Clip, asked: list) -> Iterator[Given]:
        """Answer questions about a clip."""
        began_s = perf_counter()
        for _, question, answer in answer_clip(self._core, clip, asked, [self._variant]):
            now_s = perf_counter()
            yield Given(
                question.id,
                answer.text,
                round(answer.first_token_ms, 2),
                round(1e3 * (now_s - began_s), 2),
                answer.answer_tokens,
                answer.units,
                round(self._memory_mib(), 1),
                str(answer.error or ''),
                '' if answer.error or answer.look_ms or not question.looks else answer.reason,
                round(answer.look_ms, 2),
                round(answer.look_stamp_s, 6),
            )
            began_s = now_s


def missing_images(clip: Clip, start_s: int, end_s: int) -> list:
    """Return which images of a window cannot be used, and for how long there is none."""
    newest = {}
    for image in clip.images:
        second = image.stamp_ns // NS
        if start_s <= second < end_s:
            newest[second] = image
    problems = {s: image.rgb.problem for s, image in newest.items() if image.rgb.problem}
    usable, told = sorted(newest.keys() - problems.keys()), []
    if problems:
        last = problems[max(problems)]
        told.append(f'{len(problems)} of {len(newest)} images cannot be used: {last}')
    if not usable:
        return [*told, f'None of the {end_s - start_s} seconds has an image.']
    edges = [start_s - 1, *usable, end_s]
    gap_s, begin = max((after - before - 1, before) for before, after in zip(edges, edges[1:]))
    if gap_s > LONGEST_GAP_S:
        told.append(f'For {gap_s} s there is no image, from second {begin + 1 - start_s} on.')
    return told
