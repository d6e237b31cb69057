# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A Hugging Face MiniCPM-o checkpoint becomes llm.gguf, vision.gguf, audio.gguf and a manifest.

    conversion = convert_directory('MiniCPM-o-2_6', 'model', 'f16')

The layouts are the published ones (layouts.py, file_keys.py). Before a byte is written, every
tensor is looked up, its shape compared, and the room on the disk; and the headers that will be
written are checked as a loader checks them. Weights go by in blocks of rows, so that memory does
not grow with the model. A file gets its name when it is complete, the manifest comes last; same
input, same bytes. Other precisions are made from these by `quantize`.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from minicpmo_ros.config import PARTS
from minicpmo_ros.convert.checkpoint import (
    COMPUTED,
    FETCH_ALL,
    UNUSED,
    Checkpoint,
    Source,
    source_of,
)
from minicpmo_ros.convert.shape import read_shape
from minicpmo_ros.convert.tokens import read_chat_template, read_tokens
from minicpmo_ros.documents import appearing, make_folder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.base import Shape
from minicpmo_ros.ggml.gguf_copy import (
    BLOCK_VALUES,
    align,
    byte_count,
    row_blocks,
)
from minicpmo_ros.ggml.gguf_file import DEFAULT_ALIGNMENT, TensorInfo
from minicpmo_ros.ggml.library import dequantize, quantize
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.types import row_bytes
from minicpmo_ros.llm.tokens import TokenTable, unmade_words, unmade_words_problem
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset import gguf_metadata as file_keys
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import TensorPlan
from minicpmo_ros.modelset.manifest import FILE_NAME, FileEntry, Manifest, write_manifest
from minicpmo_ros.quantize.quantizer import FILE_TYPES

PRECISIONS = {'f16': Type.F16, 'bf16': Type.BF16, 'f32': Type.F32}
OPENING_BYTES = 16 << 20  # more than the metadata of the published vocabularies
CORRECT_ALL = 'Correct config.json or the tokenizer files, or use the files of one model'
LARGEST_F16 = 65504.0
SHOWN = 5  # names in a message
LICENCE = 'That of the checkpoint; see its model card.'


@dataclass(frozen=True)
class Conversion:
    """What was written, and the names of the checkpoint's tensors that no file holds."""

    model: ModelDirectory
    unused: tuple
    warnings: tuple = ()  # sentences about the tokenizer files


@dataclass(frozen=True)
class _Job:
    """One tensor to write: what the layout wants, and where it comes from."""

    plan: TensorPlan
    type: Type
    info: TensorInfo | None  # None: computed
    transposed: bool = False
    file: Path | None = None

    @property
    def n_bytes(self) -> int:
        return byte_count(self.plan.shape, self.type)


def convert_directory(
    source,
    target,
    precision: str = 'f16',
    model_id: str = '',
    overwrite: bool = False,
    on_progress: Callable[[str, str, int, int], None] | None = None,
) -> Conversion:
    """Write a model directory from a checkpoint of a MiniCPM-o.

    precision: 'f16', 'bf16' or 'f32', of matrices and tables; norms and biases stay f32.
    model_id: the name of the embedding space; empty: the name of the checkpoint.
    on_progress(part, tensor, bytes written, bytes in all) follows every tensor.
    Errors: ModelFileError for the checkpoint; InputError for precision, target or disk; OSError.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f'The type {precision!r} is unknown; allowed are {", ".join(PRECISIONS)}. '
            'Smaller ones are made by `minicpmo quantize` from these.'
        )
    checkpoint, target = Checkpoint.open(source), Path(target)
    name = _name_of(checkpoint.path)
    model_id = model_id or name
    shape = read_shape(checkpoint, model_id)
    tokens = read_tokens(checkpoint.path, shape.vocabulary, shape.family)
    jobs, unused = _planned(checkpoint, shape, PRECISIONS[precision])
    _check_target(target, jobs, overwrite)
    as_llm = {
        'name': model_id,
        'tokens': tokens,
        'chat_template': read_chat_template(checkpoint.path),
    }
    writers = _writers(shape, FILE_TYPES[PRECISIONS[precision]], as_llm)
    manifest = _manifest(shape.family, model_id, precision, name)
    _check_headers(checkpoint, manifest, writers, jobs)
    model = _write_all(target, manifest, writers, jobs, on_progress)
    return Conversion(model, unused, _warnings(checkpoint.path, tokens))


def _manifest(family: str, model_id: str, precision: str, checkpoint: str) -> Manifest:
    files = {part: FileEntry(f'{part}.gguf', precision) for part in PARTS}
    notes = f'Converted from the Hugging Face checkpoint {checkpoint}.'
    return Manifest(family, model_id, files, LICENCE, notes, FAMILIES[family].speech)


def _write_all(target: Path, manifest: Manifest, writers: dict, jobs, on_progress):
    """Write the files, then the manifest; return the ModelDirectory."""
    make_folder(target)
    (target / FILE_NAME).unlink(missing_ok=True)  # until all is there, it is no model
    tell = _progress(jobs, on_progress)
    for part, writer in writers.items():
        _write(target / f'{part}.gguf', writer, jobs[part], partial(tell, part))
    write_manifest(target, manifest)
    # Zeros in the checkpoint are not judged here: `check` and the nodes refuse what is empty.
    return ModelDirectory.open(target, hollow=True)


def _writers(shape: Shape, file_type: int, as_llm: dict) -> dict:
    """Return {part: (path) -> GGUFWriter with all metadata}; the language model comes last."""
    of_shape = {'shape': shape, 'file_type': file_type}
    return {
        'vision': partial(file_keys.vision_writer, **of_shape),
        'audio': partial(file_keys.audio_writer, **of_shape),
        'llm': partial(file_keys.llm_writer, **of_shape, **as_llm),
    }


def _warnings(source: Path, tokens: TokenTable) -> tuple:
    words = unmade_words(tokens.texts, tokens.types, tokens.merges)
    return (*tokens.warnings, *([f'{source}: {unmade_words_problem(words)}'] if words else []))


def _name_of(path: Path) -> str:
    """Return the directory's name; in Hugging Face's cache, where that is a hash, the model's."""
    path = path.resolve()
    if path.parent.name == 'snapshots':
        return path.parents[1].name.rpartition('--')[2]
    return path.name


def _planned(checkpoint: Checkpoint, shape: Shape, wanted: Type) -> tuple:
    """Return (part -> jobs, names of unused tensors), every tensor looked up and compared."""
    plans = {
        'llm': layouts.llm_tensors(shape),
        'vision': layouts.vision_tensors(shape),
        'audio': layouts.audio_tensors(shape),
    }
    sources = {
        plan.name: source_of(plan.name)
        for part in PARTS
        for plan in plans[part]
        if plan.name != COMPUTED
    }
    used = {source.name for source in sources.values()}
    if missing := sorted(used - set(checkpoint.tensors)):
        raise ModelFileError(
            checkpoint.path, f'{_some(missing, "tensors are missing")}', FETCH_ALL
        )
    unused = set(checkpoint.tensors) - used - _dropped(checkpoint, shape)
    if unknown := sorted(name for name in unused if not UNUSED.match(name)):
        raise ModelFileError(
            checkpoint.path,
            f'{_some(unknown, "tensors have no place in the GGUF layouts")}; without them the '
            'model would compute something else',
            'Use the published checkpoint, or one that was trained without them',
        )
    jobs = {
        part: [_job(checkpoint, plan, sources.get(plan.name), wanted) for plan in plans[part]]
        for part in PARTS
    }
    return jobs, tuple(sorted(set(checkpoint.tensors) - used))


def _dropped(checkpoint: Checkpoint, shape: Shape) -> set:
    """Return the tensors of the vision layer that the configuration tells to drop."""
    prefix = f'vpm.encoder.layers.{shape.vision_layers}.'
    return {name for name in checkpoint.tensors if name.startswith(prefix)}


def _some(names: list, what: str) -> str:
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return f'{len(names)} {what}: {", ".join(names[:SHOWN])}{more}'


def _job(checkpoint: Checkpoint, plan: TensorPlan, source: Source | None, wanted: Type) -> _Job:
    """Plan one tensor; ModelFileError where its shape is not what the others need."""
    ggml_type = Type.F32 if plan.kind == layouts.SINGLE else wanted
    if source is None:
        return _Job(plan, ggml_type, None)
    stored = checkpoint.tensors[source.name]
    info = stored.info()
    expected = plan.shape[::-1] if source.transposed else plan.shape
    expected = (expected[0] * source.parts, *expected[1:])
    if _without_ones(info.shape) != _without_ones(expected):
        raise ModelFileError(
            stored.file,
            f'the tensor {source.name} has the shape {info.shape}, {expected} is expected',
            'Use the weight files of one model, as they were published',
        )
    if source.parts > 1:
        rows = info.shape[0] // source.parts
        n_bytes = info.n_bytes // source.parts
        offset = info.offset + source.part * n_bytes
        info = TensorInfo(info.name, (rows, *info.shape[1:]), info.type, offset, n_bytes)
    return _Job(plan, ggml_type, info, source.transposed, stored.file)


def _without_ones(shape: tuple) -> tuple:
    """Biases of convolutions are (n,) in checkpoints and (n, 1) in the published files."""
    return tuple(side for side in shape if side != 1)


def _check_target(target: Path, jobs: dict, overwrite: bool) -> None:
    """Refuse what would be overwritten, and a disk without room for all three files."""
    names = [*(f'{part}.gguf' for part in PARTS), FILE_NAME]
    present = [name for name in names if (target / name).exists()]
    if present and not overwrite:
        raise InputError(
            f'{target} already holds {", ".join(present)}; give another directory, or allow '
            'overwriting (--force).'
        )
    existing = target
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f'{existing} is no directory; give a directory to write to.')
    needed = OPENING_BYTES + sum(job.n_bytes for part in PARTS for job in jobs[part])
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f'The files will have {needed / 2**20:.0f} MiB, the disk of {target} has '
            f'{free / 2**20:.0f} MiB free. Free some, or write elsewhere.'
        )


def _check_headers(checkpoint: Checkpoint, manifest: Manifest, writers: dict, jobs: dict) -> None:
    """Check the files by their headers, with holes for weights; raises ModelFileError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for part, make_writer in writers.items():
                _write_hollow(Path(folder) / manifest.files[part].path, make_writer, jobs[part])
            ModelDirectory.of(folder, manifest, hollow=True)
        except ModelFileError as error:
            problem = f'its {Path(error.path).name} would be refused: {error.problem}'
            raise ModelFileError(checkpoint.path, problem, CORRECT_ALL) from None
        except UnicodeEncodeError as error:  # half of a pair, which JSON can hold
            problem = f'the text {error.object[:40]!r} of its tokenizer files is no Unicode'
            raise ModelFileError(checkpoint.path, problem, FETCH_ALL) from None


def _write_hollow(path: Path, make_writer: Callable, jobs: list) -> None:
    """Write a file that takes no room on a disk."""
    _open(path, make_writer, jobs)
    with open(path, 'r+b') as file:
        file.seek(0, os.SEEK_END)
        for job in jobs:
            file.seek(-file.tell() % DEFAULT_ALIGNMENT + job.n_bytes, os.SEEK_CUR)
        file.truncate()


def _progress(jobs: dict, on_progress) -> Callable:
    """Return what counts the bytes of all files and passes them on."""
    total = sum(job.n_bytes for part in PARTS for job in jobs[part])
    done = 0

    def tell(part: str, job: _Job) -> None:
        nonlocal done
        done += job.n_bytes
        if on_progress:
            on_progress(part, job.plan.name, done, total)

    return tell


def _open(path, make_writer: Callable, jobs: list) -> None:
    """Write what comes before the tensors."""
    writer = make_writer(path)
    file_keys.declare(writer, [(job.plan.name, job.plan.shape, job.type) for job in jobs])
    writer.close()


def _write(target: Path, make_writer: Callable, jobs: list, tell: Callable) -> None:
    """Write one file: what comes before the tensors, then these in blocks of rows."""
    with appearing(target, sum(job.n_bytes for job in jobs)) as sink:
        _open(sink.name, make_writer, jobs)
        sink.seek(0, os.SEEK_END)
        for job in jobs:
            align(sink, DEFAULT_ALIGNMENT)
            for values in _values(job):
                sink.write(_encoded(job, values))
            tell(job)
        align(sink, DEFAULT_ALIGNMENT)


def _values(job: _Job) -> Iterator[np.ndarray]:
    """Yield a tensor in blocks of rows: (n, k) float32."""
    if job.info is None:
        yield np.ascontiguousarray(job.plan.values(), np.float32)
        return
    with open(job.file, 'rb') as file:
        blocks = row_blocks(job.file, file, job.info)
        if job.transposed:
            blocks = _transposed(job.info, blocks)
        for rows in blocks:
            yield dequantize(rows, job.info.type)


def _transposed(info: TensorInfo, blocks: Iterator) -> Iterator[np.ndarray]:
    """Yield the columns of a matrix as rows; it is held whole, 32 MiB in 16 bits at 4096."""
    n_rows, n_columns = info.shape
    whole = np.empty((n_rows, row_bytes(info.type, n_columns)), np.uint8)
    start = 0
    for rows in blocks:
        whole[start : start + len(rows)] = rows
        start += len(rows)
    columns = whole.view(f'u{info.type.block_bytes}').T  # (columns, rows)
    step = max(1, BLOCK_VALUES // n_rows)
    for start in range(0, n_columns, step):
        yield np.ascontiguousarray(columns[start : start + step]).view(np.uint8)


def _encoded(job: _Job, values: np.ndarray) -> np.ndarray:
    """Return rows in the type they are stored in; ModelFileError for what it cannot hold."""
    if not np.isfinite(values).all():
        raise ModelFileError(
            job.file, f'its tensor {job.info.name} holds NaN or infinite numbers', FETCH_ALL
        )
    if job.type == Type.F16 and (largest := float(np.abs(values).max())) > LARGEST_F16:
        raise ModelFileError(
            job.file,
            f'its tensor {job.info.name} holds {largest:.4g}, which is too large for f16',
            'Convert to bf16 or f32 (--type)',
        )
    return quantize(values, job.type)
