# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP and MiniCPM's resampler as a compute graph, tiles of one size side by side.

Arrays of a picture are (tiles * patches, ...), patches row by row. The graph is cut after every
layer, on a CPU after every costly product, so that others may use the device in between.
"""

from dataclasses import dataclass

from minicpmo_ros.encoders.siglip_layout import HEAD_WIDTH, VisionFacts
from minicpmo_ros.ggml.graph import Builder
from minicpmo_ros.ggml.runtime import Tensor
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.ggml.weights import Weights

RESAMPLER_EPSILON = 1e-6


def max_nodes(facts: VisionFacts) -> int:
    """Return a bound of the nodes of a graph."""
    return 48 * facts.layers + 128


@dataclass(frozen=True)
class Grid:
    """What tells one graph from another: how many tiles of how many patches."""

    tiles: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """How many patches one tile has."""
        return self.rows * self.columns


@dataclass(frozen=True)
class VisionGraph:
    """Describes the graphs of one encoder."""

    weights: Weights
    facts: VisionFacts
    attention: str  # 'flash' or 'mul_mat'

    def describe(self, g: Builder, grid: Grid) -> None:
        """Describe picture to embeddings (tiles * queries, width) for one grid."""
        x = self._embed(g, grid)  # (tiles * patches, d)
        for i in range(self.facts.layers):
            x = self._layer(g, x, f'v.blk.{i}.', grid)
            g.cut(x)
        x = self._norm(g, 'v.post_ln', x, self.facts.epsilon)
        g.output('embeddings', self._resample(g, x, grid))

    def _embed(self, g: Builder, grid: Grid) -> Tensor:
        """Patches and their learned positions."""
        patches = g.input('patches', (grid.tiles * grid.patches, self.facts.patch_columns))
        ids = g.input(
            'position_ids', (grid.patches,), GgmlType.I32, below=self.facts.position_grid**2
        )
        positions = g.rows(self.weights['v.position_embd.weight'], ids)  # (patches, d)
        return g.add(self._linear(g, 'v.patch_embd', patches), positions)

    def _layer(self, g: Builder, x: Tensor, block: str, grid: Grid) -> Tensor:
        first, second = self.facts.ffn_names
        y = self._norm(g, block + 'ln1', x, self.facts.epsilon)
        q, k, v = (
            g.heads(self._linear(g, f'{block}attn_{name}', y), self.facts.heads, grid.tiles)
            for name in 'qkv'
        )  # (tiles, heads, patches, head)
        if self.attention == 'flash':  # which is fastest with keys and values in float16
            k, v = g.cast(k, GgmlType.F16), g.cast(v, GgmlType.F16)
        y = g.attention(q, k, v, self.attention)
        x = g.add(x, self._linear(g, block + 'attn_out', y))
        self._cut_on_cpu(g, x)
        y = self._norm(g, block + 'ln2', x, self.facts.epsilon)
        y = g.gelu_tanh(self._linear(g, block + first, y))  # (tiles * patches, ffn)
        self._cut_on_cpu(g, y)
        return g.add(x, self._linear(g, block + second, y))

    def _resample(self, g: Builder, x: Tensor, grid: Grid) -> Tensor:
        """Let the queries attend to the patches: (tiles * queries, width)."""
        width = self.facts.output_width
        n_heads = width // HEAD_WIDTH
        kv = g.linear(self.weights['resampler.kv.weight'], x)  # (tiles * patches, width)
        kv = self._norm(g, 'resampler.ln_kv', kv, RESAMPLER_EPSILON)
        self._cut_on_cpu(g, kv)
        k = self._placed_keys(g, kv, grid)
        self._cut_on_cpu(g, k)
        v = self._linear(g, 'resampler.attn.v', kv)
        self._cut_on_cpu(g, v)
        k, v = g.heads(k, n_heads, grid.tiles), g.heads(v, n_heads, grid.tiles)
        q = g.repeat(self.weights['queries'], (grid.tiles * self.facts.queries, width))
        q = g.heads(q, n_heads, grid.tiles)  # (tiles, heads, queries, 128)
        if self.attention == 'flash' and not g.backend.is_cpu:  # a CPU is exact at no cost
            k, v = g.cast(k, GgmlType.F16), g.cast(v, GgmlType.F16)
        y = g.attention(q, k, v, self.attention)
        y = self._linear(g, 'resampler.attn.out', y)  # (tiles * queries, width)
        y = self._norm(g, 'resampler.ln_post', y, RESAMPLER_EPSILON)
        return g.linear(self.weights['resampler.proj.weight'], y)

    def _placed_keys(self, g: Builder, kv: Tensor, grid: Grid) -> Tensor:
        """Project kv + positions to keys.

        Positions are the sines of the column, then of the row. The projection is linear, so it is
        applied to the sines of each column and each row once, and not to their sum at each patch.
        """
        weight, width = self.weights['resampler.attn.k.weight'], self.facts.output_width
        of_column = g.linear(weight, g.input('column_sines', (grid.columns, width)))
        of_row = g.linear(weight, g.input('row_sines', (grid.rows, width)))
        k = self._linear(g, 'resampler.attn.k', kv)
        k = g.reshape(k, (grid.tiles, grid.rows, grid.columns, width))
        k = g.add(g.add(k, of_column), g.reshape(of_row, (grid.rows, 1, width)))
        return g.reshape(k, (grid.tiles * grid.patches, width))

    def _cut_on_cpu(self, g: Builder, x: Tensor) -> None:
        """Cut where a CPU has worked for a while; a GPU is better left alone."""
        if g.backend.is_cpu:
            g.cut(x)

    def _linear(self, g: Builder, name: str, x: Tensor) -> Tensor:
        return g.linear(self.weights[f'{name}.weight'], x, self.weights[f'{name}.bias'])

    def _norm(self, g: Builder, name: str, x: Tensor, epsilon: float) -> Tensor:
        weight, bias = self.weights[f'{name}.weight'], self.weights[f'{name}.bias']
        return g.layer_norm(x, weight, bias, epsilon)
