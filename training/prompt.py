# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 2.6's English omni prompt as rows: a prefix of units, and questions that fork from
it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .questions import asked
from .tokenizer import SYSTEM_TEXT

QUERIES, AUDIO_TOKENS = 16, 25
UNIT_ROWS = QUERIES + AUDIO_TOKENS + 5


@dataclass(frozen=True)
class Prefix:
    """Where things stand in the rows of a window of some seconds."""

    ids: torch.Tensor  # (p,) token ids, 0 where an embedding goes
    picture_at: torch.Tensor  # (seconds * 16,)
    sound_at: torch.Tensor  # (seconds * 25,)
    end_at: torch.Tensor  # (seconds,) the <|audio_end|> of every unit
    header: int  # rows before the first unit


def make_prefix(tokenizer, seconds):
    header = tokenizer.encode_template(
        f'<|im_start|>user\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n'
    )
    before, between, after = (
        tokenizer.encode_template(t)
        for t in ('<unit><image>', '</image><|audio_start|>', '<|audio_end|>')
    )
    unit = [*before, *[0] * QUERIES, *between, *[0] * AUDIO_TOKENS, *after]
    starts = len(header) + UNIT_ROWS * torch.arange(seconds)[:, None]
    picture = (starts + 2 + torch.arange(QUERIES)).flatten()
    sound = (starts + 4 + QUERIES + torch.arange(AUDIO_TOKENS)).flatten()
    return Prefix(
        torch.tensor(header + unit * seconds),
        picture,
        sound,
        starts[:, 0] + UNIT_ROWS - 1,
        len(header),
    )


def prefix_rows(prefix, embed, pictures, sounds):
    """pictures (b, seconds, 16, d), sounds (b, seconds, 25, d) -> (b, p, d)"""
    rows = embed(prefix.ids).expand(len(pictures), -1, -1).clone()
    rows[:, prefix.picture_at] = pictures.flatten(1, 2).to(rows.dtype)
    rows[:, prefix.sound_at] = sounds.flatten(1, 2).to(rows.dtype)
    return rows


def prefix_positions(prefix, gap=0):
    """(p,) with `gap` free positions behind the header, as in a stream whose oldest seconds are
    gone.
    """
    positions = torch.arange(len(prefix.ids))
    positions[prefix.header :] += gap
    return positions


@dataclass(frozen=True)
class Packed:
    """Questions of a batch of clips as ids, padded at the right; answers where they are
    predicted.
    """

    ids: torch.Tensor  # (b, n, l)
    answer_at: torch.Tensor  # (b, n) the row whose logits choose the answer's token
    answer: torch.Tensor  # (b, n) id
    end: int


def pack(tokenizer, asked_of):
    """asked_of: for every clip its n Questions (answers are single tokens)."""
    tail = tokenizer.encode_template('<|im_end|>\n<|im_start|>assistant\n')
    end = tokenizer.ids['<|im_end|>']
    texts = [[tokenizer.encode(asked(q)) + tail for q in row] for row in asked_of]
    answers = np.array([[_single(tokenizer, q.answer) for q in row] for row in asked_of])
    length = max(len(t) for row in texts for t in row) + 1
    ids = np.full((*answers.shape, length), end)
    at = np.array([[len(t) - 1 for t in row] for row in texts])
    for b, row in enumerate(texts):
        for n, text in enumerate(row):
            ids[b, n, : len(text)] = text
            ids[b, n, len(text)] = answers[b, n]
    return Packed(*(torch.from_numpy(a) for a in (ids, at, answers)), end)


def _single(tokenizer, word):
    (token,) = tokenizer.encode(word)
    return token


def take(hidden, at):
    """Rows hidden[b, n, at[b, n]] of (b, n, l, d) -> (b, n, d)"""
    return hidden.gather(2, at[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))[:, :, 0]
