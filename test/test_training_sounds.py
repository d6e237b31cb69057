# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the audio encoder is taught is where the sounds are, words across an edge among them."""

import json
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('training.sounds', reason='training/ is not in this tree')
from training import pool  # noqa: E402
from training.sounds import make_stream  # noqa: E402
from training.train_audio import hide_parts, random_events  # noqa: E402
from training.voices import MAKERS, RATE_HZ, UNTRAINED, Take, Words  # noqa: E402
from training.world import (  # noqa: E402
    BEGUN,
    COLORS,
    KINDS,
    PITCHES,
    SHAPES,
    SPOKEN,
    Picture,
    Sound,
    is_begun,
)

BLOCK = RATE_HZ // 200


class OneValue:
    """Every word is half a second of one value."""

    def draw(self, word, rng):
        return Take('espeak', 'man', np.full(RATE_HZ // 2, 0.9, np.float32))


def loud(pcm):
    """Which blocks of 5 ms of pcm (n,) are of a word."""
    return np.abs(pcm).reshape(-1, BLOCK).mean(1) > 0.015


def test_a_word_that_was_begun_lies_across_the_edge_and_others_inside(rng):
    for _ in range(50):
        wished = [Sound('silence'), BEGUN, Sound('speech', 'color'), Sound('speech', 'red')]
        pcm, sounds = make_stream(wished, OneValue(), rng)
        assert sounds[1].voice == sounds[2].voice == 'man' and is_begun(sounds[1])
        before, begun, ended, inside = loud(pcm).reshape(4, -1)
        assert before.sum() == 0 and inside.sum() >= 80
        assert begun[-7:].all() and ended[:7].all()  # 40 ms at least, that fade at the very end
        assert begun.sum() + ended.sum() >= 80


def test_every_beginning_is_followed_by_its_word(rng):
    for seconds in (1, 2, 8, 30):
        for _ in range(40):
            made = random_events(seconds, rng)
            assert len(made) == seconds and not is_begun(made[-1])
            assert all(after.word for one, after in zip(made, made[1:]) if is_begun(one))


@pytest.mark.parametrize('shape', ((2, 80, 300), (6, 80, 100)))  # streams, seconds by themselves
def test_parts_are_hidden_of_some_seconds_with_a_word_and_of_no_other(shape, rng):
    sounds = [Sound('speech', 'red') if i in (1, 5) else Sound('beep') for i in range(6)]
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    seconds = features.transpose(1, 2).reshape(6, 100, 80)
    found = set()
    for _ in range(20):
        hidden = hide_parts(features, sounds, rng)
        assert hidden.shape == features.shape
        differs = hidden.transpose(1, 2).reshape(6, 100, 80) != seconds
        assert differs.float().mean((1, 2)).max() < 0.25
        found |= set(differs.any(1).any(1).nonzero().flatten().tolist())
    assert found == {1, 5}


def test_clips_asked_aloud_take_a_word_and_its_beginning_from_one_stream(rng):
    pictures = [Picture(None, None, 0)]
    pictures += [Picture(*kind) for kind in product(SHAPES, COLORS, range(1, 5))]
    sounds = [Sound(kind) for kind in KINDS]
    sounds += [Sound(kind, pitch=pitch) for kind in ('beep', 'tone') for pitch in PITCHES]
    sounds += [Sound('speech', word) for word in SPOKEN]
    sounds += [sound for word in SPOKEN for sound in (BEGUN, Sound('speech', word))]
    stored = pool.Pool(None, pictures, None, sounds)
    found = 0
    for _ in range(60):
        clip, _, at = stored.clip(4, rng, 1.0, aloud=True)
        for i, sound in enumerate(clip.sounds):
            if is_begun(sound):
                assert at[i + 1] == at[i] + 1 and clip.sounds[i + 1].word
                found += 1
    assert found > 20


def test_the_synthesiser_that_is_only_listened_to_is_in_no_training(tmp_path, rng):
    for i, maker in enumerate((*MAKERS, UNTRAINED)):  # as if each had spoken every word before
        rows = [(word, 'man', 9 * n, 9 * n + 9) for n, word in enumerate(SPOKEN)]
        (tmp_path / f'{maker}.json').write_text(json.dumps(rows))
        np.save(tmp_path / f'{maker}.npy', np.full(9 * len(SPOKEN), 1000 * i, np.int16))
    trained = Words(tmp_path)
    drawn = {trained.draw('red', rng).maker for _ in range(200)}
    assert drawn == set(MAKERS) and UNTRAINED not in drawn
    heard = Words(tmp_path, makers=(UNTRAINED,)).draw('red', rng)
    assert heard.maker == UNTRAINED and round(32767 * heard.samples[0]) == 1000 * len(MAKERS)
