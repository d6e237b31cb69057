# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which positions of the live sequence belong to which second, and which to a fork; no numbers.

The sequence is [prefix][span][span]..., without gaps. A span is a unit or a remembered turn and
is evicted whole; the prefix is never evicted. The policy decides what is evicted when space runs
out:

recent  The oldest spans, an eighth of the window at a time.
long    Older units are thinned out, so that the same space reaches three times as far back: the
        newest eighth keeps every second, the sixteenth before that the first of every two
        seconds, everything older the first of every four (counted in seconds of the stream:
        0, 4, 8, ...). Thinning starts with the oldest units and stops when two 24ths of the space
        are free. If thinning frees less than one 24th, the oldest spans are evicted until two are
        free. Turns are not thinned out; they are evicted when they are the oldest.

A still second is one whose image the newest image before it shows already, so that the image was
not read again. It leaves together with that image, which `long` does not thin out before it.

Spans are evicted in groups because eviction moves everything behind the gap to close it: each
move costs a pass over the cache and, with 8-bit keys, a little precision.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from minicpmo_ros.errors import ContextFullError
from minicpmo_ros.streams.pairing import Unit

POLICIES = ('recent', 'long')
GROUPS = 8  # of `recent`: a cell is moved at most about this often in its life
STEPS = 24  # of `long`: shares of the space that are freed; a cell is moved about 17 times
LONGEST_STILL_S = 16  # 28 positions a second and 66 once, not 94: 2.9 times as many seconds
EVERY_2ND, EVERY_4TH = 1 / 8, 3 / 16  # shares of the space behind which units are thinned out


@dataclass(frozen=True)
class Span:
    """Positions [start, end) of one unit, or of a remembered turn (second is None)."""

    second: int | None
    start: int
    end: int
    has_image: bool = False
    has_audio: bool = False
    is_still: bool = False  # its image is that of the newest one before it
    turn: int | None = None  # number of a remembered turn
    cameras: tuple = ()  # names of those whose images it shows; (): one camera

    @property
    def rows(self) -> int:
        """Number of positions."""
        return self.end - self.start


class Window:
    """The spans behind a prefix of `prefix` positions; at most `capacity` positions in total.

    `still`: leave out the image of a second that the newest image in the window shows already. The
    encoder gives an unchanged image the embedding of the one before, so embeddings are compared.
    After LONGEST_STILL_S an image is read again, or all that it stands for would leave at once.
    """

    def __init__(self, prefix: int, capacity: int, policy: str = 'recent', still: bool = False):
        if policy not in POLICIES:
            raise ValueError(f'{policy!r} is not one of {", ".join(POLICIES)}')
        self.prefix, self.capacity, self.policy = prefix, capacity, policy
        self.spans = []
        self._still, self._shown = still, None  # the Unit of the newest image that was read

    @property
    def end(self) -> int:
        """Position behind the last span."""
        return self.spans[-1].end if self.spans else self.prefix

    @property
    def seconds(self) -> list:
        """Seconds of the units, oldest first."""
        return [span.second for span in self.spans if span.second is not None]

    @property
    def image_end_s(self) -> int | None:
        """End of the newest second that has an image; None if there is none."""
        return _newest_end_s(span for span in self.spans if span.has_image)

    @property
    def audio_end_s(self) -> int | None:
        """End of the newest second that has audio; None if there is none."""
        return _newest_end_s(span for span in self.spans if span.has_audio)

    @property
    def camera_ends_s(self) -> dict:
        """Of several cameras, by name: end of the newest second that has its image."""
        spans = [span for span in self.spans if span.cameras]
        return {name: span.second + 1 for span in spans for name in span.cameras}

    def append(self, second: int | None, n_rows: int, *senses: bool, cameras=()) -> Span:
        """Add a span at the end and return it; senses: has_image, has_audio, is_still."""
        self.spans.append(Span(second, self.end, self.end + n_rows, *senses, cameras=cameras))
        return self.spans[-1]

    def append_turn(self, n_rows: int, turn: int) -> None:
        """Add the span of a remembered turn with a number of its own."""
        self.spans.append(Span(None, self.end, self.end + n_rows, turn=turn))

    def append_unit(self, unit: Unit, n_rows: int, is_still: bool = False) -> None:
        """Add the span of a unit, whose image was left out if `is_still`."""
        has_image, has_audio = unit.image_rows is not None, unit.audio_rows is not None
        self.append(unit.second, n_rows, has_image, has_audio, is_still, cameras=unit.cameras)
        if has_image and not is_still:
            self._shown = unit

    def is_still(self, unit: Unit) -> bool:
        """Whether the image of a unit may be left out; never where there is no audio."""
        shown = self._shown
        newest = next((span for span in reversed(self.spans) if _has_own_image(span)), None)
        return (
            self._still
            and unit.image_rows is not None
            and unit.audio_rows is not None
            and newest is not None
            and shown is not None
            and newest.second == shown.second
            and 0 < unit.second - shown.second < LONGEST_STILL_S
            and unit.tiles == shown.tiles
            and np.array_equal(unit.image_rows, shown.image_rows)
        )

    def spans_to_evict(self, n_rows: int, limit: int | None = None) -> list:
        """Return the spans to evict so that `n_rows` fit; an empty list if they fit already.

        `limit` replaces the capacity. Raises ContextFullError if they would not fit into an empty
        window.
        """
        limit = self.capacity if limit is None else limit
        if self.prefix + n_rows > limit:
            raise ContextFullError(
                n_rows,
                limit - self.prefix,
                'Raise n_ctx, or lower vision.max_tiles, max_tokens or max_question_tokens.',
            )
        short = self.end + n_rows - limit
        if short <= 0:
            return []
        if self.policy == 'recent':
            return self._with_stills(
                _oldest(self.spans, short, at_least=len(self.spans) // GROUPS)
            )
        step = (limit - self.prefix) / STEPS
        evicted = _oldest(self._too_many(), short + 2 * step)
        free = sum(span.rows for span in evicted) - short
        if free < step:
            thinned = set(evicted)
            rest = [span for span in self.spans if span not in thinned]
            evicted += _oldest(rest, 2 * step - free)
        return self._with_stills(evicted)

    def _with_stills(self, evicted: list) -> list:
        """Add the still seconds whose image is evicted."""
        gone, is_gone = set(evicted), False
        for span in self.spans:
            if _has_own_image(span):
                is_gone = span in gone
            elif span.is_still and is_gone:
                gone.add(span)
        return [span for span in self.spans if span in gone]

    def remove(self, spans: list) -> list:
        """Remove spans and close the gaps; return the positions [start, end) of the gaps.

        The newest gap comes first: closing it does not move the gaps that follow in the list.
        """
        gone, kept, gaps, end = set(spans), [], [], self.prefix
        for span in self.spans:
            if span not in gone:
                kept.append(replace(span, start=end, end=end + span.rows))
                end += span.rows
            elif gaps and gaps[-1][1] == span.start:
                gaps[-1] = gaps[-1][0], span.end
            else:
                gaps.append((span.start, span.end))
        self.spans = kept
        return gaps[::-1]

    def _too_many(self) -> list:
        """Return the units that `long` thins out, oldest first."""
        units = [span for span in self.spans if span.second is not None]
        first = {
            stride: set({unit.second // stride: unit for unit in reversed(units)}.values())
            for stride in (2, 4)
        }
        room = self.capacity - self.prefix
        too_many, kept_rows, shows_stills = [], 0, False
        for span in reversed(self.spans):
            share = kept_rows / room
            stride = 1 if share < EVERY_2ND else 2 if share < EVERY_4TH else 4
            is_needed = shows_stills and _has_own_image(span)
            if is_needed or span.second is None or stride == 1 or span in first[stride]:
                kept_rows += span.rows
                shows_stills = span.is_still or shows_stills and not is_needed
            else:
                too_many.append(span)
        return too_many[::-1]


@dataclass(eq=False)
class Fork:
    """What a question owns of the session: a sequence that shares the window it was asked about.

    Session.fork creates it and reserves `n_positions` behind the shared ones; whoever asked for it
    must drop it. The window does not learn of what is read here.
    """

    sequence: int
    forked_at: int  # positions [0, forked_at) are shared
    n_positions: int
    n_resets: int  # of the window until then
    drop: Callable[[], None]  # free its cells; a second call does nothing
    evicted: list = field(default_factory=list)  # spans that it has lost since

    @property
    def end(self) -> int:
        """Position behind the last one that is reserved."""
        return self.forked_at + self.n_positions


class Forks:
    """The forks of a window in a context of `n_positions`, and what they leave to the window.

    A fork shares with the window what that was until it began anew; then only the prefix.
    """

    def __init__(self, window: Window, n_positions: int):
        self._window, self._n_positions = window, n_positions
        self.living = []  # oldest first
        self.n_resets = 0  # of the window

    def n_unreserved(self) -> int:
        """Return how many positions neither the window nor a fork has or may come to need."""
        prefix, kept = self._window.prefix, {}  # of each emptied window, what forks still share
        for fork in self.living:
            if fork.n_resets < self.n_resets:
                kept[fork.n_resets] = max(kept.get(fork.n_resets, prefix), fork.forked_at)
        reserved = sum(fork.n_positions for fork in self.living)
        reserved += sum(kept.values()) - prefix * len(kept)
        return self._n_positions - self._window.end - reserved

    def window_limit(self) -> int:
        """Return the position that the window may grow to now."""
        if self.living:
            return self._window.end + self.n_unreserved()
        return self._window.capacity

    def shared_ends(self) -> dict:
        """Return {sequence: the position up to which it shares cells with the window}."""
        return {fork.sequence: self._shared_end(fork) for fork in self.living}

    def note_evicted(self, spans: list) -> None:
        """Note which forks lose spans that are about to leave the window."""
        for fork in self.living:
            fork.evicted += [span for span in spans if span.end <= self._shared_end(fork)]

    def move_up(self, start: int, end: int) -> None:
        """Move the forks by what each has shared of the positions [start, end), which are gone."""
        for fork in self.living:
            fork.forked_at -= max(0, min(end, self._shared_end(fork)) - start)

    def _shared_end(self, fork: Fork) -> int:
        return fork.forked_at if fork.n_resets == self.n_resets else self._window.prefix


class Read(NamedTuple):
    """Rows (n, width) that a fork reads next; of that many of the last ones logits are wanted."""

    fork: Fork
    rows: np.ndarray
    n_logits: int = 1


def grouped(riders, n_forks: int, room: int):
    """Yield the places of riders that can be read together, first those that go with a unit.

    Those that have no room, whatever is read with them, are left out.
    """
    group, n_rows = [], 0
    for place, rows in enumerate(riders if n_forks else ()):
        if len(rows) > room:
            continue
        if group and (len(group) == n_forks or n_rows + len(rows) > room):
            yield group
            group, n_rows = [], 0
        group.append(place)
        n_rows += len(rows)
    if group:
        yield group


def _has_own_image(span: Span) -> bool:
    return span.has_image and not span.is_still


def _newest_end_s(spans) -> int | None:
    return max((span.second + 1 for span in spans), default=None)


def _oldest(spans: list, n_rows: float, at_least: int = 1) -> list:
    """Return the oldest spans that hold `n_rows` together, or all of them."""
    count, rows = 0, 0
    while count < len(spans) and (count < at_least or rows < n_rows):
        rows += spans[count].rows
        count += 1
    return spans[:count]
