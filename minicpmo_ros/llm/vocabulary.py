# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text to token ids and back, and ids to embedding rows.

Templates may name special tokens, a person's words never do. Special ids are looked up by their
text, never assumed; a vocabulary that lacks one is refused. A vocabulary is read-only; any thread
may use it.
"""

import codecs
import ctypes
import os
import re
import unicodedata
import weakref
from dataclasses import dataclass
from functools import cached_property

import llama_cpp.llama_cpp as llama
import numpy as np

from minicpmo_ros.errors import EngineError, InputError, ModelFileError
from minicpmo_ros.ggml import library
from minicpmo_ros.ggml.gguf_file import Header
from minicpmo_ros.ggml.types import row_bytes

UNKNOWN, UNUSED, CONTROL, USER_DEFINED = 1, 2, 8, 16  # llama.h: enum llama_token_attr
TABLE = 'token_embd.weight'
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

    @cached_property
    def longest_piece(self) -> int:
        """The most bytes a piece has."""
        return max(map(len, self.sorted_pieces[0]), default=0)

    @cached_property
    def trie(self) -> list:
        """All pieces as the levels of a trie; see `trie_levels`."""
        return trie_levels(*self.sorted_pieces)

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

        It is normalised first (NFC), as the official tokenizer does: an accent that is written
        as a character of its own is the same token. Raises InputError for a text of more than
        MAX_TEXT_BYTES.
        """
        text = unicodedata.normalize('NFC', well_formed(text))
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


class TokenRows:
    """The token embedding table of a language model file.

    Fed to llama.cpp as embeddings its rows give what it computes from the token ids, so that text,
    images and audio can share one batch. The table stays on disk; rows are read when they are
    asked for and not mapped, so that a file that is cut meanwhile is an error and not the
    process's end.
    """

    def __init__(self, path, header: Header):
        info = header.tensors.get(TABLE)
        if info is None or len(info.shape) != 2:
            raise ModelFileError(
                path, f'it has no matrix {TABLE}', 'Use the GGUF file of a language model.'
            )
        self.size, self.width = info.shape
        self._path, self._type, self._start = path, info.type, info.offset
        self._row_bytes = row_bytes(info.type, self.width)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def rows(self, ids) -> np.ndarray:
        """Return the rows of token ids: (n, width) float32.

        Raises ModelFileError where the file was cut since it was opened.
        """
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.size:
            raise ValueError(f'token ids must be in 0..{self.size - 1}')
        if not ids.size:
            return np.zeros((0, self.width), np.float32)
        data = b''.join(
            os.pread(self._file, self._row_bytes, self._start + self._row_bytes * token)
            for token in ids.tolist()
        )
        if len(data) != ids.size * self._row_bytes:
            raise ModelFileError(
                self._path,
                'it became shorter while it was in use',
                'Leave model files in place while a node runs; put it back and start anew',
            )
        table = np.frombuffer(data, np.uint8).reshape(ids.size, -1)  # (n, bytes of a row)
        return library.dequantize(table, self._type)


class Utf8Stream:
    """An incremental decoder; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, data: bytes) -> str:
        """Return the characters that are complete with these bytes."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what is left: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b'', final=True)


@dataclass(frozen=True)
class Level:
    """The nodes at one depth, in the order of the bytes that lead to them."""

    parents: np.ndarray  # (nodes,) int32: which node of the level above, the root being one
    bytes: np.ndarray  # (nodes,) uint8: what leads from it
    end_nodes: np.ndarray  # (tokens,) int32: nodes where a piece ends
    end_ids: np.ndarray  # (tokens,) int32: its token


def trie_levels(pieces: list, ids: list) -> list:
    """Return the levels of sorted pieces that are not empty, and their tokens."""
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    begins = np.cumsum(lengths) - lengths
    data = np.frombuffer(b''.join(pieces), np.uint8)
    ids, alive = np.asarray(ids, np.int32), np.arange(len(pieces))
    parents, levels = np.zeros(len(pieces), np.int32), []
    for depth in range(int(lengths.max(initial=0))):
        kept = lengths[alive] > depth
        alive, parents = alive[kept], parents[kept]  # sorted: equal beginnings are neighbours
        byte = data[begins[alive] + depth]
        is_new = np.ones(len(alive), bool)
        is_new[1:] = (parents[1:] != parents[:-1]) | (byte[1:] != byte[:-1])
        nodes = (np.cumsum(is_new) - 1).astype(np.int32)
        ends = lengths[alive] == depth + 1
        levels.append(Level(parents[is_new], byte[is_new], nodes[ends], ids[alive[ends]]))
        parents = nodes
    return levels
