# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which notes are recalled for a question, and how they are put before it."""

import random
from datetime import timezone

import pytest

from minicpmo_ros.notes.note import Filter, Note, Pose
from minicpmo_ros.notes.recall import Recaller, content_words, is_about_past, preface, recall
from minicpmo_ros.notes.store import NoteStore

NOW_S = 1_780_000_000.0
THINGS = 'keys cup book phone bag ball dog parcel bell siren lamp chair'.split()
PLACES = 'kitchen hall lab office dock garden stairs'.split()
COLORS = 'red blue green yellow black white'.split()


@pytest.fixture
def store(tmp_path):
    with NoteStore(tmp_path / 'day.db') as opened:
        yield opened


def add(store, age_s, text, **fields):
    """Add a note of ten seconds that ended `age_s` ago."""
    return store.add(Note(NOW_S - age_s - 10, NOW_S - age_s, text, **fields))


def ask(store, question, **options):
    """Return the texts of the notes recalled, the best first."""
    return [one.note.text for one in recall(store, question, NOW_S, timezone.utc, **options)]


def test_the_note_with_the_words_is_among_eight_from_one_to_sixty_minutes_back(store):
    draw = random.Random(1)
    facts = [(c, t, p) for c in COLORS for t in THINGS for p in PLACES]
    draw.shuffle(facts)
    facts = facts[:360]  # an hour, one every ten seconds
    for n, (color, thing, place) in enumerate(facts):
        add(store, 3600 - 10 * n, f'A {color} {thing} lies in the {place}.')
    for minutes in (1, 5, 15, 60):
        first = max(0, 360 - 6 * minutes)
        tried = draw.sample(facts[first : first + 6 * 5], min(20, 6 * minutes))
        found = 0
        for color, thing, place in tried:
            texts = ask(store, f'Where did you last see the {color} {thing}?')
            found += f'A {color} {thing} lies in the {place}.' in texts
        assert found >= 0.95 * len(tried), minutes


def test_words_are_found_in_another_form(store):
    add(store, 100, 'Somebody was knocking at doors.')
    assert ask(store, 'When did somebody knock on the door?')


def test_a_time_in_the_question_leaves_other_times_out(store):
    add(store, 4000, 'The bell rang once.')
    add(store, 60, 'The bell rang twice.')
    assert ask(store, 'How often did the bell ring in the last ten minutes?') == [
        'The bell rang twice.'
    ]


def test_a_question_that_names_only_a_time_gets_what_was_noted_then(store):
    add(store, 7200, 'A man sat down.')
    add(store, 30, 'A dog ran past.')
    assert ask(store, 'What happened two hours ago?') == ['A man sat down.']


def test_here_means_near_the_robot(store):
    add(store, 50, 'A cup stands on a table.', pose=Pose('map', 9.0, 0.0))
    add(store, 90, 'A cup lies on the floor.', pose=Pose('map', 1.0, 1.0))
    here = Pose('map', 0.5, 0.5)
    assert ask(store, 'Was there a cup here?', here=here) == ['A cup lies on the floor.']


def test_the_newest_comes_first_where_the_last_time_is_asked_for(store):
    for age_s in (3000, 2000, 1000):
        add(store, age_s, f'A bell is heard, and {age_s} seconds passed.')
    assert '1000' in ask(store, 'When did you last hear a bell?')[0]


def test_chinese_words_are_found(store):
    add(store, 100, '桌子上有一个红色的杯子')
    assert ask(store, '杯子')


def test_a_given_filter_replaces_time_and_place_of_the_words(store):
    add(store, 5000, 'A cup.')
    wanted = Filter(NOW_S - 6000, NOW_S)
    assert ask(store, 'a cup in the last minute', wanted=wanted) == ['A cup.']


def test_operators_of_the_index_are_text(store):
    add(store, 10, 'A "cup" NOT (near) the door*.')
    for text in ('"', 'cup"', 'NEAR(', 'a AND', '*', 'cup OR -', '^cup', 'text:cup', '\0', "it's"):
        ask(store, text)
    assert ask(store, 'NOT cup')


def test_the_preface_stays_within_its_budget_and_is_in_the_order_of_time(store):
    for n in range(30):
        add(store, 600 - 10 * n, f'The cup moved for the {n}th time.')
    recalled = recall(store, 'When did the cup move?', NOW_S, timezone.utc)
    count = lambda text: len(text.split())  # noqa: E731
    text, notes = preface(recalled, NOW_S, timezone.utc, count, 60)
    assert 1 < len(notes) < 8 and count(text) <= 60
    assert [note.end_s for note in notes] == sorted(note.end_s for note in notes)
    assert preface(recalled, NOW_S, timezone.utc, count, 5) == ('', ())


def test_questions_about_the_past_are_told_from_those_about_now():
    past = 'Where did I leave my keys?', 'What happened today before noon?', 'Did the bell ring?'
    now = 'What do you see?', 'Is the door open?', 'what color is shown now?'
    assert all(map(is_about_past, past)) and not any(map(is_about_past, now))
    assert content_words('Where did I leave my keys?') == ['leave', 'keys']


def test_a_time_that_is_all_in_the_window_needs_no_notes(store):
    add(store, 2, 'The cup is red.')
    add(store, 25, 'The cup is blue.')
    recaller = Recaller(lambda read: read(store), len, timezone.utc, budget=1000)
    window = range(int(NOW_S) - 30, int(NOW_S))

    def is_read(question, seconds=window, memory='auto'):
        return bool(recaller.recollect(question, memory, NOW_S, seconds).notes)

    inside = 'Where was the cup three seconds ago?', 'Did the cup move in the last ten seconds?'
    assert not any(map(is_read, inside))
    assert is_read(inside[0], memory='only')
    assert is_read('Where was the cup 30 seconds ago?') and is_read('Where was the cup before?')
    assert is_read(inside[1], range(int(NOW_S) - 5, int(NOW_S))) and is_read(inside[1], ())
    assert is_read(inside[1], [second for second in window if second % 4])  # of policy long


def test_an_exact_time_ago_is_preferred_and_a_vague_one_found(tmp_path):
    with NoteStore(tmp_path / 'day.db') as store:
        for minutes in range(90, 0, -1):
            end_s = NOW_S - 60 * minutes
            store.add(Note(end_s - 1, end_s, f'color: red; number {minutes}'))

        def ages(question):
            return [
                round((NOW_S - one.note.end_s) / 60)
                for one in recall(store, question, NOW_S, timezone.utc)
            ]

        for minutes in (1, 5, 15, 60):
            assert minutes in ages(f'What color was there {minutes} minutes ago?')[:2]
        assert ages('What color was there an hour ago?')[0] in range(30, 91)
        store.forget(Filter(NOW_S - 1000, NOW_S - 800))
        assert ages('What color was there 15 minutes ago?')


def test_the_last_time_is_the_newest_note_with_the_words_and_not_an_answer(tmp_path):
    with NoteStore(tmp_path / 'day.db') as store:
        for n in range(60):
            words = 'a bell rang' if n < 50 else 'a very long silence of the whole house'
            store.add(Note(NOW_S - 600 + n, NOW_S - 599 + n, f'{words}; {n} ' + 'and so on ' * n))
        store.add(Note(NOW_S - 5, NOW_S - 4, 'Asked: last bell? Answered: bell', 'answer'))
        first = recall(store, 'When did you last hear the bell?', NOW_S, timezone.utc)[0].note
        assert first.end_s == NOW_S - 550
        assert not recall(store, 'When did you last hear a zebra?', NOW_S, timezone.utc)


@pytest.mark.parametrize('stamp_s', [1e12, -1e12, 2.0**63])
def test_a_note_that_no_calendar_dates_is_told_and_costs_no_other(store, stamp_s):
    add(store, 60, 'The keys are in the box.')
    store.add(Note(stamp_s - 1, stamp_s, 'The keys fell down.'))
    recaller = Recaller(lambda read: read(store), len, timezone.utc, 1000)
    for now_s, question in ((NOW_S, 'Where were the keys?'), (stamp_s, 'the keys yesterday?')):
        text = recaller.recollect(question, 'only', now_s).text
        assert '[by a broken clock] The keys fell down.' in text
        assert ' ago] The keys are in the box.' in text
