# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A note, and which notes are wanted; see store.py."""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from minicpmo_ros.errors import InputError

KINDS = ('periodic', 'hourly', 'alert', 'answer', 'speech', 'user')  # hourly: merged
MOST_TEXT = 2000  # characters of a note
MERGED_TEXT = 500  # characters of a note that was merged from others
HOUR_S = 3600
THUMBNAIL = 160, 120  # pixels, at most
FARTHEST_M = 1e9  # from the origin of a frame
SAME_PLACE_M = 1.0  # within which a note with the same words extends the one before


@dataclass(frozen=True)
class Pose:
    """Where something was: metres and radians in a frame."""

    frame: str
    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def __post_init__(self):
        """Check the numbers; raises InputError where no robot can be."""
        where = self.x, self.y, self.z, self.yaw
        if not all(abs(number) <= FARTHEST_M for number in where):  # none is not a number
            raise InputError(
                f'The place is {where} (x, y, z in metres, yaw); numbers of up to '
                f'{FARTHEST_M:.0e} are expected. Look at what tells where the robot is.'
            )

    def distance_m(self, other: 'Pose') -> float:
        """Return the distance on the ground; infinite between two frames."""
        if self.frame != other.frame:
            return float('inf')
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5


@dataclass(frozen=True)
class Note:
    """What was seen and heard from `begin_s` to `end_s`, by the stamps of the evidence."""

    begin_s: float
    end_s: float
    text: str
    kind: str = 'periodic'  # one of KINDS
    pose: Pose | None = None  # of the robot at `end_s`
    model: str = ''  # that wrote it
    image: bytes = b''  # a small JPEG of the newest image
    written_s: float = 0.0  # by the clock of the machine
    count: int = 1  # notes that were merged into it
    id: int = 0  # 0: not in a store
    snapshot: bool = False  # embeddings of its newest second are kept (snapshots.py)


@dataclass(frozen=True)
class Filter:
    """Which notes are wanted; each field that is not given admits all."""

    begin_s: float | None = None  # notes that end at or after this
    end_s: float | None = None  # notes that begin at or before this
    near: Pose | None = None
    radius_m: float = 2.0  # of `near`
    kinds: tuple = ()

    def __post_init__(self):
        """Check the fields."""
        if unknown := set(self.kinds) - set(KINDS):
            raise InputError(f'{sorted(unknown)[0]!r} is no kind of note. Allowed: {KINDS}.')
        if not 0 < self.radius_m < float('inf'):
            raise InputError(f'radius_m is {self.radius_m}; a number above 0 is expected.')
        if None not in (self.begin_s, self.end_s) and self.begin_s > self.end_s:
            raise InputError(
                f'The time from {self.begin_s:.3f} to {self.end_s:.3f} ends before it begins.'
            )

    def sql(self) -> tuple:
        """Return (conditions joined by AND, their values)."""
        parts, values = ['1'], []
        for condition, value in (('end_s >= ?', self.begin_s), ('begin_s <= ?', self.end_s)):
            if value is not None:
                parts.append(condition)
                values.append(value)
        if self.kinds:
            parts.append(f'kind IN ({", ".join("?" * len(self.kinds))})')
            values += self.kinds
        if self.near is not None:
            near, radius_m = self.near, self.radius_m
            parts.append(
                'frame = ? AND x BETWEEN ? AND ? AND y BETWEEN ? AND ? '
                'AND (x - ?) * (x - ?) + (y - ?) * (y - ?) <= ?'
            )
            box = near.x - radius_m, near.x + radius_m, near.y - radius_m, near.y + radius_m
            values += [near.frame, *box, near.x, near.x, near.y, near.y, radius_m**2]
        return ' AND '.join(parts), values


def checked(note: Note) -> Note:
    """Return the note with its text on one line; raises InputError."""
    text = ' '.join(note.text.split())[:MOST_TEXT]
    if not text or '\0' in text:
        raise InputError('A note needs a text.' if not text else 'A note cannot have a NUL.')
    if note.kind not in KINDS:
        raise InputError(f'{note.kind!r} is no kind of note. Allowed: {", ".join(KINDS)}.')
    if not note.begin_s <= note.end_s:
        raise InputError(
            f'A note from {note.begin_s:.3f} to {note.end_s:.3f} ends before it begins.'
        )
    return replace(note, text=text)


def continues(newest: Note, note: Note) -> bool:
    """Whether the note says again what the newest one says."""
    same_place = (newest.pose is None) == (note.pose is None) and (
        note.pose is None or newest.pose.distance_m(note.pose) <= SAME_PLACE_M
    )
    is_same = (newest.text, newest.kind, newest.model) == (note.text, note.kind, note.model)
    is_next = (
        newest.begin_s <= note.begin_s <= newest.end_s + HOUR_S and note.end_s >= newest.end_s
    )
    return note.kind == 'periodic' and is_same and same_place and is_next


def merged_notes(group: list) -> list:
    """Return notes of at most MERGED_TEXT that say what those of the group say, in their order."""
    merged = []
    for note in group:
        last = merged[-1] if merged else None
        said = last.text.split('; ') if last else []
        text = last.text if note.text in said else f'{last.text}; {note.text}' if last else ''
        if last is None or len(text) > MERGED_TEXT:
            merged.append(replace(note, kind='hourly'))
        else:
            merged[-1] = replace(
                last, text=text, end_s=max(last.end_s, note.end_s), count=last.count + 1
            )
    return merged


def thumbnail(rgb: np.ndarray) -> bytes:
    """Return an image (H, W, 3) uint8 as a small JPEG."""
    image, out = Image.fromarray(rgb), io.BytesIO()
    image.thumbnail(THUMBNAIL)
    image.save(out, 'JPEG', quality=80)
    return out.getvalue()
