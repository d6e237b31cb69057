# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Choosing the next token from logits.

Order of the steps, as in Hugging Face's generate: repetition penalty, forbidden tokens,
temperature, top-k, top-p. A grammar is asked about the drawn token alone; what it refuses is taken
out and another is drawn, which gives each of the allowed its probability renormalised over the
allowed. Where it goes on refusing, it is asked about all tokens.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.grammar import Grammar

DRAWS = 16  # before a grammar is asked about all tokens, which takes longer


@dataclass(frozen=True)
class SamplingOptions:
    """How freely an answer is worded; the defaults but for temperature are MiniCPM-o 2.6's own."""

    temperature: float = 0.0  # 0: greedy, the likeliest token each time
    top_k: int = 100  # only the k likeliest tokens; 0: all
    top_p: float = 0.8  # only the likeliest tokens that hold this share together
    repeat_penalty: float = 1.05  # 1: none
    penalty_window: int = 64  # newest tokens of the answer that count as repeated
    seed: int = 0  # of every answer: the same window and question, the same words

    def __post_init__(self):  # noqa: D105
        limits = {
            'temperature': (0.0, 10.0),
            'top_k': (0, 1 << 20),
            'top_p': (0.0, 1.0),
            'repeat_penalty': (0.1, 10.0),
            'penalty_window': (0, 1 << 20),
            'seed': (0, (1 << 63) - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # refuses NaN, too
                raise InputError(f'{name} is {value}, {low} to {high} is allowed.')


class Sampler:
    """The choice of tokens for one answer."""

    def __init__(self, options: SamplingOptions, forbidden_ids, grammar: Grammar | None = None):
        self._options, self._grammar = options, grammar
        self._forbidden = np.fromiter(forbidden_ids, np.int64)
        self._random = np.random.default_rng(options.seed)
        self._accepted = []
        self._scores = np.empty(0, np.float32)  # kept: fresh memory is slower than the choice

    def pick(self, logits: np.ndarray) -> int:
        """Return a token for logits (vocabulary,); InputError where the grammar allows none."""
        if self._scores.shape != np.shape(logits):
            self._scores = np.empty(np.shape(logits), np.float32)
        scores = self._scores
        np.copyto(scores, logits)
        self._penalise(scores)
        scores[self._forbidden] = -np.inf
        for _ in range(DRAWS):
            token = self._draw(scores)
            if self._grammar is None or self._grammar.allows(token):
                return token
            scores[token] = -np.inf
            if not np.isfinite(scores).any():
                break
        self._grammar.mask(scores)
        if not np.isfinite(scores).any():
            raise InputError(
                'The grammar allows no token here; it cannot be completed. Correct the grammar.'
            )
        return self._draw(scores)

    def accept(self, token: int) -> None:
        """Take a picked token into the answer."""
        self._accepted.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)

    def _penalise(self, scores: np.ndarray) -> None:
        window = self._options.penalty_window
        repeated = np.unique(np.array(self._accepted[-window:] if window else [], np.int64))
        values = scores[repeated]
        penalty = np.float32(self._options.repeat_penalty)
        scores[repeated] = np.where(values > 0, values / penalty, values * penalty)

    def _draw(self, scores: np.ndarray) -> int:
        options = self._options
        if options.temperature == 0:
            return int(scores.argmax())
        k = min(options.top_k or len(scores), len(scores))
        tokens = np.argpartition(scores, -k)[-k:]
        tokens = tokens[np.argsort(-scores[tokens], kind='stable')]  # likeliest first
        logits = (scores[tokens] / options.temperature).astype(np.float64)
        shares = np.exp(logits - logits[0])
        shares /= shares.sum()
        before = np.cumsum(shares) - shares
        shares = np.where(before < max(options.top_p, 1e-9), shares, 0.0)
        bounds = np.cumsum(shares)
        drawn = np.searchsorted(bounds, self._random.random() * bounds[-1], side='right')
        return int(tokens[min(drawn, len(tokens) - 1)])
