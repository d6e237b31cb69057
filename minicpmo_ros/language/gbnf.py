# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a GBNF text must be before llama.cpp may parse it.

Its parser recurses and its stacks multiply: a text of a few lines can take minutes or all memory.
Counted here, with each count bounded: bytes, nested parentheses, and the ways a sentence can
begin, which is what the parser spells out at once. Whether the text is valid, it says itself.
"""

import re

from minicpmo_ros.errors import InputError
from minicpmo_ros.language.vocabulary import well_formed

MAX_BYTES = 16384
MAX_NESTING = 32
MAX_BEGINNINGS = 300
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*) | (?P<text>"(?:\\.|[^"\\])*") |
    (?P<terminal>\[(?:\\.|[^\]\\])*\]|\.) | (?P<repeat>[*+?]|\{[^}]*\}) |
    (?P<rule>[A-Za-z0-9-]+\s*::=) | (?P<name>[A-Za-z0-9-]+) | (?P<mark>[()|]) | (?P<other>.)""",
    re.X | re.S,
)


def check_gbnf(text: str) -> None:
    """Raise InputError for a grammar that is not to be tried."""
    n_bytes = len(text.encode('utf-8', 'replace'))
    if not text.strip() or n_bytes > MAX_BYTES:
        raise InputError(f'The grammar has {n_bytes} bytes, 1 to {MAX_BYTES} are allowed.')
    if '\0' in text or text != well_formed(text):
        raise InputError('The grammar holds a zero character or half of a surrogate pair.')
    tokens = [
        (match.lastgroup, match[0]) for match in _TOKEN.finditer(text) if match.lastgroup != 'skip'
    ]
    for kind, token in tokens:
        if kind == 'other':
            raise InputError(
                f'The grammar holds {token!r} where GBNF has no such mark; tokens '
                '(<...>) are not allowed.'
            )
    rules = _rules(tokens)
    try:
        n = _Beginnings(rules).of_rule('root')[0]
    except RecursionError:
        raise InputError(
            'The rules of the grammar refer to each other too deeply, or a rule '
            'begins with itself.'
        ) from None
    if n > MAX_BEGINNINGS:
        raise InputError(
            f'A sentence of the grammar can begin in {n} ways, at most '
            f'{MAX_BEGINNINGS} are followed. Make it less ambiguous.'
        )


def _rules(tokens: list) -> dict:
    """Parse to rule name -> alternatives; an alternative is a list of [item, repeat] pairs.

    An item is a text '"..."', a rule's name, None for a character, or a list of alternatives.
    """
    rules, open_groups = {}, []
    for kind, token in tokens:
        if kind == 'rule':
            open_groups = [[[]]]  # innermost last; each a list of alternatives
            rules[token[:-3].strip()] = open_groups[0]
        elif not open_groups:
            raise InputError(f'The grammar does not begin with a rule but with {token!r}.')
        elif kind == 'repeat' and open_groups[-1][-1]:
            open_groups[-1][-1][-1][1] = token
        elif token == '(' and kind == 'mark':
            if len(open_groups) > MAX_NESTING:
                raise InputError(f'The grammar nests more than {MAX_NESTING} parentheses.')
            group = [[]]
            open_groups[-1][-1].append([group, ''])
            open_groups.append(group)
        elif token == ')' and kind == 'mark':
            if len(open_groups) == 1:
                raise InputError('The grammar closes a parenthesis that was never opened.')
            open_groups.pop()
        elif token == '|' and kind == 'mark':
            open_groups[-1].append([])
        else:
            open_groups[-1][-1].append([None if kind == 'terminal' else token, ''])
    return rules


class _Beginnings:
    """Counts (ways to begin, whether it can be empty); RecursionError for a rule in itself."""

    def __init__(self, rules: dict):
        self._rules, self._counted = rules, {}

    def of_rule(self, name: str) -> tuple:
        if name not in self._counted:
            self._counted[name] = self._of_alternatives(self._rules.get(name, []))
        return self._counted[name]

    def _of_alternatives(self, alternatives: list) -> tuple:
        counts = [self._of_sequence(sequence) for sequence in alternatives]
        return sum(n for n, _ in counts), any(empty for _, empty in counts)

    def _of_sequence(self, sequence: list) -> tuple:
        total = 0
        for item, repeat in sequence:
            n, empty = self._of_item(item)
            times = [int(number) for number in re.findall('[0-9]+', repeat)]
            total += n * (max(times, default=1) if empty else 1)
            if not (empty or repeat in ('*', '?') or times[:1] == [0]):
                return total, False
        return total + 1, True

    def _of_item(self, item) -> tuple:
        if item is None:
            return 1, False
        if isinstance(item, list):
            return self._of_alternatives(item)
        if item.startswith('"'):
            return 1, item == '""'
        return self.of_rule(item)
