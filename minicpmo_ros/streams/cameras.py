# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns the images of several cameras into one embedding a second.

Each camera has an ImagePipeline of its own; they share the encoder, which encodes their images one
after another. What they give for a second is put together: rows one after the other in equal
shares, with the names of the cameras that have an image. A camera that has none is left out of
that second and told; the others go on.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minicpmo_ros.config import LLM
from minicpmo_ros.errors import InputError
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.image import ImagePipeline, ImageSecond
from minicpmo_ros.streams.pairing import check_cameras
from minicpmo_ros.units import NS

# Of a second in which no camera has an image: what says most.
SAYS_MOST = (Status.LOST, Status.OVERLOADED, Status.SKIPPED, Status.EMPTY)


class CameraPipelines:
    """As one ImagePipeline, for cameras with these names; `make_pipeline()` makes that of one."""

    def __init__(self, names: tuple, make_pipeline: Callable[[], ImagePipeline]):
        self._pipelines = {name: make_pipeline() for name in check_cameras(names)}
        self._first = next(iter(self._pipelines.values()))
        self.governor, self.largest_area = self._first.governor, self._first.largest_area

    @property
    def area(self) -> float:
        """Of the overviews to come, a share of what the model was trained with."""
        return self._first.area

    @area.setter
    def area(self, area: float) -> None:
        for pipeline in self._pipelines.values():
            pipeline.area = area

    def area_of(self, second: int) -> float:
        """Return the area of this second's overviews, if they were encoded now."""
        return self._first.area_of(second)

    @property
    def late(self) -> int:
        """How many images came after their second was returned."""
        return sum(pipeline.late for pipeline in self._pipelines.values())

    @property
    def next_second(self) -> int | None:
        """The first second that was not returned yet; None before any image."""
        known = [pipeline.next_second for pipeline in self._pipelines.values()]
        return min((second for second in known if second is not None), default=None)

    def offer(self, stamp_ns: int, content: tuple, as_needed: bool = False) -> None:
        """Note an image, (name of its camera, make_image); see ImagePipeline.offer."""
        name, make_image = content
        self._pipelines[name].offer(stamp_ns, make_image, as_needed)

    def drop(self, second: int) -> None:
        """Note that a second had images but no time for them."""
        for pipeline in self._pipelines.values():
            pipeline.drop(second)

    def restart(self, second: int) -> None:
        """Forget the images offered; continue with this second."""
        for pipeline in self._pipelines.values():
            pipeline.restart(second)

    def advance(self, stamp_ns: int) -> list[ImageSecond]:
        """Return the seconds that are over when the stream has reached `stamp_ns`."""
        return self.close(stamp_ns // NS - 1)

    def close(self, second: int) -> list[ImageSecond]:
        """Return every second up to this one that was not returned yet."""
        found = {}  # second: {name: ImageSecond}
        for name, pipeline in self._pipelines.items():
            for seen in pipeline.close(second):
                found.setdefault(seen.second, {})[name] = seen
        return [self._joined(found[number]) for number in sorted(found)]

    def look(self, tiles: int, make_image: Callable | None = None, stamp_ns: int = 0):
        """Encode the newest image of each camera with all of the area; see ImagePipeline.look.

        A camera whose newest image is long past is left out. An image that was sent is looked at
        alone. Raises InputError if no camera has an image, and for tiles of several.
        """
        if make_image is not None:
            return self._first.look(tiles, make_image, stamp_ns)
        if tiles > 1:
            raise InputError(
                'Images of several cameras are not cut into tiles. Look sharp, or send the image '
                'of one camera with the question.'
            )
        seen = {name: found for name, each in self._pipelines.items() if (found := _look(each))}
        if not seen:
            raise InputError('No image has come yet. Check the cameras and their topics.')
        newest_ns = max(each.image_stamp_ns for each in seen.values())
        limit_ns = newest_ns - int(LLM.max_staleness_s * NS)
        return self._joined(
            {name: each for name, each in seen.items() if each.image_stamp_ns >= limit_ns}
        )

    def _joined(self, seen: dict) -> ImageSecond:
        shown = {name: each for name, each in seen.items() if each.rows is not None}
        lacks = [
            f'camera {name} has no image for a second: {_why(seen.get(name))}'
            for name in self._pipelines
            if name not in shown
        ]
        if not shown:
            return min(seen.values(), key=lambda each: SAYS_MOST.index(each.status))
        parts = list(shown.values())
        return replace(
            parts[0],
            rows=np.concatenate([part.rows for part in parts]),  # (cameras * queries, width)
            cameras=tuple(shown),
            reason='; '.join(lacks + [part.reason for part in parts if part.reason]),
            image_stamp_ns=min(part.image_stamp_ns for part in parts),
            area=min(part.area for part in parts),
            preprocess_ms=sum(part.preprocess_ms for part in parts),
            encode_ms=sum(part.encode_ms for part in parts),
            reused=all(part.reused for part in parts),
        )


def _look(pipeline: ImagePipeline) -> ImageSecond | None:
    """Return the newest image of one camera; None if it has none that can be read."""
    try:
        return pipeline.look(1)
    except InputError:
        return None


def _why(seen: ImageSecond | None) -> str:
    if seen is None:
        return 'none has come yet'
    return seen.reason or {Status.EMPTY: 'none came'}.get(seen.status, seen.status.name.lower())
