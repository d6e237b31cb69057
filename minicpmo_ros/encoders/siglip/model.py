# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP and its projector: what a vision file says, and the graph of an image.

The projector is MiniCPM's resampler, which takes images of any aspect; or, as in BlueLM-V-3B, a
linear layer that joins 2 x 2 patches and an MLP of two layers, which takes square images of one
size. The file has llama.cpp's `clip` GGUF layout; the second projector has none that is published,
so its names are our own. Both namings of the feed-forward occur; which layer is
the first is decided by its shape.

The graph takes tiles of one size side by side: arrays are (tiles * patches, ...), patches row by
row. It is cut after every layer, on a CPU after every costly product, so that others may use the
device in between.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from minicpmo_ros.encoders import MAX_LAYERS
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.builder import Builder
from minicpmo_ros.ggml.gguf_file import Header
from minicpmo_ros.ggml.runtime import Tensor, Tensors
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.ggml.weights import Want, check

HEAD_WIDTH = 128  # of the resampler
# A CPU multiplies rows that end within a vector at a third of the speed of others.
ROW_MULTIPLE = 16
# Of heads: ggml's fused attention has kernels for the tensor cores of a GPU for these alone.
TENSOR_CORE_WIDTHS, MOST_WIDENED = (64, 80, 96, 112, 128, 256), 9 / 8
RESAMPLER, DOWNSAMPLER = 'resampler', 'downsample_mlp'  # clip.projector_type
# The matrix that makes embeddings.
OUTPUT = {RESAMPLER: 'resampler.proj.weight', DOWNSAMPLER: 'mm.2.weight'}
DEFAULT_QUERIES = 64  # of files that are older than the key
RESAMPLER_EPSILON = 1e-6
OTHER_FILE = 'Use a vision file of MiniCPM-o, or convert it again'


@dataclass(frozen=True)
class VisionFacts:
    """Sizes and constants of one vision file."""

    width: int  # of the encoder
    layers: int
    heads: int
    ffn_names: tuple  # first and second layer, without 'v.blk.N.'
    ffn_rows: int  # of the first layer
    ffn_columns: int  # of the second layer; more than the rows: zeros are stored there
    position_grid: int  # learned positions per side
    output_width: int  # of the embeddings
    queries: int  # embeddings per picture
    image_size: int  # pixels
    patch_size: int  # pixels
    epsilon: float
    mean: tuple  # of red, green and blue in [0, 1]
    std: tuple
    warnings: tuple  # sentences
    projector: str = RESAMPLER  # of OUTPUT

    @property
    def patches_a_side(self) -> int:
        """How many patches a square image has a side; what is left of its pixels is not seen."""
        return self.image_size // self.patch_size

    @property
    def takes_squares(self) -> bool:
        """Whether images must be squares of image_size."""
        return self.projector == DOWNSAMPLER

    @property
    def patch_values(self) -> int:
        """How many numbers one patch has."""
        return 3 * self.patch_size**2

    @property
    def patch_columns(self) -> int:
        """How many it is given as: zeros follow up to a whole vector."""
        return _whole_vectors(self.patch_values)

    @property
    def ffn_width(self) -> int:
        """How wide the feed-forward is computed: as stored, up to a whole vector."""
        return _whole_vectors(self.ffn_columns)


def read_facts(header: Header) -> VisionFacts:
    """Read the facts and check every tensor's shape; ModelFileError says what does not fit."""
    projector = _checked_projector(header)

    def key(name):
        return header.require(f'clip.vision.{name}', int)

    width, layers, patch = key('embedding_length'), key('block_count'), key('patch_size')
    mean, std = (_colours(header, f'clip.vision.image_{name}') for name in ('mean', 'std'))
    names = _ffn_names(header, width)
    facts = VisionFacts(
        width=width,
        layers=layers,
        heads=key('attention.head_count'),
        ffn_names=names,
        ffn_rows=_shape(header, f'v.blk.0.{names[0]}.weight', 2)[0],
        ffn_columns=_shape(header, f'v.blk.0.{names[1]}.weight', 2)[1],
        position_grid=round(_shape(header, 'v.position_embd.weight', 2)[0] ** 0.5),
        output_width=_shape(header, OUTPUT[projector], 2)[0],
        queries=header.get('clip.minicpmv_query_num', int) or DEFAULT_QUERIES,
        image_size=key('image_size'),
        patch_size=patch,
        epsilon=header.require('clip.vision.attention.layer_norm_epsilon', float),
        mean=mean,
        std=std,
        warnings=tuple(_warnings(header, layers, mean, std)),
        projector=projector,
    )
    _check_sizes(header, facts)
    if facts.takes_squares:
        facts = replace(facts, queries=(-(-facts.patches_a_side // 2)) ** 2)
    check(header, {name: Want(shape) for name, shape in expected_shapes(facts).items()})
    return facts


def _checked_projector(header: Header) -> str:
    if header.require('general.architecture', str) != 'clip':
        raise ModelFileError(header.path, 'it is no vision file', OTHER_FILE)
    projector = header.get('clip.projector_type', str, 'resampler')
    if projector not in OUTPUT or header.get('clip.has_vision_encoder', bool) is False:
        raise ModelFileError(
            header.path,
            f'it is a vision file of another model (projector {projector!r})',
            OTHER_FILE,
        )
    if not header.get('clip.use_gelu', bool, True):
        raise ModelFileError(header.path, 'its activation is not the tanh GELU', OTHER_FILE)
    return projector


def _whole_vectors(count: int) -> int:
    return -(-count // ROW_MULTIPLE) * ROW_MULTIPLE


def _shape(header: Header, name: str, n_dims: int) -> tuple:
    if name not in header.tensors:
        raise ModelFileError(header.path, f'the tensor {name} is missing', OTHER_FILE)
    shape = header.tensors[name].shape
    if len(shape) != n_dims:
        raise ModelFileError(
            header.path,
            f'the tensor {name} has the shape {shape}, {n_dims} dimensions are expected',
            OTHER_FILE,
        )
    return shape


def _ffn_names(header: Header, width: int) -> tuple:
    """Return the names of first and second layer: the first takes rows as wide as the encoder."""
    for first, second in (('ffn_down', 'ffn_up'), ('ffn_up', 'ffn_down')):
        n_out, n_in = _shape(header, f'v.blk.0.{first}.weight', 2)
        biases = [_shape(header, f'v.blk.0.{name}.bias', 1) for name in (first, second)]
        if n_in == width and biases == [(n_out,), (width,)]:
            return first, second
    raise ModelFileError(
        header.path, f'neither v.blk.0.ffn_up nor ffn_down has rows of {width}', OTHER_FILE
    )


def _colours(header: Header, key: str) -> tuple:
    values = header.require(key, np.ndarray)
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ModelFileError(header.path, f'{key} must be three numbers', OTHER_FILE)
    return tuple(float(value) for value in values)


def _warnings(header: Header, layers: int, mean: tuple, std: tuple):
    for name, values in (('mean', mean), ('std', std)):
        if not np.allclose(values, 0.5):
            shown = ', '.join(f'{value:.4g}' for value in values)
            yield (
                f'{header.path}: image_{name} is {shown}, MiniCPM-o was trained with 0.5: '
                'the file was probably converted with wrong defaults'
            )
    blocks = {match[1] for name in header.tensors if (match := re.match(r'v\.blk\.(\d+)\.', name))}
    if len(blocks) > layers:
        yield (
            f'{header.path}: it holds {len(blocks)} layers, block_count uses the first {layers}'
        )


def _check_sizes(header: Header, facts: VisionFacts) -> None:
    wrong = None
    if not 0 < facts.layers <= MAX_LAYERS or facts.heads <= 0 or facts.width % facts.heads:
        wrong = f'{facts.layers} layers of {facts.heads} heads in a width of {facts.width}'
    elif facts.output_width % HEAD_WIDTH and not facts.takes_squares:
        wrong = f'an embedding width of {facts.output_width}, no multiple of {HEAD_WIDTH}'
    elif (
        not 0 < facts.patch_size <= facts.image_size or facts.patches_a_side > facts.position_grid
    ):
        wrong = (
            f'pictures of {facts.image_size} in patches of {facts.patch_size}, for '
            f'{facts.position_grid} positions a side'
        )
    elif not 1e-12 <= facts.epsilon <= 0.1:  # as of the language model; refuses NaN, too
        wrong = f'a layer norm epsilon of {facts.epsilon}, 1e-12 to 0.1 is allowed'
    elif not all(0.01 <= value <= 10 for value in facts.std):
        wrong = f'an image_std of {facts.std}, 0.01 to 10 is allowed'
    elif not all(-10 <= value <= 10 for value in facts.mean):
        wrong = f'an image_mean of {facts.mean}, -10 to 10 is allowed'
    elif facts.ffn_columns < facts.ffn_rows:
        wrong = 'a second feed-forward layer that is narrower than the first'
    if wrong:
        raise ModelFileError(header.path, f'it has {wrong}', OTHER_FILE)


def expected_shapes(facts: VisionFacts) -> dict:
    """Return the shape of every tensor the encoder reads."""
    d, (first, second) = facts.width, facts.ffn_names
    shapes = {
        'v.patch_embd.weight': (d, 3, facts.patch_size, facts.patch_size),
        'v.patch_embd.bias': (d,),
        'v.position_embd.weight': (facts.position_grid**2, d),
    }
    norms, linears, alone = _projector_shapes(facts)
    norms['v.post_ln'] = d
    for i in range(facts.layers):
        block = f'v.blk.{i}.'
        norms.update({block + 'ln1': d, block + 'ln2': d})
        linears.update({f'{block}attn_{name}': (d, d) for name in ('q', 'k', 'v', 'out')})
        linears.update(
            {block + first: (facts.ffn_rows, d), block + second: (d, facts.ffn_columns)}
        )
    for name, n in norms.items():
        shapes.update({f'{name}.weight': (n,), f'{name}.bias': (n,)})
    for name, shape in linears.items():
        shapes.update({f'{name}.weight': shape, f'{name}.bias': shape[:1]})
    return {**shapes, **alone}


def _projector_shapes(facts: VisionFacts) -> tuple:
    """Return the projector's norms, its linear layers, and what has no bias, by name."""
    d, width = facts.width, facts.output_width
    if facts.takes_squares:
        return {}, {'mm.down': (d, 4 * d), 'mm.0': (width, d), 'mm.2': (width, width)}, {}
    alone = {
        'resampler.query': (facts.queries, width),
        'resampler.kv.weight': (width, d),
        'resampler.proj.weight': (width, width),
    }
    return (
        {f'resampler.ln_{name}': width for name in ('q', 'kv', 'post')},
        {f'resampler.attn.{name}': (width, width) for name in ('q', 'k', 'v', 'out')},
        alone,
    )


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


class VisionGraph:
    """Describes the graphs of one encoder; attention is 'flash' or 'mul_mat'."""

    def __init__(self, facts: VisionFacts, weights: Tensors, attention: str):
        self.facts, self.weights, self.attention = facts, weights, attention

    @property
    def max_nodes(self) -> int:
        """An upper bound of the nodes, views and inputs of one graph."""
        return 48 * self.facts.layers + 128

    def describe(self, g: Builder, grid: Grid) -> None:
        """Describe picture to embeddings (tiles * queries, width) for one grid."""
        x = self._embed(g, grid)  # (tiles * patches, d)
        for i in range(self.facts.layers):
            x = self._layer(g, x, f'v.blk.{i}.', grid)
            g.cut(x)
        x = self._norm(g, 'v.post_ln', x, self.facts.epsilon)
        project = self._downsample if self.facts.takes_squares else self._resample
        g.output('embeddings', project(g, x, grid))

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
        n_zeros = self._head_padding(g)
        q, k, v = (
            self._heads(g, self._linear(g, f'{block}attn_{name}', y), grid, n_zeros)
            for name in 'qkv'
        )  # (tiles, heads, patches, head + n_zeros)
        if self.attention == 'flash':  # which is fastest with keys and values in float16
            k, v = g.cast(k, GgmlType.F16), g.cast(v, GgmlType.F16)
        y = g.attention(q, k, v, self.attention, n_padding=n_zeros)
        x = g.add(x, self._linear(g, block + 'attn_out', y))
        self._cut_on_cpu(g, x)
        y = self._norm(g, block + 'ln2', x, self.facts.epsilon)
        y = g.gelu_tanh(self._linear(g, block + first, y))  # (tiles * patches, ffn)
        self._cut_on_cpu(g, y)
        return g.add(x, self._linear(g, block + second, y))

    def _head_padding(self, g: Builder) -> int:
        """Return how many zeros each head gets on a GPU; SigLIP's, of 72, get 8.

        Copies are cheaper than projections to wider heads, by bytes and operations of an Orin.
        """
        width = self.facts.width // self.facts.heads
        if self.attention != 'flash' or g.backend.is_cpu:
            return 0
        wider = next((w for w in TENSOR_CORE_WIDTHS if w >= width), width)
        return wider - width if wider <= MOST_WIDENED * width else 0

    def _heads(self, g: Builder, x: Tensor, grid: Grid, n_zeros: int) -> Tensor:
        """Return x (tiles * patches, d) as (tiles, heads, patches, head + n_zeros)."""
        rows, n_heads = grid.tiles * grid.patches, self.facts.heads
        if n_zeros:
            x = g.padded(g.reshape(x, (rows, n_heads, self.facts.width // n_heads)), n_zeros)
            x = g.reshape(x, (rows, n_heads * x.shape[-1]))
        return g.heads(x, n_heads, grid.tiles)

    def _downsample(self, g: Builder, x: Tensor, grid: Grid) -> Tensor:
        """Join every 2 x 2 patches, an odd side ends with zeros: (tiles * queries, width)."""
        width, n_rows = self.facts.width, grid.tiles * self.facts.queries
        zeros = g.scale(g.slice(x, 0, 0, 2), 0.0)  # (2, d); a single row would be a vector
        padded = g.concatenate(x, zeros, 0)
        ids = g.input(
            'neighbours', (4 * n_rows,), GgmlType.I32, below=grid.tiles * grid.patches + 1
        )
        x = g.reshape(g.rows(padded, ids), (n_rows, 4 * width))
        x = self._linear(g, 'mm.0', self._linear(g, 'mm.down', x))
        return self._linear(g, 'mm.2', g.gelu_erf(x))

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
