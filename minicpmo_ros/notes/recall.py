# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which notes belong to a question, and how they are put before it.

Candidates are the notes with words of the question, in the time and at the place that it names.
Those that fit the words best go first; of equal ones the newer, and those that somebody or a rule
had a reason to write. What is shown is in the order of time and within a budget of tokens.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import tzinfo

from minicpmo_ros.config import MEMORY
from minicpmo_ros.errors import InputError
from minicpmo_ros.notes.note import KINDS, Filter, Note, Pose
from minicpmo_ros.notes.snapshots import look_again
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.notes.times import BROKEN, TimeSpan, date_of, duration, time_span

HALF_LIFE_S = 6 * 3600.0  # of what a note gains by being new
NEW, LASTING = 0.5, 0.1  # what a new note gains, and one that is not periodic; the best words: 1
NEW_IF_LAST = 2.0  # a new one, where the question asks for the last time
HERE_M = 2.0
CANDIDATES = 24
MOST_NEAR = 256  # notes of the very time that a question names
HEADING = 'Notes of what was seen and heard before:\n'
STOP_WORDS = frozenset(
    'a about after again ago all am an and any anybody anyone anything are as at be been before '
    'being but by can could did do does doing ever first for from had happen happened happening '
    'has have having hear heard here how i if in into is it its just last late lately many me my '
    'near not now of often on once or our out over past recently remember robot saw say see seen '
    'she he shown since so some somebody someone something tell than that the their them then '
    'there they this time times to today tonight up us was we were what when where whether which '
    'while who why will with would yesterday you your long around during ring rang'.split()
)
PAST = re.compile(
    r'\b(did|was|were|had|happened|saw|heard|left|before|earlier|ago|yesterday|last|since|'
    r'remember|ever|used to|how often|how many times|have you (seen|heard))\b'
    r'|之前|以前|刚才|昨天|曾',
    re.IGNORECASE,
)
HERE = re.compile(r'\b(here|in this (place|room)|around (me|you))\b|这里', re.IGNORECASE)
LAST = re.compile(r'\b(last|latest|most recent(ly)?)\b|最后|上次', re.IGNORECASE)


@dataclass(frozen=True)
class Recalled:
    """A note that belongs to a question, and how well."""

    note: Note
    score: float


@dataclass(frozen=True)
class Recollection:
    """What is read before a question: units, then a text."""

    text: str = ''
    notes: tuple = ()  # Notes that are in the text; without a text: those of the units
    units: tuple = ()  # seconds that are read again (snapshots.py), the best first
    problems: tuple = ()  # sentences: what was not read although it belongs to the question


def is_about_past(question: str) -> bool:
    """Whether the words of a question are about something that is over."""
    return bool(PAST.search(question))


def recall(
    store: NoteStore,
    question: str,
    now_s: float,
    zone: tzinfo | None,
    here: Pose | None = None,
    limit: int = 8,
    wanted: Filter | None = None,
) -> list:
    """Return the `limit` notes that belong to a question best, the best first, as Recalled.

    `now_s`: the time of the question by the stream. `zone`: as time_span. `here`: where the
    robot is, for questions about 'here'. `wanted` replaces time and place of the words.
    """
    span = time_span(question, now_s, zone)
    words = content_words(span.rest if span else question)
    if wanted is None:
        near = here if here is not None and HERE.search(question) else None
        begin_s, end_s = (span.begin_s, span.end_s) if span else (None, None)
        wanted = Filter(begin_s, end_s, near, HERE_M)
    is_last = LAST.search(question) is not None
    found = _near(store, words, wanted, span) or (is_last and _newest(store, words, wanted))
    found = found or store.search(words, wanted, CANDIDATES)
    if not found and (span or not words or wanted.near or wanted.begin_s is not None):
        # The time or the place is all that is known of it: what was noted then or there.
        found = [(note, 0.0) for note in store.list(wanted, CANDIDATES)]
    best = max((score for _, score in found), default=0.0) or 1.0
    weight = NEW_IF_LAST if is_last else NEW
    recalled = [
        Recalled(note, score / best + _extra(note, now_s, weight)) for note, score in found
    ]
    return sorted(recalled, key=lambda one: (-one.score, -one.note.id))[:limit]


def content_words(text: str) -> list:
    """Return the words of a text that say what it is about."""
    words = re.findall(r"\w+(?:'\w+)?", text.casefold())
    return [word for word in words if word not in STOP_WORDS]


def told(note: Note, now_s: float, zone: tzinfo | None) -> str:
    """Return a note as one line with its time and place."""
    then, now = date_of(note.end_s, zone), date_of(now_s, zone)
    if then is None:
        when = BROKEN
    else:
        is_today = now is not None and then.date() == now.date()
        when = f'{then:%H:%M:%S}' if is_today else f'{then:%Y-%m-%d %H:%M:%S}'
        when += f', {duration(now_s - note.end_s)} ago'
    where = f', at ({note.pose.x:.1f}, {note.pose.y:.1f})' if note.pose else ''
    return f'[{when}{where}] {note.text}'


def preface(
    recalled: list,
    now_s: float,
    zone: tzinfo | None,
    count_tokens: Callable[[str], int],
    budget: int,
) -> tuple:
    """Return (text, notes): what is read before the question, and the notes that are in it.

    The best notes are taken until the budget of tokens is used up; ('', ()) where none fits.
    """
    taken, used = [], count_tokens(HEADING)
    for one in recalled:
        cost = count_tokens(told(one.note, now_s, zone) + '\n')
        if used + cost <= budget:
            used += cost
            taken.append(one.note)
    if not taken:
        return '', ()
    taken.sort(key=lambda note: (note.end_s, note.id))
    return HEADING + ''.join(told(note, now_s, zone) + '\n' for note in taken), tuple(taken)


@dataclass(frozen=True)
class Recaller:
    """Finds what is read before questions, as SessionOptions.recall."""

    read: Callable  # read(f) returns f(NoteStore), as NoteKeeper.read
    count_tokens: Callable[[str], int]
    zone: tzinfo | None
    budget: int = MEMORY.budget  # tokens of notes
    here: Pose | None = None
    space: str = ''  # of the model, for snapshots; '': none are read

    def recollect(
        self, question: str, memory: str, now_s: float, window: Collection = ()
    ) -> Recollection:
        """Return what belongs to a question; raises InputError, StoreError.

        `memory`: auto, off, only, as Question has it. With `only` something must be found; a
        question that is in the present is then asked of the seconds that are looked at again, as
        if they were live: without any words of notes. `window`: the seconds that are in it; a
        question about a time that is all in there needs no notes.
        """
        is_past, is_about = memory == 'only', is_about_past(question)
        if memory == 'off' or not (is_past or is_about):
            return Recollection()
        if not is_past and _is_inside(time_span(question, now_s, self.zone), window):
            return Recollection()
        found, looked, problems = self.read(lambda store: self._find(store, question, now_s))
        units = tuple(unit for _, unit in looked)
        if is_past and units and not is_about:
            return Recollection('', tuple(note for note, _ in looked), units, problems)
        text, notes = preface(found, now_s, self.zone, self.count_tokens, self.budget)
        if is_past and not notes:
            raise InputError(
                'No note belongs to this question. Name what was noted, or a time; ~/recall '
                'without a text lists the newest notes.'
            )
        return Recollection(text, notes, units, problems)

    def _find(self, store: NoteStore, question: str, now_s: float) -> tuple:
        """Return (Recalled notes, what to look at again, problems)."""
        found = recall(store, question, now_s, self.zone, self.here)
        return found, *(look_again(store, found, self.space) if self.space else ([], ()))


def _is_inside(span: TimeSpan | None, window: Collection) -> bool:
    """Return whether each second of a span is in the window."""
    if span is None or not window or span.begin_s < min(window):
        return False
    return set(range(int(span.begin_s), math.ceil(span.end_s))) <= set(window)


def _near(store: NoteStore, words: list, wanted: Filter, span) -> list:
    """Return [(note, score)] at the very time that a question names, where some are."""
    if span is None or not span.near or wanted.end_s != span.end_s:
        return []  # the asker's own time goes before that of the words
    near = replace(wanted, begin_s=span.near[0], end_s=span.near[1])
    notes = store.list(near, MOST_NEAR)
    return [(note, float(sum(word in note.text.casefold() for word in words))) for note in notes]


def _newest(store: NoteStore, words: list, wanted: Filter) -> list:
    """Return [(note, score)] of the newest notes with all words that are no answers, as one."""
    observed = tuple(kind for kind in wanted.kinds or KINDS if kind != 'answer')
    return store.newest(words, replace(wanted, kinds=observed), CANDIDATES)


def _extra(note: Note, now_s: float, weight: float) -> float:
    newness = 0.5 ** (max(0.0, now_s - note.end_s) / HALF_LIFE_S)
    return weight * newness + (LASTING if note.kind != 'periodic' else 0.0)
