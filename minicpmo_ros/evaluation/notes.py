# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes of bags, written by a model as a robot's node would write them, without ROS."""

from pathlib import Path

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.clip import Clip, Sources
from minicpmo_ros.evaluation.bags.clip_reading import read_windows
from minicpmo_ros.evaluation.questions import LONGEST_WINDOW_S
from minicpmo_ros.evaluation.runner import Core
from minicpmo_ros.notes.note import thumbnail
from minicpmo_ros.notes.periodic import Schedule
from minicpmo_ros.notes.snapshots import PeriodicSnapshots, Snapshot
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.units import NS


def remember_bag(
    core: Core,
    path: Path,
    store: NoteStore,
    questions: tuple,
    every_s: int,
    sources: Sources | None = None,
    has_images: bool = True,
) -> int:
    """Write a note of every `every_s` seconds of a bag; return how many the store got.

    `questions`: NoteQuestions. The window begins empty. Raises InputError where the bag is
    damaged, StoreError.
    """
    with read_windows(path, [((0, LONGEST_WINDOW_S), True)], sources) as kept:
        clip = kept.clip()
    if clip.losses:
        raise InputError(f'{path}: {" ".join(clip.losses)}')
    before = len(store)
    schedule, periodic = Schedule(questions, every_s), PeriodicSnapshots()
    core.session.reset()
    for unit in core.stream(clip):
        if core.session.window.seconds == []:
            schedule.due(unit.second)  # counts from here
        core.session.append(unit)
        due = schedule.due(unit.second + 1)
        if due is None:
            continue
        while due.left:
            due.take(core.ask(due.left[0].text).text)
        schedule.written(due)
        note = due.note(model=core.model.model_id, image=_image(clip, due.end_s, has_images))
        if note is not None:
            is_kept = periodic.wants(unit)
            store.add(note, Snapshot(unit, core.model.exact_space) if is_kept else None)
    return len(store) - before


def _image(clip: Clip, end_s: int, is_wanted: bool) -> bytes:
    """Return a small JPEG of the newest image before a moment."""
    images = [image for image in clip.images if image.stamp_ns < end_s * NS] if is_wanted else []
    return thumbnail(images[-1].rgb()) if images else b''
