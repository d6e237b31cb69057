# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Starts a training from the files of a nano instead of from nothing: export.py backwards."""

import copy
from pathlib import Path

import gguf
import torch

from .export import audio_tensors, control_weights, llm_tensors, vision_tensors


def _tensors(path):
    """name -> tensor in float32, as the file holds it."""
    return {
        t.name: torch.from_numpy(t.data.copy()).float().reshape(tuple(reversed(t.shape.tolist())))
        for t in gguf.GGUFReader(path).tensors
    }


@torch.no_grad()
def _fill(pairs, stored):
    for name, parameter in pairs:
        parameter.copy_(stored[name].reshape(parameter.shape))


@torch.no_grad()
def start_vision(vision, directory: Path):
    """Fill the encoder in place; control points are found from the table of positions."""
    stored = _tensors(directory / 'vision.gguf')
    _fill(vision_tensors(vision), stored)
    weights = control_weights(vision.config)  # (4900, n)
    vision.positions.copy_(torch.linalg.lstsq(weights, stored['v.position_embd.weight']).solution)


@torch.no_grad()
def start_audio(audio, directory: Path):
    """Fill the encoder in place. The file ends at second 15: later ones begin as that one."""
    stored = _tensors(directory / 'audio.gguf')
    _fill(audio_tensors(audio), stored)
    rows = stored['encoder.positional_embedding'].view(-1, *audio.inside.shape)  # (s, 50, d)
    inside = rows.mean(0)
    seconds = (rows - inside).mean(1)  # (s, d)
    audio.inside.copy_(inside)
    audio.second.copy_(seconds[-1])
    audio.second[: len(seconds)] = seconds


@torch.no_grad()
def start_language(language, directory: Path, tokenizer):
    """Fill the language model in place; pieces of text that are new keep what they have."""
    path = directory / 'llm.gguf'
    stored = _tensors(path)
    field = gguf.GGUFReader(path).get_field('tokenizer.ggml.tokens')
    rows = dict(zip(field.contents(), stored['token_embd.weight']))
    pairs = dict(llm_tensors(language))
    embeddings = pairs.pop('token_embd.weight')
    _fill(pairs.items(), stored)
    for i, piece in enumerate(tokenizer.pieces):
        if piece in rows:
            embeddings[i] = rows[piece]


@torch.no_grad()
def keep_share(module, start, share: float):
    """Move a module in place towards what `start` fills it with: `share` 1 is the latter.

    What a model forgets while it learns something new comes back so, at the price of a part of the
    new (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """
    before = copy.deepcopy(module)
    start(before)
    for parameter, kept in zip(module.parameters(), before.parameters(), strict=True):
        parameter.lerp_(kept, share)
