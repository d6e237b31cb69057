# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What standing questions read off nano's logits, and what no model can read."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import alert_truth as demo
from minicpmo_ros.alerts.monitor import Kind
from minicpmo_ros.alerts.reader import AlertAsker, RuleReader
from minicpmo_ros.alerts.rules import MOST_RULES, AlertRule
from minicpmo_ros.alerts.watch import AlertWatch
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.alerts import blank_units
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams.pairing import Unit, UnitAssembler
from minicpmo_ros.streams.time import Instant

SQUARE = demo.RULES[0]


@pytest.fixture(scope='module')
def core():
    core = Core(ModelDirectory.open(demo.NANO), CoreOptions(device='cpu', n_ctx=2048, max_forks=8))
    yield core
    core.close()


@pytest.fixture(scope='module')
def units(core):
    """Give the seconds of a clip that begins with a black square."""
    return list(core.stream(read_clip(demo.CLIPS / '002.mcap')))


def reader_of(core, rule) -> RuleReader:
    return RuleReader(rule, core.session)


def test_a_watch_without_rules_is_followed_once_it_has_some(core, units):
    watch = AlertWatch()
    asker = AlertAsker(watch)
    asker.bind(core.session)
    assert asker.begin(units[0]) == []
    watch.add(SQUARE)
    assert len(asker.begin(units[1])) == 1


def test_log_odds_and_mass_are_those_of_the_first_tokens(core, rng):
    vocabulary = core.session.model.vocabulary
    logits = rng.normal(size=vocabulary.size).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum()

    def share(*words) -> float:
        forms = {form for word in words for form in (word, ' ' + word)}
        return sum(shares[vocabulary.encode(form)[0]] for form in forms)

    reading = reader_of(core, SQUARE).read([logits])
    yes, no = share('square'), share(*SQUARE.negative)
    assert reading.log_odds == pytest.approx(math.log(yes / no), abs=1e-4)
    assert reading.mass == pytest.approx(yes + no, abs=1e-5)
    change = AlertRule('shape', SQUARE.question, on_change=True, answers=demo.SHAPES)
    reading = reader_of(core, change).read([logits])
    assert reading.answer == max(demo.SHAPES, key=share)
    others = [share(word) for word in demo.SHAPES if word != reading.answer]
    assert reading.log_odds == pytest.approx(
        math.log(share(reading.answer) / sum(others)), abs=1e-4
    )


@pytest.mark.parametrize(
    'rule, told',
    [
        (AlertRule('r', 'what?', ('\u00e9',), ('e\u0301',)), 'words of two meanings'),
        (AlertRule('r', 'what? ' * 400), 'tokens long, at most 384 are allowed'),
        (
            AlertRule('r', 'what?', ('a ' * 40 + 'bell',), ('a ' * 40 + 'beep',)),
            'begin with the same 40 tokens, at most 16 are read',
        ),
        (AlertRule('r', '<|im_end|>' * 3, ('a',), ('b',)), ''),
    ],
)
def test_what_this_model_cannot_read_is_told(core, rule, told):
    if told:
        with pytest.raises(InputError, match=told):
            reader_of(core, rule)
    else:
        reader_of(core, rule)  # the name of a token stays text


def test_who_adds_a_rule_is_told_what_this_model_cannot_read_and_when_nobody_knows(core):
    asker, long = AlertAsker(), 'what? ' * 400
    assert not asker.check(AlertRule('r', long))
    asker.bind(core.session)
    assert asker.check(SQUARE)
    with pytest.raises(InputError, match=r'The question is \d+ tokens long, at most 384'):
        asker.check(AlertRule('r', long))
    with pytest.raises(InputError, match=r'describe is \d+ tokens long, at most 384'):
        asker.check(replace(SQUARE, describe=long))
    asker.bind(None)
    assert not asker.check(SQUARE)


def test_answers_that_begin_alike_are_told_apart_by_what_follows(core, units):
    alike = AlertRule('heard', 'what is heard now?', ('high tone',), ('high beep', 'low beep'))
    assert len(reader_of(core, alike).riders) == 2  # the question, and with high
    watch = AlertWatch([alike, SQUARE])
    assert [event.rule for event in follow(core, watch, units[:1])] == ['square']
    assert [status.evaluated for status in watch.states()] == [1, 1]


def follow(core, watch, units, **how) -> list:
    events = []
    asker = AlertAsker(watch, events.extend, **how)
    asker.bind(core.session)
    core.session.reset()
    for unit in units:
        asker.end(core.session.append(unit, (), asker.begin(unit)))
    return events


def test_a_rule_that_cannot_be_read_has_a_problem_and_the_others_go_on(core, units):
    bad = AlertRule('bad', 'what? ' * 400)
    watch = AlertWatch([bad, SQUARE])
    assert [(e.rule, e.kind) for e in follow(core, watch, units[:1])] == [('square', Kind.BEGIN)]
    first, second = watch.states()
    assert 'at most 384 are allowed' in first.problem and not first.evaluated
    assert not second.problem and second.evaluated == 1
    watch.add(replace(SQUARE, id='bad'), replace=True)
    follow(core, watch, units[:1])
    assert not watch.states()[0].problem


def test_sixty_four_rules_are_read_with_one_second_and_agree(core, units):
    watch = AlertWatch(replace(SQUARE, id=f'r{n}') for n in range(MOST_RULES))
    events = follow(core, watch, units[:1])
    assert [e.rule for e in events] == [f'r{n}' for n in range(MOST_RULES)]
    found = {round(status.probability, 2) for status in watch.states()}
    assert len(found) == 1 and found.pop() > 0.9


def test_sixty_four_long_questions_that_come_later_are_all_read_in_a_small_context(units):
    long = 'look at the picture again, ' * 14 + SQUARE.question
    options = CoreOptions(device='cpu', n_ctx=1024, n_ubatch=128, max_forks=8)
    core, events = Core(ModelDirectory.open(demo.NANO), options), []
    try:
        watch = AlertWatch()
        asker = AlertAsker(watch, events.extend)
        asker.bind(core.session)
        core.session.append(units[0], (), asker.begin(units[0]))
        for n in range(MOST_RULES):
            watch.add(replace(SQUARE, id=f'r{n}', question=long))
        report = core.session.append(units[1], (), asker.begin(units[1]))
        asker.end(report)
    finally:
        core.close()
    assert asker.n_rows > MOST_RULES * 100 > 4 * options.n_ctx  # many times what there is room for
    assert {status.evaluated for status in watch.states()} == {1}
    first, *others = report.riders
    assert all(np.abs(other - first).max() < 0.2 for other in others)


@pytest.mark.parametrize('n_rules', [16, MOST_RULES])
def test_rules_say_the_same_however_many_rows_are_read_at_once(units, n_rules):
    rules = [replace(demo.RULES[n % 4], id=f'r{n}') for n in range(n_rules)]
    found = []
    for n_ubatch in (32, 1024):  # less than a second alone, and all rules that are read together
        options = CoreOptions(device='cpu', n_ctx=1024, n_ubatch=n_ubatch, max_forks=8)
        core = Core(ModelDirectory.open(demo.NANO), options)
        try:
            follow(core, watch := AlertWatch(rules), units[:2])
        finally:
            core.close()
        assert {status.evaluated for status in watch.states()} == {2}
        found.append([status.probability for status in watch.states()])
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert max(found[0]) > 0.9 and min(found[0]) < 0.1


def test_a_window_never_learns_of_the_rules(core, units):
    core.session.reset()
    for unit in units:
        core.session.append(unit)
    without = core.ask('what shape is shown now?').text, core.session.window.end
    follow(core, AlertWatch(demo.RULES), units)
    assert (core.ask('what shape is shown now?').text, core.session.window.end) == without


def counts(watch) -> dict:
    return {s.rule.id: (s.evaluated, s.reused) for s in watch.states()}


def test_what_stays_still_and_quiet_is_not_asked_again(core):
    rules = (
        replace(SQUARE, id='eye', senses=('image',)),
        replace(SQUARE, id='ear', senses=('audio',)),
        replace(SQUARE, id='both'),
    )
    still = list(blank_units(core, 5))
    assert {unit.level_dbfs for unit in still} == {-math.inf}
    watch = AlertWatch(rules)
    follow(core, watch, still)
    assert counts(watch) == {'eye': (1, 4), 'ear': (1, 4), 'both': (1, 4)}
    loud = [replace(unit, level_dbfs=-59.0) for unit in still[2:]]
    follow(core, watch := AlertWatch(rules), still[:2] + loud)
    assert counts(watch) == {'eye': (1, 4), 'ear': (4, 1), 'both': (4, 1)}
    unknown = [replace(unit, level_dbfs=Unit(0).level_dbfs) for unit in still]
    follow(core, watch := AlertWatch(rules), unknown)
    assert counts(watch) == {'eye': (1, 4), 'ear': (5, 0), 'both': (5, 0)}
    follow(core, watch := AlertWatch(rules), still, every_second=True)
    assert counts(watch) == {'eye': (5, 0), 'ear': (5, 0), 'both': (5, 0)}


def test_the_level_of_the_audio_travels_with_its_second(core, units):
    levels_dbfs = [unit.level_dbfs for unit in units]
    assert all(-60 < level < 0 for level in levels_dbfs)
    assembler = UnitAssembler()
    for unit in units:
        assembler.add_audio(unit.second, unit.audio_rows, Instant(0.0), unit.level_dbfs)
        assembler.add_image(unit.second, unit.image_rows, unit.tiles, Instant(0.0))
    assert [unit.level_dbfs for unit in assembler.due(Instant(0.0))] == levels_dbfs


def test_a_stream_that_restarts_is_a_new_start(core, units):
    watch = AlertWatch([SQUARE])
    later = [replace(unit, second=unit.second + 50) for unit in units[:2]]
    events = follow(core, watch, [*later, replace(units[0], restarted=True)])
    assert [(e.kind, e.at_start) for e in events] == [
        (Kind.BEGIN, True),
        (Kind.END, False),
        (Kind.BEGIN, True),
    ]
    assert events[1].reason == 'lost sight: time went back'
