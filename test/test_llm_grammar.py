# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An answer held to a grammar is one of its sentences, whatever the grammar's text holds."""

import ctypes
import json
import random
import time

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from llama_cpp.llama_grammar import json_schema_to_gbnf

from minicpmo_ros.errors import CancelledError, InputError
from minicpmo_ros.llm.grammar import mask as grammar_module
from minicpmo_ros.llm.grammar.earley import Sentences
from minicpmo_ros.llm.grammar.gbnf import read_gbnf
from minicpmo_ros.llm.grammar.mask import Grammar
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.llm.sampling import Sampler, SamplingOptions


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
        if vocabulary.is_end(token):
            return data.decode()
        sampler.accept(token)
        data += vocabulary.piece(token)
    raise AssertionError(f'no end after {data}')


def test_first_tokens_have_the_free_probabilities_renormalised(vocabulary, rng):
    """The lazy check must not change the distribution: 3000 draws against the exact shares."""
    gbnf = 'root ::= "red" | "blue" | "x"'
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


def test_a_grammar_is_followed_to_its_end(vocabulary, rng):
    gbnf = 'root ::= "{" [a-z]{3} ":" num "}"\nnum ::= [0-9] | "-" num'
    logits = rng.standard_normal(vocabulary.size).astype(np.float32)
    logits[vocabulary.special_id('<|im_end|>')] = 9  # wants to end at once, may not
    text = write(
        vocabulary, gbnf, logits, SamplingOptions(temperature=1, top_k=0, top_p=1, seed=5)
    )
    assert text[0] == '{' and text[4] == ':' and text[-1] == '}' and text[1:4].isalpha()


@pytest.mark.parametrize(
    'gbnf, told',
    [
        ('', '0 bytes'),
        ('   ', '3 bytes'),
        ('root ::= "a" # ' + 'x' * 200_000, '200015 bytes'),
        ('root ::= "a"\0', 'zero character'),
        ('root ::= "a\ud800"', 'surrogate'),
        ('other ::= "a"', 'no rule `root`'),
        ('# nothing', 'no rule `root`'),
        ('nonsense', 'line 1 at its end: ::= is expected'),
        ('"a" | "b"', 'the name of a rule'),
        ('root ::= "a', 'ends within quotes'),
        ('root ::= [a', 'ends within quotes or brackets'),
        ('root ::= a\n\n  b ::= a | missing', "line 1 at 'a\\\\n.*the rule a is not defined"),
        ('root ::= "a"\nroot ::= "b"', 'line 2 .*defined twice'),
        ('root ::= ("a"', r'at its end: \) is expected'),
        ('root ::= "a")', 'end of the line'),
        ('root ::= "a"\n  "b"', 'line 2 .*the name of a rule'),
        ('root = "a"', '::= is expected'),
        ('root ::= "a"{2', '} is expected'),
        ('root ::= "a"{3,1}', 'm at most n'),
        ('root ::= "a"{5000}', 'at most 2000'),
        ('root ::= "a"{99999999999999999999}', 'a number is expected'),
        ('root ::= "a"{,3}', 'a number is expected'),
        ('root ::= "a"{-1}', 'a number is expected'),
        ('root ::= "a"{²}', 'a number is expected'),
        ('root ::= * "a"', 'nothing before'),
        ('root ::= ("ab"{2000}){2000}', 'too large'),
        ('root ::= []', 'no character'),
        ('root ::= [^\\x00-\\U0010FFFF]', 'no character'),
        ('root ::= [z-a]', 'backwards'),
        ('root ::= "\\q"', 'no character'),
        ('root ::= "\\x4"', 'no character'),
        ('root ::= "\\x٣٣"', 'no character'),
        ('root ::= "\\ud800"', 'no character'),
        ('root ::= "\\UFFFFFFFF"', 'no character'),
        ('root ::= ' + '(' * 5000 + '"a"' + ')' * 5000, 'more than 4096 parentheses'),
        ('root ::= <[5]>', 'tokens'),
        ('root ::= <unit>', 'tokens'),
        ('root ::= !<|im_end|>', 'tokens'),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_its_line(vocabulary, capfd, gbnf, told):
    with pytest.raises(InputError, match=told):
        Grammar(vocabulary, gbnf)
    assert capfd.readouterr() == ('', '')  # llama.cpp would print it


def test_any_text_as_a_grammar_is_read_or_refused_at_once(vocabulary):
    """Two thousand damaged grammars: InputError, or a grammar that can be asked."""
    chance, read = random.Random(5), 0
    started_s = time.thread_time()
    for _ in range(2000):
        text = list(chance.choice([JSON, ARITHMETIC, LIST, 'root ::= "a"{1,3} [^b-d]+']))
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice('()[]{}|*+?"\\\n ^-,:=#<a0.\r\t~é')
        try:
            Grammar(vocabulary, ''.join(text)).allows(97)
            read += 1
        except InputError as error:
            assert str(error).startswith('The grammar')
    assert read > 100
    assert time.thread_time() - started_s < 20  # milliseconds each


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


LIST = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b]+ ("\\n" | "…")  # lines\n'
ARITHMETIC = r"""
root  ::= (expr "=" term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= num | "(" expr ")" |
  [a-z]{2,4} "\u00e9"?
num   ::= [0-9]+ ("." [0-9]{0,2})?
"""
RIGHT = 'root ::= "a" root | "b" root "c" | [\\]\\[a-b] |\n"\\t" ""'
AMBIGUOUS = 'root ::= s s\ns ::= "a" s "b" | "a" s "c" | ("a" | "aa")? ("b"? "é"){0,2}'


@pytest.mark.parametrize('gbnf', [JSON, LIST, ARITHMETIC, RIGHT, AMBIGUOUS, 'root ::= . "é"? .'])
def test_the_allowed_tokens_are_those_llama_cpp_allows(vocabulary, gbnf):
    """Along random texts of the grammar, for every token at every step."""
    chance, every = random.Random(3), np.arange(vocabulary.size)
    types = np.dtype([('id', '<i4'), ('logit', '<f4'), ('p', '<f4')])  # llama_token_data
    # It takes bytes for characters that are none: beyond the last, or half of a surrogate pair.
    nothing = {b'', b'\0', b'\xed', *(bytes([byte]) for byte in range(0xF4, 0x100))}
    ordinary = [token for token in every if vocabulary.piece(token) not in nothing]
    ends = sorted(vocabulary.end_ids)
    for _ in range(6):
        grammar = Grammar(vocabulary, gbnf)
        theirs = llama.llama_sampler_init_grammar(vocabulary.pointer, gbnf.encode(), b'root')
        assert theirs
        for _ in range(25):
            data = np.zeros(vocabulary.size, types)
            data['id'] = every
            pointer = data.ctypes.data_as(llama.llama_token_data_p)
            array = llama.llama_token_data_array(pointer, len(data), -1, False)
            llama.llama_sampler_apply(theirs, ctypes.byref(array))
            expected, scores = np.isfinite(data['logit']), np.zeros(vocabulary.size, np.float32)
            grammar.mask(scores)
            found = np.isfinite(scores)
            np.testing.assert_array_equal(found[ordinary], expected[ordinary])
            np.testing.assert_array_equal(found[ends], expected[ends])
            for token in chance.sample(ordinary, 20):
                assert grammar.allows(token) == found[token]
            allowed = [token for token in ordinary if found[token]]
            if not allowed:
                break
            token = int(chance.choice(allowed))
            grammar.accept(token)
            llama.llama_sampler_accept(theirs, token)
        llama.llama_sampler_free(theirs)


LITERALS = 'a b ab é \\n \\" \\\\ \\x41 \\u00e9 \\U0001F600 ['.split()
RANGES = 'a a-c b-z é α-ω \\] \\n 0-9 \\x00-\\x1f 一-龥'.split()
REPEATS = ['*', '+', '?', '{2}', '{1,3}', '{0,2}', '{2,}', '{0}', '', '', '', '', '', '']


def random_grammar(chance):
    """Write rules of all that GBNF has, now and then with a damaged character."""
    names = ['root', 'x-y', 'c1', 'd'][: chance.randint(1, 4)]

    def term(depth):
        kind = chance.randrange(12)
        if kind < 4:
            return '"' + ''.join(chance.choices(LITERALS, k=chance.randint(1, 2))) + '"'
        if kind < 7:
            return '[' + ''.join(chance.choices(RANGES, k=chance.randint(1, 2))) + ']'
        if kind == 7:
            return '.'
        if kind < 10 or depth:  # llama.cpp is lost in deeper ones that repeat
            return chance.choice(names[-1:])
        return f'({choice(depth + 1)})'

    def choice(depth):
        sequences = (
            ' '.join(term(depth) + chance.choice(REPEATS) for _ in range(chance.randint(0, 3)))
            for _ in range(chance.randint(1, 3))
        )
        return chance.choice([' | ', '|', ' |\n  ']).join(sequences)

    text = '\n'.join(f'{name} ::= {choice(0)}' for name in names)
    if chance.random() < 0.3:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice('()[]{}|*+?"\\\n ^-,:=#a0.\r\té') + text[at + 1 :]
    return text


def test_llama_cpp_takes_and_refuses_the_same_grammars(vocabulary, capfd, caplog):
    """But for rules that begin with themselves, which ours takes, and some mistakes it refuses."""
    chance, n_taken = random.Random(8), 0
    for _ in range(1500):
        text = random_grammar(chance)
        caplog.clear()
        theirs = llama.llama_sampler_init_grammar(vocabulary.pointer, text.encode(), b'root')
        is_beyond = 'left recursion' in caplog.text or '{0}' in text  # of which nothing is left
        try:
            Grammar(vocabulary, text)
            ours = ''
        except InputError as error:
            ours = str(error)
        if theirs:
            llama.llama_sampler_free(theirs)
            n_taken += not ours
        is_mistake = any(
            told in ours for told in ('backwards', 'is not defined', 'each other for ever')
        )
        assert bool(theirs) == (not ours) or is_beyond or is_mistake, (text, ours)
    assert n_taken > 300
    capfd.readouterr()  # what llama.cpp prints


@pytest.mark.parametrize(
    'gbnf, text, goes_on',
    [
        ('root ::= root "a" | "b"', 'b' + 'a' * 50, 'a'),
        ('root ::= root root | "a" | ""', 'a' * 50, 'a'),
        ('root ::= root root root | root root | "a"', 'a' * 3000, 'a'),
        ('root ::= root "b" root | "c" root | "a"', 'ab' * 1000 + 'cca', 'b'),
        ('root ::= "a" root "b" root | "a" root | "a"', 'a' * 600 + 'b', 'a'),
        ('root ::= "a" root "b" | "a" root | root root | "c"', 'a' * 600 + 'c', 'abc'),
        ('root ::= "a" root "a" | "a" root | "a"', 'a' * 1000, 'a'),
        ('root ::= s\ns ::= s t | "a" | ""\nt ::= t s | s "a"?', 'a' * 1000, 'a'),
        ('root ::= ("a"?)*', 'a' * 50, 'a'),
        ('root ::= (""*)* "a"+*', 'a' * 50, 'a'),
        ('root ::= "a" root "b" | "a" root "c" | ""', 'a' * 100, 'abc'),  # 2 ** 100 stacks
        ('root ::= "a" root? "b"? root? "c"?', 'a' * 50, 'abc'),
        ('root ::= (("a"{0,40}){0,40}){0,40}', 'a' * 30, 'a'),
        ('root ::= ' + '"a"? ' * 400, 'a' * 50, 'a'),
        (
            'root ::= a0\n'
            + ''.join(f'a{i} ::= a{i + 1}?\n' for i in range(900))
            + 'a900 ::= "a"',
            '',
            'a',
        ),
        ('root ::= ' + '(' * 30 + '"a"*' + ')*' * 30, 'a' * 50, 'a'),
    ],
)
def test_however_ambiguous_a_text_is_it_is_followed_in_time(vocabulary, gbnf, text, goes_on):
    """llama.cpp takes minutes, all memory or the process over most of these."""
    started_s = time.thread_time()
    grammar = Grammar(vocabulary, gbnf)
    for token in vocabulary.encode(text):
        grammar.accept(token)
    for letter in 'abc':
        assert grammar.allows(vocabulary.encode(letter)[0]) == (letter in goes_on)
    assert time.thread_time() - started_s < 10


def accepted_ms(vocabulary, gbnf, text, n):
    """Accept a text n times; return the milliseconds of each of the tokens."""
    grammar, ids, spent = Grammar(vocabulary, gbnf), vocabulary.encode(text), []
    for _ in range(n):
        for token in ids:
            started_s = time.thread_time()
            grammar.accept(token)
            spent.append(1e3 * (time.thread_time() - started_s))
    return grammar, spent


@pytest.mark.parametrize(
    'gbnf',
    [
        'root ::= w+\nw ::= [a-z ]+',
        'root ::= (w " "?)* "."?\nw ::= [a-z]* [a-z ]+',
        'root ::= ([a-z]+ | [a-z ]+ | "see" | "see you")*',
        'root ::= line | line " " root\nline ::= [a-z]+ (" " [a-z]+)*',
        'root ::= root " " word | word\nword ::= [a-z] word | [a-z]',
    ],
)
def test_what_repeats_leaves_no_trace_however_many_ways_there_are(vocabulary, gbnf):
    """In states, which do not depend on the machine: after 2000 tokens no more than after 200."""
    text = 'see you in the blue one and'
    few, _ = accepted_ms(vocabulary, gbnf, text, 1)
    many, _ = accepted_ms(vocabulary, gbnf, ' '.join([text] * 20), 1)
    assert len(many.states) <= 2 * len(few.states) + 20
    scores = np.zeros(vocabulary.size, np.float32)
    many.mask(scores)
    assert np.isfinite(scores[vocabulary.encode('a')[0]])


SCHEMAS = [
    {'type': 'object', 'properties': {'label': {'type': 'string', 'maxLength': 33}},
     'required': ['label']},
    {'type': 'object', 'properties': {'label': {'type': 'string', 'maxLength': 600}},
     'required': ['label']},
    {'type': 'array', 'items': {'enum': ['cup', 'door']}, 'maxItems': 40},
    {'type': 'array', 'items': {'type': 'object', 'properties': {
        f'field_{i}': {'type': ['number', 'string', 'null']} for i in range(12)}}},
]  # fmt: skip


@pytest.mark.parametrize('schema', SCHEMAS)
def test_the_grammar_of_a_json_schema_is_taken_and_followed(vocabulary, rng, schema):
    gbnf = json_schema_to_gbnf(json.dumps(schema))
    sampler = Sampler(
        SamplingOptions(temperature=1, top_k=0, top_p=1, repeat_penalty=1, seed=2),
        vocabulary.unspoken_ids - {vocabulary.special_id('<|im_end|>')},
        Grammar(vocabulary, gbnf),
    )
    logits = rng.standard_normal(vocabulary.size).astype(np.float32)
    logits[vocabulary.encode('"')[0]] += 4  # texts end
    for token in (']', '}'):
        logits[vocabulary.encode(token)[0]] += 6
    data = b''
    for _ in range(3000):
        token = sampler.pick(logits)
        if vocabulary.is_end(token):
            break
        sampler.accept(token)
        data += vocabulary.piece(token)
    assert isinstance(json.loads(data), (dict, list))


def test_groups_nest_a_thousand_deep(vocabulary):
    grammar = Grammar(vocabulary, 'root ::= ' + '("a" ' * 3000 + ')?' * 3000 + ' "b"')
    for _ in range(2000):
        grammar.accept(vocabulary.encode('a')[0])
    assert grammar.allows(vocabulary.encode('b')[0])
    nested = Grammar(vocabulary, 'root ::= "(" root ")" | "x"')
    for text, n in (('(', 1000), ('x', 1), (')', 1000)):
        for _ in range(n):
            nested.accept(vocabulary.encode(text)[0])
    assert nested.is_complete


def test_the_states_that_are_kept_are_bounded(vocabulary, monkeypatch):
    monkeypatch.setattr(grammar_module, 'MAX_STATES', 30)
    text = 'see you ' * 40
    grammar, _ = accepted_ms(vocabulary, 'root ::= [a-z ]{0,1900} "."', text, 1)
    assert len(grammar.states) < 60
    assert grammar.allows(vocabulary.encode('.')[0])


def test_a_grammar_that_becomes_slow_is_given_up(vocabulary, monkeypatch):
    monkeypatch.setattr(grammar_module, 'MAX_WORK', 300)
    grammar = Grammar(vocabulary, 'root ::= ' + '"a"? ' * 150)
    with pytest.raises(InputError, match='ambiguous'):
        grammar.allows(ord('a'))


def test_rules_that_are_empty_in_a_long_chain_are_found_at_once(vocabulary):
    """Either way round: the last rule is empty, and so are all before it."""
    names = [f'r{i}' for i in range(4000)]
    rules = [f'{name} ::= {after}' for name, after in zip(names, names[1:])]
    for order in (rules, rules[::-1]):
        text = '\n'.join(['root ::= r0 "a"', *order, 'r3999 ::= "b"?'])
        started_s = time.thread_time()
        Sentences(read_gbnf(text))
        assert time.thread_time() - started_s < 5


def test_a_look_at_all_tokens_can_be_ended_in_its_middle(vocabulary):
    calls = []

    def between():
        calls.append(1)
        if len(calls) == 3:
            raise CancelledError('enough')

    grammar = Grammar(vocabulary, 'root ::= [a-z]{200}', between=between)
    scores = np.zeros(vocabulary.size, np.float32)
    with pytest.raises(CancelledError, match='enough'):
        grammar.mask(scores)
    assert len(calls) == 3 and not scores.any()
    grammar.mask(scores)
    assert 0 < np.isfinite(scores).sum() < len(scores)


def test_a_token_that_does_not_fit_is_never_accepted(vocabulary):
    grammar = Grammar(vocabulary, 'root ::= "red"')
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


def test_a_likelier_token_outside_the_grammar_costs_no_allowed_one_its_place(vocabulary):
    """Hundreds of tokens that the grammar refuses are likelier than all that it allows."""
    logits = np.linspace(9, 8, vocabulary.size, dtype=np.float32)
    red, blue = (vocabulary.encode_template(text)[0] for text in ('red', 'blue'))
    logits[red], logits[blue] = 1.0, 1.5
    assert write(vocabulary, 'root ::= "red" | "blue"', logits) == 'blue'
    drawn = SamplingOptions(temperature=1, top_k=3, top_p=0.9, repeat_penalty=1)
    assert write(vocabulary, 'root ::= "red"', logits, drawn) == 'red'


def test_a_stop_that_is_no_end_of_all_texts_ends_a_sentence_too(vocabulary):
    stop = vocabulary.special_id('<|tts_eos|>')
    assert not vocabulary.is_end(stop)
    grammar = Grammar(vocabulary, 'root ::= "a" "b"*', frozenset({stop}))
    assert not grammar.allows(stop) and not grammar.is_complete
    grammar.accept(vocabulary.encode('a')[0])
    assert grammar.allows(stop) and not grammar.is_complete
    with pytest.raises(ValueError):
        grammar.accept(stop)
