# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One second of Whisper's encoder as a compute graph over cached keys and values.

Whisper's encoder (Radford et al. 2022) is run chunk by chunk as MiniCPM-o trains it: the 50
positions of a second see each other and everything before them, never what comes later. With
keys and values cached, that is the offline encoder under a block-causal mask, computed once.

Two forms of the graph: one per second, which touches only the valid part of the cache (a CPU
pays for every key), rounded up to whole vectors and masked there; and one for all seconds, which
writes by ids and masks the rest (CUDA replays an unchanged graph).
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.encoders.whisper_layout import POSITIONS_PER_SECOND as CHUNK
from minicpmo_ros.encoders.whisper_layout import WhisperFacts
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.library import GgmlType
from minicpmo_ros.ggml.runtime import Backend, Tensor, Tensors
from minicpmo_ros.ggml.weights import Weights

EPSILON = 1e-5
ALL_SECONDS = -1  # the key of the graph for all seconds
LEFT, RIGHT = 2, 1  # mel frames beside a second that its convolutions reach
MEL_FRAMES = LEFT + 2 * CHUNK + RIGHT
_MASK_MULTIPLE = 256  # CUDA's fused attention wants this of the number of keys
# A CPU multiplies rows of whole vectors up to twice as fast as rows that end within one.
_ROW_MULTIPLE = 32


@dataclass(frozen=True)
class StepGraph:
    """Describes the graphs of one stream; a GraphCache calls it with a second as the key.

    kind: 'flash' keeps values as (positions, d_model) and may be masked; 'mul_mat' keeps them
    transposed, (heads, d, positions), so that no step has to turn the whole cache around.
    """

    facts: WhisperFacts
    weights: Weights
    caches: Tensors
    kind: str

    @property
    def max_nodes(self) -> int:
        """An upper bound of the nodes, views and inputs of one graph."""
        return 60 * self.facts.layers + 80 + 2 * self.facts.pool_step

    def __call__(self, g: Builder, second: int) -> None:
        """Describe the graph of one second, or the one of ALL_SECONDS."""
        chunk = _Chunk(self, g, second)
        x = self._convolutions(g)  # (50, d_model)
        x = g.add(x, chunk.positions())
        for i in range(self.facts.layers):
            x = self._layer(g, chunk, i, x)
            g.cut(x)
        x = self._norm(g, 'encoder.ln_post', x)
        x = self._linear(g, 'audio_projector.linear1', x)  # (50, width)
        g.output('projected', x)  # relu makes zero of NaN, which then nobody would notice
        x = g.relu(x)
        # The mean commutes with a linear layer, and comes first because it halves that layer.
        x = g.mean_pool(x, self.facts.pool_step)  # (tokens, width)
        g.output('tokens', self._linear(g, 'audio_projector.linear2', x))

    def _convolutions(self, g: Builder) -> Tensor:
        """Mel frames -2..100 of a second to its 50 positions, as if the whole had been seen."""
        mel = g.input('mel', (MEL_FRAMES, self.facts.mel_bins))
        windows = g.taps(mel, 3, 1, MEL_FRAMES - 2)  # (101, 3 * mel_bins)
        x = g.gelu_erf(self._linear(g, 'encoder.conv1', windows))  # (101, d_model), frames -1..99
        # Where the sound begins, frame -1 is the next convolution's padding: zero, not gelu(bias).
        x = g.multiply(x, g.input('keep', (MEL_FRAMES - 2, 1)))
        windows = g.taps(x, 3, 2, CHUNK)  # (50, 3 * d_model)
        return g.gelu_erf(self._linear(g, 'encoder.conv2', windows))  # (50, d_model)

    def _layer(self, g: Builder, chunk: '_Chunk', i: int, x: Tensor) -> Tensor:
        block = f'encoder.blocks.{i}.'
        y = self._norm(g, block + 'attn_ln', x)
        q = g.heads(self._linear(g, block + 'attn.query', y), self.facts.heads)  # (h, 50, d)
        k = chunk.keys(i, g.linear(self.weights[block + 'attn.key.weight'], y))
        v = chunk.values(i, self._linear(g, block + 'attn.value', y))
        y = g.attention(q, k, v, self.kind, chunk.mask, v_transposed=self.kind == 'mul_mat')
        x = g.add(x, self._linear(g, block + 'attn.out', y))
        y = self._norm(g, block + 'mlp_ln', x)
        y = g.gelu_erf(self._linear(g, block + 'mlp.0', y))  # (50, ffn)
        return g.add(x, self._linear(g, block + 'mlp.2', y))  # (50, d_model)

    def _linear(self, g: Builder, name: str, x: Tensor) -> Tensor:
        return g.linear(self.weights[name + '.weight'], x, self.weights[name + '.bias'])

    def _norm(self, g: Builder, name: str, x: Tensor) -> Tensor:
        return g.layer_norm(
            x, self.weights[name + '.weight'], self.weights[name + '.bias'], EPSILON
        )


class _Chunk:
    """Where the 50 new positions go, and what they see."""

    def __init__(self, step: StepGraph, g: Builder, second: int):
        self.step, self.g, self.start = step, g, second * CHUNK
        self.mask = self.ids = None
        if second == ALL_SECONDS:
            self.n_keys = step.caches['k.0'].shape[0]
            self.mask = g.input('mask', (CHUNK, self.n_keys), GgmlType.F16)
            below = min(self.n_keys, step.facts.positions)
            self.ids = g.input('ids', (CHUNK,), GgmlType.I32, below=below)
        else:
            self.n_keys = n_keys_of(step.kind, second)
            if self.n_keys > self.start + CHUNK:
                self.mask = g.input('mask', (CHUNK, self.n_keys), GgmlType.F16)

    def positions(self) -> Tensor:
        """Their rows of the position table, (50, d_model)."""
        table = self.step.weights['encoder.positional_embedding']
        if self.ids is not None:
            return self.g.rows(table, self.ids)
        return self.g.slice(table, 0, self.start, CHUNK)

    def keys(self, i: int, k: Tensor) -> Tensor:
        """Cache k (50, d_model) of layer i; all that is to be seen, (heads, n_keys, d)."""
        return self._by_rows(self.step.caches[f'k.{i}'], k)

    def values(self, i: int, v: Tensor) -> Tensor:
        """Cache v (50, d_model) of layer i; (heads, n_keys, d), 'mul_mat': (heads, d, n_keys)."""
        cache, g = self.step.caches[f'v.{i}'], self.g
        if self.step.kind == 'flash':
            return self._by_rows(cache, v)
        turned = g.transpose(g.heads(v, self.step.facts.heads), (0, 1, 3, 2))  # (h, d, 50)
        g.store(g.slice(cache, -1, self.start, CHUNK), turned)
        return g.slice(cache, -1, 0, self.n_keys)

    def _by_rows(self, cache: Tensor, rows: Tensor) -> Tensor:
        if self.ids is not None:
            cache = self.g.store_rows(cache, rows, self.ids)
        else:
            self.g.store(self.g.slice(cache, 0, self.start, CHUNK), rows)
            cache = self.g.slice(cache, 0, 0, self.n_keys)
        return self.g.heads(cache, self.step.facts.heads)


def new_caches(
    backend: Backend, facts: WhisperFacts, kind: str, kv_type: GgmlType, masked: bool, seconds: int
) -> Tensors:
    """Room for the keys and values of so many seconds, allocated once."""
    return Tensors(backend, cache_shapes(facts, kind, kv_type, masked, seconds))


def cache_shapes(
    facts: WhisperFacts, kind: str, kv_type: GgmlType, masked: bool, seconds: int
) -> dict:
    """Name -> (shape, type) of the keys and values of so many seconds."""
    positions = n_keys_of(kind, seconds - 1)
    if masked:
        positions = _rounded_up(positions, _MASK_MULTIPLE)
    rows = (positions, facts.d_model)
    turned = (facts.heads, facts.d_model // facts.heads, positions)
    shapes = {}
    for i in range(facts.layers):
        shapes[f'k.{i}'] = (rows, kv_type)
        shapes[f'v.{i}'] = (rows if kind == 'flash' else turned, kv_type)
    return shapes


def copy_caches(facts: WhisperFacts, kind: str, source: Tensors, target: Tensors, seconds: int):
    """Copy the keys and values of the first seconds, on the device they are on."""

    def describe(g: Builder, count: int) -> None:
        for i in range(facts.layers):
            for name, axis in ((f'k.{i}', 0), (f'v.{i}', 0 if kind == 'flash' else -1)):
                part = g.slice(source[name], axis, 0, count)
                copied = g.slice(target[name], axis, 0, count)
                g.store(copied, part)
        g.output('copied', g.slice(target['k.0'], 0, 0, 1))  # (1, d_model); a graph has one

    graphs = GraphCache(target.backend, describe, [], 6 * facts.layers + 2)
    graphs.run(seconds * CHUNK, {})


def n_keys_of(kind: str, second: int) -> int:
    """How many keys the graph of one second reads, its own among them."""
    positions = (second + 1) * CHUNK
    return positions if kind == 'flash' else _rounded_up(positions, _ROW_MULTIPLE)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def step_inputs(
    mel: np.ndarray, second: int, padded_left: bool, n_keys: int, by_ids: bool
) -> dict:
    """The arrays of one step: mel (103, bins); n_keys that are read; the form for all seconds."""
    start, end = second * CHUNK, (second + 1) * CHUNK
    keep = np.ones((MEL_FRAMES - 2, 1), np.float32)  # (101, 1)
    keep[0] = not padded_left
    inputs = {'mel': mel, 'keep': keep}
    if by_ids:
        inputs['ids'] = np.arange(start, end, dtype=np.int32)  # (50,)
    if by_ids or n_keys > end:
        inputs['mask'] = np.zeros((CHUNK, n_keys), np.float16)  # (50, n_keys)
        inputs['mask'][:, end:] = -np.inf
    return inputs
