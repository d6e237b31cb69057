# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What to give up when memory grows short, before the system ends the process.

Figures in, a verdict in words out.
Two bounds: what this process may occupy, and what of the machine's memory must stay available.
Where one is passed, the context is made smaller, by halves; that returns its keys and values,
the only large memory that a loaded model can do without. Where the smallest does not help,
questions are refused. What was given up comes back one step at a time, once there has been room
for it, with a margin, for several looks on end.
"""

from dataclasses import dataclass

from minicpmo_ros.models.llm_memory import rounded

MARGIN_MIB = 32.0  # that must be free beyond what comes back costs
CALM_LOOKS = 3
FAILED_LOOKS = 30  # before what was not to be had is tried again


@dataclass(frozen=True)
class MemoryBounds:
    """0: no such bound."""

    limit_mib: float = 0.0  # of what this process occupies
    reserve_mib: float = 0.0  # of the machine's memory, must stay available


@dataclass(frozen=True)
class Verdict:
    """What there shall be; the reason is '' where nothing is given up."""

    n_ctx: int
    refuses: bool = False
    reason: str = ''
    remedy: str = ''


def context_sizes(n_ctx: int, smallest: int) -> tuple:
    """Give the sizes a context may have, largest first: halves, rounded as llama.cpp does."""
    sizes = [n_ctx]
    while rounded(sizes[-1] / 2) >= smallest and rounded(sizes[-1] / 2) < sizes[-1]:
        sizes.append(rounded(sizes[-1] / 2))
    return tuple(sizes)


class MemoryGuard:
    """Looks at figures in turn; each must be newer than the last verdict's effect."""

    def __init__(self, sizes: tuple, mib_per_position: float):
        self._sizes, self._mib_per_position = sizes, mib_per_position
        self._step, self._refuses, self._calm = 0, False, 0

    def settle(self, n_ctx: int) -> None:
        """Take note of the size the context has become; another than decided was not to be had."""
        if n_ctx != self._sizes[self._step]:
            self._step = self._sizes.index(n_ctx)
            self._calm = -FAILED_LOOKS

    def look(self, used_mib: float, available_mib: float, bounds: MemoryBounds) -> Verdict:
        """Decide by what the process occupies and what the machine has available."""
        spare_mib, why = _spare(used_mib, available_mib, bounds)
        if spare_mib < 0:
            self._calm = 0
            self._give_up(-spare_mib)
        else:
            self._calm = self._calm + 1 if spare_mib >= self._cost_mib() + MARGIN_MIB else 0
            if self._calm >= CALM_LOOKS:
                self._calm = 0
                self._take_back()
        return self._verdict(why)

    def _give_up(self, short_mib: float) -> None:
        if self._step == len(self._sizes) - 1:
            self._refuses = True
            return
        size = self._sizes[self._step]
        while self._step < len(self._sizes) - 1:
            self._step += 1
            if (size - self._sizes[self._step]) * self._mib_per_position >= short_mib:
                break

    def _take_back(self) -> None:
        if self._refuses:
            self._refuses = False
        elif self._step:
            self._step -= 1

    def _cost_mib(self) -> float:
        """Give what the next step back takes."""
        if self._refuses or not self._step:
            return 0.0
        more = self._sizes[self._step - 1] - self._sizes[self._step]
        return more * self._mib_per_position

    def _verdict(self, why: str) -> Verdict:
        n_ctx, full = self._sizes[self._step], self._sizes[0]
        if not self._step and not self._refuses:
            return Verdict(n_ctx)
        reason = f'Memory is short: {why}.'
        if self._step:
            reason += f' The window has {n_ctx} of {full} positions, older seconds were let go.'
        if self._refuses:
            reason += ' Questions are refused until there is more.'
        return Verdict(
            n_ctx,
            self._refuses,
            reason,
            'End other programs, use smaller files or kv_type q8_0, lower n_ctx, or change '
            'memory_limit_mib or memory_reserve_mib.',
        )


def _spare(used_mib: float, available_mib: float, bounds: MemoryBounds) -> tuple:
    """Give (MiB up to the nearer bound, a sentence about it); negative: it is passed."""
    spares = [(float('inf'), 'nothing bounds it now')]
    if bounds.limit_mib:
        spares.append(
            (
                bounds.limit_mib - used_mib,
                f'this process occupies {used_mib:.0f} MiB, memory_limit_mib allows '
                f'{bounds.limit_mib:.0f}',
            )
        )
    if bounds.reserve_mib:
        spares.append(
            (
                available_mib - bounds.reserve_mib,
                f'{available_mib:.0f} MiB are available on this machine, memory_reserve_mib '
                f'leaves {bounds.reserve_mib:.0f} alone',
            )
        )
    return min(spares)
