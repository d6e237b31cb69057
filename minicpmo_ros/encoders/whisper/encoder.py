# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whisper's encoder and MiniCPM's projector of an audio file: its sizes, its tensors, its memory.

The file's layout (360CVGroup's) has no prefixes on its keys and leaves out what never varies:
layer-norm epsilon 1e-5, one position per 20 ms. How many positions there are is the length of
their table. An AudioEncoder holds the weights; its streams (stream.py) encode.
"""

from collections.abc import Sequence

import numpy as np

from minicpmo_ros.encoders import MAX_LAYERS, EncoderMemory
from minicpmo_ros.encoders.whisper.stream import (
    ALL_SECONDS,
    KV_TYPES,
    POSITIONS_PER_SECOND,
    AudioStream,
    StepGraph,
    WhisperFacts,
    cache_shapes,
)
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import Header, read_header
from minicpmo_ros.ggml.graph import buffer_bytes
from minicpmo_ros.ggml.runtime import Backend, DescribedTensors, Tensors
from minicpmo_ros.ggml.weights import Want, check, describe_weights, load_weights

OTHER_FILE = 'Use an audio file of MiniCPM-o, or convert it again'


class AudioEncoder:
    """The weights of one audio file on a device; any number of streams use them."""

    def __init__(
        self,
        facts: WhisperFacts,
        weights: Tensors,
        backend: Backend,
        attention: str,
        kv_type: str,
        fixed_graph: bool,
    ):
        self.facts, self.weights, self.backend = facts, weights, backend
        self.attention, self.kv_type, self.fixed_graph = attention, kv_type, fixed_graph

    @classmethod
    def load(
        cls,
        source,
        backend: Backend,
        attention: str = 'auto',
        kv_type: str = 'f16',
        repack: bool = True,
        fixed_graph: bool | None = None,
    ) -> 'AudioEncoder':
        """Load an audio GGUF file, given as a path or a Header.

        attention: 'flash' (fused) or 'mul_mat'; 'auto' takes flash on a GPU.
        kv_type: of the cache, 'f16' or 'f32'.
        repack: interleave q4_0 weights for a CPU.
        fixed_graph: one masked graph for all seconds (flash only); default: on a GPU.
        Errors: ModelFileError for the file, EngineError for the device.
        """
        if kv_type not in KV_TYPES:
            raise ValueError(f'kv_type {kv_type!r} is not known')
        attention, fixed_graph = graph_form(backend, attention, fixed_graph)
        header = source if isinstance(source, Header) else read_header(source)
        facts = read_facts(header)
        weights = load_weights(header, backend, wanted(header, facts), repack=repack)
        return cls(facts, weights, backend, attention, kv_type, fixed_graph)

    @property
    def width(self) -> int:
        """Numbers in one token."""
        return self.facts.width

    @property
    def tokens_per_second(self) -> int:
        """Tokens that a step gives."""
        return self.facts.tokens_per_second

    def stream(self, isolated: bool = False, max_seconds: int | None = None) -> AudioStream:
        """A new stream at second 0, with room for max_seconds; default: all that there can be."""
        return AudioStream(self, isolated, max_seconds)


def graph_form(
    backend: Backend, attention: str = 'auto', fixed_graph: bool | None = None
) -> tuple:
    """Settle attention ('flash' or 'mul_mat') and whether one graph serves all seconds."""
    if attention not in ('auto', 'flash', 'mul_mat'):
        raise ValueError(f'attention {attention!r} is not known')
    if attention == 'auto':
        # Measured on a CPU, 24 layers in f16: mul_mat is as fast with 5 s in the cache,
        # takes 0.7 of the time with 30 s, and has a third of the rounding error.
        attention = 'mul_mat' if backend.is_cpu else 'flash'
    if fixed_graph is None:
        fixed_graph = attention == 'flash' and not backend.is_cpu
    if fixed_graph and attention != 'flash':
        raise ValueError('a fixed graph needs flash attention')
    return attention, fixed_graph


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


def audio_memory(
    header: Header, backend: Backend, streams: Sequence = (None,), kv_type: str = 'f16'
) -> EncoderMemory:
    """Forecast AudioEncoder.load() and its streams, of so many seconds each; None: all."""
    facts = read_facts(header)
    attention, fixed = graph_form(backend)
    weights = describe_weights(header, backend, wanted(header, facts), repack=True)
    cache = compute = work = 0
    for given in streams:
        seconds = facts.max_seconds if given is None else min(given, facts.max_seconds)
        shapes = cache_shapes(facts, attention, KV_TYPES[kv_type], fixed, seconds)
        caches = DescribedTensors(backend, shapes)
        graph = StepGraph(facts, weights, caches, attention)
        largest = [ALL_SECONDS if fixed else seconds - 1]  # the last has most keys to see
        buffer, rows = buffer_bytes(backend, graph.describe, largest, graph.max_nodes)
        compute, work = compute + buffer, max(work, rows)  # a backend has one for all
        cache += caches.size_bytes
    return EncoderMemory(weights.size_bytes, cache, compute, work)
