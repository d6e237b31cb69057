# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the robot says itself is silence in what it hears, by stamps alone."""

import numpy as np
import pytest

from minicpmo_ros.speech.self_speech import SelfSpeech

NS, RATE_HZ = 10**9, 16_000
SECOND = np.ones(RATE_HZ, np.float32)


@pytest.fixture
def speech():
    """Spoken from 10.25 to 10.5 s, with a tail of 0.1 s."""
    speech = SelfSpeech(tail_s=0.1)
    speech.tell(10 * NS + NS // 4, True)
    speech.tell(10 * NS + NS // 2, False)
    return speech


@pytest.mark.parametrize('n_chunks', (1, 10, 50))
def test_its_own_words_and_the_tail_are_silence_however_the_audio_is_cut(speech, n_chunks):
    heard = np.concatenate([
        speech.silence(10 * NS + i * NS // n_chunks, part, RATE_HZ)
        for i, part in enumerate(np.split(SECOND, n_chunks))
    ])  # fmt: skip
    expected = SECOND.copy()
    expected[RATE_HZ // 4 : RATE_HZ * 6 // 10] = 0
    np.testing.assert_array_equal(heard, expected)
    assert SECOND.all()  # the given audio is not changed
    assert speech.duration_ms(10 * NS, 11 * NS) == 350


def test_other_seconds_are_left_as_they_are(speech):
    for second in (9, 11):
        assert speech.silence(second * NS, SECOND, RATE_HZ) is SECOND
        assert speech.duration_ms(second * NS, (second + 1) * NS) == 0


def test_while_it_speaks_everything_from_there_on_is_silence(speech):
    speech.tell(12 * NS, True)
    speech.tell(12 * NS + 7, True)  # the next sentence
    assert not speech.silence(20 * NS, SECOND, RATE_HZ).any()
    assert speech.duration_ms(12 * NS - NS // 2, 13 * NS) == 1000
    speech.tell(21 * NS, False)
    assert speech.duration_ms(21 * NS, 22 * NS) == 100


def test_tails_that_overlap_the_next_words_count_once(speech):
    speech.tell(10 * NS + NS * 55 // 100, True)
    speech.tell(10 * NS + NS * 6 // 10, False)
    assert speech.duration_ms(10 * NS, 11 * NS) == 450


def test_a_recording_that_begins_anew_forgets_what_was_later(speech):
    speech.tell(3 * NS, True)
    speech.tell(4 * NS, False)
    assert speech.duration_ms(10 * NS, 11 * NS) == 0
    assert speech.duration_ms(3 * NS, 4 * NS) == 1000
