# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a text answers a question.

`text`: the text is one of the accepted ones, but for case, spaces, quotes and full stop. `letter`:
StreamingBench's official rule, the first character is the right letter and nothing else counts.
`tolerant`, beside it: the letter or the option's text wherever an answer of a few words has it.
"""

import re

LETTERS = 'ABCD'
# 'B', '(B)', 'B.', 'Option B', 'The best option is: **B**', 'The answer is B) Blue'
LED = re.compile(
    r'^\W*(?:the\s+)?(?:best\s+|correct\s+|right\s+)?(?:option|answer|choice)?'
    r'(?:\s+is)?\W*\(?([A-D])(?![A-Za-z])',
    re.IGNORECASE,
)
ALONE = re.compile(r'(?<![A-Za-z])([A-D])(?![A-Za-z\'])')


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
    """Find the letter that an answer means, '' where it names none or several."""
    led = LED.match(text)
    # 'A circle is shown' begins with an article: an upper-case letter and a word after it.
    if led and not (led[1] in 'Aa' and re.match(r'\s+[a-z]', text[led.end() :])):
        return led[1].upper()
    named = {
        letter
        for letter, option in zip(LETTERS, options)
        if without_letter(option) and _holds(normal(text), normal(without_letter(option)))
    }
    if len(named) == 1:
        return named.pop()
    alone = {letter for letter in ALONE.findall(text) if letter != 'A' or 'A ' not in text}
    return alone.pop() if len(alone) == 1 else ''


def without_letter(option: str) -> str:
    """Give an option without its 'B. '."""
    return re.sub(r'^\s*[A-H][.):]\s*', '', option)


def _holds(text: str, words: str) -> bool:
    return re.search(rf'(?<!\w){re.escape(words)}(?!\w)', text) is not None
