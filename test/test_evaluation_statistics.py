# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Intervals and comparisons agree with published figures and with plain simulation."""

from math import comb

import numpy as np
import pytest

from minicpmo_ros.evaluation.statistics import compare, mcnemar, wilson


def test_wilson_agrees_with_published_examples():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(right, count)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(0, 20).low == 0 and round(wilson(0, 20).high, 4) == 0.1611
    assert wilson(20, 20).high == 1


def test_wilson_holds_the_truth_in_95_of_100_cases():
    rng = np.random.default_rng(1)
    counts = rng.binomial(300, 0.475, 4000)
    held = np.mean([wilson(int(c), 300).low <= 0.475 <= wilson(int(c), 300).high for c in counts])
    assert 0.935 < held < 0.965


def test_mcnemar_is_the_fair_coin():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    # The normal approximation goes on where the exact sum ends.
    exact = 2 * sum(comb(1001, k) for k in range(456)) / 2**1001
    assert mcnemar(455, 546) == pytest.approx(exact, rel=0.05)


def test_a_comparison_counts_only_where_the_runs_differ():
    first = [True] * 40 + [False] * 60
    second = [True] * 38 + [False] * 2 + [True] * 14 + [False] * 46
    found = compare(first, second)
    assert (found.only_first, found.only_second) == (2, 14)
    assert found.gain == pytest.approx(0.12) and found.is_real
    assert not compare(first, first).is_real


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError):
        compare([True], [True, False])
    with pytest.raises(ValueError):
        compare([], [])
    for right, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson(right, count)
