# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Choosing the next token from logits, and how probable it was.

Order of the steps, as in Hugging Face's generate: repetition penalty, forbidden tokens, grammar,
temperature, top-k, top-p: the k likeliest are of those that the grammar allows, and shares are
renormalised over them. Where the choice is greedy, a grammar is asked about the likeliest token
alone, then about the next; only where it goes on refusing, about all.

Choices hold an answer to one of a list of texts, byte by byte: of any language, and any number.
Sorted, the choices that begin with what was said are neighbours. A choice may have more bytes
than the answer may have tokens: then only tokens are allowed that leave enough for its rest.
"""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np

from minicpmo_ros.config import LLM
from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.vocabulary import Vocabulary, well_formed

MAX_CHOICE_BYTES = 1 << 20  # of all choices together: a second at the first token

LIKELIEST = (
    16  # looked at one by one before a grammar is asked about all tokens, which takes longer
)


@dataclass(frozen=True)
class SamplingOptions:
    """How freely an answer is worded; the defaults but for temperature are MiniCPM-o 2.6's own."""

    temperature: float = LLM.temperature  # 0: greedy, the likeliest token each time
    top_k: int = LLM.top_k  # only the k likeliest tokens; 0: all
    top_p: float = LLM.top_p  # only the likeliest tokens that hold this share together
    repeat_penalty: float = LLM.repeat_penalty  # 1: none
    penalty_window: int = 64  # newest tokens of the answer that count as repeated
    seed: int = LLM.seed  # of every answer: the same window and question, the same words

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


class Choices:
    """The state of one answer that is to be one of some texts; as Grammar otherwise.

    An answer of `max_tokens` tokens always has room for one of them. Raises InputError for an
    unfit list, or a choice that so many tokens cannot spell.
    """

    def __init__(
        self, vocabulary: Vocabulary, choices, stop_ids=frozenset(), max_tokens: int = 1 << 30
    ):
        self._vocabulary, self.end_ids = vocabulary, vocabulary.end_ids | stop_ids
        encoded = _checked_choices(list(choices))
        # Of each choice the tokens that the model would spell it with; the answer may take others.
        self.paths = [tuple(vocabulary.encode(choice)) for choice in choices]
        self._path_of = {
            choice: path if b''.join(map(vocabulary.piece, path)) == choice else ()
            for choice, path in zip(encoded, self.paths)
        }  # none for one that is spelled after it was normalised
        self._choices = sorted(encoded)
        self._said, self._left, self._ids = b'', max_tokens, ()
        self._needs = {}  # of choices that have more bytes than tokens: see _tokens_needed
        for choice in self._choices:
            if len(choice) > max_tokens:
                self._needs[choice] = needs = self._tokens_needed(choice)
                if needs[0] > max_tokens:
                    raise InputError(
                        f'A choice takes at least {needs[0]} tokens, max_tokens allows '
                        f'{max_tokens}. Shorten it, or raise max_tokens.'
                    )

    @property
    def is_complete(self) -> bool:
        """Whether a choice was said, and none goes on from it."""
        return self._open(self._said) == [self._said]

    def allows(self, token: int) -> bool:
        """Tell whether a token can come next."""
        if token in self.end_ids:
            return self._is_choice
        piece = self._vocabulary.piece(token)
        return bool(piece) and self._fits(self._said + piece)

    def mask(self, scores: np.ndarray) -> None:
        """Set the scores (vocabulary,) of all tokens that cannot come next to -inf, in place."""
        pieces, ids = self._vocabulary.sorted_pieces
        longest, begin, before = self._vocabulary.longest_piece, len(self._said), b''
        allowed = list(self.end_ids) if self._is_choice else []
        for choice in self._open(self._said):
            rest = choice[begin : begin + longest]
            for n in range(1, len(rest) + 1):
                if before.startswith(rest[:n]) and not self._needs:
                    continue  # looked up with the choice before
                at = bisect_left(pieces, rest[:n])
                if at == len(pieces) or not pieces[at].startswith(rest[:n]):
                    break  # no longer piece begins so
                while at < len(pieces) and pieces[at] == rest[:n]:
                    if not self._needs or self._fits(self._said + rest[:n]):
                        allowed.append(ids[at])
                    at += 1
            before = rest
        kept = scores[allowed]
        scores[:] = -np.inf
        scores[allowed] = kept

    def accept(self, token: int) -> None:
        """Step over a token; ValueError for one that is not allowed, or that ends the answer."""
        if token in self.end_ids or not self.allows(token):
            raise ValueError(f'the choices do not allow token {token} here')
        self._said += self._vocabulary.piece(token)
        self._ids += (token,)
        self._left -= 1

    def forced_tokens(self) -> list:
        """Return the tokens that come next in all choices that are left, as they are spelled."""
        open_choices, n = self._open(self._said), len(self._ids)
        if open_choices[0] == self._said:
            return []
        paths = [self._path_of[choice] for choice in open_choices]
        if any(path[:n] != self._ids for path in paths):
            return []
        shared = list(commonprefix([min(paths), max(paths)])[n:])
        return shared if len(shared) <= self._left else []

    @property
    def _is_choice(self) -> bool:
        at = bisect_left(self._choices, self._said)
        return at < len(self._choices) and self._choices[at] == self._said

    def _open(self, beginning: bytes) -> list:
        """Return the choices that begin so."""
        first = bisect_left(self._choices, beginning)
        behind = bisect_left(self._choices, beginning + b'\xff')  # no byte of UTF-8
        return self._choices[first:behind]

    def _fits(self, said: bytes) -> bool:
        """Tell whether a choice goes on so, and can still be finished."""
        n, left = len(said), self._left - 1
        if not self._needs:
            at = bisect_left(self._choices, said)
            return at < len(self._choices) and self._choices[at].startswith(said)
        return any(
            len(choice) - n <= left or choice in self._needs and self._needs[choice][n] <= left
            for choice in self._open(said)
        )

    def _tokens_needed(self, choice: bytes) -> list:
        """Return the least number of tokens that spell the rest from every byte on."""
        pieces, _ = self._vocabulary.sorted_pieces
        needs = [0] * (len(choice) + 1)
        for begin in reversed(range(len(choice))):
            counts = [len(choice)]
            for end in range(
                begin + 1, min(len(choice), begin + self._vocabulary.longest_piece) + 1
            ):
                at = bisect_left(pieces, choice[begin:end])
                if at == len(pieces) or not pieces[at].startswith(choice[begin:end]):
                    break  # no longer piece begins so
                if pieces[at] == choice[begin:end]:
                    counts.append(needs[end] + 1)
            needs[begin] = min(counts)
        return needs


def _checked_choices(choices: list) -> list:
    """Return the choices as bytes."""
    for choice in choices:
        if not choice.strip():
            raise InputError('A choice is empty. Give every choice a text.')
        if choice != well_formed(choice) or '\0' in choice:
            raise InputError(
                f'The choice {choice[:80]!r} is not a text: it holds a zero character or '
                'half of a surrogate pair.'
            )
    twice, n = Counter(choices).most_common(1)[0]
    if n > 1:
        raise InputError(f'The choice {twice!r} is given twice. Give each choice once.')
    encoded = [choice.encode() for choice in choices]
    n_bytes = sum(map(len, encoded))
    if n_bytes > MAX_CHOICE_BYTES:
        raise InputError(
            f'The choices have {n_bytes} bytes together, at most {MAX_CHOICE_BYTES} are allowed.'
        )
    return encoded


class Sampler:
    """The choice of tokens for one answer."""

    def __init__(
        self, options: SamplingOptions, forbidden_ids, grammar: Grammar | Choices | None = None
    ):
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
        if self._grammar is None:
            return self._draw(scores)
        if self._options.temperature == 0:
            for _ in range(LIKELIEST):
                token = self._draw(scores)
                if np.isfinite(scores[token]) and self._grammar.allows(token):
                    return token
                scores[token] = -np.inf
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
        behind = scores[tokens].astype(np.float64) - scores[tokens[0]]  # at most 0
        with np.errstate(over='ignore'):  # of the least temperatures: a share of 0
            shares = np.exp(behind / options.temperature)
        shares /= shares.sum()
        before = np.cumsum(shares) - shares
        shares = np.where(before < max(options.top_p, 1e-9), shares, 0.0)
        bounds = np.cumsum(shares)
        drawn = np.searchsorted(bounds, self._random.random() * bounds[-1], side='right')
        return int(tokens[min(drawn, len(tokens) - 1)])


def log_sum_exp(logits: np.ndarray) -> float:
    """Return the logarithm of the sum of exponentials of (n,) numbers; -inf for none."""
    if not len(logits):
        return -math.inf
    most = logits.max()
    return float(most) + math.log(np.exp(logits - most).sum())


def log_probability(logits: np.ndarray, token: int) -> float:
    """Return the logarithm of the share of one token in the softmax of (vocabulary,) logits."""
    return float(logits[token]) - log_sum_exp(logits)
