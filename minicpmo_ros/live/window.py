# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which positions of the live sequence belong to which unit; bookkeeping only.

The sequence is [prefix][span][span]..., without gaps. A span is a unit or a remembered turn and
leaves whole or not at all; the prefix never leaves. The oldest leave in groups of an eighth of
the window: what stays is moved once per group, and every move costs a pass over the cache and,
with 8-bit keys, a little precision.
"""

from dataclasses import dataclass

from minicpmo_ros.errors import ContextFullError

GROUPS = 8  # a cell is moved at most about this often in its life


@dataclass(frozen=True)
class Span:
    """Positions [start, end) of one unit, or of a remembered turn (second is None)."""

    second: int | None
    start: int
    end: int


class Window:
    """The spans behind a prefix of `prefix` positions, up to `capacity` positions in all."""

    def __init__(self, prefix: int, capacity: int):
        self.prefix, self.capacity = prefix, capacity
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
        """Book a span at the end; `to_evict` has said that it fits."""
        if self.end + n_rows > self.capacity:
            raise ValueError(f'{n_rows} rows do not fit behind position {self.end}')
        self.spans.append(Span(second, self.end, self.end + n_rows))
        return self.spans[-1]

    def to_evict(self, n_rows: int) -> int:
        """Return how many of the oldest spans must leave before `n_rows` fit.

        Raises ContextFullError where they do not fit into an empty window.
        """
        if self.prefix + n_rows > self.capacity:
            raise ContextFullError(
                n_rows,
                self.capacity - self.prefix,
                'Raise n_ctx, or lower vision.max_tiles, max_tokens or max_question_tokens.',
            )
        if self.end + n_rows <= self.capacity:
            return 0
        count = max(1, len(self.spans) // GROUPS)
        while self.end - (self.spans[count - 1].end - self.prefix) + n_rows > self.capacity:
            count += 1
        return count

    def evict(self, count: int) -> tuple:
        """Let the oldest spans go and move the others down; return the positions that go."""
        gone, kept = self.spans[:count], self.spans[count:]
        end = gone[-1].end if gone else self.prefix
        by = end - self.prefix
        self.spans = [Span(span.second, span.start - by, span.end - by) for span in kept]
        return self.prefix, end
