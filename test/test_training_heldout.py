# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The generator of held-out clips: the same each time, whole, and not what training has."""

import shutil

import numpy as np
import pytest

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, by_window

pytest.importorskip('training.questions', reason='training/ is not in this tree')
from training.heldout import clips, pictures, scripts, sounds  # noqa: E402
from training.questions import TEXT_FAMILIES  # noqa: E402
from training.world import COLORS, QUESTION_WORDS, SHAPES, Picture, Sound  # noqa: E402

needs_espeak = pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='no espeak-ng here')


@needs_espeak
def test_the_same_arguments_give_the_same_files(tmp_path):
    for name in 'ab':
        clips.make_set(tmp_path / name, 2, seed=5)
    files = sorted(path.name for path in (tmp_path / 'a').iterdir())
    assert files == ['000.mcap', '001.mcap', 'choices.json', 'questions.json']
    for name in files:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    clips.make_set(tmp_path / 'c', 1, seed=6)
    assert (tmp_path / 'a' / '000.mcap').read_bytes() != (tmp_path / 'c' / '000.mcap').read_bytes()


@needs_espeak
def test_every_clip_has_one_question_of_every_text_family_and_all_its_seconds(tmp_path):
    clips.make_set(tmp_path, 3, seed=7)
    for name in ('questions', 'choices'):
        questions = QuestionSet.read(tmp_path / f'{name}.json')
        for clip, asked in questions.by_clip().items():
            ((start_s, end_s),) = by_window(asked, 0)
            assert [q.family for q in asked] == list(TEXT_FAMILIES)
            held = read_clip(questions.path_of(clip))
            assert [shot.stamp_ns // 10**9 for shot in held.images] == list(range(start_s, end_s))
            assert sum(len(samples) for _, samples in held.audio) == 16000 * (end_s - start_s)
            assert len(questions.clips[clip]) == end_s - start_s
        assert all(
            len(q.choices) in ((0,) if name == 'questions' else (2, 3, 4))
            for q in questions.questions
        )


@needs_espeak
def test_commands_are_asked_in_the_last_second_and_not_in_words(tmp_path):
    clips.make_set(tmp_path, 2, seed=8, families=('command',))
    questions = QuestionSet.read(tmp_path / 'questions.json')
    assert len(questions.questions) == 2 and not (tmp_path / 'choices.json').exists()
    for question in questions.questions:
        assert question.text == '' and question.family == 'command'
        said = questions.clips[question.clip][-1].split('"')[1]
        assert said in QUESTION_WORDS


@needs_espeak
def test_a_command_may_begin_in_the_second_before(tmp_path):
    clips.make_set(tmp_path, 3, seed=8, families=('command',), across=True)
    questions = QuestionSet.read(tmp_path / 'questions.json')
    for question in questions.questions:
        *_, before, last = questions.clips[question.clip]
        assert before.endswith('begins a word') and last.split('"')[1] in QUESTION_WORDS
        pcm = np.concatenate([samples for _, samples in read_clip(tmp_path / question.clip).audio])
        edge = len(pcm) - 16000
        for part in (pcm[edge - 800 : edge], pcm[edge : edge + 800]):
            assert np.abs(part).max() > 3 * np.abs(pcm[-1600:]).max()


@needs_espeak
def test_yes_and_no_are_asked_about_equally_often(tmp_path):
    clips.make_set(tmp_path, 30, seed=9, families=('verify',))
    answers = [q.answers[0] for q in QuestionSet.read(tmp_path / 'questions.json').questions]
    assert set(answers) == {'yes', 'no'} and 7 <= answers.count('yes') <= 23


@needs_espeak
def test_voices_and_speeds_are_none_of_training(rng):
    from training import voices as trained

    cast = set(sounds.MEN) | set(sounds.WOMEN)
    assert not {accent for accent, _ in cast} & set(trained.ACCENTS)
    assert not {variant for _, variant in cast} & {*trained.MEN, *trained.WOMEN}
    for voice in ('man', 'woman'):
        pcm = sounds.speak('purple', voice, rng)
        assert 0.2 * 16000 < len(pcm) <= sounds.LONGEST and np.abs(pcm).max() == 1


@pytest.mark.parametrize('kind', scripts.EVENTS)
def test_an_event_lies_inside_its_second(rng, kind):
    pitch = 'low' if kind in ('beep', 'tone') else None
    for _ in range(5):
        second, sound = sounds.make_second(Sound(kind, pitch=pitch), rng)
        assert second.shape == (16000,) and second.dtype == np.float32
        assert sound.kind == kind and np.abs(second).max() <= 1
        assert (np.abs(second).max() > 0.1) == (kind != 'silence')


@pytest.mark.parametrize('shape', SHAPES)
def test_a_shape_is_drawn_in_its_color_where_the_layout_says(rng, shape):
    from minicpmo_ros.media.image.compressed import decode_compressed

    for color in COLORS:
        stage = pictures.make_stage(rng, (320, 240))
        layout = pictures.make_layout(rng, (320, 240), 1)
        seen = decode_compressed(pictures.draw(Picture(shape, color, 1), layout, stage, rng))
        ink = np.array(pictures.INKS[color]) + layout.tint
        ((centre_x, centre_y),) = layout.centres
        y, x = np.indices((240, 320))
        is_inked = np.abs(seen - ink).max(2) < 45
        is_inked &= np.hypot(x - centre_x, y - centre_y) < 1.3 * layout.radius
        assert is_inked.sum() > 0.6 * layout.radius**2
        assert (
            np.hypot(x[is_inked].mean() - centre_x, y[is_inked].mean() - centre_y)
            < 0.35 * layout.radius
        )
