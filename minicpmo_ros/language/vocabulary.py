# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text to token ids and back: templates may name special tokens, a person's words never do.

Special ids are looked up by their text, never assumed; a vocabulary that lacks one is refused.
A vocabulary is read-only; any thread may use it.
"""

import ctypes
import re
from functools import cached_property

import llama_cpp.llama_cpp as llama

from minicpmo_ros.errors import EngineError, InputError, ModelFileError

UNKNOWN, UNUSED, CONTROL, USER_DEFINED = 1, 2, 8, 16  # llama.h: enum llama_token_attr
MAX_TEXT_BYTES = 65536  # of one text; bounds the time and the stack the tokeniser takes


def well_formed(text: str) -> str:
    """Return the text with halves of surrogate pairs joined, or replaced where one is alone."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


class Vocabulary:
    """The tokens of one loaded model."""

    def __init__(self, weights, path):
        self._weights = weights  # llama.cpp keeps the vocabulary inside them
        self.pointer = llama.llama_model_get_vocab(weights.pointer)
        self.path = path
        self.size = llama.llama_vocab_n_tokens(self.pointer)
        self._attributes = [
            llama.llama_vocab_get_attr(self.pointer, token) for token in range(self.size)
        ]

    @cached_property
    def special_tokens(self) -> dict:
        """Ids by text of all tokens that mean something beside their text."""
        marks = UNKNOWN | CONTROL | USER_DEFINED
        return {
            self._text(token): token
            for token, attribute in enumerate(self._attributes)
            if attribute & marks
        }

    @cached_property
    def unspoken_ids(self) -> frozenset:
        """Ids no person should read in an answer: special tokens and unused places."""
        unused = (token for token, attribute in enumerate(self._attributes) if attribute & UNUSED)
        return frozenset({*self.special_tokens.values(), *unused})

    @cached_property
    def end_ids(self) -> frozenset:
        """Ids the model ends its text with."""
        return frozenset(filter(self.is_end, self.special_tokens.values()))

    @cached_property
    def sorted_pieces(self) -> tuple:
        """All pieces that are not empty, in the order of their bytes, and their ids."""
        pieces = sorted((self.piece(token), token) for token in range(self.size))
        pieces = [(piece, token) for piece, token in pieces if piece]
        return [piece for piece, _ in pieces], [token for _, token in pieces]

    def special_id(self, text: str) -> int:
        """Return the id of a special token; raise ModelFileError where it is not one token."""
        token = self.special_tokens.get(text)
        if token is None or self.encode_template(text) != [token]:
            pieces = len(self.encode_template(text))
            raise ModelFileError(
                self.path,
                f'its vocabulary has no special token {text} (it reads as {pieces} tokens)',
                'Use the language model of a MiniCPM-o, converted with its own tokens.',
            )
        return token

    def encode_template(self, text: str) -> list:
        """Return the ids of our own text, special tokens in it included."""
        return self._tokenize(text, parse_special=True)

    def encode(self, text: str) -> list:
        """Return the ids of a person's text; a special token's name in it stays text.

        Raises InputError for a text of more than MAX_TEXT_BYTES.
        """
        text = well_formed(text)
        n_bytes = len(text.encode())
        if n_bytes > MAX_TEXT_BYTES:
            raise InputError(
                f'The text has {n_bytes} bytes, at most {MAX_TEXT_BYTES} are read. Shorten it.'
            )
        ids = self._tokenize(text, parse_special=False)
        if self._spells_special(ids):
            # llama.cpp finds user-defined tokens even so. Cut in two, their names are not found.
            ids = [
                token
                for part in self._split_names(text)
                for token in self._tokenize(part, parse_special=False)
            ]
        if self._spells_special(ids):
            raise InputError(
                'The text contains a control token that cannot be read as text. Ask without it.'
            )
        return ids

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, perhaps a part of a character; special: empty."""
        buffer = ctypes.create_string_buffer(256)
        n = llama.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = llama.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, False)
        return buffer.raw[:n]

    def is_end(self, token: int) -> bool:
        """Tell whether the model ends its text with this token."""
        return llama.llama_vocab_is_eog(self.pointer, token)

    def _text(self, token: int) -> str:
        return llama.llama_vocab_get_text(self.pointer, token).decode('utf-8', 'replace')

    def _spells_special(self, ids: list) -> bool:
        special = set(self.special_tokens.values())
        return any(token in special for token in ids)

    def _split_names(self, text: str) -> list:
        """Split a text after the first character of each special token's name in it."""
        names = '|'.join(re.escape(name) for name in self.special_tokens if len(name) > 1)
        cuts = [match.start() + 1 for match in re.finditer(f'(?={names})', text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]

    def _tokenize(self, text: str, parse_special: bool) -> list:
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 1))()  # a token has at least one byte
        n = llama.llama_tokenize(
            self.pointer, data, len(data), ids, len(ids), False, parse_special
        )
        if n < 0:
            raise EngineError(f'llama_tokenize failed on {len(data)} bytes (code {n})')
        return ids[:n]
