# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What is seen on a machine that becomes too slow for a while, with and without the governor.

    make vision                                  # python -m benchmarks.governor

The real pipeline of images and the real governor, with an encoder that takes as long as it is
told, in time that is counted, not spent: 60 seconds of images, from second 20 to 40 on a machine
that is four times slower. An image is dropped if it is left undone because others wait
(OVERLOADED), or ready only when its second has gone on without it. Adds `governor_dropped`, the
dropped images of all rows with the governor, to build/vision.json.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass

from minicpmo_ros.process import prepare

prepare()

import numpy as np  # noqa: E402

from benchmarks.tiles import OUT, add_to, table  # noqa: E402
from minicpmo_ros.pace.governor import Governor  # noqa: E402
from minicpmo_ros.streams import Status  # noqa: E402
from minicpmo_ros.streams.image import ImagePipeline  # noqa: E402
from minicpmo_ros.units import NS  # noqa: E402

SECONDS = 60
LOAD = range(20, 40)
SLOWER = 4
SLICES = 80  # of an image: after each the work may be given up
# Seconds that a full image takes, and how late after its second it is of use: nano on a busy
# laptop; a desktop's CPU; an Orin Nano (887 ms, and the deadline of its preset).
MACHINES = ((0.2, 2.0), (0.4, 2.0), (0.6, 2.0), (0.887, 3.0))


@dataclass(frozen=True)
class Seen:
    """One second of images."""

    second: int
    status: Status
    area: float
    late_s: float


class Machine:
    """An encoder, and the time that its work takes."""

    max_tiles, image_size, takes_squares = 1, 448, False

    def __init__(self, full_s: float, latest_s: float, is_governed: bool):
        self.now_s, self._full_s, self._latest_s = 0.0, full_s, latest_s
        self._governor = Governor(latest_s=latest_s) if is_governed else None
        self.pipeline = ImagePipeline(
            self,
            unchanged_threshold=0,
            max_behind=2 if is_governed else 1,
            device=self._device,
            is_too_late=lambda second: self._late_s(second) >= latest_s,
            governor=self._governor,
        )

    def encode(self, tiles, between=None) -> np.ndarray:
        """Let the time pass that it takes."""
        height, width, _ = tiles[0].shape
        for _ in range(SLICES):
            slower = SLOWER if self.now_s >= LOAD.start and self.now_s < LOAD.stop else 1
            self.now_s += slower * self._full_s * height * width / 448**2 / SLICES
            between()
        return np.zeros((1, 4), np.float32)

    def _late_s(self, second: int) -> float:
        return self.now_s - (second + 1)

    @contextmanager
    def _device(self, second: int):
        begun_s = self.now_s

        def check() -> None:
            if self._governor:
                self._governor.check(self.now_s - begun_s)

        yield check
        if self._governor:
            area = self.pipeline.area_of(second)
            self._governor.note(self.now_s - begun_s, self._late_s(second), area)

    def live(self) -> list:
        """Return what is Seen of every second."""
        image, found, offered = np.zeros((240, 320, 3), np.uint8), [], 0
        while len(found) < SECONDS:
            self.now_s = max(self.now_s, len(found) + 1.0)
            for second in range(offered, int(self.now_s)):
                self.pipeline.offer(second * NS, lambda: image)
                offered = second + 1
            for one in self.pipeline.close(int(self.now_s) - 1):
                found.append(Seen(one.second, one.status, one.area, self._late_s(one.second)))
        return found

    def is_dropped(self, one: Seen) -> bool:
        """Return whether the window has to go on without an image that was to be seen."""
        is_late = one.status == Status.OK and one.late_s >= self._latest_s
        return one.status == Status.OVERLOADED or is_late


def summary(machine: Machine, found: list) -> tuple:
    """Return dropped images, those left out by rule, the least area, seconds until all is back."""
    ok = [one for one in found if one.status == Status.OK]
    after = [one.second for one in found if one.second >= LOAD.stop and one.area < 1]
    return (
        sum(map(machine.is_dropped, found)),
        sum(one.status == Status.SKIPPED for one in found),
        min(one.area for one in ok),
        max(after, default=LOAD.stop - 1) + 1 - LOAD.stop,
    )


def main() -> int:
    """Simulate, print and write."""
    rows, dropped = [], 0
    for full_s, latest_s in MACHINES:
        for is_governed in (False, True):
            machine = Machine(full_s, latest_s, is_governed)
            figures = summary(machine, machine.live())
            dropped += figures[0] if is_governed else 0
            rows.append((full_s, latest_s, 'on' if is_governed else 'off', *figures))
    head = ('an image takes, s', 'deadline, s', 'governor', 'dropped', 'left out', 'least area')
    print(table((*head, 'all is back after, s'), rows))
    add_to(OUT, {'governor_dropped': dropped})
    print(json.dumps({'governor_dropped': dropped}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
