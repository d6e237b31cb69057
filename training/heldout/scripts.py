# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What happens in a clip, second by second, before anything is drawn or spoken.

In a hard clip the seconds have nothing to do with each other; in the others the picture stands
still, changes once, or is another for one second. No word is said twice in a clip.
"""

from dataclasses import replace

from training.world import COLORS, COMMANDS, NUMBERS, PITCHES, SHAPES, Picture, Sound

WORDS = (*COLORS, *SHAPES, *NUMBERS[1:7], *COMMANDS)
EVENTS = ('silence', 'beep', 'tone', 'noise', 'siren', 'bell', 'knock')


def pick(rng, items):
    """One of `items`, evenly."""
    return items[int(rng.integers(len(items)))]


def pictures_of(seconds: int, hard: bool, rng) -> list:
    """Give a world.Picture a second, without its place."""
    if hard:
        return [_picture(rng) for _ in range(seconds)]
    base = _picture(rng)
    other = _changed(base, rng)
    plot = pick(rng, ('still', 'change', 'change', 'moment'))
    if plot == 'still':
        return [base] * seconds
    at = int(rng.integers(1, seconds)) if plot == 'change' else int(rng.integers(seconds))
    return [other if (i >= at if plot == 'change' else i == at) else base for i in range(seconds)]


def sounds_of(pictures: list, rng) -> list:
    """Give a world.Sound a second, without its voice; words often belie the picture."""
    sounds, said = [], set()
    for picture in pictures:
        if rng.random() < 0.58:
            lures = [w for w in (*COLORS, *SHAPES) if w not in (picture.color, picture.shape)]
            word = pick(rng, lures if rng.random() < 0.6 else WORDS)
            if word not in said:
                said.add(word)
                sounds.append(Sound('speech', word))
                continue
        kind = pick(rng, EVENTS)
        sounds.append(Sound(kind, pitch=pick(rng, PITCHES) if kind in ('beep', 'tone') else None))
    return sounds


def _picture(rng) -> Picture:
    count = 1 if rng.random() < 0.55 else int(rng.integers(2, 5))
    return Picture(pick(rng, SHAPES), pick(rng, COLORS), count)


def _changed(picture: Picture, rng) -> Picture:
    """The same with another color, shape or number."""
    name, pool = pick(
        rng, (('color', COLORS), ('color', COLORS), ('shape', SHAPES), ('count', (1, 2, 3, 4)))
    )
    return replace(
        picture, **{name: pick(rng, [value for value in pool if value != getattr(picture, name)])}
    )
