# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an answer rests on is told, and what is missing or old is never passed over."""

import re

import pytest

from minicpmo_ros.live.status import Evidence, EvidenceOptions

BOTH = {'image': 0.1, 'audio': 0.1}


@pytest.mark.parametrize(
    'evidence, told',
    [
        (Evidence(30, 30, 30, 0.5, BOTH), ''),
        (Evidence(27, 30, 30, 0.5, BOTH), ''),
        (Evidence(8, 30, 30, 0.5, {'image': 22.0, 'audio': 0.1}), 'The newest image is 22 s old.'),
        (Evidence(30, 12, 30, 2.0, BOTH), 'The newest audio is 20 s old.'),
        (Evidence(30, 30, 30, 9.0, {'image': 9.0, 'audio': 9.0}), 'image is 9 s old.* audio is 9'),
        (Evidence(None, 30, 30, 0.5, {'image': 90.0, 'audio': 0.1}), 'No image has come for 90 s'),
        (Evidence(None, 30, 30, 0.5, BOTH), 'no image in the window, although image comes'),
        (Evidence(None, None, 0, 0.0, {'image': 90.0}), 'No image has come for 90 s'),
        # What never came is not expected, and what is on its way is no fault.
        (Evidence(None, 30, 30, 0.5, {'audio': 0.1}), ''),
        (Evidence(None, None, 0, 0.0, BOTH), ''),
        (Evidence(), ''),
    ],
)
def test_a_sense_that_is_missing_or_old_is_told(evidence, told):
    stale = evidence.staleness(5.0)
    assert re.search(told, stale) if told else stale == ''


@pytest.mark.parametrize(
    'required, evidence, empty_question, told',
    [
        ('some', Evidence(), False, 'Nothing has been seen or heard'),
        ('fresh', Evidence(), False, 'Nothing has been seen or heard'),
        ('none', Evidence(), False, ''),
        ('none', Evidence(), True, 'no audio in the window'),
        ('some', Evidence(30, None, 30), True, 'no audio in the window'),
        ('some', Evidence(30, 30, 30), True, ''),
        ('some', Evidence(8, 30, 30, 0.5, BOTH), False, ''),
        ('fresh', Evidence(8, 30, 30, 0.5, BOTH), False, 'image is 22 s old.*max_staleness_s'),
        ('fresh', Evidence(30, 30, 30, 0.5, BOTH), False, ''),
    ],
)
def test_a_question_is_refused_where_the_window_lacks_what_it_requires(
    required, evidence, empty_question, told
):
    refused = evidence.why_refused(EvidenceOptions(required), empty_question)
    assert re.search(told, refused) if told else refused == ''
