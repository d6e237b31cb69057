# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An answer held to a grammar is one of its sentences, whatever the grammar's text holds."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.language import grammar as grammar_module
from minicpmo_ros.language.grammar import Grammar, choices_grammar
from minicpmo_ros.language.model import LanguageModel
from minicpmo_ros.language.sampling import Sampler, SamplingOptions


@pytest.fixture(scope='module')
def vocabulary(tiny_model_dir):
    model = LanguageModel.load(tiny_model_dir / 'llm.gguf')
    yield model.vocabulary
    model.close()


GREEDY = SamplingOptions(repeat_penalty=1.0)


def write(vocabulary, gbnf, logits, options=GREEDY):
    """Let the grammar write to its end; each step has the same logits."""
    end = vocabulary.special_id('<|im_end|>')
    sampler = Sampler(options, vocabulary.unspoken_ids - {end}, Grammar(vocabulary, gbnf))
    data = b''
    for _ in range(200):
        token = sampler.pick(logits)
        sampler.accept(token)
        if vocabulary.is_end(token):
            return data.decode()
        data += vocabulary.piece(token)
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
    assert write(vocabulary, choices_grammar([choice]), logits) == choice


def test_a_choice_that_begins_another_can_still_win(vocabulary):
    gbnf = choices_grammar(['a', 'a b'])
    logits = np.zeros(vocabulary.size, np.float32)
    logits[vocabulary.special_id('<|im_end|>')] = 1
    assert write(vocabulary, gbnf, logits) == 'a'
    logits[vocabulary.special_id('<|im_end|>')] = -1
    assert write(vocabulary, gbnf, logits) == 'a b'


def test_each_choice_wins_for_some_logits(vocabulary):
    choices = ['red', 'blue', 'the cup']
    for choice in choices:
        logits = np.zeros(vocabulary.size, np.float32)
        logits[vocabulary.encode(choice)[0]] = 5
        assert write(vocabulary, choices_grammar(choices), logits) == choice


def test_first_tokens_have_the_free_probabilities_renormalised(vocabulary, rng):
    """The lazy check must not change the distribution: 3000 draws against the exact shares."""
    gbnf = choices_grammar(['red', 'blue', 'x'])
    logits = rng.standard_normal(vocabulary.size).astype(np.float32)
    for token, value in zip(('r', 're', 'red', 'b', 'blue', 'x'), (5, 4, 6, 5.5, 4.5, 5)):
        ids = vocabulary.encode_template(token)
        assert len(ids) == 1
        logits[ids[0]] = value
    allowed = np.zeros(vocabulary.size, np.float32)
    Grammar(vocabulary, gbnf).mask(allowed)
    shares = np.where(np.isfinite(allowed), np.exp(logits.astype(np.float64)), 0)
    shares /= shares.sum()
    assert 0.2 < np.exp(logits[np.isfinite(allowed)]).sum() / np.exp(logits).sum() < 0.8
    options = SamplingOptions(temperature=1, top_k=0, top_p=1, repeat_penalty=1, seed=3)
    sampler = Sampler(options, (), Grammar(vocabulary, gbnf))
    n = 3000
    counts = np.bincount([sampler.pick(logits) for _ in range(n)], minlength=vocabulary.size)
    assert np.abs(counts / n - shares).max() < 4 * 0.5 / n**0.5


@pytest.mark.parametrize(
    'choices, told',
    [
        (['a', ''], 'empty'),
        (['a', 'b', 'a'], "'a' is given twice"),
        (['a\0b'], 'zero'),
        (['a\ud800'], 'surrogate'),
        ([str(i) for i in range(257)], '257 choices'),
        (['x' * 1025], '1025 bytes'),
    ],
)
def test_unfit_choices_are_refused_in_words(choices, told):
    with pytest.raises(InputError, match=told):
        choices_grammar(choices)


def test_a_grammar_is_followed_to_its_end(vocabulary, rng):
    gbnf = 'root ::= "{" [a-z]{3} ":" num "}"\nnum ::= [0-9] | "-" num'
    logits = rng.standard_normal(vocabulary.size).astype(np.float32)
    logits[vocabulary.special_id('<|im_end|>')] = 9  # wants to end at once, may not
    text = write(
        vocabulary, gbnf, logits, SamplingOptions(temperature=1, top_k=0, top_p=1, seed=5)
    )
    assert text[0] == '{' and text[4] == ':' and text[-1] == '}' and text[1:4].isalpha()


@pytest.mark.parametrize(
    'gbnf',
    [
        '',
        '   ',
        'other ::= "a"',
        'root ::= "a',
        'root ::= missing',
        'root ::= root "a"',
        'root ::= ("a"',
        'root ::= "a"{2',
        'root ::= "a"{5000}',
        'root ::= [a',
        'nonsense',
        'root ::= "\\q"',
        'root ::= "a"\0',
        'root ::= "a\ud800"',
        'root ::= "a" # ' + 'x' * 20000,
        'root ::= ' + '(' * 5000 + '"a"' + ')' * 5000,
        'root ::= <[5]>',
        'root ::= <unit>',
        'root ::= !<|im_end|>',
    ],
)
def test_a_grammar_that_cannot_be_used_is_an_input_error(vocabulary, gbnf):
    with pytest.raises(InputError):
        Grammar(vocabulary, gbnf)


def test_brackets_and_marks_inside_texts_are_texts(vocabulary):
    Grammar(vocabulary, 'root ::= "<b>!((((" [<!(] # <comment> ((\n')


JSON = r"""root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws  # a comment with "quotes ( and brackets [
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_the_usual_grammar_of_json_is_taken(vocabulary, rng):
    text = write(
        vocabulary,
        JSON.replace('root ::= object', 'root ::= "[" number "]"'),
        rng.standard_normal(vocabulary.size).astype(np.float32),
        SamplingOptions(temperature=1, top_k=0, top_p=1, seed=7),
    )
    assert text[0] == '[' and text[-1] == ']'
    Grammar(vocabulary, JSON)


def doubling(n, tails):
    """Write rules of which each begins in twice as many ways as the next."""
    first, second = tails
    return (
        'root ::= a0\n'
        + ''.join(f'a{i} ::= a{i + 1} {first} | a{i + 1} {second}\n' for i in range(n))
        + f'a{n} ::= "x"\n'
    )


@pytest.mark.parametrize(
    'gbnf, told',
    [
        (doubling(30, ('', '')), 'ways'),
        (doubling(30, ('"x"', '"y"')), 'ways'),
        ('root ::= (("a"{0,40}){0,40}){0,40}', 'ways'),
        ('root ::= ' + '"a"? ' * 1000, 'ways'),
        ('root ::= a0\n' + ''.join(f'a{i} ::= a{i + 1}\n' for i in range(900)), 'too deeply'),
        ('root ::= root "a" | "b"', 'begins with itself'),
    ],
)
def test_a_grammar_that_would_take_for_ever_is_refused(vocabulary, gbnf, told):
    """llama.cpp's parser would take minutes or all memory over most of these."""
    with pytest.raises(InputError, match=told):
        Grammar(vocabulary, gbnf)


def test_a_grammar_that_becomes_slow_is_given_up(vocabulary, monkeypatch):
    monkeypatch.setattr(grammar_module, 'MAX_STEP_S', 0.02)
    with pytest.raises(InputError, match='ambiguous'):
        Grammar(vocabulary, 'root ::= ' + '"a"? ' * 150).mask(
            np.zeros(vocabulary.size, np.float32)
        )


def test_a_token_that_does_not_fit_is_never_accepted(vocabulary):
    grammar = Grammar(vocabulary, choices_grammar(['red']))
    end = vocabulary.special_id('<|im_end|>')
    for token in (vocabulary.encode_template('blue')[0], end, vocabulary.special_id('<unit>')):
        assert not grammar.allows(token)
        with pytest.raises(ValueError, match='does not allow'):
            grammar.accept(token)
    grammar.accept(vocabulary.encode_template('red')[0])
    assert grammar.allows(end)


def test_a_grammar_no_token_can_follow_ends_in_words(vocabulary):
    sampler = Sampler(
        SamplingOptions(), vocabulary.encode('x'), Grammar(vocabulary, 'root ::= "x"')
    )
    with pytest.raises(InputError, match='allows no token'):
        sampler.pick(np.zeros(vocabulary.size, np.float32))
