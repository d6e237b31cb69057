# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A type has a schema, and whatever JSON is of this schema can be read as the type."""

import enum
import json
from dataclasses import dataclass, field, make_dataclass
from typing import Literal

import pytest

from minicpmo_ros.client import InputError, read_as, schema_of
from minicpmo_ros.llm.grammar.json_schema import write_gbnf


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


@dataclass
class Cup:
    """A cup, and what stands behind it."""

    color: Color
    size_cm: float
    label: str | None = field(metadata={'description': 'what is written on it'})
    place: tuple[int, int]
    behind: 'list[Cup]'
    marks: dict[str, bool]
    kind: Literal['cup', 3] = 'cup'
    is_clean: bool = field(default=True, init=False)


CUP = {
    'color': 'red', 'size_cm': 8, 'label': None, 'place': [3, 4], 'marks': {'b': True}, 'kind': 3,
    'behind': [
        {'color': 'blue', 'size_cm': 7.5, 'label': 'tea', 'place': [0, 0], 'behind': [],
         'marks': {}, 'kind': 'cup'},
    ],
}  # fmt: skip


class LikePydantic:
    """What is asked of a pydantic model."""

    def __init__(self, data):
        self.data = data

    @classmethod
    def model_json_schema(cls):
        return {'type': 'object', 'title': 'LikePydantic', 'properties': {}}

    @classmethod
    def model_validate_json(cls, text):
        return cls(json.loads(text))


@dataclass
class Stop:
    pass


@dataclass
class Walk:
    to: str


@dataclass
class Run(Walk):
    speed: int


class Mixed(enum.Enum):
    PAIR = (1, 2)
    HALF = 0.5
    ONE = 1
    NOTHING = None


def test_an_answer_is_read_as_the_dataclass_it_was_asked_as():
    cup = read_as(Cup, json.dumps(CUP))
    assert cup.color is Color.RED and cup.size_cm == 8.0 and isinstance(cup.size_cm, float)
    assert cup.place == (3, 4) and cup.behind[0].label == 'tea' and cup.kind == 3 and cup.is_clean
    assert read_as(Cup | None, 'null') is None and read_as(Cup | None, json.dumps(CUP)) == cup
    assert read_as(list[int], '[1, 2]') == [1, 2] and read_as({}, '{"a": 1}') == {'a': 1}
    assert read_as(LikePydantic, '{"a": 1}').data == {'a': 1}


def test_a_type_has_a_schema_that_is_enforced():
    schema = schema_of(Cup)
    assert schema['$ref'] == '#/$defs/Cup'
    assert 'is_clean' not in schema['$defs']['Cup']['properties']
    assert schema['$defs']['Cup']['properties']['label']['description']
    for kind in (Cup, Cup | None, list[Cup], dict[str, Cup], LikePydantic, {'enum': [1]}, int):
        assert write_gbnf(json.dumps(schema_of(kind)))


@pytest.mark.parametrize(
    'kind, text',
    [
        (Cup, '{"color": "red"}'),
        (Cup, '{"color"'),
        (Cup, '[]'),
        (Cup, json.dumps(CUP | {'color': 'green'})),
        (Cup, json.dumps(CUP | {'kind': True})),
        (Cup, json.dumps(CUP | {'place': [1]})),
        (Cup, json.dumps(CUP | {'weight_kg': 1})),
        (Mixed, 'true'),
        (float, '"3"'),
        (int, '1.5'),
        (int, 'true'),
        (bool, '1'),
        (int | str, 'null'),
        (list[int], '{}'),
    ],
)
def test_what_is_not_of_the_type_is_refused(kind, text):
    with pytest.raises(InputError, match='is not of this type'):
        read_as(kind, text)


@pytest.mark.parametrize('kind', [set[int], dict[int, str], tuple[int, ...], bytes, object, 'x'])
def test_a_type_without_a_schema_is_refused_in_words(kind):
    with pytest.raises(InputError, match='has no JSON schema. Use a dataclass'):
        schema_of(kind)

    @dataclass
    class Holder:
        held: kind if not isinstance(kind, str) else bytes

    with pytest.raises(InputError, match='Holder.held is'):
        schema_of(Holder)


@dataclass
class Unknown:
    held: 'Nowhere'  # noqa: F821


@dataclass
class Noted:
    held: int = field(default=0, metadata={'maximum': object()})


@pytest.mark.parametrize(
    'kind',
    [Unknown, Noted, Noted(1), tuple[()], Literal[b'x'], Literal[Color.RED]],
    ids=lambda kind: str(kind)[:20],
)
def test_a_type_whose_schema_cannot_be_written_is_refused_in_words(kind):
    with pytest.raises(InputError, match='has no JSON schema'):
        schema_of(kind)


def test_types_of_one_name_from_two_modules_keep_their_own_schemas():
    first, second = (
        make_dataclass('Point', [('at', Literal[place])]) for place in ('here', 'there')
    )
    both = make_dataclass('Both', [('a', first), ('b', second), ('c', first)])
    schema = schema_of(both)
    places = [part['properties'].get('at') for part in schema['$defs'].values()]
    assert {'enum': ['here']} in places and {'enum': ['there']} in places
    assert write_gbnf(json.dumps(schema))
    text = '{"a": {"at": "here"}, "b": {"at": "there"}, "c": {"at": "here"}}'
    found = read_as(both, text)
    assert type(found.a) is type(found.c) is first and type(found.b) is second
    properties = schema['$defs']['Both']['properties']
    assert properties['a'] == properties['c'] != properties['b']


@pytest.mark.parametrize(
    'kind, text, expected',
    [
        (Stop | Walk | Run, '{"to": "door", "speed": 3}', Run('door', 3)),
        (Walk | Run, '{"to": "door", "speed": 3}', Run('door', 3)),
        (Stop | Walk, '{"to": "door"}', Walk('door')),
        (Stop | Walk, '{}', Stop()),
        (Mixed, '[1, 2]', Mixed.PAIR),
        (Mixed, '0.5', Mixed.HALF),
        (Mixed | bool, 'true', True),
        (Mixed, 'null', Mixed.NOTHING),
    ],
    ids=str,
)
def test_an_answer_is_read_as_the_one_type_whose_schema_it_fits(kind, text, expected):
    assert write_gbnf(json.dumps(schema_of(kind)))
    found = read_as(kind, text)
    assert found == expected and type(found) is type(expected)


def test_what_the_code_of_a_type_refuses_is_told_as_not_of_this_type():
    @dataclass
    class Choosy:
        value: int

        def __post_init__(self):
            raise RuntimeError('not this one')

    with pytest.raises(InputError, match='is not of this type: not this one'):
        read_as(Choosy, '{"value": 1}')
    assert read_as(Choosy | dict[str, int], '{"value": 1}') == {'value': 1}
