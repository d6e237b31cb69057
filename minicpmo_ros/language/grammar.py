# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers held to a grammar: GBNF from a list of choices, or as a person wrote it.

Read and followed here and not by llama.cpp, which some grammars hang, fill the memory of or end.
"""

import re
from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.gbnf import read_gbnf
from minicpmo_ros.language.sentences import MAX_WORK, Progress, Sentences
from minicpmo_ros.language.vocabulary import Vocabulary, well_formed

MAX_CHOICES = 256
MAX_CHOICE_BYTES = 1024
MASK_WORK = 8 * MAX_WORK  # where nearly every token is allowed, but not the likeliest ones


def choices_grammar(choices) -> str:
    """Return the GBNF of 'one of these texts, exactly'; InputError for an unfit list."""
    choices = list(choices)
    if len(choices) > MAX_CHOICES:
        raise InputError(f'{len(choices)} choices were given, at most {MAX_CHOICES} are allowed.')
    for choice in choices:
        _check_choice(choice)
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise InputError(f'The choice {twice!r} is given twice. Give each choice once.')
    return 'root ::= ' + ' | '.join(f'"{_quoted(choice)}"' for choice in choices)


def _check_choice(choice: str) -> None:
    if not choice:
        raise InputError('A choice is empty. Give every choice a text.')
    if choice != well_formed(choice) or '\0' in choice:
        raise InputError(
            f'The choice {choice!r} is not a text: it holds a zero character or '
            'half of a surrogate pair.'
        )
    n_bytes = len(choice.encode())
    if n_bytes > MAX_CHOICE_BYTES:
        raise InputError(f'A choice has {n_bytes} bytes, at most {MAX_CHOICE_BYTES} are allowed.')


def _quoted(text: str) -> str:
    """Write a text inside GBNF quotes: everything but letters, digits and spaces by number."""
    plain = re.compile('[A-Za-z0-9 ]')
    return ''.join(c if plain.match(c) else f'\\U{ord(c):08X}' for c in text)


class Grammar:
    """The state of one answer within a GBNF grammar; its start is the rule `root`.

    An answer that is a sentence may end with a token that ends any text, or with one of
    `stop_ids`. Raises InputError for a grammar that is not valid; any method does for one that is
    too ambiguous to be followed in time. `between` is called over and over while `mask` follows
    all tokens, which can take seconds; what it raises goes out.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        gbnf: str,
        stop_ids=frozenset(),
        between: Callable[[], None] | None = None,
    ):
        self._between = between
        self._sentences = Sentences(read_gbnf(gbnf))
        self._vocabulary = vocabulary
        self._end_ids = vocabulary.end_ids | stop_ids
        self._progress = start = self._sentences.start()
        if not self._sentences.is_sentence(start) and not self._sentences.can_go_on(start):
            raise InputError('The grammar has no text: its rules refer to each other for ever.')

    @property
    def is_complete(self) -> bool:
        """Whether the answer is a sentence, and none goes on from it."""
        sentences, progress = self._sentences, self._progress
        return sentences.is_sentence(progress) and not sentences.can_go_on(progress)

    def allows(self, token: int) -> bool:
        """Tell whether a token can come next."""
        if token in self._end_ids:
            return self._sentences.is_sentence(self._progress)
        return self._after(token) is not None

    def mask(self, scores: np.ndarray) -> None:
        """Set the scores (vocabulary,) of all tokens that cannot come next to -inf, in place."""
        allowed = self._allowed_ids()
        if self._sentences.is_sentence(self._progress):
            allowed += self._end_ids
        kept = scores[allowed]
        scores[:] = -np.inf
        scores[allowed] = kept

    def accept(self, token: int) -> None:
        """Step over a token; ValueError for one that is not allowed, or that ends the answer."""
        after = None if token in self._end_ids else self._after(token)
        if after is None:
            raise ValueError(f'the grammar does not allow token {token} here')
        self._progress = after

    def _after(self, token: int) -> Progress | None:
        self._sentences.allow_work(MAX_WORK)
        progress, piece = self._progress, self._vocabulary.piece(token)
        for byte in piece:
            progress = self._sentences.step(progress, byte)
            if progress is None:
                return None
        return progress if piece else None

    def _allowed_ids(self) -> list:
        """Follow all pieces in their order; of those with a wrong beginning, follow one."""
        self._sentences.allow_work(MASK_WORK)
        pieces, ids = self._vocabulary.sorted_pieces
        allowed, path, followed, i = [], [self._progress], b'', 0
        while i < len(pieces):
            if self._between is not None:
                self._between()
            piece = pieces[i]
            n = _n_common(followed, piece)
            del path[n + 1 :]
            while n < len(piece) and (after := self._sentences.step(path[-1], piece[n])):
                path.append(after)
                n += 1
            followed = piece[:n]
            if n == len(piece):
                allowed.append(ids[i])
                i += 1
            else:
                i = bisect_left(pieces, _behind(piece[: n + 1]), i + 1)
        return allowed


def _n_common(a: bytes, b: bytes) -> int:
    """Return how many bytes two texts have in common at their beginning."""
    n = 0
    for x, y in zip(a, b):
        if x != y:
            break
        n += 1
    return n


def _behind(beginning: bytes) -> bytes:
    """Return what is sorted behind all texts with this beginning."""
    while beginning and beginning[-1] == 0xFF:
        beginning = beginning[:-1]
    return beginning[:-1] + bytes([beginning[-1] + 1]) if beginning else b'\xff' * 1024
