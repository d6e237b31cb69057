# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Tables of tokens: making one around a family's special tokens, and finding its unmade words.

A table that is made encodes any text: 256 byte tokens, merges for some words, filling, and at its
end the special tokens in the published order, so that a vocabulary of the published size has the
published ids.

An unmade word is one that no merge makes: text that holds it is read in other tokens. A published
merges.txt lacks the merges of Han words that its tokenizer.json has, and so do files converted
from it: the model then reads Chinese in pieces that it did not learn. In a vocabulary of
byte-level BPE every word of more than one byte is made by a merge. Words of ASCII are left out,
because a synthetic vocabulary is filled with them.
"""

from dataclasses import dataclass

from minicpmo_ros.families import DEFAULT, FAMILIES
from minicpmo_ros.ggml.gguf_file import Header, StringArray

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types

UNKNOWN_ID = 128244  # of '<unk>', the placeholder that embeddings replace

# Merges rank in this order, so words with their space come before those without.
WORDS = (
    'Ġa',
    'Ġthe',
    'Ġyou',
    'Ġsee',
    'Ġhear',
    'Ġis',
    'Ġin',
    'Ġon',
    'Ġred',
    'Ġblue',
    'the',
    'and',
    'what',
    'you',
    'see',
    'hear',
    'is',
    'in',
    'on',
    'red',
    'blue',
    'one',
    'two',
)
SHOWN = 3


@dataclass(frozen=True)
class TokenTable:
    """What `tokenizer.ggml` stores: texts, types and merges, and the ids by text."""

    texts: list
    types: list
    merges: list
    warnings: tuple = ()  # sentences about the files they came from

    def id_of(self, text: str) -> int:
        """Return the id of a token that is in the table."""
        return self.texts.index(text)


def byte_alphabet() -> list:
    """Return the 256 printable characters GPT-2's byte-level BPE writes bytes with, by byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def make_tokens(count: int, family: str = DEFAULT.name) -> TokenTable:
    """Build a vocabulary of `count` tokens for Qwen's byte-level BPE."""
    special, words = FAMILIES[family].special_tokens, FAMILIES[family].word_tokens
    texts, merges = byte_alphabet(), []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in texts:
                merges.append(f'{word[: end - 1]} {word[end - 1]}')
                texts.append(word[:end])
    n_filling = count - len(texts) - 1 - len(special)
    if n_filling < 0:
        raise ValueError(
            f'a vocabulary of {count} is too small, at least {count - n_filling} are needed'
        )
    texts += [f'Ġw{i}' for i in range(n_filling)]
    types = [NORMAL] * len(texts)
    unknown = min(UNKNOWN_ID, len(texts))
    texts.insert(unknown, '<unk>')
    types.insert(unknown, CONTROL)
    texts += special
    types += [USER_DEFINED if text in words else CONTROL for text in special]
    return TokenTable(texts, types, merges)


def unmade_words(texts: list, types, merges) -> list:
    """Return the normal tokens that hold a character beyond ASCII and that no merge makes."""
    made = {merge.replace(' ', '') for merge in merges}
    missing = [
        text
        for text, kind in zip(texts, types)
        if kind == NORMAL and len(text) > 1 and text not in made
    ]
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    spelled = [bytes(byte_of.get(c, 0) for c in text) for text in missing]
    return [word.decode('utf-8', 'replace') for word in spelled if not word.isascii()]


def unmade_words_problem(words: list) -> str:
    """Return a sentence that names words which cannot be read; '' for none."""
    if not words:
        return ''
    shown = sorted(words, key=lambda word: '\ufffd' in word)[:SHOWN]  # whole characters first
    return (
        f'its merges do not make {len(words)} words of its vocabulary, such as '
        f'{", ".join(map(repr, shown))}: text with them is read in tokens that the model did not '
        'learn. Convert it again from a checkpoint with tokenizer.json'
    )


def vocabulary_warnings(header: Header) -> list:
    """Return sentences about the vocabulary of a language model; takes about half a second."""
    words = unmade_words(
        [text.decode('utf-8', 'replace') for text in _texts(header, 'tokens')],
        header.metadata['tokenizer.ggml.token_type'],
        [text.decode('utf-8', 'replace') for text in _texts(header, 'merges')],
    )
    return [f'{header.path}: {unmade_words_problem(words)}'] if words else []


def _texts(header: Header, name: str):
    return header.require(f'tokenizer.ggml.{name}', StringArray).raw()
