# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Writes nano as the world's MiniCPM-o 2.6 files are laid out: llm, vision and audio GGUF, and a
manifest.

Language: llama.cpp's qwen2 with tied output. Vision: llama.cpp's clip with a resampler,
minicpmv_version 4 (the feed-forward layers' names are swapped there: 'down' is the first).
Audio: 360CVGroup's Whisper encoder with its projector. Matrices in float16, norms and biases in
float32.
"""

from pathlib import Path

import numpy as np
import torch

from minicpmo_ros.models.file_keys import audio_writer, llm_writer, vision_writer
from minicpmo_ros.models.manifest import FileEntry, Manifest, write_manifest
from minicpmo_ros.models.shapes import Shape
from minicpmo_ros.models.tokens import TokenTable

from .model import interpolation, position_buckets
from .scenes import IMAGE_SIZE, PATCH
from .tokenizer import SPECIAL

F16 = 1  # llama.cpp's number of the precision
NORMAL, CONTROL = 1, 3  # token types
# Of 1500: as far into a stream as it still hears words as well as at its begin; the package hands
# over to a second stream before that.
AUDIO_POSITIONS = 750
WINDOW_ROWS = 8192


def shape_of(config, tokenizer):
    """The sizes as the package's own writers of these files want them."""
    return Shape(
        'nano',
        width=config.width,
        llm_layers=config.layers,
        llm_heads=config.heads,
        llm_kv_heads=config.kv_heads,
        llm_ffn=config.ffn,
        vocabulary=len(tokenizer.pieces),
        vision_width=config.vision_width,
        vision_layers=config.vision_layers,
        vision_heads=config.vision_heads,
        vision_ffn=4 * config.vision_width,
        audio_width=config.audio_width,
        audio_layers=config.audio_layers,
        audio_heads=config.audio_heads,
        queries=config.queries,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        audio_positions=AUDIO_POSITIONS,
        llm_tied=True,
        context_length=WINDOW_ROWS,
        rope_base=config.rope_base,
    )


def _array(tensor, half=True):
    return tensor.detach().numpy().astype(np.float16 if half else np.float32)


def _linear(writer, name, layer):
    writer.add_tensor(f'{name}.weight', _array(layer.weight))
    if layer.bias is not None:
        writer.add_tensor(f'{name}.bias', _array(layer.bias, half=False))


def _norm(writer, name, norm):
    writer.add_tensor(f'{name}.weight', _array(norm.weight, half=False))
    if getattr(norm, 'bias', None) is not None:
        writer.add_tensor(f'{name}.bias', _array(norm.bias, half=False))


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llm(path, shape, language, tokenizer):
    tokens = TokenTable(
        texts=tokenizer.pieces,
        types=[CONTROL if piece in SPECIAL else NORMAL for piece in tokenizer.pieces],
        merges=[' '.join(pair) for pair in tokenizer.merges],
    )
    writer = llm_writer(path, shape, F16, shape.name, tokens)
    writer.add_tensor('token_embd.weight', _array(language.embed.weight))
    _norm(writer, 'output_norm', language.norm)
    for i, layer in enumerate(language.layers):
        block = f'blk.{i}.'
        _norm(writer, block + 'attn_norm', layer.norm1)
        _norm(writer, block + 'ffn_norm', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_output', layer.out),
            ('ffn_gate', layer.gate),
            ('ffn_up', layer.up),
            ('ffn_down', layer.down),
        ):
            _linear(writer, block + name, linear)
    _finish(writer)


def position_table(shape, vision):
    """(4900, d): the control points spread over the published grid of 70 x 70."""
    buckets = position_buckets(shape.position_grid)
    weights = interpolation(buckets, vision.config.vision_grid)
    return torch.tensor(np.kron(weights, weights), dtype=torch.float32) @ vision.positions


def write_vision(path, shape, vision):
    writer = vision_writer(path, shape, F16)
    writer.add_tensor('v.patch_embd.weight', _array(vision.patch.weight.view(-1, 3, PATCH, PATCH)))
    writer.add_tensor('v.patch_embd.bias', _array(vision.patch.bias, half=False))
    writer.add_tensor('v.position_embd.weight', _array(position_table(shape, vision)))
    for i, layer in enumerate(vision.layers):
        block = f'v.blk.{i}.'
        _norm(writer, block + 'ln1', layer.norm1)
        _norm(writer, block + 'ln2', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_out', layer.out),
            ('ffn_down', layer.up),
            ('ffn_up', layer.down),
        ):
            _linear(writer, block + name, linear)
    _norm(writer, 'v.post_ln', vision.post_norm)
    _write_resampler(writer, vision)
    _finish(writer)


def _write_resampler(writer, vision):
    writer.add_tensor('resampler.query', _array(vision.query, half=False))
    # Readers look for this table and compute the positions themselves; 5 MB are spared.
    writer.add_tensor('resampler.pos_embed_k', np.zeros((1, vision.config.width), np.float32))
    for name, linear in (
        ('kv', vision.kv),
        ('attn.q', vision.q),
        ('attn.k', vision.k),
        ('attn.v', vision.v),
        ('attn.out', vision.out),
        ('proj', vision.project),
    ):
        _linear(writer, f'resampler.{name}', linear)
    for name, norm in (
        ('ln_q', vision.norm_q),
        ('ln_kv', vision.norm_kv),
        ('ln_post', vision.norm_out),
    ):
        _norm(writer, f'resampler.{name}', norm)


def write_audio(path, shape, audio):
    writer = audio_writer(path, shape, F16)
    for name, conv in (('conv1', audio.conv1), ('conv2', audio.conv2)):
        writer.add_tensor(f'encoder.{name}.weight', _array(conv.weight))
        writer.add_tensor(f'encoder.{name}.bias', _array(conv.bias[:, None], half=False))
    positions = audio.position_rows()[: shape.audio_positions]
    writer.add_tensor('encoder.positional_embedding', _array(positions, half=False))
    for i, layer in enumerate(audio.layers):
        block = f'encoder.blocks.{i}.'
        _norm(writer, block + 'attn_ln', layer.norm1)
        _norm(writer, block + 'mlp_ln', layer.norm2)
        for name, linear in (
            ('attn.query', layer.q),
            ('attn.key', layer.k),
            ('attn.value', layer.v),
            ('attn.out', layer.out),
            ('mlp.0', layer.up),
            ('mlp.2', layer.down),
        ):
            _linear(writer, block + name, linear)
    _norm(writer, 'encoder.ln_post', audio.post_norm)
    _linear(writer, 'audio_projector.linear1', audio.linear1)
    _linear(writer, 'audio_projector.linear2', audio.linear2)
    _finish(writer)


def export(directory, vision, audio, language, tokenizer, notes):
    """Write the three files and manifest.yaml; `notes` says how nano was trained and what it
    knows.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shape = shape_of(language.config, tokenizer)
    write_llm(directory / 'llm.gguf', shape, language, tokenizer)
    write_vision(directory / 'vision.gguf', shape, vision)
    write_audio(directory / 'audio.gguf', shape, audio)
    files = {role: FileEntry(f'{role}.gguf', 'f16') for role in ('llm', 'vision', 'audio')}
    write_manifest(directory, Manifest(shape.family, shape.name, files, 'Apache-2.0', notes))
