# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The language model: Qwen2 (RMSNorm, rotary halves, grouped heads with biased QKV, SwiGLU, tied
output), reading a stream of units as a live session reads it, and questions that fork from it.

A live window holds a header and some units. Before a unit is read others may leave, and what
stays moves together: keys and values keep what they have seen, keys turn to their new positions.
So the keys of every unit are gathered, slot by slot, for each window in which they stand and
turned there; one pass over a stream gives what the session computes second by second.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .model import Config, attend, split_heads

FAR = -1e4  # added to the score of what is not seen


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, 1e-6).to(x.dtype)


def rotate(x, turn):
    """Rotary positions on halves ('neox'); x (..., n, d), turn two that broadcast to it."""
    half = x.shape[-1] // 2
    return x * turn[0] + torch.cat([-x[..., half:], x[..., :half]], -1) * turn[1]


class Places:
    """Where everything stands in one pass: positions as turns, and what is hidden from whom.

    t items of up to u rows in windows of w slots behind h rows of header and `gap` free positions;
    a moments at which questions of l rows fork.
    """

    def __init__(self, config: Config, windows, moments, sizes, gap, dtype):
        h, u, length = sizes
        self.slots, lengths, self.moments = windows.slots, windows.lengths, moments  # (t, w), (t,)
        w = self.slots.shape[1]
        row, slot = torch.arange(w * u) % u, torch.arange(w * u) // u
        own = lengths[:, None] - 1  # (t, 1) the slot of a window's last item
        rows = torch.tensor(windows.rows)[self.slots]  # (t, w)
        rows = rows * (torch.arange(w) <= own)
        before = rows.cumsum(1) - rows  # (t, w) rows in front of every slot
        empty = row >= rows[:, slot]  # (t, w * u)
        later = (slot == own)[:, None] & (row > torch.arange(u)[:, None])  # (t, u, w * u)
        self.hidden = _far(empty[:, None] | later, dtype)  # (t, u, w * u)
        self.hidden_at_end = _far(empty[moments], dtype)[:, None]  # (a, 1, w * u)
        self.causal_header, self.causal_question = (
            _far(torch.ones(n, n).triu(1) > 0, dtype) for n in (h, length)
        )
        table, start = _turns(config, h + gap + (w + 1) * u + length, dtype), h + gap
        self.header_turn = tuple(t[:h] for t in table)
        place = start + before[:, slot] + row  # (t, w * u)
        self.slot_turn = tuple(t[place] for t in table)
        unit = start + before.gather(1, own) + torch.arange(u)  # (t, u)
        self.unit_turn = tuple(t[unit.flatten()] for t in table)
        question = start + rows.sum(1)[moments][:, None] + torch.arange(length)  # (a, l)
        self.question_turn = tuple(t[question][:, None] for t in table)  # (a, 1, l, d)


def _far(hidden, dtype):
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, FAR)


def _turns(config, count, dtype):
    half = config.head_width // 2
    inverse = config.rope_base ** -(torch.arange(half) / half)
    angle = torch.arange(count).float()[:, None] * inverse
    angle = torch.cat([angle, angle], -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class DecoderLayer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config, d, kv = c, c.width, c.kv_heads * c.head_width
        self.norm1, self.norm2 = RmsNorm(d), RmsNorm(d)
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, kv), nn.Linear(d, kv)
        self.out = nn.Linear(d, d, bias=False)
        self.gate, self.up = nn.Linear(d, c.ffn, bias=False), nn.Linear(d, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, d, bias=False)

    def forward(self, header, units, questions, places):
        """header (1, h, d), units (b, t, u, d), questions (b, a, n, l, d) -> the three, and where
        the first head of the questions looks, (b, a, n, l, w).
        """
        q, k, v = self.project_heads(header)  # (1, heads, h, 64), (1, kv_heads, h, 64) twice
        k = rotate(k, places.header_turn)
        group = self.config.heads // self.config.kv_heads
        repeated = (x.repeat_interleave(group, 1) for x in (k, v))
        mixed = attend(rotate(q, places.header_turn), *repeated, places.causal_header)
        header = self.finish(header, mixed.transpose(1, 2).flatten(2))

        q, k_units, v_units = self.project_heads(units.flatten(1, 2))
        held = _Held(k, v, *(self._gather(x, units.shape[2], places) for x in (k_units, v_units)))
        held.k_slots = rotate(held.k_slots, places.slot_turn)
        mixed = self._mix_units(rotate(q, places.unit_turn), held, units.shape[1], places)
        units = self.finish(units, mixed.view(units.shape))

        mixed, looks = self._mix_questions(questions, held, places, units.shape[2])
        return header, units, self.finish(questions, mixed), looks

    def read(self, header, x, turns, hidden):
        """header (1, h, d), rows x (b, l, d) behind it -> the two; `turns` of both, `hidden`
        (b, 1, l, h + l).
        """
        q, k, v = self.project_heads(header)
        k, group = rotate(k, turns[0]), self.config.heads // self.config.kv_heads
        h = header.shape[1]
        causal = _far(torch.ones(h, h).triu(1) > 0, header.dtype)
        repeated = (y.repeat_interleave(group, 1) for y in (k, v))
        mixed = attend(rotate(q, turns[0]), *repeated, causal)
        q, k_own, v_own = self.project_heads(x)
        seen = ((k, rotate(k_own, turns[1])), (v, v_own))
        held = (torch.cat([a.expand(len(x), -1, -1, -1), b], 2) for a, b in seen)
        repeated = (y.repeat_interleave(group, 1) for y in held)
        own = attend(rotate(q, turns[1]), *repeated, hidden)
        return (
            self.finish(y, m.transpose(1, 2).flatten(2)) for y, m in ((header, mixed), (x, own))
        )

    def project_heads(self, x):
        """(b, n, d) -> q (b, heads, n, 64), k and v (b, kv_heads, n, 64), not turned yet."""
        c, y = self.config, self.norm1(x)
        heads = ((self.q, c.heads), (self.k, c.kv_heads), (self.v, c.kv_heads))
        return (split_heads(linear(y), n) for linear, n in heads)

    @staticmethod
    def _gather(x, u, places):
        """(b, kv, t * u, 64) -> (b, kv, t, w * u, 64): the slots of every window."""
        t, w = places.slots.shape
        units = x.unflatten(2, (t, u)).index_select(2, places.slots.flatten())
        return units.unflatten(2, (t, w)).flatten(3, 4)

    def _mix_units(self, q, held, t, places):
        """q (b, heads, t * u, 64) -> (b, t, u, heads * 64)"""
        c = self.config
        q = q.unflatten(1, (c.kv_heads, -1)).unflatten(3, (t, -1))  # (b, kv, group, t, u, 64)
        group = q.shape[2]
        q = q.transpose(2, 3).flatten(3, 4)  # (b, kv, t, group * u, 64)
        past = held.scores(q, places.hidden.repeat(1, group, 1))
        mixed = held.mix(torch.softmax(past, -1))
        return mixed.unflatten(3, (group, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3)

    def _mix_questions(self, questions, held, places, u):
        """(b, a, n, l, d) -> (b, a, n, l, heads * 64), and where its first head looks."""
        c, (a, n, length) = self.config, questions.shape[1:4]
        q, k, v = (
            x.unflatten(2, (a, n, length)) for x in self.project_heads(questions.flatten(1, 3))
        )  # (b, heads or kv, a, n, l, 64)
        q, k = (rotate(x, places.question_turn) for x in (q, k))
        q = q.unflatten(1, (c.kv_heads, -1)).transpose(2, 3)  # (b, kv, a, group, n, l, 64)
        own = q @ k[:, :, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5  # (..., l, l)
        own = (own + places.causal_question).flatten(3, 5)
        held = held.at(places.moments)
        past = held.scores(q.flatten(3, 5), places.hidden_at_end)
        weights = torch.softmax(torch.cat([past, own], -1), -1)
        past, own = weights.split((past.shape[-1], length), -1)
        mixed = held.mix(past).unflatten(3, q.shape[3:6])
        mixed = mixed + own.unflatten(3, q.shape[3:6]) @ v[:, :, :, None]
        looks = past[:, 0].unflatten(2, q.shape[3:6])[:, :, 0]  # (b, a, n, l, h + w * u)
        looks = looks[..., held.k_header.shape[2] :].unflatten(-1, (-1, u)).sum(-1)
        return mixed.permute(0, 2, 4, 5, 1, 3, 6).flatten(4), looks

    def finish(self, x, mixed):
        """(b, ..., d) and what attention mixed of all heads, (b, ..., d) -> the layer's output."""
        x = x + self.out(mixed)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class _Held:
    """Keys and values of the header (1, kv, h, 64) and of windows (b, kv, windows, w * u, 64)."""

    def __init__(self, k_header, v_header, k_slots, v_slots):
        self.k_header, self.v_header = k_header, v_header
        self.k_slots, self.v_slots = k_slots, v_slots

    def at(self, moments):
        """Those of the windows of some moments."""
        slots = (x.index_select(2, moments) for x in (self.k_slots, self.v_slots))
        return _Held(self.k_header, self.v_header, *slots)

    def scores(self, q, hidden):
        """q (b, kv, windows, n, 64) -> (b, kv, windows, n, h + w * u)"""
        scale = q.shape[-1] ** -0.5
        header = q @ self.k_header[:, :, None].transpose(-1, -2) * scale
        return torch.cat([header, q @ self.k_slots.transpose(-1, -2) * scale + hidden], -1)

    def mix(self, weights):
        """(b, kv, windows, n, h + w * u) -> (b, kv, windows, n, 64)"""
        h = self.k_header.shape[2]
        return weights[..., :h] @ self.v_header[:, :, None] + weights[..., h:] @ self.v_slots


class Language(nn.Module):
    """Reads a stream once and many questions behind moments of it, each blind to the others: as
    live sessions fork.
    """

    def __init__(self, c: Config, embeddings):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding.from_pretrained(torch.tensor(embeddings), freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.layers))
        self.norm = RmsNorm(c.width)
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.dim() == 2:
                    small = name.startswith(('out', 'down'))
                    nn.init.normal_(weight, std=0.04 / ((2 * c.layers) ** 0.5 if small else 1))
                elif name.endswith('bias'):
                    nn.init.zeros_(weight)

    @torch.no_grad()
    def match(self, keys_of, queries, gain=0.4):
        """Let attention start with a taste: from layer 2 on, a query in the directions `queries`
        (n, d) is drawn to a key in those of `keys_of[i]` (n, d), one for every key head.

        Only slow rotary pairs take part, which are the same near and far.
        """
        half = self.config.head_width // 2
        slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, 2 * half)])
        group = self.config.heads // self.config.kv_heads
        for layer in self.layers[1:]:
            for i, directions in enumerate(keys_of):
                common = gain * torch.randn(len(slow), len(queries)) / len(slow) ** 0.5
                layer.k.weight[i * 2 * half + slow] += common @ directions
                for head in range(i * group, (i + 1) * group):
                    layer.q.weight[head * 2 * half + slow] += common @ queries

    def forward(self, header, units, questions, windows, moments, gap=0):
        """header (1, h, d), units (b, t, u, d) and, forked behind the seconds `moments` (a,),
        questions (b, a, n, l, d). `windows` (windows.Windows) says what each second sees; `gap`:
        positions left free behind the header.

        -> lists of every layer's output for units and questions, and of how much the first head
        of every row of a question looks into each slot of its window, (b, a, n, l, w).
        """
        sizes = header.shape[1], units.shape[2], questions.shape[3]
        places = Places(self.config, windows, moments, sizes, gap, header.dtype)
        outs = ([], [], [])
        for layer in self.layers:
            header, units, questions, looks = layer(header, units, questions, places)
            for out, one in zip(outs, (units, questions, looks)):
                out.append(one)
        return outs

    def read(self, header, x, positions, sees):
        """header (1, h, d), rows x (b, l, d) behind it at `positions` (b, l), each seeing the
        header and the rows `sees` (b, l, l) -> every layer's output for x.

        For text without units: notes and questions about them in one row, blind to each other.
        """
        h = header.shape[1]
        table = _turns(self.config, h + int(positions.max()) + 1, header.dtype)
        turns = tuple(t[:h] for t in table), tuple(t[h + positions][:, None] for t in table)
        hidden = F.pad(_far(~sees, header.dtype), (h, 0))[:, None]
        outs = []
        for layer in self.layers:
            header, x = layer.read(header, x, turns, hidden)
            outs.append(x)
        return outs

    def logits(self, hidden):
        return F.linear(self.norm(hidden), self.embed.weight)
