# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A stream of the Whisper encoder: seconds of mel spectrogram in, tokens for the LLM out.

Whisper's encoder (Radford et al. 2022) is run chunk by chunk as MiniCPM-o trains it: the 50
positions of a second see each other and everything before them, never what comes later. With
keys and values cached, that is the offline encoder under a block-causal mask, computed once.
It is exact: with two mel frames before a second and one after it (12.5 ms of waiting), a stream
gives what the offline encoder gives, to float error. `isolated` reproduces MiniCPM-o's own
per-second front end instead, which pads every second with zeros.

Two forms of the graph of a second: one per second, which touches only the valid part of the cache
(a CPU pays for every key), rounded up to whole vectors and masked there; and one for all seconds,
which writes by ids and masks the rest (CUDA replays an unchanged graph).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ContextFullError, EngineError, InputError
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.library import GgmlType
from minicpmo_ros.ggml.runtime import Tensor, Tensors

FRAMES_PER_SECOND = 100  # of the mel spectrogram
POSITIONS_PER_SECOND = 50  # of the encoder: its second convolution has stride 2
MAX_MEL = 100.0  # clamped and scaled mel lies between -1.5 and 3
KV_TYPES = {'f16': GgmlType.F16, 'f32': GgmlType.F32}
EPSILON = 1e-5
ALL_SECONDS = -1  # the key of the graph for all seconds
LEFT, RIGHT = 2, 1  # mel frames beside a second that its convolutions reach
MEL_FRAMES = LEFT + FRAMES_PER_SECOND + RIGHT
_MASK_MULTIPLE = 256  # CUDA's fused attention wants this of the number of keys
# A CPU multiplies rows of whole vectors up to twice as fast as rows that end within one.
_ROW_MULTIPLE = 32


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


class AudioStream:
    """Consecutive seconds of one sound; one thread at a time. All memory is taken at once.

    encoder: the AudioEncoder whose weights it uses. max_seconds: how many fit; as published 30
    at most.
    """

    def __init__(self, encoder, isolated: bool = False, max_seconds: int | None = None):
        self.encoder, self.isolated, self.seconds = encoder, isolated, 0
        facts, fixed = encoder.facts, encoder.fixed_graph
        self.max_seconds = facts.max_seconds if max_seconds is None else max_seconds
        if not 1 <= self.max_seconds <= facts.max_seconds:
            raise ValueError(f'max_seconds {max_seconds} is not in 1..{facts.max_seconds}')
        kv_type = KV_TYPES[encoder.kv_type]
        shapes = cache_shapes(facts, encoder.attention, kv_type, fixed, self.max_seconds)
        self.caches = Tensors(encoder.backend, shapes)
        graph = StepGraph(facts, encoder.weights, self.caches, encoder.attention)
        seconds = [ALL_SECONDS] if fixed else range(self.max_seconds)
        self.graphs = GraphCache(encoder.backend, graph.describe, seconds, graph.max_nodes, keep=1)

    @property
    def full(self) -> bool:
        """True when only restart() helps."""
        return self.seconds >= self.max_seconds

    @property
    def size_bytes(self) -> int:
        """Memory of cache and intermediate results; it never changes."""
        return self.caches.size_bytes + self.graphs.size_bytes

    def restart(self) -> None:
        """Begin anew at second 0."""
        self.seconds = 0
        # What is masked is multiplied by zero, which leaves NaN what it is.
        self.caches.clear()

    def take_over(self, other: 'AudioStream') -> None:
        """Go on where another stream of the same encoder is, as if this one had been it.

        Its keys and values are copied, on the device. Errors: ContextFullError where they do not
        fit; EngineError.
        """
        if other.encoder is not self.encoder or other.isolated != self.isolated:
            raise ValueError('only a stream of the same encoder and kind can be taken over')
        if other.seconds > self.max_seconds:
            room = self.max_seconds * POSITIONS_PER_SECOND
            raise ContextFullError(
                other.seconds * POSITIONS_PER_SECOND, room, 'Make the audio stream longer'
            )
        if other.seconds:
            encoder = self.encoder
            copy_caches(encoder.facts, encoder.attention, other.caches, self.caches, other.seconds)
        self.seconds = other.seconds

    def step(self, mel: np.ndarray, between: Callable[[], None] | None = None) -> np.ndarray:
        """Encode the next second.

        mel: (103, bins) float32, clamped and scaled: 2 frames before the second (taken as
            zeros in second 0), its 100, and 1 after it; isolated: (100, bins), its own.
        between: called after every layer; what it raises ends the step, and the same second
            may be given again.
        Result: (tokens_per_second, width) float32.
        Errors: InputError for another mel; ContextFullError when full; EngineError.
        """
        mel = self._checked(mel)  # (103, bins)
        if self.full:
            raise ContextFullError(POSITIONS_PER_SECOND, 0, 'Restart the audio stream')
        fixed, kind = self.encoder.fixed_graph, self.encoder.attention
        n_keys = self.caches['k.0'].shape[0] if fixed else n_keys_of(kind, self.seconds)
        inputs = step_inputs(mel, self.seconds, self.isolated or not self.seconds, n_keys, fixed)
        key = ALL_SECONDS if fixed else self.seconds
        found = self.graphs.run(key, inputs, between)
        tokens = found['tokens']
        if not all(np.isfinite(array).all() for array in found.values()):
            raise EngineError('the audio encoder gave NaN or infinite numbers')
        self.seconds += 1
        return tokens.reshape(-1, self.encoder.facts.width)

    def peek(self, mel: np.ndarray, between: Callable[[], None] | None = None) -> np.ndarray:
        """Return what `step` would, and stay where the stream is.

        What it leaves in the cache lies behind the seconds that are read, and the next step writes
        over it.
        """
        tokens = self.step(mel, between)
        self.seconds -= 1
        return tokens

    def _checked(self, mel: np.ndarray) -> np.ndarray:
        """The mel with its neighbours, (103, bins)."""
        frames = FRAMES_PER_SECOND if self.isolated else MEL_FRAMES
        shape = (frames, self.encoder.facts.mel_bins)
        if not isinstance(mel, np.ndarray) or mel.shape != shape or mel.dtype != np.float32:
            given = f'{mel.shape} of {mel.dtype}' if isinstance(mel, np.ndarray) else type(mel)
            raise InputError(
                f'a mel spectrogram {given} was given, {shape} of float32 is '
                'needed: one second at a time'
            )
        if not np.abs(mel).max() <= MAX_MEL:  # false for NaN too
            raise InputError(
                'the mel spectrogram holds NaN or numbers beyond '
                f'{MAX_MEL:g}: clamp and scale it, and check the sound'
            )
        if self.isolated:
            return np.pad(mel, ((LEFT, RIGHT), (0, 0)))
        return mel if self.seconds else np.pad(mel[LEFT:], ((LEFT, 0), (0, 0)))


class StepGraph:
    """Describes the graphs of one stream; a GraphCache builds them with a second as the key.

    kind: 'flash' keeps values as (positions, d_model) and may be masked; 'mul_mat' keeps them
    transposed, (heads, d, positions), so that no step has to turn the whole cache around.
    """

    def __init__(self, facts: WhisperFacts, weights: Tensors, caches: Tensors, kind: str):
        self.facts, self.weights, self.caches, self.kind = facts, weights, caches, kind

    @property
    def max_nodes(self) -> int:
        """An upper bound of the nodes, views and inputs of one graph."""
        return 60 * self.facts.layers + 80 + 2 * self.facts.pool_step

    def describe(self, g: Builder, second: int) -> None:
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
        windows = g.taps(x, 3, 2, POSITIONS_PER_SECOND)  # (50, 3 * d_model)
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
        self.step, self.g, self.start = step, g, second * POSITIONS_PER_SECOND
        self.mask = self.ids = None
        if second == ALL_SECONDS:
            self.n_keys = step.caches['k.0'].shape[0]
            self.mask = g.input('mask', (POSITIONS_PER_SECOND, self.n_keys), GgmlType.F16)
            below = min(self.n_keys, step.facts.positions)
            self.ids = g.input('ids', (POSITIONS_PER_SECOND,), GgmlType.I32, below=below)
        else:
            self.n_keys = n_keys_of(step.kind, second)
            if self.n_keys > self.start + POSITIONS_PER_SECOND:
                self.mask = g.input('mask', (POSITIONS_PER_SECOND, self.n_keys), GgmlType.F16)

    def positions(self) -> Tensor:
        """Their rows of the position table, (50, d_model)."""
        table = self.step.weights['encoder.positional_embedding']
        if self.ids is not None:
            return self.g.rows(table, self.ids)
        return self.g.slice(table, 0, self.start, POSITIONS_PER_SECOND)

    def keys(self, i: int, k: Tensor) -> Tensor:
        """Cache k (50, d_model) of layer i; all that is to be seen, (heads, n_keys, d)."""
        return self._by_rows(self.step.caches[f'k.{i}'], k)

    def values(self, i: int, v: Tensor) -> Tensor:
        """Cache v (50, d_model) of layer i; (heads, n_keys, d), 'mul_mat': (heads, d, n_keys)."""
        cache, g = self.step.caches[f'v.{i}'], self.g
        if self.step.kind == 'flash':
            return self._by_rows(cache, v)
        turned = g.transpose(g.heads(v, self.step.facts.heads), (0, 1, 3, 2))  # (h, d, 50)
        g.store(g.slice(cache, -1, self.start, POSITIONS_PER_SECOND), turned)
        return g.slice(cache, -1, 0, self.n_keys)

    def _by_rows(self, cache: Tensor, rows: Tensor) -> Tensor:
        if self.ids is not None:
            cache = self.g.store_rows(cache, rows, self.ids)
        else:
            self.g.store(self.g.slice(cache, 0, self.start, POSITIONS_PER_SECOND), rows)
            cache = self.g.slice(cache, 0, 0, self.n_keys)
        return self.g.heads(cache, self.step.facts.heads)


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
    graphs.run(seconds * POSITIONS_PER_SECOND, {})


def n_keys_of(kind: str, second: int) -> int:
    """How many keys the graph of one second reads, its own among them."""
    positions = (second + 1) * POSITIONS_PER_SECOND
    return positions if kind == 'flash' else _rounded_up(positions, _ROW_MULTIPLE)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def step_inputs(
    mel: np.ndarray, second: int, padded_left: bool, n_keys: int, by_ids: bool
) -> dict:
    """The arrays of one step: mel (103, bins); n_keys that are read; the form for all seconds."""
    start, end = second * POSITIONS_PER_SECOND, (second + 1) * POSITIONS_PER_SECOND
    keep = np.ones((MEL_FRAMES - 2, 1), np.float32)  # (101, 1)
    keep[0] = not padded_left
    inputs = {'mel': mel, 'keep': keep}
    if by_ids:
        inputs['ids'] = np.arange(start, end, dtype=np.int32)  # (50,)
    if by_ids or n_keys > end:
        inputs['mask'] = np.zeros((POSITIONS_PER_SECOND, n_keys), np.float16)  # (50, n_keys)
        inputs['mask'][:, end:] = -np.inf
    return inputs
