# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the design saves on this machine: each way against the plain one, in the same run.

one_decode_over_five            a unit in one decode, over its five parts in one each
audio_stream_over_reencode_Ns   the Nth second as a stream, over encoding the clip of N s anew
first_token_speedup_Ns          reading a window of N s and a question, over reading the question

Of the clip the baseline encodes all seconds in one graph, by the faster kind of attention, under
no mask: the cheapest way there is without a memory.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.encoders.whisper.stream import (
    FRAMES_PER_SECOND,
    LEFT,
    POSITIONS_PER_SECOND,
    RIGHT,
    StepGraph,
)
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bench.bench import (
    BenchOptions,
    Ratio,
    capacity_s,
    clock_of,
    compare,
    fill,
    spent_ms,
    token_times,
    unit_rows,
)
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.graph import GraphCache
from minicpmo_ros.ggml.runtime import Tensor
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.live.session import LIVE

STREAM_SECONDS = (1, 10, 30)
WINDOW_SECONDS = (10, 30)


def one_decode(core: Core, options: BenchOptions) -> Ratio:
    """Compare reading a unit in one decode with reading its parts one after the other."""
    session, clock = core.session, clock_of(core)
    context = session.context
    fill(core, 1)
    rows = unit_rows(core)
    n_audio, n_image = core.audio.tokens_per_second, core.vision.queries
    ends = np.cumsum(
        [len(rows) - n_audio - n_image - 3, n_image, 2, n_audio, 1]
    )  # <unit><image> | image | </image><|audio_start|> | audio | <|audio_end|>
    parts = [rows[a:b] for a, b in zip([0, *ends], ends) if b > a]
    start = session.window.end

    def read(pieces: list) -> float:
        ms = spent_ms(lambda: [context.read(piece, LIVE) for piece in pieces], clock)
        context.remove(LIVE, start, -1)
        return ms

    whole = [rows[i : i + context.n_batch] for i in range(0, len(rows), context.n_batch)]
    names = ('one decode a unit', f'{len(parts)} decodes a unit')
    return compare(lambda: read(whole), lambda: read(parts), names, options.some_pairs)


def first_token(core: Core, options: BenchOptions, seconds: int) -> Ratio:
    """Compare reading a whole window and a question with reading the question: over one is more.

    Encoding is in neither.
    """
    clock = clock_of(core)
    if capacity_s(core) < seconds:
        raise InputError(f'a window of {seconds} s does not fit into {core.options.n_ctx}')

    def read_all() -> float:
        return spent_ms(lambda: fill(core, seconds), clock) + token_times(core, 1)[0]

    names = (f'reading {seconds} s and the question', 'reading the question')
    return compare(
        read_all, lambda: token_times(core, 1)[0], names, options.long_pairs, warm_up=False
    )


def audio_stream(core: Core, options: BenchOptions, second: int) -> Ratio:
    """Compare a stream's step at a second (1: its first) with encoding the clip up to there."""
    clock = clock_of(core)
    stream = core.audio.stream()
    if second > stream.max_seconds:
        raise InputError(f'the positions of this encoder end at {stream.max_seconds} s')
    mel = random_mel(second, core.audio.facts.mel_bins)
    clips = [WholeClip(core.audio, kind, second) for kind in ('flash', 'mul_mat')]
    tried_s = min(2, second)
    spent = [[spent_ms(lambda c=c: c.encode(mel, tried_s), clock) for c in clips] for _ in 'ab']
    clip = clips[int(np.argmin(spent[1]))]
    return compare(
        lambda: step_ms(stream, mel, second, clock),
        lambda: spent_ms(lambda: clip.encode(mel, second), clock),
        (f'second {second} of a stream', f'a clip of {second} s ({clip.kind})'),
        options.some_pairs if second <= 10 else options.long_pairs,
    )


def random_mel(seconds: int, bins: int) -> np.ndarray:
    """Return a spectrum (100 * seconds + 3, bins) float32, with the frames beside it."""
    frames = FRAMES_PER_SECOND * seconds + LEFT + RIGHT
    return np.random.default_rng(5).uniform(-1, 1, (frames, bins)).astype(np.float32)


def step_ms(stream, mel: np.ndarray, second: int, clock: str) -> float:
    """Return the ms of a stream's second (1: its first), without those before, which are cached.

    Its graph is made anew, as in a stream that goes on.
    """
    stream.seconds = 0 if second > 1 else 1
    stream.step(mel[: FRAMES_PER_SECOND + LEFT + RIGHT])
    stream.seconds = second - 1
    start = FRAMES_PER_SECOND * (second - 1)
    part = mel[start : start + FRAMES_PER_SECOND + LEFT + RIGHT]
    return spent_ms(lambda: stream.step(part), clock)


class ClipGraph(StepGraph):
    """The graph of a whole clip at once, nothing cached; the key is its seconds."""

    def describe(self, g: Builder, seconds: int) -> None:
        """Describe it."""
        frames, positions = FRAMES_PER_SECOND * seconds, POSITIONS_PER_SECOND * seconds
        mel = g.input('mel', (frames + LEFT + RIGHT, self.facts.mel_bins))
        x = g.gelu_erf(self._linear(g, 'encoder.conv1', g.taps(mel, 3, 1, frames + 1)))
        x = g.multiply(x, g.input('keep', (frames + 1, 1)))  # nothing comes before the clip
        x = g.gelu_erf(self._linear(g, 'encoder.conv2', g.taps(x, 3, 2, positions)))
        table = self.weights['encoder.positional_embedding']
        x = g.add(x, g.slice(table, 0, 0, positions))  # (50 * seconds, d_model)
        for i in range(self.facts.layers):
            x = self._layer(g, _Seen(g, self.facts.heads, self.kind), i, x)
        x = g.relu(self._linear(g, 'audio_projector.linear1', self._norm(g, 'encoder.ln_post', x)))
        x = g.mean_pool(x, self.facts.pool_step)
        g.output('tokens', self._linear(g, 'audio_projector.linear2', x))


@dataclass(frozen=True)
class _Seen:
    """What positions of a clip see: each other."""

    g: Builder
    heads: int
    kind: str
    mask = None

    def keys(self, _, k: Tensor) -> Tensor:
        return self.g.cast(self.g.heads(k, self.heads), GgmlType.F16)

    def values(self, _, v: Tensor) -> Tensor:
        v = self.g.heads(v, self.heads)
        if self.kind == 'mul_mat':
            v = self.g.transpose(v, (0, 1, 3, 2))
        return self.g.cast(v, GgmlType.F16)


class WholeClip:
    """Encodes clips as a whole with the weights of an AudioEncoder."""

    def __init__(self, encoder, kind: str, max_seconds: int):
        self.kind = kind
        graph = ClipGraph(encoder.facts, encoder.weights, None, kind)
        self._graphs = GraphCache(encoder.backend, graph.describe, [max_seconds], graph.max_nodes)

    def encode(self, mel: np.ndarray, seconds: int) -> np.ndarray:
        """Encode the first seconds of a spectrum: (seconds * tokens, width) float32."""
        frames = FRAMES_PER_SECOND * seconds
        part, keep = mel[: frames + LEFT + RIGHT].copy(), np.ones((frames + 1, 1), np.float32)
        part[:LEFT] = keep[0] = 0
        return self._graphs.run(seconds, {'mel': part, 'keep': keep})['tokens']
