# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A remembered turn is read as in the model's own conversations, and a later question sees it."""

from dataclasses import dataclass, replace

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from test_live_session import divergence, first_logits

from minicpmo_ros.errors import ContextFullError, EngineError, InputError
from minicpmo_ros.families import find_layout
from minicpmo_ros.live.question import Finish, Question
from minicpmo_ros.live.session import LIVE, Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.synthetic.model import SHAPES, write_llm
from minicpmo_ros.units import NS
from minicpmo_ros.voice.hearing import Tail

FORK = 1  # the first sequence behind that of the window
BEFORE = Question('and before that?')
LETTERS = 'root ::= [a-z]{6}'


@dataclass(frozen=True)
class Family:
    """What a model family writes around what it reads; a second of it has `tokens` of sound."""

    layout: str
    shape: str
    tokens: int
    speech: bool
    prefix: str
    unit: str  # what opens a unit that has a picture
    answer: str
    end: str  # of an answer


SYSTEM = 'You see and hear.'
OPEN_2_6 = f'<|im_start|>user\n{SYSTEM}<|im_end|>\n<|im_start|>user\n'
ANSWER_2_6 = '<|im_end|>\n<|im_start|>assistant\n'
FAMILIES = {
    '2.6': Family('minicpm-o-2.6/en', 'tiny', 25, False, OPEN_2_6, '<unit>', ANSWER_2_6, ''),
    '2.6 spoken': Family(
        'minicpm-o-2.6/en',
        'tiny',
        25,
        True,
        OPEN_2_6,
        '<unit>',
        ANSWER_2_6 + '<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>',
        '<|tts_eos|>',
    ),
    '4.5': Family(
        'minicpm-o-4.5/en',
        'tiny-4.5',
        10,
        False,
        f'<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n',
        '',
        ANSWER_2_6 + '<think>\n\n</think>\n\n',
        '',
    ),
}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Give a function that loads the tiny model of a shape, once."""
    loaded = {}

    def load(name):
        if name not in loaded:
            path = tmp_path_factory.mktemp('llm') / f'{name}.gguf'
            write_llm(path, SHAPES[name])
            loaded[name] = LanguageModel.load(path)
        return loaded[name]

    yield load
    for model in loaded.values():
        model.close()


@pytest.fixture
def open_session(models):
    """Open sessions; each notes the rows it has read by sequence, forks one after the other."""
    sessions = []

    def make(family='2.6', n_ctx=768, max_tokens=24):
        family = FAMILIES[family]
        options = SessionOptions(
            max_tokens=max_tokens,
            max_question_tokens=40,
            speech=family.speech,
            system_text=SYSTEM,
        )
        context_options = ContextOptions(n_ctx=n_ctx, threads=1)
        layout = find_layout(*family.layout.split('/'))
        session = Session(models(family.shape), layout, context_options, options)
        session.noted = {LIVE: [session.prompt.prefix], FORK: []}
        decode = session.context.decode

        def noting(parts):
            for part in parts:
                session.noted[part.sequences[0]].append(np.array(part.rows))
            return decode(parts)

        session.context.decode = noting
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.context.close()


def unit(second, tokens=25):
    rows = np.random.default_rng(second).standard_normal((64 + tokens, 256)).astype(np.float16)
    return Unit(second, rows[:64], (0, 0), rows[64:])


def ask(session, text, **fields):
    """Run a question to its end; return the answering."""
    answering = session.ask(Question(text, **fields))
    answering.complete()
    return answering


def conversation(session, family, *parts):
    """Rows of texts (templates), ids of tokens and units, as a whole template has them."""
    vocabulary, rows = session.model.vocabulary, []
    for part in parts:
        if isinstance(part, str):
            rows.append(session.model.token_rows.rows(vocabulary.encode_template(part)))
        elif isinstance(part, Unit):
            rows.append(
                conversation(
                    session,
                    family,
                    family.unit + '<image>',
                    part.image_rows,
                    '</image><|audio_start|>',
                    part.audio_rows,
                    '<|audio_end|>',
                )
            )
        elif isinstance(part, list):
            rows.append(session.model.token_rows.rows(part))
        else:
            rows.append(part.astype(np.float32))
    return np.concatenate(rows)


@pytest.mark.parametrize('name', FAMILIES)
def test_remembered_turns_are_read_exactly_as_a_conversation(open_session, name):
    family, session = FAMILIES[name], open_session(name)
    units = [unit(second, family.tokens) for second in range(3)]
    session.append(units[0])
    first = ask(session, 'what is it', grammar=LETTERS, remember=True)
    session.append(units[1])
    ask(session, 'not remembered', grammar=LETTERS)
    second = ask(session, 'and then?', choices=('the one and', 'red'), remember=True)
    session.append(units[2])
    session.noted[FORK].clear()
    last = ask(session, BEFORE.text)

    join = family.end + '<|im_end|>\n<|im_start|>user\n'
    live = [
        *(family.prefix, units[0]),
        *('what is it' + family.answer, first.ids, join, units[1]),
        *('and then?' + family.answer, second.ids, join, units[2]),
    ]
    assert first.ids and second.ids and len(first.answer.text) == 6
    np.testing.assert_array_equal(
        np.concatenate(session.noted[LIVE]), conversation(session, family, *live)
    )
    stopped = last.answer.finish == Finish.STOP
    np.testing.assert_array_equal(
        np.concatenate(session.noted[FORK]),
        conversation(
            session,
            family,
            BEFORE.text + family.answer,
            last.ids if stopped else last.ids[:-1],
        ),
    )
    assert [span.second for span in session.window.spans] == [0, None, 1, None, 2]
    assert session.context.next_position(LIVE) == session.window.end


def test_a_follow_up_sees_the_turn_before_it_as_a_fresh_conversation_would(open_session):
    def follow_up(text='what is it', choices=('blue',), remember=True):
        session = open_session()
        session.append(unit(0))
        ask(session, text, choices=choices, remember=remember)
        session.append(unit(1))
        return session, first_logits(session, BEFORE)

    session, remembered = follow_up()
    _, forgotten = follow_up(remember=False)
    assert divergence(remembered, forgotten) > 1e-3  # numerical noise is below 1e-5
    assert divergence(remembered, follow_up('is it red')[1]) > 1e-3  # the question counts
    assert divergence(remembered, follow_up(choices=('red',))[1]) > 1e-4  # so does the answer

    fresh, family = open_session(), FAMILIES['2.6']
    ids = ask(session, 'what is it', choices=('blue',)).ids
    whole = ['what is it' + family.answer, ids, '<|im_end|>\n<|im_start|>user\n', unit(1)]
    whole = conversation(fresh, family, unit(0), *whole, BEFORE.text + family.answer)
    for row in whole[:-1]:
        fresh.context.read(row[None], LIVE)
    expected = fresh.context.read(whole[-1:], LIVE, True)
    assert divergence(expected, remembered) < 1e-4


def test_what_is_not_remembered_leaves_no_trace_between_turns(open_session):
    asked, never = open_session(), open_session()
    for session in (asked, never):
        session.append(unit(0))
        ask(session, 'what is it', choices=('blue',), remember=True)
        if session is asked:
            ask(session, 'never mind', grammar=LETTERS)
            answering = session.ask(Question('taken back', remember=True))
            answering.step()
            answering.end(Finish.CANCELLED)  # only what was answered is remembered
        session.append(unit(1))
    assert asked.window.spans == never.window.spans
    assert divergence(first_logits(asked, BEFORE), first_logits(never, BEFORE)) < 1e-5


# --- answers that were interrupted, and questions that were heard --------------------------------


def what_follows(session):
    """Give the logits of a follow-up, and which turns and seconds it sees."""
    return first_logits(session, BEFORE), [span.second for span in session.window.spans]


@pytest.fixture
def cut_by_hand(open_session):
    """Give what follows a turn whose answer was only 'blue'."""
    session = open_session()
    session.append(unit(0))
    encode = session.model.vocabulary.encode
    session.remember(encode('what is it'), encode('blue'))
    return what_follows(session)


def test_of_an_interrupted_answer_only_what_was_said_is_remembered(open_session, cut_by_hand):
    session = open_session()
    session.append(unit(0))
    answering = ask(session, 'what is it', choices=('blue and a long way off',), remember=True)
    whole = what_follows(session)
    answering.turn.settle('blue')
    assert divergence(what_follows(session)[0], whole[0]) < 1e-5, 'not before it matters'
    answering.turn.settle('blue', waits=False)
    logits, seconds = what_follows(session)
    assert divergence(logits, cut_by_hand[0]) < 1e-4 and seconds == cut_by_hand[1] == [0, None]
    answering.turn.settle(waits=False)  # it goes on, and is said whole
    assert divergence(what_follows(session)[0], whole[0]) < 1e-4
    answering.turn.settle('', waits=False)
    assert what_follows(session)[1] == [0]


def test_a_cancelled_answer_is_remembered_if_some_of_it_was_said(open_session, cut_by_hand):
    session = open_session()
    session.append(unit(0))
    answering = session.ask(Question('what is it', remember=True))
    answering.step()
    answering.end(Finish.CANCELLED)
    for said in (None, ''):
        answering.turn.settle(said, waits=False)
        assert what_follows(session)[1] == [0]
    answering.turn.settle('blue')
    logits, seconds = what_follows(session)
    assert divergence(logits, cut_by_hand[0]) < 1e-4 and seconds == [0, None]


@pytest.mark.parametrize('times', [0.5, 2])
def test_what_was_said_of_an_answer_still_counts_in_a_context_of_another_size(
    open_session, cut_by_hand, times
):
    """The memory guard may resize it while the robot speaks."""
    session = open_session()
    session.append(unit(0))
    answering = ask(session, 'what is it', choices=('blue and a long way off',), remember=True)
    session.resize(int(times * session.context.n_ctx))
    answering.turn.settle('blue', waits=False)
    logits, seconds = what_follows(session)
    assert divergence(logits, cut_by_hand[0]) < 1e-4 and seconds == cut_by_hand[1]


def test_a_turn_that_has_left_the_window_does_not_come_back(open_session):
    for leave in (Session.reset, lambda session: session.forget(1)):
        session = open_session()
        session.append(unit(0))
        answering = ask(session, 'what is it', choices=('blue and red',), remember=True)
        leave(session)
        answering.turn.settle('blue', waits=False)
        answering.turn.settle('blue and', waits=False)
        assert None not in [span.second for span in session.window.spans]


@pytest.mark.parametrize('comes', [True, False])
def test_a_spoken_turn_is_remembered_behind_the_second_it_was_heard_in(open_session, comes):
    session = open_session()
    session.append(unit(0))
    heard = Tail(unit(1), NS + NS // 2)
    answering = session.ask(Question('', choices=('blue',), remember=True), tail=heard)
    answering.complete()
    assert answering.answer.remembered and what_follows(session)[1] == [0]
    if comes:
        session.append(unit(1))
    answering.turn.settle(waits=comes)
    session.append(unit(2))
    assert what_follows(session)[1] == ([0, 1, None, 2] if comes else [0, None, 2])


@pytest.mark.parametrize('seconds', [0, 12], ids=['turns alone', 'turns between units'])
def test_a_hundred_turns_stay_within_the_window(open_session, seconds):
    session = open_session(n_ctx=512)
    ends = []
    for turn in range(100):
        if turn < seconds:
            session.append(unit(turn))
        ask(session, f'what {turn}', grammar='root ::= [a-z]{2}', remember=True)
        spans = session.window.spans
        assert spans[-1].second is None and spans[-1].end <= session.window.capacity
        assert all(a.end == b.start for a, b in zip(spans, spans[1:]))
        assert session.context.next_position(LIVE) == session.window.end
        assert session.context.next_position(FORK) == 0
        ends.append(session.window.end)
    assert max(ends[50:]) <= max(ends[:50]) and len(spans) < 40
    assert np.isfinite(first_logits(session, BEFORE)).all()


def test_the_longest_turn_and_a_full_window_both_fit(open_session):
    """Asked, answered and remembered while every position but the reserve is taken."""
    session, second = open_session(n_ctx=512), 0
    while not session.evicted:
        session.append(unit(second))
        second += 1
    for _ in range(3):
        answering = ask(session, 'x' * 40, grammar='root ::= [a-z]{100}', remember=True)
        assert answering.answer.finish == Finish.LENGTH and len(answering.ids) == 24
        assert session.window.spans[-1].second is None
        session.append(unit(second))
        second += 1
        assert session.window.seconds[-1] == second - 1


# --- answers that go wrong ----------------------------------------------------------------------


def spoken(session, pick, **fields):
    """Answer with the tokens that `pick(n)` gives for the n-th."""
    answering = session.ask(Question('what', **fields))
    answering.sampler.pick = lambda _: pick(len(answering.ids))
    deltas = []
    while answering.answer is None:
        deltas.append(answering.step())
    return answering, deltas


def test_an_answer_of_nothing_is_an_answer_and_is_remembered(open_session):
    session = open_session()
    end = session.model.vocabulary.special_id('<|im_end|>')
    answering, deltas = spoken(session, lambda _: end, remember=True)
    given = answering.answer
    assert (given.text, given.finish, given.answer_tokens) == ('', Finish.STOP, 0)
    assert given.first_token_ms > 0 and given.tokens_per_second == 0
    join = 'what' + ANSWER_2_6 + '<|im_end|>\n<|im_start|>user\n'
    np.testing.assert_array_equal(
        np.concatenate(session.noted[LIVE]),
        conversation(session, FAMILIES['2.6'], OPEN_2_6 + join),
    )


def test_a_character_split_over_tokens_comes_whole_and_is_remembered_so(open_session):
    session = open_session(max_tokens=7)
    data = '日本'.encode()
    answering, deltas = spoken(session, lambda n: [*data, ord('.')][n], remember=True)
    assert answering.answer.text == '日本.' == ''.join(deltas)
    assert [delta for delta in deltas if delta] == ['日', '本', '.']
    assert answering.ids == [*data, ord('.')]


def test_a_model_that_likes_nothing_but_special_tokens_says_none(open_session, monkeypatch):
    session = open_session()
    vocabulary, read = session.model.vocabulary, session.read
    unspoken = np.array(sorted(vocabulary.unspoken_ids - session.prompt.stop_ids))

    def drunk(reads):
        (scores,) = read(reads)
        scores[:, unspoken] += 1000
        return [scores]

    monkeypatch.setattr(session, 'read', drunk)
    answering = ask(session, 'what')
    assert answering.answer.finish in (Finish.STOP, Finish.LENGTH)
    assert not set(answering.ids) & set(unspoken)


@pytest.mark.parametrize('phrase', [1, 5, 32])
def test_an_answer_that_repeats_itself_for_ever_is_ended(open_session, phrase):
    session = open_session(n_ctx=1024, max_tokens=400)
    said = [ord('a') + n % 26 for n in range(phrase - 1)] + [ord('.')]
    before = list(range(40, 97))  # no loop yet
    answering, _ = spoken(session, lambda n: (before + said * 400)[n])
    assert answering.answer.finish == Finish.LENGTH
    assert len(answering.ids) == len(before) + max(64, 4 * phrase)
    three_times = before + said * 3
    end = session.model.vocabulary.special_id('<|im_end|>')
    for text in (three_times, said * 3 + before):
        answering, _ = spoken(session, lambda n, text=text: [*text, end][n])
        assert answering.answer.finish == Finish.STOP and answering.ids == text
    # Under a grammar somebody asked for it.
    grammar = 'root ::= "a" root'
    assert len(ask(session, 'what', grammar=grammar, max_tokens=200).ids) > 64


def test_logits_that_are_not_numbers_end_the_answer_and_not_the_session(open_session, monkeypatch):
    session = open_session()
    session.append(unit(0))
    as_array, calls = np.ctypeslib.as_array, []

    def spoilt(*given):
        calls.append(1)
        array = as_array(*given).copy()
        array[7] = np.nan if len(calls) == 4 else array[7]
        return array

    answering = session.ask(Question('what', grammar='root ::= [a-z]{20}', remember=True))
    with monkeypatch.context() as patch:
        patch.setattr(np.ctypeslib, 'as_array', spoilt)
        with pytest.raises(EngineError, match='not finite'):
            while answering.answer is None:
                answering.step()
    given = answering.end(Finish.ERROR)
    assert len(given.text) > 0 and [span.second for span in session.window.spans] == [0]
    session.rebuild()
    session.append(unit(1))
    assert ask(session, 'what').answer.units == 1


def test_a_grammar_that_leads_nowhere_ends_in_words_with_what_was_said(open_session):
    session = open_session()
    answering = session.ask(Question('what', grammar='root ::= "ab" x\nx ::= x'))
    with pytest.raises(InputError, match='allows no token'):
        while answering.answer is None:
            answering.step()
    assert answering.end(Finish.ERROR).text == 'ab'
    with pytest.raises(InputError, match='no text'):
        session.ask(Question('what', grammar='root ::= x\nx ::= x'))
    assert session.context.next_position(FORK) == 0 and ask(session, 'what').answer.text


def test_positions_are_used_to_the_very_last(open_session):
    """The window is full to the position, and the longest question gets the longest answer."""
    session = open_session(n_ctx=512)
    while left := session.window.capacity - session.window.end:
        n = left - 2 if left <= 102 else 50
        rows = np.random.default_rng(n).standard_normal((n, 256)).astype(np.float16)
        session.append(Unit(n, None, (0, 0), rows))
    answering = ask(session, 'x' * 40, grammar='root ::= [a-z]{100}')
    assert len(answering.ids) == 24 and not session.evicted
    # The last token is said and not read.
    assert answering.answer.prompt_tokens + 24 == session.context.n_ctx


@pytest.mark.parametrize('at', [1, 2, 5], ids=['the question', 'its end', 'the answer'])
def test_a_context_that_is_full_ends_the_answer_alone(open_session, monkeypatch, at):
    """Room is kept, so llama.cpp never says so; if it did, nothing but the answer would end."""
    session, decode, calls = open_session(), llama.llama_decode, []
    session.shared.options = replace(session.shared.options, n_batch=32)
    session.rebuild()
    session.append(unit(0))
    answering = session.ask(Question('x' * 40, grammar='root ::= [a-z]{20}', remember=True))
    with monkeypatch.context() as patch:
        patch.setattr(
            llama,
            'llama_decode',
            lambda *given: calls.append(1) or (1 if len(calls) == at else decode(*given)),
        )
        with pytest.raises(ContextFullError, match='positions are needed'):
            while answering.answer is None:
                answering.step()
    given = answering.end(Finish.ERROR)
    assert given.answer_tokens == len(answering.ids) == max(0, at - 2)
    assert session.context.next_position(FORK) == 0
    assert [span.second for span in session.window.spans] == [0]
    assert ask(session, 'x' * 40, grammar='root ::= [a-z]{20}').answer.finish == Finish.STOP
