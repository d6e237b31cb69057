# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Following a text byte by byte: may it still become a sentence of the rules, is it one already?

Earley's algorithm (1970), with the empty rules of Aycock and Horspool (2002): any rules are
followed, and however many ways there are to read a text, they take no more than its length squared
in memory. All work is counted, so that a bound holds on every machine alike.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.gbnf import Rules

MAX_WORK = 1_000_000  # items looked at for one token: about a second


@dataclass(eq=False, slots=True)
class _Column:
    """All that can be under way after some characters; never changed once made.

    An item is a place in a rule and the column where the rule began.
    """

    terminals: list = field(default_factory=list)  # (ranges, place, origin)
    waiting: dict = field(default_factory=dict)  # rule that must end: items that wait for it
    is_sentence: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A text that has been followed: whole characters, and perhaps a part of one more."""

    column: _Column
    value: int = 0  # bits of the character that is under way
    missing: int = 0  # its bytes that have not come
    least: int = 0  # smaller code points are written shorter


class Sentences:
    """The sentences of some rules."""

    def __init__(self, rules: Rules):
        self._symbols, self._rule_of, self._places = [], {}, []
        for number, alternatives in enumerate(rules.alternatives):
            self._places.append([])
            for symbols in alternatives:
                self._places[-1].append(len(self._symbols))
                self._symbols += [*symbols, None]
                self._rule_of[len(self._symbols) - 1] = number
        self._empty = _empty_rules(rules.alternatives)
        self._root = rules.root
        self.allow_work(MAX_WORK)
        self._first = self._close([(place, None) for place in self._places[self._root]])

    def allow_work(self, n_items: int) -> None:
        """Let the next calls look at so many items together; then they raise InputError."""
        self._work_left = n_items

    def start(self) -> Progress:
        """Return the progress of an empty text."""
        return Progress(self._first)

    def is_sentence(self, progress: Progress) -> bool:
        """Tell whether the text can end here."""
        return not progress.missing and progress.column.is_sentence

    def can_go_on(self, progress: Progress) -> bool:
        """Tell whether the text can be longer."""
        return bool(progress.missing or progress.column.terminals)

    def step(self, progress: Progress, byte: int) -> Progress | None:
        """Return the progress with one byte of UTF-8 more; None: no sentence goes on so."""
        if progress.missing:
            if not 0x80 <= byte < 0xC0:
                return None
            value, missing = progress.value << 6 | byte & 0x3F, progress.missing - 1
            least = progress.least
        elif byte < 0x80:
            value, missing, least = byte, 0, 0
        elif 0xC2 <= byte < 0xE0:
            value, missing, least = byte & 0x1F, 1, 0x80
        elif 0xE0 <= byte < 0xF0:
            value, missing, least = byte & 0x0F, 2, 0x800
        elif 0xF0 <= byte < 0xF5:
            value, missing, least = byte & 0x07, 3, 0x10000
        else:
            return None
        low = max(value << 6 * missing, least)
        high = (value + 1 << 6 * missing) - 1
        if low > high or 0xD800 <= low <= high <= 0xDFFF:  # halves of surrogate pairs
            return None
        items = [
            (place + 1, origin)
            for ranges, place, origin in progress.column.terminals
            if any(first <= high and low <= last for first, last in ranges)
        ]
        self._spend(len(progress.column.terminals))
        if not items:
            return None
        if missing:
            return Progress(progress.column, value, missing, least)
        return Progress(self._close(items))

    def _close(self, items: list) -> _Column:
        """Return the column of items and of all that follows from them without a character."""
        column, seen = _Column(), set()
        while items:
            item = items.pop()
            if item in seen:
                continue
            seen.add(item)
            self._spend(1)
            place, origin = item
            symbol = self._symbols[place]
            if symbol is None:
                self._complete(self._rule_of[place], origin, column, items)
            elif isinstance(symbol, int):
                if symbol not in column.waiting:
                    column.waiting[symbol] = []
                    items += [(first, column) for first in self._places[symbol]]
                column.waiting[symbol].append(item)
                if symbol in self._empty:
                    items.append((place + 1, origin))
            else:
                column.terminals.append((symbol, place, origin))
        return column

    def _complete(self, rule: int, origin: _Column | None, column: _Column, items: list) -> None:
        """Go on behind a rule that has ended, wherever it was waited for."""
        if origin is None:  # the very beginning, where the root is waited for by nobody
            column.is_sentence |= rule == self._root
        elif origin is not column:  # else it was empty, and those who wait went on already
            waiting = origin.waiting[rule]
            self._spend(len(waiting))
            items += [(place + 1, start) for place, start in waiting]

    def _spend(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise InputError(
                'The grammar is too ambiguous to be followed. Let each text be reached in one way.'
            )


def _empty_rules(alternatives: list) -> set:
    """Return the rules that an empty text fits."""
    empty, found, uses = set(), [], defaultdict(list)
    for rule, choices in enumerate(alternatives):
        for symbols in choices:
            if all(type(symbol) is int for symbol in symbols):
                waiting = [len(symbols), rule]  # symbols not known to be empty, and whose
                for symbol in symbols:
                    uses[symbol].append(waiting)
                if not symbols:
                    found.append(rule)
    while found:
        rule = found.pop()
        if rule in empty:
            continue
        empty.add(rule)
        for waiting in uses[rule]:
            waiting[0] -= 1
            if not waiting[0]:
                found.append(waiting[1])
    return empty
