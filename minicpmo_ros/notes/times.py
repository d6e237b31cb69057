# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Words for a time in the past, such as 'an hour ago' or 'since 9', as a span of the stream.

Rules, tried in this order; what a rule has matched is taken out of the text:

    between 9 and 10:30; from 9 to 10 am        the two times
    since 9:15; since yesterday                 from then to now
    before noon; after 14:00                    of today: from midnight to then, from then to now
    in the last ten minutes; the past hour      so long until now
    two hours ago                               around then: a quarter of the distance each way,
                                                at least 2 s; `near` is half a unit each way
    today, yesterday, this morning, afternoon,  the parts of the day: from 5, 12, 17 and 21 o'clock
      evening, last night, tonight
    at 9:30; around 5 pm; at noon               ten minutes each way, 'around' thirty

A time of the day without am or pm is the newest such time that is over. Spans end now at the
latest. Chinese: 分钟前, 小时前, 今天, 昨天, 刚才 and their kin.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

NUMBERS = {
    **{word: n for n, word in enumerate(
        'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen '
        'fifteen sixteen seventeen eighteen nineteen twenty'.split()
    )},
    'a': 1, 'an': 1, 'the': 1, 'couple of': 2, 'a couple of': 2, 'a few': 3, 'few': 3,
    'several': 5, 'thirty': 30, 'forty': 40, 'fifty': 50, 'sixty': 60, 'ninety': 90,
    'half an': 0.5, 'half a': 0.5, '': 1,
    **{character: n for n, character in enumerate('零一二三四五六七八九十')}, '两': 2, '半': 0.5,
}  # fmt: skip
UNITS_S = {
    'second': 1, 'minute': 60, 'hour': 3600, 'day': 86400, 'week': 7 * 86400,
    '秒': 1, '秒钟': 1, '分钟': 60, '小时': 3600, '天': 86400,
}  # fmt: skip
BROKEN = 'by a broken clock'  # told in place of a moment that no calendar has
AROUND, LEAST_AROUND_S = 0.25, 2.0  # of 'two hours ago': a share of the distance, at least
AT_S, ABOUT_S = 600, 1800  # each way, of 'at 9:30' and of 'around 9:30'
JUST_NOW_S = 60
DAY_PARTS = {  # hours of the day from and to; beyond 24: of the next day
    'morning': (5, 12), 'afternoon': (12, 17), 'evening': (17, 22), 'night': (21, 30),
    '早上': (5, 12), '上午': (5, 12), '下午': (12, 17), '晚上': (17, 24),
}  # fmt: skip

_number = r'(\d+(?:\.\d+)?|' + '|'.join(sorted(filter(None, NUMBERS), key=len, reverse=True)) + ')'
_unit = r'(second|minute|hour|day|week)s?'
_clock = r'(noon|midnight|\d{1,2}(?::\d{2})?(?:\s*(?:am|pm|a\.m\.|p\.m\.|o\'clock))?)(?![\d:])'
_exact = r'(noon|midnight|\d{1,2}:\d{2}(?:\s*(?:am|pm))?|\d{1,2}\s*(?:am|pm|o\'clock))'
_part = '(morning|afternoon|evening|night)'


@dataclass(frozen=True)
class TimeSpan:
    """A span of time, and the text without the words that named it."""

    begin_s: float
    end_s: float
    rest: str
    near: tuple = ()  # (begin_s, end_s) of what the words mean if they are exact; (): the span


def time_span(text: str, now_s: float, zone: tzinfo | None) -> TimeSpan | None:
    """Return the span that a text names; None where it names none.

    `now_s`: seconds since the epoch. `zone`: in which times of the day are meant; None: that of
    this machine, in which a day may have 23 hours.
    """
    now = date_of(now_s, zone)
    for pattern, rule in _RULES:
        match = pattern.search(text) if now is not None else None
        try:
            span = rule(now, *match.groups()) if match is not None else None
        except (OverflowError, ValueError, OSError):  # before all that a calendar has
            span = None
        if span is None:
            continue
        begin_s, end_s, *near = (min(moment.timestamp(), now_s) for moment in span)
        rest = ' '.join(f'{text[: match.start()]} {text[match.end() :]}'.split())
        return TimeSpan(min(begin_s, end_s), end_s, rest, tuple(near))
    return None


def date_of(moment_s: float, zone: tzinfo | None = None) -> datetime | None:
    """Return a moment of the stream in a zone; None: no calendar has it (a broken clock)."""
    try:
        return datetime.fromtimestamp(moment_s, zone)
    except (OverflowError, ValueError, OSError):
        return None


def duration(seconds: float) -> str:
    """Return a time in words, such as '35 minutes'."""
    seconds = max(0.0, seconds)
    for unit, unit_s in (('day', 86400), ('hour', 3600), ('minute', 60)):
        if seconds >= 2 * unit_s:
            return f'{seconds / unit_s:.0f} {unit}s'
    return f'{seconds:.0f} second{"" if round(seconds) == 1 else "s"}'


def _value(number: str) -> float:
    number = (number or '').casefold()
    return NUMBERS[number] if number in NUMBERS else float(number)


def _clock_time(now: datetime, text: str, is_today: bool = False) -> datetime | None:
    """Return the newest time of day of this name that is over; or the one of today."""
    text = text.casefold().replace('.', '')
    if text in ('noon', 'midnight'):
        hour, minute, half = (12 if text == 'noon' else 0), 0, 'h'
    else:
        hour, minute, half = re.fullmatch(
            r"(\d{1,2})(?::(\d{2}))?\s*(am|pm|o'clock)?", text
        ).groups()
        hour, minute = int(hour), int(minute or 0)
    if half in ('am', 'pm') and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half == 'pm' else 0)
    if hour > 23 or minute > 59:
        return None
    is_ambiguous = half in (None, "o'clock") and 1 <= hour <= 12
    first = now.replace(hour=hour % 24, minute=minute, second=0, microsecond=0)
    candidates = [first + timedelta(hours=12 * n) for n in ((-1, 0, 1) if is_ambiguous else (0,))]
    over = [moment for moment in candidates if moment <= now and moment.date() == now.date()]
    if over:
        return over[-1]
    return first if is_today else candidates[-1] - timedelta(days=1)


def _between(now, first, second):
    end = _clock_time(now, second)
    begin = end and _clock_time(end, first)
    return begin and (begin, end)


def _since(now, clock, day):
    begin = _clock_time(now, clock) if clock else _day(now, day)[0]
    return begin and (begin, now)


def _side(now, side, clock):
    moment = _clock_time(now, clock, is_today=True)
    if moment is None:
        return None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight, moment) if side.casefold() == 'before' else (moment, now)


def _shifted(moment, seconds: float) -> datetime:
    """Return a moment so much later, also where the clocks are put forward or back between."""
    return datetime.fromtimestamp(moment.timestamp() + seconds, moment.tzinfo)


def _last(now, number, unit):
    return _shifted(now, -_value(number) * UNITS_S[unit.casefold()]), now


def _ago(now, number, unit):
    distance_s = _value(number) * UNITS_S[unit.casefold()]
    slack_s = max(LEAST_AROUND_S, AROUND * distance_s)
    half_s = UNITS_S[unit.casefold()] / 2
    return tuple(_shifted(now, s - distance_s) for s in (-slack_s, slack_s, -half_s, half_s))


def _day(now, day, part=None):
    """Return the span of 'today' or 'yesterday', or of a part of it."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if day.casefold() in ('yesterday', '昨天'):
        midnight -= timedelta(days=1)
    first, last = DAY_PARTS[part.casefold()] if part else (0, 24)
    return midnight + timedelta(hours=first), midnight + timedelta(hours=last)


def _part_of_today(now, part):
    return _day(now, 'today', part)


def _last_night(now):
    begin, _ = _day(now, 'yesterday', 'night')
    return begin, begin + timedelta(hours=9)


def _at(now, word, clock):
    moment = _clock_time(now, clock)
    slack_s = AT_S if word.casefold() == 'at' else ABOUT_S
    return moment and (_shifted(moment, -slack_s), _shifted(moment, slack_s))


def _just_now(now):
    return _shifted(now, -JUST_NOW_S), now


_RULES = [
    (re.compile(pattern, re.IGNORECASE), rule)
    for pattern, rule in (
        (rf'\b(?:between|from)\s+{_clock}\s+(?:and|to|until)\s+{_clock}', _between),
        (rf'\bsince\s+(?:{_clock}|(yesterday|today))', _since),
        (rf'\b(before|after)\s+{_clock}', _side),
        (rf'\b(?:in|during|over|within|for)?\s*(?:the\s+)?(?:last|past)\s+{_number}?\s*{_unit}\b',
         _last),
        (rf'\b{_number}\s+{_unit}\s+ago\b', _ago),
        (r'\blast\s+night\b', _last_night),
        (rf'\b(yesterday|today)(?:\s+{_part})?\b', _day),
        (rf'\bthis\s+{_part}\b', _part_of_today),
        (r'\bto(night)\b', _part_of_today),
        (rf'\b(at)\s+{_clock}', _at),
        (rf'\b(around|about)\s+{_exact}', _at),
        (r'\bjust\s+now\b|刚才|刚刚', _just_now),
        (r'(?:最近|过去)(?:的)?(\d+|[一二三四五六七八九十两半])个?(秒钟?|分钟|小时|天)', _last),
        (r'(\d+|[一二三四五六七八九十两半])个?(秒钟?|分钟|小时|天)(?:之?前|以前)', _ago),
        (r'(昨天|今天)(早上|上午|下午|晚上)?', _day),
    )
]  # fmt: skip
