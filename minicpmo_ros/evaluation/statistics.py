# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How sure a share is, and whether two runs over the same questions really differ.

Sources: E. B. Wilson, Probable inference, JASA 22 (1927); Q. McNemar, Psychometrika 12 (1947), in
its exact form.
"""

from dataclasses import dataclass
from math import comb, sqrt

NORMAL_95 = 1.959964  # standard deviations that hold 95 percent
LARGEST_EXACT = 1000  # discordant pairs beyond which the normal approximation serves


@dataclass(frozen=True)
class Interval:
    """A share with its 95 percent confidence interval."""

    share: float
    low: float
    high: float


def wilson(right: int, count: int) -> Interval:
    """Give the share `right / count` with Wilson's interval; ValueError without any."""
    if not 0 <= right <= count or not count:
        raise ValueError(f'{right} of {count} is no share')
    share, z2 = right / count, NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # At shares of 0 and 1 rounding would leave the share outside.
    return Interval(
        share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same questions."""

    count: int
    only_first: int  # questions that only the first run answered rightly
    only_second: int
    p_value: float  # of McNemar's test, two-sided

    @property
    def gain(self) -> float:
        """By how much the second run's share is higher."""
        return (self.only_second - self.only_first) / self.count

    @property
    def is_real(self) -> bool:
        """Whether chance would give such a difference in less than 5 of 100 cases."""
        return self.p_value < 0.05


def compare(first: list, second: list) -> Comparison:
    """Compare what two runs answered rightly, question by question; ValueError where they differ
    in length or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f'{len(first)} and {len(second)} answers cannot be compared')
    only_first = sum(bool(a) and not b for a, b in zip(first, second))
    only_second = sum(bool(b) and not a for a, b in zip(first, second))
    return Comparison(len(first), only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the two-sided p-value: of so many discordant pairs, how unlikely is such a split?"""
    count, smaller = only_first + only_second, min(only_first, only_second)
    if count > LARGEST_EXACT:
        from statistics import NormalDist

        distance = max(0.0, abs(only_first - only_second) - 1) / sqrt(count)
        return min(1.0, 2 * (1 - NormalDist().cdf(distance)))
    tail = sum(comb(count, k) for k in range(smaller + 1))
    return min(1.0, 2 * tail / 2**count)
