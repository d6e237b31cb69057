# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The questions nano learns from have one right answer, which the clip itself gives."""

import re
from dataclasses import replace

import numpy as np
import pytest

from training.questions import KINDS_OF, Clip, ask_about, make_question
from training.world import (
    BEGUN,
    COLORS,
    NUMBERS,
    QUESTION_WORDS,
    SHAPES,
    Picture,
    Sound,
    asked_aloud,
    is_begun,
    script,
)

CLIP = Clip(
    (Picture('circle', 'red', 2), Picture('star', 'blue', 1), Picture('ring', 'blue', 3)),
    (Sound('bell'), Sound('speech', 'green', 'man'), Sound('beep', pitch='low')),
)
ANSWERS = {
    'what color comes after red?': 'blue',
    'what shape comes before the star?': 'circle',
    'what shape comes before the ring?': 'star',
    'what do you hear before the beep?': 'speech',
    'what word is said after the bell?': 'green',
    'what word is said before the beep?': 'green',
    'what color is the shape when you hear "green"?': 'blue',
    'what do you hear when the ring is shown?': 'beep',
    'what word is said when the star is shown?': 'green',
    'how many shapes are shown when you hear the bell?': 'two',
    'how many words do you hear?': 'one',
    'how many shapes were shown two seconds ago?': 'two',
    'what color does the voice say?': 'green',
    'what color is shown when the voice says a color?': 'blue',
    'was a star shown one second ago?': 'yes',
    'is the shape red now?': 'no',
    'do you hear the beep now?': 'yes',
    'did you hear the bell two seconds ago?': 'yes',
}


def test_the_clip_answers_its_questions():
    asked = ask_about(CLIP, 4000, np.random.default_rng(0))
    told = {}
    for question in asked:
        told.setdefault(question.text, set()).add(question.answer)
    assert all(len(answers) == 1 for answers in told.values()), told
    assert {text: told.get(text) for text in ANSWERS} == {
        text: {answer} for text, answer in ANSWERS.items()
    }


@pytest.mark.parametrize(
    'word, answer',
    (('color', 'blue'), ('shape', 'ring'), ('count', 'three'), ('sound', 'bell'), ('go', None)),
)
def test_a_question_word_that_is_said_last_asks_without_text(word, answer):
    sounds = (*CLIP.sounds[1:], CLIP.sounds[0], Sound('speech', word, 'woman'))
    clip = Clip((*CLIP.pictures, CLIP.pictures[-1]), sounds)
    question = make_question(clip, 'command', np.random.default_rng(0))
    assert (question and (question.text, question.answer)) == (answer and ('', answer))


def test_a_spoken_question_is_about_what_is_seen_last_and_heard_before_the_word():
    sounds = (Sound('bell'), BEGUN, Sound('speech', 'sound', 'man'), Sound('silence'))
    pictures = (*CLIP.pictures, Picture('cross', 'white', 1))

    def told(*sounds):
        asked = make_question(Clip(pictures, sounds), 'command', np.random.default_rng(0))
        return asked and asked.answer

    assert told(*sounds) == 'bell'
    assert told(*sounds[:2], Sound('speech', 'color', 'man'), sounds[3]) == 'white'
    assert told(*sounds[:3], Sound('knock')) is None  # something was heard since
    assert told(*sounds[1:], sounds[3]) is None  # nothing was heard before the word


def test_clips_asked_aloud_end_with_one_question_word_and_silence():
    rng, ends = np.random.default_rng(4), set()
    for seconds in (2, 3, 8):
        for _ in range(60):
            _, sounds, _ = script(seconds, rng)
            aloud = asked_aloud(sounds, rng)
            at = max(i for i, sound in enumerate(aloud) if sound.word)
            assert len(aloud) == seconds and aloud[at].word in QUESTION_WORDS
            assert [s.word for s in aloud].count(aloud[at].word) == 1
            assert {s.kind for s in aloud[at + 1 :]} <= {'silence'}
            ends.add((is_begun(aloud[at - 1]), len(aloud) - 1 - at))
    assert ends == {(begun, silent) for begun in (False, True) for silent in (0, 1, 2)}


def test_a_second_without_shapes_is_asked_about_as_such():
    nothing = Clip((Picture(None, None, 0),) * 2, (Sound('silence'),) * 2)
    told = {q.text: q.answer for q in ask_about(nothing, 300, np.random.default_rng(3))}
    assert told['how many shapes are shown now?'] == 'zero'
    assert {told[text] for text in told if text.startswith(('is the shape', 'is a '))} == {'no'}
    assert None not in told.values()


@pytest.mark.parametrize('seconds', (1, 2, 4, 8, 16))
@pytest.mark.parametrize('with_options', (False, True))
def test_every_question_is_about_what_is_there(seconds, with_options):
    rng = np.random.default_rng(seconds)
    for _ in range(20):
        pictures, sounds, _ = script(seconds, rng)
        for question in ask_about(Clip(tuple(pictures), tuple(sounds)), 20, rng, with_options):
            assert question.second is None or 0 <= question.second < seconds
            assert 0 < question.chance <= 0.5
            ago = re.search(r'(\w+) seconds? ago', question.text)
            if ago:
                assert question.second == seconds - 1 - NUMBERS.index(ago[1]), question
            if with_options:
                assert question.answer in question.options or not question.options
                assert len(set(question.options)) == len(question.options) <= 4


def test_every_kind_is_asked():
    rng, kinds = np.random.default_rng(1), set()
    for _ in range(60):
        pictures, sounds, _ = script(4, rng)
        # Drawing and speaking give these.
        pictures = [replace(p, column='left', row='top') if p.count == 1 else p for p in pictures]
        sounds = [replace(s, voice='man') if s.word else s for s in sounds]
        kinds |= {q.kind for q in ask_about(Clip(tuple(pictures), tuple(sounds)), 30, rng)}
    assert kinds == {kind.__name__ for family in KINDS_OF.values() for kind in family}


def test_words_that_mislead_are_never_the_answer():
    rng = np.random.default_rng(2)
    for _ in range(100):
        pictures, sounds, _ = script(3, rng)
        clip = Clip(tuple(pictures), tuple(sounds))
        for question in ask_about(clip, 20, rng):
            said = re.search(r'hear "(\w+)"', question.text)
            if question.kind == 'seen_despite_word':
                assert said[1] in (*COLORS, *SHAPES, *NUMBERS) and question.answer != said[1]
