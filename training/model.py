# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 2.6 in 3.9 million parameters: the same blocks, wired the same way, in PyTorch.

Vision: SigLIP (patches of 14, bucketed positions, tanh GELU) and a resampler (2-D sin-cos on the
keys, heads of 128). Audio: Whisper's encoder under a mask of one-second chunks, two linear
layers, a mean over pairs. Language: language.py. Module names are our own; export.py knows what
the files call them.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minicpmo_ros.media.audio.log_mel import filter_bank

from .scenes import PATCH


@dataclass(frozen=True)
class Config:
    """Shapes of the three modules. Widths of 256 keep every LLM row fit for 4-bit K-quants."""

    width: int = 256  # of the LLM, the resampler and every embedding
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 64
    ffn: int = 256
    rope_base: float = 1e6
    queries: int = 16
    vision_width: int = 96
    vision_layers: int = 4
    vision_heads: int = 3
    vision_grid: int = 8  # control points a side; all 70 x 70 positions lie between them
    audio_width: int = 96
    audio_layers: int = 3
    audio_heads: int = 3
    mels: int = 80
    audio_positions: int = 1500


def attend(q, k, v, mask=None):
    """Softmax attention over (..., n, d); on a CPU in bfloat16 faster than the fused kernels."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ v


def split_heads(x, heads):
    """(b, n, heads * d) -> (b, heads, n, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Pre-LN transformer layer, as SigLIP (tanh GELU) and Whisper (erf GELU, keys without
    bias).
    """

    def __init__(self, width, heads, eps, approximate, key_bias):
        super().__init__()
        self.heads, self.approximate = heads, approximate
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.q, self.v, self.out = (nn.Linear(width, width) for _ in range(3))
        self.k = nn.Linear(width, width, bias=key_bias)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask=None):
        y = self.norm1(x)
        q, k, v = (split_heads(p(y), self.heads) for p in (self.q, self.k, self.v))
        x = x + self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.approximate))


def position_buckets(count):
    """Row (or column) of the 70 x 70 position table for each of `count` patches."""
    return (70 * np.arange(count)) // count


def interpolation(buckets, grid):
    """(n, grid) linear weights of the control points at bucket numbers 0..69."""
    at = (np.asarray(buckets) + 0.5) / 70 * grid - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(at, 0, grid - 1)[:, None] - np.arange(grid)))


def sin_cos_2d(rows, columns, width, omega=None):
    """(rows * columns, width): sin and cos of the column, then of the row, a quarter each."""
    if omega is None:
        omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * omega
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)
    return torch.tensor(table, dtype=torch.float32)


class Vision(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config, d, width = c, c.vision_width, c.width
        self.patch = nn.Linear(3 * PATCH * PATCH, d)
        # Smooth waves, so that near patches look alike from the start.
        self.positions = nn.Parameter(
            0.3 * sin_cos_2d(c.vision_grid, c.vision_grid, d, np.geomspace(1.6, 0.15, d // 4))
        )
        self.layers = nn.ModuleList(
            EncoderLayer(d, c.vision_heads, 1e-6, 'tanh', True) for _ in range(c.vision_layers)
        )
        self.post_norm = nn.LayerNorm(d, eps=1e-6)
        self.query = nn.Parameter(torch.randn(c.queries, width) * 0.3)
        self.kv = nn.Linear(d, width, bias=False)
        self.norm_q, self.norm_kv, self.norm_out = (
            nn.LayerNorm(width, eps=1e-6) for _ in range(3)
        )
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.project = nn.Linear(width, width, bias=False)

    def position_rows(self, rows, columns):
        """(rows * columns, d)"""
        grid = self.config.vision_grid
        y, x = (interpolation(position_buckets(n), grid) for n in (rows, columns))
        weights = torch.tensor(np.kron(y, x), dtype=torch.float32)
        return weights @ self.positions

    def forward(self, frames, taps=None):
        """(b, H, W, 3) uint8 -> (b, 16, width). `taps`, a list, receives every layer's output."""
        rows, columns = frames.shape[1] // PATCH, frames.shape[2] // PATCH
        x = (frames.float() / 127.5 - 1).unflatten(2, (columns, PATCH)).unflatten(1, (rows, PATCH))
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)  # (b, patches, 3 * 14 * 14)
        x = self.patch(x) + self.position_rows(rows, columns)
        for layer in self.layers:
            x = layer(x)
            if taps is not None:
                taps.append(x)
        value = self.norm_kv(self.kv(self.post_norm(x)))
        key = value + sin_cos_2d(rows, columns, self.config.width)
        heads = self.config.width // 128
        q = split_heads(self.q(self.norm_q(self.query))[None], heads)
        mixed = attend(q, split_heads(self.k(key), heads), split_heads(self.v(value), heads))
        return self.project(self.norm_out(self.out(mixed.transpose(1, 2).flatten(2))))


class Audio(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config, d = c, c.audio_width
        filters = torch.tensor(filter_bank(), dtype=torch.float32)
        self.register_buffer('filters', filters, persistent=False)
        self.register_buffer('hann', torch.hann_window(400), persistent=False)
        self.conv1 = nn.Conv1d(c.mels, d, 3, padding=1)
        self.conv2 = nn.Conv1d(d, d, 3, stride=2, padding=1)
        # A position is its place inside the second plus the number of its second, both learned.
        self.inside = nn.Parameter(torch.randn(50, d) * 0.1)
        self.second = nn.Parameter(torch.randn(c.audio_positions // 50, d) * 0.1)
        self.layers = nn.ModuleList(
            EncoderLayer(d, c.audio_heads, 1e-5, 'none', False) for _ in range(c.audio_layers)
        )
        self.post_norm = nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, c.width), nn.Linear(c.width, c.width)

    def position_rows(self):
        """(1500, d)"""
        return (self.second[:, None] + self.inside[None]).flatten(0, 1)

    @torch.no_grad()
    def log_mel(self, pcm, louder=0.0):
        """(b, n) samples -> (b, 80, n / 160). `louder` raises the clamp as a louder past would."""
        power = (
            torch.stft(
                pcm.float(),
                400,
                160,
                window=self.hann,
                center=True,
                pad_mode='reflect',
                return_complex=True,
            )[..., :-1].abs()
            ** 2
        )
        mel = torch.clamp(self.filters @ power, min=1e-10).log10()
        floor = mel.amax((1, 2), keepdim=True) + louder - 8
        return (torch.maximum(mel, floor) + 4) / 4

    def forward(self, pcm, first_second=0, isolated=False, louder=0.0, hide=None):
        """(b, seconds * 16000) -> (b, seconds, 25, width). `isolated`: the official front end,
        which computes features and convolutions of every second by itself. `hide`: what becomes
        of the features (b, 80, frames) before they are read."""
        batch, seconds = pcm.shape[0], pcm.shape[1] // 16000
        mel = self.log_mel(pcm.reshape(-1, 16000) if isolated else pcm, louder)
        mel = hide(mel) if hide else mel
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x.reshape(batch, seconds * 50, -1)
        start = 50 * first_second
        x = x + self.position_rows()[start : start + seconds * 50]
        chunk = torch.arange(seconds * 50) // 50
        mask = (
            torch.zeros(seconds * 50, seconds * 50)
            .masked_fill(chunk[None] > chunk[:, None], -1e4)
            .to(x.dtype)
        )
        for layer in self.layers:
            x = layer(x, mask)
        x = self.linear2(F.relu(self.linear1(self.post_norm(x))))
        return x.view(batch, seconds, 25, 2, -1).mean(3)


def parameters_of(module):
    return sum(p.numel() for p in module.parameters())
