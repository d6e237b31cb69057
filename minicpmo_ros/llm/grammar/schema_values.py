# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""JSON schemas as sets of values: the keywords that are enforced, and what two schemas share.

A schema is a dict of keywords, as `json.loads` gives it, with Decimal for a number with a point.
"""

from decimal import Decimal

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.json_text import dumped, is_short, literal, shown

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
    for key, value in other.items():
        if key not in one or one[key] == value:
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
            both[key] = [item for item in one[key] if item in value]
        else:
            raise wrong(f'{where}/{key}', 'it stands in two parts that are to hold together')
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


def _type_of(value) -> set:
    if isinstance(value, bool):
        return {'boolean'}
    if isinstance(value, int | Decimal):
        is_whole = value == Decimal(value).to_integral_value()  # of any size
        return {'number', 'integer'} if is_whole else {'number'}
    return {{str: 'string', list: 'array', dict: 'object'}.get(type(value), 'null')}


def _same(one, other) -> bool:
    return _type_of(one) == _type_of(other) and one == other


def differ(one: dict, other: dict) -> bool:
    """Return whether it is plain that no value fits two flat schemas."""
    values = [
        schema.get('enum', [schema['const']] if 'const' in schema else None)
        for schema in (one, other)
    ]
    if None not in values:
        return not any(_same(a, b) for a in values[0] for b in values[1])
    types = [
        set().union(*map(_type_of, found)) if found is not None else _all_types(schema)
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


def written_values(schema: dict, where: str) -> str:
    """Return the values of `enum` or `const`, of which `type` may leave out some."""
    more = sorted(set(schema) - {'enum', 'const', 'type'})
    if more:
        raise wrong(f'{where}/{more[0]}', 'it is not enforced beside enum or const; leave it out')
    values = schema.get('enum', [schema.get('const')])
    if 'const' in schema:
        values = [value for value in values if _same(value, schema['const'])]
    if 'type' in schema:
        types = types_of(schema, where)
        values = [value for value in values if _type_of(value) & set(types)]
    if not values:
        raise wrong(f'{where}/enum', 'no value of the list fits all of it')
    return ' | '.join(dict.fromkeys(literal(dumped(value)) for value in values))
