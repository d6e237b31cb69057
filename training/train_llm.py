# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Teaches the language model to answer, on streams put together from the pool of encoded seconds.

One stream carries many questions, each blind to the others. Windows grow from 1-4 s to 16 s; half
of the streams then are longer than their window, which seconds leave by the package's policies,
and are asked about at several moments. Only the answer is learned, with four helpers that are gone
afterwards: at every <|audio_end|> small heads read what this second holds (after layer 2) and what
came before it (after layer 3); one head of layer 4 is told which second to look at; and the answer
must be readable after layer 5 already. With every batch of streams goes one of notes that are read
without a window.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import codes
from .noted import ask_about_notes
from .prompt import UNIT_ROWS, Packed, Template, pack, take, turn_ids
from .questions import FAMILIES, Clip, ask_about
from .reading import random_lessons, reading_loss
from .runs import Run, autocast, optimizers
from .train_audio import slot_labels as sound_labels
from .train_vision import slot_labels as picture_labels
from .windows import Windows
from .world import MAX_SECONDS, MAX_STREAM_SECONDS, SILENT_AFTER, choose

# (until this share of the steps, lengths of windows in seconds, their weights)
CURRICULUM = (
    (0.30, (1, 2, 3, 4), (0.05, 0.2, 0.4, 0.35)),
    (0.60, (2, 3, 4, 5, 6, 8), (0.2, 0.25, 0.25, 0.15, 0.1, 0.05)),
    (1.01, (2, 3, 4, 5, 6, 8, 10, 12, 16), (0.2, 0.19, 0.19, 0.12, 0.1, 0.1, 0.04, 0.03, 0.03)),
)
# Of the batches after the first lengths: streams longer than the window, which seconds leave.
SLIDING = 0.5
SLIDING_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12)  # of their windows, in seconds
LONG = 0.4  # of those with the policy that thins, where the window is long enough to be thinned
LONG_UNITS = 6
GAPS = 0.1  # of the batches: units far behind the header, where a reader does not move them up
MOMENTS = 4  # at which a sliding stream is asked about
FAMILY_WEIGHTS = (0.7, 0.9, 2.0, 1.6, 1.0, 1.2, 1.3, 1.3)
# Of the batches whose window is whole, after the first lengths: some seconds show the image of the
# second before and are read without one; a turn is remembered somewhere.
STILL, TURN = 0.3, 0.7
STAYS = 0.7  # of the seconds of such a window
NOTED = 0.45  # of these batches: questions behind notes
# Notes at most, rows and number of the questions behind them.
NOTED_SIZES = ((1, 85, 6), (2, 110, 5), (4, 170, 4))
LONGEST_STILL = 20  # seconds
# Seconds of a word that is asked about, with the silence behind it.
ASKED_S = max(SILENT_AFTER) + 2
# Of these batches without notes: all streams end with a question word, which may have begun in the
# second before and may have silence behind it; of each so many questions, of these families.
ALOUD, ALOUD_NUMBER = 0.4, 2
ALOUD_WEIGHTS = tuple({'scene': 0.2, 'command': 0.8}.get(family, 0) for family in FAMILIES)
LIKE = 4.0  # what a row like the teacher's weighs against a right answer
COUNTED = ('beep', 'speech', 'tone')
BEFORE = ('color', 'shape', 'kind', 'word')


class Helpers(nn.Module):
    """Heads on <|audio_end|>: this second's slots, the second before's, and counts so far."""

    def __init__(self, width):
        super().__init__()
        sizes = {slot: len(pool) for slot, pool in codes.POOLS.items()}
        self.now = nn.ModuleDict({s: nn.Linear(width, n) for s, n in sizes.items()})
        self.before = nn.ModuleDict({s: nn.Linear(width, sizes[s]) for s in BEFORE})
        self.so_far = nn.ModuleDict({k: nn.Linear(width, MAX_SECONDS + 1) for k in COUNTED})


def helper_labels(clips, windows):
    """-> name -> (b, t) what a second holds; name -> (b, t) what the one before it in its window
    holds; name -> (b, t) counts in its window.
    """
    shape, units = (len(clips), clips[0].seconds), windows.units
    now = picture_labels([p for c in clips for p in c.pictures])
    now.update(sound_labels([s for c in clips for s in c.sounds]))
    now = {name: label.view(shape) for name, label in now.items()}
    in_sight = [windows.seconds_of(item) for item in units]
    earlier = torch.tensor([held[-2] if len(held) > 1 else -1 for held in in_sight])
    before = {
        name: torch.where(earlier < 0, -100, now[name][:, earlier.clamp(min=0)]) for name in BEFORE
    }
    inside = torch.zeros(shape[1], shape[1], dtype=torch.long)  # (window, second)
    for row, held in zip(inside, in_sight):
        row[held] = 1
    so_far = {
        kind: torch.tensor([[s.kind == kind for s in c.sounds] for c in clips]).long() @ inside.T
        for kind in COUNTED
    }
    return now, before, so_far


def helper_loss(helpers, ends, clips, windows):
    """ends: outputs of layers 2 and 3 at <|audio_end|>, (b, t, d) each."""
    now, before, so_far = helper_labels(clips, windows)
    total = 0.0
    pairs = [(helpers.now[name](ends[0]), label) for name, label in now.items()]
    pairs += [(head(ends[1]), before[name]) for name, head in helpers.before.items()]
    pairs += [(head(ends[1]), so_far[name]) for name, head in helpers.so_far.items()]
    for logits, label in pairs:
        if (label >= 0).any():
            total = total + F.cross_entropy(logits.flatten(0, 1).float(), label.flatten())
    return total / len(pairs)


def pointing_loss(looks, asked_of, windows, moments):
    """looks (b, a, n, w): the more weight rests on the slot where the answer stands, the
    smaller.
    """
    slots = [windows.slots_of(int(item)) for item in moments]
    wanted = torch.tensor(
        [
            [[-1 if q.second is None else at[q.second] for q in row] for row, at in zip(s, slots)]
            for s in asked_of
        ]
    )
    if not (wanted >= 0).any():
        return looks.new_zeros(())
    found = looks.float().gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return -(found + 1e-3).log()[wanted >= 0].mean()


def window_length(fraction, rng):
    _, lengths, weights = next(row for row in CURRICULUM if fraction < row[0])
    return choose(rng, lengths, weights)


@dataclass(frozen=True)
class Batch:
    """Streams of one length through one kind of window, and what is asked about them when."""

    clips: list  # of whole streams
    pictures: torch.Tensor  # (b, t, 16, d)
    sounds: torch.Tensor  # (b, t, 25, d)
    windows: Windows
    moments: torch.Tensor  # (a,) items behind which questions fork
    asked_of: list  # for every stream and moment n Questions
    packed: Packed
    gap: int
    turns: torch.Tensor | None = None  # (b, l) ids of a remembered turn
    is_aloud: bool = False  # all of them end with a question word


def random_stream(fraction, rng):
    """-> Windows and the moments at which to ask."""
    units = window_length(fraction, rng)
    if fraction < CURRICULUM[0][0] or rng.random() >= SLIDING:
        return whole_stream(units, fraction >= CURRICULUM[0][0], rng)
    units = choose(rng, SLIDING_LENGTHS)
    total = int(rng.integers(units + 1, MAX_STREAM_SECONDS + 1))
    policy = 'long' if units >= LONG_UNITS and rng.random() < LONG else 'recent'
    first = units - 1 if policy == 'recent' else min(2 * units, total) - 1
    later = rng.choice(np.arange(first, total), min(MOMENTS, total - first), replace=False)
    return Windows.of(total, units, policy), sorted(int(m) for m in later)


def whole_stream(units, is_varied, rng):
    """-> Windows from which nothing leaves and the moment at its end; varied ones may hold
    seconds without an image and a turn (its rows are a guess still, see turned).
    """
    still = turn_at = None
    if is_varied and rng.random() < STILL:
        units = int(rng.integers(2, LONGEST_STILL + 1))
        still = (False, *(bool(rng.random() < STAYS) for _ in range(units - 1)))
    if is_varied and rng.random() < TURN:
        turn_at = units if rng.random() < 0.5 else int(rng.integers(1, units + 1))
    windows = Windows.whole(units, still, turn_at, UNIT_ROWS)
    return windows, [len(windows.rows) - 1]


def turned(windows, clips, tokenizer, rng):
    """-> Windows with the turn's true rows, and ids (b, l) of a turn of one length for every clip:
    what was asked and answered when it was remembered.
    """
    if None not in windows.seconds:
        return windows, None
    at = windows.seconds.index(None)
    so_far = [kept(clip, range(at)) for clip in clips]
    found = [
        {
            len(ids): ids
            for q in ask_about(c, 40, rng)
            if len(ids := turn_ids(tokenizer, q)) <= UNIT_ROWS
        }
        for c in so_far
    ]
    common = set.intersection(*(set(f) for f in found))
    still = [windows.rows[i] != UNIT_ROWS for i in windows.units]
    total = len(windows.units)
    if not common:
        return Windows.whole(total, still), None
    length = choose(rng, sorted(common))
    return Windows.whole(total, still, at, length), torch.tensor([f[length] for f in found])


def make_batch(pool, tokenizer, fraction, rng, rows=4400, number=10):
    """About `rows` rows of work: streams with `number` questions at every moment."""
    windows, moments = random_stream(fraction, rng)
    total, with_options = len(windows.units), bool(rng.random() < 0.2)
    still = [windows.rows[i] != UNIT_ROWS for i in windows.units]
    is_varied = len(moments) == 1 and fraction >= CURRICULUM[0][0]
    is_noted = is_varied and rng.random() < NOTED
    is_aloud = is_varied and not is_noted and total > 1 and rng.random() < ALOUD
    if is_aloud:
        number, with_options = ALOUD_NUMBER, False
    if is_noted:
        most, asked_rows, number = choose(rng, NOTED_SIZES)
        asked_rows *= number
    else:
        asked_rows = len(moments) * number * (34 if with_options else 20)
    count = max(2, rows // (UNIT_ROWS * total + asked_rows))
    clips, pictures, sounds = pool.clips(count, total, rng, still=still, aloud=is_aloud)
    if is_aloud and None in windows.seconds[max(1, total - ASKED_S + 1) :]:
        windows = Windows.whole(total, still)  # no turn between a word and its beginning
    windows, turns = turned(windows, clips, tokenizer, rng)
    moments = [len(windows.rows) - 1] if len(moments) == 1 else moments

    def ask(clip):
        if is_noted:
            return ask_about_notes(clip, number, rng, most)
        if is_aloud:
            return ask_about(clip, number, rng, weights=ALOUD_WEIGHTS)
        return ask_about(clip, number, rng, with_options, FAMILY_WEIGHTS)

    asked_of = [[ask(kept(clip, windows.seconds_of(m))) for m in moments] for clip in clips]
    gap = int(rng.integers(0, 3000)) if rng.random() < GAPS else 0
    packed = pack(tokenizer, asked_of)
    moments = torch.tensor(moments)
    return Batch(clips, pictures, sounds, windows, moments, asked_of, packed, gap, turns, is_aloud)


def kept(clip, seconds):
    """The clip that a window of some seconds is, to somebody who asks."""
    return Clip(tuple(clip.pictures[i] for i in seconds), tuple(clip.sounds[i] for i in seconds))


def forward(language, template, batch):
    """-> what Language returns for a Batch."""
    header, units = template.rows(
        language.embed, batch.pictures, batch.sounds, batch.windows, batch.turns
    )
    dtype = torch.bfloat16 if torch.is_autocast_enabled('cpu') else torch.float32
    rows = (x.to(dtype) for x in (header, units, language.embed(batch.packed.ids)))
    return language(*rows, batch.windows, batch.moments, batch.gap)


def loss_of(language, template, helpers, batch, help_weight=1.0, teacher=None):
    """-> loss, (family, whether it was told right) of every question. `teacher`: a Language that
    this one is to stay like, but for what it reads in notes and is asked aloud.
    """
    packed = batch.packed
    with autocast():
        seen, forked, looks = forward(language, template, batch)
        answers = language.logits(take(forked[-1], packed.answer_at)).float()
        early = language.logits(take(forked[4], packed.answer_at)).float()
        items = batch.windows.units
        last = torch.tensor(batch.windows.rows)[items] - 1
        ends = [seen[i][:, items, last] for i in (1, 2)]
        helping = helper_loss(helpers, ends, batch.clips, batch.windows)
        ends_told = language.logits(take(forked[-1], packed.answer_at + 1)).float()
    target = packed.answer.flatten()
    loss = F.cross_entropy(answers.flatten(0, 2), target)
    end = torch.full_like(target, packed.end)
    loss = loss + 0.1 * F.cross_entropy(ends_told.flatten(0, 2), end)
    early = F.cross_entropy(early.flatten(0, 2), target)
    pointing = pointing_loss(
        take(looks[3], packed.answer_at), batch.asked_of, batch.windows, batch.moments
    )
    loss = loss + help_weight * (0.4 * early + 0.5 * helping + 0.3 * pointing)
    if teacher is not None and not batch.is_aloud:
        loss = loss + unlikeness(teacher, template, batch, seen, forked, answers)
    right = (answers.argmax(-1) == packed.answer).flatten().tolist()
    asked = [q for stream in batch.asked_of for row in stream for q in row]
    return loss, [(q.family, ok) for q, ok in zip(asked, right)]


def unlikeness(teacher, template, batch, seen, forked, answers):
    """How far a model is from its teacher: in every row of every layer that both read, and in the
    answers. What was learned before is so lost far less than by right answers alone. Behind a turn
    it is to answer as its teacher does without one.
    """
    read = batch if batch.turns is None else without_turn(batch)
    with torch.no_grad(), autocast():
        wanted_seen, wanted_forked, _ = forward(teacher, template, read)
        wanted = teacher.logits(take(wanted_forked[-1], batch.packed.answer_at)).float()
    is_noted = any(q.notes for stream in batch.asked_of for row in stream for q in row)
    pairs = [] if is_noted else [(forked, wanted_forked)]
    if batch.turns is None:
        pairs.append((seen, wanted_seen))
    loss = sum(
        F.mse_loss(x.float(), y.float()) / y.float().square().mean() / len(outs)
        for outs, teachers in pairs
        for x, y in zip(outs, teachers)
    )
    if is_noted:
        return LIKE * loss
    kept = F.kl_div(
        answers.log_softmax(-1), wanted.log_softmax(-1), reduction='none', log_target=True
    )
    return LIKE * loss + kept.sum(-1).mean()


def without_turn(batch):
    """The Batch of the same seconds and questions without what was remembered."""
    rows = batch.windows.rows
    still = [rows[i] != UNIT_ROWS for i in batch.windows.units]
    windows = Windows.whole(len(still), still)
    last = torch.tensor([len(windows.rows) - 1])
    return replace(batch, windows=windows, moments=last, turns=None)


def train(
    language,
    tokenizer,
    pool,
    run: Run,
    check,
    steps,
    peak=3e-3,
    rows=4400,
    read_first=0,
    teacher=None,
):
    """Train in place; `check(language)` -> figures, now and then; resumes from the run's
    checkpoint. The first `read_first` steps are of notes alone; `teacher` as in loss_of.
    """
    helpers = Helpers(language.config.width)
    both = nn.ModuleDict({'model': language, 'heads': helpers})
    optimizer = optimizers(both, peak, [language.embed.weight, *helpers.parameters()])
    template, lately = Template.make(tokenizer), []
    for step in run.steps(both, optimizer, steps, peak):
        rng = np.random.default_rng((run.seed, 3, run.rank, step))
        help_weight = 1 - 0.8 * run.fraction
        loss, right = reading_loss(language, template, random_lessons(tokenizer, rng), help_weight)
        told = [('read', ok) for ok in right]
        if step >= read_first:
            batch = make_batch(pool, tokenizer, run.fraction, rng, rows)
            loss_of_batch, more = loss_of(language, template, helpers, batch, help_weight, teacher)
            loss, told = loss + loss_of_batch, told + more
        run.update(loss, both, optimizer)
        lately = (lately + told)[-3000:]
        if (step + 1) % 50 == 0 and run.rank == 0:
            names = (*FAMILIES, 'noted', 'read')
            found = {name: [ok for family, ok in lately if family == name] for name in names}
            shares = {name: np.mean(rights) for name, rights in found.items() if rights}
            print('  lately', ' '.join(f'{f} {s:.2f}' for f, s in shares.items()), flush=True)
        if run.due(step, 300) and run.rank == 0:
            run.report(step, check(language))
