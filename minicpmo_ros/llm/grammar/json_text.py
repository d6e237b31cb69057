# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Pieces of JSON in GBNF: strings, keys, numbers within a range, and texts of a pattern.

Each string has one form: what JSON lets stand as it is stands so, line ends, tabs, quotes and
backslashes are escaped by one character, and there are no other control characters.
"""

import json
import math
import re
from decimal import Decimal

from minicpmo_ros.llm.grammar.gbnf import LAST_CHARACTER, MAX_REPEATS

try:
    from re import _parser as regex  # Python 3.11 and later
except ImportError:
    import sre_parse as regex

ESCAPES = {'"': '"', '\\': '\\', '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't'}
DIGITS = 15  # on either side of the point: what a double holds
LINE_ENDS = (10, 13, 0x2028, 0x2029)
CATEGORIES = {
    'CATEGORY_DIGIT': ((48, 57),),
    'CATEGORY_WORD': ((48, 57), (65, 90), (95, 95), (97, 122)),
    'CATEGORY_SPACE': ((9, 10), (12, 13), (32, 32)),
}
BEYOND_ASCII = (0x80, LAST_CHARACTER)  # dialects differ there, so \d has none of it, nor has \D
_YEARS, _MONTH, _DAY = '[1-9][0-9]{3}', '(0[1-9]|1[0-2])', '(0[1-9]|1[0-9]|2[0-8])'
_DATE = f'({_YEARS}-({_MONTH}-{_DAY}|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31))'
_TIME = (
    '([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])'
)
_BYTE = '(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'
FORMATS = {
    'date': f'^{_DATE}$',
    'time': f'^{_TIME}$',
    'date-time': f'^{_DATE}T{_TIME}$',
    'uuid': '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$',
    'ipv4': f'^{_BYTE}(\\.{_BYTE}){{3}}$',
    'email': '^[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\\.[a-z0-9]+(-[a-z0-9]+)*)+$',
}


def loaded(text: str):
    """Return the value of a JSON text, with decimals as they are given; ValueError."""
    return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)


def _no_constant(name: str):
    raise ValueError(f'{name} is no number')


def dumped(value) -> str:
    """Return the JSON of a value, with decimals as they were given."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return f'[{", ".join(map(dumped, value))}]'
    if isinstance(value, dict):
        return f'{{{", ".join(f"{dumped(key)}: {dumped(item)}" for key, item in value.items())}}}'
    return json.dumps(value, ensure_ascii=False)


def shown(value) -> str:
    """Return the beginning of the JSON of a value, for a message."""
    return dumped(value)[:60]


def is_short(number: int | Decimal) -> bool:
    """Return whether a number has at most 30 digits on either side of the point."""
    digits = Decimal(number)
    return digits.adjusted() <= 30 and digits.as_tuple().exponent >= -30


def literal(text: str) -> str:
    """Return a text in quotes, as GBNF has it."""
    return '"' + ''.join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\' or not character.isprintable():
        return f'\\U{ord(character):08X}'
    return character


def _class(ranges) -> str:
    return '[' + ''.join(f'\\U{first:08X}-\\U{last:08X}' for first, last in ranges) + ']'


def characters(ranges) -> str:
    """Return one character of a string in JSON, of ranges of code points; '' for none."""
    special = sorted(map(ord, ESCAPES))
    plain = _without(ranges, [(0, 31), *((point, point) for point in special)])
    escaped = ''.join(
        f'\\U{ord(ESCAPES[chr(point)]):08X}'
        for point in special
        if any(first <= point <= last for first, last in ranges)
    )
    written = [_class(plain)] if plain else []
    if escaped:
        written.append(f'"\\\\" [{escaped}]')
    return f'({" | ".join(written)})' if written else ''


def _without(ranges, taken) -> list:
    """Return ranges without others."""
    left = sorted(ranges)
    for low, high in taken:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return sorted(set(left))


EVERY = ((0, LAST_CHARACTER),)
CHARACTER = characters(EVERY)


def other_keys(names, character: str, add) -> str:
    """Return all strings but some names, by rules that `add` names; `character`: of a string."""
    tree = {}
    for name in names:
        node = tree
        for letter in name:
            node = node.setdefault(letter, {})
        node[''] = {}

    def rule(node: dict) -> str:
        letters = [letter for letter in node if letter]
        others = characters(_without(EVERY, [(ord(letter), ord(letter)) for letter in letters]))
        written = [] if '' in node else ['""']
        written.append(f'{others} {character}*')
        for letter in letters:
            encoded = json.dumps(letter, ensure_ascii=False)[1:-1]
            written.append(f'{literal(encoded)} {add(rule(node[letter]))}')
        return ' | '.join(written)

    return add(rule(tree))


def integers(low: int | None, high: int | None) -> str:
    """Return the integers of a range, '' for none; an open end has at most 15 digits."""
    low = min(1 - 10**DIGITS, 0 if high is None else high) if low is None else low
    high = max(10**DIGITS - 1, low) if high is None else high
    written = []
    if low <= high and high >= 0:
        written += _of_lengths(max(low, 0), high)
    if low <= high and low < 0:
        written += [f'"-" {part}' for part in _of_lengths(max(1, -high), -low)]
    return ' | '.join(written)


def numbers(low, high, low_open: bool, high_open: bool) -> str:
    """Return the numbers of a range, '' for none, written without exponent."""
    if low is None and high is None:
        whole = f'("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})'
        return f'"-"? {whole} ("." [0-9]{{1,{DIGITS}}})?'
    low, high = (None if bound is None else Decimal(bound) for bound in (low, high))
    written = []
    if high is None or high > 0 or (high == 0 and not high_open):
        above = low is None or low < 0
        written += _magnitudes(
            Decimal(0) if above else low, high, low_open and not above, high_open
        )
    if low is None or low < 0:
        above = high is None or high >= 0
        parts = _magnitudes(
            Decimal(0) if above else -high,
            None if low is None else -low,
            above or high_open,
            low_open,
        )
        written += [f'"-" {part}' for part in parts]
    return ' | '.join(written)


def _magnitudes(low: Decimal, high: Decimal | None, low_open: bool, high_open: bool) -> list:
    """Return the alternatives of numbers that are not negative."""
    high = Decimal(10**DIGITS) if high is None else high
    n = max(2, *(-bound.as_tuple().exponent for bound in (low, high)))  # digits of a part of one
    unit = Decimal(10) ** -n
    low = low + unit if low_open else low
    high = high - unit if high_open else high
    if low > high:
        return []
    written = []
    first, last = math.ceil(low), math.floor(high)
    if first <= last:
        written += _of_lengths(first, last)
    if first < last:
        fraction = f'"." [0-9]{{1,{DIGITS}}}'
        written += [f'({part}) {fraction}' for part in _of_lengths(first, last - 1)]
    parts = {math.floor(low): [low, min(high, math.floor(low) + 1 - unit)]} if low < first else {}
    if last >= first or not parts:
        parts[last] = [Decimal(last), high]
    for whole, (begin, end) in parts.items():
        digits = [f'{int((bound - whole) / unit):0{n}}' for bound in (begin, end)]
        written.append(f'"{whole}." ({_digits(*digits)})')
    return written


def _of_lengths(low: int, high: int) -> list:
    """Return the alternatives of integers that are not negative."""
    return [
        _digits(str(max(low, 10 ** (n - 1) if n > 1 else 0)), str(min(high, 10**n - 1)))
        for n in range(len(str(low)), len(str(high)) + 1)
    ]


def _digits(low: str, high: str) -> str:
    """Return the texts of as many digits that lie between two."""
    if not low:
        return ''
    n = len(low) - 1
    rest = f' [0-9]{{{n}}}' if n else ''
    if low[1:] == '0' * n and high[1:] == '9' * n:
        return f'[{low[0]}-{high[0]}]{rest}'
    if low[0] == high[0]:
        return f'"{low[0]}" ({_digits(low[1:], high[1:])})'
    written = [f'"{low[0]}" ({_digits(low[1:], "9" * n)})']
    if int(high[0]) - int(low[0]) > 1:
        written.append(f'[{int(low[0]) + 1}-{int(high[0]) - 1}]{rest}')
    written.append(f'"{high[0]}" ({_digits("0" * n, high[1:])})')
    return f'({" | ".join(written)})'


def pattern(source: str) -> str:
    """Return the texts in which a regular expression is found; ValueError for what is not one."""
    if not isinstance(source, str):
        raise ValueError('a text is expected')
    try:
        parsed = regex.parse(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f'{source!r} is no regular expression: {error}') from error
    if parsed.state.flags & ~re.UNICODE:
        raise ValueError('flags are not enforced')
    return ' | '.join(_anchored(items) for items in _unfolded(list(parsed)))


def _unfolded(items: list) -> list:
    """Return the alternatives of a pattern that ends with some: anchors may be in each."""
    if items and str(items[-1][0]) == 'BRANCH':
        return [found for part in items[-1][1][1] for found in _unfolded([*items[:-1], *part])]
    return [items]


def _anchored(items: list) -> str:
    begins = bool(items) and [str(name) for name in items[0]] == ['AT', 'AT_BEGINNING']
    items = items[begins:]
    ends = bool(items) and [str(name) for name in items[-1]] == ['AT', 'AT_END']
    items = items[: len(items) - ends]
    any_text = f'{CHARACTER}*'
    return (
        ' '.join(
            filter(None, ('' if begins else any_text, _sequence(items), '' if ends else any_text))
        )
        or '""'
    )


def _sequence(items) -> str:
    return ' '.join(_part(str(name), value) for name, value in items) or '""'


def _part(name: str, value) -> str:
    if name == 'LITERAL':
        return literal(json.dumps(chr(value), ensure_ascii=False)[1:-1])
    if name in ('NOT_LITERAL', 'ANY', 'IN'):
        written = characters(_ranges(name, value))
        if not written:
            raise ValueError('it has a class without characters that may stand in an answer')
        return written
    if name == 'BRANCH':
        return f'({" | ".join(map(_sequence, value[1]))})'
    if name == 'SUBPATTERN' and not value[1] and not value[2]:
        return f'({_sequence(value[3])})'
    if name in ('MAX_REPEAT', 'MIN_REPEAT'):
        least, most, items = value
        most = None if most is regex.MAXREPEAT or most == regex.MAXREPEAT else most
        if max(least, most or 0) > MAX_REPEATS:
            raise ValueError(f'it repeats more than {MAX_REPEATS} times')
        return f'({_sequence(items)}){{{least},{"" if most is None else most}}}'
    told = {'AT': 'an anchor within it', 'GROUPREF': 'a reference to a group'}.get(name, name)
    raise ValueError(f'{told} is not enforced')


def _ranges(name: str, value) -> list:
    """Return the code points that a class of a pattern holds, as ranges."""
    if name == 'ANY':
        return _without(EVERY, [(point, point) for point in LINE_ENDS])
    if name == 'NOT_LITERAL':
        return _without(EVERY, [(value, value)])
    is_negated = str(value[0][0]) == 'NEGATE'
    found = []
    for kind, item in value[is_negated:]:
        if str(kind) == 'LITERAL':
            found.append((item, item))
        elif str(kind) == 'RANGE':
            found.append(tuple(item))
        else:
            found += _category(str(item), is_negated)
    return _without(EVERY, found) if is_negated else found


def _category(name: str, is_negated: bool) -> list:
    """Return what a category such as \\d adds to a class; more where the class is negated."""
    ranges = CATEGORIES[name.replace('_NOT_', '_')]
    is_opposite = name not in CATEGORIES
    if is_opposite:
        ranges = _without(EVERY, [*ranges, *(() if is_negated else (BEYOND_ASCII,))])
    return [*ranges, *((BEYOND_ASCII,) if is_negated and not is_opposite else ())]
