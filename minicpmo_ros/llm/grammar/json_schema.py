# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""JSON schemas written as grammars, so that every answer is JSON of the schema.

    write_gbnf('{"type": "object", "properties": {"cups": {"type": "integer", "minimum": 0}}}')

Each keyword is enforced, or the schema is refused with the keyword and its place: nothing is
ignored but what only describes (ANNOTATIONS). Answers may be narrower than the schema: properties
come in the order of the schema, none that it does not name (unless `additionalProperties` is a
schema), spaces only behind ',' and ':', numbers without exponents and at most 15 digits on either
side of the point, strings without control characters other than line ends and tabs.

llama-cpp-python has a converter too (llama_cpp.llama_grammar). Its strings may hold bare line
ends, which no parser of JSON takes, and it leaves out ranges, uniqueItems and others in silence.
"""

import json
import math

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.gbnf import MAX_REPEATS, read_gbnf, rules_with_a_text
from minicpmo_ros.llm.grammar.json_text import (
    CHARACTER,
    FORMATS,
    integers,
    literal,
    loaded,
    numbers,
    other_keys,
    pattern,
    shown,
)
from minicpmo_ros.llm.grammar.schema_values import (
    OF_TYPE,
    SchemaReader,
    items_of,
    range_of,
    types_of,
    written_values,
    wrong,
)

MAX_DEPTH = 100  # of schemas within schemas


def write_gbnf(text: str) -> str:
    """Return the grammar (GBNF) of a schema; InputError where it is not enforced in full."""
    try:
        schema = loaded(text)
        text.encode(), json.dumps(schema, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError) as error:  # of it are those of decoding and encoding
        raise InputError(f'json_schema is no JSON: {error}.') from error
    gbnf = _Writer(schema).write()
    try:
        rules = read_gbnf(gbnf)
    except InputError as error:  # it is too large
        raise wrong('#', str(error).rstrip('.')) from error
    if rules.root not in rules_with_a_text(rules.alternatives, False):
        raise wrong('#', 'no value fits it, as it contains itself for ever')
    return gbnf


class _Writer(SchemaReader):
    """The rules written so far. `where` is the place in the schema, as the user names it."""

    def __init__(self, schema):
        super().__init__(schema)
        self._rules, self._of_refs = {}, {}
        self._depth = 0

    def write(self) -> str:
        self._rules['root'] = self._value(self.schema, '#')
        return '\n'.join(f'{name} ::= {rule}' for name, rule in self._rules.items())

    def _add(self, rule: str) -> str:
        """Return the name of a new rule."""
        name = f'r{len(self._rules)}'
        self._rules[name] = rule
        return name

    def _shared(self, name: str, rule: str) -> str:
        self._rules.setdefault(name, rule)
        return name

    def _value(self, schema, where: str) -> str:
        """Return what is written for a value of a schema: alternatives in GBNF."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise wrong(where, f'schemas are nested more than {MAX_DEPTH} deep')
        checked = self.checked(schema, where)
        if not checked:
            written = self._any()
        elif set(checked) == {'$ref'}:
            written = self._of_ref(checked['$ref'], where)
        else:
            written = self._alternatives(self.flat(checked, where), where)
        self._depth -= 1
        return written

    def _any(self) -> str:
        """Return the rule of a value that is not described."""
        if 'value' not in self._rules:
            self._rules['value'] = ''
            every = {'type': [name for name in OF_TYPE if name != 'integer']}
            self._rules['value'] = self._alternatives(every, '#')
        return 'value'

    def _of_ref(self, ref: str, where: str) -> str:
        """Return the rule of a $ref, which may contain itself."""
        if ref not in self._of_refs:
            self._of_refs[ref] = name = self._add('')
            depth, self._depth = self._depth, self._depth + 1
            self._rules[name] = self._value(self.target(ref, where), ref)
            self._depth = depth
        return self._of_refs[ref]

    def _alternatives(self, schema: dict, where: str) -> str:
        for keyword in ('anyOf', 'oneOf'):
            if keyword in schema:
                return self._one_of(schema, keyword, where)
        if 'enum' in schema or 'const' in schema:
            return written_values(schema, where)
        types = types_of(schema, where)
        written = [getattr(self, f'_{name}')(schema, where) for name in types]
        return ' | '.join(written)

    def _one_of(self, schema: dict, keyword: str, where: str) -> str:
        place, parts = f'{where}/{keyword}', self.parts(schema, keyword, where)
        return ' | '.join(self._value(part, f'{place}/{i}') for i, part in enumerate(parts))

    def _boolean(self, schema: dict, where: str) -> str:
        return '"true" | "false"'

    def _null(self, schema: dict, where: str) -> str:
        return '"null"'

    def _integer(self, schema: dict, where: str) -> str:
        low, high, low_open, high_open = range_of(schema)
        low = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
        high = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
        return self._add(_found(integers(low, high), where))

    def _number(self, schema: dict, where: str) -> str:
        return self._add(_found(numbers(*range_of(schema)), where))

    def _string(self, schema: dict, where: str) -> str:
        given = [key for key in ('pattern', 'format') if key in schema]
        is_bounded = 'minLength' in schema or 'maxLength' in schema
        if len(given) + is_bounded > 1:
            told = 'only one of pattern, format and lengths is enforced; use a pattern for all'
            raise wrong(f'{where}/{given[0]}', told)
        if 'format' in schema and schema['format'] not in FORMATS:
            told = f'{shown(schema["format"])} is not enforced; there are {", ".join(FORMATS)}'
            raise wrong(f'{where}/format', told)
        if given:
            source = FORMATS[schema['format']] if given == ['format'] else schema['pattern']
            try:
                written = pattern(source)
            except ValueError as error:
                raise wrong(f'{where}/pattern', str(error)) from error
            return self._add(f'{literal(chr(34))} ({written}) {literal(chr(34))}')
        character = self._shared('character', CHARACTER)
        count = _count(schema, 'minLength', 'maxLength', where)
        return self._shared(f'string{_suffix(count)}', rf'"\"" {character}{_times(*count)} "\""')

    def _array(self, schema: dict, where: str) -> str:
        first, rest, place = items_of(schema, where)
        if schema.get('uniqueItems', False) is not False:
            told = 'it is not enforced; leave it out and take double items away'
            raise wrong(f'{where}/uniqueItems', told)
        least, most = _count(schema, 'minItems', 'maxItems', where)
        first = first[:most]
        items = [self._add(self._value(part, f'{place}/{i}')) for i, part in enumerate(first)]
        least = max(0, least - len(items))
        most = None if most is None else most - len(items)
        if rest is False or (first and 'items' not in schema):
            most = least  # none that is not described, unless there have to be some
        if rest is False and least:
            raise wrong(f'{where}/minItems', 'there are not so many prefixItems')
        if most != 0:
            item = self._add(self._value(rest, f'{where}/items'))
            more = f'(", " {item})'
            if items:
                items[-1] += f' {more}{_times(least, most)}'
            else:
                fewer = None if most is None else most - 1
                some = f'{item} {more}{_times(max(0, least - 1), fewer)}'
                items = [some if least else f'({some})?']
        return self._add(' '.join(('"["', ' ", " '.join(items), '"]"')))

    def _object(self, schema: dict, where: str) -> str:
        properties = schema.get('properties', {})
        required = schema.get('required', [])
        extra = schema.get('additionalProperties', not properties)
        unknown = [name for name in required if name not in properties]
        if unknown:
            raise wrong(f'{where}/required', f'{shown(unknown[0])} is not in properties')
        pairs = []
        for name, part in properties.items():
            if part is False and name not in required:
                continue
            value = self._add(self._value(part, f'{where}/properties/{name}'))
            key = literal(f'{json.dumps(name, ensure_ascii=False)}: ')
            pairs.append((f'{key} {value}', name in required))
        least, most = schema.get('minProperties', 0), schema.get('maxProperties', math.inf)
        if least > len(set(required)):
            told = 'it is enforced up to the number of required ones; require them by name'
            raise wrong(f'{where}/minProperties', told)
        extra = self._extra(extra, properties, where) if most else ''
        if most < (math.inf if extra and pairs else len(pairs)):
            told = 'it is enforced where none or all of the properties are named; leave it out'
            raise wrong(f'{where}/maxProperties', told)
        members = self._members(pairs, extra, most)
        return self._add(' '.join(('"{"', members, '"}"')))

    def _extra(self, extra, names, where: str) -> str:
        """Return what is written for a property that has no name in the schema; '': none is."""
        if extra is False or (extra is True and names):
            return ''
        value = self._add(self._value(extra, f'{where}/additionalProperties'))
        character = self._shared('character', CHARACTER)
        key = other_keys(names, character, self._add) if names else f'{character}*'
        return self._add(rf'"\"" {key} "\": " {value}')

    def _members(self, pairs: list, extra: str, most: float) -> str:
        """Return what is written for (pair, is it required), in order, and extra pairs."""
        more = _times(0, None if most > MAX_REPEATS else most - 1)
        first = f'({extra} (", " {extra}){more})?' if extra else ''  # where nothing is before
        later = f'(", " {extra})*' if extra else ''
        for pair, is_required in reversed(pairs):
            after = self._add(later or '""')
            if is_required:
                first, later = f'{pair} {after}', f'", " {pair} {after}'
            else:
                first = f'({pair} {after} | {first})'
                later = f'(", " {pair})? {after}'
        return first


def _count(schema: dict, least: str, most: str, where: str) -> tuple:
    low, high = schema.get(least, 0), schema.get(most)
    if low > MAX_REPEATS or (high is not None and high < low):
        told = f'{low} is more than {MAX_REPEATS if high is None or high >= low else high}'
        raise wrong(f'{where}/{least}', told)
    return low, None if high is None else min(high, MAX_REPEATS)


def _times(least: int, most: int | None) -> str:
    return '*' if (least, most) == (0, None) else f'{{{least},{"" if most is None else most}}}'


def _suffix(count: tuple) -> str:
    return '' if count == (0, None) else f'-{count[0]}-{"" if count[1] is None else count[1]}'


def _found(written: str, where: str) -> str:
    if not written:
        raise wrong(where, 'no number is in its range')
    return written
