# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A clip at a glance: what was shown in every second, and below it the sound's waveform."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.clips import NS, SAMPLE_RATE_HZ, Clip

COLUMNS = 10  # seconds a row
CELL, WAVE, LABEL, GAP = 128, 40, 14, 4  # pixels: width and height of a picture, heights, space
PAPER, INK, GONE = (255, 255, 255), (40, 40, 40), (225, 225, 225)
MOST_CELLS = 1200


def contact_sheet(clip: Clip, start_s: int | None = None, end_s: int | None = None) -> Image.Image:
    """Draw the seconds [start_s, end_s), by default all.

    A second shows its newest picture, grey where it has none; labels count from the first second
    drawn. Waveforms are drawn to full scale. Raises InputError for more than MOST_CELLS seconds.
    """
    newest = {}
    for shot in clip.pictures:
        newest[shot.stamp_ns // NS] = shot
    sound = _by_second(clip)
    told = [*newest, *sound]
    start_s = min(told) if start_s is None else start_s
    end_s = max(told) + 1 if end_s is None else end_s
    seconds = range(start_s, end_s)
    if not 0 < len(seconds) <= MOST_CELLS:
        raise InputError(
            f'{len(seconds)} seconds do not fit on a sheet; 1 to {MOST_CELLS} do. Give a window.'
        )
    columns, rows = min(COLUMNS, len(seconds)), -(-len(seconds) // COLUMNS)
    height = LABEL + CELL + WAVE + GAP
    sheet = Image.new('RGB', (columns * (CELL + GAP) + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, second in enumerate(seconds):
        left, top = GAP + i % COLUMNS * (CELL + GAP), GAP + i // COLUMNS * height
        draw.text((left, top), f'{second - start_s} s', fill=INK)
        _draw_picture(sheet, draw, newest.get(second), left, top + LABEL)
        _draw_wave(draw, sound.get(second), left, top + LABEL + CELL)
    return sheet


def _by_second(clip: Clip) -> dict:
    """Give the samples of every second that has some, (16000,) float32."""
    seconds, at_ns = {}, 0
    for stamp_ns, samples in clip.sound:
        begin_ns = at_ns if stamp_ns is None else stamp_ns
        at_ns = begin_ns + len(samples) * NS // SAMPLE_RATE_HZ
        begin = begin_ns * SAMPLE_RATE_HZ // NS
        while len(samples):
            second, offset = divmod(begin, SAMPLE_RATE_HZ)
            part, samples = np.split(samples, [SAMPLE_RATE_HZ - offset])
            kept = seconds.setdefault(second, np.zeros(SAMPLE_RATE_HZ, np.float32))
            kept[offset : offset + len(part)] = part
            begin += len(part)
    return seconds


def _draw_picture(sheet, draw, shot, left: int, top: int) -> None:
    try:
        picture = None if shot is None else Image.fromarray(shot.rgb())
    except InputError:
        picture = None
    if picture is None:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=GONE)
        return
    picture = ImageOps.contain(picture, (CELL, CELL))
    sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))


def _draw_wave(draw, samples, left: int, top: int) -> None:
    middle = top + WAVE // 2
    if samples is None:
        draw.line((left, middle, left + CELL - 1, middle), fill=GONE)
        return
    parts = samples[: len(samples) // CELL * CELL].reshape(CELL, -1)  # (128, 125)
    for i, (low, high) in enumerate(zip(parts.min(1), parts.max(1))):
        ends = (np.clip((-high, -low), -1, 1) * (WAVE // 2 - 1)).round()
        draw.line((left + i, middle + ends[0], left + i, middle + ends[1]), fill=INK)
