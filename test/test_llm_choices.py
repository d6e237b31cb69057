# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An answer held to choices is one of them, byte for byte, whatever their language and number."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.sampling import Choices, Sampler, SamplingOptions

GREEDY = SamplingOptions(repeat_penalty=1.0)
DRAWN = SamplingOptions(temperature=1, top_k=0, top_p=1, repeat_penalty=1)


@pytest.fixture(scope='module')
def vocabulary(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    yield model.vocabulary
    model.close()


def write(vocabulary, choices, logits, options=GREEDY, max_tokens=4000):
    """Let the choices write to their end; each step has the same logits."""
    end = vocabulary.special_id('<|im_end|>')
    held = Choices(vocabulary, choices, max_tokens=max_tokens)
    sampler = Sampler(options, vocabulary.unspoken_ids - {end}, held)
    data = b''
    for _ in range(max_tokens):
        token = sampler.pick(logits)
        if vocabulary.is_end(token):
            return data.decode()
        sampler.accept(token)
        data += vocabulary.piece(token)
        if held.is_complete:
            return data.decode()
    raise AssertionError(f'no end after {data}')


AWKWARD = [
    'say "yes"',
    'back\\slash',
    'two\nlines',
    'tab\t.',
    '日本語 🤖',
    'é',
    'e\u0301',
    "[a-z]* | ( ) { } # ::= '",
    ' space before',
    'root',
    '<|im_end|>',
    '<unit>',
    '%s {}',
]


@pytest.mark.parametrize('choice', AWKWARD)
def test_any_text_can_be_a_choice(vocabulary, rng, choice):
    logits = rng.standard_normal(vocabulary.size).astype(np.float32)
    assert write(vocabulary, [choice], logits) == choice


def test_a_choice_that_begins_another_can_still_win(vocabulary):
    choices = ['a', 'a b']
    logits = np.zeros(vocabulary.size, np.float32)
    logits[vocabulary.special_id('<|im_end|>')] = 1
    assert write(vocabulary, choices, logits) == 'a'
    logits[vocabulary.special_id('<|im_end|>')] = -1
    assert write(vocabulary, choices, logits) == 'a b'


def test_each_choice_wins_for_some_logits(vocabulary):
    choices = ['red', 'blue', 'the cup']
    for choice in choices:
        logits = np.zeros(vocabulary.size, np.float32)
        logits[vocabulary.encode(choice)[0]] = 5
        assert write(vocabulary, choices, logits) == choice


@pytest.mark.parametrize(
    'choices, told',
    [
        (['a', ''], 'empty'),
        (['a', ' \n'], 'empty'),
        (['a', 'b', 'a'], "'a' is given twice"),
        (['a\0b'], 'zero'),
        (['a\ud800'], 'surrogate'),
        (['x' * (1 << 20), 'y'], '1048577 bytes together'),
    ],
)
def test_unfit_choices_are_refused_in_words(vocabulary, choices, told):
    with pytest.raises(InputError, match=told):
        Choices(vocabulary, choices)


LISTS = {
    'chinese': [f'\u51b0\u7bb1\u91cc\u6709\u725b\u5976\u548c\u9e21\u86cb{i}' for i in range(1000)],
    'umlauts': [f'K\u00fcche, Gef\u00e4\u00df Nr. {i}' for i in range(1000)],
    'paths': [f'/robot{i:02d}/base->/map: x={i}.{i} (m/s) [ok]' for i in range(1000)],
    'emoji': [chr(0x1F600 + i) * (1 + i % 3) for i in range(60)],
    'prefixes': ['a' * n for n in range(1, 300)],
    'combined': ['e\u0301', '\u00e9', 'e', 'e\u0301\u0301'],
}


@pytest.mark.parametrize('name', LISTS)
def test_a_list_of_any_language_and_number_is_taken(vocabulary, rng, name):
    choices, found = LISTS[name], set()
    for seed in range(12):
        logits = rng.standard_normal(vocabulary.size).astype(np.float32)
        options = SamplingOptions(temperature=1, top_k=0, top_p=1, repeat_penalty=1, seed=seed)
        found.add(write(vocabulary, choices, logits, options))
    assert found <= set(choices) and len(found) > 1


@pytest.mark.parametrize('name', ['umlauts', 'emoji', 'prefixes', 'combined'])
def test_the_allowed_tokens_are_those_of_the_same_grammar(vocabulary, rng, name):
    choices = LISTS[name][:80]
    gbnf = 'root ::= ' + ' | '.join(
        '"' + ''.join(f'\\U{ord(c):08X}' for c in choice) + '"' for choice in choices
    )
    for _ in range(4):
        held, grammar = Choices(vocabulary, choices), Grammar(vocabulary, gbnf)
        while not grammar.is_complete:
            masks = [np.zeros(vocabulary.size, np.float32) for _ in range(2)]
            held.mask(masks[0])
            grammar.mask(masks[1])
            np.testing.assert_array_equal(*masks)
            allowed = np.flatnonzero(np.isfinite(masks[0]))
            for token in rng.integers(0, vocabulary.size, 40):
                assert held.allows(token) == (token in allowed)
            spoken = [token for token in allowed if token not in vocabulary.end_ids]
            token = int(rng.choice(spoken))
            held.accept(token)
            grammar.accept(token)
        assert held.is_complete


@pytest.mark.parametrize('options', [GREEDY, DRAWN])
def test_a_choice_with_more_bytes_than_tokens_is_finished_in_time(vocabulary, rng, options):
    """Written byte by byte it would be cut; only tokens that leave enough are allowed."""
    choices = ['the one and the red and the blue and', 'the one and the two']
    for _ in range(20):
        logits = rng.standard_normal(vocabulary.size).astype(np.float32) * 3
        for text in ('t', 'h', 'e', ' '):  # as one byte each
            logits[vocabulary.encode(text)[0]] += 9
        assert write(vocabulary, choices, logits, options, max_tokens=14) in choices
    with pytest.raises(InputError, match='takes at least [0-9]+ tokens, max_tokens allows 3'):
        Choices(vocabulary, choices, max_tokens=3)


def test_a_token_that_does_not_fit_is_never_accepted(vocabulary):
    held = Choices(vocabulary, ['red'])
    end = vocabulary.special_id('<|im_end|>')
    for token in (vocabulary.encode_template('blue')[0], end, vocabulary.special_id('<unit>')):
        assert not held.allows(token)
        with pytest.raises(ValueError, match='do not allow'):
            held.accept(token)
    held.accept(vocabulary.encode_template('red')[0])
    assert held.allows(end) and held.is_complete
