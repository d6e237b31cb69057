# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Every kind of question nano can be asked, by family.

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


def _moment(clip, rng, fits=lambda i: True):
    """An index that `fits` and can be told as 'n seconds ago'; now is asked about more often."""
    recent = [i for i in range(max(0, clip.seconds - 1 - LONGEST_AGO), clip.seconds) if fits(i)]
    if recent and recent[-1] == clip.seconds - 1 and rng.random() < 0.25:
        return recent[-1]
    return choose(rng, recent) if recent else None


def _unique(values, index):
    return values[index] is not None and values.count(values[index]) == 1


def _tempting(values, answer, pool):
    """The other values of the clip, then the rest of the pool."""
    mine = [v for v in dict.fromkeys(values) if v is not None and v != answer]
    return mine, [p for p in pool if p != answer and p not in mine]


def _lists(clip):
    return (
        [p.color for p in clip.pictures],
        [p.shape for p in clip.pictures],
        [s.kind for s in clip.sounds],
        [s.word for s in clip.sounds],
    )


# ---- scene: the picture alone
def color_at(clip, rng):
    i = _moment(clip, rng)
    values = [p.color for p in clip.pictures]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what color {verb} the shape {when(clip, i)}?',
        values[i],
        _tempting(values, values[i], COLORS),
        i,
    )


def shape_at(clip, rng):
    i = _moment(clip, rng)
    values = [p.shape for p in clip.pictures]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what shape {verb} shown {when(clip, i)}?',
        values[i],
        _tempting(values, values[i], SHAPES),
        i,
    )


def column_at(clip, rng):
    i = _moment(clip, rng, lambda i: clip.pictures[i].column)
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
    i = _moment(clip, rng, lambda i: clip.pictures[i].row)
    if i is None:
        return None
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'where {verb} the shape {when(clip, i)}, top, middle or bottom?',
        clip.pictures[i].row,
        None,
        i,
    )


# ---- source: the sound alone
def kind_at(clip, rng):
    i = _moment(clip, rng)
    values = [s.kind for s in clip.sounds]
    verb = 'do' if i == clip.seconds - 1 else 'did'
    return (
        f'what {verb} you hear {when(clip, i)}?',
        values[i],
        _tempting(values, values[i], KINDS),
        i,
    )


def word_at(clip, rng):
    i = _moment(clip, rng, lambda i: clip.sounds[i].word)
    if i is None:
        return None
    values = [s.word for s in clip.sounds]
    verb = 'is' if i == clip.seconds - 1 else 'was'
    return (
        f'what word {verb} said {when(clip, i)}?',
        values[i],
        _tempting(values, values[i], SPOKEN),
        i,
    )


def voice_of(clip, rng):
    i = _moment(clip, rng, lambda i: clip.sounds[i].voice)
    if i is None:
        return None
    return f'who says {heard(clip.sounds[i])}, a man or a woman?', clip.sounds[i].voice, None, i


def pitch_of(clip, rng):
    i = _moment(
        clip, rng, lambda i: clip.sounds[i].pitch and _unique([s.kind for s in clip.sounds], i)
    )
    if i is None:
        return None
    return f'is {heard(clip.sounds[i])} low or high?', clip.sounds[i].pitch, None, i


# ---- align: which picture belongs to which sound
def _single_sound(clip, rng, fits=lambda i: True):
    """An index whose sound is told from all others by its name, or None."""
    kinds = [s.kind for s in clip.sounds]
    found = [
        i
        for i, s in enumerate(clip.sounds)
        if fits(i) and (s.word or (s.kind != 'silence' and kinds.count(s.kind) == 1))
    ]
    return choose(rng, found) if found else None


def color_when(clip, rng):
    i = _single_sound(clip, rng, lambda i: clip.sounds[i].word not in COLORS)
    if i is None:
        return None
    values = [p.color for p in clip.pictures]
    return (
        f'what color is the shape when you hear {heard(clip.sounds[i])}?',
        values[i],
        _tempting(values, values[i], COLORS),
        i,
    )


def shape_when(clip, rng):
    i = _single_sound(clip, rng, lambda i: clip.sounds[i].word not in SHAPES)
    if i is None:
        return None
    values = [p.shape for p in clip.pictures]
    return (
        f'what shape is shown when you hear {heard(clip.sounds[i])}?',
        values[i],
        _tempting(values, values[i], SHAPES),
        i,
    )


def _single_sight(clip, rng, fits=lambda i: True):
    """(phrase, index) of a second told from all others by its color or its shape, or None."""
    colors, shapes, _, _ = _lists(clip)
    found = [
        (f'the shape is {colors[i]}', i)
        for i in range(clip.seconds)
        if _unique(colors, i) and fits(i)
    ]
    found += [
        (f'the {shapes[i]} is shown', i)
        for i in range(clip.seconds)
        if _unique(shapes, i) and fits(i)
    ]
    return choose(rng, found) if found else None


def kind_when(clip, rng):
    found = _single_sight(clip, rng)
    if found is None:
        return None
    values = [s.kind for s in clip.sounds]
    return (
        f'what do you hear when {found[0]}?',
        values[found[1]],
        _tempting(values, values[found[1]], KINDS),
        found[1],
    )


def word_when(clip, rng):
    found = _single_sight(clip, rng, lambda i: clip.sounds[i].word)
    if found is None:
        return None
    values = [s.word for s in clip.sounds]
    return (
        f'what word is said when {found[0]}?',
        values[found[1]],
        _tempting(values, values[found[1]], SPOKEN),
        found[1],
    )


# ---- temporal: order and distance in time
def color_beside(clip, rng):
    """Before or after a color that is shown in one second only."""
    colors = [p.color for p in clip.pictures]
    found = [
        (i, d)
        for i in range(clip.seconds)
        for d in (-1, 1)
        if 0 <= i + d < clip.seconds and _unique(colors, i)
    ]
    if not found:
        return None
    i, d = choose(rng, found)
    return (
        f'what color comes {"after" if d > 0 else "before"} {colors[i]}?',
        colors[i + d],
        _tempting(colors, colors[i + d], COLORS),
        max(i, i + d),
    )


def kind_beside(clip, rng):
    found = [(i, d) for i in range(clip.seconds) for d in (-1, 1) if 0 <= i + d < clip.seconds]
    single = _single_sound(clip, rng)
    found = [f for f in found if f[0] == single]
    if not found:
        return None
    i, d = choose(rng, found)
    values = [s.kind for s in clip.sounds]
    return (
        f'what do you hear {"after" if d > 0 else "before"} {heard(clip.sounds[i])}?',
        values[i + d],
        _tempting(values, values[i + d], KINDS),
        max(i, i + d),
    )


def ago_of_sound(clip, rng):
    oldest = clip.seconds - 1 - LONGEST_AGO
    i = _single_sound(clip, rng, lambda i: i >= oldest)
    if i is None:
        return None
    pool = NUMBERS[: min(clip.seconds, LONGEST_AGO + 1)]
    return (
        f'how many seconds ago do you hear {heard(clip.sounds[i])}?',
        NUMBERS[clip.seconds - 1 - i],
        _tempting((), NUMBERS[clip.seconds - 1 - i], pool),
        i,
    )


def ago_of_color(clip, rng):
    colors = [p.color for p in clip.pictures]
    oldest = max(0, clip.seconds - 1 - LONGEST_AGO)
    found = [i for i in range(oldest, clip.seconds) if _unique(colors, i)]
    if not found:
        return None
    i = choose(rng, found)
    pool = NUMBERS[: min(clip.seconds, LONGEST_AGO + 1)]
    return (
        f'how many seconds ago is the shape {colors[i]}?',
        NUMBERS[clip.seconds - 1 - i],
        _tempting((), NUMBERS[clip.seconds - 1 - i], pool),
        i,
    )


def which_first(clip, rng):
    words = [s.word for s in clip.sounds if s.word]
    if len(words) < 2:
        return None
    i, j = sorted(int(k) for k in rng.permutation(len(words))[:2])
    pair = (words[i], words[j]) if rng.random() < 0.5 else (words[j], words[i])
    return f'which word comes first, "{pair[0]}" or "{pair[1]}"?', words[i], None, None


# ---- count
def count_at(clip, rng):
    i = _moment(clip, rng)
    verb = 'are' if i == clip.seconds - 1 else 'were'
    return (
        f'how many shapes {verb} shown {when(clip, i)}?',
        COUNTS[clip.pictures[i].count - 1],
        _tempting((), COUNTS[clip.pictures[i].count - 1], COUNTS),
        i,
    )


def count_when(clip, rng):
    i = _single_sound(clip, rng, lambda i: clip.sounds[i].word not in NUMBERS)
    if i is None:
        return None
    return (
        f'how many shapes are shown when you hear {heard(clip.sounds[i])}?',
        COUNTS[clip.pictures[i].count - 1],
        _tempting((), COUNTS[clip.pictures[i].count - 1], COUNTS),
        i,
    )


def count_events(clip, rng):
    kind, name = choose(rng, (('beep', 'beeps'), ('speech', 'words'), ('tone', 'tones')))
    number = [s.kind for s in clip.sounds].count(kind)
    if number > 8:
        return None
    pool = NUMBERS[: min(clip.seconds, 8) + 1]
    return (
        f'how many {name} do you hear?',
        NUMBERS[number],
        _tempting((), NUMBERS[number], pool),
        None,
    )


# ---- mislead: the voice names one thing, the picture shows another
def seen_despite_word(clip, rng):
    found = []
    for i, (p, s) in enumerate(zip(clip.pictures, clip.sounds)):
        if s.word in COLORS and s.word != p.color:
            found.append(
                (f'what color is the shape when you hear {heard(s)}?', p.color, s.word, COLORS, i)
            )
        if s.word in SHAPES and s.word != p.shape:
            found.append(
                (f'what shape is shown when you hear {heard(s)}?', p.shape, s.word, SHAPES, i)
            )
        if s.word in NUMBERS and s.word != COUNTS[p.count - 1]:
            found.append(
                (
                    f'how many shapes are shown when you hear {heard(s)}?',
                    COUNTS[p.count - 1],
                    s.word,
                    COUNTS,
                    i,
                )
            )
    if not found:
        return None
    text, answer, lure, pool, i = choose(rng, found)
    return text, answer, _tempting((lure,), answer, pool), i


def _named(clip, rng):
    """(index, name, value seen there, pool) of the only color (or shape) word, misleading."""
    found = []
    for pool, name in ((COLORS, 'color'), (SHAPES, 'shape')):
        at = [i for i, s in enumerate(clip.sounds) if s.word in pool]
        if len(at) == 1 and clip.sounds[at[0]].word != getattr(clip.pictures[at[0]], name):
            found.append((at[0], name, getattr(clip.pictures[at[0]], name), pool))
    return choose(rng, found) if found else None


def said_despite_sight(clip, rng):
    found = _named(clip, rng)
    if found is None:
        return None
    i, name, seen, pool = found
    return (
        f'what {name} does the voice say?',
        clip.sounds[i].word,
        _tempting((seen,), clip.sounds[i].word, pool),
        i,
    )


def seen_when_named(clip, rng):
    found = _named(clip, rng)
    if found is None:
        return None
    i, name, seen, pool = found
    return (
        f'what {name} is shown when the voice says a {name}?',
        seen,
        _tempting((clip.sounds[i].word,), seen, pool),
        i,
    )


KINDS_OF = {
    'scene': (color_at, shape_at, column_at, row_at),
    'source': (kind_at, word_at, voice_of, pitch_of),
    'align': (color_when, shape_when, kind_when, word_when),
    'temporal': (color_beside, kind_beside, ago_of_sound, ago_of_color, which_first),
    'count': (count_at, count_when, count_events),
    'mislead': (seen_despite_word, seen_despite_word, said_despite_sight, seen_when_named),
}
GUESS = {
    'row_at': 1 / 3,
    'column_at': 1 / 3,
    'voice_of': 1 / 2,
    'pitch_of': 1 / 2,
    'which_first': 1 / 2,
}
