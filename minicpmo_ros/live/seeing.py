# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""From a camera's pictures to one embedding a second.

Of each second [n, n + 1) the newest picture is used; the others are not even decoded. Every second
from the first picture on is given once, in order, also when it has nothing to give. A picture like
the last encoded one reuses its embedding. One thread uses a Seeing; offering is cheap, advancing
decodes and encodes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from minicpmo_ros.errors import EngineError, InputError, ModelFileError
from minicpmo_ros.live.status import LARGEST, Status
from minicpmo_ros.media.geometry import TilePlan, plan_tiles, slice_picture
from minicpmo_ros.media.picture import thumbnail

NS = 1_000_000_000
UNCHANGED_THRESHOLD = 8.0  # levels of 255: above a camera's noise in a mean over a cell
LONGEST_EMPTY_S = 10  # a longer gap in the stamps is a jump, its seconds are not given


@dataclass(frozen=True)
class SeenSecond:
    """What was seen in one second; without rows the status says why, and the reason more."""

    second: int  # covers [second, second + 1) s of the stamps
    status: Status = Status.EMPTY
    reason: str = ''  # a sentence, for LOST
    rows: np.ndarray | None = None  # (pictures * queries, width) float16: overview, then tiles
    picture_stamp_ns: int = 0
    source_width: int = 0  # of the picture as it came, pixels
    source_height: int = 0
    tiles_wide: int = 0  # of the grid; 0: overview only
    tiles_high: int = 0
    preprocess_ms: float = 0.0  # decoding, comparing, slicing
    encode_ms: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class _Memory:
    """The last encoded picture."""

    small: np.ndarray  # (32, 32, 3) float32 colours
    seen: SeenSecond


class Seeing:
    """Chooses, decodes, slices and encodes pictures, second by second.

    `max_tiles`: of the grid beside the overview; 1: overview only. `unchanged_threshold`: a
    picture reuses the last encoding when no colour (0..255) of their 32 x 32 thumbnails differs
    by as much; 0: never. `between` is called between slices of the encoder's work.
    `max_behind`: of the pictures of seconds closed together only so many, the newest, are encoded
    (the others are OVERLOADED), so that a slow encoder does not fall behind for good; None: all.
    """

    def __init__(
        self,
        vision_encoder,
        max_tiles: int = 1,
        unchanged_threshold: float = UNCHANGED_THRESHOLD,
        between: Callable[[], None] | None = None,
        max_behind: int | None = None,
    ):
        self._max_behind = max_behind
        self._encoder, self._max_tiles = vision_encoder, max_tiles
        self._threshold, self._between = unchanged_threshold, between
        # Second: (stamp_ns, make_picture), the newest of each; None where it was dropped.
        self._offered: dict = {}
        self._next: int | None = None  # the first second that was not given yet
        self._memory: _Memory | None = None
        self.late = 0  # pictures that came after their second was given

    def offer(self, stamp_ns: int, make_picture: Callable[[], np.ndarray]) -> None:
        """Note a picture; `make_picture()` gives it as (H, W, 3) uint8 RGB, if it is chosen.

        A picture more than a second before what was given restarts the stream: its time jumped.
        """
        second = stamp_ns // NS
        if self._next is None or second < self._next - 1:
            self._next = second
            self._offered.clear()
        if second < self._next:
            self.late += 1
        elif not self._offered.get(second) or stamp_ns >= self._offered[second][0]:
            self._offered[second] = (stamp_ns, make_picture)

    def drop(self, second: int) -> None:
        """Note that a second had pictures for which there was no time: OVERLOADED, not EMPTY."""
        if self._next is not None and second >= self._next:
            self._offered.setdefault(second, None)

    @property
    def next_second(self) -> int | None:
        """The first second that was not given yet; None before any picture."""
        return self._next

    def restart(self, second: int) -> None:
        """Forget what was offered; go on with this second."""
        self._offered.clear()
        self._next = second

    def advance(self, stamp_ns: int) -> list[SeenSecond]:
        """Give the seconds that are over when the stream has reached `stamp_ns`."""
        return self.close(stamp_ns // NS - 1)

    def close(self, second: int) -> list[SeenSecond]:
        """Give every second up to this one that was not given yet."""
        if self._next is None:
            return []
        due = range(self._next, second + 1)
        if len(due) > LONGEST_EMPTY_S:
            due = sorted(number for number in self._offered if number <= second)
        waiting = [number for number in due if self._offered.get(number)]
        too_many = len(waiting) - (self._max_behind or len(waiting))
        for number in waiting[: max(0, too_many)]:
            self._offered[number] = None
        seen = []
        for number in due:
            # Noted before the work: a picture that raises is not tried again.
            self._next = number + 1
            seen.append(self._see(number, self._offered.pop(number, ())))
        self._next = max(self._next, second + 1)
        return seen

    def _see(self, second: int, offered: tuple | None) -> SeenSecond:
        if not offered:
            return SeenSecond(second, Status.OVERLOADED if offered is None else Status.EMPTY)
        stamp_ns, make_picture = offered
        started_s = perf_counter()
        try:
            picture = _checked(make_picture())
            plan = plan_tiles(
                picture.shape[1], picture.shape[0], self._max_tiles, self._encoder.image_size
            )
        except Exception as error:  # whatever a decoder raises on damaged data
            reason = str(error) or type(error).__name__
            return SeenSecond(
                second,
                Status.LOST,
                reason,
                picture_stamp_ns=stamp_ns,
                preprocess_ms=_ms_since(started_s),
            )
        small = thumbnail(picture)
        new = SeenSecond(
            second,
            Status.OK,
            picture_stamp_ns=stamp_ns,
            source_width=picture.shape[1],
            source_height=picture.shape[0],
            tiles_wide=plan.tiles_wide,
            tiles_high=plan.tiles_high,
        )
        if self._is_unchanged(small, new):
            return replace(
                new, rows=self._memory.seen.rows, reused=True, preprocess_ms=_ms_since(started_s)
            )
        return self._encode(new, picture, plan, small, started_s)

    def _is_unchanged(self, small: np.ndarray, new: SeenSecond) -> bool:
        """Compare with the last encoded picture, so that slow changes add up."""
        if self._memory is None:
            return False
        old = self._memory.seen
        same_size = (old.source_width, old.source_height) == (new.source_width, new.source_height)
        return same_size and np.abs(small - self._memory.small).max() < self._threshold

    def _encode(
        self,
        new: SeenSecond,
        picture: np.ndarray,
        plan: TilePlan,
        small: np.ndarray,
        started_s: float,
    ) -> SeenSecond:
        overview, *tiles = slice_picture(picture, plan)
        new = replace(new, preprocess_ms=_ms_since(started_s))
        started_s = perf_counter()
        at_once = self._encoder.max_tiles
        batches = [[overview], *(tiles[i : i + at_once] for i in range(0, len(tiles), at_once))]
        try:
            rows = np.concatenate([self._encoder.encode(b, self._between) for b in batches])
        except (EngineError, ModelFileError) as error:  # of this picture, not of other seconds
            return replace(new, status=Status.LOST, reason=str(error))
        new = replace(new, encode_ms=_ms_since(started_s))
        if not np.abs(rows).max() < LARGEST:  # NaN is not less than anything
            return replace(
                new,
                status=Status.LOST,
                reason='The embedding of the picture is not '
                f'finite or not below {LARGEST:.0f}. Are the model files intact?',
            )
        new = replace(new, rows=rows.astype(np.float16))  # (pictures * queries, width)
        self._memory = _Memory(small, new)
        return new


def _checked(picture) -> np.ndarray:
    """Return the picture if it is one; it comes from outside."""
    if not (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
    ):
        found = getattr(picture, 'shape', type(picture).__name__)
        raise InputError(f'The picture is {found}; (height, width, 3) of uint8 is allowed.')
    return np.ascontiguousarray(picture)


def _ms_since(started_s: float) -> float:
    return (perf_counter() - started_s) * 1e3
