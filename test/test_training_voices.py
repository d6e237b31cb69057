# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Words of makers that a training hears are whole words, and rooms take no time to be heard in."""

import importlib.util
import shutil
from itertools import islice

import numpy as np
import pytest

pytest.importorskip('training.voices', reason='training/ is not in this tree')
from training import voices  # noqa: E402
from training.rooms import quick_size, random_place  # noqa: E402
from training.voices import LONGEST_SAMPLES, MAKER_WEIGHTS, RATE_HZ, TRACTS  # noqa: E402
from training.world import SPOKEN  # noqa: E402

TAKES = 5


def _missing(maker):
    """Return what this machine lacks of a maker, or None."""
    if importlib.util.find_spec('pyworld') is None:
        return 'pyworld is not installed'
    if maker == 'pico' and importlib.util.find_spec('py_nanotts') is None:
        return 'py-nanotts is not installed'
    if maker == 'gnuspeech' and not (shutil.which('node') and voices.GNUSPEECH.exists()):
        return f'node or {voices.GNUSPEECH} is missing'
    return None


@pytest.mark.parametrize('maker', ('pico', 'gnuspeech'))
def test_a_maker_speaks_whole_words_that_end_in_silence(maker, rng):
    missing = _missing(maker)
    if missing:
        pytest.skip(missing)
    for word, sex, pcm in islice(voices.SPEAKERS[maker](False, rng), TAKES):
        assert word == SPOKEN[0] and sex in ('man', 'woman', None)
        assert RATE_HZ // 10 < len(pcm) <= LONGEST_SAMPLES
        assert np.abs(pcm).max() == pytest.approx(0.9)
        assert 0.03 < np.sqrt((pcm**2).mean()) < 0.6
        assert np.abs(pcm[-RATE_HZ // 200 :]).max() < 0.1  # nothing is cut off


def test_every_maker_has_a_speaker_and_a_share_of_the_words():
    assert set(MAKER_WEIGHTS) | {voices.UNTRAINED} == set(voices.SPEAKERS)
    assert sum(MAKER_WEIGHTS.values()) == pytest.approx(1)


def test_no_two_mouths_are_one_and_a_man_has_the_longest(rng):
    mouths = {sex: [voices.random_mouth(sex, rng) for _ in range(20)] for sex in TRACTS}
    lengths = {
        sex: [mouth['voice']['vocal_tract_length'] for mouth in some]
        for sex, some in mouths.items()
    }
    assert min(lengths['man']) > max(lengths['woman']) > min(lengths['woman'])
    assert min(lengths['woman']) > max(lengths[None])
    assert all(len(set(some)) == len(some) for some in lengths.values())
    for mouth in sum(mouths.values(), []):
        assert mouth['voice']['glottal_pulse_tn_min'] <= mouth['voice']['glottal_pulse_tn_max']


def test_what_is_heard_in_a_room_is_transformed_at_a_size_without_large_primes(rng):
    for samples in (*range(1, 200), 16411, 480_000, 484_993):
        size, left = quick_size(samples), quick_size(samples)
        assert samples <= size <= samples * 9 / 8 + 1
        for prime in (2, 3, 5, 7, 11, 13):
            while left % prime == 0:
                left //= prime
        assert left == 1
    silence = np.zeros(16411, np.float32)
    place = random_place(rng, p_plain=0)
    assert place.heard(silence).shape == silence.shape
