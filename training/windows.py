# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a live window holds while a stream goes by, as the package's own window has it.

A stream is a row of items: seconds, seconds whose image is that of the second before and is not
read again, and remembered turns. An item is read when those that leave for it have left, and what
stays has moved together: so a stream is learned in one pass that is exactly what the live session
computes second by second.
"""

from dataclasses import dataclass

import torch

from minicpmo_ros.live.window import Window

from .prompt import STILL_ROWS, UNIT_ROWS


@dataclass(frozen=True)
class Windows:
    """The window of every item of a stream: itself the last, before it what it still sees."""

    held: tuple  # for every item those of its window, ascending
    rows: tuple  # of every item
    seconds: tuple  # which second every item is; None: a remembered turn

    @classmethod
    def of(cls, total, units, policy='recent'):
        """A stream of `total` seconds through a window with room for `units`."""
        window, held = Window(0, units * UNIT_ROWS, policy), []
        for second in range(total):
            window.remove(window.spans_to_evict(UNIT_ROWS))
            window.append(second, UNIT_ROWS)
            held.append(tuple(window.seconds))
        return cls(tuple(held), (UNIT_ROWS,) * total, tuple(range(total)))

    @classmethod
    def whole(cls, total, still=None, turn_at=None, turn_rows=0):
        """Nothing leaves. `still`: for every second whether its image is the one before;
        `turn_at`: in front of which second a turn of `turn_rows` is remembered.
        """
        rows = [STILL_ROWS if still and still[i] else UNIT_ROWS for i in range(total)]
        seconds = list(range(total))
        if turn_at is not None:
            rows.insert(turn_at, turn_rows)
            seconds.insert(turn_at, None)
        held = tuple(tuple(range(i + 1)) for i in range(len(rows)))
        return cls(held, tuple(rows), tuple(seconds))

    @property
    def lengths(self):
        """(t,) how many items each window holds."""
        return torch.tensor([len(held) for held in self.held])

    @property
    def slots(self):
        """(t, w) the item in every slot of every window, 0 where it is empty."""
        width = max(len(held) for held in self.held)
        return torch.tensor([held + (0,) * (width - len(held)) for held in self.held])

    @property
    def units(self):
        """The items that are seconds."""
        return [item for item, second in enumerate(self.seconds) if second is not None]

    def seconds_of(self, item):
        """The seconds that the window of an item holds."""
        return [self.seconds[i] for i in self.held[item] if self.seconds[i] is not None]

    def slots_of(self, item):
        """For every second of the window of an item its slot, -1 where it shows no image."""
        return [
            slot if self.rows[i] == UNIT_ROWS else -1
            for slot, i in enumerate(self.held[item])
            if self.seconds[i] is not None
        ]
