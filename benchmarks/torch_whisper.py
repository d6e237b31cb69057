# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whisper's encoder in PyTorch, a second at a time: float32, keys and values preallocated.

    PYTHON torch_whisper.py D_MODEL LAYERS HEADS WIDTH POOL THREADS

Weights are random: the cost does not depend on them. Reads the number of a second (1: the first) a
line from stdin, writes the ms of CPU that its encoding took. Runs in an environment of its own.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional

CHUNK, FRAMES, BINS, POSITIONS = 50, 103, 80, 1500


class Layer(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.ffn = heads, nn.Sequential(nn.Linear(d, 4 * d), nn.GELU())
        self.down = nn.Linear(4 * d, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.q, self.v, self.out = (nn.Linear(d, d) for _ in range(3))
        self.k = nn.Linear(d, d, bias=False)
        self.keys, self.values = (torch.zeros(1, heads, POSITIONS, d // heads) for _ in range(2))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(1, CHUNK, self.heads, -1).transpose(1, 2)  # (1, heads, 50, d)

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:  # x: (50, d_model)
        y, end = self.norms[0](x), start + CHUNK
        self.keys[:, :, start:end] = self.split(self.k(y))
        self.values[:, :, start:end] = self.split(self.v(y))
        y = functional.scaled_dot_product_attention(
            self.split(self.q(y)), self.keys[:, :, :end], self.values[:, :, :end]
        )
        x = x + self.out(y.transpose(1, 2).reshape(CHUNK, -1))
        return x + self.down(self.ffn(self.norms[1](x)))


class Encoder(nn.Module):
    def __init__(self, d: int, layers: int, heads: int, width: int, pool: int):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv1d(BINS, d, 3), nn.Conv1d(d, d, 3, 2)])
        self.positions = nn.Parameter(torch.randn(POSITIONS, d))
        self.layers = nn.ModuleList(Layer(d, heads) for _ in range(layers))
        self.norm, self.pool = nn.LayerNorm(d), pool
        self.first, self.second = nn.Linear(d, width), nn.Linear(width, width)

    def forward(self, mel: torch.Tensor, second: int) -> torch.Tensor:  # mel: (1, 80, 103)
        start = (second - 1) * CHUNK
        for convolution in self.convolutions:
            mel = functional.gelu(convolution(mel))
        x = mel[0].T + self.positions[start : start + CHUNK]  # (50, d_model)
        for layer in self.layers:
            x = layer(x, start)
        x = functional.relu(self.first(self.norm(x)))
        count = CHUNK // self.pool
        x = x[: count * self.pool].view(count, self.pool, -1).mean(1)  # (tokens, width)
        return self.second(x)


def main() -> None:
    d, layers, heads, width, pool, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    now = time.process_time if threads == 1 else time.perf_counter  # as timing.clock_for says
    encoder, mel = Encoder(d, layers, heads, width, pool).eval(), torch.randn(1, BINS, FRAMES)
    with torch.inference_mode():
        for line in sys.stdin:
            started_s = now()
            encoder(mel, int(line))
            print(1e3 * (now() - started_s), flush=True)


if __name__ == '__main__':
    main()
