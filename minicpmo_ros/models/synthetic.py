# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Models of random weights in the published file layouts: tests and benchmarks need no downloads.

They compute what a real model of that size computes, at its cost and in its memory, and their
outputs depend on their inputs; what they say means nothing. Same arguments, same bytes.
"""

from pathlib import Path

import gguf
import numpy as np

from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.ggml.types import block_size
from minicpmo_ros.models import file_keys, layouts
from minicpmo_ros.models.gguf_copy import byte_count
from minicpmo_ros.models.layouts import PRECISIONS
from minicpmo_ros.models.manifest import FileEntry, Manifest, write_manifest
from minicpmo_ros.models.quantize_rules import fitting_type
from minicpmo_ros.models.random_rows import RandomRows, encode
from minicpmo_ros.models.shapes import SHAPES, Shape
from minicpmo_ros.models.tokens import make_tokens

FILE_TYPES = {'f32': 0, 'f16': 1, 'q4_0': 2, 'q8_0': 7, 'q4_K': 15}  # llama.cpp's file types


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
    directory.mkdir(parents=True, exist_ok=True)
    write_llm(directory / 'llm.gguf', shape, seed, llm_type)
    write_vision(directory / 'vision.gguf', shape, seed, vision_type, ffn_naming, pad_ffn)
    write_audio(directory / 'audio.gguf', shape, seed, audio_type)
    types = {'llm': llm_type, 'vision': vision_type, 'audio': audio_type}
    files = {role: FileEntry(f'{role}.gguf', kind) for role, kind in types.items()}
    write_manifest(
        directory,
        Manifest(
            shape.family,
            f'random-{shape.name}-{seed}',
            files,
            'Apache-2.0',
            'Random weights: for tests and benchmarks only.',
        ),
        hashes and seed is not None,
    )
    return directory


def write_llm(path, shape: Shape, seed: int | None = 1, precision: str = 'f16') -> None:
    """Write a language model in llama.cpp's layout for the family: qwen2 or qwen3."""
    tokens = make_tokens(shape.vocabulary, shape.family)
    name = f'random-{shape.name}-{seed}'
    writer = file_keys.llm_writer(path, shape, FILE_TYPES[precision], name, tokens)
    _write(writer, layouts.llm_tensors(shape), seed, precision)


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
        block = block_size(PRECISIONS[precision])
        columns = -(-shape.vision_ffn // block) * block
    plans = layouts.vision_tensors(shape, ffn_naming, columns)
    writer = file_keys.vision_writer(path, shape, 1 if precision != 'f32' else 0)
    _write(writer, plans, seed, precision)


def write_audio(path, shape: Shape, seed: int | None = 1, precision: str = 'f16') -> None:
    """Write the Whisper encoder and projector in 360CVGroup's layout."""
    writer = file_keys.audio_writer(path, shape, 1 if precision != 'f32' else 0)
    _write(writer, layouts.audio_tensors(shape), seed, precision)


def _write(writer: gguf.GGUFWriter, plans: list, seed: int | None, precision: str) -> None:
    """Stream the tensors to disk one by one."""
    rows = None if seed is None else RandomRows(seed)
    types = [_stored_type(plan, precision) for plan in plans]
    file_keys.declare(writer, [(plan.name, plan.shape, kind) for plan, kind in zip(plans, types)])
    for plan, kind in zip(plans, types):
        if rows is None:
            _leave_room(writer, byte_count(plan.shape, kind))
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
