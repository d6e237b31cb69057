# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Models of random weights in the published file layouts: tests and benchmarks need no downloads.

They compute what a real model of that size computes, at its cost and in its memory, and their
outputs depend on their inputs; what they say means nothing. Same arguments, same bytes.

Random matrices are drawn in any precision at the speed of the disk. A large matrix is tiled from a
pool of really quantised rows; each repetition rolls the rows by one block, so that no two rows are
equal (equal rows would tie the logits).
"""

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from minicpmo_ros.documents import appearing, make_folder
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.base import Shape
from minicpmo_ros.ggml.gguf_copy import byte_count
from minicpmo_ros.ggml.library import quantize
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.llm.tokens import make_tokens
from minicpmo_ros.modelset import gguf_layouts as layouts
from minicpmo_ros.modelset import gguf_metadata as file_keys
from minicpmo_ros.modelset.downloads import HOLLOW
from minicpmo_ros.modelset.gguf_layouts import PRECISIONS, SHAPES
from minicpmo_ros.modelset.manifest import FILE_NAME, FileEntry, Manifest, write_manifest
from minicpmo_ros.quantize.rules import fitting_type

FILE_TYPES = {'f32': 0, 'f16': 1, 'q4_0': 2, 'q8_0': 7, 'q4_K': 15}  # llama.cpp's file types
POOL_VALUES = 1_000_000  # matrices up to this size are drawn number by number


def encode(values: np.ndarray, kind: Type) -> np.ndarray:
    """Return float32 values (rows, columns) as bytes (rows, blocks, bytes a block)."""
    n_rows, n_columns = values.shape
    return quantize(values, kind).reshape(n_rows, n_columns // kind.block_size, -1)


class RandomRows:
    """Draws normal matrices; the same seed and key give the same bytes."""

    def __init__(self, seed: int):
        self._seed = seed
        self._pools: dict = {}  # (type, columns, std, rows): encoded rows

    def generator(self, key: str) -> np.random.Generator:
        """Return the random numbers of one tensor."""
        return np.random.default_rng([self._seed, zlib.crc32(key.encode())])

    def values(self, key: str, shape: tuple, std: float, mean: float = 0.0) -> np.ndarray:
        """Draw float32 values of one tensor."""
        drawn = self.generator(key).standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(std) + np.float32(mean)

    def matrix(self, key: str, shape: tuple, std: float, kind: Type) -> np.ndarray:
        """Draw a matrix (rows, columns) as bytes (rows, blocks, bytes a block)."""
        if math.prod(shape) <= POOL_VALUES:
            return encode(self.values(key, shape, std), kind)
        return self._tile(key, shape[0], self._pool(shape, std, kind))

    def _pool(self, shape: tuple, std: float, kind: Type) -> np.ndarray:
        n_rows, n_columns = shape
        n_blocks = n_columns // kind.block_size
        # Rows times rolls must not be less than the rows that are wanted.
        n_pool = min(n_rows, max(POOL_VALUES // n_columns, -(-n_rows // n_blocks) + 1))
        key = (kind, n_columns, round(std, 6), n_pool)
        if key not in self._pools:
            self._pools[key] = encode(self.values(str(key), (n_pool, n_columns), std), kind)
        return self._pools[key]

    def _tile(self, key: str, n_rows: int, pool: np.ndarray) -> np.ndarray:
        n_pool, n_blocks, size = pool.shape
        out = np.empty((n_rows, n_blocks, size), np.uint8)
        random = self.generator(key)
        start, first_roll = int(random.integers(n_pool)), int(random.integers(n_blocks))
        for repeat, at in enumerate(range(0, n_rows, n_pool)):
            here = out[at : at + n_pool]
            rows = np.roll(pool, -start, axis=0)[: len(here)] if start else pool[: len(here)]
            roll = (first_roll + repeat) % n_blocks
            here[:, roll:] = rows[:, : n_blocks - roll]
            here[:, :roll] = rows[:, n_blocks - roll :]
        return out


def write_model(
    directory,
    shape: Shape | str = 'tiny',
    seed: int | None = 1,
    llm_type: str = 'f16',
    vision_type: str = 'f16',
    audio_type: str = 'f16',
    ffn_naming: str = 'swapped',
    pad_ffn: bool = False,
    hashes: bool = True,
) -> Path:
    """Write llm.gguf, vision.gguf, audio.gguf and manifest.yaml; return the directory.

    The types are f32, f16, q8_0, q4_0 or q4_K (with Q6_K where llama.cpp's Q4_K_M has it); rows
    that no block fits are stored as llama.cpp would, rows of the vision feed-forward in f16, or
    with `pad_ffn` widened by zeros. `ffn_naming` is 'swapped' (published) or 'plain'. Without a
    seed the files have true headers, and holes for weights: any size at once, in no space.
    """
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    directory = Path(directory)
    make_folder(directory)
    (directory / FILE_NAME).unlink(missing_ok=True)  # until all is there, it is no model
    write_llm(directory / 'llm.gguf', shape, seed, llm_type)
    write_vision(directory / 'vision.gguf', shape, seed, vision_type, ffn_naming, pad_ffn)
    write_audio(directory / 'audio.gguf', shape, seed, audio_type)
    types = {'llm': llm_type, 'vision': vision_type, 'audio': audio_type}
    files = {part: FileEntry(f'{part}.gguf', kind) for part, kind in types.items()}
    write_manifest(
        directory,
        Manifest(
            shape.family,
            f'random-{shape.name}-{seed}',
            files,
            'Apache-2.0',
            'Random weights: for tests and benchmarks only.',
            FAMILIES[shape.family].speech,
        ),
        hashes and seed is not None,
    )
    return directory


def write_llm(path, shape: Shape, seed: int | None = 1, precision: str = 'f16') -> None:
    """Write a language model in llama.cpp's layout for the family: qwen2 or qwen3."""
    tokens = make_tokens(shape.vocabulary, shape.family)
    name = f'random-{shape.name}-{seed}'

    def describe(path):
        return file_keys.llm_writer(path, shape, FILE_TYPES[precision], name, tokens)

    _write(path, describe, layouts.llm_tensors(shape), seed, precision)


def write_vision(
    path,
    shape: Shape,
    seed: int | None = 1,
    precision: str = 'f16',
    ffn_naming: str = 'swapped',
    pad_ffn: bool = False,
) -> None:
    """Write SigLIP and resampler in llama.cpp's clip layout."""
    columns = 0
    if pad_ffn:
        block = PRECISIONS[precision].block_size
        columns = -(-shape.vision_ffn // block) * block
    plans = layouts.vision_tensors(shape, ffn_naming, columns)

    def describe(path):
        return file_keys.vision_writer(path, shape, 1 if precision != 'f32' else 0)

    _write(path, describe, plans, seed, precision)


def write_audio(path, shape: Shape, seed: int | None = 1, precision: str = 'f16') -> None:
    """Write the Whisper encoder and projector in 360CVGroup's layout."""

    def describe(path):
        return file_keys.audio_writer(path, shape, 1 if precision != 'f32' else 0)

    _write(path, describe, layouts.audio_tensors(shape), seed, precision)


def _write(path, describe: Callable, plans: list, seed: int | None, precision: str) -> None:
    """Stream the tensors to disk one by one; the file appears when it is whole."""
    rows = None if seed is None else RandomRows(seed)
    types = [_stored_type(plan, precision) for plan in plans]
    sizes = [byte_count(plan.shape, kind) for plan, kind in zip(plans, types)]
    with appearing(Path(path), 0 if rows is None else sum(sizes)) as file:
        writer = describe(file.name)
        if rows is None:
            writer.add_bool(HOLLOW, True)
        tensors = [(plan.name, plan.shape, kind) for plan, kind in zip(plans, types)]
        file_keys.declare(writer, tensors)
        for plan, kind, n_bytes in zip(plans, types, sizes):
            if rows is None:
                _leave_room(writer, n_bytes)
            else:
                writer.write_tensor_data(_tensor_bytes(plan, kind, rows))
        writer.close()


def _leave_room(writer: gguf.GGUFWriter, n_bytes: int) -> None:
    file = writer.fout[0]
    end = -(-(file.tell() + n_bytes) // writer.data_alignment) * writer.data_alignment
    file.truncate(end)
    file.seek(end)


def _stored_type(plan: layouts.TensorPlan, precision: str) -> Type:
    wanted = PRECISIONS[precision]
    if plan.kind == layouts.SINGLE:
        return Type.F32
    if plan.kind == layouts.HALF:
        return Type.F32 if wanted == Type.F32 else Type.F16
    if plan.role == 'output' and wanted in (Type.Q4_0, Type.Q4_K):
        wanted = Type.Q6_K
    elif plan.role == 'sensitive' and wanted == Type.Q4_K:
        wanted = Type.Q6_K
    return fitting_type(wanted, plan.shape[-1])


def _tensor_bytes(plan: layouts.TensorPlan, kind: Type, rows: RandomRows) -> np.ndarray:
    key = plan.key or plan.name
    if plan.values is not None:
        return np.ascontiguousarray(plan.values(), '<f4')
    if plan.kind == layouts.MATRIX and not plan.n_valid_columns:
        return rows.matrix(key, plan.shape, plan.std, kind).reshape(-1)
    columns = plan.n_valid_columns or plan.shape[-1]
    values = rows.values(key, (*plan.shape[:-1], columns), plan.std, plan.mean)
    if plan.kind == layouts.MATRIX:
        values = np.pad(values, ((0, 0), (0, plan.shape[1] - columns)))
        return encode(values, kind).reshape(-1)
    return values.astype('<f2' if kind == Type.F16 else '<f4')
