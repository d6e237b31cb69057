# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers as objects: the JSON schema of a Python type, and an answer read into this type.

A type is a dataclass, a pydantic model (if pydantic is installed; this package does not need it),
a JSON schema as a dict, or what the fields of a dataclass may be: str, int, float, bool, None,
Literal, Enum, list, tuple, dict with keys of text, unions of these, and other dataclasses. What
`metadata` of a field holds, such as {'maxLength': 40}, goes into the schema.
"""

import dataclasses
import enum
import json
import types
import typing

from minicpmo_ros.documents import told
from minicpmo_ros.errors import InputError

PLAIN = {str: 'string', int: 'integer', float: 'number', bool: 'boolean', type(None): 'null'}
UNIONS = (typing.Union, types.UnionType)
USE = (
    'Use a dataclass, a pydantic model, str, int, float, bool, None, Literal, Enum, list[...], '
    'tuple[...] or dict[str, ...].'
)


def schema_of(kind) -> dict:
    """Return the JSON schema of a type; InputError for one that has none."""
    if isinstance(kind, dict):
        return kind
    if hasattr(kind, 'model_json_schema'):
        return kind.model_json_schema()
    definitions, name = {}, getattr(kind, '__name__', told(kind))
    try:
        schema = _schema(kind, definitions, name)
        if definitions:
            named = {_name(one, definitions): part for one, part in definitions.items()}
            schema |= {'$defs': named}
        json.dumps(schema)
    except InputError:
        raise
    except Exception as error:  # a name that cannot be resolved, a value that JSON does not know
        raise InputError(f'{name} has no JSON schema: {error}. {USE}') from error
    return schema


def read_as(kind, text: str):
    """Return the text of an answer as an object of a type; InputError where it is none."""
    try:
        if hasattr(kind, 'model_validate_json'):
            return kind.model_validate_json(text)
        value = json.loads(text)
        return value if isinstance(kind, dict) else _object(kind, value)
    except Exception as error:  # the type's own code may refuse it, too
        raise InputError(f'The answer {text[:80]!r} is not of this type: {error}') from error


def _schema(kind, definitions: dict, where: str) -> dict:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN or kind is None:
        return {'type': PLAIN[type(None) if kind is None else kind]}
    if origin in UNIONS:
        return {'anyOf': [_schema(part, definitions, where) for part in arguments]}
    if origin is typing.Literal:
        return {'enum': list(arguments)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {'enum': [member.value for member in kind]}
    if origin is list or kind is list:
        items = {'items': _schema(arguments[0], definitions, where)} if arguments else {}
        return {'type': 'array'} | items
    if origin is dict and arguments[0] is str:
        return {
            'type': 'object',
            'additionalProperties': _schema(arguments[1], definitions, where),
        }
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        parts = [_schema(part, definitions, where) for part in arguments]
        n = len(parts)
        return {'type': 'array', 'prefixItems': parts, 'minItems': n, 'maxItems': n}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _of_dataclass(kind, definitions)
    raise InputError(f'{where} is {kind!r}, which has no JSON schema. {USE}')


def _of_dataclass(kind, definitions: dict) -> dict:
    if kind not in definitions:
        definitions[kind] = {}  # it may contain itself
        hints, properties = typing.get_type_hints(kind), {}
        for field in _fields(kind):
            part = _schema(hints[field.name], definitions, f'{kind.__qualname__}.{field.name}')
            properties[field.name] = part | dict(field.metadata)
        definitions[kind] |= {
            'type': 'object',
            'properties': properties,
            'required': list(properties),
            'additionalProperties': False,
        }
    return {'$ref': f'#/$defs/{_name(kind, definitions)}'}


def _name(kind, definitions: dict) -> str:
    """Return the name of a dataclass among all: those of two modules may be called the same."""
    named_so = [one for one in definitions if one.__qualname__ == kind.__qualname__]
    number = named_so.index(kind) + 1
    return kind.__qualname__ if number == 1 else f'{kind.__qualname__}_{number}'


def _fields(kind) -> list:
    return [field for field in dataclasses.fields(kind) if field.init]


def _object(kind, value):
    """Return a value of parsed JSON as an object of a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints, fields = typing.get_type_hints(kind), _fields(kind)
        # Of a union, the first type that takes the answer would drop the others' fields.
        if unknown := set(value) - {field.name for field in fields}:
            raise ValueError(f'{kind.__qualname__} has no {", ".join(sorted(unknown))}')
        return kind(**{f.name: _object(hints[f.name], value[f.name]) for f in fields})
    if origin in UNIONS:
        for part in arguments:
            try:
                return _object(part, value)
            except Exception:  # of the type's own code, too
                continue
        raise ValueError(f'{value!r} is none of {kind}')
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        for member in kind:  # compared as JSON: a tuple is a list there, and true is not 1
            held = json.loads(json.dumps(member.value))
            if held == value and isinstance(held, bool) == isinstance(value, bool):
                return member
        raise ValueError(f'{value!r} is none of {kind}')
    if origin is list and isinstance(value, list):
        return [_object(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _object(arguments[1], item) for key, item in value.items()}
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_object(part, item) for part, item in zip(arguments, value))
    if origin is typing.Literal:
        is_one = any(type(value) is type(one) and value == one for one in arguments)
    elif kind is float:
        is_one = type(value) in (int, float)
        value = float(value) if is_one else value
    else:
        is_one = value is None if kind is None else type(value) is kind
    if not is_one:
        raise ValueError(f'{value!r} is not {kind}')
    return value
