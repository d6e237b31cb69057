# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a text answers a question.

`text`: the text is one of the accepted ones, but for case, spaces, quotes and full stop. `letter`:
StreamingBench's official rule, the first character is the right letter and nothing else counts.
`tolerant`, beside it: the letter or the option's text wherever an answer of a few words has it.
"""

import re

LETTERS = 'ABCD'
LED = r'(?:option|answer|choice)(?:\s+is)?\W*'
ALONE = re.compile(r"(?<![^\W_])([A-D])(?![^\W_]|['’]|-\w)")
# An A before a word is an article, but for 'option A', 'the answer is A' and 'A is right'.
ARTICLE = re.compile(r'A\s+(?!(?:is|because|since|as|and|or)\b)[a-z]')
# In lower case a letter stands for itself alone: 'b', '(b) blue', 'the answer is b.'
SMALL = re.compile(
    rf'^\W*(?:(?:the\s+)?(?:(?:best|correct|right)\s+)?{LED})?([a-d])(?:\W*$|[).:]\s)',
    re.IGNORECASE,
)


def normal(text: str) -> str:
    """What of a text is compared: not its case, its outer spaces, quotes and full stop."""
    return ' '.join(text.casefold().split()).strip('"\'.!?, ')


def is_text(accepted, text: str) -> bool:
    """Tell whether a text is one of the accepted ones."""
    return normal(text) in {normal(answer) for answer in accepted}


def is_letter(letter: str, text: str) -> bool:
    """Tell whether the first character is the letter; an empty text is wrong."""
    return text[:1] == letter


def extract_letter(text: str, options=()) -> str:
    """Find the letter that an answer means, '' where it names none or several.

    Letters come first, and where there are none the options' texts.
    """
    told = {
        letter: _places(text, without_letter(option)) for letter, option in zip(LETTERS, options)
    }
    # An option's text may hold a letter: 'Vitamin C'.
    inside = {at for places in told.values() for place in places for at in place}
    found = {
        match[1]
        for match in ALONE.finditer(text)
        if match.start() not in inside and not _is_article(text, match.start())
    }
    if not found and (small := SMALL.match(text)):
        found = {small[1].upper()}
    found = found or {letter for letter, places in told.items() if places}
    return found.pop() if len(found) == 1 else ''


def _is_article(text: str, at: int) -> bool:
    return bool(ARTICLE.match(text, at)) and not re.search(f'{LED}$', text[:at], re.IGNORECASE)


def _places(text: str, words: str) -> list:
    """Give where a text has some words, as ranges; a letter of LETTERS is not words."""
    words = normal(words)
    if words.upper() in ('', *LETTERS):
        return []
    pattern = rf'(?<!\w){re.escape(words)}(?!\w)'.replace(r'\ ', r'\s+')
    return [range(*match.span()) for match in re.finditer(pattern, text, re.IGNORECASE)]


def without_letter(option: str) -> str:
    """Give an option without its 'B. '."""
    return re.sub(r'^\s*[A-H][.):]\s*', '', option)
