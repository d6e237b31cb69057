# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Streaming audio encoder: a second of mel spectrogram in, its tokens for the LLM out.

Exact: with two mel frames before a second and one after it (12.5 ms of waiting), a stream
gives what the offline encoder gives under a chunk-causal mask, to float error. `isolated`
reproduces MiniCPM-o's own per-second front end instead, which pads every second with zeros.
"""

from collections.abc import Callable

import numpy as np

from minicpmo_ros.encoders.whisper_graph import (
    ALL_SECONDS,
    LEFT,
    MEL_FRAMES,
    RIGHT,
    StepGraph,
    copy_caches,
    n_keys_of,
    new_caches,
    step_inputs,
)
from minicpmo_ros.encoders.whisper_layout import (
    FRAMES_PER_SECOND,
    POSITIONS_PER_SECOND,
    WhisperFacts,
    read_facts,
    wanted,
)
from minicpmo_ros.errors import ContextFullError, EngineError, InputError
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.header import Header, read_header
from minicpmo_ros.ggml.library import GgmlType
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.weights import Weights

MAX_MEL = 100.0  # clamped and scaled mel lies between -1.5 and 3
KV_TYPES = {'f16': GgmlType.F16, 'f32': GgmlType.F32}


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


class AudioEncoder:
    """The weights of one audio file on a device; any number of streams use them."""

    def __init__(
        self,
        facts: WhisperFacts,
        weights: Weights,
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
        repack: bool = False,
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
        weights = Weights.load(header, backend, wanted(header, facts), repack=repack)
        return cls(facts, weights, backend, attention, kv_type, fixed_graph)

    @property
    def width(self) -> int:
        """Numbers in one token."""
        return self.facts.width

    @property
    def tokens_per_second(self) -> int:
        """Tokens that a step gives."""
        return self.facts.tokens_per_second

    def stream(self, isolated: bool = False, max_seconds: int | None = None) -> 'AudioStream':
        """A new stream at second 0, with room for max_seconds; default: all that there can be."""
        return AudioStream(self, isolated, max_seconds)


class AudioStream:
    """Consecutive seconds of one sound; one thread at a time. All memory is taken at once.

    max_seconds: how many fit; as published 30 at most.
    """

    def __init__(
        self, encoder: AudioEncoder, isolated: bool = False, max_seconds: int | None = None
    ):
        self.encoder, self.isolated, self.seconds = encoder, isolated, 0
        facts, fixed = encoder.facts, encoder.fixed_graph
        self.max_seconds = facts.max_seconds if max_seconds is None else max_seconds
        if not 1 <= self.max_seconds <= facts.max_seconds:
            raise ValueError(f'max_seconds {max_seconds} is not in 1..{facts.max_seconds}')
        kv_type = KV_TYPES[encoder.kv_type]
        self._caches = new_caches(
            encoder.backend, facts, encoder.attention, kv_type, fixed, self.max_seconds
        )
        describe = StepGraph(facts, encoder.weights, self._caches, encoder.attention)
        seconds = [ALL_SECONDS] if fixed else range(self.max_seconds)
        self._graphs = GraphCache(encoder.backend, describe, seconds, describe.max_nodes, keep=1)

    @property
    def full(self) -> bool:
        """True when only restart() helps."""
        return self.seconds >= self.max_seconds

    @property
    def size_bytes(self) -> int:
        """Memory of cache and intermediate results; it never changes."""
        return self._caches.size_bytes + self._graphs.size_bytes

    def restart(self) -> None:
        """Begin anew at second 0."""
        self.seconds = 0
        # What is masked is multiplied by zero, which leaves NaN what it is.
        self._caches.clear()

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
            copy_caches(
                encoder.facts, encoder.attention, other._caches, self._caches, other.seconds
            )
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
        n_keys = self._caches['k.0'].shape[0] if fixed else n_keys_of(kind, self.seconds)
        inputs = step_inputs(mel, self.seconds, self.isolated or not self.seconds, n_keys, fixed)
        key = ALL_SECONDS if fixed else self.seconds
        found = self._graphs.run(key, inputs, between)
        tokens = found['tokens']
        if not all(np.isfinite(array).all() for array in found.values()):
            raise EngineError('the audio encoder gave NaN or infinite numbers')
        self.seconds += 1
        return tokens.reshape(self.encoder.tokens_per_second, self.encoder.width)

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
