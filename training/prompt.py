# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""MiniCPM-o 2.6's English omni prompt as rows: a header, units, and questions that fork from a
window of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .questions import asked
from .tokenizer import SYSTEM_TEXT

QUERIES, AUDIO_TOKENS = 16, 25
UNIT_ROWS = QUERIES + AUDIO_TOKENS + 5
STILL_ROWS = AUDIO_TOKENS + 2  # of a second without an image
TAIL = '<|im_end|>\n<|im_start|>assistant\n'  # of a question


@dataclass(frozen=True)
class Template:
    """The rows of a window: a header, then units and remembered turns."""

    header: torch.Tensor  # (h,) token ids
    unit: torch.Tensor  # (UNIT_ROWS,) token ids, 0 where an embedding goes
    picture_at: slice  # of a unit's rows
    sound_at: slice

    @classmethod
    def make(cls, tokenizer):
        header = tokenizer.encode_template(
            f'<|im_start|>user\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n'
        )
        before, between, after = (
            tokenizer.encode_template(t)
            for t in ('<unit><image>', '</image><|audio_start|>', '<|audio_end|>')
        )
        unit = [*before, *[0] * QUERIES, *between, *[0] * AUDIO_TOKENS, *after]
        picture = slice(len(before), len(before) + QUERIES)
        start = picture.stop + len(between)
        sound = slice(start, start + AUDIO_TOKENS)
        return cls(torch.tensor(header), torch.tensor(unit), picture, sound)

    def rows(self, embed, pictures, sounds, windows, turns=None):
        """pictures (b, seconds, 16, d), sounds (b, seconds, 25, d), turns (b, l) token ids ->
        (1, h, d) and (b, items, UNIT_ROWS, d), shorter items padded behind.
        """
        units = embed(self.unit).expand(*pictures.shape[:2], -1, -1).clone()
        units[:, :, self.picture_at] = pictures.to(units.dtype)
        units[:, :, self.sound_at] = sounds.to(units.dtype)
        front = self.sound_at.start - 1  # <|audio_start|>
        items = []
        for second, rows in zip(windows.seconds, windows.rows):
            if second is None:
                item = embed(turns)  # (b, l, d)
            else:
                item = units[:, second, 0 if rows == UNIT_ROWS else front :]
            items.append(F.pad(item, (0, 0, 0, UNIT_ROWS - rows)))
        return embed(self.header)[None], torch.stack(items, 1)


@dataclass(frozen=True)
class Packed:
    """Questions of a batch of streams as ids, padded at the right; answers where they are
    predicted. At each of `a` moments of a stream `n` questions fork.
    """

    ids: torch.Tensor  # (b, a, n, l)
    answer_at: torch.Tensor  # (b, a, n) the row whose logits choose the answer's token
    answer: torch.Tensor  # (b, a, n) id
    end: int


def pack(tokenizer, asked_of):
    """asked_of: for every stream and moment n Questions (answers are single tokens)."""
    tail = tokenizer.encode_template(TAIL)
    end = tokenizer.ids['<|im_end|>']
    flat = [q for moments in asked_of for row in moments for q in row]
    texts = [tokenizer.encode(q.notes) + tokenizer.encode(asked(q)) + tail for q in flat]
    answers = np.array([_single(tokenizer, q.answer) for q in flat])
    at = np.array([len(t) - 1 for t in texts])
    ids = np.full((len(flat), at.max() + 2), end)
    for row, text, answer in zip(ids, texts, answers):
        row[: len(text)] = text
        row[len(text)] = answer
    shape = (len(asked_of), len(asked_of[0]), len(asked_of[0][0]))
    return Packed(
        *(torch.from_numpy(x.reshape(*shape, *x.shape[1:])) for x in (ids, at, answers)), end
    )


def turn_ids(tokenizer, question):
    """Token ids of a question with its answer, as a session remembers them."""
    return (
        tokenizer.encode(asked(question))
        + tokenizer.encode_template(TAIL)
        + tokenizer.encode(question.answer)
        + tokenizer.encode_template('<|im_end|>\n<|im_start|>user\n')
    )


def _single(tokenizer, word):
    (token,) = tokenizer.encode(word)
    return token


def take(hidden, at):
    """Rows hidden[..., at[...], :] of (b, a, n, l, d) -> (b, a, n, d)"""
    return hidden.gather(-2, at[..., None, None].expand(*at.shape, 1, hidden.shape[-1])).squeeze(
        -2
    )
