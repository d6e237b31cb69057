# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips drawn and spoken second by second, questions of every family about each, and a folder of
bags with questions.json and choices.json. The same arguments give the same bytes (with the same
espeak-ng).
"""

from dataclasses import dataclass, replace
from itertools import count as count_up
from pathlib import Path

import numpy as np

from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.units import NS
from training.heldout import pictures, scripts, sounds
from training.questions import TEXT_FAMILIES, Clip, asked, make_question
from training.world import QUESTION_WORDS, Sound, is_begun

FIRST_SECOND, SECONDS_APART = 1_750_000_000, 100  # of the stamps, from clip to clip
LENGTHS = (3, 2, 4, 3, 8, 2, 4, 3, 5, 2, 4, 6, 3, 2, 4, 3, 8, 2, 4, 3, 7, 2, 4, 6)
HARD = (True, False, True, True, False)  # by turns
# Answers that are often right, and how often another question is drawn instead: who always gives
# them must not be right so often.
LIKELY = {'speech': 0.75, 'one': 0.5}
SHOWN_AT_NS = NS // 2  # the one picture of a second
HARMED = 0.35  # of the seconds of clips for yes and no
NOTES = (
    'Drawn, spoken and asked by training/heldout; nothing of it was used in training. Stamps '
    'are exact: second n of a clip is [start_s + n, start_s + n + 1).'
)


@dataclass(frozen=True)
class Made:
    """A clip and what it holds."""

    facts: Clip
    frames: list  # JPEG bytes, one a second
    samples: np.ndarray  # (16000 n,) float32


def make_clip(
    seconds: int, hard: bool, rng, families: tuple = TEXT_FAMILIES, across: bool = False
) -> Made:
    """Draw and speak one clip. For commands it ends with a question word, which begins in the
    second before if `across`; for yes and no many seconds are hard to see or to hear.
    """
    size = scripts.pick(rng, pictures.SIZES)
    stands = not hard or rng.random() < 0.5  # one place for the whole clip
    script = scripts.pictures_of(seconds, hard, rng)
    shown, frames, stage, layout = [], [], None, None
    for picture in script:
        if stage is None or not stands:
            stage = pictures.make_stage(rng, size)
        if layout is None or hard or len(layout.centres) != picture.count:
            layout = pictures.make_layout(rng, size, picture.count)
        if picture.count == 1:
            column, row = layout.cell(size)
            picture = replace(picture, column=column, row=row)
        veil = rng.uniform(0.2, 0.7) if 'verify' in families and rng.random() < HARMED else 0
        frames.append(pictures.draw(picture, layout, stage, rng, veil))
        shown.append(picture)
    wished = scripts.sounds_of(script, rng)
    if 'command' in families:
        wished[-1] = Sound('speech', scripts.pick(rng, QUESTION_WORDS))
    n_alone = seconds - 2 * across
    made = [sounds.make_second(sound, rng) for sound in wished[:n_alone]]
    if across:
        made += sounds.make_across(wished[-1], rng)
    if 'verify' in families:
        made = [(sounds.harm(pcm, rng) if rng.random() < HARMED else pcm, s) for pcm, s in made]
    facts = Clip(tuple(shown), tuple(sound for _, sound in made), hard)
    return Made(facts, frames, np.concatenate([samples for samples, _ in made]))


def ask(facts: Clip, rng, with_options: bool, families: tuple = TEXT_FAMILIES) -> list | None:
    """Return one training Question of every family, or None where the clip has none of one."""
    questions = []
    for family in families:
        question = make_question(facts, family, rng, with_options)
        if question and rng.random() < LIKELY.get(question.answer, 0):
            question = make_question(facts, family, rng, with_options)
        questions.append(question)
    return None if None in questions else questions


def make_set(
    folder: Path,
    count: int,
    seed: int,
    families: tuple = TEXT_FAMILIES,
    progress=print,
    across: bool = False,
):
    """Write `count` clips, questions.json (open) and choices.json (four options; only for families
    that have options) into a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, told = {'questions': []}, {}
    if set(families) <= set(TEXT_FAMILIES):
        files['choices'] = []
    for i in range(count):
        seconds, hard = LENGTHS[i % len(LENGTHS)], HARD[i % len(HARD)]
        for take in count_up():
            chance = np.random.default_rng((seed, i, take))
            made = make_clip(seconds, hard, chance, families, across)
            # Of its own chance, so that other words for a question leave the clips as they are.
            rng = np.random.default_rng((seed, i, take, 1))
            asked_about = [
                ask(made.facts, rng, with_options, families)
                for with_options in (False, True)[: len(files)]
            ]
            if None not in asked_about:
                break
        name, start_s = f'{i:03}.mcap', FIRST_SECOND + SECONDS_APART * i
        frames = [(second * NS + SHOWN_AT_NS, data) for second, data in enumerate(made.frames)]
        write_clip(folder / name, start_s, frames, made.samples)
        told[name] = tell(made.facts)
        for questions, about in zip(files.values(), asked_about):
            questions += [_scored(q, name, start_s, made.facts) for q in about]
        if i % 50 == 49:
            progress(f'{i + 1} of {count} clips')
    for name, questions in files.items():
        made_of = QuestionSet(tuple(questions), f'held-out {seed}, {name}', NOTES, told)
        made_of.write(folder / f'{name}.json')


def _scored(question, clip: str, start_s: int, facts: Clip) -> ScoredQuestion:
    return ScoredQuestion(
        f'{Path(clip).stem}-{question.family}',
        clip,
        start_s,
        start_s + facts.seconds,
        question.family,
        asked(question),
        (question.answer,),
        tuple(question.options),
        question.kind,
        round(question.chance, 4),
        facts.independent,
    )


def tell(facts: Clip) -> list:
    """Say what every second shows and sounds like."""
    lines = []
    for picture, sound in zip(facts.pictures, facts.sounds):
        place = f', {picture.row} {picture.column}' if picture.column else ''
        says = 'begins a word' if is_begun(sound) else f'says "{sound.word}"'
        heard = {'speech': f'a {sound.voice} {says}'}.get(
            sound.kind, ' '.join(filter(None, (sound.pitch, sound.kind)))
        )
        lines.append(f'{picture.count} {picture.color} {picture.shape}{place}; {heard}')
    return lines
