# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""nano's tokenizer: byte-level BPE whose merges are read off the questions it knows.

Every word of the grammar is one token, with and without its leading space; anything else falls
back to bytes. Cuts text as llama.cpp's pre-tokenizer 'qwen2' does (ASCII is all the grammar
needs), holds the special tokens of MiniCPM-o 2.6 under their own names, and is written into the
GGUF as it is.
"""

import re
from collections import Counter

import numpy as np

from minicpmo_ros.families.minicpm_o_2_6 import SPECIAL_TOKENS

from . import noted, questions, world

_FIRST = SPECIAL_TOKENS.index('<image>')  # those before are Qwen2's, of which nano has three
SPECIAL = (*('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<unk>'), *SPECIAL_TOKENS[_FIRST:])
SYSTEM_TEXT = (
    'You are a helpful assistant. You can accept video, audio and text input and '
    'output voice and text. '
)
# The pattern of 'qwen2' for ASCII text.
CUT = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
    r'|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]'
    r'| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def byte_letters():
    """256 printable characters standing for the bytes, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {b: chr(b) for b in plain}, 0
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + extra)
            extra += 1
    return letters


def learn_merges(counts):
    """Merges until every word of `counts` (as tuples of letters) is one piece."""
    words, merges = dict(counts), []
    while True:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            return merges
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        words = {_join(word, best): count for word, count in words.items()}


def _join(word, pair):
    out, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        out.append(''.join(word[i : i + step]))
        i += step
    return tuple(out)


def grammar_words(samples=3000, seed=5):
    """Pieces of text the grammar uses, counted; content words with and without a space before."""
    rng, counts = np.random.default_rng(seed), Counter()
    for i in range(samples):
        seconds = 2 + i % (world.MAX_SECONDS - 1)
        pictures, sounds, _ = world.script(seconds, rng)
        pictures = [
            world.Picture(
                p.shape,
                p.color,
                p.count,
                world.choose(rng, world.COLUMNS),
                world.choose(rng, world.ROWS),
            )
            for p in pictures
        ]
        sounds = [
            world.Sound(
                s.kind, s.word, world.choose(rng, world.VOICES) if s.word else None, s.pitch
            )
            for s in sounds
        ]
        clip = questions.Clip(tuple(pictures), tuple(sounds))
        for question in questions.ask_about(clip, 4, rng, with_options=bool(i % 2)):
            counts.update(CUT.findall(questions.asked(question)))
    for _ in range(samples // 4):
        for question in noted.ask_about_notes(clip, 4, rng):
            counts.update(CUT.findall(question.notes) + CUT.findall(question.text))
    for word in content_words():
        counts[word] += 3000
        counts[' ' + word] += 3000
    counts.update(CUT.findall(SYSTEM_TEXT) * 50)
    counts.update({'user': 5000, 'assistant': 5000, 'system': 5000, '\n\n': 10})
    return counts


def content_words():
    """Every word an answer can be, and those that ask aloud. New ones come last, so that the
    others keep their codes (codes.py) and a nano of before can be trained further.
    """
    groups = (
        world.COLORS,
        world.SHAPES,
        world.NUMBERS,
        world.COMMANDS,
        world.KINDS,
        world.VOICES,
        world.PITCHES,
        world.COLUMNS,
        world.ROWS,
        world.QUESTION_WORDS,
    )
    return tuple(dict.fromkeys(word for group in groups for word in group))


class Tokenizer:
    """text <-> ids; `pieces` is the GGUF's token list, `merges` its merge list."""

    def __init__(self, merges):
        self.letters = byte_letters()
        self.bytes = {letter: byte for byte, letter in self.letters.items()}
        self.merges = [tuple(m) for m in merges]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        self.pieces = [self.letters[b] for b in range(256)]
        self.pieces += dict.fromkeys(''.join(m) for m in self.merges)
        self.normal = len(self.pieces)
        self.pieces += SPECIAL
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._known, self._words = {}, {}

    @classmethod
    def learn(cls):
        letters = byte_letters()
        spelled = {
            tuple(letters[b] for b in word.encode()): n for word, n in grammar_words().items()
        }
        return cls(learn_merges(spelled))

    def _encode_word(self, word):
        parts = tuple(self.letters[b] for b in word.encode())
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, len(self.rank)))
            if best not in self.rank:
                break
            parts = _join(parts, best)
        return [self.ids[p] for p in parts]

    def _ids_of(self, word):
        if word not in self._words:
            self._words[word] = self._encode_word(word)
        return self._words[word]

    def encode(self, text):
        """Ids of plain text; special tokens are never read out of it."""
        if text not in self._known:
            self._known[text] = [i for word in CUT.findall(text) for i in self._ids_of(word)]
        return self._known[text]

    def encode_template(self, text):
        """Ids of text that may hold special tokens."""
        parts = re.split('(' + '|'.join(re.escape(s) for s in SPECIAL) + ')', text)
        return [
            i
            for part in parts
            if part
            for i in ([self.ids[part]] if part in SPECIAL else self.encode(part))
        ]

    def decode(self, ids):
        raw = b''.join(
            bytes(self.bytes[c] for c in self.pieces[i])
            if i < self.normal
            else self.pieces[i].encode()
            for i in ids
        )
        return raw.decode('utf-8', 'replace')
