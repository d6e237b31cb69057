# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What an answer rests on is told, and what is missing or old is never passed over."""

import re

import pytest

from minicpmo_ros.live.question import Evidence, EvidenceOptions

BOTH = {'image': 0.1, 'audio': 0.1}


def of_cameras(ends_s, since_s):
    """What is known at 30 s, of these cameras and of audio that comes."""
    image_end_s = max(filter(None, ends_s.values()), default=None)
    since_arrival_s = {'image': min(since_s.values()), 'audio': 0.1}
    return Evidence(image_end_s, 30, 30, 0.5, since_arrival_s, ends_s, since_s)


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
        # What only the window has came in a life before this one.
        (Evidence(8, 30, 30, 0.5, {'audio': 0.1}), 'The newest image is 22 s old.'),
        # Several cameras: each is named; one whose first image is on its way is no fault.
        (of_cameras({'a': 30, 'b': 8}, {'a': 0.1, 'b': 22.0}), '^The newest image of camera b is'),
        (of_cameras({'a': 30, 'b': 8}, {'a': 0.1}), 'image of camera b is 22 s old.'),
        (of_cameras({'a': 30, 'b': None}, {'a': 0.1, 'b': 40.0}), 'camera b has come for 40 s'),
        (of_cameras({'a': 30, 'b': None}, {'a': 0.1, 'b': 0.1}), ''),
        (of_cameras({'a': None, 'b': None}, {'a': 40.0, 'b': 40.0}), 'No image has come for 40 s'),
        (of_cameras({'a': None, 'b': None}, {'a': 0.1, 'b': 0.1}), 'although image comes'),
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
