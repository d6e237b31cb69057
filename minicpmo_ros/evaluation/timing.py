# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Time that work takes, and ratios of two ways to do the same work.

A machine under test is never idle, so two ways are measured in turn, pair by pair, and the ratio
is the median over the pairs. Of one thread on a CPU the time is that which it computed: the work.
Several threads share that, and a GPU works beside the process: there it is the time that passes.
"""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import EngineError

CLOCKS = {'cpu': time.process_time, 'wall': time.perf_counter}  # seconds


def clock_for(on_cpu: bool, threads: int) -> str:
    """Name the clock of CLOCKS that tells how long work takes there."""
    return 'cpu' if on_cpu and threads == 1 else 'wall'


def spent_ms(work: Callable[[], object], clock: str = 'cpu') -> float:
    """Give how long a call takes, ms."""
    now = CLOCKS[clock]
    started_s = now()
    work()
    return 1e3 * (now() - started_s)


@dataclass(frozen=True)
class Ratio:
    """How much of another way's time one way takes."""

    one: str  # what was measured
    other: str
    one_ms: float  # medians
    other_ms: float
    value: float  # median of the ratios of the pairs, one over other
    low: float  # quartiles of these ratios
    high: float
    pairs: int


def compare(
    one: Callable[[], float],
    other: Callable[[], float],
    names: tuple,
    n_pairs: int,
    warm_up: bool = True,
) -> Ratio:
    """Measure two ways in turn, `n_pairs` times; each call gives the ms it took.

    Who is first changes from pair to pair. warm_up: a first pair is not counted, because caches
    and graphs are made in it. Raises EngineError where a way took no time: then nothing was
    measured.
    """
    if n_pairs < 1:
        raise ValueError(f'{n_pairs} pairs; one at least is needed')
    pairs = []
    for i in range(n_pairs + warm_up):
        if i % 2:
            b, a = other(), one()
        else:
            a, b = one(), other()
        for name, ms in zip(names, (a, b)):
            if not (math.isfinite(ms) and ms > 0):
                raise EngineError(f'{name} took {ms} ms: nothing was measured')
        pairs.append((a, b))
    taken = np.array(pairs[warm_up:])  # (pairs, 2) ms
    ratios = taken[:, 0] / taken[:, 1]
    return Ratio(
        *names,
        *(float(ms) for ms in np.median(taken, axis=0)),
        *(float(x) for x in np.percentile(ratios, (50, 25, 75))),
        n_pairs,
    )


class Meter:
    """Time by what it is spent on; what is wrapped within what is wrapped counts once."""

    def __init__(self, clock: str = 'cpu'):
        self._now = CLOCKS[clock]
        self.ms = {}

    def reset(self) -> None:
        """Begin anew."""
        self.ms = dict.fromkeys(self.ms, 0.0)

    @contextmanager
    def wrapped(self, owner, name: str, part: str):
        """Let calls of owner.name count for `part`, as long as the context lasts."""
        call, own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, self.timed(part, call))
        try:
            yield
        finally:
            if own:
                setattr(owner, name, call)
            else:
                delattr(owner, name)

    def timed(self, part: str, call: Callable) -> Callable:
        """Wrap a call so that its time counts for `part`, that of wrapped calls in it not."""
        self.ms.setdefault(part, 0.0)

        def measured(*arguments, **keywords):
            inside_ms, started_s = sum(self.ms.values()), self._now()
            try:
                return call(*arguments, **keywords)
            finally:
                ms = 1e3 * (self._now() - started_s)
                self.ms[part] += ms - (sum(self.ms.values()) - inside_ms)

        return measured
