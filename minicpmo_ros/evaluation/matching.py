# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a text answers a question.

`text`: the text is one of the accepted ones, but for case, spaces, quotes and full stop, those of
any script, and for how Unicode composes its characters. `letter`:
StreamingBench's official rule, the first character is the right letter and nothing else counts.
`tolerant`, beside it: also the letter or the option's text wherever an answer of a few words has
it, in any language. What is right by the official rule is right by the tolerant one. Of a question
with a JSON schema, texts are compared as data.
"""

import json
import re
from decimal import Decimal
from unicodedata import normalize

LETTERS = 'ABCD'
QUOTES, STOPS = '"\'“”„‘‚«»‹›「」『』', '.!?,¡¿。、।۔؟،'  # around an answer they do not count
LONGEST_SMALL = 200  # characters of an answer in which a small letter is looked for
LOOK_BACK = 60  # characters before a letter that can lead or deny it
# Characters that make a word together with a letter beside them. Scripts without spaces, and those
# with other letters, do not: the B of "选B", of "Bです" and of "الB" stands alone.
BOUND = r'0-9A-Za-z\u00c0-\u024f\u0370-\u052f'
LED = (
    r'(?:option|answer|choice|respuesta|réponse|antwort|risposta|resposta|ответ|вариант'
    r'|答案|选项?|选择|選項?|選擇|正解|解答|答え|정답|답)'
    r'(?:\s*(?:is|es|est|ist|è|é|是|为|為|应为|應為|は|은|이))?\W*'
)
ALONE = re.compile(rf"(?<![{BOUND}])([A-D])(?![{BOUND}]|['’]|-\w)")
# An A before a word is an article, but for 'option A', 'the answer is A' and 'A is right'.
ARTICLE = re.compile(r'A\s+(?!(?:is|because|since|as|and|or)\b)[a-z]')
# In lower case a letter stands for itself alone: 'b', '(b) blue', 'the answer is b.'
SMALL = re.compile(
    rf'^\W*(?:\w*\s*(?:the\s+)?(?:(?:best|correct|right)\s+)?{LED})?([a-d])(?:\W*$|[).:]\s)',
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:\bnot|n['’]t(?:\s+be)?|不是|不选|不選|不会是|并非|並非|排除|不能选)\s*(?:option\s*)?\W?$",
    re.IGNORECASE,
)


def normal(text: str) -> str:
    """What of a text is compared: not its case, its outer spaces, quotes and full stop."""
    words = ' '.join(_composed(text).casefold().split())
    return words.strip(f'{QUOTES}{STOPS} ') or words


def _composed(text: str) -> str:
    """Return the text with one form for an accent, a full-width character and an apostrophe."""
    return normalize('NFKC', text).replace('’', "'")


def is_text(accepted, text: str) -> bool:
    """Return whether a text is one of the accepted ones."""
    return normal(text) in {normal(answer) for answer in accepted}


def is_data(accepted, text: str) -> bool:
    """Return whether a text is JSON and says the same as one of the accepted ones."""
    try:
        found = _data(text)
    except (ValueError, RecursionError):
        return False  # it was cut
    return any(_data(answer) == found for answer in accepted)


def _data(text: str):
    """Return the value of a JSON text; numbers are no truth values, as they are to Python."""
    return json.loads(text, parse_int=_number, parse_float=_number)


def _number(text: str) -> tuple:
    return 'number', Decimal(text)


def is_letter(letter: str, text: str) -> bool:
    """Return whether the first character is the letter; an empty text is wrong."""
    return text[:1] == letter


def is_letter_tolerantly(letter: str, text: str, options=()) -> bool:
    """Return whether an answer means the letter, by the official or by the tolerant reading."""
    return is_letter(letter, text) or extract_letter(text, options) == letter


def extract_letter(text: str, options=()) -> str:
    """Find the letter that an answer means, '' where it names none or several.

    Letters come first, and where there are none the options' texts.
    """
    text = _composed(text)  # letters of full width are letters
    places = _option_places(text, options)
    # An option's text may hold a letter: 'Vitamin C'.
    inside = {at for found in places.values() for place in found for at in place}
    found = {
        match[1]
        for match in ALONE.finditer(text)
        if match.start() not in inside and not _is_other(text, match.start())
    }
    if not found and (small := SMALL.match(text.strip()[:LONGEST_SMALL])):
        found = {small[1].upper()}
    found = found or {letter for letter, ranges in places.items() if ranges}
    return found.pop() if len(found) == 1 else ''


def _is_other(text: str, at: int) -> bool:
    """Return whether the letter there is an article, or one that an answer denies."""
    before = text[max(0, at - LOOK_BACK) : at]
    is_article = ARTICLE.match(text, at) and not re.search(f'{LED}$', before, re.IGNORECASE)
    return bool(is_article or DENIED.search(before))


def _option_places(text: str, options) -> dict:
    """Return {letter: ranges of the text that hold its option}.

    Of two options of which one lies within the other, the longer one counts.
    """
    places = {}
    for letter, option in zip(LETTERS, options):
        own = re.match(r'\s*([A-D])[.):]', option)  # where lines were split, not its place
        words = _composed(without_letter(option))
        places.setdefault(own[1] if own else letter, []).extend(_places(text, words))
    ranges = [place for found in places.values() for place in found]

    def is_part(place: range) -> bool:
        return any(len(place) < len(r) and r[0] <= place[0] and place[-1] <= r[-1] for r in ranges)

    return {letter: [p for p in found if not is_part(p)] for letter, found in places.items()}


def _places(text: str, words: str) -> list:
    """Return where a text has some words, as ranges; a letter of LETTERS is not words."""
    words = normal(words)
    if words.upper() in ('', *LETTERS):
        return []
    pattern = re.escape(words).replace(r'\ ', r'\s+')
    before = rf'(?<![{BOUND}])' if re.match(rf'[{BOUND}]', words) else ''
    behind = rf'(?![{BOUND}])' if re.search(rf'[{BOUND}]$', words) else ''
    found = re.finditer(before + pattern + behind, text, re.IGNORECASE)
    return [range(*match.span()) for match in found]


def without_letter(option: str) -> str:
    """Return an option without its 'B. '."""
    return re.sub(r'^\s*[A-H][.):]\s*', '', option)
