# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make whisper.npz: what the offline Whisper encoder of transformers says in float32.

    pip install -r environment/requirements-golden.txt && python test/golden/make_whisper.py

The layers are those of transformers' WhisperEncoder under a chunk-causal mask: a position
sees its own second and those before. Projector and pooling are the model's own, in order.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from whisper_files import random_mel, random_tensors  # noqa: E402

SECONDS, HEADS = 4, 4
NAMES = {
    'encoder.ln_post': 'layer_norm',
    'encoder.blocks': 'layers',
    'attn_ln': 'self_attn_layer_norm',
    'attn.query': 'self_attn.q_proj',
    'attn.key': 'self_attn.k_proj',
    'attn.value': 'self_attn.v_proj',
    'attn.out': 'self_attn.out_proj',
    'mlp_ln': 'final_layer_norm',
    'mlp.0': 'fc1',
    'mlp.2': 'fc2',
    'encoder.positional_embedding': 'embed_positions.weight',
    'encoder.conv': 'conv',
}


def encoder_of(tensors: dict) -> WhisperEncoder:
    """Give transformers' encoder with these weights."""
    d = tensors['encoder.ln_post.bias'].size
    config = WhisperConfig(
        d_model=d,
        encoder_layers=2,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * d,
        num_mel_bins=80,
        max_source_positions=50 * SECONDS,
        activation_function='gelu',
        dropout=0.0,
        attn_implementation='eager',
    )
    state = {}
    for name, array in tensors.items():
        if name.startswith('encoder.'):
            for ours, theirs in NAMES.items():
                name = name.replace(ours, theirs)
            state[name] = torch.from_numpy(
                array.squeeze(-1) if 'conv' in name and name.endswith('bias') else array
            )
    encoder = WhisperEncoder(config).eval()
    encoder.load_state_dict(state)
    return encoder


def tokens(encoder, tensors: dict, mel: np.ndarray, pool_step: int, isolated: bool) -> np.ndarray:
    """Encode the whole sound at once: (tokens, width)."""
    frames = torch.from_numpy(mel.T.copy())[None]  # (1, 80, frames)
    pieces = frames.split(100, 2) if isolated else [frames]
    x = torch.cat(
        [
            functional.gelu(encoder.conv2(functional.gelu(encoder.conv1(piece))))
            for piece in pieces
        ],
        2,
    ).transpose(1, 2)  # (1, positions, d)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    second = torch.arange(x.shape[1]) // 50
    mask = torch.where(second[None] <= second[:, None], 0.0, torch.finfo(torch.float32).min)
    for layer in encoder.layers:
        x = layer(x, mask[None, None])
    x = encoder.layer_norm(x)
    p = {name: torch.from_numpy(array) for name, array in tensors.items()}
    x = torch.relu(
        functional.linear(
            x, p['audio_projector.linear1.weight'], p['audio_projector.linear1.bias']
        )
    )
    x = functional.linear(
        x, p['audio_projector.linear2.weight'], p['audio_projector.linear2.bias']
    )
    return functional.avg_pool1d(x.transpose(1, 2), pool_step).transpose(1, 2)[0].numpy()


def main() -> None:
    """Write the file."""
    tensors, mel = random_tensors(seconds=SECONDS), random_mel(SECONDS)
    encoder = encoder_of(tensors)
    with torch.no_grad():
        np.savez_compressed(
            HERE / 'whisper.npz',
            checksum=sum(float(np.abs(array).sum()) for array in [mel, *tensors.values()]),
            tokens=tokens(encoder, tensors, mel, 2, False),  # (100, 96)
            tokens_pool_5=tokens(encoder, tensors, mel, 5, False),  # (40, 96)
            tokens_isolated=tokens(encoder, tensors, mel, 2, True),
        )  # (100, 96)


if __name__ == '__main__':
    main()
