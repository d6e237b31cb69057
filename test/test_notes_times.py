# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Words for a time in the past: which span they name."""

import time
from datetime import datetime, timedelta, timezone

import pytest

from minicpmo_ros.notes.times import duration, time_span

ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 3, 4, 15, 30, 0, tzinfo=ZONE)  # a Wednesday


def moment(hour: int, minute: int = 0, days: int = 0, second: int = 0) -> datetime:
    """Return a time of the day of NOW, or of another day."""
    return NOW.replace(hour=hour, minute=minute, second=second) + timedelta(days=days)


CASES = (
    ('between 9 and 10:30', moment(9), moment(10, 30)),
    ('from 1 pm to 2:15 pm', moment(13), moment(14, 15)),
    ('since 9', moment(9), NOW),
    ('since yesterday', moment(0, days=-1), NOW),
    ('before noon', moment(0), moment(12)),
    ('after 14:00', moment(14), NOW),
    ('in the last ten minutes', moment(15, 20), NOW),
    ('during the past hour', moment(14, 30), NOW),
    ('the last half an hour', moment(15), NOW),
    ('two hours ago', moment(13), moment(14)),
    ('40 seconds ago', moment(15, 29, second=10), moment(15, 29, second=30)),
    ('an hour ago', moment(14, 15), moment(14, 45)),
    ('today', moment(0), NOW),
    ('this morning', moment(5), moment(12)),
    ('yesterday evening', moment(17, days=-1), moment(22, days=-1)),
    ('last night', moment(21, days=-1), moment(6)),
    ('at 9:30', moment(9, 20), moment(9, 40)),
    ('at 4', moment(3, 50), moment(4, 10)),  # 16 o'clock is not over
    ('around 2 pm', moment(13, 30), moment(14, 30)),
    ('just now', moment(15, 29), NOW),
    ('五分钟前', moment(15, 23, second=45), moment(15, 26, second=15)),
    ('昨天下午', moment(12, days=-1), moment(17, days=-1)),
)


@pytest.mark.parametrize(('words', 'begin', 'end'), CASES, ids=[case[0] for case in CASES])
def test_words_name_a_span_and_are_taken_out_of_the_question(words, begin, end):
    span = time_span(f'Was the red cup there {words}?', NOW.timestamp(), ZONE)
    assert (span.begin_s, span.end_s) == (begin.timestamp(), end.timestamp())
    assert span.rest.rstrip(' ?') == 'Was the red cup there'


@pytest.fixture
def berlin(monkeypatch):
    """Let this machine be where clocks go forward on 2026-03-29 and back on 2026-10-25."""
    monkeypatch.setenv('TZ', 'CET-1CEST,M3.5.0,M10.5.0/3')
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    'words, now, begin, end',
    (
        ('yesterday', (3, 30, 9), '2026-03-29T00:00+01:00', '2026-03-30T00:00+02:00'),
        ('yesterday morning', (3, 30, 9), '2026-03-29T05:00+02:00', '2026-03-29T12:00+02:00'),
        ('last night', (3, 29, 12), '2026-03-28T21:00+01:00', '2026-03-29T06:00+02:00'),
        ('today', (10, 25, 12), '2026-10-25T00:00+02:00', '2026-10-25T12:00+01:00'),
        ('since 1:30 am', (10, 25, 12), '2026-10-25T01:30+02:00', '2026-10-25T12:00+01:00'),
        ('in the last 4 hours', (3, 29, 5), '2026-03-29T00:00+01:00', '2026-03-29T05:00+02:00'),
        ('in the last 4 hours', (10, 25, 5), '2026-10-25T02:00+02:00', '2026-10-25T05:00+01:00'),
        ('4 hours ago', (3, 29, 5), '2026-03-28T23:00+01:00', '2026-03-29T01:00+01:00'),
    ),
)
def test_times_are_those_of_the_clocks_of_that_day(berlin, words, now, begin, end):
    span = time_span(words, datetime(2026, *now).timestamp(), None)
    begin, end = (datetime.fromisoformat(moment).timestamp() for moment in (begin, end))
    assert (span.begin_s - begin, span.end_s - end) == (0, 0)


@pytest.mark.parametrize(
    'text',
    ('where are my keys?', 'how many robots are there?', 'is it about 5 people?', '', 'at 99'),
)
def test_a_text_without_a_time_names_none(text):
    assert time_span(text, NOW.timestamp(), ZONE) is None


def test_no_span_ends_in_the_future():
    for words, _, _ in CASES:
        span = time_span(words, NOW.timestamp(), ZONE)
        assert span.begin_s <= span.end_s <= NOW.timestamp()


def test_how_long_ago_is_told_in_the_largest_unit_of_which_there_are_two():
    assert duration(1) == '1 second'
    assert duration(119) == '119 seconds'
    assert duration(35 * 60) == '35 minutes'
    assert duration(7200) == '2 hours'
    assert duration(3 * 86400) == '3 days'


@pytest.mark.parametrize(
    'text',
    ('99999999999 hours ago', f'in the last {"9" * 5000} weeks', 'vor 9999999999999 小时前'),
)
def test_a_time_that_no_calendar_has_names_none(text):
    assert time_span(text, NOW.timestamp(), ZONE) is None
