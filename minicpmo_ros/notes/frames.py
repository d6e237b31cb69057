# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where one frame is in another, from the transforms that a robot publishes (TF).

A transform says where a child frame is in its parent at a time. Both frames are followed up to the
first parent that they share, and the transforms on the way are put together, each as it was at the
time that is asked for: between two stamps by interpolation (translations linearly, rotations along
the shorter arc), outside of them as at the nearest stamp, if that is at most `max_age_s` away.
So a transform that is stamped into the future, as AMCL's map -> odom, serves as well.

Only what can matter is kept: of the frames on the way, `keep_s` of transforms, and those that are
static. Thread-safe.
"""

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

from minicpmo_ros.errors import Error
from minicpmo_ros.units import NS

KEEP_S = 30.0  # a note may be written so long after its second
CLOSEST_NS = NS // 25  # of two transforms that are kept of a frame
MOST_STATIC = 10_000  # frames; more are a mistake of their publisher


class NoTransformError(Error):
    """There is no transform; `kind` says why, in the same word whatever the time is."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class Transform(NamedTuple):
    """Where a frame is in another: what is at p there is at rotation * p + translation here."""

    translation: tuple = (0.0, 0.0, 0.0)  # metres
    rotation: tuple = (0.0, 0.0, 0.0, 1.0)  # unit quaternion, x y z w

    @property
    def yaw(self) -> float:
        """Return the rotation about z, radians."""
        x, y, z, w = self.rotation
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    def then(self, other: 'Transform') -> 'Transform':
        """Return where a frame is whose place in this one is `other`."""
        turned = rotated(self.rotation, other.translation)
        translation = tuple(a + b for a, b in zip(self.translation, turned))
        return Transform(translation, multiplied(self.rotation, other.rotation))

    def inverse(self) -> 'Transform':
        """Return where the other frame is in this one."""
        x, y, z, w = self.rotation
        back = -x, -y, -z, w
        return Transform(tuple(-v for v in rotated(back, self.translation)), back)

    def towards(self, other: 'Transform', share: float) -> 'Transform':
        """Return what lies between this (share 0) and the other (share 1)."""
        translation = tuple(
            a + share * (b - a) for a, b in zip(self.translation, other.translation)
        )
        return Transform(translation, between(self.rotation, other.rotation, share))


def multiplied(a: tuple, b: tuple) -> tuple:
    """Return the product of two quaternions: the rotation b, then a."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def rotated(rotation: tuple, vector: tuple) -> tuple:
    """Return a vector, rotated."""
    x, y, z, w = rotation
    return multiplied(multiplied(rotation, (*vector, 0.0)), (-x, -y, -z, w))[:3]


def between(a: tuple, b: tuple, share: float) -> tuple:
    """Return the unit quaternion at a share of the shorter arc from a to b."""
    dot = sum(p * q for p, q in zip(a, b))
    if dot < 0:  # -b is the same rotation, and nearer
        b, dot = tuple(-q for q in b), -dot
    angle = math.acos(min(1.0, dot))
    if angle < 1e-6:
        weights = 1 - share, share
    else:
        weights = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    of_a, of_b = weights
    return unit(tuple(of_a * p + of_b * q for p, q in zip(a, b)))


def unit(quaternion: tuple) -> tuple:
    """Return a quaternion of length 1; raises ValueError where it is none."""
    length = math.sqrt(sum(part * part for part in quaternion))
    if not (math.isfinite(length) and length > 1e-6):
        raise ValueError(f'{quaternion} is no rotation')
    return tuple(part / length for part in quaternion)


@dataclass
class _Frame:
    """What is known of a frame: its parent, and where it is there at some stamps, in order."""

    parent: str
    is_static: bool
    stamps: list = field(default_factory=list)  # ns
    transforms: list = field(default_factory=list)


class FrameTree:
    """The transforms that say where the frame `source` is in `target`."""

    def __init__(self, target: str, source: str, max_age_s: float, keep_s: float = KEEP_S):
        self.target, self.source = name_of(target), name_of(source)
        self._max_age_ns, self._keep_ns = int(max_age_s * NS), int(keep_s * NS)
        self._frames, self._lock = {}, threading.Lock()
        self._on_the_way = {self.target, self.source}  # and their ancestors

    def __len__(self) -> int:
        """Return how many transforms are kept."""
        with self._lock:
            return sum(len(known.stamps) for known in self._frames.values())

    def add(
        self, parent: str, child: str, stamp_ns: int, where: Transform, is_static: bool
    ) -> None:
        """Take a transform; raises ValueError if it makes no sense."""
        parent, child = name_of(parent), name_of(child)
        if not all(map(math.isfinite, where.translation)) or parent == child or not child:
            raise ValueError(f'{parent} -> {child} at {where.translation} is no transform')
        where = Transform(tuple(where.translation), unit(where.rotation))
        with self._lock:
            if child not in self._on_the_way and not is_static:
                return
            if child not in self._frames and len(self._frames) >= MOST_STATIC:
                raise ValueError(f'there are more than {MOST_STATIC} frames')
            known = self._frames.get(child)
            if known is None or (known.parent, known.is_static) != (parent, is_static):
                self._frames[child] = known = _Frame(parent, is_static)
                self._on_the_way = {*self._line(self.target), *self._line(self.source)}
            if is_static:
                known.stamps, known.transforms = [stamp_ns], [where]
            else:
                self._insert(known, stamp_ns, where)

    def where(self, at_ns: int | None = None) -> Transform:
        """Return where the source is in the target; None: at the newest time that all are known.

        Raises NoTransformError.
        """
        with self._lock:
            down, up = self._line(self.source), self._line(self.target)
            shared = next((frame for frame in down if frame in up), None)
            if shared is None:
                raise self._why_apart(down, up)
            down, up = down[: down.index(shared)], up[: up.index(shared)]
            if at_ns is None:
                moving = [self._frames[child] for child in down + up]
                newest = [one.stamps[-1] for one in moving if not one.is_static]
                at_ns = min(newest, default=0)
            return self._chained(up, at_ns).inverse().then(self._chained(down, at_ns))

    def _chained(self, line: list, at_ns: int) -> Transform:
        """Return where the first frame of a line is in the parent of its last."""
        where = Transform()
        for child in line:
            where = self._at(child, at_ns).then(where)
        return where

    def _at(self, child: str, at_ns: int) -> Transform:
        """Return where a frame is in its parent at a time."""
        known = self._frames[child]
        stamps, transforms = known.stamps, known.transforms
        if known.is_static:
            return transforms[0]
        index = bisect_left(stamps, at_ns)
        around = [n for n in (index - 1, index) if 0 <= n < len(stamps)]
        nearest = min(around, key=lambda n: abs(stamps[n] - at_ns))
        age_ns = abs(stamps[nearest] - at_ns)
        if age_ns > self._max_age_ns:
            side = 'before' if stamps[nearest] < at_ns else 'after'
            raise NoTransformError(
                f'old {child}',
                f'{known.parent} -> {child} was published {age_ns / NS:.1f} s {side} the time '
                f'that is asked about; at most {self._max_age_ns / NS:g} s are allowed. Look at '
                'its publisher, and whether its clock is that of the camera',
            )
        if len(around) < 2 or not age_ns:
            return transforms[nearest]
        before, after = around
        share = (at_ns - stamps[before]) / (stamps[after] - stamps[before])
        return transforms[before].towards(transforms[after], share)

    def _insert(self, known: _Frame, stamp_ns: int, where: Transform) -> None:
        stamps, transforms = known.stamps, known.transforms
        if stamps and stamps[-1] - stamp_ns > self._max_age_ns:  # time has gone back
            first_later = bisect_left(stamps, stamp_ns)
            del stamps[first_later:], transforms[first_later:]
        if stamps and stamp_ns < stamps[-1]:  # they come out of order
            index = bisect_left(stamps, stamp_ns)
            near = stamps[max(0, index - 1) : index + 1]
            if all(abs(stamp_ns - other) >= CLOSEST_NS for other in near):
                stamps.insert(index, stamp_ns)
                transforms.insert(index, where)
            return
        if len(stamps) > 1 and stamp_ns - stamps[-2] < CLOSEST_NS or stamps[-1:] == [stamp_ns]:
            stamps[-1], transforms[-1] = stamp_ns, where
        else:
            stamps.append(stamp_ns)
            transforms.append(where)
        n_old = bisect_left(stamps, stamp_ns - self._keep_ns)
        del stamps[:n_old], transforms[:n_old]

    def _line(self, frame: str) -> list:
        """Return a frame and its ancestors; a loop ends it."""
        line = [frame]
        while (known := self._frames.get(line[-1])) is not None and known.parent not in line:
            line.append(known.parent)
        return line

    def _why_apart(self, down: list, up: list) -> NoTransformError:
        parents = {known.parent for known in self._frames.values()}
        known = ' and '.join(
            ' -> '.join(line[::-1]) for line in (up, down) if len(line) > 1 or line[0] in parents
        )
        for frame in (self.source, self.target):
            if frame not in self._frames and frame not in parents:
                return NoTransformError(
                    f'unknown {frame}',
                    f'the frame {frame} has not come on /tf or /tf_static; known is '
                    f'{known or "nothing"}. Start what publishes it, such as the localisation, or '
                    'name your own frames in memory.map_frame and memory.base_frame',
                )
        return NoTransformError(
            'apart',
            f'{self.target} and {self.source} are not connected: {known} have no frame in '
            'common. Start what publishes the transform between them',
        )


def name_of(frame: str) -> str:
    """Return the name of a frame as TF has it, without the slash of older drivers."""
    return frame.lstrip('/')
