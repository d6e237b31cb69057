# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch accuracy by family and window length, with the picture blanked and with the sound
removed.

Two sources of clips: `quick` puts them together from a pool of encoded seconds (for curves during
training), `full` draws every frame and speaks every second of a clip and encodes it as one stream.
"""

from collections import defaultdict

import numpy as np
import torch

from .noted import ask_about_notes
from .pool import Pool
from .prompt import UNIT_ROWS, Template, pack, take
from .questions import FAMILIES, Clip, ask_about
from .reading import SIZES, random_lessons, read
from .rooms import somewhere
from .scenes import draw, random_size
from .sounds import make_stream
from .train_llm import Batch, forward, kept, turned
from .windows import Windows
from .world import script


def answer(language, tokenizer, pictures, sounds, asked_of, windows=None, turns=None):
    """-> (b, n) token ids the model says first, behind the last second of the streams pictures
    (b, t, 16, d) and sounds (b, t, 25, d); `windows` and `turns` as in training, default all
    seconds.
    """
    total = pictures.shape[1]
    windows = windows or Windows.whole(total)
    packed = pack(tokenizer, [[questions] for questions in asked_of])
    moments = torch.tensor([len(windows.rows) - 1])
    batch = Batch([], pictures, sounds, windows, moments, asked_of, packed, 0, turns)
    _, forked, _ = forward(language, Template.make(tokenizer), batch)
    return language.logits(take(forked[-1], packed.answer_at)).argmax(-1)[:, 0]


def score(
    language,
    tokenizer,
    clips,
    pictures,
    sounds,
    rng,
    number=12,
    options=0.2,
    windows=None,
    turns=None,
):
    """-> rows of (family, kind, seconds, right, chance)"""
    if windows is not None:
        clips = [kept(clip, windows.seconds_of(-1)) for clip in clips]
    rows = []
    for with_options in (False, True):
        n = round(number * (options if with_options else 1 - options))
        if n == 0:
            continue
        asked_of = [ask_about(c, n, rng, with_options) for c in clips]
        said = answer(language, tokenizer, pictures, sounds, asked_of, windows, turns)
        for clip, questions, tokens in zip(clips, asked_of, said):
            for q, token in zip(questions, tokens):
                right = tokenizer.decode([int(token)]) == q.answer
                rows.append((q.family, q.kind, clip.seconds, right, q.chance))
    return rows


@torch.no_grad()
def quick(
    language, tokenizer, pool: Pool, seconds=(2, 3, 4, 8), clips=24, seed=77, independent=0.78
):
    """Rows of `score` on clips from a pool, in float32."""
    rng, rows = np.random.default_rng(seed), []
    for length in seconds:
        made, pictures, sounds = pool.clips(clips, length, rng, independent)
        rows += score(language, tokenizer, made, pictures.float(), sounds.float(), rng)
    return rows


@torch.no_grad()
def streams(language, tokenizer, pool: Pool, policy, units=10, total=48, clips=24, seed=78):
    """Rows of `score` on streams of which most seconds have left a window of `units`."""
    rng, rows = np.random.default_rng(seed), []
    windows = Windows.of(total, units, policy)
    for _ in range(clips // 4):
        made, pictures, sounds = pool.clips(4, total, rng, 1.0)
        rows += score(
            language, tokenizer, made, pictures.float(), sounds.float(), rng, windows=windows
        )
    return rows


@torch.no_grad()
def varied(language, tokenizer, pool: Pool, still=0.0, turn=False, clips=24, seed=79):
    """Rows of `score` on windows of 4 s in which this share of the seconds after the first shows
    the image before and is read without one, and, if `turn`, a turn is remembered last.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(clips // 4):
        stays = (False, *(bool(rng.random() < still) for _ in range(3)))
        made, pictures, sounds = pool.clips(4, 4, rng, 1.0, stays)
        windows = Windows.whole(4, stays, 4 if turn else None, UNIT_ROWS)
        windows, turns = turned(windows, made, tokenizer, rng)
        pictures, sounds = pictures.float(), sounds.float()
        rows += score(
            language, tokenizer, made, pictures, sounds, rng, windows=windows, turns=turns
        )
    return rows


@torch.no_grad()
def noted(language, tokenizer, pool: Pool, seconds=4, clips=24, number=8, seed=80):
    """Rows as of `score`: questions behind notes, about the notes ('noted') and about now."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(clips // 4):
        made, pictures, sounds = pool.clips(4, seconds, rng)
        asked_of = [ask_about_notes(clip, number, rng) for clip in made]
        said = answer(language, tokenizer, pictures.float(), sounds.float(), asked_of)
        for clip, questions, tokens in zip(made, asked_of, said):
            rows += [
                (q.family, q.kind, clip.seconds, tokenizer.decode([int(t)]) == q.answer, q.chance)
                for q, t in zip(questions, tokens)
            ]
    return rows


@torch.no_grad()
def read_alone(language, tokenizer, batches=4, seed=81):
    """Share of right answers to notes without a window, by how many notes there are at most."""
    template, shares = Template.make(tokenizer), {}
    for most, _ in SIZES:
        rng, right = np.random.default_rng(seed), []
        for _ in range(batches):
            lessons = random_lessons(tokenizer, rng, most)
            logits, _ = read(language, template, lessons)
            right += (logits.argmax(-1) == lessons.answers).tolist()
        shares[str(most)] = float(np.mean(right))
    return shares


@torch.no_grad()
def full(
    models, tokenizer, words, seconds, clips, seed, blank=None, independent=0.78, isolated=False
):
    """Rows of `score` on clips drawn and spoken for this, in batches of eight."""
    vision, audio, language = models
    rows = []
    for batch in range(clips // 8):
        rng = np.random.default_rng((seed, seconds, batch))
        size = random_size(rng)
        made = [real_clip(seconds, words, rng, size, independent) for _ in range(8)]
        frames = torch.from_numpy(np.stack([m[1] for m in made])).flatten(0, 1)
        pcm = torch.from_numpy(np.stack([m[2] for m in made]))
        if blank == 'picture':
            frames = torch.full_like(frames, 128)
        if blank == 'sound':
            pcm = torch.zeros_like(pcm)
        pictures = vision(frames).unflatten(0, (8, seconds)).half().float()
        sounds = audio(pcm, isolated=isolated).half().float()
        rows += score(language, tokenizer, [m[0] for m in made], pictures, sounds, rng)
    return rows


def real_clip(seconds, words, rng, size, independent):
    """-> Clip, frames (seconds, H, W, 3), pcm (seconds * 16000,)"""
    pictures, sounds, alone = script(seconds, rng, independent)
    drawn = [draw(p, *size, rng) for p in pictures]
    pcm, heard = make_stream(sounds, words, rng)
    clip = Clip(tuple(d.picture for d in drawn), tuple(heard), alone)
    return clip, np.stack([d.frame for d in drawn]), somewhere(pcm[None], rng)[0]


def shares(rows, key=lambda row: row[0]):
    """name -> share right"""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row[3])
    return {name: float(np.mean(groups[name])) for name in sorted(groups, key=str)}


def summary(rows):
    """Figures of one evaluation: overall, by family, by kind, by window."""
    return {
        'overall': float(np.mean([r[3] for r in rows])),
        'families': shares(rows),
        'windows': {str(k): v for k, v in shares(rows, lambda r: r[2]).items()},
        'kinds': shares(rows, lambda r: r[1]),
        'questions': len(rows),
    }


def table(named_rows):
    """Markdown: a line per (name, rows), a column per family."""
    lines = [
        '| what | overall | ' + ' | '.join(FAMILIES) + ' | questions |',
        '|---' * (len(FAMILIES) + 3) + '|',
    ]
    for name, rows in named_rows:
        by = shares(rows)
        cells = [f'{np.mean([r[3] for r in rows]):.3f}']
        cells += [f'{by.get(family, 0):.3f}' for family in FAMILIES]
        lines.append(f'| {name} | ' + ' | '.join(cells) + f' | {len(rows)} |')
    return '\n'.join(lines)
