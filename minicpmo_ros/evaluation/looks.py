# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions that look: at the newest image of their window, closer than the window has it, or at
an image that is sent along with them.

As on a robot, the image is encoded with all of the area, or also in tiles, and read on the
question's fork; if the newest one cannot be, the question is asked without and a note says so.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from minicpmo_ros.documents import read_bounded
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import Clip, ClipImage
from minicpmo_ros.live.question import Answer, Finish
from minicpmo_ros.media.image.tiling import Crop, Decoded, TileRule, reserved_area
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.units import NS

GREY = 128
NO_IMAGE = 'its window has no image.'
NOT_ENCODED = (
    'Questions cannot look closer: look_tiles (vision.look_tiles of vision_encoder) is 0. Raise '
    'it, or ask without look and image.'
)
MARKS = 4  # tokens around an image or a tile, at most


@dataclass(frozen=True)
class SentImage:
    """An image file beside the file of questions."""

    name: str  # relative to that file
    path: Path
    sha256: str  # of its bytes: another image is another question

    @classmethod
    def read(cls, where: str, folder: Path, name: str) -> 'SentImage':
        """Find it; raise InputError, which begins with `where`, if it cannot be read."""
        path = folder / name
        try:
            return cls(name, path, hashlib.sha256(read_bounded(path)).hexdigest())
        except OSError as error:
            raise InputError(
                f'{where}: its image {name} cannot be read in {folder} ({error.strerror}). Put it '
                'there, or correct its name: it is relative to the file of questions.'
            ) from error

    def open(self) -> ClipImage:
        """Read it; raise InputError if it is gone."""
        try:
            return ClipImage.of_compressed(0, '', read_bounded(self.path))
        except OSError as error:
            raise InputError(f'{self.path} cannot be read ({error.strerror}).') from error


@dataclass(frozen=True)
class InView:
    """What the questions about one window may look at."""

    newest: ClipImage | None = None  # of the window
    is_grey: bool = False  # images are shown grey, as Variant.input has it

    @classmethod
    def of(cls, clip: Clip, start_s: int, end_s: int, is_grey: bool) -> 'InView':
        """Return what is in view at the end of the window [start_s, end_s)."""
        inside = [image for image in clip.images if start_s <= image.stamp_ns // NS < end_s]
        newest = max(inside, key=lambda image: image.stamp_ns, default=None)
        return cls(newest, is_grey)


NOTHING = InView()


def shown(image: ClipImage, is_grey: bool, needed: Callable) -> Decoded:
    """Return an image as the encoder gets it, no larger than it is needed."""
    decoded = image.rgb.as_needed(needed)
    if not is_grey:
        return decoded
    return replace(decoded, pixels=np.full_like(decoded.pixels, GREY))


def image_pipeline(vision, options) -> ImagePipeline:
    """Return a pipeline that has seen nothing; options: a runner's CoreOptions."""
    return ImagePipeline(
        vision,
        options.max_tiles,
        options.unchanged_threshold,
        tile_rule=TileRule(options.tile_rule, options.tile_alpha),
        area=options.area,
        crop=Crop.parse(options.crop),
        largest_area=reserved_area(options.area, options.max_tiles, options.look_tiles),
        sharp_every=options.sharp_every,
    )


def ask_scored(core, question, view: InView) -> Answer:
    """Return a core's Answer to a ScoredQuestion, with what it cost to look.

    Raises InputError where the core is strict and there is nothing to look at.
    """
    asked_s, facts, image, notes = time.monotonic(), {}, None, ()
    if not question.looks:
        return core.ask(question.text, question.choices, question.json_schema)
    try:
        image = _look(core, question, view)
        facts = {
            'look_ms': 1e3 * (time.monotonic() - asked_s),
            'look_stamp_s': image.image_stamp_ns / NS,
        }
    except InputError as error:
        if core.strict:
            raise
        if question.image is not None:
            told = InputError(f'The image was not read: {error}')
            return Answer(question.text, '', Finish.ERROR, told)
        notes = (not_looked(str(error)),)
    answer = core.ask(question.text, question.choices, question.json_schema, image, asked_s)
    return replace(answer, notes=(*notes, *answer.notes), **facts)


def _look(core, question, view: InView):
    """Return the ImageSecond that a question reads; raises InputError."""
    tiles = core.options.look_tiles if question.looks == 'tiles' else 1
    pipeline = image_pipeline(core.vision, core.options)
    if question.image is not None:
        sent = question.image.open()
        seen = pipeline.look(tiles, partial(shown, sent, view.is_grey))
    elif view.newest is None:
        raise InputError(NO_IMAGE)
    else:
        make_image = partial(shown, view.newest, view.is_grey)
        pipeline.offer(view.newest.stamp_ns, make_image, as_needed=True)
        seen = pipeline.look(tiles)
    if seen.rows is None:
        raise InputError(seen.reason)
    return seen


def not_looked(why: str) -> str:
    """Return the note of a question that was asked without the image that it was to look at."""
    return f'The newest image was not looked at closer: {why}'


def with_room(options, questions, vision_header):
    """Return CoreOptions that keep room beside the window for what the questions look at.

    It is read before the question and needs positions as the question does: without them, seconds
    would leave the window.
    """
    from minicpmo_ros.encoders.siglip.model import read_facts  # loads llama.cpp

    images = {'': 0, 'sharp': 1, 'tiles': 1 + options.look_tiles}
    most = max((images[question.looks] for question in questions), default=0)
    room = most * (read_facts(vision_header).queries + MARKS)
    return replace(options, max_question_tokens=options.max_question_tokens + room)


def refused_looks(questions, look_tiles: int) -> dict:
    """Return {id: why}, of the questions that cannot look because no tile may be encoded."""
    return {q.id: NOT_ENCODED for q in questions if q.looks and not look_tiles}
