# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers held to a grammar in GBNF: which tokens of a vocabulary can come next.

Read and followed here and not by llama.cpp, which some grammars hang, fill the memory of or end.
The states of a grammar are numbered, and which follows which by which byte is a row of a table. So
all tokens of a vocabulary are followed with a few operations on arrays for each byte of the
longest: 150 000 tokens in milliseconds where nothing is new, and at once where a state comes back.
"""

from collections.abc import Callable

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.earley import MAX_WORK, Sentences, State
from minicpmo_ros.llm.grammar.gbnf import read_gbnf
from minicpmo_ros.llm.vocabulary import Vocabulary

MASK_WORK = 8 * MAX_WORK  # where nearly every token is allowed, but not the likeliest ones
MOST_FORCED = 256  # bytes; a text may be forced for ever
MAX_STATES = 20_000  # kept from token to token: 20 MiB
MAX_MASKS = 64  # kept from token to token: 10 MB of the published vocabulary
DEAD = 0  # the state behind what cannot come
STATE_WORK = 64  # of a new state, in Sentences' measure: its row takes a KiB
STEPS = 16  # between two calls of `between`


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
        self.states = StateTable(self._sentences)
        self._vocabulary = vocabulary
        self._end_ids = vocabulary.end_ids | stop_ids
        self._state = start = self._sentences.start
        if not start.is_sentence and not start.can_go_on:
            raise InputError('The grammar has no text: its rules refer to each other for ever.')

    @property
    def is_complete(self) -> bool:
        """Whether the answer is a sentence, and none goes on from it."""
        return self._state.is_sentence and not self._state.can_go_on

    def forced(self) -> bytes:
        """Return the first bytes that every sentence goes on with from here."""
        self._limit_work(MAX_WORK)
        return self.states.forced(self._state)

    def forced_tokens(self) -> list:
        """Return tokens of the text that must come next: all if the answer ends with it.

        Otherwise all but the last, which may go on with what is not forced.
        """
        text = self.forced().decode('utf-8', 'ignore')  # whole characters
        ids = self._vocabulary.encode(text) if text else []
        spelled = b''.join(map(self._vocabulary.piece, ids))
        after = self.states.follow(self._state, spelled)
        if spelled != text.encode() or after is None:
            return []  # it was normalised, or the answer is in the middle of a character
        return ids if after.is_sentence and not after.can_go_on else ids[:-1]

    def allows(self, token: int) -> bool:
        """Return whether a token can come next."""
        if token in self._end_ids:
            return self._state.is_sentence
        return self._after(token) is not None

    def mask(self, scores: np.ndarray) -> None:
        """Set the scores (vocabulary,) of all tokens that cannot come next to -inf, in place."""
        self._limit_work(MASK_WORK)
        allowed = self.states.allowed(
            self._state, self._vocabulary.trie, self._vocabulary.size, self._between
        )
        ends = list(self._end_ids)
        end_scores = scores[ends]
        scores[~allowed] = -np.inf
        scores[ends] = end_scores if self._state.is_sentence else -np.inf

    def accept(self, token: int) -> None:
        """Step over a token; ValueError for one that is not allowed, or that ends the answer."""
        after = None if token in self._end_ids else self._after(token)
        if after is None:
            raise ValueError(f'the grammar does not allow token {token} here')
        self._state = after

    def _after(self, token: int) -> State | None:
        self._limit_work(MAX_WORK)
        piece = self._vocabulary.piece(token)
        return self.states.follow(self._state, piece) if piece else None

    def _limit_work(self, n_items: int) -> None:
        if len(self.states) > MAX_STATES:
            self._sentences.forget()
            self.states = StateTable(self._sentences)
        self._sentences.limit_work(n_items)


class StateTable:
    """The states by number, as far as looked at. Raises InputError where Sentences does."""

    def __init__(self, sentences: Sentences):
        self._sentences = sentences
        self._states, self._numbers = [None], {None: DEAD}
        self._after = np.full((64, 256), DEAD, np.int32)  # (states, bytes)
        self._is_known = np.zeros(64, bool)  # (states,): the row is there
        self._is_known[DEAD] = True
        self._masks = {}  # by state, the newest last

    def __len__(self) -> int:
        """Return how many states are known."""
        return len(self._states)

    def follow(self, state: State, piece: bytes) -> State | None:
        """Return the state behind a piece, None where it cannot follow."""
        number = self._number(state)
        for byte in piece:
            number = self._row(number)[byte]
        return self._states[number]

    def forced(self, state: State) -> bytes:
        """Return the bytes that must follow a state."""
        found, number = bytearray(), self._number(state)
        while not self._states[number].is_sentence and len(found) < MOST_FORCED:
            (bytes_,) = np.nonzero(self._row(number))
            if len(bytes_) != 1:
                break
            found.append(bytes_[0])
            number = self._after[number, bytes_[0]]
        return bytes(found)

    def allowed(
        self, state: State, levels: list, n_ids: int, between: Callable[[], None] | None
    ) -> np.ndarray:
        """Return which tokens of a trie can follow, (n_ids,) bool; see `trie_levels`."""
        if state not in self._masks:
            while len(self._masks) >= MAX_MASKS:
                del self._masks[next(iter(self._masks))]
            self._masks[state] = self._follow_all(state, levels, n_ids, between)
        return self._masks[state]

    def _follow_all(self, state: State, levels: list, n_ids: int, between) -> np.ndarray:
        allowed = np.zeros(n_ids, bool)
        numbers = np.array([self._number(state)], np.int32)  # of the nodes of a level
        for level in levels:
            before = numbers[level.parents]
            new = np.unique(before[~self._is_known[before]])
            for i, number in enumerate(new.tolist()):
                if between is not None and i % STEPS == 0:
                    between()
                self._row(number)
            numbers = self._after[before, level.bytes]
            allowed[level.end_ids] = numbers[level.end_nodes] != DEAD
            if not numbers.any():
                break
        return allowed

    def _row(self, number: int) -> np.ndarray:
        """Return the states (256,) behind each byte, by number."""
        if not self._is_known[number]:
            for first, last, after in self._sentences.row(self._states[number]):
                after_number = self._number(after)  # the table may move
                self._after[number, first : last + 1] = after_number
            self._is_known[number] = True
        return self._after[number]

    def _number(self, state: State) -> int:
        number = self._numbers.get(state)
        if number is None:
            self._sentences.spend(STATE_WORK)
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            if number == len(self._after):
                self._after = np.concatenate([self._after, np.full_like(self._after, DEAD)])
                self._is_known = np.concatenate([self._is_known, np.zeros_like(self._is_known)])
        return number
