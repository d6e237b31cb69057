# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an audio file says: Whisper's encoder and MiniCPM's projector, as 360CVGroup stores them.

The layout has no prefixes on its keys and leaves out what never varies: layer-norm epsilon
1e-5, one position per 20 ms. How many positions there are is the length of their table.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.weights import Want, check

FRAMES_PER_SECOND = 100  # of the mel spectrogram
POSITIONS_PER_SECOND = 50  # of the encoder: its second convolution has stride 2
MAX_LAYERS = 256
OTHER_FILE = 'Use an audio file of MiniCPM-o, or convert it again'


@dataclass(frozen=True)
class WhisperFacts:
    """Sizes of one audio file."""

    d_model: int  # width of the encoder
    layers: int
    heads: int
    ffn: int  # width of the feed-forward
    mel_bins: int
    pool_step: int  # positions averaged to one token
    positions: int  # learned; 1500 for 30 s
    width: int  # of the tokens, the language model's

    @property
    def tokens_per_second(self) -> int:
        """25 with a pool step of 2, 10 with 5; what is left of a second is dropped."""
        return POSITIONS_PER_SECOND // self.pool_step

    @property
    def max_seconds(self) -> int:
        """Whole seconds that the positions last for."""
        return self.positions // POSITIONS_PER_SECOND


def read_facts(header: Header) -> WhisperFacts:
    """Read the facts and check every tensor's shape; ModelFileError says what does not fit."""
    if header.require('general.architecture', str) != 'whisper':
        raise ModelFileError(header.path, 'it is no audio file', OTHER_FILE)
    facts = WhisperFacts(
        d_model=header.require('d_model', int),
        layers=header.require('encoder_layers', int),
        heads=header.require('encoder_attention_heads', int),
        ffn=header.require('encoder_ffn_dim', int),
        mel_bins=header.require('n_mel', int),
        pool_step=header.require('audio_pool_step', int),
        positions=_rows(header, 'encoder.positional_embedding'),
        width=_rows(header, 'audio_projector.linear2.weight'),
    )
    _check_sizes(header, facts)
    check(header, wanted(header, facts))
    return facts


def _rows(header: Header, name: str) -> int:
    info = header.tensors.get(name)
    if info is None or len(info.shape) != 2:
        raise ModelFileError(header.path, f'it has no table {name}', OTHER_FILE)
    return info.shape[0]


def _check_sizes(header: Header, facts: WhisperFacts) -> None:
    limits = {
        'encoder_layers': (facts.layers, 1 <= facts.layers <= MAX_LAYERS),
        'encoder_attention_heads': (
            facts.heads,
            facts.heads > 0 and facts.d_model % facts.heads == 0,
        ),
        'audio_pool_step': (facts.pool_step, 1 <= facts.pool_step <= POSITIONS_PER_SECOND),
        'the number of positions': (facts.positions, facts.max_seconds > 0),
    }
    for key, (value, fits) in limits.items():
        if not fits:
            raise ModelFileError(header.path, f'{key} cannot be {value}', OTHER_FILE)
    if f'encoder.blocks.{facts.layers}.attn_ln.weight' in header.tensors:
        raise ModelFileError(
            header.path, f'it has more layers than the {facts.layers} it claims', OTHER_FILE
        )


def wanted(header: Header, facts: WhisperFacts) -> dict:
    """Every tensor of the encoder, by name in the file."""
    d, ffn = facts.d_model, facts.ffn
    return {
        **_convolution(header, 'encoder.conv1', d, facts.mel_bins),
        **_convolution(header, 'encoder.conv2', d, d),
        'encoder.positional_embedding': Want((facts.positions, d), as_float=True),
        **{
            name: want
            for i in range(facts.layers)
            for name, want in _layer(f'encoder.blocks.{i}.', d, ffn).items()
        },
        **_norm('encoder.ln_post', d),
        **_linear('audio_projector.linear1', _rows(header, 'audio_projector.linear1.weight'), d),
        **_linear(
            'audio_projector.linear2', facts.width, _rows(header, 'audio_projector.linear1.weight')
        ),
    }


def _layer(block: str, d: int, ffn: int) -> dict:
    return {
        **_norm(block + 'attn_ln', d),
        **_norm(block + 'mlp_ln', d),
        **_linear(block + 'attn.query', d, d),
        **_linear(block + 'attn.value', d, d),
        **_linear(block + 'attn.out', d, d),
        block + 'attn.key.weight': Want((d, d), matmul=True),  # Whisper's keys have no bias
        **_linear(block + 'mlp.0', ffn, d),
        **_linear(block + 'mlp.2', d, ffn),
    }


def _linear(name: str, n_out: int, n_in: int) -> dict:
    return {
        name + '.weight': Want((n_out, n_in), matmul=True),
        name + '.bias': Want((n_out,), as_float=True),
    }


def _norm(name: str, n: int) -> dict:
    return {name + '.weight': Want((n,), as_float=True), name + '.bias': Want((n,), as_float=True)}


def _convolution(header: Header, name: str, n_out: int, n_in: int) -> dict:
    """A kernel (out, in, 3) becomes (out, 3 * in), to be multiplied with Builder.taps()."""
    bias = header.tensors.get(name + '.bias')
    shape = (n_out,) if bias and bias.shape == (n_out,) else (n_out, 1)  # as published
    return {
        name + '.weight': Want((n_out, n_in, 3), transform=_taps_first, stored=(n_out, 3 * n_in)),
        name + '.bias': Want(shape, as_float=True, transform=_flat, stored=(n_out,)),
    }


def _taps_first(_name: str, _info, kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(0, 2, 1).reshape(len(kernel), -1)  # (out, 3 * in)


def _flat(_name: str, _info, bias: np.ndarray) -> np.ndarray:
    return bias.reshape(-1)  # (out,)
