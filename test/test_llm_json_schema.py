# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An answer held to a JSON schema is JSON of this schema, or the schema is refused in words."""

import json
import re

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.json_schema import write_gbnf
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.grammar.schema_values import misfit
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.sampling import Sampler, SamplingOptions

CUPS = {
    'type': 'object',
    'properties': {
        'color': {'enum': ['red', 'blue', 'other']},
        'count': {'type': 'integer', 'minimum': 0, 'maximum': 12},
        'sure': {'type': 'number', 'minimum': 0, 'maximum': 1},
        'seen': {'type': 'boolean'},
        'note': {'type': 'string', 'maxLength': 20},
    },
    'required': ['color', 'count', 'sure'],
}
LIST = {
    '$defs': {
        'node': {
            'type': 'object',
            'properties': {
                'value': {'type': 'integer'},
                'next': {'anyOf': [{'$ref': '#/$defs/node'}, {'type': 'null'}]},
            },
            'required': ['value', 'next'],
        }
    },
    '$ref': '#/$defs/node',
    'description': 'a list',
}


def shape(kind, *required, **properties):
    return {
        'type': 'object',
        'properties': {'kind': {'const': kind}, **properties},
        'required': ['kind', *required],
    }


SCHEMAS = [
    {},
    True,
    CUPS,
    LIST,
    *({'type': kind} for kind in ('integer', 'number', 'string', 'boolean', 'null', 'array')),
    {'type': 'object'},
    {'type': 'integer', 'minimum': -17, 'maximum': 1203},
    {'type': 'integer', 'exclusiveMinimum': -1, 'exclusiveMaximum': 1},
    {'type': 'integer', 'minimum': 999, 'maximum': 100001},
    {'type': 'integer', 'minimum': 1e20, 'maximum': 1e21},
    {'type': 'number', 'exclusiveMinimum': 0, 'exclusiveMaximum': 1},
    {'type': 'number', 'minimum': -2.5, 'maximum': 0.125},
    {'type': 'number', 'minimum': 3.14159, 'maximum': 3.2},
    {'type': 'number', 'exclusiveMinimum': -10, 'maximum': -9.5},
    {'type': 'number', 'minimum': -1, 'exclusiveMaximum': 0},
    {'type': 'string', 'minLength': 3, 'maxLength': 3},
    {'type': 'string', 'maxLength': 500},
    {'enum': ['cup', 'a"b', 'ü\n', '\\', 1, 2.50, None, {'a': [1.5, True]}, '😀']},
    {'enum': [f'第{i}个杯子在桌子上' for i in range(200)]},
    {'type': 'string', 'pattern': '^[A-Z]{2}-\\d+$'},
    {'type': 'string', 'pattern': '^(foo|ba[rz])?x$|^q'},
    {'type': 'string', 'pattern': '^[^a-z"\\s]{1,9}$'},
    {'type': 'string', 'pattern': '^\\w+([.-]?\\W\\w+){0,2}"\\n$'},
    {'type': 'string', 'format': 'date'},
    {'type': 'string', 'format': 'ipv4'},
    {'type': 'array', 'items': {'type': 'integer'}, 'minItems': 2, 'maxItems': 5},
    {'type': 'array', 'maxItems': 0},
    {'type': 'array', 'prefixItems': [{'type': 'null'}, {'const': 2}], 'items': False},
    {'type': 'array', 'items': [{'type': 'null'}], 'minItems': 3, 'maxItems': 4},
    {'type': 'array', 'prefixItems': [{'const': 0}], 'items': {'type': 'boolean'}},
    {'type': 'object', 'properties': {'a': {}, 'b': {'type': 'array'}}},
    {'type': 'object', 'additionalProperties': {'type': 'integer'}},
    {'type': 'object', 'maxProperties': 2},
    {
        'properties': {'ab': {'type': 'null'}, 'a': {'type': 'null'}, '"': {'const': 1}},
        'additionalProperties': {'type': 'integer'},
        'required': ['ab'],
    },
    {'type': ['integer', 'null', 'object'], 'properties': {'x': {}}, 'minimum': 5},
    {'anyOf': [{'type': 'integer'}, {'type': 'array', 'items': {'$ref': '#'}}]},
    {'oneOf': [shape('a', 'x', x={'type': 'integer'}), shape('b')]},
    {'oneOf': [{'type': 'integer'}, {'type': 'string'}, {'const': True}]},
    {
        'allOf': [
            {'properties': {'a': {'type': 'integer', 'minimum': 3}}, 'required': ['a']},
            {'properties': {'a': {'maximum': 4}, 'b': {'type': 'null'}}, 'required': ['b']},
        ],
    },
    {'type': 'object', 'properties': {'a': {}, 'b': {}}, 'anyOf': [{'required': ['b']}]},
    {'definitions': {'a/b': {'type': 'null'}}, 'items': {'$ref': '#/definitions/a~1b'}},
    {'$defs': {'endless': {'type': 'array', 'items': {'$ref': '#/$defs/endless'}, 'minItems': 1}},
     'anyOf': [{'$ref': '#/$defs/endless'}, {'type': 'null'}]},
]  # fmt: skip
IS_TYPE = {
    'integer': lambda v: isinstance(v, int) and not isinstance(v, bool),
    'number': lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    'string': lambda v: isinstance(v, str),
    'boolean': lambda v: isinstance(v, bool),
    'null': lambda v: v is None,
    'array': lambda v: isinstance(v, list),
    'object': lambda v: isinstance(v, dict),
}
FORMATS = {'date': r'\d{4}-\d\d-\d\d', 'ipv4': r'\d+\.\d+\.\d+\.\d+'}


def fits(value, schema, root):
    """Whether a value is of a schema, as the standard says."""
    if isinstance(schema, bool):
        return schema

    def among(one):
        return json.dumps(value) == json.dumps(one) or (type(value) is not bool and value == one)

    def held(key, test):
        return key not in schema or test(schema[key])

    types = schema.get('type', list(IS_TYPE))
    checks = [
        any(IS_TYPE[name](value) for name in ([types] if isinstance(types, str) else types)),
        held('const', among),
        held('enum', lambda ones: any(map(among, ones))),
        held('$ref', lambda ref: fits(value, resolved(ref, root), root)),
        held('anyOf', lambda parts: any(fits(value, part, root) for part in parts)),
        held('oneOf', lambda parts: sum(fits(value, part, root) for part in parts) == 1),
        held('allOf', lambda parts: all(fits(value, part, root) for part in parts)),
    ]
    if IS_TYPE['number'](value):
        checks += [
            held('minimum', lambda low: value >= low),
            held('maximum', lambda high: value <= high),
            held('exclusiveMinimum', lambda low: value > low),
            held('exclusiveMaximum', lambda high: value < high),
        ]
    if isinstance(value, str):
        checks += [
            held('minLength', lambda n: len(value) >= n),
            held('maxLength', lambda n: len(value) <= n),
            held('pattern', lambda pattern: re.search(pattern, value)),
            held('format', lambda name: re.fullmatch(FORMATS[name], value)),
        ]
    if isinstance(value, list):
        items = schema.get('items', True)
        first = items if isinstance(items, list) else schema.get('prefixItems', [])
        items = True if isinstance(items, list) else items
        checks += [
            held('minItems', lambda n: len(value) >= n),
            held('maxItems', lambda n: len(value) <= n),
            all(fits(item, part, root) for item, part in zip(value, first)),
            all(fits(item, items, root) for item in value[len(first) :]),
        ]
    if isinstance(value, dict):
        named, other = schema.get('properties', {}), schema.get('additionalProperties', True)
        checks += [
            held('maxProperties', lambda n: len(value) <= n),
            held('required', lambda names: value.keys() >= set(names)),
            all(fits(item, named.get(name, other), root) for name, item in value.items()),
        ]
    return all(checks)


def resolved(ref, root):
    for key in ref.split('/')[1:]:
        root = root[key.replace('~1', '/')]
    return root


@pytest.fixture(scope='module')
def vocabulary(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    yield model.vocabulary
    model.close()


def answered(vocabulary, schema, seed):
    """Answer by chance: what closes texts, lists and objects becomes likelier with time."""
    chance = np.random.default_rng(seed)
    sampler = Sampler(
        SamplingOptions(temperature=1, top_k=0, top_p=1, repeat_penalty=1, seed=seed),
        vocabulary.unspoken_ids - {vocabulary.special_id('<|im_end|>')},
        Grammar(vocabulary, write_gbnf(json.dumps(schema))),
    )
    closing = [vocabulary.encode(mark)[0] for mark in '"]}']
    data = b''
    for n in range(3000):
        logits = chance.standard_normal(vocabulary.size).astype(np.float32)
        logits[closing] += min(8, n / 8)
        token = sampler.pick(logits)
        if vocabulary.is_end(token):
            return data.decode()
        sampler.accept(token)
        data += vocabulary.piece(token)
    raise AssertionError(f'no end after {data[:200]}')


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: json.dumps(schema)[:50])
def test_whatever_the_model_prefers_the_answer_is_of_the_schema(vocabulary, schema):
    for seed in range(3):
        text = answered(vocabulary, schema, seed)
        assert fits(json.loads(text), schema, schema), text
        assert not misfit(json.dumps(schema), text), text


def test_what_fits_one_schema_and_not_another_is_told_with_its_place(vocabulary):
    n_unfit = 0
    for text in [answered(vocabulary, schema, 3) for schema in SCHEMAS]:
        for other in SCHEMAS:
            place = misfit(json.dumps(other), text)
            # By the standard, properties that have no name in a schema are of it, too.
            assert place.startswith('#') or fits(json.loads(text), other, other), (text, other)
            n_unfit += bool(place)
    assert n_unfit > len(SCHEMAS) ** 2 / 2


@pytest.mark.parametrize(
    'schema, value',
    [
        ({'type': 'integer', 'minimum': 1, 'maximum': 3}, 4),
        ({'type': 'number', 'minimum': 0.5}, 0.4),
        ({'type': 'string', 'maxLength': 2}, 'abc'),
        ({'type': 'string', 'pattern': '^a+$'}, 'ab'),
        ({'type': 'array', 'items': {'type': 'null'}, 'minItems': 1}, []),
        (CUPS, {'color': 'red', 'count': 1}),
        ({'oneOf': [{'type': 'integer'}, {'type': 'number'}]}, 1),
        (LIST, {'value': 1, 'next': {}}),
    ],
)
def test_the_check_of_these_tests_can_fail(schema, value):
    assert not fits(value, schema, schema)
    if 'oneOf' not in schema:  # it is refused
        assert misfit(json.dumps(schema), json.dumps(value))


@pytest.mark.parametrize(
    'value, is_allowed',
    [
        ({'color': 'red', 'count': 12, 'sure': 0.5}, True),
        ({'color': 'red', 'count': 12, 'sure': 1, 'note': 'ä\n"'}, True),
        ({'color': 'red', 'count': 0, 'sure': 0.123, 'seen': True, 'note': ''}, True),
        ({'color': 'green', 'count': 0, 'sure': 1}, False),
        ({'color': 'red', 'count': 13, 'sure': 1}, False),
        ({'color': 'red', 'count': 1, 'sure': 1.01}, False),
        ({'color': 'red', 'count': 1, 'sure': 1, 'note': 21 * 'a'}, False),
        ({'color': 'red', 'count': 1}, False),
    ],
)
def test_the_usual_values_of_a_schema_can_be_said(vocabulary, value, is_allowed):
    assert (not misfit(json.dumps(CUPS), json.dumps(value))) == is_allowed
    grammar = Grammar(vocabulary, write_gbnf(json.dumps(CUPS)))
    tokens = vocabulary.encode(json.dumps(value, ensure_ascii=False))
    for token in tokens:
        if not grammar.allows(token):
            assert not is_allowed
            return
        grammar.accept(token)
    assert grammar.is_complete == is_allowed


def nested(depth):
    schema = {'type': 'null'}
    for _ in range(depth):
        schema = {'type': 'array', 'items': schema}
    return schema


@pytest.mark.parametrize(
    'schema, told',
    [
        ('{"type": ', 'is no JSON'),
        ('{"minimum": NaN}', 'NaN is no number'),
        ('"\\ud800"', 'surrogates not allowed'),
        ([1], '#: a schema is expected'),
        (False, '#: a schema is expected'),
        ({'type': 'float'}, '#/type: ."float". is not one of'),
        ({'multipleOf': 3}, '#/multipleOf: this keyword is not enforced'),
        ({'not': {}}, '#/not: this keyword'),
        ({'properties': {'a': {'patternProperties': {}}}}, '#/properties/a/patternProperties'),
        ({'properties': {'a': {'type': 'array', 'uniqueItems': True}}}, 'a/uniqueItems'),
        ({'items': {'type': 'string', 'format': 'uri'}}, '#/items/format: "uri" is not enforced'),
        ({'type': 'string', 'pattern': 'a', 'maxLength': 3}, 'only one of pattern, format'),
        ({'type': 'string', 'pattern': '(?=a)b'}, '#/pattern: ASSERT is not enforced'),
        ({'type': 'string', 'pattern': '(a)\\1'}, 'a reference to a group'),
        ({'type': 'string', 'pattern': 'a^b'}, 'an anchor within it'),
        ({'type': 'string', 'pattern': '('}, 'is no regular expression'),
        ({'type': 'string', 'pattern': 'a{3000}'}, 'more than 2000 times'),
        ({'type': 'string', 'minLength': 3, 'maxLength': 2}, '#/minLength: 3 is more than 2'),
        ({'type': 'string', 'minLength': 2001}, '2001 is more than 2000'),
        ({'type': 'string', 'maxLength': -1}, '-1 is given, a count is expected'),
        ({'type': 'integer', 'minimum': 4, 'maximum': 3}, 'no number is in its range'),
        ({'type': 'number', 'maximum': 1, 'exclusiveMaximum': True}, 'true is given, a number'),
        ({'type': 'number', 'maximum': 'a'}, '"a" is given, a number of at most 30 digits'),
        ('{"type": "number", "maximum": 1e999999999}', 'of at most 30 digits is expected'),
        ({'$ref': 'https://example.com/a'}, 'is not within the schema'),
        ({'$ref': '#/$defs/a'}, 'there is no #/\\$defs/a'),
        ({'$defs': {'a': {'$ref': '#/$defs/a', 'type': 'null'}}, '$ref': '#/$defs/a'},
         'is made of itself'),
        ({'oneOf': [{'type': 'integer'}, {'type': 'number'}]}, '#/oneOf: a value may fit 0 and 1'),
        ({'anyOf': []}, '#/anyOf: .. is given, a list that is not empty'),
        ({'anyOf': [False]}, 'nothing fits'),
        ({'enum': ['a'], 'maxLength': 3}, '#/maxLength: it is not enforced beside enum'),
        ({'enum': ['a'], 'type': 'integer'}, 'no value of the list'),
        ({'required': ['a'], 'properties': {'b': {}}}, '"a" is not in properties'),
        ({'properties': {'b': {}}, 'minProperties': 1}, 'require them by name'),
        ({'properties': {'b': {}, 'c': {}}, 'maxProperties': 1}, 'none or all of the properties'),
        ({'properties': [1]}, '#/properties: .1. is given, an object is expected'),
        ({'type': None}, '#/type: null is given'),
        ({'format': ['date']}, '#/format: .* a text is expected'),
        ({'oneOf': [{'type': 'null'}, {'maxLength': 3}]}, '#/oneOf: a value may fit 0 and 1'),
        ({'allOf': [{'pattern': 'a'}, {'pattern': 'b'}]}, '#/allOf/1/pattern: it stands in two'),
        ({'allOf': [{'items': {'type': 'null'}}, {'prefixItems': [{}]}]},
         '#/allOf/1/prefixItems: it stands in two'),
        ({'allOf': [{'enum': [1, [0]]}, {'enum': [True, [False]]}]}, 'no value of the list'),
        ({'allOf': [{'const': {'a': 1}}, {'const': {'a': True}}]}, '#/allOf/1/const: it stands'),
        ({'items': {'$ref': '#'}, 'minItems': 1}, 'contains itself for ever'),
        ({'enum': ['x' * 200_000]}, 'The grammar has 2000.. bytes, 1 to 131072 are allowed'),
        (nested(200), 'nested more than 100 deep'),
        ({'type': 'array', 'prefixItems': [{}], 'items': False, 'minItems': 2}, 'not so many'),
    ],
)  # fmt: skip
def test_what_is_not_enforced_is_refused_with_its_place(schema, told):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(InputError, match=told):
        write_gbnf(text)


def test_schemas_nest_ninety_deep(vocabulary):
    text = answered(vocabulary, nested(90), 1)
    assert fits(json.loads(text), nested(90), None)


def test_most_of_an_answer_is_forced_and_the_text_is_the_same(vocabulary):
    """Bytes that every answer goes on with are those that the mask leaves, one after the other."""
    schema = CUPS | {'required': list(CUPS['properties'])}
    text = json.dumps({'color': 'red', 'count': 7, 'sure': 0.9, 'seen': True, 'note': 'a cup'})
    grammar, n_forced, rest = Grammar(vocabulary, write_gbnf(json.dumps(schema))), 0, text
    while rest:
        forced = grammar.forced().decode()
        assert rest.startswith(forced)
        n_forced += len(forced)
        for character in forced:
            scores = np.zeros(vocabulary.size, np.float32)
            grammar.mask(scores)
            (token,) = vocabulary.encode(character)
            pieces = {vocabulary.piece(token) for token in np.flatnonzero(np.isfinite(scores))}
            assert all(rest.encode().startswith(piece) for piece in pieces)
            grammar.accept(token)
            rest = rest[1:]
        if rest:
            grammar.accept(vocabulary.encode(rest[0])[0])
            rest = rest[1:]
    assert grammar.is_complete and n_forced > 0.6 * len(text)


@pytest.mark.parametrize('number', ['1e400', '-1e400', '1E+999999', '1e-400', '9' * 400])
@pytest.mark.parametrize('form', ['{"const": %s}', '{"enum": [%s, 1.5]}', '{"minimum": %s}'])
def test_numbers_of_any_size_are_taken_or_refused_in_words(number, form):
    try:
        grammar = write_gbnf(form % number)
    except InputError as error:
        assert 'json_schema cannot be used' in str(error)
    else:
        assert number.upper().replace('E4', 'E+4') in grammar
