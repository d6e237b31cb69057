# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns a camera's images into one embedding a second.

The newest image of each second [n, n + 1) is used; the others are not even decoded, unless the
newest is damaged, when the one before replaces it. Every second from the first image on is
returned once, in order, even if it has no image. An image like the last encoded one reuses its
embedding. An ImagePipeline belongs to one thread; offering is cheap, advancing decodes and
encodes.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np

from minicpmo_ros.config import VISION
from minicpmo_ros.errors import EngineError, InputError, ModelFileError
from minicpmo_ros.media.image.tiling import (
    DEFAULT_RULE,
    WHOLE,
    Crop,
    Decoded,
    TilePlan,
    TileRule,
    check_area,
    has_changed,
    plan_tiles,
    slice_image,
    thumbnail,
    thumbnail_noise,
)
from minicpmo_ros.pace.governor import GaveUp, Governor
from minicpmo_ros.streams import LARGEST, Status
from minicpmo_ros.streams.time import LIMITS
from minicpmo_ros.units import NS

KEPT = 2  # images of a second, the newest: one may be damaged


@dataclass(frozen=True)
class ImageSecond:
    """The embedding of one second of images; without rows, status and reason say why."""

    second: int  # covers [second, second + 1) s of the stamps
    status: Status = Status.EMPTY
    reason: str = ''  # a sentence, for LOST, and for OK where the newest image was damaged
    rows: np.ndarray | None = None  # (images * queries, width) float16: overview, then tiles
    image_stamp_ns: int = 0
    source_width: int = 0  # of the image as it came, pixels
    source_height: int = 0
    area: float = 0.0  # of the overview, a share of what the model was trained with
    tiles_wide: int = 0  # of the grid; 0: overview only
    tiles_high: int = 0
    preprocess_ms: float = 0.0  # decoding, comparing, slicing
    encode_ms: float = 0.0
    reused: bool = False
    cameras: tuple = ()  # whose images are in the rows, in equal shares; (): one, without a name


class ImagePipeline:
    """Chooses, decodes, slices and encodes images, second by second.

    `max_tiles`: the most tiles beside the overview; 1: overview only. `unchanged_threshold`: an
    image reuses the last embedding if no colour (0..255) of the 32 x 32 thumbnails differs by as
    much (tiling.has_changed); 0: never. `between` is called between slices of the encoder's work.
    `max_behind`: when several seconds close together, only the newest so many images are encoded
    (the others are OVERLOADED), so that a slow encoder does not fall behind for good; None: all.
    `device(second)`: replaces `between`: a context manager to encode a second in, which yields
    it. `is_too_late(second)`: if true, the second's images are not decoded but OVERLOADED.
    `tile_rule`: chooses the grid. `look_device()`: replaces `device` for what is looked at.
    `crop`: the part of images that is seen. `largest_area`: the encoder's memory is enough for
    overviews of that share of the model's area. `sharp_every`: the seconds that it divides have an
    overview of the `largest_area`; 0: none. `governor`: may lower area and rate, and leave tiles
    out; `device` tells it what images cost.

    `area`, a share of the model's, is that of the overviews to come; it may be set at any time.
    """

    def __init__(
        self,
        vision_encoder,
        max_tiles: int = 1,
        unchanged_threshold: float = VISION.unchanged_threshold,
        between: Callable[[], None] | None = None,
        max_behind: int | None = None,
        device: Callable | None = None,
        is_too_late: Callable[[int], bool] = lambda second: False,
        tile_rule: TileRule = DEFAULT_RULE,
        look_device: Callable | None = None,
        area: float = VISION.area,
        crop: Crop = WHOLE,
        largest_area: float = 1.0,
        sharp_every: int = VISION.sharp_every,
        governor: Governor | None = None,
    ):
        self.governor = governor or Governor()  # which nobody tells anything lowers nothing
        self.largest_area, self._sharp_every, self._crop = largest_area, sharp_every, crop
        self.area = area
        self._max_behind = max_behind
        self._encoder, self._max_tiles, self._tile_rule = vision_encoder, max_tiles, tile_rule
        self._threshold = unchanged_threshold
        self._device = device or (lambda second: nullcontext(between))
        self._look_device = look_device or (lambda: nullcontext(between))
        self._is_too_late = is_too_late
        self._offered: dict = {}  # second: [(stamp_ns, make_image)], the newest last
        self._overloaded: set = set()  # seconds whose images there was no time for
        self._next: int | None = None  # the first second that was not returned yet
        self._encoded: ImageSecond | None = None  # the last one
        self._small = None  # its thumbnail, (32, 32, 3) float32 colours
        self._newest = None  # (stamp_ns, make_image) of the newest image, undecoded
        self.late = 0  # images that came after their second was returned

    @property
    def area(self) -> float:
        """Of the overviews to come, a share of what the model was trained with."""
        return self._area

    @area.setter
    def area(self, area: float) -> None:
        """Set it; raise InputError if it is below MIN_AREA or above `largest_area`."""
        self._area = check_area(area, self.largest_area)
        self.governor.want(area)

    def area_of(self, second: int) -> float:
        """Return the area of this second's overview, if it were encoded now."""
        if self._encoder.takes_squares:
            return 1.0
        if self.governor.is_lowered:
            return self.governor.pace.area
        is_sharp = self._sharp_every and second % self._sharp_every == 0
        return self.largest_area if is_sharp else self._area

    def offer(self, stamp_ns: int, make_image: Callable, as_needed: bool = False) -> None:
        """Note an image; `make_image()` returns it as (H, W, 3) uint8 RGB, if it is chosen.

        as_needed: `make_image(needed)` returns a Decoded instead, which may be smaller than the
        image; see media.image.compressed.
        An image over a second older than the next second restarts the stream: its time jumped.
        """
        second = stamp_ns // NS
        if self._next is None or second < self._next - 1:
            self.restart(second)
        if second < self._next:
            self.late += 1
        else:
            self._overloaded.discard(second)
            make = make_image if as_needed else lambda needed: _whole(make_image())
            if self._newest is None or stamp_ns >= self._newest[0]:
                self._newest = stamp_ns, make
            images = [*self._offered.get(second, ()), (stamp_ns, make)]
            self._offered[second] = sorted(images, key=lambda image: image[0])[-KEPT:]

    def drop(self, second: int) -> None:
        """Note that a second had images but no time for them: OVERLOADED, not EMPTY."""
        is_to_come = self._next is not None and second >= self._next
        if is_to_come and second not in self._offered:
            self._overloaded.add(second)

    @property
    def next_second(self) -> int | None:
        """The first second that was not returned yet; None before any image."""
        return self._next

    def restart(self, second: int) -> None:
        """Forget the images offered; continue with this second."""
        self._offered.clear()
        self._overloaded.clear()
        self._next, self._newest = second, None

    def advance(self, stamp_ns: int) -> list[ImageSecond]:
        """Return the seconds that are over when the stream has reached `stamp_ns`."""
        return self.close(stamp_ns // NS - 1)

    def close(self, second: int) -> list[ImageSecond]:
        """Return every second up to this one that was not returned yet."""
        if self._next is None:
            return []
        due = range(self._next, second + 1)
        if len(due) > LIMITS.longest_empty_s:
            noted = self._offered.keys() | self._overloaded
            due = sorted(number for number in noted if number <= second)
        waiting = [number for number in due if number in self._offered]
        too_many = len(waiting) - (self._max_behind or len(waiting))
        for number in waiting[: max(0, too_many)]:
            del self._offered[number]
            self._overloaded.add(number)
        encoded = []
        for number in due:
            # Advanced before the work, so that an image that raises is not tried again.
            self._next = number + 1
            encoded.append(self._process(number))
        self._next = max(self._next, second + 1)
        return encoded

    def _process(self, second: int) -> ImageSecond:
        offered = self._offered.pop(second, [])
        if second in self._overloaded or (offered and self._is_too_late(second)):
            self._overloaded.discard(second)
            return ImageSecond(second, Status.OVERLOADED)
        if not offered:
            return ImageSecond(second, Status.EMPTY)
        if self.governor.leaves_out(second):
            return ImageSecond(second, Status.SKIPPED)
        started_s, area = perf_counter(), self.area_of(second)
        found, reasons = self._decode_newest(offered, area)
        if found is None:
            return ImageSecond(
                second,
                Status.LOST,
                reasons[0],
                image_stamp_ns=offered[-1][0],
                preprocess_ms=_ms_since(started_s),
            )
        taken_ns, decoded, image, plan = found
        small = thumbnail(image)
        note = f'{reasons[0].rstrip(".")}. The image before it is used.' if reasons else ''
        new = _image_second(second, taken_ns, decoded, area, plan, note)
        if self._is_unchanged(image, small, new):
            self.governor.note(0.0, 0.0)
            return replace(
                new,
                rows=self._encoded.rows,
                area=self._encoded.area,
                reused=True,
                preprocess_ms=_ms_since(started_s),
            )
        new = self._encode(new, image, plan, partial(self._device, second), started_s)
        if new.rows is not None:
            self._encoded, self._small = new, small
        return new

    def look(
        self, tiles: int, make_image: Callable | None = None, stamp_ns: int = 0
    ) -> ImageSecond:
        """Encode an image with all of the area, and in up to `tiles` tiles; 1: without tiles.

        make_image: `make_image(needed)` returns it as Decoded, and it is not cropped; None: the
        newest that was offered.
        The stream goes on as if nothing had been looked at. Raises InputError if there is no image
        or it is damaged; an encoder that fails gives status LOST.
        """
        is_sent = make_image is not None
        if not is_sent:
            if self._newest is None:
                raise InputError('No image has come yet. Check the camera and image_topic.')
            stamp_ns, make_image = self._newest
            old = self._encoded
            is_same = old is not None and old.image_stamp_ns == stamp_ns and not old.tiles_wide
            if is_same and tiles == 1 and old.area == self.largest_area:
                return replace(old, reused=True, preprocess_ms=0.0, encode_ms=0.0)
        started_s, area, crop = perf_counter(), self.largest_area, WHOLE if is_sent else self._crop
        decoded, image, plan = self._decode(make_image, tiles, area, crop)
        new = _image_second(stamp_ns // NS, stamp_ns, decoded, area, plan)
        return self._encode(new, image, plan, self._look_device, started_s)

    @property
    def _n_tiles(self) -> int:
        return 1 if self.governor.is_lowered else self._max_tiles

    def _plan(self, width, height, max_tiles: int, area: float, crop: Crop) -> TilePlan:
        side, squares = self._encoder.image_size, self._encoder.takes_squares
        seen = crop.size(width, height)
        return plan_tiles(*seen, max_tiles, side, self._tile_rule, squares, area)

    def _decode_newest(self, offered: list, area: float) -> tuple:
        """Return ((stamp_ns, *_decode) of the newest image that is whole, why later ones are not).

        None in place of the first if all are damaged.
        """
        reasons = []
        for stamp_ns, make_image in reversed(offered):
            try:
                decoded = self._decode(make_image, self._n_tiles, area, self._crop)
                return (stamp_ns, *decoded), reasons
            except Exception as error:  # whatever a decoder raises on damaged data
                reasons.append(str(error) or type(error).__name__)
        return None, reasons

    def _decode(self, make_image: Callable, max_tiles: int, area: float, crop: Crop) -> tuple:
        """Return an image as Decoded, the part of it that is seen (h, w, 3), and its TilePlan."""
        plan_of = partial(self._plan, max_tiles=max_tiles, area=area, crop=crop)

        def needed(width: int, height: int) -> tuple:
            """Return (width, height) that the whole image needs, for what is seen of it."""
            plan, seen = plan_of(width, height), crop.size(width, height)
            wide = max(plan.source_width, plan.tiles_wide * plan.tile_width)
            high = max(plan.source_height, plan.tiles_high * plan.tile_height)
            return -(-wide * width // seen[0]), -(-high * height // seen[1])

        decoded = make_image(needed)
        return decoded, crop.cut(decoded.pixels), plan_of(decoded.width, decoded.height)

    def _is_unchanged(self, image: np.ndarray, small: np.ndarray, new: ImageSecond) -> bool:
        """Compare with the last encoded image, so that slow changes add up.

        A sharper embedding may be used again, a less sharp one may not.
        """
        old = self._encoded
        if old is None or old.area < new.area:
            return False
        same_size = (old.source_width, old.source_height) == (new.source_width, new.source_height)
        return same_size and not has_changed(
            self._small, small, thumbnail_noise(image), self._threshold
        )

    def _encode(self, new: ImageSecond, image, plan: TilePlan, device, started_s) -> ImageSecond:
        overview, *tiles = slice_image(image, plan)
        new = replace(new, preprocess_ms=_ms_since(started_s))
        started_s = perf_counter()
        at_once = self._encoder.max_tiles
        batches = [[overview], *(tiles[i : i + at_once] for i in range(0, len(tiles), at_once))]
        try:
            with device() as between:
                rows = np.concatenate([self._encoder.encode(b, between) for b in batches])
        except GaveUp:  # it takes too long: again, as the governor has it now
            area = self.area_of(new.second)
            size = new.source_width, new.source_height
            plan = self._plan(*size, self._n_tiles, area, self._crop)
            new = replace(new, area=area, tiles_wide=plan.tiles_wide, tiles_high=plan.tiles_high)
            return self._encode(new, image, plan, device, perf_counter())
        except (EngineError, ModelFileError) as error:  # concerns this image, not other seconds
            return replace(new, status=Status.LOST, reason=str(error))
        new = replace(new, encode_ms=_ms_since(started_s))
        if not np.abs(rows).max() < LARGEST:  # NaN is not less than anything
            return replace(
                new,
                status=Status.LOST,
                reason='The embedding of the image is not '
                f'finite or not below {LARGEST:.0f}. Are the model files intact?',
            )
        return replace(new, rows=rows.astype(np.float16))  # (images * queries, width)


class ReuseCount:
    """Counts in how many seconds a threshold would reuse an embedding, without encoding."""

    def __init__(self, threshold: float):
        self.threshold, self.reused, self.longest_s = threshold, 0, 0
        self._encoded = None  # second, size and thumbnail of the image that is reused

    def add(self, second: int, size: tuple, small: np.ndarray, noise: float) -> None:
        """Take the image of a second: its size, its thumbnail, and the noise of that."""
        if self._encoded is not None:
            since, old_size, old = self._encoded
            if size == old_size and not has_changed(old, small, noise, self.threshold):
                self.reused += 1
                self.longest_s = max(self.longest_s, second - since)
                return
        self._encoded = second, size, small


def _image_second(second, stamp_ns, decoded, area, plan, reason: str = '') -> ImageSecond:
    return ImageSecond(
        second,
        Status.OK,
        reason,
        image_stamp_ns=stamp_ns,
        source_width=decoded.width,
        source_height=decoded.height,
        area=area,
        tiles_wide=plan.tiles_wide,
        tiles_high=plan.tiles_high,
    )


def _whole(image) -> Decoded:
    """Return the image, contiguous; raise InputError if it is not one: it comes from outside."""
    if not (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
    ):
        found = getattr(image, 'shape', type(image).__name__)
        raise InputError(f'The image is {found}; (height, width, 3) of uint8 is allowed.')
    return Decoded.whole(np.ascontiguousarray(image))


def _ms_since(started_s: float) -> float:
    return (perf_counter() - started_s) * 1e3
