# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Probabilities of choices and words are those of reading each text alone."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from test_live_session import (  # noqa: F401 (open_session: a fixture)
    SMALL,
    answer,
    fill,
    open_session,
    unit,
)

from minicpmo_ros.errors import InputError
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.window import Read
from minicpmo_ros.llm.probability import WordGroups
from minicpmo_ros.llm.sampling import log_probability, log_sum_exp

CHOICES = {
    'one token each': ('red', 'blue', 'the', 'one'),
    'several tokens': ('red square', 'blue circle', 'green'),
    'first tokens shared': ('the red one', 'the red two', 'the blue one', 'a'),
    'one begins another': ('the', 'the one', 'the one and', 'red'),
    'all begin alike': ('what the one says', 'what the red says'),
    'one alone': ('blue and red',),
    'Chinese': ('红色', '红色的', '蓝色', '绿色方块'),
    'other scripts': ('да', 'нет', 'نعم', 'ναι', 'e\u0301'),
}


def scored_alone(session, question, choice, choices):
    """Give the log-probability of one choice, token by token on a fork of its own."""
    vocabulary = session.model.vocabulary
    paths = [vocabulary.encode(each) for each in choices]
    path, ends = vocabulary.encode(choice), vocabulary.end_ids | session.prompt.stop_ids
    goes_on = any(len(p) > len(path) and p[: len(path)] == path for p in paths)
    rows = session.prompt.question(vocabulary.encode(question))
    fork, score = session.fork(len(rows) + len(path)), 0.0
    for token in path:
        (logits,) = session.read([Read(fork, rows)])
        score += log_probability(logits[-1], token)
        rows = session.model.token_rows.rows([token])
    if goes_on:
        (logits,) = session.read([Read(fork, rows)])
        score += log_sum_exp(logits[-1][sorted(ends)]) - log_sum_exp(logits[-1])
    fork.drop()
    return score


def check_choices(session, choices):
    given = answer(session, Question('what', choices))[0]
    alone = np.array([scored_alone(session, 'what', each, choices) for each in choices])
    expected = np.exp(alone - log_sum_exp(alone))
    assert given.finish == Finish.STOP and given.text in choices
    assert sum(given.probabilities) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(given.probabilities, expected, atol=1e-4)
    return given


@pytest.mark.parametrize('kind', CHOICES)
def test_choices_are_as_probable_as_each_alone(open_session, kind):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    given = check_choices(session, CHOICES[kind])
    assert session.context.next_position(1) == 0 and 0 < given.mass <= 1


def test_any_choices_are_as_probable_as_each_alone(open_session):  # noqa: F811
    session, chosen = fill(open_session(), [unit(0)]), random.Random(1)
    parts = ['the', ' red', ' one', 'a', '色', 'é', ' ', 'blue', '0']
    for _ in range(6):
        texts = {''.join(chosen.choices(parts, k=chosen.randint(1, 5))) for _ in range(8)}
        check_choices(session, tuple(filter(str.strip, texts)))  # of spaces alone: refused


def test_hundreds_of_chinese_choices_are_compared(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    texts = tuple(
        chr(0x4E00 + 40 * n) + chr(0x5E00 + 7 * n) + chr(0x4F00 + n % 9) for n in range(200)
    )
    given = answer(session, Question('what', texts))[0]
    assert given.text in texts and len(given.probabilities) == 200
    assert sum(given.probabilities) == pytest.approx(1, abs=1e-6)
    best = np.argsort(given.probabilities)[-3:]
    alone = np.array([scored_alone(session, 'what', texts[n], texts) for n in best])
    ratios = np.array(given.probabilities)[best] / given.probabilities[best[-1]]
    np.testing.assert_allclose(ratios, np.exp(alone - alone[-1]), atol=1e-3)


def test_an_answer_in_any_words_has_its_mean_and_least_log_probability(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    given, _, logits = answer(session, Question('what do you see', max_tokens=8))
    chosen = [log_probability(row, int(row.argmax())) for row in logits]
    if given.finish == Finish.STOP:
        chosen = chosen[:-1]
    assert chosen and given.probabilities == () and given.mass == 1
    assert given.mean_log_probability <= 0 and min(chosen) <= given.mean_log_probability + 1e-3
    assert given.least_log_probability <= given.mean_log_probability


def test_the_mass_is_the_share_of_what_is_allowed_where_it_is_chosen(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    vocabulary = session.model.vocabulary
    free = answer(session, Question('what', max_tokens=1))[2][0]
    allowed = [
        n
        for n in range(vocabulary.size)
        if (piece := vocabulary.piece(n))
        and (b'red'.startswith(piece) or b'blue'.startswith(piece))
    ]
    expected = math.exp(log_sum_exp(free[allowed]) - log_sum_exp(free))
    for question in (
        Question('what', ('red', 'blue')),
        Question('what', grammar='root ::= "red" | "blue"'),
    ):
        given = answer(session, question)[0]
        assert given.mass == pytest.approx(expected, rel=1e-3) and 0 < expected < 1


# --- runs of tokens that are forced ------------------------------------------------------------


def test_forced_tokens_are_read_with_others_and_the_text_is_the_same(open_session):  # noqa: F811
    """At least 60 % forced: at most 0.6 of the decodes, and what is chosen stays the model's."""
    session = fill(open_session(replace(SMALL, max_tokens=64)), [unit(0)])
    grammar = (
        r'root ::= "{\"the red one\": \"" [a-z]{2} "\", \"and the blue one\": \"" [a-z]{2} "\"}"'
    )
    given, deltas, logits = answer(session, Question('what', grammar=grammar))
    assert given.finish == Finish.STOP and given.text == ''.join(deltas)
    head, one, middle, other, tail = (
        '{"the red one": "', given.text[17:19], '", "and the blue one": "', given.text[-4:-2], '"}'
    )  # fmt: skip
    assert given.text == head + one + middle + other + tail and (one + other).isalpha()
    assert len(logits) <= 0.6 * given.answer_tokens
    assert len(session.model.vocabulary.encode(given.text)) <= given.answer_tokens + 4


def test_what_choices_share_is_not_asked_for(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    generation = session.ask(Question('what', ('what the one says', 'what the red says')))
    rows = generation.next_read().rows
    question = session.prompt.question(session.model.vocabulary.encode('what'))
    assert len(rows) > len(question)
    n_reads = 0
    while generation.answer is None:
        generation.step()
        n_reads += 1
    assert n_reads < generation.answer.answer_tokens


@pytest.mark.parametrize('text', ['x0' * 40, '日' * 200])
def test_a_forced_text_longer_than_the_answer_ends_at_max_tokens(open_session, text):  # noqa: F811
    given = answer(open_session(), Question('what', grammar=f'root ::= "{text}"', max_tokens=9))[0]
    assert given.finish == Finish.LENGTH and given.answer_tokens == 9
    assert given.text and text.startswith(given.text.rstrip('\ufffd'))


# --- groups of words ----------------------------------------------------------------------------


def shares(session, question, groups):
    found = WordGroups(session.model.vocabulary, groups)
    rows = session.prompt.question(session.model.vocabulary.encode(question))
    rows_of = session.model.token_rows.rows
    riders = [np.concatenate([rows, rows_of(path)]) for path in found.paths]
    logits = session.append(unit(1), riders=riders).riders
    return found, logits, *found.read([row.copy() for row in logits])


def test_words_count_in_all_their_spellings(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    vocabulary = session.model.vocabulary
    found, (logits,), scores, mass = shares(session, 'what', [('red',), ('blue',)])
    assert found.paths == [()]
    p = np.exp(logits - log_sum_exp(logits))
    for word, score in zip(('red', 'blue'), scores):
        forms = {spelled for form in (word, word.upper(), word.capitalize())
                 for spelled in (form, ' ' + form)}  # fmt: skip
        ids = {ids[0] for form in forms if len(ids := vocabulary.encode(form)) == 1}
        assert math.exp(score) == pytest.approx(sum(p[sorted(ids)]), rel=1e-4)
    assert mass == pytest.approx(np.exp(scores).sum(), rel=1e-6)


def test_words_that_begin_with_one_token_are_told_apart_at_the_next(open_session):  # noqa: F811
    session = fill(open_session(), [unit(0)])
    encode = session.model.vocabulary.encode
    groups = [('the red',), ('the blue',), ('the',)]
    found, logits, scores, mass = shares(session, 'what', groups)
    assert encode('the red')[0] == encode('the blue')[0] and len(found.paths) == 2
    at, shared = found.paths.index(tuple(encode('the'))), encode('the')[0]
    first, second = (np.exp(row - log_sum_exp(row)) for row in (logits[0], logits[at]))
    red, blue = (second[encode(word)[1]] * first[shared] for word in ('the red', 'the blue'))
    assert math.exp(scores[0]) == pytest.approx(red, rel=1e-3)
    assert math.exp(scores[1]) == pytest.approx(blue, rel=1e-3)
    assert math.exp(scores[2]) >= first[shared] - red - blue - 1e-6 and mass <= 1
    with pytest.raises(InputError, match="'red' is among the words of two"):
        WordGroups(session.model.vocabulary, [('red', 'one'), ('blue', 'Red')])
    with pytest.raises(InputError, match='empty'):
        WordGroups(session.model.vocabulary, [(' ',)])
