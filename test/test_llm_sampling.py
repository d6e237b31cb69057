# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Each sampling step does what its name says, on logits small enough to count by hand."""

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.llm.sampling import Sampler, SamplingOptions

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
FREE = {'top_k': 0, 'top_p': 1.0, 'repeat_penalty': 1.0}


def shares(n=4000, forbidden=(), **options):
    sampler = Sampler(SamplingOptions(**{**FREE, **options}), forbidden)
    return np.bincount([sampler.pick(LOGITS) for _ in range(n)], minlength=5) / n


def test_greedy_takes_the_likeliest():
    assert shares(10)[0] == 1


def test_temperature_one_draws_the_models_own_probabilities():
    np.testing.assert_allclose(shares(temperature=1), np.exp(LOGITS), atol=0.03)


def test_temperature_sharpens_and_flattens():
    assert shares(temperature=0.5)[0] > 0.5
    assert shares(temperature=5)[0] < 0.3


@pytest.mark.parametrize('temperature', [1e-3, 1e-30, 1.4e-45, 5e-324])
@pytest.mark.parametrize('forbidden', [0, 1])
def test_the_least_temperatures_are_as_good_as_none(temperature, forbidden):
    drawn = shares(100, (forbidden,), temperature=temperature)
    assert drawn[1 - forbidden] == 1


def test_top_k_keeps_k():
    np.testing.assert_allclose(shares(temperature=1, top_k=2), [4 / 7, 3 / 7, 0, 0, 0], atol=0.03)


def test_top_p_keeps_the_fewest_that_reach_the_share():
    np.testing.assert_allclose(
        shares(temperature=1, top_p=0.6), [4 / 7, 3 / 7, 0, 0, 0], atol=0.03
    )
    assert shares(100, temperature=1, top_p=0.0)[0] == 1


def test_forbidden_tokens_never_come():
    assert shares(10, forbidden=[0, 1])[2] == 1
    assert shares(temperature=2, forbidden=[0])[0] == 0


def test_the_same_seed_gives_the_same_tokens_and_another_does_not():
    def draw(seed):
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed, **FREE), ())
        return [sampler.pick(LOGITS) for _ in range(30)]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize('logits', [LOGITS, -LOGITS])
def test_the_penalty_lowers_what_was_said_within_its_window(logits):
    best = int(logits.argmax())
    sampler = Sampler(SamplingOptions(repeat_penalty=3.0, penalty_window=2), ())
    sampler.accept(best)
    assert sampler.pick(logits) != best
    others = [token for token in range(5) if token != best][-2:]
    for token in others:
        sampler.accept(token)
    assert sampler.pick(logits) == best


def test_logits_are_not_changed():
    before = LOGITS.copy()
    sampler = Sampler(SamplingOptions(repeat_penalty=2.0), [0])
    sampler.accept(1)
    sampler.pick(LOGITS)
    np.testing.assert_array_equal(LOGITS, before)


@pytest.mark.parametrize(
    'name, value',
    [
        ('temperature', -1),
        ('temperature', float('nan')),
        ('temperature', float('inf')),
        ('top_k', -1),
        ('top_p', 1.5),
        ('repeat_penalty', 0),
        ('penalty_window', -1),
        ('seed', -1),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f'{name} is'):
        SamplingOptions(**{name: value})


class Forbids:
    """A grammar that allows all but one token."""

    def __init__(self, forbidden):
        self._forbidden = forbidden

    def allows(self, token):
        return token != self._forbidden

    def mask(self, scores):
        scores[self._forbidden] = -np.inf


@pytest.mark.parametrize(
    'top_p, top_k, shares',
    [
        (0.8, 100, (0, 0.6, 0.4, 0)),
        (0.5, 100, (0, 1, 0, 0)),
        (1.0, 2, (0, 0.6, 0.4, 0)),
        (1.0, 1, (0, 1, 0, 0)),
        (1.0, 0, (0, 6 / 11, 4 / 11, 1 / 11)),
    ],
)
def test_top_k_and_top_p_are_of_what_the_grammar_allows(top_p, top_k, shares):
    logits = np.log(np.array([0.45, 0.3, 0.2, 0.05], np.float32))
    options = SamplingOptions(temperature=1.0, top_k=top_k, top_p=top_p, repeat_penalty=1.0)
    sampler, n = Sampler(options, [], Forbids(0)), 20_000
    counts = np.bincount([sampler.pick(logits) for _ in range(n)], minlength=4)
    assert np.abs(counts / n - shares).max() < 4 * 0.5 / n**0.5
