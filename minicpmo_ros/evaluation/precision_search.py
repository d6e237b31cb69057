# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The smallest types whose answers are still those of the source, often enough.

Groups of tensors go down rung by rung in the order of precision_steps. How far all can go together
is found by halving; from there each group goes on alone as long as the answers allow. Whatever is
accepted has been asked: the model was written, loaded and answered every question. Same model,
questions and options: same result.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.documents import appearing, read_bounded
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AnswerSet
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.runner import Core, CoreOptions, Variant, answer_all
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.importance import Importance
from minicpmo_ros.quantize.quantizer import QuantizeOptions, quantize_directory
from minicpmo_ros.quantize.report import Group, path_down, price
from minicpmo_ros.quantize.rules import RulesFile, may_change

JOURNAL_FORMAT = 'minicpmo_ros precision search 1'


def answered(
    model: ModelDirectory, questions: QuestionSet, options: CoreOptions | None = None
) -> AnswerSet:
    """Load a model, answer every question once with all input, and unload it."""
    core = Core(model, options)
    try:
        (answers,) = answer_all(core, questions, [Variant()])
    finally:
        core.close()
    return answers


def agreement(questions: QuestionSet, first: AnswerSet, second: AnswerSet) -> float:
    """Return the share of questions with the same text from both."""
    pairs = zip(first.of(questions), second.of(questions))
    return sum(a == b for a, b in pairs) / len(questions.questions)


@dataclass(frozen=True)
class Tried:
    """One set of types that was asked."""

    levels: tuple  # rung of every group
    size_bytes: int  # of all groups
    agreement: float


class Journal:
    """What has been asked already, in a file, so that a search that was stopped goes on."""

    def __init__(self, path: Path, facts: dict):
        self.path, self._facts, self._shares = path, facts, {}
        if not path.exists():
            return
        try:
            record = json.loads(read_bounded(path))
            found, self._shares = record['facts'], dict(record['agreements'])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{path}: it is no journal of a search ({error}). Remove it.') from (
                error
            )
        if record.get('format') != JOURNAL_FORMAT or found != facts:
            raise InputError(
                f'{path} belongs to a search of another model, other questions or other options. '
                'Remove it, or write elsewhere.'
            )

    def get(self, levels: Sequence[int]) -> float | None:
        """Return the agreement of a set of types, None where it was not asked."""
        return self._shares.get(_key(levels))

    def add(self, levels: Sequence[int], share: float) -> None:
        """Keep an agreement."""
        self._shares[_key(levels)] = share
        record = {'format': JOURNAL_FORMAT, 'facts': self._facts, 'agreements': self._shares}
        with appearing(self.path) as sink:
            sink.write(f'{json.dumps(record, indent=1)}\n'.encode())


def _key(levels: Sequence[int]) -> str:
    return ' '.join(map(str, levels))


class Search:
    """One search; run() once."""

    def __init__(
        self,
        model: ModelDirectory,
        groups: Sequence[Group],
        questions: QuestionSet,
        wanted: float,
        options: CoreOptions | None = None,
        quantizing: QuantizeOptions | None = None,
        journal: Journal | None = None,
        work: Path | None = None,
    ):
        """wanted: the agreement that must be reached, 0 to 1. work: where models are written."""
        if not 0 <= wanted <= 1:
            raise InputError(f'The agreement is {wanted}; 0 to 1 is allowed.')
        self.model, self.groups, self.questions = model, groups, questions
        self.wanted, self.options, self.journal, self.work = wanted, options, journal, work
        self.quantizing = quantizing or QuantizeOptions()
        self._reference = None
        self.best = Tried((0,) * len(groups), self.size_of((0,) * len(groups)), 1.0)
        self.n_tried = 0

    def run(self, limit: int, on_tried: Callable[[Tried, bool], None] | None = None) -> Tried:
        """Search with at most `limit` sets of types asked; return the smallest that was accepted.

        on_tried(tried, accepted) is called after each; `best` is up to date then.
        """
        self._left, self._on_tried = limit, on_tried
        self._halve()
        self._refine()
        return self.best

    def rules(self, tried: Tried) -> RulesFile:
        """Return the rules that give a set of types."""
        rules = [group.rule(level) for group, level in zip(self.groups, tried.levels) if level]
        return RulesFile({part: 'keep' for part in self.model.headers}, tuple(rules))

    def _halve(self) -> None:
        """Find how far down the common path the answers agree; all the way is asked first."""
        path = path_down(self.groups, self.best.levels)
        low, high = 0, len(path) + 1  # low agrees; high does not, or is beyond the end
        step = len(path)
        while high - low > 1 and self._left:
            if self._try(self._after(path[:step])):
                low = step
            else:
                high = step
            step = (low + high) // 2

    def _after(self, path: Sequence[int]) -> tuple:
        levels = [0] * len(self.groups)
        for i in path:
            levels[i] += 1
        return tuple(levels)

    def _refine(self) -> None:
        """Take groups down one by one; one that disagrees stays where it is."""
        open_groups = set(range(len(self.groups)))
        while self._left:
            levels = self.best.levels
            moves = [i for i in open_groups if levels[i] + 1 < len(self.groups[i].rungs)]
            if not moves:
                return
            best = min(moves, key=lambda i: (price(self.groups[i], levels[i]), i))
            if not self._try(tuple(n + (i == best) for i, n in enumerate(levels))):
                open_groups.remove(best)

    def _try(self, levels: tuple) -> bool:
        """Ask with a set of types; whether it is accepted."""
        self._left -= 1
        self.n_tried += 1
        share = self.journal.get(levels) if self.journal else None
        if share is None:
            share = self._asked(levels)
            if self.journal:
                self.journal.add(levels, share)
        tried = Tried(levels, self.size_of(levels), share)
        accepted = share >= self.wanted
        if accepted and tried.size_bytes < self.best.size_bytes:
            self.best = tried
        if self._on_tried is not None:
            self._on_tried(tried, accepted)
        return accepted

    def _asked(self, levels: tuple) -> float:
        if self._reference is None:
            self._reference = answered(self.model, self.questions, self.options)
        rules = self.rules(Tried(levels, 0, 0.0)).rules
        options = QuantizeOptions(
            rules,
            self.quantizing.pad,
            self.quantizing.threads,
            importance=self.quantizing.importance,
        )
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            model, _ = quantize_directory(self.model.path, Path(folder) / 'm', {}, options)
            answers = answered(model, self.questions, self.options)
        return agreement(self.questions, self._reference, answers)

    def size_of(self, levels: Sequence[int]) -> int:
        """Return the bytes of a model whose groups are at these levels."""
        return sum(group.rungs[n].size_bytes for group, n in zip(self.groups, levels))


def facts_of(
    model: ModelDirectory,
    questions: QuestionSet,
    groups: Sequence[Group],
    importance: Path | None = None,
) -> dict:
    """Return what agreements depend on, for a Journal."""
    files = {part: header.size_bytes for part, header in model.headers.items()}
    rungs = {f'{g.part} {g.pattern}': [rung.precision for rung in g.rungs] for g in groups}
    digest = hashlib.sha256(importance.read_bytes()).hexdigest() if importance else ''
    return {
        'model': model.model_id,
        'bytes': files,
        'sha256': {part: entry.sha256 for part, entry in model.manifest.files.items()},
        'questions_sha256': questions.sha256,
        'importance_sha256': digest,
        'rungs': rungs,
    }


def collect(
    model: ModelDirectory,
    questions: QuestionSet,
    options: CoreOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Answer the questions and return the importance of all three networks' tensors.

    Weights that are only looked up (embeddings that are not the output too) or folded while
    loading (the resampler's queries) meet nothing and have none; nor have the convolutions, whose
    rows are kernels. Errors as answer_all.
    """
    importance = Importance([questions.name or str(questions.folder)])
    tensors = {
        name: info for header in model.headers.values() for name, info in header.tensors.items()
    }

    def on_product(name, rows) -> None:
        info = tensors.get(name)
        if info is not None and may_change(info) and info.shape[-1] == rows.shape[1]:
            importance.add(name, rows)

    core = Core(model, options, on_product=on_product)
    try:
        answer_all(core, questions, [Variant()], on_progress)
    finally:
        core.close()
    return importance
