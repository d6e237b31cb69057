# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Probabilities that mean what they say: scale, bias and thresholds from labelled seconds.

A calibrated probability is sigmoid(scale * log_odds + bias). Sources: J. Platt, Probabilistic
outputs for support vector machines (1999), with his regularised targets, by the Newton iteration
of H.-T. Lin, C.-J. Lin and R. Weng (Machine Learning 68, 2007); M. P. Naeini et al., AAAI 2015,
for the expected calibration error.
"""

from dataclasses import dataclass

import numpy as np

FEWEST = 20  # positives, and negatives, for a scale beside the bias
BINS = 10
STEPS = 100  # of Newton's iteration, at most: it takes about ten
CLOSE = 1e-10
FLATTEST, STEEPEST = 0.01, 100.0  # scales
MOST_LOG_ODDS = 50.0  # beyond, a probability is 0 or 1 anyway


@dataclass(frozen=True)
class Calibration:
    """What is done to log-odds before they become a probability."""

    scale: float = 1.0
    bias: float = 0.0

    def probability(self, log_odds) -> np.ndarray:
        """Return the probabilities (n,) of log-odds (n,)."""
        return 1 / (1 + np.exp(-_bounded(self.scale * np.asarray(log_odds, float) + self.bias)))


@dataclass(frozen=True)
class Bin:
    """The seconds whose probability lies in [low, high), for a reliability diagram."""

    low: float
    high: float
    count: int
    probability: float  # mean
    share: float  # of them in which the condition held


def fit(log_odds, held) -> Calibration:
    """Return the Calibration under which `held` is likeliest.

    log_odds: (n,); held: (n,) bool, whether the condition held. With fewer than FEWEST of either
    only the bias is fitted; with none of one the regularised targets still give a finite bias.
    """
    x, y = np.asarray(log_odds, float), np.asarray(held, bool)  # (n,), (n,)
    n_held, n_not = int(y.sum()), int((~y).sum())
    if not len(x):
        return Calibration()
    targets = np.where(y, (n_held + 1) / (n_held + 2), 1 / (n_not + 2))  # (n,)
    free = np.array([min(n_held, n_not) >= FEWEST, True])
    found = np.array([1.0, 0.0])  # scale, bias
    loss = _loss(found, x, targets)
    for _ in range(STEPS):
        p = Calibration(*found).probability(x)
        gradient = np.array([np.sum((p - targets) * x), np.sum(p - targets)])[free]
        weight = np.maximum(p * (1 - p), 1e-12)
        hessian = np.array(
            [[np.sum(weight * x * x), np.sum(weight * x)], [np.sum(weight * x), np.sum(weight)]]
        )[np.ix_(free, free)] + 1e-9 * np.eye(free.sum())
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > CLOSE:
            tried = found.copy()
            tried[free] -= size * step
            tried[0] = np.clip(tried[0], FLATTEST, STEEPEST)
            if (better := _loss(tried, x, targets)) < loss:
                break
            size /= 2
        else:
            break  # no step helps: this is the least
        found, gain, loss = tried, loss - better, better
        if gain < CLOSE:
            break
    return Calibration(round(float(found[0]), 4), round(float(found[1]), 4))


def blank_bias(log_odds: float, scale: float = 1.0) -> float:
    """Return the bias that takes back what a model says of a blank window, if it says yes.

    The probability of the blank window becomes a half at most; a model that says no stays as sure.
    """
    return round(min(0.0, -scale * log_odds), 4)


def reliability(probability, held, bins: int = BINS) -> list:
    """Return a Bin for every tenth of the probabilities that occurs."""
    p, y = np.asarray(probability, float), np.asarray(held, bool)
    index = np.minimum((p * bins).astype(int), bins - 1)  # (n,)
    return [
        Bin(
            k / bins,
            (k + 1) / bins,
            int((index == k).sum()),
            float(p[index == k].mean()),
            float(y[index == k].mean()),
        )
        for k in sorted(set(index.tolist()))
    ]


def calibration_error(probability, held, bins: int = BINS) -> float:
    """Return the expected calibration error, 0 to 1: the mean error of a reliability diagram."""
    found = reliability(probability, held, bins)
    count = sum(b.count for b in found)
    return sum(b.count * abs(b.probability - b.share) for b in found) / count if count else 0.0


def thresholds(probability, held) -> tuple:
    """Return (on, off) between what the seconds with and without the condition have.

    `on` is the middle of the band of thresholds with the best F1, within 0.5 and 0.95; `off` lies
    half way from there to the lower end of the band, at least 0.2 below `on`.
    """
    p, y = np.asarray(probability, float), np.asarray(held, bool)
    if not y.any() or y.all():
        return 0.7, 0.3  # nothing tells the two apart
    grid = np.round(np.arange(0.05, 1.0, 0.01), 2)  # (95,)
    scores = np.array([_f1(p >= t, y) for t in grid])
    best = grid[scores >= scores.max() - 1e-12]
    on = float(np.clip(np.round((best[0] + best[-1]) / 2, 2), 0.5, 0.95))
    off = float(np.clip(np.round(on - max(0.2, (on - best[0]) / 2), 2), 0.05, on))
    return on, off


def trade_off(probability, held, at=(0.1, 0.3, 0.5, 0.7, 0.9)) -> list:
    """Return (threshold, precision, recall) of each threshold; precision is nan without any."""
    p, y = np.asarray(probability, float), np.asarray(held, bool)
    found = []
    for threshold in at:
        said = p >= threshold
        right = float((said & y).sum())
        precision = right / said.sum() if said.any() else float('nan')
        found.append((threshold, precision, right / y.sum() if y.any() else float('nan')))
    return found


def _f1(said: np.ndarray, held: np.ndarray) -> float:
    right = (said & held).sum()
    return 2 * right / (said.sum() + held.sum())


def _bounded(log_odds: np.ndarray) -> np.ndarray:
    return np.clip(log_odds, -MOST_LOG_ODDS, MOST_LOG_ODDS)


def _loss(parameters: np.ndarray, x: np.ndarray, targets: np.ndarray) -> float:
    z = _bounded(parameters[0] * x + parameters[1])  # (n,)
    return float(np.sum(np.logaddexp(0, z) - targets * z))
