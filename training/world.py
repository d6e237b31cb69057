# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The little world nano lives in: what one second can show and sound like, and scripts of seconds.

Pure data and chance, no pixels and no samples. One second is one Picture (equal shapes of one
colour) and one Sound (an event that lies wholly inside the second, or a word that began in the
second before, which then holds BEGUN).
"""

from dataclasses import dataclass

import numpy as np

COLORS = ('red', 'green', 'blue', 'yellow', 'white', 'black', 'purple', 'orange')
SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
COUNTS = ('one', 'two', 'three', 'four')
COLUMNS = ('left', 'center', 'right')
ROWS = ('top', 'middle', 'bottom')
KINDS = ('silence', 'beep', 'tone', 'noise', 'siren', 'bell', 'knock', 'speech')
VOICES = ('man', 'woman')
PITCHES = ('low', 'high')
COMMANDS = ('stop', 'go', 'start', 'left', 'right', 'up', 'down', 'yes', 'no')
NUMBERS = (
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
    'ten',
    'eleven',
    'twelve',
    'thirteen',
    'fourteen',
    'fifteen',
    'sixteen',
)
# Said last, they are questions: answered without any text.
QUESTION_WORDS = ('color', 'shape', 'count', 'sound', 'where')
SPOKEN = COLORS + SHAPES + NUMBERS[1:7] + COMMANDS + QUESTION_WORDS
SPOKEN_GROUPS = (
    (COLORS, 0.32),
    (SHAPES, 0.24),
    (NUMBERS[1:7], 0.16),
    (COMMANDS, 0.16),
    (QUESTION_WORDS, 0.12),
)
P_ASKED_ALOUD = 0.3  # of clips that end with a question word
SILENT_AFTER, SILENT_WEIGHTS = (0, 1, 2), (0.7, 0.2, 0.1)  # seconds behind one that is asked about
P_ACROSS = 0.3  # of the words that an encoder hears: they began in the second before
P_ACROSS_ASKED = 0.6  # the same, of question words
P_NOTHING = 0.04  # of pictures without a shape
MAX_SECONDS = 16  # of a window
MAX_STREAM_SECONDS = 48  # what a window has seen come and go


@dataclass(frozen=True)
class Picture:
    """`count` equal shapes, or none; column and row (thirds of the frame) only of a single one."""

    shape: str | None
    color: str | None
    count: int
    column: str | None = None
    row: str | None = None


@dataclass(frozen=True)
class Sound:
    """One event: `word` and `voice` for speech, `pitch` for beep and tone."""

    kind: str
    word: str | None = None
    voice: str | None = None
    pitch: str | None = None


BEGUN = Sound('speech')  # the beginning of a word, whose Sound is that of the next second


def is_begun(sound):
    """Whether a second holds the beginning of a word that ends in the next one."""
    return sound.kind == 'speech' and sound.word is None


def choose(rng, items, weights=None):
    """One of `items`, as itself (NumPy would turn strings into np.str_)."""
    if weights is None:
        return items[int(rng.integers(len(items)))]
    total = np.cumsum(weights)
    return items[int(np.searchsorted(total, rng.random() * total[-1], side='right'))]


def random_picture(rng, p_single=0.6, p_nothing=P_NOTHING):
    if rng.random() < p_nothing:
        return Picture(None, None, 0)
    count = 1 if rng.random() < p_single else int(rng.integers(2, 5))
    return Picture(choose(rng, SHAPES), choose(rng, COLORS), count)


def random_sound(rng, used_words=(), p_speech=0.5):
    """A sound without its voice (who speaks is found when it is spoken); words not in
    `used_words`.
    """
    if rng.random() < p_speech:
        groups = [g for g, _ in SPOKEN_GROUPS]
        for _ in range(20):
            word = choose(rng, choose(rng, groups, [w for _, w in SPOKEN_GROUPS]))
            if word not in used_words:
                return Sound('speech', word)
    kind = choose(rng, KINDS[:-1], (0.2, 0.22, 0.2, 0.1, 0.1, 0.09, 0.09))
    return Sound(kind, pitch=choose(rng, PITCHES) if kind in ('beep', 'tone') else None)


def asked_aloud(sounds, rng):
    """The same sounds, the last of them a question word that is said once, which may have begun in
    the second before, and silence. At least 2 sounds.
    """
    silent = min(choose(rng, SILENT_AFTER, SILENT_WEIGHTS), len(sounds) - 2)
    sounds = sounds[: len(sounds) - silent]
    free = [w for w in QUESTION_WORDS if all(s.word != w for s in sounds)]
    sounds[-1] = Sound('speech', choose(rng, free))
    if rng.random() < P_ACROSS_ASKED:
        sounds[-2] = BEGUN
    return sounds + [Sound('silence')] * silent


def changed(picture, rng):
    """The same picture with one attribute changed."""
    if not picture.count:
        return random_picture(rng, p_nothing=0)
    what = choose(rng, ('color', 'shape', 'count'), (0.5, 0.35, 0.15))
    shape, color, count = picture.shape, picture.color, picture.count
    if what == 'color':
        color = choose(rng, [c for c in COLORS if c != color])
    elif what == 'shape':
        shape = choose(rng, [s for s in SHAPES if s != shape])
    else:
        count = choose(rng, [n for n in (1, 2, 3, 4) if n != count])
    return Picture(shape, color, count)


def script(seconds, rng, p_independent=0.78, still=None):
    """-> (list of Picture, list of Sound, is_independent), each `seconds` long.

    Independent seconds are the heart: where scenes stand still, a picture answers for every sound
    and nothing teaches which second belongs to which. Now and then an attribute is carried over
    from the second before, so that 'the same as one second ago' has two answers. `still`: for
    every second whether it shows the picture of the second before.
    """
    independent = bool(rng.random() < p_independent)
    if independent:
        pictures = []
        for _ in range(seconds):
            new = random_picture(rng)
            if pictures and new.count and pictures[-1].count:
                old = pictures[-1]
                shape = old.shape if rng.random() < 0.15 else new.shape
                color = old.color if rng.random() < 0.15 else new.color
                new = Picture(shape, color, new.count)
            pictures.append(new)
    else:
        base = random_picture(rng)
        other = changed(base, rng)
        first, last = sorted(int(i) for i in rng.integers(0, seconds + 1, 2))
        pictures = [other if first <= i < last else base for i in range(seconds)]
    for i, stays in enumerate(still or ()):
        if stays:
            pictures[i] = pictures[i - 1]
    sounds = []
    for _ in range(seconds):
        used = {s.word for s in sounds[-MAX_SECONDS:]}  # no word twice in a window
        sounds.append(random_sound(rng, used))
    free = [w for w in QUESTION_WORDS if all(s.word != w for s in sounds)]
    if free and rng.random() < P_ASKED_ALOUD:
        sounds[-1] = Sound('speech', choose(rng, free))
    return pictures, sounds, independent
