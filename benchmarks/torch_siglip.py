# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP and MiniCPM's resampler in PyTorch, an image of 448x448 at a time: float32, one thread.

    PYTHON torch_siglip.py WIDTH LAYERS HEADS FFN OUTPUT_WIDTH QUERIES

Weights are random: the cost does not depend on them. For every line from stdin an image is
encoded, and the ms of CPU that it took are written. Runs in an environment of its own.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional

SIDE, PATCH, HEAD = 448, 14, 128
PATCHES = (SIDE // PATCH) ** 2


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(1, len(x), self.heads, -1).transpose(1, 2)  # (1, heads, n, d)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y = functional.scaled_dot_product_attention(
            self.split(self.q(q)), self.split(self.k(k)), self.split(self.v(v))
        )
        return self.out(y.transpose(1, 2).reshape(len(q), -1))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn), nn.GELU(approximate='tanh'), nn.Linear(ffn, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (patches, width)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y)
        return x + self.ffn(self.norms[1](x))


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, ffn: int, output: int, queries: int):
        super().__init__()
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn(PATCHES, width))
        self.layers = nn.Sequential(*(Layer(width, heads, ffn) for _ in range(layers)))
        self.norm, self.kv = nn.LayerNorm(width), nn.Linear(width, output, bias=False)
        self.kv_norm, self.out_norm = nn.LayerNorm(output), nn.LayerNorm(output)
        self.places = nn.Parameter(torch.randn(PATCHES, output))
        self.queries = nn.Parameter(torch.randn(queries, output))
        self.attention = Attention(output, output // HEAD)
        self.project = nn.Linear(output, output, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (1, 3, 448, 448)
        x = self.embed(image)[0].flatten(1).T + self.positions
        kv = self.kv_norm(self.kv(self.norm(self.layers(x))))
        return self.project(self.out_norm(self.attention(self.queries, kv + self.places, kv)))


def main() -> None:
    """Encode an image for every line."""
    torch.set_num_threads(1)
    encoder, image = Encoder(*map(int, sys.argv[1:])).eval(), torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        for _ in sys.stdin:
            begun_s = time.process_time()
            encoder(image)
            print(1e3 * (time.process_time() - begun_s), flush=True)


if __name__ == '__main__':
    main()
