# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Model files in other precisions: the same tensors, metadata and order, other types.

    reports = quantize_file('llm-f16.gguf', 'llm-q4_0.gguf', 'q4_0')

Which tensor gets which type is said by quantize_rules. Rows that no block fits become what
llama.cpp makes of them; those of the vision encoder's second feed-forward are widened with zeros,
which its first layer meets with zeros. Tensors are streamed: a file of 4.7 GB takes 40 MiB of
memory. A file gets its name when it is complete; same input, same bytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import appearing, make_folder, require_other
from minicpmo_ros.encoders.siglip import model as siglip_model
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.gguf_copy import align, byte_count, opening, row_blocks
from minicpmo_ros.ggml.gguf_file import FETCH_AGAIN, Header, TensorInfo, read_header
from minicpmo_ros.ggml.library import dequantize, quantize
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.modelset.directory import (
    ModelDirectory,
    part_of,
    precision_of,
    prevailing_type,
)
from minicpmo_ros.modelset.manifest import FILE_NAME, write_manifest
from minicpmo_ros.quantize.importance import Importance, check_fits
from minicpmo_ros.quantize.rules import (
    FLOATS,
    Rule,
    chosen_types,
    fitting_type,
    type_named,
    used_rules,
)

QUANTIZATION_VERSION = 2  # ggml.h: GGML_QNT_VERSION
# llama.h: enum llama_ftype; the medium mixtures for K-quants.
FILE_TYPES = {
    Type.F32: 0,
    Type.F16: 1,
    Type.Q4_0: 2,
    Type.Q4_1: 3,
    Type.Q8_0: 7,
    Type.Q5_0: 8,
    Type.Q5_1: 9,
    Type.Q2_K: 10,
    Type.Q3_K: 12,
    Type.Q4_K: 15,
    Type.Q5_K: 17,
    Type.Q6_K: 18,
    Type.BF16: 32,
}


@dataclass(frozen=True)
class QuantizeOptions:
    """What holds for every file of a run."""

    rules: Sequence[Rule] = ()  # before the defaults; the first that fits decides
    pad: bool = True  # widen vision feed-forward rows; stock llama.cpp cannot use such files
    threads: int = 1  # the bytes do not depend on it
    overwrite: bool = False
    importance: Importance | None = None  # of columns; tensors it does not know go without


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor; shape as it is stored now."""

    name: str
    shape: tuple
    old_type: Type
    new_type: Type
    old_bytes: int
    new_bytes: int
    relative_error: float  # root mean square of the difference over that of the values
    weighted_error: float | None = None  # the same, columns weighted by their importance


@dataclass(frozen=True)
class _Change:
    """One tensor as it is, and the type and shape it is to have."""

    info: TensorInfo
    type: Type
    shape: tuple

    importance: np.ndarray | None  # (columns,)

    def report(self, errors: tuple) -> TensorReport:
        info, n_bytes = self.info, byte_count(self.shape, self.type)
        return TensorReport(
            info.name, self.shape, info.type, self.type, info.n_bytes, n_bytes, *errors
        )


def quantize_file(
    source,
    target,
    precision: str,
    options: QuantizeOptions | None = None,
    on_tensor: Callable[[TensorReport], None] | None = None,
) -> list:
    """Write a model file in another precision; return a TensorReport of every tensor.

    precision: a name of quantize_rules.TYPES, for what no rule speaks of; 'keep': as it is.
    Errors: InputError for a type, a rule that fits nothing, or a target that may not be written;
    ModelFileError for the source; OSError.
    """
    options = options or QuantizeOptions()
    header, base = read_header(source), type_named(precision)
    _check_rules({_checked_part(header): header}, options, header.path)
    _check_targets([Path(target)], [header.path], options)
    return _write(header, Path(target), base, options, on_tensor)


def quantize_directory(
    source,
    target,
    precisions: Mapping[str, str],
    options: QuantizeOptions | None = None,
    on_tensor: Callable[[str, TensorReport], None] | None = None,
) -> tuple:
    """Write a model directory in other precisions: (ModelDirectory, part -> TensorReports).

    precisions: part -> name of a type; parts that are missing keep theirs. The manifest keeps
    family and model_id: embeddings of all precisions are of one space. Errors as quantize_file,
    where a rule must fit a tensor of one of the files.
    """
    options = options or QuantizeOptions()
    model, target = ModelDirectory.open(source), Path(target)
    bases = {part: type_named(precisions.get(part, 'keep')) for part in PARTS}
    _check_rules(model.headers, options, model.path)
    outputs = {part: target / f'{part}.gguf' for part in PARTS}
    sources = [header.path for header in model.headers.values()]
    manifest = target / FILE_NAME
    _check_targets([*outputs.values(), manifest], [*sources, model.path / FILE_NAME], options)
    make_folder(target)
    manifest.unlink(missing_ok=True)  # until all is there, it is no model
    reports, entries = {}, {}
    for part, header in model.headers.items():
        tell = on_tensor and partial(on_tensor, part)
        reports[part] = _write(header, outputs[part], bases[part], options, tell)
        precision = precision_of(read_header(outputs[part]))
        entry = model.manifest.files[part]
        entries[part] = replace(entry, path=outputs[part].name, precision=precision, sha256='')
    write_manifest(target, replace(model.manifest, files=entries))
    return ModelDirectory.open(target), reports


def overall_error(reports: Sequence[TensorReport], weighted: bool = False) -> float:
    """Return the root mean square of the tensors' relative errors, weighted by their sizes.

    weighted: take the errors that count importance, where they are known.
    """
    sizes = [math.prod(report.shape) for report in reports]
    errors = [
        report.weighted_error
        if weighted and report.weighted_error is not None
        else report.relative_error
        for report in reports
    ]
    total = sum(n * error**2 for n, error in zip(sizes, errors))
    return math.sqrt(total / max(1, sum(sizes)))


def _check_rules(headers: Mapping[str, Header], options: QuantizeOptions, where: Path) -> None:
    """InputError for a rule, or an importance, that speaks of nothing in the files."""
    used = [used_rules(header, part, options.rules) for part, header in headers.items()]
    if unused := set(options.rules).difference(*used):
        patterns = ', '.join(sorted(f'{rule.part} {rule.pattern}'.strip() for rule in unused))
        raise InputError(
            f'{where} has no matrix that fits {patterns}. Rules speak of tensors of two and more '
            "dimensions that end in '.weight'; patterns are compared with the whole name."
        )
    if options.importance is not None:
        check_fits(options.importance, headers.values())


def _check_targets(targets: list, sources: list, options: QuantizeOptions) -> None:
    for target in targets:
        if not target.exists():
            continue
        if target.is_dir():
            raise InputError(f'{target} is a directory; give the name of a file in it.')
        require_other(target, *sources)
        if not options.overwrite:
            raise InputError(
                f'{target} already exists; write elsewhere, or allow overwriting (--force).'
            )


def _write(header: Header, target: Path, base, options: QuantizeOptions, on_tensor) -> list:
    """Write one file whose rules and name have been checked."""
    part = _checked_part(header)
    changes = _planned(header, part, base, options)
    changed_keys, prevailing = {}, prevailing_type(changes)
    if any(change.type != change.info.type for change in changes) and prevailing in FILE_TYPES:
        changed_keys['general.file_type'] = FILE_TYPES[prevailing]
    if any(change.type not in FLOATS for change in changes):
        changed_keys['general.quantization_version'] = QUANTIZATION_VERSION
    start = opening(
        header, changed_keys, [(change.info.name, change.shape, change.type) for change in changes]
    )
    n_bytes = len(start) + sum(byte_count(change.shape, change.type) for change in changes)
    reports = []
    with (
        open(header.path, 'rb') as file,
        ThreadPoolExecutor(options.threads) as pool,
        appearing(target, n_bytes) as sink,
    ):
        sink.write(start)
        for change in changes:
            align(sink, header.alignment)
            errors = _convert(header, file, sink, change, pool, options.threads)
            reports.append(change.report(errors))
            if on_tensor:
                on_tensor(reports[-1])
        align(sink, header.alignment)
    return reports


def _checked_part(header: Header) -> str:
    part = part_of(header)
    if not part:
        architecture = header.metadata['general.architecture']
        raise ModelFileError(
            header.path,
            f'its architecture {architecture!r} is none of a MiniCPM-o',
            'Give a language model, vision or audio file of MiniCPM-o',
        )
    version = header.get('general.quantization_version', int, QUANTIZATION_VERSION)
    if version != QUANTIZATION_VERSION:
        raise ModelFileError(
            header.path,
            f'its quantization_version is {version}, {QUANTIZATION_VERSION} is known',
            'Quantise from a file in f16 or f32',
        )
    return part


def _planned(header: Header, part: str, base: Type | None, options: QuantizeOptions) -> list:
    """What is to become of every tensor, in the order of the file."""
    chosen = chosen_types(header, part, base, options.rules)
    padded = _padded_columns(header, chosen) if part == 'vision' and options.pad else {}
    changes = []
    for name, info in header.tensors.items():
        columns = padded.get(name, info.shape[-1])
        ggml_type = fitting_type(chosen.get(name, info.type), columns)
        importance = None
        if name in chosen and options.importance is not None and name in options.importance:
            importance = _column_importance(options.importance, info, columns, name in padded)
        changes.append(_Change(info, ggml_type, (*info.shape[:-1], columns), importance))
    return changes


def _column_importance(
    importance: Importance, info: TensorInfo, columns: int, may_differ: bool
) -> np.ndarray:
    """Return what the columns of a tensor count, (columns,)."""
    seen = importance.columns(info.name)
    if seen != info.shape[-1] and not may_differ:
        raise InputError(
            f'The importance of {info.name} has {seen} columns, the tensor has '
            f'{info.shape[-1]}. Use one of this model.'
        )
    return importance.of(info.name, columns)


def _padded_columns(header: Header, chosen: dict) -> dict:
    """Name -> columns, for the second feed-forward layers of a vision file: all have as many.

    What is stored without blocks needs no zeros behind its rows and loses those it has.
    """
    facts = siglip_model.read_facts(header)
    names = [f'v.blk.{i}.{facts.ffn_names[1]}.weight' for i in range(facts.layers)]
    block = max(chosen[name].block_size for name in names)
    return dict.fromkeys(names, -(-facts.ffn_rows // block) * block)


def _convert(header: Header, file, sink, change: _Change, pool, threads: int) -> tuple:
    """Write one tensor in blocks of rows; return its relative and its weighted error."""
    info = change.info
    if (info.type, info.shape) == (change.type, change.shape):
        for rows in row_blocks(header.path, file, info):
            sink.write(rows)
        return 0.0, None if change.importance is None else 0.0
    squares = np.zeros((2, change.shape[-1]))  # of errors and values, by column
    for rows in row_blocks(header.path, file, info):
        parts = np.array_split(rows, min(threads, len(rows)))
        for encoded, of_part in pool.map(partial(_encode, header, change), parts):
            sink.write(encoded)
            squares += of_part
    if change.importance is None:
        return _share(squares.sum(axis=1)), None
    return _share(squares.sum(axis=1)), _share(squares @ change.importance)


def _share(squares: np.ndarray) -> float:
    """Root of error over power, (2,); 0 where there is no power."""
    error, power = squares
    return math.sqrt(error / power) if power else 0.0


def _encode(header: Header, change: _Change, rows: np.ndarray) -> tuple:
    """Return rows (n, bytes) in their new type, and the sums of squares of errors and values by
    column (2, columns).
    """
    name, columns = change.info.name, change.shape[-1]
    values = dequantize(rows, change.info.type)[:, :columns]  # (n, k)
    n_valid = values.shape[1]
    if n_valid < columns:
        values = np.pad(values, ((0, 0), (0, columns - n_valid)))  # (n, columns)
    power = np.square(values, dtype=np.float64).sum(axis=0)
    if not np.isfinite(power).all():
        raise ModelFileError(
            header.path, f'its tensor {name} holds NaN or infinite numbers', FETCH_AGAIN
        )
    encoded = quantize(values, change.type, change.importance)  # (n, bytes)
    lost = values - dequantize(encoded, change.type)  # (n, columns)
    # Asymmetric blocks may decode padding to other numbers than zero; it is multiplied by zeros.
    lost[:, n_valid:] = 0
    error = np.square(lost, dtype=np.float64).sum(axis=0)
    if not np.isfinite(error).all():
        raise ModelFileError(
            header.path,
            f'its tensor {name} holds numbers too large for {change.type.name}',
            f"Add the rule '{name}=bf16'",
        )
    return encoded, np.stack([error, power])
