# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Teaches the language model to answer, on clips put together from the pool of encoded seconds.

One prefix carries many questions, each blind to the others. Windows grow from 1-4 s to 16 s. Only
the answer is learned, with four helpers that are gone afterwards: at every <|audio_end|> small
heads read what this second holds (after layer 2) and what came before it (after layer 3); one
head of layer 4 is told which second to look at; and the answer must be readable after layer 5
already.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import codes
from .prompt import UNIT_ROWS, make_prefix, pack, prefix_positions, prefix_rows, take
from .questions import FAMILIES, Clip, ask_about
from .runs import Run, autocast, optimizers
from .train_audio import slot_labels as sound_labels
from .train_vision import slot_labels as picture_labels
from .world import MAX_SECONDS, MAX_STREAM_SECONDS, choose

# (until this share of the steps, lengths of windows in seconds, their weights)
CURRICULUM = (
    (0.30, (1, 2, 3, 4), (0.05, 0.2, 0.4, 0.35)),
    (0.60, (2, 3, 4, 5, 6, 8), (0.2, 0.25, 0.25, 0.15, 0.1, 0.05)),
    (1.01, (2, 3, 4, 5, 6, 8, 10, 12, 16), (0.2, 0.19, 0.19, 0.12, 0.1, 0.1, 0.04, 0.03, 0.03)),
)
SLIDING = 0.5  # of the batches: a stream longer than the window, of which units have left
FAMILY_WEIGHTS = (0.7, 0.9, 2.0, 1.6, 1.0, 1.2)
COUNTED = ('beep', 'speech', 'tone')


class Helpers(nn.Module):
    """Heads on <|audio_end|>: this second's slots, the second before's, and counts so far."""

    def __init__(self, width):
        super().__init__()
        sizes = {slot: len(pool) for slot, pool in codes.POOLS.items()}
        self.now = nn.ModuleDict({s: nn.Linear(width, n) for s, n in sizes.items()})
        self.before = nn.ModuleDict(
            {s: nn.Linear(width, sizes[s]) for s in ('color', 'shape', 'kind', 'word')}
        )
        self.so_far = nn.ModuleDict({k: nn.Linear(width, MAX_SECONDS + 1) for k in COUNTED})


def helper_labels(clips, window):
    """-> now, and so_far among the newest `window` seconds; each name -> (b, seconds)"""
    shape = (len(clips), clips[0].seconds)
    now = picture_labels([p for c in clips for p in c.pictures])
    now.update(sound_labels([s for c in clips for s in c.sounds]))
    so_far = {}
    for kind in COUNTED:
        count = torch.tensor([[s.kind == kind for s in c.sounds] for c in clips]).cumsum(1)
        count[:, window:] -= count[:, :-window].clone()
        so_far[kind] = count
    return {name: label.view(shape) for name, label in now.items()}, so_far


def helper_loss(helpers, ends, clips, window):
    """ends: outputs of layers 2 and 3 at <|audio_end|>, (b, seconds, d) each."""
    now, so_far = helper_labels(clips, window)
    total = 0.0
    pairs = [(helpers.now[name](ends[0]), label) for name, label in now.items()]
    pairs += [(head(ends[1][:, 1:]), now[name][:, :-1]) for name, head in helpers.before.items()]
    pairs += [(head(ends[1]), so_far[name]) for name, head in helpers.so_far.items()]
    for logits, label in pairs:
        if (label >= 0).any():
            total = total + F.cross_entropy(logits.flatten(0, 1).float(), label.flatten())
    return total / len(pairs)


def pointing_loss(looks, prefix, asked_of, skipped):
    """looks (b, n, p): the more weight rests on the unit where the answer stands, the smaller."""
    units = looks[..., prefix.header :].float().unflatten(-1, (-1, UNIT_ROWS)).sum(-1)
    wanted = torch.tensor(
        [[-1 if q.second is None else q.second + skipped for q in row] for row in asked_of]
    )
    found = units.gather(2, wanted.clamp(min=0)[..., None])[..., 0]
    return -(found + 1e-3).log()[wanted >= 0].mean()


def window_length(fraction, rng):
    _, lengths, weights = next(row for row in CURRICULUM if fraction < row[0])
    return choose(rng, lengths, weights)


def sliding(prefix, seconds):
    """(p + 1,) `begins` of a stream of which the window holds the newest `seconds`: a unit is read
    when those before its window have left.
    """
    unit = (torch.arange(len(prefix.ids) + 1) - prefix.header) // UNIT_ROWS
    unit[-1] = len(prefix.end_at) - 1  # the questions see what the last unit sees
    return prefix.header + UNIT_ROWS * (unit - seconds + 1).clamp(min=0)


def make_batch(pool, tokenizer, prefixes, fraction, rng, rows=4400, number=10):
    """About `rows` rows of work: clips with `number` questions each."""
    seconds, with_options = window_length(fraction, rng), bool(rng.random() < 0.2)
    total = seconds
    if fraction > 0.3 and rng.random() < SLIDING:
        total = int(rng.integers(seconds, MAX_STREAM_SECONDS + 1))
    evicted, prefix = total - seconds, prefixes[total]
    count = max(2, rows // (len(prefix.ids) + number * (34 if with_options else 20)))
    clips, pictures, sounds = pool.clips(count, total, rng)
    kept = [Clip(c.pictures[evicted:], c.sounds[evicted:]) for c in clips] if evicted else clips
    asked_of = [ask_about(c, number, rng, with_options, FAMILY_WEIGHTS) for c in kept]
    gap = int(rng.integers(0, 3000)) if rng.random() < 0.25 else 0
    return clips, pictures, sounds, asked_of, pack(tokenizer, asked_of), prefix, gap, evicted


def forward(language, prefix, packed, pictures, sounds, gap=0, evicted=0):
    """-> what Language returns, for a prefix with its embeddings and packed questions, of which
    the oldest `evicted` units have left one by one.
    """
    rows = prefix_rows(prefix, language.embed, pictures, sounds)
    asked = language.embed(packed.ids)
    dtype = torch.bfloat16 if torch.is_autocast_enabled('cpu') else torch.float32
    begins = sliding(prefix, len(prefix.end_at) - evicted) if evicted else None
    return language(
        rows.to(dtype), prefix_positions(prefix, gap), asked.to(dtype), prefix.header, begins
    )


def loss_of(language, helpers, batch, help_weight=1.0):
    """-> loss, (family, whether it was told right) of every question"""
    clips, pictures, sounds, asked_of, packed, prefix, gap, evicted = batch
    with autocast():
        seen, forked, looks = forward(language, prefix, packed, pictures, sounds, gap, evicted)
        answers = language.logits(take(forked[-1], packed.answer_at)).float()
        early = language.logits(take(forked[4], packed.answer_at)).float()
        ends = [seen[i][:, prefix.end_at] for i in (1, 2)]
        helping = helper_loss(helpers, ends, clips, clips[0].seconds - evicted)
        ends_told = language.logits(take(forked[-1], packed.answer_at + 1)).float()
    target = packed.answer.flatten()
    loss = F.cross_entropy(answers.flatten(0, 1), target)
    end = torch.full_like(target, packed.end)
    loss = loss + 0.1 * F.cross_entropy(ends_told.flatten(0, 1), end)
    early = F.cross_entropy(early.flatten(0, 1), target)
    pointing = pointing_loss(take(looks[3], packed.answer_at), prefix, asked_of, evicted)
    loss = loss + help_weight * (0.4 * early + 0.5 * helping + 0.3 * pointing)
    right = answers.argmax(-1) == packed.answer
    return loss, [
        (q.family, bool(ok)) for row, oks in zip(asked_of, right) for q, ok in zip(row, oks)
    ]


def make_prefixes(tokenizer):
    return {
        seconds: make_prefix(tokenizer, seconds) for seconds in range(1, MAX_STREAM_SECONDS + 1)
    }


def train(language, tokenizer, pool, run: Run, check, steps, peak=3e-3, rows=4400):
    """Train in place; `check(language)` -> figures, now and then; resumes from the run's
    checkpoint.
    """
    helpers = Helpers(language.config.width)
    both = nn.ModuleDict({'model': language, 'heads': helpers})
    optimizer = optimizers(both, peak, [language.embed.weight, *helpers.parameters()])
    prefixes, lately = make_prefixes(tokenizer), []
    for step in run.steps(both, optimizer, steps, peak):
        rng = np.random.default_rng((run.seed, 3, run.rank, step))
        batch = make_batch(pool, tokenizer, prefixes, run.fraction, rng, rows)
        loss, told = loss_of(language, helpers, batch, 1 - 0.8 * run.fraction)
        run.update(loss, both, optimizer)
        lately = (lately + told)[-3000:]
        if (step + 1) % 50 == 0 and run.rank == 0:
            shares = {f: np.mean([ok for g, ok in lately if g == f]) for f in FAMILIES}
            print('  lately', ' '.join(f'{f} {s:.2f}' for f, s in shares.items()), flush=True)
        if run.due(step, 300) and run.rank == 0:
            run.report(step, check(language))
