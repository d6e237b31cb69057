# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Cuts text that comes in pieces into sentences, each as soon as its end is certain.

The sentences joined are the text, whitespace included, and how the text was cut into pieces has no
influence on them. A sentence ends behind . ! ?, or what other scripts have for them, and
whitespace, at once behind their Chinese forms, and at a line break; not behind an abbreviation
("Dr.", "p.m."), an initial or a digit ("3. "). So that the
first sound does not wait for the last word, the first piece of speech may end at a comma, or after
some words; so that it never waits for ever, no piece is longer than LONGEST characters.
"""

import re
import unicodedata

ABBREVIATIONS = frozenset(
    'dr mr mrs ms prof st sr jr vs no fig approx ca etc inc ltd min max dept est hr fr bzw'.split()
)
CLOSING = '"\')]}»”’」』）】'
LONGEST = 240  # characters, about 15 s of speech
MIN_WORDS = 3  # before a comma at which the first piece may end
_WORD = re.compile(r'[\u3040-\u30ff\u4e00-\u9fff]|[^\s\u3040-\u30ff\u4e00-\u9fff]+')
_END = re.compile(
    r'(?P<full>[.!?…؟۔।॥։።፧။។]+)'
    r'|(?P<wide>[。！？｡]+)'
    r'|(?P<line>\n+)'
    r'|(?P<comma>[,;:،؛])'
    r'|(?P<widecomma>[，；：、])'
    r'|(?P<space>[^\S\n]+)'
)
_JOINED = '\u200d'  # zero width joiner, of emoji
_SKINS = '\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff'  # behind an emoji
_DOTTED = re.compile(r'(?:[^\W\d_]\.)+[^\W\d_]')  # e.g, p.m, U.S
_LINK = re.compile(r'!?\[([^\[\]\n]*)\]\([^()\s]*\)')
# Of Markdown; a * or _ within a word or alone, and ** between digits, is none.
_MARKUP = re.compile(
    r'```\w*|`|~~|__+|(?<!\d)\*\*+|\*\*+(?!\d)|\[\[|\]\]'
    r'|^[^\S\n]*(?:#{1,6}|\*)(?=\s)|(?<![\w*_])[*_](?=[^\s*_])|(?<=[^\s*_])[*_](?![\w*_])',
    re.MULTILINE,
)


class SentenceCutter:
    """Takes one text, in pieces."""

    def __init__(self, first_words: int = 8):
        """first_words: the first piece may end at a comma or behind so many words; 0: it may not.

        One piece of text at a time; make a new cutter for each.
        """
        self._first_words, self._is_first, self._text = first_words, True, ''

    def push(self, text: str) -> list[str]:
        """Take more of the text; return the sentences whose end is certain by now."""
        self._text += text
        sentences = []
        while end := self._find_end():
            sentences.append(self._text[:end])
            # What holds no word is no speech yet, and the next piece is still the first.
            self._is_first = self._is_first and not is_speakable(sentences[-1])
            self._text = self._text[end:]
        return sentences

    def flush(self) -> list[str]:
        """Return what is left; the text is over."""
        rest, self._text, self._is_first = self._text, '', True
        return [rest] if rest else []

    def _find_end(self) -> int:
        """Return where the first sentence of the held text ends; 0: that is not certain yet."""
        for match in _END.finditer(self._text, 0, LONGEST):
            end = match.end()
            while end < len(self._text) and self._text[end] in CLOSING:
                end += 1
            if end >= min(len(self._text), LONGEST):
                break  # what follows may belong to it
            if self._ends(match, self._text[end]):
                return end
        return self._longest_end() if len(self._text) > LONGEST else 0

    def _ends(self, match: re.Match, following: str) -> bool:
        """Return whether a sentence ends at a match, by the character that follows."""
        before, kind = self._text[: match.start()], match.lastgroup
        if kind == 'full':
            return following.isspace() and not (match[0] == '.' and _is_short_form(before))
        if kind in ('wide', 'line'):
            return is_speakable(before)
        if not self._is_first or not self._first_words:
            return False
        words = len(_WORD.findall(before))
        if kind == 'space':
            return words >= self._first_words
        return words >= MIN_WORDS and (kind == 'widecomma' or following.isspace())

    def _longest_end(self) -> int:
        """Return where to cut a text without an end: behind its last space, or between letters."""
        space = max(self._text.rfind(' ', 0, LONGEST), self._text.rfind('\t', 0, LONGEST))
        if space > 0:
            return space + 1
        end = LONGEST
        while end > 1 and _is_inside(self._text, end):
            end -= 1
        return end if end > 1 else LONGEST  # all of it is one


def is_speakable(text: str) -> bool:
    """Return whether a text has a letter or a digit to say."""
    return any(character.isalnum() for character in text)


def spoken_form(text: str) -> str:
    """Return a text as it is said: without the marks of Markdown, which synthesisers spell."""
    return _MARKUP.sub('', _LINK.sub(r'\1', text))


def _is_inside(text: str, at: int) -> bool:
    """Return whether a cut there would part what is seen as one character."""
    is_mark = unicodedata.category(text[at]).startswith('M') or text[at] in _SKINS
    # Two of these letters are a flag.
    letters = re.search('[\U0001f1e6-\U0001f1ff]*$', text[:at]).group()
    is_flag = len(letters) % 2 == 1 and '\U0001f1e6' <= text[at] <= '\U0001f1ff'
    return is_mark or is_flag or _JOINED in text[at - 1 : at + 1]


def _is_short_form(before: str) -> bool:
    """Return whether what stands before a full stop makes it none: "Dr", "J", "3"."""
    word = before.rsplit(None, 1)[-1].lstrip('"\'([{«“‘') if before.strip() else ''
    if before[-1:].isspace() or not word:
        return False
    is_initial = len(word) == 1 and word.isupper() and word.isascii()
    is_short = is_initial or word.lower() in ABBREVIATIONS or bool(_DOTTED.fullmatch(word))
    return is_short or word[-1].isdigit()
