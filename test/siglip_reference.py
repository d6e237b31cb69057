# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP and its two projectors as their papers and code have them, in float64 and slowly."""

import math

import numpy as np

from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.weights import read_floats


def encode(path, picture: np.ndarray, first='ffn_down', second='ffn_up') -> np.ndarray:
    """Encode (H, W, 3) uint8 with an f32 file whose mean and std are 0.5: (queries, width)."""
    header = read_header(path)

    def w(name):
        return np.float64(read_floats(header, name))

    def linear(x, name):
        return x @ w(name + '.weight').T + w(name + '.bias')

    def norm(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * w(name + '.weight') + w(name + '.bias')

    table = w('v.position_embd.weight')
    grid = math.isqrt(len(table))
    rows, columns = picture.shape[0] // 14, picture.shape[1] // 14
    heads = header.metadata['clip.vision.attention.head_count']
    places = [(y, x) for y in range(rows) for x in range(columns)]
    patches = [
        picture[14 * y : 14 * y + 14, 14 * x : 14 * x + 14].transpose(2, 0, 1).reshape(-1)
        for y, x in places
    ]
    kernel = w('v.patch_embd.weight')
    x = (np.array(patches) / 127.5 - 1) @ kernel.reshape(len(kernel), -1).T
    x = (
        x
        + w('v.patch_embd.bias')
        + table[[grid * y // rows * grid + grid * x // columns for y, x in places]]
    )
    for i in range(header.metadata['clip.vision.block_count']):
        block = f'v.blk.{i}.'
        y = norm(x, block + 'ln1')
        y = attend(*(linear(y, f'{block}attn_{name}') for name in 'qkv'), heads)
        x = x + linear(y, block + 'attn_out')
        y = gelu_tanh(linear(norm(x, block + 'ln2'), block + first))
        x = x + linear(y, block + second)
    if 'mm.down.weight' in header.tensors:
        x = norm(x, 'v.post_ln').reshape(rows, columns, -1)
        x = np.pad(x, ((0, rows % 2), (0, columns % 2), (0, 0)))
        joined = [
            np.concatenate([x[y, z], x[y, z + 1], x[y + 1, z], x[y + 1, z + 1]])
            for y in range(0, len(x), 2)
            for z in range(0, len(x[0]), 2)
        ]
        y = linear(linear(np.array(joined), 'mm.down'), 'mm.0')
        return linear(y / 2 * (1 + np.vectorize(math.erf)(y / math.sqrt(2))), 'mm.2')
    v = norm(norm(x, 'v.post_ln') @ w('resampler.kv.weight').T, 'resampler.ln_kv')
    omega = 10000.0 ** (-np.arange(v.shape[1] // 4) / (v.shape[1] // 4))
    k = v + [
        np.concatenate(
            [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        )
        for y, x in places
    ]
    q = norm(w('resampler.query'), 'resampler.ln_q')
    y = attend(
        linear(q, 'resampler.attn.q'),
        linear(k, 'resampler.attn.k'),
        linear(v, 'resampler.attn.v'),
        v.shape[1] // 128,
    )
    y = norm(linear(y, 'resampler.attn.out'), 'resampler.ln_post')
    return y @ w('resampler.proj.weight').T


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attend(q, k, v, heads):
    q, k, v = (a.reshape(len(a), heads, -1).transpose(1, 0, 2) for a in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])  # (heads, queries, keys)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    y = weights / weights.sum(2, keepdims=True) @ v
    return y.transpose(1, 0, 2).reshape(y.shape[1], -1)
