# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Intervals and comparisons agree with published figures and with plain simulation."""

from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest

from minicpmo_ros.evaluation.statistics import (
    compare,
    holm,
    share_by_clip,
    sign_flips,
    wilson,
)


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


def test_flips_of_equal_differences_are_the_fair_coin_of_mcnemar():
    def discordant(only_first: int, only_second: int) -> float:
        return sign_flips([-1] * only_first + [1] * only_second)

    assert discordant(0, 0) == 1
    assert discordant(5, 5) == 1
    assert discordant(1, 9) == pytest.approx(2 * 11 / 1024)
    assert discordant(9, 1) == discordant(1, 9)
    # The normal approximation goes on where the exact sum ends.
    for count, few in ((1001, 455), (4001, 1930)):
        exact = 2 * sum(comb(count, k) for k in range(few + 1)) / 2**count
        assert discordant(few, count - few) == pytest.approx(exact, rel=0.05)


def test_a_comparison_counts_only_where_the_runs_differ():
    first = [True] * 40 + [False] * 60
    second = [True] * 38 + [False] * 2 + [True] * 14 + [False] * 46
    found = compare(first, second)
    assert (found.only_first, found.only_second) == (2, 14)
    assert found.gain == pytest.approx(0.12) and found.is_real
    assert not compare(first, first).is_real


def test_flips_of_signs_are_counted_whole():
    for differences in ([3, 1, -1, 2], [5, 5, 1], [-2, -2, -2, 1], [4]):
        signs = product((1, -1), repeat=len(differences))
        sums = [abs(sum(s * d for s, d in zip(chosen, differences))) for chosen in signs]
        expected = np.mean([one >= abs(sum(differences)) for one in sums])
        assert sign_flips(differences) == pytest.approx(expected)


def test_questions_of_one_clip_count_as_one_another():
    """A single clip proves nothing, however many questions are about it."""
    first, second = [False] * 50, [True] * 50
    assert compare(first, second).is_real
    one = compare(first, second, ['a'] * 50)
    assert one.p_value == 1 and not one.is_real
    ten = compare(first, second, [i // 5 for i in range(50)])
    assert ten.p_value == pytest.approx(2 / 2**10)
    told = share_by_clip([True, False] * 25, [i // 25 for i in range(50)])
    assert told.share == 0.5 and told.low < 0.36


def test_holm_agrees_with_a_worked_example():
    made = [compare([True] * 100, [True] * 100)] * 4
    given = [replace(c, p_value=p) for c, p in zip(made, (0.01, 0.04, 0.03, 0.005))]
    assert [round(c.p_value, 4) for c in holm(given)] == [0.03, 0.06, 0.06, 0.02]
    assert holm([]) == []


CLIPS, A_CLIP, FAMILIES, TRIALS = 120, 5, 6, 400
MOST = 0.05 + 3 * np.sqrt(0.05 * 0.95 / TRIALS)  # of a rate of 5 percent in so many trials


def equal_runs(rng) -> tuple:
    """Two runs that are right equally often, alike within a clip; (600,) each and its clips."""
    hard = rng.normal(size=CLIPS)  # of a clip for any run
    seen = hard + rng.normal(scale=2.5, size=(2, CLIPS))  # of a clip for this run
    shares = 1 / (1 + np.exp(-seen))
    right = rng.random((2, CLIPS, A_CLIP)) < shares[..., None]
    return *right.reshape(2, -1), np.repeat(np.arange(CLIPS), A_CLIP)


def test_equal_runs_are_called_different_in_5_of_100_cases():
    rng = np.random.default_rng(5)
    families = np.arange(CLIPS * A_CLIP) // A_CLIP % FAMILIES
    real, plain, any_real, any_alone, held = 0, 0, 0, 0, 0
    for _ in range(TRIALS):
        first, second, clips = equal_runs(rng)
        real += compare(list(first), list(second), list(clips)).is_real
        plain += compare(list(first), list(second)).is_real
        of = [
            compare(*(list(a[families == f]) for a in (first, second, clips)))
            for f in range(FAMILIES)
        ]
        any_real += any(c.is_real for c in holm(of))
        any_alone += any(c.is_real for c in of)
        interval = share_by_clip(list(first), list(clips))
        held += interval.low <= 0.5 <= interval.high
    assert real / TRIALS <= MOST and any_real / TRIALS <= MOST
    assert held / TRIALS >= 1 - MOST
    # What clips and families would do, left alone: the simulation can tell.
    assert plain / TRIALS > 2 * MOST and any_alone / TRIALS > 1.5 * MOST


def test_a_true_difference_is_found():
    rng, found = np.random.default_rng(6), 0
    for _ in range(50):
        first, second, clips = equal_runs(rng)
        better = second | (rng.random(len(second)) < 0.25)
        found += compare(list(first), list(better), list(clips)).is_real
    assert found >= 40


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError):
        compare([True], [True, False])
    with pytest.raises(ValueError):
        compare([], [])
    for right, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson(right, count)
