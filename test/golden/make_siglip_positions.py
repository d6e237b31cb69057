# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Write siglip_positions.json: table rows by the official rule, as PyTorch computes it.

Needs environment/requirements-golden.txt. For each number of patches a side, from 1 on, [patch,
row] where the row differs from (70 * patch) // patches.
"""

import json
from pathlib import Path

import torch

GRID, MOST = 70, 160  # positions a side; more patches than any picture has


def rows(count: int) -> list:
    """Return the table row of each of `count` patches, as MiniCPM-o's SigLIP looks it up."""
    edges = torch.arange(1 / GRID, 1.0, 1 / GRID)
    places = torch.arange(0, 1 - 1e-6, 1 / torch.tensor(count, dtype=torch.int32))
    return torch.bucketize(places, edges, right=True).tolist()


if __name__ == '__main__':
    differing = [
        [[i, row] for i, row in enumerate(rows(n)) if row != GRID * i // n]
        for n in range(1, MOST + 1)
    ]
    Path(__file__).with_name('siglip_positions.json').write_text(json.dumps(differing) + '\n')
