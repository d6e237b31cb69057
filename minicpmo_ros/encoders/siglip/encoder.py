# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures to LLM embeddings: SigLIP-400M and its projector, from a GGUF file.

    encoder = VisionEncoder.load('vision.gguf', backend)
    rows = encoder.encode([picture])    # (336, 602, 3) uint8 -> (64, 3584) float32

Every tile gives the same number of embeddings, whatever its size.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from minicpmo_ros.encoders import EncoderMemory
from minicpmo_ros.encoders.siglip.model import (
    Grid,
    VisionFacts,
    VisionGraph,
    expected_shapes,
    read_facts,
)
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.gguf_file import Header, read_header
from minicpmo_ros.ggml.graph import GraphCache, buffer_bytes
from minicpmo_ros.ggml.runtime import Backend, Tensors
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.ggml.weights import Want, describe_weights, load_weights, read_floats
from minicpmo_ros.media.image import tiling as geometry

VECTOR = 8  # float32 numbers in a vector of the processors that PyTorch is built for
GRIDS_KEPT = 4  # a camera gives one size of overview and one of tiles
# What every device can look rows up in.
TABLE_TYPES = (
    GgmlType.F32,
    GgmlType.F16,
    GgmlType.Q4_0,
    GgmlType.Q4_1,
    GgmlType.Q5_0,
    GgmlType.Q5_1,
    GgmlType.Q8_0,
)


class VisionEncoder:
    """A loaded encoder; one thread at a time uses it."""

    def __init__(
        self,
        facts: VisionFacts,
        weights: Tensors,
        backend: Backend,
        largest: Grid,
        attention: str,
        path: Path,
    ):
        self.facts, self.max_tiles, self.path = facts, largest.tiles, path
        self._largest = largest
        graph = VisionGraph(facts, weights, attention)
        self._graphs = GraphCache(
            backend, graph.describe, [self._largest], graph.max_nodes, GRIDS_KEPT
        )
        self.weight_bytes, self.compute_bytes = weights.size_bytes, self._graphs.size_bytes

    @classmethod
    def load(
        cls,
        path,
        backend: Backend,
        max_tiles: int = 1,
        max_patches: int | None = None,
        attention: str = 'flash',
        between: Callable[[], None] | None = None,
        area: float = 1.0,
    ) -> 'VisionEncoder':
        """Load a file, tensors in the types it has.

        max_tiles: tiles that are encoded at once; memory is reserved for them. max_patches: of
        one tile; None: enough for all that the resizing rule gives for images of that share of the
        model's `area`. attention: 'flash' or 'mul_mat'. between: called between tensors,
        and may raise. Raises ModelFileError, EngineError.
        """
        header = read_header(path)
        facts = read_facts(header)
        extra = {} if facts.takes_squares else {'queries': _projected_queries(header, facts)}
        if between is not None:
            between()
        weights = load_weights(
            header,
            backend,
            wanted(facts, header),
            extra,
            repack=True,
            between=between,
        )
        largest = largest_grid(facts, max_tiles, max_patches, area)
        return cls(facts, weights, backend, largest, attention, header.path)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.facts.output_width

    @property
    def queries(self) -> int:
        """Embeddings per tile."""
        return self.facts.queries

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch; sides of tiles are multiples of it."""
        return self.facts.patch_size

    @property
    def image_size(self) -> int:
        """Pixels per side of a square tile, as the model was trained."""
        return self.facts.image_size

    @property
    def takes_squares(self) -> bool:
        """Whether tiles must be squares of image_size; else of any aspect."""
        return self.facts.takes_squares

    def encode(
        self, tiles: Sequence[np.ndarray], between: Callable[[], None] | None = None
    ) -> np.ndarray:
        """Return (n_tiles * queries, width) float32 of tiles (H, W, 3) uint8 RGB of one size.

        between is called between the layers and may raise. Raises InputError for tiles that do
        not fit, EngineError where the device fails.
        """
        grid = self._checked_grid(tiles)
        inputs = {
            'patches': np.concatenate([self._patches(tile) for tile in tiles]),
            'position_ids': bucket_ids(grid.rows, grid.columns, self.facts.position_grid),
        }
        if self.takes_squares:
            inputs['neighbours'] = neighbours(grid)
        else:
            inputs['column_sines'], inputs['row_sines'] = sines(self.width, grid)
        return self._graphs.run(grid, inputs, between)['embeddings']

    def _checked_grid(self, tiles: Sequence[np.ndarray]) -> Grid:
        """Return the patches of tiles; raise InputError if they do not fit."""
        height, width, colours = shape = self._checked_shape(tiles)
        size = self.patch_size
        grid, largest = Grid(len(tiles), height // size, width // size), self._largest
        if self.takes_squares:
            if shape != (self.image_size, self.image_size, 3):
                raise InputError(
                    f'A tile has the shape {shape}; this model allows '
                    f'{(self.image_size, self.image_size, 3)} only. Resize it first.'
                )
            return grid
        if colours != 3 or not height or not width or height % size or width % size:
            raise InputError(
                f'A tile has the shape {shape}; (height, width, 3) with sides that '
                f'are multiples of {size} is allowed. Resize it first.'
            )
        if (
            not 2 <= grid.patches <= largest.patches
            or grid.rows + grid.columns > largest.rows + largest.columns
        ):
            raise InputError(
                f'A tile of {width}x{height} has {grid.columns}x{grid.rows} patches; '
                f'2 to {largest.patches} with one side at most '
                f'{geometry.MAX_ASPECT} times the other are allowed. Resize it '
                'first.'
            )
        return grid

    def _checked_shape(self, tiles: Sequence[np.ndarray]) -> tuple:
        """Return the shape (height, width, colours) that all tiles have."""
        if not 1 <= len(tiles) <= self.max_tiles:
            raise InputError(
                f'{len(tiles)} tiles were given at once, 1 to {self.max_tiles} are '
                'allowed. Raise max_tiles or give them in parts.'
            )
        shape = np.shape(tiles[0])
        for tile in tiles:
            if not isinstance(tile, np.ndarray) or tile.dtype != np.uint8 or tile.ndim != 3:
                raise InputError(
                    f'A tile is {getattr(tile, "dtype", type(tile).__name__)} of '
                    f'shape {np.shape(tile)}; (height, width, 3) of uint8 is '
                    'allowed.'
                )
            if tile.shape != shape:
                raise InputError(
                    f'Tiles of the shapes {shape} and {tile.shape} were given at '
                    'once; they must be of one size.'
                )
        return shape

    def _patches(self, tile: np.ndarray) -> np.ndarray:
        """Cut a tile into normalised patches (patches, patch_columns): colours apart, zeros."""
        size = self.patch_size
        mean, std = np.float32(self.facts.mean), np.float32(self.facts.std)
        rows, columns = tile.shape[0] // size, tile.shape[1] // size
        tile = tile[: rows * size, : columns * size]  # of a square, what is left is not seen
        pixels = tile * (1 / (255 * std)) - mean / std  # (H, W, 3) float32
        pixels = pixels.reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3)
        patches = np.zeros((rows * columns, self.facts.patch_columns), np.float32)
        patches[:, : self.facts.patch_values] = pixels.reshape(rows * columns, -1)
        return patches


def sines(width: int, grid: Grid) -> tuple:
    """Return the positions of columns (columns, width) and rows (rows, width), halves zero."""
    table = sine_grid(width, grid.rows, grid.columns).reshape(grid.rows, grid.columns, width)
    of_column, of_row = table[0].copy(), table[:, 0].copy()
    of_column[:, width // 2 :] = 0
    of_row[:, : width // 2] = 0
    return of_column, of_row


def neighbours(grid: Grid) -> np.ndarray:
    """Return the patches that are joined (tiles * queries * 4,) int32, 2 x 2 by 2 x 2.

    Where a side is odd, the last ones lie partly outside: number tiles * patches, a row of zeros.
    """
    outside = grid.tiles * grid.patches
    places = np.arange(outside, dtype=np.int32).reshape(grid.tiles, grid.rows, grid.columns)
    odd = ((0, 0), (0, grid.rows % 2), (0, grid.columns % 2))
    places = np.pad(places, odd, constant_values=outside)
    tiles, rows, columns = places.shape
    return places.reshape(tiles, rows // 2, 2, columns // 2, 2).swapaxes(2, 3).reshape(-1)


def largest_grid(
    facts: VisionFacts, max_tiles: int, max_patches: int | None = None, area: float = 1.0
) -> Grid:
    """Return the grid with the most to compute and to place.

    Of an area, that is the longest; max_patches None: of all that the resizing rule gives for
    images of that share of the model's `area`.
    """
    if facts.takes_squares:
        return Grid(max_tiles, facts.patches_a_side, facts.patches_a_side)
    side = geometry.overview_side(facts.image_size, area)
    max_patches = max_patches or geometry.max_patches(side=side)
    short = max(1, math.isqrt(max_patches // geometry.MAX_ASPECT))
    return Grid(max_tiles, short, -(-max_patches // short))


def wanted(facts: VisionFacts, header: Header) -> dict:
    """Return how every tensor is to be loaded: matrices as stored, the small ones in float32."""
    wanted = {}
    for name, shape in expected_shapes(facts).items():
        if name.startswith(('resampler.attn.q.', 'resampler.ln_q.', 'resampler.query')):
            continue  # folded into the queries
        is_matrix = len(shape) == 2 and name != 'v.position_embd.weight'
        wanted[name] = Want(shape, as_float=len(shape) == 1, matmul=is_matrix)
    patch, table = 'v.patch_embd.weight', 'v.position_embd.weight'
    wanted[patch] = Want(
        wanted[patch].shape,
        stored=(facts.width, facts.patch_columns),
        transform=lambda _, info, array: _padded(
            array.reshape(len(array), -1), 1, facts.patch_columns
        ),
    )
    wanted[table] = Want(
        wanted[table].shape, as_float=header.tensors[table].type not in TABLE_TYPES
    )
    for i in range(facts.layers):
        _widen(wanted, facts, *(f'v.blk.{i}.{name}' for name in facts.ffn_names))
    return wanted


def _widen(wanted: dict, facts: VisionFacts, first: str, second: str) -> None:
    """Let the feed-forward be loaded with zeros: GELU leaves them zero, zero columns meet them."""
    width, d = facts.ffn_width, facts.width

    def pad(axis: int):
        return lambda _, info, array: _padded(array, axis, width)

    if width > facts.ffn_rows:
        wanted[f'{first}.weight'] = Want(
            (facts.ffn_rows, d), matmul=True, transform=pad(0), stored=(width, d)
        )
        wanted[f'{first}.bias'] = Want(
            (facts.ffn_rows,), as_float=True, transform=pad(0), stored=(width,)
        )
    if width > facts.ffn_columns:
        wanted[f'{second}.weight'] = Want(
            (d, facts.ffn_columns), matmul=True, transform=pad(1), stored=(d, width)
        )


def _padded(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Append zeros along an axis."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, count - array.shape[axis])
    return np.pad(array, widths)


def _projected_queries(header: Header, facts: VisionFacts) -> np.ndarray:
    """Return the queries (queries, width) after their layer norm and projection: constants."""

    def read(name):
        return read_floats(header, f'resampler.{name}')

    x = read('query')
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = x * read('ln_q.weight') + read('ln_q.bias')
    return x @ read('attn.q.weight').T + read('attn.q.bias')


def bucket_ids(rows: int, columns: int, grid: int = 70) -> np.ndarray:
    """Return the table rows (rows * columns,) int32 for a picture of rows x columns patches.

    The learned grid x grid positions are spread over the picture. The model was trained with a
    rule in float32 (`_rows_of`), which for some numbers of patches, 25 among them, differs from
    (grid * i) // n by one.
    """
    of_row, of_column = _rows_of(rows, grid), _rows_of(columns, grid)
    return (grid * of_row[:, None] + of_column).reshape(-1).astype(np.int32)


def _rows_of(count: int, grid: int) -> np.ndarray:
    """Return the table row of each of `count` patches of a side (count,), as SigLIP looks it up.

    Patch i lies at i / count, in a bucket between the edges k / grid; both are sums in float32,
    of which some fall just short of the fraction that they stand for.
    """
    edges = _float_steps(1 / grid, 1 / grid, grid - 1)  # (grid - 1,)
    places = _float_steps(0.0, float(np.float32(1) / np.float32(count)), count)  # (count,)
    return np.searchsorted(edges, places, side='right')


def _float_steps(start: float, step: float, count: int) -> np.ndarray:
    """Return start + step * i (count,) float32, rounded as torch.arange does.

    PyTorch computes eight at a time from a start that is rounded itself, the rest one by one.
    """
    i = np.arange(count)
    base = np.float32(start + step * (i - i % VECTOR)).astype(np.float64)
    values = np.float32(base + step * (i % VECTOR))  # (count,)
    rest = count - count % VECTOR
    values[rest:] = start + step * i[rest:]
    return values


def sine_grid(width: int, rows: int, columns: int) -> np.ndarray:
    """Return MiniCPM's 2-D positions (rows * columns, width) float32: the column comes first.

    A patch at (y, x) has [sin(x w), cos(x w), sin(y w), cos(y w)], w_k = 10000^(-4k / width).
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    angle_y = np.arange(rows)[:, None] * frequency  # (rows, width / 4)
    angle_x = np.arange(columns)[:, None] * frequency  # (columns, width / 4)
    table = np.empty((rows, columns, width), np.float32)
    for part, angle in enumerate((angle_x, angle_x, angle_y[:, None], angle_y[:, None])):
        wave = np.sin if part % 2 == 0 else np.cos
        table[..., part * (width // 4) : (part + 1) * (width // 4)] = wave(angle)
    return table.reshape(rows * columns, width)


def vision_memory(
    header: Header,
    backend: Backend,
    max_tiles: int = 1,
    attention: str = 'flash',
    area: float = 1.0,
) -> EncoderMemory:
    """Forecast VisionEncoder.load()."""
    facts = read_facts(header)
    extra = {} if facts.takes_squares else {'queries': (facts.queries, facts.output_width)}
    weights = describe_weights(header, backend, wanted(facts, header), extra, repack=True)
    graph = VisionGraph(facts, weights, attention)
    grid = largest_grid(facts, max_tiles, area=area)
    compute, work = buffer_bytes(backend, graph.describe, [grid], graph.max_nodes)
    return EncoderMemory(weights.size_bytes, 0, compute, work)
