# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What nano can be asked: six families, each a handful of kinds, about one clip.

The families mirror the omni-source tasks of StreamingBench. Times are told from now backwards
('two seconds ago'), the only way that survives a window from which old seconds are dropped.
"""

from dataclasses import dataclass

from .kinds import GUESS, KINDS_OF
from .world import choose

FAMILIES = tuple(KINDS_OF)


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
