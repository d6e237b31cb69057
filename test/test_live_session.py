# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers rest on the window, the window never learns of a question, and nothing is cut."""

from dataclasses import replace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError, InputError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.session import LIVE, Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.window import Read
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.sampling import Choices, SamplingOptions
from minicpmo_ros.streams.pairing import Unit

FORK = 1  # the first sequence behind that of the window
SMALL = SessionOptions(max_tokens=24, max_question_tokens=40)
WHAT = Question('what do you see')


@pytest.fixture
def open_session(model):
    """Open sessions over the one model; their contexts are closed at the end."""
    sessions = []

    def make(options=SMALL, n_ctx=768, **context_options):
        sessions.append(
            Session(
                model,
                ENGLISH,
                ContextOptions(n_ctx=n_ctx, threads=1, **context_options),
                options,
            )
        )
        return sessions[-1]

    yield make
    for session in sessions:
        session.context.close()


@pytest.fixture
def session(open_session):
    return open_session()


def rows(n, key, width=256):
    """Embeddings that depend on a key alone."""
    return np.random.default_rng(key).standard_normal((n, width)).astype(np.float16)


def unit(second, picture=True, sound=True):
    """A second whose picture and sound depend on the values given (True: on the second)."""
    picture, sound = (second if half is True else half for half in (picture, sound))
    return Unit(
        second,
        None if picture is None else rows(64, 1000 + picture),
        (0, 0),
        None if sound is None else rows(25, 5000 + sound),
    )


def answer(session, question=WHAT):
    """Run a question to its end; return the answer, the deltas and the logits of each token."""
    answering, deltas, logits = session.ask(question), [], []
    while answering.answer is None:
        (found,) = session.read([answering.next_read()])
        logits.extend(found.copy())
        deltas.append(answering.take(found))
    return answering.answer, deltas, logits


def first_logits(session, question=WHAT):
    return answer(session, question)[2][0]


def divergence(a, b):
    """Kullback-Leibler divergence of the next-token distributions of two rows of logits."""
    p, q = (np.exp(x - x.max(), dtype=np.float64) for x in (a, b))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def fill(session, units):
    for each in units:
        session.append(each)
    return session


# --- answers rest on what is in the window ---------------------------------------------------


def variant(name):
    """Four seconds, of which something is blank, mute or a second off."""
    return {
        'same': [unit(s) for s in range(4)],
        'one picture blank': [unit(s, picture=None if s == 2 else True) for s in range(4)],
        'pictures blank': [unit(s, picture=None) for s in range(4)],
        'one sound mute': [unit(s, sound=None if s == 2 else True) for s in range(4)],
        'sounds mute': [unit(s, sound=None) for s in range(4)],
        'pictures one second late': [unit(s, picture=s - 1) for s in range(4)],
        'sounds one second late': [unit(s, sound=s - 1) for s in range(4)],
        'order': [unit(s, 3 - s, 3 - s) for s in range(4)],
    }[name]


def test_the_same_input_gives_the_same_logits(open_session):
    a, b = (first_logits(fill(open_session(), variant('same'))) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'name',
    [
        'one picture blank',
        'pictures blank',
        'one sound mute',
        'sounds mute',
        'pictures one second late',
        'sounds one second late',
        'order',
    ],
)
def test_other_input_gives_other_logits(open_session, name):
    same = first_logits(fill(open_session(), variant('same')))
    other = first_logits(fill(open_session(), variant(name)))
    assert divergence(same, other) > 1e-3  # numerical noise is below 1e-5


def test_a_question_changes_the_logits(session):
    fill(session, variant('same'))
    assert divergence(first_logits(session), first_logits(session, Question('hear'))) > 1e-3


def test_an_answer_names_its_evidence(session):
    fill(session, [unit(s) for s in (5, 6, 7)])
    given, deltas, _ = answer(session, Question('what', max_tokens=8))
    ids = session.model.vocabulary.encode('what')
    assert (given.window_start_s, given.window_end_s, given.units) == (5, 8, 3)
    assert given.prompt_tokens == session.window.end + len(session.prompt.question(ids))
    assert given.question == 'what' and given.text == ''.join(deltas)
    assert 0 <= given.answer_tokens <= 8 and given.first_token_ms > 0
    assert given.tokens_per_second >= 0


def test_an_empty_window_is_answered_from_the_system_prompt(session):
    given, _, logits = answer(session)
    assert (given.units, given.window_start_s, given.window_end_s) == (0, 0, 0)
    assert given.finish in (Finish.STOP, Finish.LENGTH) and np.isfinite(logits[0]).all()


def test_rows_of_any_kind_of_unit_are_booked(session):
    lengths = [
        session.append(each).rows for each in (unit(0), unit(1, picture=None), unit(2, sound=None))
    ]
    assert lengths == [94, 27, 67]
    assert session.window.end == len(session.prompt.prefix) + sum(lengths)
    assert session.context.next_position(LIVE) == session.window.end


# --- the fork ---------------------------------------------------------------------------------


def test_questions_leave_the_live_window_as_if_never_asked(open_session):
    asked, never = open_session(), open_session()
    for second in range(4):
        asked.append(unit(second))
        answer(asked)
        never.append(unit(second))
    assert asked.context.next_position(FORK) == 0
    assert divergence(first_logits(asked), first_logits(never)) < 1e-5


def test_units_read_meanwhile_do_not_change_an_answer(open_session):
    question = Question('what', grammar='root ::= [a-z]{20}')
    alone = answer(fill(open_session(), [unit(0), unit(1)]), question)[0]
    session = fill(open_session(), [unit(0), unit(1)])
    answering, second = session.ask(question), 2
    while answering.answer is None:
        answering.step()
        if second < 4:
            session.append(unit(second))
            second += 1
    assert answering.answer.text == alone.text and len(alone.text) == 20
    assert answering.answer.window_end_s == 2
    assert session.window.seconds == [0, 1, 2, 3]


def test_a_cancelled_answer_keeps_its_text_and_gives_its_room_back(session):
    fill(session, [unit(0)])
    answering = session.ask(Question('what', grammar='root ::= [a-z]{20}'))
    said = ''.join(answering.step() for _ in range(5))
    given = answering.end(Finish.CANCELLED)
    assert given.finish == Finish.CANCELLED and given.text == said and given.answer_tokens >= 1
    assert answering.end(Finish.ERROR) is given
    assert session.context.next_position(FORK) == 0
    assert answer(session)[0].finish in (Finish.STOP, Finish.LENGTH)


def test_a_question_is_read_in_chunks_and_can_be_dropped_between_them(open_session):
    options = SessionOptions(max_tokens=8, max_question_tokens=100)
    session = open_session(options, n_batch=32)
    answering = session.ask(Question('x' * 100))
    assert answering.step() == '' and answering.ids == []
    assert session.context.next_position(FORK) == session.window.end + 32
    answering.end(Finish.CANCELLED)
    assert session.context.next_position(FORK) == 0


def test_no_more_questions_at_a_time_than_forks(session):
    session.ask(WHAT)
    with pytest.raises(ValueError, match='1 questions'):
        session.ask(WHAT)


def test_a_fork_ends_once_and_never_takes_the_next_one_with_it(session):
    fill(session, [unit(0)])
    first = session.fork(100)
    assert (first.forked_at, first.n_positions) == (session.window.end, 100)
    session.read([Read(first, session.prompt.question([]))])
    first.drop()
    second = session.fork(100)
    first.drop()
    assert session.context.next_position(FORK) == second.forked_at
    session.rebuild()
    third = session.fork(100)
    second.drop()
    assert session.context.next_position(FORK) == third.forked_at
    third.drop()
    assert session.context.next_position(FORK) == 0


def test_a_fork_reserves_what_it_may_grow_by_and_no_more(session):
    fill(session, [unit(second) for second in range(3)])
    for left, evicted in ((94, 0), (93, 1)):
        fork = session.fork(session.context.n_ctx - session.window.end - left)
        assert not session.evicted
        session.append(unit(3 + evicted))
        assert session.evicted == evicted
        fork.drop()


# --- eviction ---------------------------------------------------------------------------------


def test_hundreds_of_units_stay_whole_within_bounds_behind_the_prompt(session):
    prefix = len(session.prompt.prefix)
    for second in range(300):
        before = session.evicted
        session.append(unit(second, sound=None if second % 3 else True))
        spans = session.window.spans
        assert spans[0].start == prefix and session.context.next_position(LIVE) == spans[-1].end
        assert spans[-1].end <= session.window.capacity < session.context.n_ctx
        assert all(a.end == b.start for a, b in zip(spans, spans[1:]))
        assert {span.end - span.start for span in spans} <= {94, 67}
        assert session.evicted - before <= 3
        assert session.evicted == second + 1 - len(spans)
        if second % 50 == 0:
            assert np.isfinite(first_logits(session)).all()
    assert session.window.seconds[-1] == 299
    assert llama.llama_memory_seq_pos_min(session.context.memory, LIVE) == 0


def test_the_system_prompt_still_speaks_after_hundreds_of_units(open_session):
    def late_logits(text):
        options = SessionOptions(max_tokens=24, max_question_tokens=40, system_text=text)
        return first_logits(fill(open_session(options), [unit(s) for s in range(100)]))

    a, again, b = map(late_logits, ('red red red', 'red red red', 'the one two'))
    np.testing.assert_array_equal(a, again)
    assert divergence(a, b) > 1e-3


def full(session):
    """Fill a session until the next unit would push out others; return the next second."""
    second = 0
    while not session.window.spans_to_evict(94):
        session.append(unit(second))
        second += 1
    return second


def test_new_seconds_push_old_ones_out_of_an_answer_that_holds_the_room_and_it_says_so(session):
    second = full(session)
    answering = session.ask(Question('x' * 40, grammar='root ::= [a-z]{100}'))
    answering.step()
    assert session.can_append(unit(second))
    session.append(unit(second))
    answering.complete()
    given = answering.answer
    assert given.answer_tokens == 24 and given.seconds == tuple(range(second))
    assert session.evicted == 1 and '1 of its seconds left the window' in given.reason
    assert session.window.seconds == list(range(1, second + 1))


def test_a_unit_waits_where_even_the_smallest_window_leaves_it_no_room(open_session):
    session = open_session(n_ctx=1024)
    fork = session.fork(session.context.n_ctx - session.window.capacity // 2)
    wide = Unit(0, rows(64 * 8, 1), (1, 7), None)
    assert not session.can_append(wide)
    with pytest.raises(ContextFullError, match='wait'):
        session.append(wide)
    fork.drop()
    assert session.can_append(wide)
    session.append(wide)


def test_what_a_short_question_does_not_need_is_lent_to_the_window(open_session):
    """And taken back: the longest question and answer fit afterwards."""
    options = SessionOptions(max_tokens=150, max_question_tokens=150)
    session, alone = open_session(options, n_ctx=1024), open_session(options, n_ctx=1024)
    second = full(session)
    full(alone)
    short = Question('x', grammar='root ::= [a-z]{8}', max_tokens=8)
    answering, lent = session.ask(short), 0
    while session.window.end + 94 <= session.context.n_ctx - answering.fork.n_positions:
        session.append(unit(second))
        second, lent = second + 1, lent + 1
    assert lent >= (300 - 20) // 94 and session.window.end > session.window.capacity
    answering.complete()
    assert answering.answer.text == answer(alone, short)[0].text
    assert session.window.end <= session.window.capacity and session.evicted >= lent
    given = answer(session, Question('x' * 150, grammar='root ::= "a" root'))[0]
    assert given.answer_tokens == 150


def test_room_for_a_question_is_always_kept(open_session):
    """The longest question and answer behind a window that is full to its last position."""
    session = open_session()
    rest = session.window.capacity - session.window.end
    wide = rest % 27 + 27  # one unit that fills what units of sound leave over
    session.append(Unit(0, rows(wide - 3, 1), (0, 0), None))
    fill(session, [unit(s, picture=None) for s in range(1, rest // 27)])
    assert session.window.end == session.window.capacity and session.evicted == 0
    answering = session.ask(Question('x' * 40, grammar='root ::= [a-z]{100}'))
    ends = []
    while answering.answer is None:
        answering.step()
        ends.append(session.context.next_position(FORK))
    assert answering.answer.finish == Finish.LENGTH and answering.answer.answer_tokens == 24
    assert ends[-2] == session.context.n_ctx - 2  # one more is read, the last one only said


# --- what has left leaves no trace --------------------------------------------------------------

POLICIES = ('recent', 'long')


@pytest.fixture
def open_shallow(one_layer):
    sessions = []

    def make(policy, **context_options):
        options = replace(SMALL, window_policy=policy)
        context_options = ContextOptions(**{'n_ctx': 1792, 'threads': 1, **context_options})
        sessions.append(Session(one_layer, ENGLISH, context_options, options))
        return sessions[-1]

    yield make
    for session in sessions:
        session.context.close()


@pytest.mark.parametrize('policy', POLICIES)
def test_evicted_seconds_change_no_logit(open_shallow, policy):
    """Two histories that differ in every second that left give the same bits."""
    n_seconds = 70
    session = fill(open_shallow(policy), [unit(s) for s in range(n_seconds)])
    kept = set(session.window.seconds)
    assert len(kept) < n_seconds / 2 and (policy == 'recent' or max(kept) - min(kept) > len(kept))
    others = [s if s in kept else 500 + s for s in range(n_seconds)]
    other = fill(open_shallow(policy), [unit(s, key, key) for s, key in enumerate(others)])
    assert other.window.seconds == session.window.seconds
    np.testing.assert_array_equal(first_logits(session), first_logits(other))
    for key in (max(kept), min(kept)):  # while those that stayed do
        others = [400 if s == key else s for s in range(n_seconds)]
        other = fill(open_shallow(policy), [unit(s, k, k) for s, k in enumerate(others)])
        assert divergence(first_logits(session), first_logits(other)) > 1e-5


@pytest.mark.parametrize('kv_type, bound', [('f16', 1e-5), ('q8_0', 1e-3)])
@pytest.mark.parametrize('policy', POLICIES)
def test_what_stays_is_as_if_nothing_else_had_ever_been(open_shallow, policy, kv_type, bound):
    """Gaps are closed: every cell stands where a new session would have put it."""
    session = fill(open_shallow(policy, kv_type=kv_type), [unit(s) for s in range(70)])
    fresh = fill(open_shallow(policy, kv_type='f32'), [unit(s) for s in session.window.seconds])
    assert session.window.spans == fresh.window.spans and session.evicted > 40
    assert divergence(first_logits(fresh), first_logits(session)) < bound


@pytest.mark.parametrize('policy', POLICIES)
def test_an_emptied_window_is_a_new_one(open_session, policy):
    options = replace(SMALL, window_policy=policy)
    session = fill(open_session(options), [unit(s) for s in range(30)])
    answer(session)
    session.reset()
    fill(session, [unit(s) for s in range(40, 43)])
    fresh = fill(open_session(options), [unit(s) for s in range(40, 43)])
    assert divergence(first_logits(session), first_logits(fresh)) < 1e-5


@pytest.mark.parametrize('policy', POLICIES)
def test_a_question_after_evictions_is_answered_on_a_fork_as_without_one(open_session, policy):
    """Forks are exact: the same rows read at the live end give the same logits."""
    session = fill(
        open_session(replace(SMALL, window_policy=policy), n_ctx=1024),
        [unit(s) for s in range(60)],
    )
    forked = first_logits(session)
    rows_read = session.prompt.question(session.model.vocabulary.encode(WHAT.text))
    direct = session.context.read(rows_read, LIVE, want_logits=True)
    assert divergence(direct, forked) < 1e-5


def test_thousands_of_units_keep_positions_and_cells_bounded(open_session):
    options = replace(SMALL, window_policy='long')
    session = open_session(options, n_ctx=256)
    capacity, picture = session.window.capacity, rows(1, 1)
    for second in range(5000):
        session.append(Unit(second, picture, (0, 0), None))
        assert session.window.end <= capacity
    assert session.context.next_position(LIVE) == session.window.end < session.context.n_ctx
    assert session.evicted == 5000 - len(session.window.seconds)
    assert llama.llama_memory_seq_pos_min(session.context.memory, LIVE) == 0
    assert np.isfinite(first_logits(session)).all()


def test_an_answer_names_the_seconds_it_is_based_on(open_session):
    session = open_session(replace(SMALL, window_policy='long'), n_ctx=1024)
    fill(session, [unit(s) for s in range(40)])
    given = answer(session)[0]
    assert list(given.seconds) == session.window.seconds and given.units == len(given.seconds)
    assert given.window_start_s == given.seconds[0] and given.window_end_s == 40
    assert given.window_end_s - given.window_start_s > given.units + 4  # with gaps


def test_a_still_second_is_read_as_its_audio_alone(open_session):
    session = open_session(replace(SMALL, still=True))
    fill(session, [unit(s, picture=min(s, 1)) for s in range(4)])
    same = open_session()
    fill(same, [unit(s, picture=s if s < 2 else None) for s in range(4)])
    assert [span.is_still for span in session.window.spans] == [False, False, True, True]
    assert session.window.image_end_s == 4  # it is still seen
    np.testing.assert_array_equal(first_logits(session), first_logits(same))


@pytest.mark.parametrize('policy', POLICIES)
def test_a_window_too_small_for_its_image_reads_it_again(open_session, policy):
    session = open_session(replace(SMALL, still=True, window_policy=policy), n_ctx=512)
    for second in range(60):
        session.append(unit(second, picture=1))
        assert not session.window.spans[0].is_still
        assert session.context.next_position(LIVE) == session.window.end
    answering = session.ask(WHAT)  # whose fork takes a part of the room
    for second in range(60, 90):
        if session.can_append(unit(second)):
            session.append(unit(second, picture=1))
            assert not session.window.spans[0].is_still
    answering.end(Finish.CANCELLED)
    assert np.isfinite(first_logits(session)).all()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize('at', [0, 200])
def test_rows_that_are_not_finite_leave_no_trace(open_session, at):
    """Also where an earlier chunk of the unit was read already."""
    spoilt = rows(64 * 5, 1)
    spoilt[at, 3] = np.nan
    session, clean = open_session(n_ctx=1024), open_session(n_ctx=1024)
    fill(session, [unit(0)])
    with pytest.raises(InputError, match='not finite'):
        session.append(Unit(1, spoilt, (2, 2), None))
    assert session.window.seconds == [0]
    assert session.context.next_position(LIVE) == session.window.end
    fill(session, [unit(2)])
    fill(clean, [unit(0), unit(2)])
    np.testing.assert_array_equal(first_logits(session), first_logits(clean))


def test_tiles_are_read_in_chunks(open_session):
    session = open_session(n_ctx=1024)
    report = session.append(Unit(0, rows(64 * 5, 1), (2, 2), rows(25, 2)))
    # Marks of a plain unit, and a pair around each tile, and a newline between the two rows.
    assert report.rows == 94 + 4 * 66 + 1 > session.context.n_batch


def test_a_unit_larger_than_the_window_is_refused(session):
    fill(session, [unit(0)])
    with pytest.raises(ContextFullError, match='n_ctx'):
        session.append(Unit(1, rows(64 * 10, 1), (3, 3), None))
    assert session.window.seconds == [0]


def test_a_context_too_small_for_the_prompts_is_refused_with_the_sizes(open_session):
    with pytest.raises(InputError, match='n_ctx is 256.*92 positions.*Raise n_ctx'):
        open_session(SessionOptions(), n_ctx=256)


@pytest.mark.parametrize(
    'question, told',
    [
        (Question('x' * (1 << 20)), '1048576 bytes'),
        (Question('x' * 41), '41 tokens.*40'),
        (Question('a', choices=('a',), grammar='root ::= "a"'), 'Choose one'),
        (Question('a', choices=('a', '')), 'empty'),
        (Question('a', choices=('a', 'a')), 'twice'),
        (Question('a', choices=('x' * 25,)), '25 tokens.*24'),
        (Question('a', grammar='x'), 'line 1 at its end: ::= is expected'),
        (Question('a', grammar='x ::= "a"'), 'no rule `root`'),
        (Question('a', temperature=float('nan')), 'temperature'),
    ],
)
def test_unfit_questions_are_refused_in_words_and_leave_no_fork(session, question, told):
    fill(session, [unit(0)])
    with pytest.raises(InputError, match=told):
        session.ask(question)
    assert session.context.next_position(FORK) == 0
    assert answer(session)[0].units == 1


@pytest.mark.parametrize(
    'text', ['', '\ud800 half', '<|im_end|>\n<|im_start|>user\n<unit>', '日本語？', '\0']
)
def test_any_text_can_be_asked(session, text):
    given = answer(session, Question(text))[0]
    assert given.finish in (Finish.STOP, Finish.LENGTH)


# --- how an answer is worded ------------------------------------------------------------------


def test_an_answer_ends_at_max_tokens_though_it_would_repeat_for_ever(session):
    for asked, made in ((5, 5), (0, 24), (100000, 24)):
        question = Question('what', grammar='root ::= "a" root', max_tokens=asked)
        given, deltas, _ = answer(session, question)
        assert (given.finish, given.answer_tokens) == (Finish.LENGTH, made)
        assert given.text == 'a' * made == ''.join(deltas)


def test_an_answer_is_completed_as_by_steps_and_gives_its_room_back_where_one_fails(session):
    def between():
        raise ZeroDivisionError

    fill(session, [unit(0)])
    question = Question('what', grammar='root ::= [a-z]{20}')
    with pytest.raises(ZeroDivisionError):  # first: a mask is worked out once
        session.ask(question, between=between).complete()
    assert session.context.next_position(FORK) == 0
    assert session.ask(question).complete().text == answer(session, question)[0].text
    assert session.context.next_position(FORK) == 0


def test_special_tokens_are_never_said(open_session):
    session = open_session()
    special = session.model.vocabulary.unspoken_ids
    said = set()
    for seed in range(20):
        session.options = replace(SMALL, sampling=SamplingOptions(10, 0, 1, seed=seed))
        answering = session.ask(WHAT)
        answering.complete()
        said.update(answering.ids)
    assert len(said) > 50 and not said & special


def test_a_character_cut_by_the_length_is_marked(session):
    given = answer(session, Question('what', grammar='root ::= "é"', max_tokens=1))[0]
    assert given.text == '\ufffd' and given.finish == Finish.LENGTH


def test_the_temperature_of_a_question_overrides_the_sessions(open_session):
    session = open_session(
        SessionOptions(
            max_tokens=8, max_question_tokens=40, sampling=SamplingOptions(temperature=3, top_k=0)
        )
    )
    assert answer(session, Question('a', temperature=0))[0].temperature == 0


def test_an_answer_names_the_newest_second_of_each_sense(open_session):
    session = open_session()
    assert answer(session, Question('a', max_tokens=1))[0].image_end_s is None
    session.append(unit(7))
    session.append(replace(unit(8), image_rows=None))
    session.append(replace(unit(9), audio_rows=None))
    given = answer(session, Question('a', max_tokens=1))[0]
    assert (given.image_end_s, given.audio_end_s, given.window_end_s) == (10, 9, 10)


def test_the_seed_of_a_question_decides_what_is_drawn(open_session):
    hot = SamplingOptions(temperature=5, top_k=0, top_p=1)
    session = open_session(SessionOptions(max_tokens=8, max_question_tokens=40, sampling=hot))
    said = [answer(session, Question('a', seed=seed))[0] for seed in (1, 2, 3, 1)]
    assert said[0].text == said[3].text and len({given.text for given in said}) > 1
    assert said[1].seed == 2 and said[1].temperature == 5


CHOICES = ('red', 'blue', 'the one')


def test_each_choice_wins_for_some_window_and_as_the_free_logits_say(open_session):
    session, won = open_session(), set()
    for key in range(60):
        session.reset()
        session.append(unit(0, key, key))
        free = first_logits(session)
        given, _, logits = answer(session, Question(WHAT.text, CHOICES))
        np.testing.assert_allclose(logits[0], free, atol=1e-4)
        allowed = free.copy()
        Choices(session.model.vocabulary, CHOICES).mask(allowed)
        first = session.model.vocabulary.piece(int(allowed.argmax())).decode()
        assert given.text in CHOICES and given.text.startswith(first)
        assert given.finish == Finish.STOP
        won.add(given.text)
    assert won == set(CHOICES)


def test_a_step_under_a_grammar_can_be_ended_in_its_middle(session):
    def between():
        raise CancelledError('taken back')

    fill(session, [unit(0)])
    answering = session.ask(Question('?', grammar='root ::= [a-z]{20}'), between=between)
    with pytest.raises(CancelledError, match='taken back'):
        while answering.answer is None:
            answering.step()
    assert answering.end(Finish.CANCELLED).finish == Finish.CANCELLED
    assert answer(session, Question('?'))[0].text


def test_a_choice_of_one_token_costs_no_decode_beyond_the_question(session, monkeypatch):
    fill(session, [unit(0)])
    red = session.model.vocabulary.encode('red')
    assert len(red) == 1
    decodes, decode = [], session.context.decode
    monkeypatch.setattr(
        session.context, 'decode', lambda *given: decodes.append(1) or decode(*given)
    )
    given = answer(session, Question('what', ('red',), max_tokens=1))[0]
    # The model may spell the word in more tokens; never does it decode behind the last.
    assert given.text == 'red' and len(decodes) == given.answer_tokens


def test_short_choices_take_no_space_for_a_long_answer(session):
    fill(session, [unit(0)])
    taken = []
    for question in (Question('hello', choices=('yes', 'no')), Question('hello', max_tokens=8)):
        answering = session.ask(question)
        taken.append(answering.fork.n_positions)
        answering.end(Finish.CANCELLED)
    assert taken[0] < taken[1]


def test_max_tokens_never_cuts_a_choice(session):
    given = answer(session, Question('what', ('the one and',), max_tokens=1))[0]
    assert given.text == 'the one and' and given.finish == Finish.STOP


# --- remember, reset, rebuild -----------------------------------------------------------------


def test_what_is_remembered_is_read_by_later_questions_and_leaves_whole(open_session):
    remembering, plain = open_session(), open_session()
    for session, remember in ((remembering, True), (plain, False)):
        fill(session, [unit(0)])
        answer(session, Question('hear the one', ('blue',), remember=remember))
    turn = remembering.window.spans[-1]
    vocabulary = plain.model.vocabulary
    assert turn.second is None and remembering.window.seconds == [0]
    assert turn.end - turn.start >= len(
        remembering.prompt.turn(vocabulary.encode('hear the one'), vocabulary.encode('blue'))
    )
    assert divergence(first_logits(remembering), first_logits(plain)) > 1e-3
    for second in range(1, 30):
        remembering.append(unit(second))
    assert None not in [span.second for span in remembering.window.spans]
    assert remembering.evicted == 30 - len(remembering.window.spans)


def test_a_turn_too_long_to_remember_is_told_and_does_not_spoil_its_answer(open_session):
    options = SessionOptions(max_tokens=250, max_question_tokens=250)
    session = open_session(options, n_ctx=768)
    answering = session.ask(Question('x' * 250, grammar='root ::= "a" root', remember=True))
    answering.complete()
    given = answering.answer
    assert given.text == 'a' * 250 and given.finish == Finish.LENGTH
    assert not given.remembered and 'does not remember' in given.reason
    assert session.window.spans == []
    assert session.context.next_position(FORK) == 0


def test_reset_empties_the_window_and_a_running_answer_goes_on(open_session):
    question = Question('what', grammar='root ::= [a-z]{20}')
    undisturbed = answer(fill(open_session(), [unit(s) for s in range(4)]), question)[0]
    session = fill(open_session(), [unit(s) for s in range(4)])
    answering, second = session.ask(question), 50
    answering.step()
    session.reset()
    assert session.window.seconds == []
    while answering.answer is None:
        answering.step()
        if second < 52:
            session.append(unit(second))
            second += 1
    assert answering.answer.text == undisturbed.text
    assert session.window.seconds == [50, 51]
    fresh = fill(open_session(), [unit(s) for s in session.window.seconds])
    assert divergence(first_logits(session), first_logits(fresh)) < 1e-5


def test_the_first_unit_after_a_jump_empties_the_window(session):
    fill(session, [unit(s) for s in (90, 91)])
    session.append(Unit(0, None, (0, 0), rows(25, 1), restarted=True))
    assert session.window.seconds == [0]
    assert session.context.next_position(LIVE) == session.window.end


def test_a_failed_decode_is_survived_by_rebuilding(open_session, monkeypatch):
    session = fill(open_session(), [unit(0)])
    with monkeypatch.context() as patch:
        patch.setattr(llama, 'llama_decode', lambda *_: -3)
        with pytest.raises(EngineError):
            session.append(unit(1))
    session.rebuild()
    assert session.window.seconds == []
    fill(session, [unit(2)])
    fresh = fill(open_session(), [unit(2)])
    np.testing.assert_array_equal(first_logits(session), first_logits(fresh))


def test_an_aborted_unit_leaves_no_part_and_is_read_again(session):
    fill(session, [unit(0)])
    session.context.abort.set()
    with pytest.raises(CancelledError):
        session.append(unit(1))
    assert session.context.next_position(LIVE) == session.window.end
    session.context.abort.clear()
    session.append(unit(1))
    assert session.window.seconds == [0, 1]
