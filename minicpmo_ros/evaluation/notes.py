# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes of bags, written by a model as a robot's node would write them, without ROS."""

from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minicpmo_ros.config import LLM
from minicpmo_ros.evaluation.bags.clip import Clip, Sources
from minicpmo_ros.evaluation.bags.clip_reading import first_day
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.notes.note import thumbnail
from minicpmo_ros.notes.periodic import Schedule
from minicpmo_ros.notes.snapshots import PeriodicSnapshots, Snapshot
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.units import NS

MOST_DAMAGED = 10  # images one after the other, in whose place an older one is taken


def remember_bag(
    core: Core,
    path: Path,
    store: NoteStore,
    questions: tuple,
    every_s: int,
    sources: Sources | None = None,
    has_images: bool = True,
    tell: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Write a note of every `every_s` seconds of a bag; return how many the store got.

    `questions`: NoteQuestions. The window begins empty. `tell` as first_day has it. Raises
    InputError where the bag is damaged, StoreError.
    """
    before = len(store)
    with first_day(path, sources, tell) as clip:
        images = clip.images if has_images else ()
        core.session.reset()
        remember_clip(core, clip, images, store, Schedule(questions, every_s))
    return len(store) - before


def remember_clip(core: Core, clip: Clip, images, store: NoteStore, schedule: Schedule) -> None:
    """Write the notes that are due by `schedule`; `images`: for small ones, none if empty."""
    periodic, came_s = PeriodicSnapshots(), {}  # by sense: end of the newest second that has it
    for unit in core.stream(clip):
        if core.session.window.seconds == []:
            schedule.due(unit.second)  # counts from here
        core.session.append(unit)
        halves = {'image': unit.image_rows, 'audio': unit.audio_rows}
        came_s |= {name: unit.second + 1 for name, rows in halves.items() if rows is not None}
        due = schedule.due(unit.second + 1)
        if due is None:
            continue
        is_stale = due.end_s - min(came_s.values(), default=due.end_s) > LLM.max_staleness_s
        while due.left:
            due.take(core.ask(due.left[0].text).text, is_stale)
        schedule.written(due)
        note = due.note(model=core.model.model_id, image=_image(images, due.end_s))
        if note is not None:
            is_kept = periodic.wants(unit)
            store.add(note, Snapshot(unit, core.model.exact_space) if is_kept else None)


def _image(images, end_s: int) -> bytes:
    """Return a small JPEG of the newest image before a moment; b'' where there is none."""
    newest = bisect_left(images, end_s * NS, key=lambda image: image.stamp_ns) - 1
    for at in range(newest, max(-1, newest - MOST_DAMAGED), -1):
        with suppress(Exception):  # of damaged bytes a decoder raises almost anything
            return thumbnail(images[at].rgb())
    return b''
