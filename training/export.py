# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Writes nano as the world's MiniCPM-o 2.6 files are laid out: llm, vision and audio GGUF, and a
manifest.

Language: llama.cpp's qwen2 with tied output. Vision: llama.cpp's clip with a resampler,
minicpmv_version 4 (the feed-forward layers' names are swapped there: 'down' is the first).
Audio: 360CVGroup's Whisper encoder with its projector. Matrices in float16, norms and biases in
float32.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from minicpmo_ros.families import DEFAULT
from minicpmo_ros.families.base import Shape
from minicpmo_ros.llm.tokens import TokenTable
from minicpmo_ros.modelset.gguf_metadata import audio_writer, llm_writer, vision_writer
from minicpmo_ros.modelset.manifest import FileEntry, Manifest, write_manifest

from .model import interpolation, position_buckets
from .scenes import IMAGE_SIZE, PATCH
from .tokenizer import SPECIAL

F16 = 1  # llama.cpp's number of the precision
NORMAL, CONTROL = 1, 3  # token types
# Of 1500: as far into a stream as it still hears words as well as at its begin; the package hands
# over to a second stream before that.
AUDIO_POSITIONS = 750
WINDOW_ROWS = 8192
POSITION_GRID = 70  # learned positions of images a side


def shape_of(config, tokenizer):
    """The sizes as the package's own writers of these files want them."""
    return Shape(
        'nano',
        DEFAULT.name,
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
        position_grid=POSITION_GRID,
    )


def _linear(name, layer):
    yield f'{name}.weight', layer.weight
    if layer.bias is not None:
        yield f'{name}.bias', layer.bias


def _norm(name, norm):
    yield f'{name}.weight', norm.weight
    if getattr(norm, 'bias', None) is not None:
        yield f'{name}.bias', norm.bias


def llm_tensors(language):
    """Yield (name in the file, parameter) of the language model."""
    yield 'token_embd.weight', language.embed.weight
    yield from _norm('output_norm', language.norm)
    for i, layer in enumerate(language.layers):
        block = f'blk.{i}.'
        yield from _norm(block + 'attn_norm', layer.norm1)
        yield from _norm(block + 'ffn_norm', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_output', layer.out),
            ('ffn_gate', layer.gate),
            ('ffn_up', layer.up),
            ('ffn_down', layer.down),
        ):
            yield from _linear(block + name, linear)


def vision_tensors(vision):
    """Yield (name in the file, parameter) of the vision encoder; its positions are apart."""
    yield from _linear('v.patch_embd', vision.patch)
    for i, layer in enumerate(vision.layers):
        block = f'v.blk.{i}.'
        yield from _norm(block + 'ln1', layer.norm1)
        yield from _norm(block + 'ln2', layer.norm2)
        for name, linear in (
            ('attn_q', layer.q),
            ('attn_k', layer.k),
            ('attn_v', layer.v),
            ('attn_out', layer.out),
            ('ffn_down', layer.up),
            ('ffn_up', layer.down),
        ):
            yield from _linear(block + name, linear)
    yield from _norm('v.post_ln', vision.post_norm)
    yield 'resampler.query', vision.query
    for name, linear in (
        ('kv', vision.kv),
        ('attn.q', vision.q),
        ('attn.k', vision.k),
        ('attn.v', vision.v),
        ('attn.out', vision.out),
        ('proj', vision.project),
    ):
        yield from _linear(f'resampler.{name}', linear)
    for name, norm in (
        ('ln_q', vision.norm_q),
        ('ln_kv', vision.norm_kv),
        ('ln_post', vision.norm_out),
    ):
        yield from _norm(f'resampler.{name}', norm)


def audio_tensors(audio):
    """Yield (name in the file, parameter) of the audio encoder; its positions are apart."""
    for name, conv in (('conv1', audio.conv1), ('conv2', audio.conv2)):
        yield f'encoder.{name}.weight', conv.weight
        yield f'encoder.{name}.bias', conv.bias
    for i, layer in enumerate(audio.layers):
        block = f'encoder.blocks.{i}.'
        yield from _norm(block + 'attn_ln', layer.norm1)
        yield from _norm(block + 'mlp_ln', layer.norm2)
        for name, linear in (
            ('attn.query', layer.q),
            ('attn.key', layer.k),
            ('attn.value', layer.v),
            ('attn.out', layer.out),
            ('mlp.0', layer.up),
            ('mlp.2', layer.down),
        ):
            yield from _linear(block + name, linear)
    yield from _norm('encoder.ln_post', audio.post_norm)
    yield from _linear('audio_projector.linear1', audio.linear1)
    yield from _linear('audio_projector.linear2', audio.linear2)


_IN_FULL = {'resampler.query'}  # matrices that stay in float32
# Shapes that readers expect and the modules have flat.
_SHAPES = {
    'v.patch_embd.weight': (-1, 3, PATCH, PATCH),
    'encoder.conv1.bias': (-1, 1),
    'encoder.conv2.bias': (-1, 1),
}


def _add(writer, tensors):
    for name, parameter in tensors:
        is_half = parameter.dim() > 1 and name not in _IN_FULL
        array = parameter.detach().numpy().astype(np.float16 if is_half else np.float32)
        writer.add_tensor(name, array.reshape(_SHAPES.get(name, array.shape)))


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
    _add(writer, llm_tensors(language))
    _finish(writer)


def control_weights(config):
    """(4900, n) how much each control point has in each position of the published 70 x 70."""
    weights = interpolation(position_buckets(POSITION_GRID), config.vision_grid)
    return torch.tensor(np.kron(weights, weights), dtype=torch.float32)


def write_vision(path, shape, vision):
    writer = vision_writer(path, shape, F16)
    positions = control_weights(vision.config) @ vision.positions
    _add(writer, [('v.position_embd.weight', positions), *vision_tensors(vision)])
    # Readers look for this table and compute the positions themselves; 5 MB are spared.
    writer.add_tensor('resampler.pos_embed_k', np.zeros((1, vision.config.width), np.float32))
    _finish(writer)


def write_audio(path, shape, audio):
    writer = audio_writer(path, shape, F16)
    _add(writer, audio_tensors(audio))
    positions = audio.position_rows()[: shape.audio_positions].detach().numpy()
    writer.add_tensor('encoder.positional_embedding', positions.astype(np.float32))
    _finish(writer)


def export(directory, vision, audio, language, tokenizer, notes, stays=()):
    """Write the three files and manifest.yaml; `notes` says how nano was trained and what it
    knows. `stays`: earlier files that are copied, as rounded numbers are not found again exactly.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shape = shape_of(language.config, tokenizer)
    write_llm(directory / 'llm.gguf', shape, language, tokenizer)
    write_vision(directory / 'vision.gguf', shape, vision)
    write_audio(directory / 'audio.gguf', shape, audio)
    for path in stays:
        shutil.copy(path, directory)
    files = {role: FileEntry(f'{role}.gguf', 'f16') for role in ('llm', 'vision', 'audio')}
    # It never saw the tokens that prepare an answer for a voice.
    manifest = Manifest(shape.family, shape.name, files, 'Apache-2.0', notes, speech=False)
    write_manifest(directory, manifest)
