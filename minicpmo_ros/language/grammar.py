# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers held to a grammar: GBNF from a list of choices, or as a person wrote it.

llama.cpp parses and follows it. It throws through C, which ends the process, when it is given a
token that does not fit; so every token is asked about before it is accepted.
"""

import ctypes
import re
import time
import weakref

import llama_cpp.llama_cpp as llama
import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.gbnf import check_gbnf
from minicpmo_ros.language.vocabulary import Vocabulary, well_formed

MAX_CHOICES = 256
MAX_CHOICE_BYTES = 1024
MAX_STEP_S = 1.0  # of the processor for one step; an ambiguous grammar grows without bound
TOKEN_DATA = np.dtype([('id', '<i4'), ('logit', '<f4'), ('p', '<f4')])  # llama_token_data


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
    """The state of one answer within a GBNF grammar; its start is the rule `root`."""

    def __init__(self, vocabulary: Vocabulary, gbnf: str):
        check_gbnf(gbnf)
        self._vocabulary = vocabulary  # keeps the vocabulary that llama.cpp points to
        pointer = llama.llama_sampler_init_grammar(vocabulary.pointer, gbnf.encode(), b'root')
        if not pointer:
            raise InputError(
                'The grammar is not valid GBNF with a rule `root` that does not '
                'begin with itself. The log of llama.cpp says where.'
            )
        self._pointer = pointer
        self._free = weakref.finalize(self, llama.llama_sampler_free, pointer)

    def close(self) -> None:
        """Free it; it is of no use afterwards."""
        self._free()

    def allows(self, token: int) -> bool:
        """Tell whether a token can come next."""
        scores = np.zeros(1, np.float32)
        self._apply(np.array([token], np.int32), scores)
        return bool(np.isfinite(scores[0]))

    def mask(self, scores: np.ndarray) -> None:
        """Set the scores (vocabulary,) of all tokens that cannot come next to -inf, in place."""
        self._apply(np.arange(len(scores), dtype=np.int32), scores)

    def accept(self, token: int) -> None:
        """Step over a token; ValueError for one that is not allowed."""
        if not self.allows(token):
            raise ValueError(f'the grammar does not allow token {token} here')
        llama.llama_sampler_accept(self._pointer, token)

    def _apply(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        data = np.zeros(len(tokens), TOKEN_DATA)
        data['id'], data['logit'] = tokens, scores
        array = llama.llama_token_data_array(
            data.ctypes.data_as(llama.llama_token_data_p), len(tokens), -1, False
        )
        started_s = time.thread_time()
        llama.llama_sampler_apply(self._pointer, ctypes.byref(array))
        if time.thread_time() - started_s > MAX_STEP_S:
            raise InputError(
                'The grammar is too ambiguous to be followed. Let each text be reached in one way.'
            )
        scores[:] = data['logit']
