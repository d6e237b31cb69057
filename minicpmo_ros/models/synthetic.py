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
from minicpmo_ros.media.log_mel import filter_bank
from minicpmo_ros.models import layouts
from minicpmo_ros.models.gguf_copy import byte_count
from minicpmo_ros.models.layouts import PRECISIONS
from minicpmo_ros.models.manifest import (
    ARCHITECTURES,
    VISION_VERSIONS,
    FileEntry,
    Manifest,
    write_manifest,
)
from minicpmo_ros.models.quantize_rules import fitting_type
from minicpmo_ros.models.random_rows import RandomRows, encode
from minicpmo_ros.models.shapes import SHAPES, Shape
from minicpmo_ros.models.tokens import TokenTable, make_tokens

FILE_TYPES = {'f32': 0, 'f16': 1, 'q4_0': 2, 'q8_0': 7, 'q4_K': 15}  # llama.cpp's file types
CHAT_TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


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
    writer = gguf.GGUFWriter(path, ARCHITECTURES[shape.family])
    writer.add_name(f'random-{shape.name}-{seed}')
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.llm_layers)
    writer.add_feed_forward_length(shape.llm_ffn)
    writer.add_head_count(shape.llm_heads)
    writer.add_head_count_kv(shape.llm_kv_heads)
    if ARCHITECTURES[shape.family] == 'qwen3':
        writer.add_key_length(shape.llm_head_width)
        writer.add_value_length(shape.llm_head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_tokens(writer, make_tokens(shape.vocabulary, shape.family))
    _write(writer, layouts.llm_tensors(shape), seed, precision)


def _add_tokens(writer: gguf.GGUFWriter, tokens: TokenTable) -> None:
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('qwen2')
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges)
    writer.add_bos_token_id(tokens.id_of('<|endoftext|>'))
    writer.add_eos_token_id(tokens.id_of('<|im_end|>'))
    writer.add_pad_token_id(tokens.id_of('<|endoftext|>'))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_vision(
    path,
    shape: Shape,
    seed: int | None = 1,
    precision: str = 'f16',
    ffn_naming: str = 'swapped',
    pad_ffn: bool = False,
) -> None:
    """Write SigLIP and resampler in llama.cpp's clip layout."""
    writer = gguf.GGUFWriter(path, 'clip')
    writer.add_bool('clip.has_text_encoder', False)
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_bool('clip.has_minicpmv_projector', True)
    writer.add_file_type(1 if precision != 'f32' else 0)
    writer.add_description('image encoder for MiniCPM-V')
    writer.add_string('clip.projector_type', 'resampler')
    writer.add_int32('clip.minicpmv_version', VISION_VERSIONS[shape.family][0])
    writer.add_uint32('clip.minicpmv_query_num', shape.queries)
    for key, value in {
        'image_size': shape.image_size,
        'patch_size': shape.patch_size,
        'embedding_length': shape.vision_width,
        'feed_forward_length': shape.vision_ffn,
        'projection_dim': 0,
        'block_count': shape.vision_layers,
        'attention.head_count': shape.vision_heads,
    }.items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-6)
    writer.add_array('clip.vision.image_mean', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.image_std', [0.5, 0.5, 0.5])
    writer.add_bool('clip.use_gelu', True)
    columns = 0
    if pad_ffn:
        block = block_size(PRECISIONS[precision])
        columns = -(-shape.vision_ffn // block) * block
    plans = layouts.vision_tensors(shape, ffn_naming, columns)
    _write(writer, plans, seed, precision)


def write_audio(path, shape: Shape, seed: int | None = 1, precision: str = 'f16') -> None:
    """Write the Whisper encoder and projector in 360CVGroup's layout."""
    writer = gguf.GGUFWriter(path, 'whisper')
    writer.add_file_type(1 if precision != 'f32' else 0)
    writer.add_description('audio encoder for MiniCPM-omni')
    bank = np.asarray(filter_bank(), np.float32)  # (mel bins, spectrum bins)
    for key, value in {
        'encoder_attention_heads': shape.audio_heads,
        'encoder_ffn_dim': shape.audio_ffn,
        'encoder_layers': shape.audio_layers,
        'num_hidden_layers': shape.audio_layers,
        'd_model': shape.audio_width,
        'audio_pool_step': shape.audio_pool,
        'use_f16': 1,
        'n_mel': shape.mel_bins,
        'n_fft': bank.shape[1],
    }.items():
        writer.add_uint32(key, value)
    writer.add_array('filters', bank.reshape(-1).tolist())
    _write(writer, layouts.audio_tensors(shape), seed, precision)


def _write(writer: gguf.GGUFWriter, plans: list, seed: int | None, precision: str) -> None:
    """Stream the tensors to disk one by one."""
    rows = None if seed is None else RandomRows(seed)
    types = [_stored_type(plan, precision) for plan in plans]
    for plan, kind in zip(plans, types):
        writer.add_tensor_info(
            plan.name,
            plan.shape,
            np.dtype(np.float32),
            byte_count(plan.shape, kind),
            gguf.GGMLQuantizationType(kind),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
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
