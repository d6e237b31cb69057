# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What quantising does to tensors: the report of a run, and what every type costs a model.

A group is one kind of tensor in all layers of one network (`blk.*.attn_v.weight` of the llm). Its
rungs are the types that are worth having: each smaller than the last and of more error. What a
type costs is measured by quantising with it.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import appearing
from minicpmo_ros.errors import InputError
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.quantizer import (
    QuantizeOptions,
    TensorReport,
    overall_error,
    quantize_directory,
)
from minicpmo_ros.quantize.rules import LADDER, TYPES, Rule, may_change, type_name, type_named

HEAD = (
    '| tensor | shape | was | is | was MiB | is MiB | error % | weighted % |\n'
    '|---|---|---|---|---:|---:|---:|---:|'
)
SUFFIXES = ('.json', '.md')
_LAYER = re.compile(r'(?<=\.)\d+(?=\.)')


def row(report: TensorReport) -> str:
    """Return a tensor's row of the table; the weighted error is empty where it is not known."""
    weighted = report.weighted_error
    return (
        f'| {report.name} | {"x".join(map(str, report.shape))} | {report.old_type.name} '
        f'| {report.new_type.name} | {report.old_bytes / 2**20:.2f} '
        f'| {report.new_bytes / 2**20:.2f} | {100 * report.relative_error:.3f} '
        f'| {"" if weighted is None else f"{100 * weighted:.3f}"} |'
    )


def check_path(path: Path) -> None:
    """InputError for a name that is neither JSON's nor markdown's."""
    if path.suffix not in SUFFIXES:
        raise InputError(f'The report {path} must end in {" or ".join(SUFFIXES)}.')


def write_report(path: Path, reports: Mapping[str, Sequence[TensorReport]]) -> None:
    """Write the reports of files by their names, as the path's suffix says."""
    check_path(path)
    if path.suffix == '.json':
        told = {name: [_told(report) for report in of_file] for name, of_file in reports.items()}
        text = json.dumps(told, indent=1)
    else:
        text = '\n\n'.join(
            '\n'.join([f'## {name}', '', HEAD, *map(row, of_file)])
            for name, of_file in reports.items()
        )
    with appearing(path) as sink:
        sink.write(f'{text}\n'.encode())


def _told(report: TensorReport) -> dict:
    return {
        'name': report.name,
        'shape': list(report.shape),
        'from': report.old_type.name,
        'to': report.new_type.name,
        'bytes_before': report.old_bytes,
        'bytes_after': report.new_bytes,
        'relative_error': report.relative_error,
        'weighted_error': report.weighted_error,
    }


@dataclass(frozen=True)
class Rung:
    """A group in one type."""

    precision: str  # 'keep': as the source has it
    size_bytes: int
    error: float  # relative, by importance where that is known


@dataclass(frozen=True)
class Group:
    """Tensors of one kind; rungs from the source's type down, each smaller and of more error."""

    part: str
    pattern: str
    rungs: tuple

    def rule(self, rung: int) -> Rule:
        """Return what gives it the type of a rung."""
        return Rule(self.pattern, type_named(self.rungs[rung].precision), self.part)


def pattern_of(name: str) -> str:
    """Return the pattern of a tensor's kind: its name with any layer's number."""
    return _LAYER.sub('*', name, count=1)


def measured_groups(
    model: ModelDirectory,
    ladder: Sequence[str] = LADDER,
    options: QuantizeOptions | None = None,
    work: Path | None = None,
    on_type=None,
) -> list:
    """Return the groups of a model whose types may change, in the order of its files.

    work: where the model is written in each type of the ladder, one after the other, for a
    moment. on_type(name) is called before each.
    """
    rungs = {key: [Rung('keep', _size(model, *key), 0.0)] for key in _kinds(model)}
    for precision in ladder:
        if on_type is not None:
            on_type(precision)
        for key, reports in _reports(model, precision, options, work).items():
            types = {report.new_type for report in reports}
            name = _named(types, precision)
            size_bytes = sum(report.new_bytes for report in reports)
            rungs[key].append(Rung(name, size_bytes, overall_error(reports, weighted=True)))
    return [Group(*key, worth_having(found)) for key, found in rungs.items()]


def _named(types: set, asked: str) -> str:
    """Return what the tensors of a group were stored in; what was asked for where that differs."""
    (kind, *others) = types
    return type_name(kind) if not others and kind in TYPES.values() else asked


def worth_having(rungs: Sequence[Rung]) -> tuple:
    """Return the first, and those of the rest that no other beats in both size and error."""
    first, *rest = rungs
    kept = []
    for rung in sorted(rest, key=lambda rung: (rung.size_bytes, rung.error)):
        if rung.size_bytes < first.size_bytes and (not kept or rung.error < kept[-1].error):
            kept.append(rung)
    return (first, *reversed(kept))


def path_down(groups: Sequence[Group], start: Sequence[int]) -> list:
    """Return the groups (by index) to take one rung down, until none has any left.

    The next is always the one that adds least squared error for the bytes it spares.
    """
    levels, path = list(start), []
    while moves := [i for i, group in enumerate(groups) if levels[i] + 1 < len(group.rungs)]:
        best = min(moves, key=lambda i: price(groups[i], levels[i]))
        levels[best] += 1
        path.append(best)
    return path


def price(group: Group, level: int) -> float:
    """Return the squared error that one rung down from `level` adds, a byte spared."""
    now, below = group.rungs[level], group.rungs[level + 1]
    return (below.error**2 - now.error**2) / (now.size_bytes - below.size_bytes)


def _kinds(model: ModelDirectory) -> list:
    """(part, pattern) of all that may change, each once."""
    return list(
        dict.fromkeys(
            (part, pattern_of(name))
            for part in PARTS
            for name, info in model.headers[part].tensors.items()
            if may_change(info)
        )
    )


def _size(model: ModelDirectory, part: str, pattern: str) -> int:
    tensors = model.headers[part].tensors.items()
    return sum(
        info.n_bytes for name, info in tensors if may_change(info) and pattern_of(name) == pattern
    )


def _reports(model: ModelDirectory, precision: str, options, work) -> dict:
    """(part, pattern) -> TensorReports with everything in one type."""
    options = options or QuantizeOptions()
    everything = QuantizeOptions(
        [Rule('*', type_named(precision))],
        options.pad,
        options.threads,
        importance=options.importance,
    )
    found: dict[tuple, list[TensorReport]] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        _, by_part = quantize_directory(model.path, Path(folder) / 'm', {}, everything)
    for part, reports in by_part.items():
        for report in reports:
            if may_change(model.headers[part].tensors[report.name]):
                found.setdefault((part, pattern_of(report.name)), []).append(report)
    return found
