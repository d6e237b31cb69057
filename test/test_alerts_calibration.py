# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration: what was distorted is found again, and few examples do no harm."""

import numpy as np
import pytest

from minicpmo_ros.alerts.calibration import (
    Calibration,
    blank_bias,
    calibration_error,
    fit,
    reliability,
    thresholds,
    trade_off,
)


def seconds(rng, n, scale=1.0, bias=0.0):
    """Return log-odds (n,) that scale and bias would make right, and whether it held (n,)."""
    right = rng.normal(0, 3, n)
    held = rng.random(n) < 1 / (1 + np.exp(-right))
    return (right - bias) / scale, held


@pytest.mark.parametrize('scale, bias', [(1.0, 0.0), (0.4, 2.0), (3.0, -1.0)])
def test_scale_and_bias_are_found_again(rng, scale, bias):
    log_odds, held = seconds(rng, 20_000, scale, bias)
    found = fit(log_odds, held)
    assert found.scale == pytest.approx(scale, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.1)
    assert calibration_error(found.probability(log_odds), held) < 0.015


def test_a_fit_brings_the_error_below_five_percent_on_other_seconds(rng):
    log_odds, held = seconds(rng, 400, 0.3, 2.0)
    other, held_there = seconds(rng, 2000, 0.3, 2.0)
    assert calibration_error(Calibration().probability(other), held_there) > 0.1
    assert calibration_error(fit(log_odds, held).probability(other), held_there) < 0.05


def test_with_few_examples_only_the_bias_moves(rng):
    log_odds, held = seconds(rng, 30, 2.0, 1.0)
    assert fit(log_odds, held).scale == 1.0
    for held in (np.zeros(5, bool), np.ones(5, bool)):
        assert abs(fit(np.zeros(5), held).bias) < 3
    assert fit([], []) == Calibration()


def test_what_separates_perfectly_has_a_finite_scale():
    log_odds = np.repeat([-8.0, 8.0], 50)
    found = fit(log_odds, log_odds > 0)
    assert 0.01 <= found.scale < 5
    assert np.all(np.isfinite(found.probability([-1e9, 1e9])))


def test_a_blank_window_is_no_yes():
    assert blank_bias(3.0) == -3.0
    assert Calibration(2.0, blank_bias(3.0, 2.0)).probability([3.0])[0] == pytest.approx(0.5)
    assert blank_bias(-4.0) == 0.0  # a model that says no stays as sure


def test_a_reliability_diagram_holds_all_seconds():
    p, held = np.array([0.0, 0.05, 0.55, 1.0]), np.array([False, True, True, True])
    bins = reliability(p, held)
    assert [(b.low, b.count, b.share) for b in bins] == [
        (0.0, 2, 0.5),
        (0.5, 1, 1.0),
        (0.9, 1, 1.0),
    ]
    assert calibration_error(p, held) == pytest.approx((2 * 0.475 + 0.45 + 0.0) / 4)


def test_thresholds_lie_between_the_two_kinds_of_seconds():
    p = np.array([0.1, 0.2, 0.3, 0.85, 0.9])
    on, off = thresholds(p, p > 0.5)
    assert 0.3 < on <= 0.85 and off < on and off >= 0.3
    assert thresholds(p, np.zeros(5, bool)) == (0.7, 0.3)
    rows = trade_off(p, p > 0.5)
    assert rows[2] == (0.5, 1.0, 1.0)
