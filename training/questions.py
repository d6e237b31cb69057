# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What nano can be asked: eight families, each a handful of kinds, about one clip.

The families mirror the omni-source tasks of StreamingBench. Times are told from now backwards
('two seconds ago'), the only way that survives a window from which old seconds are dropped.
"""

from dataclasses import dataclass

from .kinds import (
    color_at,
    color_when,
    column_at,
    count_at,
    kind_at,
    kind_when,
    pitch_of,
    row_at,
    shape_at,
    shape_when,
    voice_of,
    word_at,
    word_when,
)
from .kinds_across import (
    color_beside,
    color_is,
    count_events,
    count_when,
    kind_beside,
    kind_is,
    said_despite_sight,
    said_last,
    seen_despite_word,
    seen_when_named,
    shape_beside,
    shape_is,
    word_beside,
    word_is,
)
from .world import choose

KINDS_OF = {
    'scene': (color_at, shape_at, column_at, row_at, count_at),
    'source': (kind_at, word_at, voice_of, pitch_of),
    'align': (color_when, shape_when, kind_when, word_when),
    'temporal': (color_beside, shape_beside, kind_beside, word_beside),
    'count': (count_when, count_events),
    'mislead': (seen_despite_word, seen_despite_word, said_despite_sight, seen_when_named),
    'verify': (color_is, shape_is, kind_is, word_is),
    'command': (said_last,),
}
GUESS = {
    'row_at': 1 / 3,
    'column_at': 1 / 3,
    'voice_of': 1 / 2,
    'pitch_of': 1 / 2,
    'color_is': 1 / 2,
    'shape_is': 1 / 2,
    'kind_is': 1 / 2,
    'word_is': 1 / 2,
    'said_last': 1 / 5,
}
FAMILIES = tuple(KINDS_OF)
TEXT_FAMILIES = FAMILIES[:6]  # with answers of more than yes and no, asked in words


@dataclass(frozen=True)
class Clip:
    """One window: picture and sound of every second, oldest first."""

    pictures: tuple
    sounds: tuple
    independent: bool = True

    @property
    def seconds(self):
        return len(self.pictures)


@dataclass(frozen=True)
class Question:
    family: str
    kind: str
    text: str
    answer: str
    chance: float  # of a guess that knows the question but neither picture nor sound
    options: tuple = ()
    second: int | None = None
    notes: str = ''  # read before the text


def make_question(clip, family, rng, with_options=False):
    """One question of `family`, or None where the clip has none; options make it multiple
    choice.
    """
    kinds = KINDS_OF[family]
    for k in rng.permutation(len(kinds)):
        made = kinds[k](clip, rng)
        if made is None or (with_options and made[2] is None):
            continue
        text, answer, pool, second = made
        name = kinds[k].__name__
        if pool is None:
            return Question(family, name, text, answer, GUESS[name], (), second)
        if not with_options:
            return Question(
                family, name, text, answer, 1 / (1 + len(pool[0]) + len(pool[1])), (), second
            )
        wrong = [pool[0][i] for i in rng.permutation(len(pool[0]))]
        wrong += [pool[1][i] for i in rng.permutation(len(pool[1]))]
        options = wrong[:3] + [answer]
        options = tuple(options[i] for i in rng.permutation(len(options)))
        return Question(family, name, text, answer, 1 / len(options), options, second)
    return None


def asked(question):
    """The question as the model reads it. The answer to options is the option's text, not its
    letter.
    """
    lines = [f'{letter}. {o}' for letter, o in zip('ABCD', question.options)]
    return '\n'.join([question.text, *lines])


def ask_about(clip, number, rng, with_options=False, weights=None):
    """`number` questions about the clip, families drawn by `weights` (evenly where None)."""
    made = []
    while len(made) < number:
        family = choose(rng, FAMILIES, weights or (1,) * len(FAMILIES))
        question = make_question(clip, family, rng, with_options)
        if question is not None:
            made.append(question)
    return made
