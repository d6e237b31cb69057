# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of questions about one second: scene, source, align; and what every kind is made with.

A kind is a function (clip, rng) -> (text, answer, pool, second) or None where the clip has no such
question; `pool` is what options are drawn from, the most tempting wrong ones first, or None (no
options); `second` is where the answer stands, or None where it stands in no single one.
"""

from .world import (
    COLORS,
    COUNTS,
    KINDS,
    NUMBERS,
    SHAPES,
    SPOKEN,
    choose,
)

LONGEST_AGO = 7  # seconds a question reaches back by number


def heard(sound):
    return f'"{sound.word}"' if sound.kind == 'speech' else f'the {sound.kind}'


def when(clip, index):
    ago = clip.seconds - 1 - index
    if ago == 0:
        return 'now'
    return f'{NUMBERS[ago]} second{"s" if ago > 1 else ""} ago'


def moment(clip, rng, fits=lambda i: True):
    """An index that `fits` and can be told as 'n seconds ago'; now is asked about more often."""
    recent = [i for i in range(max(0, clip.seconds - 1 - LONGEST_AGO), clip.seconds) if fits(i)]
    if recent and recent[-1] == clip.seconds - 1 and rng.random() < 0.25:
        return recent[-1]
    return choose(rng, recent) if recent else None


def unique(values, index):
    return values[index] is not None and values.count(values[index]) == 1


def tempting(values, answer, pool):
    """The other values of the clip, then the rest of the pool."""
    mine = [v for v in dict.fromkeys(values) if v is not None and v != answer]
    return mine, [p for p in pool if p != answer and p not in mine]


def lists(clip):
    return (
        [p.color for p in clip.pictures],
        [p.shape for p in clip.pictures],
        [s.kind for s in clip.sounds],
        [s.word for s in clip.sounds],
    )


def shown(clip):
    """Which seconds show a shape."""
    return lambda i: clip.pictures[i].count


# ---- scene: the picture alone
def color_at(clip, rng):
    i = moment(clip, rng, shown(clip))
    if i is None:
        return None
    values = [p.color for p in clip.pictures]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what color {verb} the shape {when(clip, i)}?',
        values[i],
        tempting(values, values[i], COLORS),
        i,
    )


def shape_at(clip, rng):
    i = moment(clip, rng, shown(clip))
    if i is None:
        return None
    values = [p.shape for p in clip.pictures]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what shape {verb} shown {when(clip, i)}?',
        values[i],
        tempting(values, values[i], SHAPES),
        i,
    )


def column_at(clip, rng):
    i = moment(clip, rng, lambda i: clip.pictures[i].column)
    if i is None:
        return None
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'where {verb} the shape {when(clip, i)}, left, center or right?',
        clip.pictures[i].column,
        None,
        i,
    )


def row_at(clip, rng):
    i = moment(clip, rng, lambda i: clip.pictures[i].row)
    if i is None:
        return None
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'where {verb} the shape {when(clip, i)}, top, middle or bottom?',
        clip.pictures[i].row,
        None,
        i,
    )


def count_at(clip, rng):
    i = moment(clip, rng)
    verb = 'are' if i == clip.seconds - 1 else 'were'
    return (
        f'how many shapes {verb} shown {when(clip, i)}?',
        counted(clip, i),
        tempting((), counted(clip, i), COUNTS),
        i,
    )


def counted(clip, i):
    """The number of shapes in a second, as a word."""
    return NUMBERS[clip.pictures[i].count]


# ---- source: the sound alone
def kind_at(clip, rng):
    i = moment(clip, rng)
    values = [s.kind for s in clip.sounds]
    verb = 'do' if i == clip.seconds - 1 else 'did'
    return (
        f'what {verb} you hear {when(clip, i)}?',
        values[i],
        tempting(values, values[i], KINDS),
        i,
    )


def word_at(clip, rng):
    i = moment(clip, rng, lambda i: clip.sounds[i].word)
    if i is None:
        return None
    values = [s.word for s in clip.sounds]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what word {verb} said {when(clip, i)}?',
        values[i],
        tempting(values, values[i], SPOKEN),
        i,
    )


def voice_of(clip, rng):
    i = moment(clip, rng, lambda i: clip.sounds[i].voice)
    if i is None:
        return None
    return f'who says {heard(clip.sounds[i])}, a man or a woman?', clip.sounds[i].voice, None, i


def pitch_of(clip, rng):
    i = moment(
        clip, rng, lambda i: clip.sounds[i].pitch and unique([s.kind for s in clip.sounds], i)
    )
    if i is None:
        return None
    return f'is {heard(clip.sounds[i])} low or high?', clip.sounds[i].pitch, None, i


# ---- align: which picture belongs to which sound
def single_sound(clip, rng, fits=lambda i: True):
    """An index whose sound is told from all others by its name, or None."""
    kinds = [s.kind for s in clip.sounds]
    found = [
        i
        for i, s in enumerate(clip.sounds)
        if fits(i) and (s.word or (s.kind != 'silence' and kinds.count(s.kind) == 1))
    ]
    return choose(rng, found) if found else None


def color_when(clip, rng):
    i = single_sound(
        clip, rng, lambda i: clip.pictures[i].count and clip.sounds[i].word not in COLORS
    )
    if i is None:
        return None
    values = [p.color for p in clip.pictures]
    return (
        f'what color is the shape when you hear {heard(clip.sounds[i])}?',
        values[i],
        tempting(values, values[i], COLORS),
        i,
    )


def shape_when(clip, rng):
    i = single_sound(
        clip, rng, lambda i: clip.pictures[i].count and clip.sounds[i].word not in SHAPES
    )
    if i is None:
        return None
    values = [p.shape for p in clip.pictures]
    return (
        f'what shape is shown when you hear {heard(clip.sounds[i])}?',
        values[i],
        tempting(values, values[i], SHAPES),
        i,
    )


def single_sight(clip, rng, fits=lambda i: True):
    """(phrase, index) of a second told from all others by its color or its shape, or None."""
    colors, shapes, _, _ = lists(clip)
    found = [
        (f'the shape is {colors[i]}', i)
        for i in range(clip.seconds)
        if unique(colors, i) and fits(i)
    ]
    found += [
        (f'the {shapes[i]} is shown', i)
        for i in range(clip.seconds)
        if unique(shapes, i) and fits(i)
    ]
    return choose(rng, found) if found else None


def kind_when(clip, rng):
    found = single_sight(clip, rng)
    if found is None:
        return None
    values = [s.kind for s in clip.sounds]
    return (
        f'what do you hear when {found[0]}?',
        values[found[1]],
        tempting(values, values[found[1]], KINDS),
        found[1],
    )


def word_when(clip, rng):
    found = single_sight(clip, rng, lambda i: clip.sounds[i].word)
    if found is None:
        return None
    values = [s.word for s in clip.sounds]
    return (
        f'what word is said when {found[0]}?',
        values[found[1]],
        tempting(values, values[found[1]], SPOKEN),
        found[1],
    )
