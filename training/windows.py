# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which seconds a live window holds while a stream goes by, as the package's own window has it.

A unit is read when those that leave for it have left, and what stays has moved together: so a
stream is learned in one pass that is exactly what the live session computes second by second.
"""

from dataclasses import dataclass

import torch

from minicpmo_ros.live.window import Window

from .prompt import UNIT_ROWS


@dataclass(frozen=True)
class Windows:
    """The window of every second of a stream: itself the last, before it what it still sees."""

    seconds: tuple  # for every second those of its window, ascending

    @classmethod
    def of(cls, total, units, policy='recent'):
        """A stream of `total` seconds through a window with room for `units`."""
        window, held = Window(0, units * UNIT_ROWS, policy), []
        for second in range(total):
            window.remove(window.leaving(UNIT_ROWS))
            window.append(second, UNIT_ROWS)
            held.append(tuple(window.seconds))
        return cls(tuple(held))

    @classmethod
    def whole(cls, total):
        """Nothing leaves."""
        return cls.of(total, total)

    @property
    def lengths(self):
        """(t,) how many seconds each window holds."""
        return torch.tensor([len(held) for held in self.seconds])

    @property
    def slots(self):
        """(t, w) the second in every slot of every window, 0 where it is empty."""
        width = max(len(held) for held in self.seconds)
        return torch.tensor([held + (0,) * (width - len(held)) for held in self.seconds])
