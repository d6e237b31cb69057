# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which positions of the live sequence belong to which second; bookkeeping only.

The sequence is [prefix][span][span]..., without gaps. A span is a unit or a remembered turn and
leaves whole or not at all; the prefix never leaves. Who leaves when room is short says the policy:

recent  The oldest spans, an eighth of the window at a time.
long    Older units are thinned, so that the same room reaches three times as far back: the
        newest eighth of it keeps every second, the sixteenth before that the first of every two
        seconds, all that is older the first of every four (counted in seconds of the stream:
        0, 4, 8, ...). Thinning begins with the oldest and ends when two 24ths of the room are
        free. Where all of it frees less than one 24th, the oldest spans leave until two are
        free. Turns are not thinned; they leave when they are the oldest.

Room is made in groups because what stays behind a gap is moved to close it: every move costs a
pass over the cache and, with 8-bit keys, a little precision.
"""

from dataclasses import dataclass, replace

from minicpmo_ros.errors import ContextFullError

POLICIES = ('recent', 'long')
GROUPS = 8  # of `recent`: a cell is moved at most about this often in its life
STEPS = 24  # of `long`: shares of the room that are freed; a cell is moved about 17 times
EVERY_2ND, EVERY_4TH = 1 / 8, 3 / 16  # shares of the room behind which units are thinned


@dataclass(frozen=True)
class Span:
    """Positions [start, end) of one unit, or of a remembered turn (second is None)."""

    second: int | None
    start: int
    end: int

    @property
    def rows(self) -> int:
        """How many positions."""
        return self.end - self.start


class Window:
    """The spans behind a prefix of `prefix` positions, up to `capacity` positions in all."""

    def __init__(self, prefix: int, capacity: int, policy: str = 'recent'):
        if policy not in POLICIES:
            raise ValueError(f'{policy!r} is not one of {", ".join(POLICIES)}')
        self.prefix, self.capacity, self.policy = prefix, capacity, policy
        self.spans = []

    @property
    def end(self) -> int:
        """Position behind the last span."""
        return self.spans[-1].end if self.spans else self.prefix

    @property
    def seconds(self) -> list:
        """Seconds of the units, oldest first."""
        return [span.second for span in self.spans if span.second is not None]

    def append(self, second: int | None, n_rows: int) -> Span:
        """Book a span at the end."""
        self.spans.append(Span(second, self.end, self.end + n_rows))
        return self.spans[-1]

    def leaving(self, n_rows: int) -> list:
        """Return the spans that must leave before `n_rows` fit; none where they do.

        Raises ContextFullError where they do not fit into an empty window.
        """
        if self.prefix + n_rows > self.capacity:
            raise ContextFullError(
                n_rows,
                self.capacity - self.prefix,
                'Raise n_ctx, or lower vision.max_tiles, max_tokens or max_question_tokens.',
            )
        short = self.end + n_rows - self.capacity
        if short <= 0:
            return []
        if self.policy == 'recent':
            return _oldest(self.spans, short, at_least=len(self.spans) // GROUPS)
        step = (self.capacity - self.prefix) / STEPS
        leaving = _oldest(self._too_many(), short + 2 * step)
        free = sum(span.rows for span in leaving) - short
        if free < step:
            thinned = set(leaving)
            rest = [span for span in self.spans if span not in thinned]
            leaving += _oldest(rest, 2 * step - free)
        return leaving

    def remove(self, leaving: list) -> list:
        """Let spans go and close the gaps; return the positions [start, end) of the gaps.

        The newest gap comes first: closing it moves nothing that a later one names.
        """
        gone, kept, gaps, end = set(leaving), [], [], self.prefix
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
        """Return the units that are too old to be kept every second, oldest first."""
        units = [span for span in self.spans if span.second is not None]
        first = {
            stride: set({unit.second // stride: unit for unit in reversed(units)}.values())
            for stride in (2, 4)
        }
        room = self.capacity - self.prefix
        too_many, kept_rows = [], 0
        for span in reversed(self.spans):
            share = kept_rows / room
            stride = 1 if share < EVERY_2ND else 2 if share < EVERY_4TH else 4
            if span.second is None or stride == 1 or span in first[stride]:
                kept_rows += span.rows
            else:
                too_many.append(span)
        return too_many[::-1]


def _oldest(spans: list, n_rows: float, at_least: int = 1) -> list:
    """Return so many of the oldest spans that they hold `n_rows`, or all."""
    count, rows = 0, 0
    while count < len(spans) and (count < at_least or rows < n_rows):
        rows += spans[count].rows
        count += 1
    return spans[:count]
