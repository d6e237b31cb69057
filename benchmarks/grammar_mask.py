# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What it costs to find all tokens that a grammar allows, in a vocabulary of the published size.

`python -m benchmarks.grammar_mask` writes a table. The vocabulary has 151,700 tokens: bytes, runs
of spaces, words of Python's library with and without a space before them and their beginnings,
pairs of Han characters. Each text is followed token by token, and after each the allowed tokens
are looked for: the CPU time of the first look, of the median one and of the worst of the rest.
Beside it, in the same run and over the same vocabulary: every token followed byte by byte without
a tree (`plain`), and llguidance where it is installed (pip install llguidance).
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import re
import statistics
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpmo_ros.llm.grammar.json_schema import write_gbnf
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.vocabulary import trie_levels

SIZE = 151_700
N_HAN_PAIRS, N_RUNS = 25_000, 128
STRING = {'type': 'object', 'properties': {'note': {'type': 'string'}}, 'required': ['note']}
BOUNDED = {'type': 'object', 'properties': {'note': {'type': 'string', 'maxLength': 500}},
           'required': ['note']}  # fmt: skip
PLACES = {'enum': [f'第{i}个杯子在桌子上' for i in range(200)]}
NOTE = '{"note": "There is a red cup on the table, beside the door. A person stands behind it"}'
CASES = (  # name, schema or GBNF, text
    ('a string', STRING, NOTE),
    ('a string, maxLength 500', BOUNDED, NOTE),
    ('any JSON', {}, '{"a": [1, 2.5, {"b": "see you"}], "c": null}'),
    ('200 choices in Chinese', PLACES, '"第17个杯子在桌子上"'),
    ('`s ::= s s`, or "a"', 'root ::= s\ns ::= s s | "a"', 'a' * 60),
    ('`w+`, `w ::= [a-z ]+`', 'root ::= w+\nw ::= [a-z ]+', 'see you in the blue room ' * 4),
)


class Pieces:
    """A vocabulary as far as a grammar looks at it."""

    def __init__(self, pieces: list):
        self.pieces, self.size = pieces, len(pieces)
        self.end_ids = frozenset({self.size - 1})
        found = sorted((piece, token) for token, piece in enumerate(pieces) if piece)
        self.trie = trie_levels([piece for piece, _ in found], [token for _, token in found])
        self.longest_first = {}
        for piece, token in found:
            self.longest_first.setdefault(piece, token)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return self.pieces[token]

    def encode(self, text: str) -> list:
        """Return the longest piece again and again."""
        data, ids = text.encode(), []
        while data:
            n = next(n for n in range(min(len(data), 16), 0, -1) if data[:n] in self.longest_first)
            ids.append(self.longest_first[data[:n]])
            data = data[n:]
        return ids


def make_pieces() -> Pieces:
    """Return SIZE pieces; the last one is the end, which has no bytes."""
    pieces = dict.fromkeys(bytes([byte]) for byte in range(256))
    pieces |= dict.fromkeys(b' ' * n for n in range(2, N_RUNS))
    pieces |= dict.fromkeys(b'\n' + b' ' * n for n in range(N_RUNS))
    han = itertools.product(range(0x4E00, 0x4E00 + 6000, 7), repeat=2)
    for first, second in itertools.islice(han, N_HAN_PAIRS):
        pieces[(chr(first) + chr(second)).encode()] = None
    for path in sorted(Path(sysconfig.get_path('stdlib')).rglob('*.py')):
        for word in re.findall(rb' ?[A-Za-z]{2,16}', path.read_bytes()):
            pieces |= dict.fromkeys(word[:n] for n in range(3, len(word) + 1))
        if len(pieces) >= SIZE - 1:
            break
    return Pieces([*list(pieces)[: SIZE - 1], b''])


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds of the looks along a text, in order."""

    looks: list

    def row(self) -> str:
        """Return first, median and worst."""
        first, *rest = self.looks
        return f'{first:.1f} | {statistics.median(rest):.2f} | {max(rest):.1f}'


def ours(vocabulary: Pieces, grammar, text: str) -> Cost:
    """Follow a text with the grammars of this package."""
    gbnf = grammar if isinstance(grammar, str) else write_gbnf(json.dumps(grammar))
    followed, scores, looks = Grammar(vocabulary, gbnf), np.empty(SIZE, np.float32), []
    for token in vocabulary.encode(text):
        scores[:] = 0
        started_s = time.process_time()
        followed.mask(scores)
        looks.append(1e3 * (time.process_time() - started_s))
        assert np.isfinite(scores[token])
        followed.accept(token)
    return Cost(looks)


def plain_ms(vocabulary: Pieces, grammar) -> float:
    """Follow every token byte by byte from the start of a grammar; all rows are known before."""
    gbnf = grammar if isinstance(grammar, str) else write_gbnf(json.dumps(grammar))
    followed = Grammar(vocabulary, gbnf)
    followed.mask(np.zeros(SIZE, np.float32))
    started_s = time.process_time()
    n_allowed = sum(followed.allows(token) for token in range(SIZE))
    spent_s = time.process_time() - started_s
    assert n_allowed
    return 1e3 * spent_s


class LLGuidance:
    """The same looks with llguidance; `is_there` tells whether it is installed."""

    eos_token_id, bos_token_id, special_token_ids = SIZE - 1, None, (SIZE - 1,)

    def __init__(self, vocabulary: Pieces):
        self._vocabulary = vocabulary
        self.tokens = [*vocabulary.pieces[:-1], b'<|end|>']
        self.is_there = importlib.util.find_spec('llguidance') is not None
        if self.is_there:
            self._module = importlib.import_module('llguidance')
            self._numpy = importlib.import_module('llguidance.numpy')
            self._read = importlib.import_module('llguidance.gbnf_to_lark').any_to_lark
            self._tokenizer = self._module.LLTokenizer(self._module.TokenizerWrapper(self))

    def __call__(self, text) -> list:
        """Return the tokens of a text, as its TokenizerWrapper wants it."""
        return self._vocabulary.encode(text.decode() if isinstance(text, bytes) else text)

    def cost(self, grammar, text: str) -> Cost:
        """Follow a text."""
        if isinstance(grammar, str):
            compiled = self._read(grammar)
        else:
            form = {
                'whitespace_flexible': False,
                'key_separator': ': ',
                'item_separator': ', ',
            }
            compiled = self._module.LLMatcher.grammar_from_json_schema(grammar, defaults=form)
        matcher, looks = self._module.LLMatcher(self._tokenizer, compiled), []
        mask = self._numpy.allocate_token_bitmask(1, SIZE)
        for token in self._vocabulary.encode(text):
            started_s = time.process_time()
            self._numpy.fill_next_token_bitmask(matcher, mask)
            looks.append(1e3 * (time.process_time() - started_s))
            if not matcher.consume_token(token):
                raise RuntimeError(f'llguidance refuses the text: {matcher.get_error()}')
        return Cost(looks)


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
    vocabulary = make_pieces()
    theirs = LLGuidance(vocabulary)
    print('| | first | median | worst | llguidance: first | median | worst | plain |')
    print('|---|' + '---:|' * 7)
    for name, grammar, text in CASES:
        mine = ours(vocabulary, grammar, text).row()
        row = theirs.cost(grammar, text).row() if theirs.is_there else ' | | '
        print(f'| {name} | {mine} | {row} | {plain_ms(vocabulary, grammar):.0f} |')


if __name__ == '__main__':
    main()
