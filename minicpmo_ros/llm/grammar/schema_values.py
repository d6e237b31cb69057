# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""JSON schemas as sets of values: the keywords that are enforced, what schemas share and hold.

A schema is a dict of keywords, as `json.loads` gives it, with Decimal for a number with a point.
"""

import math
import re
from decimal import Decimal

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.json_text import (
    FORMATS,
    dumped,
    is_short,
    literal,
    loaded,
    shown,
)

ANNOTATIONS = frozenset(
    'title description default examples example deprecated readOnly writeOnly '
    '$comment $schema $id $defs definitions discriminator'.split()
)
EXCLUSIVE = ('exclusiveMinimum', 'exclusiveMaximum')
NUMERIC = frozenset(('minimum', 'maximum', *EXCLUSIVE))
OF_TYPE = {
    'object': frozenset(
        'properties required additionalProperties minProperties maxProperties'.split()
    ),
    'array': frozenset('items prefixItems minItems maxItems uniqueItems'.split()),
    'string': frozenset('minLength maxLength pattern format'.split()),
    'number': NUMERIC,
    'integer': NUMERIC,
    'boolean': frozenset(),
    'null': frozenset(),
}
COMBINING = frozenset('type enum const anyOf oneOf allOf $ref'.split())
SUPPORTED = ANNOTATIONS | COMBINING | frozenset().union(*OF_TYPE.values())
SHORT = 'a number of at most 30 digits'
LEAST = ('minimum', 'exclusiveMinimum', 'minLength', 'minItems', 'minProperties')
MOST = ('maximum', 'exclusiveMaximum', 'maxLength', 'maxItems', 'maxProperties')
COUNTS = frozenset((*LEAST[2:], *MOST[2:]))
ITEMS = ('items', 'prefixItems')
IN_TWO_PARTS = 'it stands in two parts that are to hold together'
IS_FORM = {  # what a keyword may hold, and how that is said
    'type': (lambda v: isinstance(v, str | list), 'a type or a list of them'),
    'enum': (lambda v: isinstance(v, list) and v, 'a list that is not empty'),
    'properties': (lambda v: isinstance(v, dict), 'an object'),
    'required': (
        lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
        'a list of names',
    ),
    'additionalProperties': (lambda v: isinstance(v, bool | dict), 'a schema'),
    'items': (lambda v: isinstance(v, bool | dict | list), 'a schema'),
    'prefixItems': (lambda v: isinstance(v, list), 'a list'),
    'uniqueItems': (lambda v: isinstance(v, bool), 'true or false'),
    'pattern': (lambda v: isinstance(v, str), 'a text'),
    'format': (lambda v: isinstance(v, str), 'a text'),
    'anyOf': (lambda v: isinstance(v, list) and v, 'a list that is not empty'),
    'oneOf': (lambda v: isinstance(v, list) and v, 'a list that is not empty'),
    'allOf': (lambda v: isinstance(v, list), 'a list'),
    '$ref': (lambda v: isinstance(v, str), 'a text'),
    **{key: (lambda v: type(v) is int and v >= 0, 'a count') for key in COUNTS},
    **{key: (lambda v: type(v) in (int, Decimal) and is_short(v), SHORT) for key in NUMERIC},
}


def both_of(one: dict, other: dict, where: str) -> dict:
    """Return a schema that holds where both do."""
    both = dict(one)
    for schema, others in ((one, other), (other, one)):
        closed = schema.get('additionalProperties', True) is not True
        if closed and set(others.get('properties', {})) - set(schema.get('properties', {})):
            raise wrong(f'{where}/additionalProperties', 'it forbids what the other part names')
    first, second = ({key: part[key] for key in ITEMS if key in part} for part in (one, other))
    if first and second and not same(first, second):  # `items` are those that have no place
        raise wrong(f'{where}/{min(second)}', IN_TWO_PARTS)
    for key, value in other.items():
        if key not in one or same(one[key], value):
            both[key] = value
        elif key == 'properties':
            names = one[key].keys() & value.keys()
            common = {name: {'allOf': [one[key][name], value[name]]} for name in names}
            both[key] = one[key] | value | common
        elif key == 'required':
            both[key] = [*one[key], *value]
        elif key in LEAST:
            both[key] = max(one[key], value)
        elif key in MOST:
            both[key] = min(one[key], value)
        elif key == 'type':
            both[key] = _common_types(one, other, where)
        elif key == 'enum':
            both[key] = [item for item in one[key] if any(same(item, found) for found in value)]
        else:
            raise wrong(f'{where}/{key}', IN_TWO_PARTS)
    return both


def _common_types(one: dict, other: dict, where: str) -> list:
    first, second = (set(types_of(schema, where)) for schema in (one, other))
    for types, others in ((first, second), (second, first)):
        if 'number' in types and 'integer' in others and 'number' not in others:
            types.add('integer')
    return sorted(first & second)


def types_of(schema: dict, where: str) -> list:
    """Return the types a value may have; without `type`, those that the keywords are for."""
    types = schema.get('type')
    if 'type' not in schema:
        types = [
            name for name, keys in OF_TYPE.items() if name != 'integer' and keys & set(schema)
        ]
        types = types or [name for name in OF_TYPE if name != 'integer']
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list) or not all(isinstance(t, str) and t in OF_TYPE for t in types):
        told = f'{shown(types)} is not one of {", ".join(OF_TYPE)}, or a list of them'
        raise wrong(f'{where}/type', told)
    if not types:
        raise wrong(f'{where}/type', 'no value has it')
    return [name for name in types if name != 'integer' or 'number' not in types]


def type_of(value) -> set:
    """Return the types that a value has."""
    if isinstance(value, bool):
        return {'boolean'}
    if isinstance(value, int | Decimal):
        is_whole = value == Decimal(value).to_integral_value()  # of any size
        return {'number', 'integer'} if is_whole else {'number'}
    return {{str: 'string', list: 'array', dict: 'object'}.get(type(value), 'null')}


def same(one, other) -> bool:
    """Return whether two values are one of JSON's; to Python, true is 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type_of(one) == type_of(other) and one == other


def differ(one: dict, other: dict) -> bool:
    """Return whether it is plain that no value fits two flat schemas."""
    values = [
        schema.get('enum', [schema['const']] if 'const' in schema else None)
        for schema in (one, other)
    ]
    if None not in values:
        return not any(same(a, b) for a in values[0] for b in values[1])
    types = [
        set().union(*map(type_of, found)) if found is not None else _all_types(schema)
        for schema, found in zip((one, other), values)
    ]
    types = [found | {'integer'} if 'number' in found else found for found in types]
    common = types[0] & types[1]
    if common != {'object'} or values != [None, None]:
        return not common
    names = set(one.get('required', [])) & set(other.get('required', []))
    parts = [(one['properties'][name], other['properties'][name]) for name in names]
    return any(_is_listed(a) and _is_listed(b) and differ(a, b) for a, b in parts)


def _all_types(schema: dict) -> set:
    """Return all types that values of a schema have; other than `types_of`, by the letter."""
    return set(types_of({'type': schema.get('type', list(OF_TYPE))}, ''))


def _is_listed(schema) -> bool:
    return isinstance(schema, dict) and ('const' in schema or 'enum' in schema)


def wrong(where: str, what: str) -> InputError:
    """Return the error that tells what is wrong at which place of the schema."""
    return InputError(f'json_schema cannot be used: {where[:200]}: {what}.')


class SchemaReader:
    """Resolves what a schema refers to and is made of; `where` is a place, as the user names it.

    InputError where a keyword is unknown or holds what it may not.
    """

    def __init__(self, schema):
        self.schema = schema

    def target(self, ref, where: str):
        """Return the schema that a $ref names."""
        if not isinstance(ref, str) or not (ref == '#' or ref.startswith('#/')):
            raise wrong(f'{where}/$ref', f'{ref!r} is not within the schema (#/...)')
        target = self.schema
        for key in ref.split('/')[1:]:
            key = key.replace('~1', '/').replace('~0', '~')
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise wrong(f'{where}/$ref', f'there is no {ref}')
        return target

    def checked(self, schema, where: str) -> dict:
        """Return a schema without what only describes; all its keywords are known."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise wrong(where, f'a schema is expected, {shown(schema)} was given')
        for keyword in schema:
            if keyword not in SUPPORTED:
                raise wrong(f'{where}/{keyword}', 'this keyword is not enforced; leave it out')
        for keyword in IS_FORM.keys() & schema:
            is_right, wanted = IS_FORM[keyword]
            if not is_right(schema[keyword]):
                told = f'{shown(schema[keyword])} is given, {wanted} is expected'
                raise wrong(f'{where}/{keyword}', told)
        return {key: value for key, value in schema.items() if key not in ANNOTATIONS}

    def flat(self, schema: dict, where: str, refs: tuple = ()) -> dict:
        """Return a checked schema with what `$ref` and `allOf` add to it."""
        flat = {key: value for key, value in schema.items() if key not in ('$ref', 'allOf')}
        parts = []
        if '$ref' in schema:
            ref = schema['$ref']
            if ref in refs:
                raise wrong(f'{where}/$ref', f'{ref} is made of itself')
            parts.append((self.target(ref, where), ref, (*refs, ref)))
        for i, part in enumerate(schema.get('allOf', [])):
            parts.append((part, f'{where}/allOf/{i}', refs))
        for part, place, seen in parts:
            flat = both_of(flat, self.flat(self.checked(part, place), place, seen), place)
        return flat

    def parts(self, schema: dict, keyword: str, where: str) -> list:
        """Return the schemas of which a value fits one: those of anyOf or oneOf, each complete."""
        common = {key: value for key, value in schema.items() if key != keyword}
        place, whole = f'{where}/{keyword}', []
        for i, part in enumerate(schema[keyword]):
            if part is False:
                continue
            checked = self.checked(part, f'{place}/{i}')
            if set(checked) == {'$ref'} and not common:
                whole.append(checked)
            else:
                flat = self.flat(checked, f'{place}/{i}')
                whole.append(both_of(common, flat, f'{place}/{i}'))
        if not whole:
            raise wrong(place, 'nothing fits it')
        if keyword == 'oneOf':
            flat = [self.flat(part, place) for part in whole]
            for i, part in enumerate(flat):
                for j in range(i):
                    if not differ(flat[j], part):
                        told = f'a value may fit {j} and {i}; write anyOf, or a const that differs'
                        raise wrong(place, told)
        return whole


def range_of(schema: dict) -> tuple:
    """Return (low, high, whether low is none of it, whether high is none of it)."""
    lows = [(schema[key], key in EXCLUSIVE) for key in LEAST[:2] if key in schema]
    highs = [(-schema[key], key in EXCLUSIVE) for key in MOST[:2] if key in schema]
    low, low_open = max(lows, default=(None, False))
    high, high_open = max(highs, default=(None, False))
    return low, None if high is None else -high, low_open, high_open


def items_of(schema: dict, where: str) -> tuple:
    """Return (schemas of an array's first items, schema of the others, place of the first)."""
    first, rest = schema.get('prefixItems', []), schema.get('items', True)
    if isinstance(rest, list):  # as in drafts before 2020
        return rest, True, f'{where}/items'
    return first, rest, f'{where}/prefixItems'


def written_values(schema: dict, where: str) -> str:
    """Return the values of `enum` or `const`, of which `type` may leave out some."""
    more = sorted(set(schema) - {'enum', 'const', 'type'})
    if more:
        raise wrong(f'{where}/{more[0]}', 'it is not enforced beside enum or const; leave it out')
    values = schema.get('enum', [schema.get('const')])
    if 'const' in schema:
        values = [value for value in values if same(value, schema['const'])]
    if 'type' in schema:
        types = types_of(schema, where)
        values = [value for value in values if type_of(value) & set(types)]
    if not values:
        raise wrong(f'{where}/enum', 'no value of the list fits all of it')
    return ' | '.join(dict.fromkeys(literal(dumped(value)) for value in values))


def misfit(schema: str, text: str) -> str:
    """Return the place in a schema that no answer held to it says as a JSON text does; ''.

    The schema is one that json_schema.write_gbnf takes. As there, properties that it does not name
    are none of it, unless `additionalProperties` is a schema. The form of numbers and strings is
    not compared.
    """
    fitting = _Fitting(loaded(schema))
    return fitting.misfit(fitting.schema, loaded(text), '#', frozenset())


class _Fitting(SchemaReader):
    """Compares values with the parts of one schema."""

    def misfit(self, schema, value, where: str, refs: frozenset) -> str:
        """Return where the value does not fit; refs: that have led here by this very value."""
        checked = self.checked(schema, where)
        if not checked:
            return ''
        if set(checked) == {'$ref'}:
            ref = checked['$ref']
            return where if ref in refs else self.misfit(
                self.target(ref, where), value, ref, refs | {ref}
            )  # fmt: skip
        flat = self.flat(checked, where)
        for keyword in ('anyOf', 'oneOf'):
            if keyword in flat:
                found = [
                    self.misfit(part, value, f'{where}/{keyword}/{i}', refs)
                    for i, part in enumerate(self.parts(flat, keyword, where))
                ]
                return '' if '' in found else found[0] if len(found) == 1 else f'{where}/{keyword}'
        return self._misfit_flat(flat, value, where)

    def _misfit_flat(self, schema: dict, value, where: str) -> str:
        if 'enum' in schema and not any(same(value, one) for one in schema['enum']):
            return f'{where}/enum'
        if 'const' in schema and not same(value, schema['const']):
            return f'{where}/const'
        if 'enum' in schema or 'const' in schema:
            schema = {key: schema[key] for key in ('type',) if key in schema}
        if not type_of(value) & set(types_of(schema, where)):
            return f'{where}/type'
        kind = min(type_of(value))  # 'integer' of both kinds of numbers
        compare = {
            'integer': self._in_range,
            'number': self._in_range,
            'string': self._in_string,
            'array': self._in_array,
            'object': self._in_object,
        }.get(kind)
        return compare(schema, value, where) if compare else ''

    def _in_range(self, schema: dict, value, where: str) -> str:
        low, high, low_open, high_open = range_of(schema)
        is_low = low is not None and (value < low or (low_open and value == low))
        is_high = high is not None and (value > high or (high_open and value == high))
        return f'{where}/{"minimum" if is_low else "maximum"}' if is_low or is_high else ''

    def _in_string(self, schema: dict, value: str, where: str) -> str:
        if not schema.get('minLength', 0) <= len(value) <= schema.get('maxLength', math.inf):
            return f'{where}/{"minLength" if "minLength" in schema else "maxLength"}'
        for keyword, source in (
            ('pattern', schema.get('pattern', '')),
            ('format', FORMATS.get(schema.get('format'), '')),
        ):
            if not re.search(source, value, re.ASCII):
                return f'{where}/{keyword}'
        return ''

    def _in_array(self, schema: dict, value: list, where: str) -> str:
        first, rest, place = items_of(schema, where)
        least, most = schema.get('minItems', 0), schema.get('maxItems', math.inf)
        first = first[: len(first) if most == math.inf else most]
        if first and 'items' not in schema:
            most = max(len(first), least)
        if rest is False:
            most = min(most, len(first))
        if not max(least, len(first)) <= len(value) <= most:
            return f'{where}/{"maxItems" if len(value) > most else "minItems"}'
        for i, item in enumerate(value):
            part, at = (first[i], f'{place}/{i}') if i < len(first) else (rest, f'{where}/items')
            if found := self.misfit(part, item, at, frozenset()):
                return found
        return ''

    def _in_object(self, schema: dict, value: dict, where: str) -> str:
        properties = schema.get('properties', {})
        extra = schema.get('additionalProperties', not properties)
        lacking = [name for name in schema.get('required', ()) if name not in value]
        others = [name for name in value if name not in properties]
        if lacking:
            return f'{where}/required'
        if others and (extra is False or (extra is True and properties)):
            return f'{where}/additionalProperties'
        if len(value) > schema.get('maxProperties', math.inf):
            return f'{where}/maxProperties'
        for name, item in value.items():
            is_named = name in properties
            part = properties[name] if is_named else extra
            at = f'{where}/properties/{name}' if is_named else f'{where}/additionalProperties'
            if part is False:
                return at
            if found := self.misfit(part, item, at, frozenset()):
                return found
        return ''
