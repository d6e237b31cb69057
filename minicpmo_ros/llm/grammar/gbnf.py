# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""GBNF, llama.cpp's notation for grammars, read into plain rules.

    root ::= "yes" | "no, " reason    # texts, alternatives, other rules
    reason ::= [a-z ]{1,40} "."       # characters, repetitions * + ? {m} {m,} {m,n}, groups ( )

As llama.cpp reads it: a rule ends with its line unless a parenthesis is open or '|' or '::=' came
last. Beyond it: a rule may begin with itself, and an empty text may repeat. Not taken: tokens
(<...>), which would let an answer hold what no person should read, a second definition of a rule,
and ranges that run backwards. Whatever is wrong is said with
its line; sizes are bounded, so that reading takes milliseconds.
"""

from collections import defaultdict
from dataclasses import dataclass
from string import ascii_letters, digits, hexdigits

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.vocabulary import well_formed

MAX_BYTES = 1 << 17
MAX_NESTING = 4096
MAX_REPEATS = 2000
MAX_SYMBOLS = 100_000  # of all rules together, with every repetition written out
LAST_CHARACTER = 0x10FFFF
ANY = ((0, LAST_CHARACTER),)
WORD = frozenset(ascii_letters + digits + '-')
PLAIN_ESCAPES = {'t': '\t', 'r': '\r', 'n': '\n', **{c: c for c in '\\"[]-'}}
HEX_ESCAPES = {'x': 2, 'u': 4, 'U': 8}  # digits


@dataclass(frozen=True)
class Rules:
    """Alternatives by number of the rule; each is a tuple of symbols.

    A symbol is the number of a rule, or the characters that may stand there as ranges of code
    points ((first, last), ...).
    """

    alternatives: list
    root: int


def read_gbnf(text: str) -> Rules:
    """Read a grammar, whose sentences are those of its rule `root`; InputError if it is wrong."""
    n_bytes = len(text.encode('utf-8', 'replace'))
    if not text.strip() or n_bytes > MAX_BYTES:
        raise InputError(f'The grammar has {n_bytes} bytes, 1 to {MAX_BYTES} are allowed.')
    if '\0' in text or text != well_formed(text):
        raise InputError('The grammar holds a zero character or half of a surrogate pair.')
    return _Reader(text).read()


class _Reader:
    """A cursor over the text, and the rules it has passed."""

    def __init__(self, text: str):
        self._text, self._at = text, 0
        self._alternatives = []  # None: named, not defined yet
        self._numbers = {}  # by name
        self._first_use = {}  # where in the text, by name
        self._n_symbols = 0

    def read(self) -> Rules:
        self._skip(lines=True)
        while self._at < len(self._text):
            self._rule()
        for name, number in self._numbers.items():
            if self._alternatives[number] is None:
                raise self._wrong(f'the rule {name} is not defined', self._first_use[name])
        if 'root' not in self._numbers:
            raise InputError('The grammar has no rule `root`, where its sentences begin.')
        return Rules(self._alternatives, self._numbers['root'])

    def _rule(self) -> None:
        start = self._at
        name = self._word('the name of a rule')
        number = self._number_of(name, start)
        if self._alternatives[number] is not None:
            raise self._wrong(f'the rule {name} is defined twice', start)
        self._skip(lines=False)
        self._expect('::=')
        self._skip(lines=True)
        self._alternatives[number] = self._choice()
        if self._at < len(self._text) and self._text[self._at] not in '\r\n':
            raise self._wrong('the end of the line is expected')
        self._skip(lines=True)

    def _choice(self) -> list:
        """Read alternatives up to what is none of theirs; groups nest as deep as they like."""
        alternatives, items = [], []  # items are tuples of symbols
        groups = []  # that are open: alternatives and items around them
        while True:
            character = self._peek()
            if character and character in '|(':
                if character == '|':
                    alternatives.append(self._counted(items))
                else:
                    self._check_nesting(len(groups))
                    groups.append((alternatives, items))
                    alternatives = []
                items = []
                self._at += 1
                self._skip(lines=True)
                continue
            if character and character in '*+?{':
                if not items:
                    raise self._wrong(f'there is nothing before {character} to repeat')
                items.append(self._repeated(items.pop(), *self._bounds(bool(groups))))
            elif character and (character in '"[.' or character in WORD):
                items.append(self._item(character))
            elif character and character in '<!':
                raise self._wrong('tokens (<...>) are not allowed')
            elif groups:
                self._expect(')')
                alternatives.append(self._counted(items))
                is_plain = len(alternatives) == 1
                group = alternatives[0] if is_plain else (self._new_rule(alternatives),)
                alternatives, items = groups.pop()
                items.append(group)
            else:
                return [*alternatives, self._counted(items)]
            self._skip(lines=bool(groups))

    def _item(self, character: str) -> tuple:
        start = self._at
        if character in WORD:
            return (self._number_of(self._word('a rule'), start),)
        self._at += 1
        if character == '.':
            return (ANY,)
        if character == '"':
            return tuple(((point, point),) for point in self._characters_until('"'))
        return (self._class(),)

    def _check_nesting(self, n_open: int) -> None:
        if n_open == MAX_NESTING:
            raise self._wrong(f'more than {MAX_NESTING} parentheses are open')

    def _characters_until(self, end: str):
        while self._peek() != end:
            yield self._character()
        self._at += 1

    def _class(self) -> tuple:
        """Read characters in brackets: ranges of code points, sorted."""
        start, negated = self._at, self._peek() == '^'
        self._at += negated
        ranges = []
        while self._peek() != ']':
            first = last = self._character()
            if self._peek() == '-' and self._text[self._at + 1 : self._at + 2] != ']':
                self._at += 1
                last = self._character()
            if first > last:
                raise self._wrong('a range of characters runs backwards')
            ranges.append((first, last))
        self._at += 1
        ranges = tuple(sorted(ranges))
        if negated:
            ranges = _complement(ranges)
        if not ranges:
            raise self._wrong('brackets hold no character', start)
        return ranges

    def _character(self) -> int:
        """Read one character, perhaps escaped: its code point."""
        start, character = self._at, self._peek()
        if not character:
            raise self._wrong('the text ends within quotes or brackets')
        self._at += 1
        if character != '\\':
            return ord(character)
        kind = self._peek()
        self._at += 1
        if kind in PLAIN_ESCAPES:
            return ord(PLAIN_ESCAPES[kind])
        code = self._text[self._at : self._at + HEX_ESCAPES.get(kind, 0)]
        self._at += len(code)
        is_hex = len(code) == HEX_ESCAPES.get(kind) and set(code) <= set(hexdigits)
        point = int(code, 16) if is_hex else LAST_CHARACTER + 1
        if point > LAST_CHARACTER or 0xD800 <= point <= 0xDFFF:
            raise self._wrong(f'\\{kind}{code} is no character', start)
        return point

    def _bounds(self, lines: bool) -> tuple:
        """Read what says how often: (least, most); most None for without end.

        `lines`: it may go on in the next line, as everything in parentheses.
        """
        start, mark = self._at, self._peek()
        self._at += 1
        if mark != '{':
            return {'*': (0, None), '+': (1, None), '?': (0, 1)}[mark]
        least = most = self._integer(lines)
        if self._peek() == ',':
            self._at += 1
            self._skip(lines)
            most = None if self._peek() == '}' else self._integer(lines)
        self._expect('}')
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            shown = self._text[start : self._at]
            raise self._wrong(
                f'{shown} is not {{m,n}} with m at most n and both at most {MAX_REPEATS}', start
            )
        return least, most

    def _integer(self, lines: bool) -> int:
        self._skip(lines)
        start = self._at
        while self._peek() and self._peek() in digits:
            self._at += 1
        if not 1 <= self._at - start <= 9:
            raise self._wrong('a number is expected', start)
        number = int(self._text[start : self._at])
        self._skip(lines)
        return number

    def _repeated(self, item: tuple, least: int, most: int | None) -> tuple:
        """Write a repetition out in rules."""
        self._n_symbols += len(item) * max(least, most or 0)
        self._check_size()
        if most is None:
            rest = self._new_rule([()])
            self._alternatives[rest].append((*item, rest))  # a call at the end leaves no trace
            return (*item * least, rest)
        rest = ()
        for _ in range(most - least):
            rest = (self._new_rule([(), (*item, *rest)]),)
        return (*item * least, *rest)

    def _counted(self, items: list) -> tuple:
        symbols = tuple(symbol for item in items for symbol in item)
        self._n_symbols += len(symbols)
        self._check_size()
        return symbols

    def _check_size(self) -> None:
        if self._n_symbols > MAX_SYMBOLS:
            raise InputError(
                f'The grammar is too large: with repetitions written out, it has more than '
                f'{MAX_SYMBOLS} symbols. Repeat less.'
            )

    def _number_of(self, name: str, start: int) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new_rule(None)
            self._first_use[name] = start
        return self._numbers[name]

    def _new_rule(self, alternatives: list | None) -> int:
        self._alternatives.append(alternatives)
        return len(self._alternatives) - 1

    def _word(self, what: str) -> str:
        start = self._at
        while self._peek() and self._peek() in WORD:
            self._at += 1
        if self._at == start:
            raise self._wrong(f'{what} is expected')
        return self._text[start : self._at]

    def _expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self._at):
            raise self._wrong(f'{mark} is expected')
        self._at += len(mark)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, lines: bool) -> None:
        """Pass blanks and comments, and ends of lines where they mean nothing."""
        blanks = ' \t\r\n' if lines else ' \t'
        while (character := self._peek()) and (character in blanks or character == '#'):
            self._at += 1
            while character == '#' and self._peek() and self._peek() not in '\r\n':
                self._at += 1

    def _wrong(self, what: str, at: int | None = None) -> InputError:
        at = self._at if at is None else at
        line = self._text.count('\n', 0, at) + 1
        found = self._text[at : at + 20]
        behind = f' at {found!r}' if found else ' at its end'
        return InputError(f'The grammar is no valid GBNF: line {line}{behind}: {what}.')


def _complement(ranges: tuple) -> tuple:
    """Return the ranges between sorted ranges."""
    gaps, next_first = [], 0
    for first, last in ranges:
        if first > next_first:
            gaps.append((next_first, first - 1))
        next_first = max(next_first, last + 1)
    if next_first <= LAST_CHARACTER:
        gaps.append((next_first, LAST_CHARACTER))
    return tuple(gaps)


def is_rule(symbol) -> bool:
    """Return whether a symbol is a rule and not characters."""
    return type(symbol) is int


def rules_with_a_text(alternatives: list, empty: bool) -> set:
    """Return the rules that an empty text fits, or any text that ends."""
    found, todo, uses = set(), [], defaultdict(list)
    for rule, choices in enumerate(alternatives):
        for symbols in choices:
            called = list(filter(is_rule, symbols))
            if empty and len(called) < len(symbols):
                continue
            waiting = [len(called), rule]  # rules not known to have such a text, and whose
            for symbol in called:
                uses[symbol].append(waiting)
            if not called:
                todo.append(rule)
    while todo:
        rule = todo.pop()
        if rule in found:
            continue
        found.add(rule)
        for waiting in uses[rule]:
            waiting[0] -= 1
            if not waiting[0]:
                todo.append(waiting[1])
    return found
