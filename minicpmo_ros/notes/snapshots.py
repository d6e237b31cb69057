# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Snapshots: the embeddings of a second, kept with a note, so that it can be looked at again.

A snapshot is what the language model read of that second. Read again on the fork of a question,
it is seen and heard as it was then, however long ago that is. It means something to the model
that it was made for alone: `space` names that model with its weights.
"""

from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.streams.pairing import Unit, cameras_of

PERIODIC_S = 300  # between snapshots of periodic notes: 64 reach back five hours, at 5 KB a second
MOST_AGAIN = 3  # seconds that are looked at again for a question
AS_GOOD = 0.75  # of the best note's score, that another one needs for it


@dataclass(frozen=True)
class Snapshot:
    """The embeddings of one second, for the model of that `space`."""

    unit: Unit
    space: str

    def row(self) -> tuple:
        """Return what a file keeps of it; see `read_row`."""
        unit, halves = self.unit, (self.unit.image_rows, self.unit.audio_rows)
        present = [np.ascontiguousarray(rows, '<f2') for rows in halves if rows is not None]
        counts = [0 if rows is None else len(rows) for rows in halves]
        data = b''.join(rows.tobytes() for rows in present)
        data += ','.join(unit.cameras).encode()
        return unit.second, self.space, *unit.tiles[:2], *counts, present[0].shape[1], data

    @classmethod
    def read_row(cls, row: tuple) -> 'Snapshot':
        """Return the snapshot of a row; raises InputError where it is damaged."""
        second, space, tiles_wide, tiles_high, n_image, n_audio, width, data = row
        size = 2 * (n_image + n_audio) * width
        is_whole = min(n_image, n_audio) >= 0 and 0 < size <= len(data)
        rows = np.frombuffer(data[:size] if is_whole else b'', '<f2')
        if not is_whole or not np.isfinite(rows).all():
            raise InputError(f'the snapshot of second {second} is damaged')
        cameras = cameras_of(bytes(data[size:]).decode(errors='replace'))
        rows = rows.reshape(-1, width).astype(np.float32)
        image_rows, audio_rows = rows[:n_image], rows[n_image:]
        unit = Unit(
            second,
            image_rows if n_image else None,
            (tiles_wide, tiles_high, *cameras),
            audio_rows if n_audio else None,
        )
        return cls(unit, space)


class PeriodicSnapshots:
    """Says which periodic notes have a snapshot: every PERIODIC_S, if the image has changed."""

    def __init__(self):
        self._taken = None  # the Unit of the newest one

    def wants(self, unit: Unit | None) -> bool:
        """Whether a note that ends with this second is to have a snapshot of it."""
        if unit is None or unit.image_rows is None:
            return False
        taken = self._taken
        if taken is not None and 0 <= unit.second - taken.second < PERIODIC_S:
            return False
        if taken is not None and np.array_equal(unit.image_rows, taken.image_rows):
            return False
        self._taken = unit
        return True


def look_again(store, recalled: list, space: str) -> tuple:
    """Return ([(note, unit)], problems): the seconds to be read again for a question.

    `recalled`: Recalled notes, the best first. Taken are those that fit nearly as well as the best
    one and have a snapshot, in this order. `space`: of the model that will read them. `problems`:
    sentences.
    """
    found, problems = [], []
    for one in recalled:
        if len(found) == MOST_AGAIN or one.score < AS_GOOD * recalled[0].score:
            break
        if not one.note.snapshot:
            continue
        try:
            snapshot = store.snapshot(one.note.id)
        except InputError as error:
            problems.append(f'A second was not looked at again: {error}.')
            continue
        if snapshot is None:
            continue  # it has gone since
        if snapshot.space != space:
            problems.append(
                f'Second {snapshot.unit.second} was not looked at again: its snapshot was made '
                f'for {snapshot.space}, this is {space}.'
            )
        else:
            found.append((one.note, snapshot.unit))
    return found, tuple(problems)
