# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a vision file says: SigLIP and MiniCPM's resampler in llama.cpp's `clip` GGUF layout.

Both namings of the feed-forward occur; which layer is the first is decided by its shape.
"""

import re
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import Header
from minicpmo_ros.ggml.weights import Want, check

HEAD_WIDTH = 128  # of the resampler
# A CPU multiplies rows that end within a vector at a third of the speed of others.
ROW_MULTIPLE = 16
DEFAULT_QUERIES = 64  # of files that are older than the key
MAX_LAYERS = 256
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
    _check_kind(header)

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
        output_width=_shape(header, 'resampler.proj.weight', 2)[0],
        queries=header.get('clip.minicpmv_query_num', int) or DEFAULT_QUERIES,
        image_size=key('image_size'),
        patch_size=patch,
        epsilon=header.require('clip.vision.attention.layer_norm_epsilon', float),
        mean=mean,
        std=std,
        warnings=tuple(_warnings(header, layers, mean, std)),
    )
    _check_sizes(header, facts)
    check(header, {name: Want(shape) for name, shape in expected_shapes(facts).items()})
    return facts


def _check_kind(header: Header) -> None:
    if header.require('general.architecture', str) != 'clip':
        raise ModelFileError(header.path, 'it is no vision file', OTHER_FILE)
    projector = header.get('clip.projector_type', str, 'resampler')
    if projector != 'resampler' or header.get('clip.has_vision_encoder', bool) is False:
        raise ModelFileError(
            header.path,
            f'it is a vision file of another model (projector {projector!r})',
            OTHER_FILE,
        )
    if not header.get('clip.use_gelu', bool, True):
        raise ModelFileError(header.path, 'its activation is not the tanh GELU', OTHER_FILE)


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
    elif facts.output_width % HEAD_WIDTH:
        wrong = f'an embedding width of {facts.output_width}, no multiple of {HEAD_WIDTH}'
    elif not 0 < facts.patch_size <= facts.image_size <= facts.patch_size * facts.position_grid:
        wrong = (
            f'pictures of {facts.image_size} in patches of {facts.patch_size}, for '
            f'{facts.position_grid} positions a side'
        )
    elif not 1e-12 <= facts.epsilon <= 0.1:  # as of the language model; refuses NaN, too
        wrong = f'a layer norm epsilon of {facts.epsilon}, 1e-12 to 0.1 is allowed'
    elif min(facts.std) <= 0:
        wrong = f'an image_std of {facts.std}'
    elif facts.ffn_columns < facts.ffn_rows:
        wrong = 'a second feed-forward layer that is narrower than the first'
    if wrong:
        raise ModelFileError(header.path, f'it has {wrong}', OTHER_FILE)


def expected_shapes(facts: VisionFacts) -> dict:
    """Return the shape of every tensor the encoder reads."""
    d, width = facts.width, facts.output_width
    first, second = facts.ffn_names
    shapes = {
        'v.patch_embd.weight': (d, 3, facts.patch_size, facts.patch_size),
        'v.patch_embd.bias': (d,),
        'v.position_embd.weight': (facts.position_grid**2, d),
    }
    norms = {
        'v.post_ln': d,
        'resampler.ln_q': width,
        'resampler.ln_kv': width,
        'resampler.ln_post': width,
    }
    linears = {f'resampler.attn.{name}': (width, width) for name in ('q', 'k', 'v', 'out')}
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
    shapes.update(
        {
            'resampler.query': (facts.queries, width),
            'resampler.kv.weight': (width, d),
            'resampler.proj.weight': (width, width),
        }
    )
    return shapes
