# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of questions across seconds and senses: temporal, count, mislead, verify, command.

What a kind is, says kinds.py.
"""

from .kinds import counted, heard, moment, single_sound, tempting, unique, when
from .world import COLORS, COUNTS, KINDS, NUMBERS, SHAPES, SPOKEN, choose, is_begun


# ---- temporal: what comes before and after
def _next_to(clip, indices):
    """(index, neighbour, its side) of every index that has a second beside it."""
    return [
        (i, i + d, 'after' if d > 0 else 'before')
        for i in indices
        for d in (-1, 1)
        if 0 <= i + d < clip.seconds
    ]


def _seen_beside(clip, rng, name, pool):
    """Before or after a color or shape that is shown in one second only."""
    values = [getattr(p, name) for p in clip.pictures]
    found = _next_to(clip, [i for i in range(clip.seconds) if unique(values, i)])
    found = [f for f in found if values[f[1]]]
    if not found:
        return None
    i, beside, side = choose(rng, found)
    this = values[i] if name == 'color' else f'the {values[i]}'
    return (
        f'what {name} comes {side} {this}?',
        values[beside],
        tempting(values, values[beside], pool),
        max(i, beside),
    )


def color_beside(clip, rng):
    return _seen_beside(clip, rng, 'color', COLORS)


def shape_beside(clip, rng):
    return _seen_beside(clip, rng, 'shape', SHAPES)


def _heard_beside(clip, rng, name, pool, question):
    """Before or after a sound that is heard in one second only."""
    i = single_sound(clip, rng)
    values = [getattr(s, name) for s in clip.sounds]
    found = [] if i is None else [f for f in _next_to(clip, [i]) if values[f[1]]]
    if not found:
        return None
    i, beside, side = choose(rng, found)
    return (
        f'{question} {side} {heard(clip.sounds[i])}?',
        values[beside],
        tempting(values, values[beside], pool),
        max(i, beside),
    )


def kind_beside(clip, rng):
    return _heard_beside(clip, rng, 'kind', KINDS, 'what do you hear')


def word_beside(clip, rng):
    return _heard_beside(clip, rng, 'word', SPOKEN, 'what word is said')


# ---- count
def count_when(clip, rng):
    i = single_sound(clip, rng, lambda i: clip.sounds[i].word not in NUMBERS)
    if i is None:
        return None
    return (
        f'how many shapes are shown when you hear {heard(clip.sounds[i])}?',
        counted(clip, i),
        tempting((), counted(clip, i), COUNTS),
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
        tempting((), NUMBERS[number], pool),
        None,
    )


# ---- mislead: the voice names one thing, the picture shows another
def seen_despite_word(clip, rng):
    found = []
    for i, (p, s) in enumerate(zip(clip.pictures, clip.sounds)):
        if not p.count:
            continue
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
    return text, answer, tempting((lure,), answer, pool), i


def _named(clip, rng):
    """(index, name, value seen there, pool) of the only color (or shape) word, misleading."""
    found = []
    for pool, name in ((COLORS, 'color'), (SHAPES, 'shape')):
        at = [i for i, s in enumerate(clip.sounds) if s.word in pool]
        if len(at) != 1:
            continue
        seen = getattr(clip.pictures[at[0]], name)
        if seen and clip.sounds[at[0]].word != seen:
            found.append((at[0], name, seen, pool))
    return choose(rng, found) if found else None


def said_despite_sight(clip, rng):
    found = _named(clip, rng)
    if found is None:
        return None
    i, name, seen, pool = found
    return (
        f'what {name} does the voice say?',
        clip.sounds[i].word,
        tempting((seen,), clip.sounds[i].word, pool),
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
        tempting((clip.sounds[i].word,), seen, pool),
        i,
    )


# ---- verify: yes or no
YES, NO = 'yes', 'no'


def _verified(clip, rng, values, pool, verbs, wording):
    """A question about one second that is true in half of all cases; else it names another value,
    often one of another second. `verbs`: of now and of before.
    """
    i = moment(clip, rng)
    verb, value = verbs[i < clip.seconds - 1], values[i]
    if value is None or rng.random() < 0.5:
        others = [v for v in dict.fromkeys(values) if v is not None and v != value]
        if not others or rng.random() < 0.5:
            others = [v for v in pool if v != value]
        value = choose(rng, others)
    answer = YES if value == values[i] else NO
    return f'{verb} {wording.format(value)} {when(clip, i)}?', answer, None, i


def color_is(clip, rng):
    colors = [p.color for p in clip.pictures]
    return _verified(clip, rng, colors, COLORS, ('is', 'was'), 'the shape {}')


def shape_is(clip, rng):
    shapes = [p.shape for p in clip.pictures]
    return _verified(clip, rng, shapes, SHAPES, ('is', 'was'), 'a {} shown')


def kind_is(clip, rng):
    kinds = [s.kind for s in clip.sounds]
    return _verified(clip, rng, kinds, KINDS, ('do', 'did'), 'you hear the {}')


def word_is(clip, rng):
    words = [s.word for s in clip.sounds]
    return _verified(clip, rng, words, SPOKEN, ('is', 'was'), 'the word "{}" said')


# ---- command: a question word is said last, and no text asks anything
def said_last(clip, rng):
    words = [i for i, s in enumerate(clip.sounds) if s.word]
    at, last = words[-1] if words else -1, clip.seconds - 1
    if at < 0 or any(s.kind != 'silence' for s in clip.sounds[at + 1 :]):
        return None
    before = at - 1 - (at > 0 and is_begun(clip.sounds[at - 1]))
    picture = clip.pictures[last]
    answers = {
        'color': (picture.color, last),
        'shape': (picture.shape, last),
        'count': (counted(clip, last), last),
        'sound': (clip.sounds[before].kind if before >= 0 else None, before),
        'where': (picture.column, last),
    }
    answer, second = answers.get(clip.sounds[at].word, (None, None))
    return ('', answer, None, second) if answer else None
