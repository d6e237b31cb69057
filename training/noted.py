# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about notes: what was seen and heard before the window, read in front of a question.

The notes are told by the package's own words (notes/recall.py). What they say is drawn by itself:
the window of the question knows nothing of it. Reading notes needs tens of thousands of lessons
before it begins to work, so most of them are read without a window, many behind the same notes.
"""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from minicpmo_ros.notes.note import Note
from minicpmo_ros.notes.recall import HEADING, told

from .kinds import tempting
from .questions import Question, ask_about
from .world import COLORS, COUNTS, KINDS, SHAPES, SPOKEN, choose

LABELS = {'shape': SHAPES, 'color': COLORS, 'count': COUNTS, 'sound': KINDS, 'word': SPOKEN}
MOST_NOTES = 4
AGES_S = (1, 60, 3600)  # of seconds, minutes, hours
P_NOW = 0.25  # of the questions, that are about the window for all that
P_ANY = 0.3  # of the notes of lessons, that hold any word for every label: only who reads is right
MIDNIGHT = datetime(2026, 3, 1, tzinfo=timezone.utc)


def _content(rng, words=None):
    """Return label -> value of one note, two to five labels in the order of LABELS. `words`: what
    all values are drawn from instead of what fits the label.
    """
    number = int(rng.integers(2, len(LABELS) + 1))
    kept = set(rng.choice(list(LABELS), number, replace=False))
    return {label: choose(rng, words or pool) for label, pool in LABELS.items() if label in kept}


def _notes(rng, most=MOST_NOTES, words=None, p_any=0.0):
    """Return the text of one to `most` notes, and (content, how long ago in words) of each."""
    number = int(rng.integers(1, most + 1))
    now_s = (MIDNIGHT + timedelta(seconds=int(rng.integers(6 * 3600, 86400)))).timestamp()
    unit_s = choose(rng, AGES_S)
    ages_s = sorted(
        (unit_s * int(n) for n in rng.choice(range(2, 61), number, False)), reverse=True
    )
    lines, found = [], []
    for age_s in ages_s:
        content = _content(rng, words if rng.random() < p_any else None)
        text = '; '.join(f'{label}: {value}' for label, value in content.items())
        end_s = int(now_s - age_s)
        line = told(Note(end_s - 1, end_s, text), now_s, timezone.utc)
        lines.append(line + '\n')
        found.append((content, line[line.index(', ') + 2 : line.index(']')]))
    return HEADING + ''.join(lines), found


def _about(found, rng):
    """Return (words, label, value) of one question that the notes answer."""
    content, ago = found[int(rng.integers(len(found)))]
    label = choose(rng, list(content))
    others = [
        value
        for name, value in content.items()
        if name != label and sum(value in c.values() for c, _ in found) == 1
    ]
    by_time = [a for _, a in found].count(ago) == 1
    if len(found) == 1 and rng.random() < 0.3:
        which = 'before'
    elif others and (not by_time or rng.random() < 0.5):
        which = f'with the {choose(rng, others)}'
        which += f' {ago}' if by_time and rng.random() < 0.3 else ''
    elif by_time:
        which = ago
    else:
        return None
    return f'what {label} was noted {which}?', label, content[label]


def ask_about_notes(clip, number, rng, most=MOST_NOTES):
    """Return `number` Questions that are read behind one to `most` notes; some are about the clip
    itself.
    """
    made = []
    while len(made) < number:
        notes, found = _notes(rng, most)
        if rng.random() < P_NOW:
            (question,) = ask_about(clip, 1, rng)
            made.append(replace(question, notes=notes))
            continue
        about = _about(found, rng)
        if about is None:
            continue
        text, label, value = about
        (near, far) = tempting([c.get(label) for c, _ in found], value, LABELS[label])
        chance = 1 / (1 + len(near) + len(far))
        made.append(Question('noted', f'{label}_noted', text, value, chance, notes=notes))
    return made


def lesson(number, rng, most, words):
    """Return the text of notes and `number` (question, answer) about them; `words`: what notes
    say that hold any word.
    """
    notes, found = _notes(rng, most, words, P_ANY)
    asked = []
    while len(asked) < number:
        about = _about(found, rng)
        if about is not None:
            asked.append((about[0], about[2]))
    return notes, asked
