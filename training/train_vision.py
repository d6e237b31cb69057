# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Teaches the vision encoder to say, in the picture frame of the code book, what a frame shows.

Three teachers: the rows themselves (distance to their codes, and a choice among the values of
their slot), and two dense ones without which shapes come slowly: from the first layer, which part
of every patch is covered; from the last, which shape a covered patch belongs to.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import codes
from .runs import Run, autocast, optimizers
from .scenes import PATCH, random_drawn, random_size
from .world import COLORS, COUNTS, SHAPES

SHARPNESS = 8.0  # of the choice among codes


class DenseHeads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cover = nn.Linear(width, 49)
        self.shape = nn.Linear(width, len(SHAPES))


def make_batch(count, rng, p_mixed=0.4):
    """-> frames (n, H, W, 3), targets (n, 16, 256), cover (n, patches, 49), owner (n, patches),
    labels.
    """
    width, height = random_size(rng)
    drawn = [random_drawn(width, height, rng, p_mixed) for _ in range(count)]
    rows, columns = height // PATCH, width // PATCH
    cover = np.stack([d.cover for d in drawn]).reshape(count, rows, 7, 2, columns, 7, 2)
    cover = cover.mean((3, 6)).transpose(0, 1, 3, 2, 4).reshape(count, rows * columns, 49)
    targets = np.stack([codes.picture_rows(d.picture, d.cells) for d in drawn])
    owners = np.stack([d.owners.reshape(-1) for d in drawn])
    arrays = (np.stack([d.frame for d in drawn]), targets, cover, owners)
    return [torch.from_numpy(a) for a in arrays], [(d.picture, d.cells) for d in drawn]


def slot_labels(pictures):
    """slot -> (n,) index into its pool, -100 where it has no value."""
    values = {
        'color': [p.color for p in pictures],
        'shape': [p.shape for p in pictures],
        'count': [COUNTS[p.count - 1] if 0 < p.count < 5 else None for p in pictures],
        'column': [p.column for p in pictures],
        'row': [p.row for p in pictures],
    }
    return {
        slot: torch.tensor([codes.POOLS[slot].index(v) if v else -100 for v in column])
        for slot, column in values.items()
    }


def slot_logits(rows, slots, slot, frame):
    """Mean of a slot's rows against the codes of its values, (n, len(pool))."""
    mine = [i for i, s in enumerate(slots) if s == slot]
    table = torch.from_numpy(codes.pool_codes(slot, frame))
    return SHARPNESS * rows[:, mine].float().mean(1) @ table.T / codes.NORM


def choice_loss(rows, slots, frame, labels):
    total = 0.0
    for slot, label in labels.items():
        if (label >= 0).any():  # a batch without a single value would give NaN
            total = total + F.cross_entropy(slot_logits(rows, slots, slot, frame), label)
    return total


def cell_loss(rows, cells):
    """Color and shape of every occupied third."""
    at = [
        (n, i, SHAPES.index(c[0]), COLORS.index(c[1]))
        for n, nine in enumerate(cells)
        for i, c in enumerate(nine)
        if c
    ]
    n, i, shape, color = torch.tensor(at).T
    mine, total = rows[n, i].float() * SHARPNESS / codes.NORM, 0.0
    for slot, label in (('shape', shape), ('color', color)):
        table = torch.from_numpy(codes.pool_codes(slot, codes.PICTURE))
        total = total + F.cross_entropy(mine @ table.T, label)
    return total


def loss_of(vision, heads, batch, described):
    frames, targets, cover, owners = batch
    with autocast():
        taps = []
        rows = vision(frames, taps)
        covered, shapes = heads.cover(taps[0]).float(), heads.shape(taps[-1]).float()
    rows, pictures = rows.float(), [p for p, _ in described]
    return (
        30 * F.mse_loss(rows, targets)
        + choice_loss(rows, codes.PICTURE_SLOTS, codes.PICTURE, slot_labels(pictures))
        + cell_loss(rows, [c for _, c in described])
        + 2 * F.binary_cross_entropy_with_logits(covered, cover)
        + F.cross_entropy(shapes.flatten(0, 1), owners.flatten(), ignore_index=-1)
    )


@torch.no_grad()
def evaluate(vision, batches=16, seed=999):
    """slot -> share of frames of one kind whose value is told right."""
    rng, right, seen = np.random.default_rng(seed), {}, {}
    for _ in range(batches):
        (frames, *_), described = make_batch(32, rng, p_mixed=0.0)
        rows = vision(frames).float()
        for slot, label in slot_labels([p for p, _ in described]).items():
            told = slot_logits(rows, codes.PICTURE_SLOTS, slot, codes.PICTURE).argmax(-1)
            right[slot] = right.get(slot, 0) + (told == label)[label >= 0].sum().item()
            seen[slot] = seen.get(slot, 0) + (label >= 0).sum().item()
    return {slot: right[slot] / seen[slot] for slot in right}


def train(vision, run: Run, steps=2600, batch=40, peak=2.5e-3):
    """Train in place; resumes from the run's checkpoint."""
    heads = DenseHeads(vision.config.vision_width)
    both = nn.ModuleDict({'model': vision, 'heads': heads})
    apart = [vision.patch.weight, vision.positions, vision.query, *heads.parameters()]
    optimizer = optimizers(both, peak, apart)
    for step in run.steps(both, optimizer, steps, peak):
        rng = np.random.default_rng((run.seed, 1, step))
        loss = loss_of(vision, heads, *make_batch(batch, rng))
        run.update(loss, both, optimizer)
        if run.due(step, 400):
            run.report(step, evaluate(vision))
