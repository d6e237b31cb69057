# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How sure a share is, and whether two runs over the same questions really differ.

Questions about one clip are not independent: what one of them gets wrong, its neighbours often get
wrong too. The unit of chance is therefore the clip. Where every question has a clip of its own,
interval and test are Wilson's and McNemar's.

Sources: E. B. Wilson, Probable inference, JASA 22 (1927); Q. McNemar, Psychometrika 12 (1947), in
its exact form; E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998), for the effective
count; R. A. Fisher's randomisation test with the signs of whole clips; S. Holm, Scandinavian
Journal of Statistics 6 (1979).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from math import erfc, exp, lgamma, log, sqrt

import numpy as np

NORMAL_95 = 1.959964  # standard deviations that hold 95 percent
# The same of Student's t with one and two degrees of freedom, where its series is not close.
T_95 = {1: 12.7062, 2: 4.30265}
REAL = 0.05  # a difference is called real where chance would do as much less often
FEWEST_CLIPS = 6  # that must differ before a difference can be real: 2 / 2**6 < 0.05
LARGEST_EXACT = 4000  # sum of differences beyond which the normal approximation serves


@dataclass(frozen=True)
class Interval:
    """A share with its 95 percent confidence interval."""

    share: float
    low: float
    high: float


def wilson(right: float, count: float) -> Interval:
    """Return the share `right / count` with Wilson's interval; ValueError without any."""
    if not 0 <= right <= count or not count:
        raise ValueError(f'{right} of {count} is no share')
    share, z2 = right / count, NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # At shares of 0 and 1 rounding would leave the share outside.
    return Interval(
        share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    )


def poisson_interval(count: int) -> tuple:
    """Return the 95 percent interval (low, high) of a mean of which `count` events were seen.

    F. Garwood's exact one (Biometrika 28, 1936); without any event the one-sided one: below 3.
    """
    if not count:
        return 0.0, -log(0.05)
    return _poisson_mean(count - 1, 0.975), _poisson_mean(count, 0.025)


def _poisson_mean(count: int, chance: float) -> float:
    """Return the mean at which `count` events or fewer are seen in this share of cases."""
    low, high = 0.0, count + 10 * sqrt(count + 1) + 10
    for _ in range(100):
        mean = (low + high) / 2
        terms = [k * log(mean) - mean - lgamma(k + 1) for k in range(count + 1)]
        if sum(map(exp, terms)) > chance:
            low = mean
        else:
            high = mean
    return (low + high) / 2


def share_by_clip(right: list, clips: list) -> Interval:
    """Return the share of right answers with its interval; clips: the clip of every answer.

    Wilson's interval of the effective count: as many independent questions as are as uncertain.
    ValueError where the lists differ in length or are empty.
    """
    if len(right) != len(clips):
        raise ValueError(f'{len(right)} answers about {len(clips)} clips')
    count, n_clips = len(right), len(set(clips))
    plain = wilson(sum(map(bool, right)), count)
    if n_clips == count:
        return plain
    share = plain.share
    residuals = defaultdict(float)
    for is_right, clip in zip(right, clips):
        residuals[clip] += bool(is_right) - share
    spread = sum(r * r for r in residuals.values())
    if n_clips == 1 or not spread:  # nothing tells how alike the questions of a clip are
        return wilson(share * n_clips, n_clips)
    variance = spread / count**2 * n_clips / (n_clips - 1)
    effective = share * (1 - share) / variance * (NORMAL_95 / _t_95(n_clips - 1)) ** 2
    effective = min(effective, count)
    return replace(wilson(share * effective, effective), share=share)


def _t_95(freedom: int) -> float:
    """Return the standard deviations of Student's t that hold 95 percent, to three digits."""
    z, v = NORMAL_95, freedom
    return T_95.get(freedom) or (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same questions."""

    count: int
    only_first: int  # questions that only the first run answered rightly
    only_second: int
    p_value: float  # two-sided, with clips as the unit; corrected where there are several tests

    @property
    def gain(self) -> float:
        """By how much the second run's share is higher."""
        return (self.only_second - self.only_first) / self.count

    @property
    def is_real(self) -> bool:
        """Whether chance would give such a difference in less than 5 of 100 cases."""
        return self.p_value < REAL


def compare(first: list, second: list, clips: list | None = None) -> Comparison:
    """Compare what two runs answered rightly, question by question.

    clips: the clip of every question; None: each has its own. ValueError where lists differ in
    length or are empty.
    """
    clips = list(range(len(first))) if clips is None else clips
    if not len(first) == len(second) == len(clips) or not first:
        raise ValueError(
            f'{len(first)} and {len(second)} answers about {len(clips)} clips cannot be compared'
        )
    only_first = sum(bool(a) and not b for a, b in zip(first, second))
    only_second = sum(bool(b) and not a for a, b in zip(first, second))
    by_clip = Counter()
    for a, b, clip in zip(first, second, clips):
        by_clip[clip] += bool(b) - bool(a)
    differences = [difference for difference in by_clip.values() if difference]
    return Comparison(len(first), only_first, only_second, sign_flips(differences))


def sign_flips(differences: list) -> float:
    """Return the two-sided p-value of a sum of whole numbers: how many of all choices of their
    signs give as much?

    Exact while their absolute values add up to LARGEST_EXACT at most.
    """
    sizes = Counter(abs(difference) for difference in differences if difference)
    reach, found = sum(size * n for size, n in sizes.items()), abs(sum(differences))
    if not found:
        return 1.0
    if reach > LARGEST_EXACT:
        spread = sqrt(sum(size**2 * n for size, n in sizes.items()))
        return min(1.0, erfc((found - 1) / spread / sqrt(2)))
    chances = np.ones(1)  # of every sum, from -reach in steps of one
    for size, n in sizes.items():
        of_size = np.zeros(2 * size * n + 1)
        of_size[:: 2 * size] = _binomial(n)
        chances = np.convolve(chances, of_size)
    return float(min(1.0, chances[np.abs(np.arange(-reach, reach + 1)) >= found].sum()))


def _binomial(n: int) -> np.ndarray:
    """Return how likely 0, 1, ... n of n coins show heads, (n + 1,)."""
    logs = [lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2) for k in range(n + 1)]
    return np.exp(logs)


def holm(comparisons: list) -> list:
    """Return Comparisons with p-values that hold for all of them together.

    In at most 5 of 100 cases any of them is called real by chance.
    """
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p_value)
    corrected, least = list(comparisons), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * comparisons[i].p_value))
        corrected[i] = replace(comparisons[i], p_value=least)
    return corrected
