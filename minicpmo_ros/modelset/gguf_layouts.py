# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The published GGUF layouts of MiniCPM-o as lists of tensors, and sizes of models to write.

LLM: llama.cpp's qwen2 or qwen3, as the family has it. Vision: llama.cpp's `clip` with the
projector of MiniCPM-V. Audio: 360CVGroup's `whisper` file. Shapes are in NumPy order, rows first.
Each tensor has a standard deviation for random weights: it keeps activations near one and
attention neither uniform nor one-hot, so that outputs depend on inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from minicpmo_ros.families import DEFAULT, FAMILIES
from minicpmo_ros.families.base import Shape
from minicpmo_ros.ggml.types import GgmlType as Type

PRECISIONS = {
    'f32': Type.F32,
    'f16': Type.F16,
    'q8_0': Type.Q8_0,
    'q4_0': Type.Q4_0,
    'q4_K': Type.Q4_K,
}  # of matrices
MATRIX, HALF, SINGLE = 'matrix', 'half', 'single'
FFN_NAMES = {
    'swapped': ('ffn_down', 'ffn_up'),  # first and second layer; as published
    'plain': ('ffn_up', 'ffn_down'),
}
ATTENTION_GAIN = 1.5  # of queries and keys
TIED_STD = 0.3  # of embeddings that are also the output: larger ones repeat themselves
LOGIT_STD = 2.0
# As published, the vision feed-forward is no multiple of 32; from small on its heads have 72.
TINY = Shape(
    'tiny',
    DEFAULT.name,
    width=256,
    llm_layers=2,
    llm_heads=4,
    llm_kv_heads=2,
    llm_ffn=512,
    vocabulary=640,
    vision_width=160,
    vision_layers=2,
    vision_heads=2,
    vision_ffn=538,
    audio_width=128,
    audio_layers=2,
    audio_heads=2,
)
NANO = Shape(
    'nano',
    DEFAULT.name,
    width=256,
    llm_layers=6,
    llm_heads=4,
    llm_kv_heads=2,
    llm_ffn=512,
    vocabulary=640,
    vision_width=128,
    vision_layers=3,
    vision_heads=4,
    vision_ffn=512,
    audio_width=128,
    audio_layers=3,
    audio_heads=4,
    queries=16,
    image_size=112,
    llm_tied=True,
    rope_base=1e4,
)
SMALL = Shape(
    'small',
    DEFAULT.name,
    width=512,
    llm_layers=8,
    llm_heads=4,
    llm_kv_heads=1,
    llm_ffn=1536,
    vocabulary=2048,
    vision_width=576,
    vision_layers=4,
    vision_heads=8,
    vision_ffn=2152,
    audio_width=256,
    audio_layers=4,
    audio_heads=4,
)
HALF_B = Shape(
    '0.5b',
    DEFAULT.name,
    width=896,
    llm_layers=24,
    llm_heads=14,
    llm_kv_heads=2,
    llm_ffn=4864,
    vocabulary=151700,
    vision_width=576,
    vision_layers=12,
    vision_heads=8,
    vision_ffn=2152,
    audio_width=512,
    audio_layers=6,
    audio_heads=8,
    llm_tied=True,
)

# BlueLM-V-3B (arXiv 2411.10640): SigLIP-400M for 384 pixels, 2 x 2 patches joined, an MLP of two
# layers. The paper tells 2.7 billion numbers of its language model, not how they are laid out:
# here they are a Qwen2's.
BLUELM_V_3B = Shape(
    'bluelm-v-3b',
    DEFAULT.name,
    width=2560,
    llm_layers=34,
    llm_heads=20,
    llm_kv_heads=4,
    llm_ffn=6912,
    vocabulary=151700,
    vision_width=1152,
    vision_layers=27,
    vision_heads=16,
    vision_ffn=4304,
    audio_width=256,
    audio_layers=4,
    audio_heads=4,
    queries=196,
    image_size=384,
    position_grid=27,
    joins_patches=True,
    llm_tied=True,
)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: what it is called, how it is stored, and how its random values are drawn."""

    name: str
    shape: tuple
    kind: str  # MATRIX quantised, HALF f16 at most, SINGLE f32
    std: float = 0.0
    mean: float = 0.0
    values: Callable[[], np.ndarray] | None = None  # instead of random ones
    key: str = ''  # seeds the values; the name where empty
    role: str = ''  # 'output', 'sensitive': stored in more bits
    n_valid_columns: int = 0  # zeros follow these; 0: none do


def _matrix(name, n_out, n_in, gain=1.0, **more) -> TensorPlan:
    return TensorPlan(f'{name}.weight', (n_out, n_in), MATRIX, gain / n_in**0.5, **more)


def _bias(name, n, key='') -> TensorPlan:
    return TensorPlan(f'{name}.bias', (n,), SINGLE, 0.1, key=key)


def _linear(name, n_out, n_in, gain=1.0) -> list:
    return [_matrix(name, n_out, n_in, gain), _bias(name, n_out)]


def _layer_norm(name, n) -> list:
    return [TensorPlan(f'{name}.weight', (n,), SINGLE, 0.1, 1.0), _bias(name, n)]


def _rms_norm(name, n, mean=1.0) -> TensorPlan:
    return TensorPlan(f'{name}.weight', (n,), SINGLE, 0.0, mean)


def llm_tensors(shape: Shape) -> list:
    """List the tensors of the language model."""
    d = shape.width
    embedding = (shape.vocabulary, d)
    if shape.llm_tied:
        plans = [
            TensorPlan('token_embd.weight', embedding, MATRIX, TIED_STD, role='output'),
            _rms_norm('output_norm', d, LOGIT_STD / TIED_STD / d**0.5),
        ]
    else:
        plans = [
            TensorPlan('token_embd.weight', embedding, MATRIX, 1.0),
            _rms_norm('output_norm', d),
            _matrix('output', *embedding, LOGIT_STD, role='output'),
        ]
    for i in range(shape.llm_layers):
        sensitive = 'sensitive' if takes_more_bits(i, shape.llm_layers) else ''
        block = f'blk.{i}.'
        plans += [
            _rms_norm(block + 'attn_norm', d),
            *_llm_attention(shape, block, sensitive),
            _rms_norm(block + 'ffn_norm', d),
            _matrix(block + 'ffn_gate', shape.llm_ffn, d),
            _matrix(block + 'ffn_up', shape.llm_ffn, d),
            _matrix(block + 'ffn_down', d, shape.llm_ffn, role=sensitive),
        ]
    return plans


def _llm_attention(shape: Shape, block: str, sensitive: str) -> list:
    """Qwen2 adds biases to queries, keys and values; Qwen3 normalises each head's instead."""
    d, head = shape.width, shape.llm_head_width
    q, kv = head * shape.llm_heads, head * shape.llm_kv_heads
    output = _matrix(block + 'attn_output', d, q)
    value = _matrix(block + 'attn_v', kv, d, role=sensitive)
    if FAMILIES[shape.family].architecture == 'qwen3':
        return [
            _matrix(block + 'attn_q', q, d),
            _rms_norm(block + 'attn_q_norm', head, ATTENTION_GAIN),
            _matrix(block + 'attn_k', kv, d),
            _rms_norm(block + 'attn_k_norm', head, ATTENTION_GAIN),
            value,
            output,
        ]
    return [
        *_linear(block + 'attn_q', q, d, ATTENTION_GAIN),
        *_linear(block + 'attn_k', kv, d, ATTENTION_GAIN),
        value,
        _bias(block + 'attn_v', kv),
        output,
    ]


def takes_more_bits(layer: int, layers: int) -> bool:
    """Return whether llama.cpp's Q4_K_M uses Q6_K: first and last eighth, every third between."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def vision_tensors(shape: Shape, ffn_naming: str = 'swapped', ffn_columns: int = 0) -> list:
    """List the tensors of vision encoder and projector.

    `ffn_columns` > vision_ffn widens the rows of the second feed-forward layer with zeros.
    """
    d, size, grid = shape.vision_width, shape.patch_size, shape.position_grid
    plans = [
        TensorPlan('v.patch_embd.weight', (d, 3, size, size), HALF, 1 / (3 * size * size) ** 0.5),
        _bias('v.patch_embd', d),
        TensorPlan('v.position_embd.weight', (grid * grid, d), HALF, 0.3),
    ]
    for i in range(shape.vision_layers):
        plans += _vision_layer(shape, f'v.blk.{i}.', FFN_NAMES[ffn_naming], ffn_columns)
    project = _downsampler if shape.joins_patches else _resampler
    return plans + _layer_norm('v.post_ln', d) + project(shape)


def _vision_layer(shape: Shape, block: str, ffn_names: tuple, ffn_columns: int) -> list:
    d, ffn = shape.vision_width, shape.vision_ffn
    first, second = (block + name for name in ffn_names)
    columns = max(ffn, ffn_columns)
    return [
        *_layer_norm(block + 'ln1', d),
        *_linear(block + 'attn_q', d, d, ATTENTION_GAIN),
        *_linear(block + 'attn_k', d, d, ATTENTION_GAIN),
        *_linear(block + 'attn_v', d, d),
        *_linear(block + 'attn_out', d, d),
        *_layer_norm(block + 'ln2', d),
        _matrix(first, ffn, d, key=block + 'first'),
        _bias(first, ffn, key=block + 'first.bias'),
        TensorPlan(
            second + '.weight',
            (d, columns),
            MATRIX,
            ffn**-0.5,
            key=block + 'second',
            n_valid_columns=ffn if columns > ffn else 0,
        ),
        _bias(second, d, key=block + 'second.bias'),
    ]


def _positions(width: int, grid: int) -> np.ndarray:
    # Needs llama.cpp, which the command line loads only for what computes.
    from minicpmo_ros.encoders.siglip.encoder import sine_grid

    return sine_grid(width, grid, grid)


def _downsampler(shape: Shape) -> list:
    d, width = shape.vision_width, shape.width
    return [
        *_linear('mm.down', d, 4 * d),
        *_linear('mm.0', width, d),
        *_linear('mm.2', width, width, 1.4),
    ]


def _resampler(shape: Shape) -> list:
    width, grid = shape.width, shape.position_grid
    plans = [
        TensorPlan('resampler.query', (shape.queries, width), SINGLE, 1.0),
        TensorPlan(
            'resampler.pos_embed_k',
            (grid * grid, width),
            SINGLE,
            values=lambda: _positions(width, grid),
        ),
        _matrix('resampler.kv', width, shape.vision_width),
    ]
    for name, gain in (('q', 2.0), ('k', 2.0), ('v', 1.0), ('out', 1.0)):
        plans += _linear(f'resampler.attn.{name}', width, width, gain)
    for name in ('q', 'kv', 'post'):
        plans += _layer_norm(f'resampler.ln_{name}', width)
    return [*plans, _matrix('resampler.proj', width, width)]


def audio_tensors(shape: Shape) -> list:
    """List the tensors of audio encoder and projector."""
    d, ffn = shape.audio_width, shape.audio_ffn
    plans = [
        TensorPlan(
            'encoder.conv1.weight', (d, shape.mel_bins, 3), HALF, (3 * shape.mel_bins) ** -0.5
        ),
        TensorPlan('encoder.conv1.bias', (d, 1), SINGLE, 0.1),
        TensorPlan('encoder.conv2.weight', (d, d, 3), HALF, (3 * d) ** -0.5),
        TensorPlan('encoder.conv2.bias', (d, 1), SINGLE, 0.1),
        TensorPlan(
            'encoder.positional_embedding',
            (shape.audio_positions, d),
            SINGLE,
            values=lambda: sine_line(d, shape.audio_positions),
        ),
    ]
    for i in range(shape.audio_layers):
        block = f'encoder.blocks.{i}.'
        plans += [
            *_layer_norm(block + 'attn_ln', d),
            *_linear(block + 'attn.query', d, d, ATTENTION_GAIN),
            _matrix(block + 'attn.key', d, d, ATTENTION_GAIN),
            *_linear(block + 'attn.value', d, d),
            *_linear(block + 'attn.out', d, d),
            *_layer_norm(block + 'mlp_ln', d),
            *_linear(block + 'mlp.0', ffn, d),
            *_linear(block + 'mlp.2', d, ffn),
        ]
    return [
        *plans,
        *_layer_norm('encoder.ln_post', d),
        *_linear('audio_projector.linear1', shape.width, d),
        *_linear('audio_projector.linear2', shape.width, shape.width, 1.4),
    ]


def sine_line(width: int, count: int) -> np.ndarray:
    """Return Whisper's positions (count, width) float32: sines, then cosines."""
    frequency = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
    angle = np.arange(count)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def tiny_of(family: str) -> Shape:
    """Return the smallest Shape of a family."""
    if family == TINY.family:
        return TINY
    of = FAMILIES[family]
    return replace(TINY, name=f'{TINY.name}-{of.version}', family=family, **of.tiny)


SHAPES = {
    shape.name: shape
    for shape in (
        *(TINY, NANO, SMALL, HALF_B, BLUELM_V_3B),
        *(shape for each in FAMILIES.values() for shape in (tiny_of(each.name), each.published)),
    )
}
