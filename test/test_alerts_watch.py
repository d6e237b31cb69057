# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions: which events a course of probabilities gives, and whose turn it is."""

import math

import pytest

from minicpmo_ros.alerts.monitor import AlertReading, Condition, Kind, RuleMonitor
from minicpmo_ros.alerts.rules import AlertRule
from minicpmo_ros.alerts.watch import AlertWatch, Turns
from minicpmo_ros.errors import InputError

START = 1_750_000_000
YES, NO, MAYBE = AlertReading(3.0), AlertReading(-3.0), AlertReading(0.0)  # p 0.95, 0.05, 0.5
OTHER = AlertReading(3.0, mass=0.2)
BOTH = {'image', 'audio'}


def rule(name='r', **more) -> AlertRule:
    return AlertRule(name, 'Q?', **more)


def told(events) -> list:
    """Return (kind, end of its second, start of the condition, at_start) from START on."""
    return [(e.kind.name, e.at_s - START, e.begin_s - START, e.at_start) for e in events]


def course(text: str, first: int = 0) -> list:
    """Return (end of the second, reading) for every letter: yes, no, maybe, other, ' ' none."""
    readings = {'y': YES, 'n': NO, 'm': MAYBE, 'o': OTHER}
    return [
        (START + first + i + 1, readings[letter]) for i, letter in enumerate(text) if letter != ' '
    ]


def follow(text: str, **fields) -> list:
    monitor = RuleMonitor(rule(**fields))
    return [event for at_s, reading in course(text) for event in monitor.read(at_s, reading)]


def test_a_condition_begins_when_it_was_seen_to_begin_and_ends_after_until_s():
    events = follow('nnyyynnn')
    assert told(events) == [('BEGIN', 3, 2, False), ('END', 7, 2, False)]
    assert events[0].probability == pytest.approx(1 / (1 + math.exp(-3)))


def test_a_condition_that_holds_at_the_start_says_so():
    assert told(follow('yyy', after_s=2)) == [('BEGIN', 2, 0, True)]
    assert told(follow('nyy')) == [('BEGIN', 2, 1, False)]
    assert told(follow('myy')) == [('BEGIN', 2, 1, False)]


def test_between_the_thresholds_nothing_changes():
    assert told(follow('mmmm')) == []
    assert told(follow('nymmmmnmn')) == [('BEGIN', 2, 1, False)]  # no two seconds at off in a row


def test_after_s_asks_for_seconds_in_a_row():
    assert told(follow('nyynyyyn', after_s=3, until_s=1)) == [
        ('BEGIN', 7, 4, False),
        ('END', 8, 4, False),
    ]


def test_a_long_state_is_told_again_every_max_s():
    events = told(follow('nyyyyyyynn', max_s=3))
    assert [(kind, at_s) for kind, at_s, *_ in events] == [
        ('BEGIN', 2), ('ONGOING', 5), ('ONGOING', 8), ('END', 10),
    ]  # fmt: skip


@pytest.mark.parametrize('text', ['yn' * 60, 'yyn' * 40, 'ynn' * 40, 'y n' * 40, 'yoon' * 30])
@pytest.mark.parametrize('cooldown_s', [5, 10, 30])
def test_an_input_that_flaps_gives_one_alert_in_a_cooldown_at_most(text, cooldown_s):
    events = follow(text, cooldown_s=cooldown_s, until_s=1)
    spoken = [e.at_s for e in events if e.kind in (Kind.BEGIN, Kind.UNKNOWN)]
    assert len(spoken) >= 2
    assert all(later - at >= cooldown_s for at, later in zip(spoken, spoken[1:]))


def test_a_condition_that_outlasts_the_cooldown_is_told_behind_it():
    assert told(follow('nynyyyyyy', until_s=1, cooldown_s=4)) == [
        ('BEGIN', 2, 1, False),
        ('END', 3, 1, False),
        ('BEGIN', 7, 3, False),
    ]


def test_a_gap_loses_sight_and_never_becomes_no():
    events = follow('nyy    yy')
    assert told(events) == [('BEGIN', 2, 1, False), ('END', 6, 1, False), ('BEGIN', 8, 7, True)]
    assert events[1].reason == 'lost sight: nothing was read for 3 s'
    events = follow('nn    nn')
    assert told(events) == [('UNKNOWN', 5, 0 - START, False)]


def test_a_missing_second_or_two_are_no_gap():
    assert told(follow('nyy  yy')) == [('BEGIN', 2, 1, False)]


def test_sight_is_lost_when_time_passes_without_a_reading():
    monitor = RuleMonitor(rule(period_s=2))
    monitor.read(START, NO)
    assert monitor.expire(START + 6) == []
    assert told(monitor.expire(START + 6.5)) == [('UNKNOWN', 6, -START, False)]
    assert monitor.expire(START + 60) == []
    assert monitor.state is Condition.UNKNOWN


def test_time_that_goes_back_loses_sight_and_forgets_the_cooldown():
    monitor = RuleMonitor(rule(cooldown_s=1000, until_s=1))
    for at_s, reading in course('ynn', first=500):
        monitor.read(at_s, reading)
    events = [e for at_s, reading in course('nyy') for e in monitor.read(at_s, reading)]
    assert told(events)[-1] == ('BEGIN', 2, 1, False)


def test_a_model_that_would_say_something_else_is_unknown_and_not_no():
    events = follow('nyyooyy')
    assert told(events) == [('BEGIN', 2, 1, False), ('END', 5, 1, False), ('BEGIN', 6, 5, True)]
    assert 'the model would say something else (mass 0.20)' in events[1].reason
    assert told(follow('nyyoyy')) == [('BEGIN', 2, 1, False)]  # a second of it is none
    assert follow('oooo') == []


def test_on_change_tells_each_new_answer_once():
    monitor = RuleMonitor(rule(on_change=True, answers=('bell', 'siren'), after_s=2))
    events = []
    for i, answer in enumerate(['bell'] * 3 + ['siren', 'bell'] + ['siren'] * 3):
        events += monitor.read(START + i + 1, AlertReading(1.0, 1.0, answer))
    assert [(e.kind, e.text, e.at_start) for e in events] == [
        (Kind.CHANGE, 'bell', True),
        (Kind.CHANGE, 'siren', False),
    ]
    assert [e.at_s - START for e in events] == [2, 7]
    assert [e.kind for e in monitor.lose(START + 8, 'the window was reset')] == [Kind.UNKNOWN]
    events = monitor.read(START + 9, AlertReading(1.0, 1.0, 'siren'))
    events += monitor.read(START + 10, AlertReading(1.0, 1.0, 'siren'))
    assert [(e.text, e.at_start) for e in events] == [('siren', True)]


def test_smoothing_takes_the_edge_off_one_second():
    assert told(follow('nnnynnn', half_life_s=2)) == []
    assert [kind for kind, *_ in told(follow('nnnyyyyy', half_life_s=1))] == ['BEGIN']


def test_calibration_moves_the_probability():
    assert told(follow('nmmm', bias=2.0)) == [('BEGIN', 2, 1, False)]


# --- turns ----------------------------------------------------------------------------------


def run_turns(rules, budget_ms, row_ms, seconds=200, most=math.inf, rows=None) -> dict:
    """Return {id: seconds it was evaluated in}; rows: {id: that it reads}, else one."""
    turns, read = Turns(budget_ms), {r.id: [] for r in rules}
    rows = rows or dict.fromkeys(read, 1)
    for at_s in range(seconds):
        waiting = [
            (r, at_s - read[r.id][-1] if read[r.id] else math.inf, rows[r.id]) for r in rules
        ]
        chosen = turns.choose(at_s, waiting, most)
        n_rows = sum(rows[r.id] for r in chosen)
        turns.book(n_rows, row_ms * n_rows)
        for r in chosen:
            read[r.id].append(at_s)
    return read


def test_without_a_limit_every_rule_has_its_period():
    rules = [rule('a'), rule('b', period_s=3)]
    read = run_turns(rules, math.inf, 50, 30)
    assert read == {'a': list(range(30)), 'b': list(range(0, 30, 3))}


@pytest.mark.parametrize('cost_ms', [3, 70, 250, 1600])
def test_no_rule_waits_for_ever_and_the_budget_holds(cost_ms):
    rules = [rule(f'r{n}', priority=n % 3) for n in range(8)]
    read = run_turns(rules, 200, cost_ms, 1000)
    spent_ms = cost_ms * sum(map(len, read.values()))
    assert spent_ms <= 200 * 1000 + 2 * cost_ms
    assert spent_ms >= min(0.8 * 200 * 1000, 0.9 * cost_ms * 8 * 1000)  # and it is used
    longest = {name: max(b - a for a, b in zip(at, at[1:])) for name, at in read.items()}
    fair_s = max(1, 8 * cost_ms / 200)
    assert max(longest.values()) <= 4 * fair_s + 4


def test_a_higher_priority_gets_more_turns_and_the_lowest_some():
    rules = [rule('low'), rule('high', priority=3)]
    read = run_turns(rules, 100, 100, 400)
    assert len(read['high']) > 2 * len(read['low']) > 100


def test_at_most_so_many_go_together():
    read = run_turns([rule(f'r{n}') for n in range(8)], math.inf, 1, 100, most=4)
    assert {len(at) for at in read.values()} == {50}


def test_an_unknown_cost_is_tried_with_one_rule():
    turns = Turns(200.0)
    assert len(turns.choose(0, [(rule('a'), math.inf, 9), (rule('b'), math.inf, 9)])) == 1


def test_a_long_question_takes_as_much_of_the_budget_as_it_reads():
    short, long = [rule(f's{n}') for n in range(4)], [rule(f'l{n}') for n in range(4)]
    rows = {r.id: 10 for r in short} | {r.id: 390 for r in long}
    read = run_turns([*short, *long], 200, 0.5, 400, rows=rows)
    spent_ms = [
        sum(0.5 * rows[name] for name, at in read.items() if at_s in at) for at_s in range(400)
    ]
    # A long one may go with the second for which the budget has room; never two.
    assert max(spent_ms[1:]) <= 200 + 195
    assert 0.9 * 200 * 400 <= sum(spent_ms) <= 200 * 400 + 2 * 195
    assert min(map(len, read.values())) >= 80  # a round of all takes four seconds


def test_rules_that_come_later_are_paid_out_of_what_a_row_has_cost():
    turns, short = Turns(200.0), rule('short')
    for at_s in range(10):
        turns.book(10 * len(turns.choose(at_s, [(short, 1.0, 10)])), 5.0)
    late = [(rule(f'l{n}'), math.inf, 390) for n in range(8)]
    chosen = turns.choose(10, [*late, (short, 1.0, 10)])
    assert 1 <= len(chosen) <= 2  # what was saved lasts for two of the eight


# --- the watch ------------------------------------------------------------------------------


def take_turns(n_rules: int, seconds: int) -> tuple:
    """Watch what holds all the time with rules of which one a second can be paid for."""
    watch = AlertWatch([rule(f'r{n}') for n in range(n_rules)], Turns(100.0))
    events = []
    for second in range(START, START + seconds):
        asked = watch.begin_second(second, BOTH)
        events += watch.end_second({r.id: YES for r in asked}, 100.0 * len(asked), len(asked))
    return watch, events


def test_a_rule_that_waits_for_its_turn_does_not_lose_sight():
    watch, events = take_turns(6, 60)
    assert [(e.rule, e.kind) for e in events] == [(f'r{n}', Kind.BEGIN) for n in range(6)]
    assert {status.period_s for status in watch.states()} == {6.0}
    lost = watch.expire(START + 60, 10)  # where no seconds come any more
    assert {(e.kind, e.reason[:30]) for e in lost} == {
        (Kind.END, 'lost sight: nothing was read f')
    }
    assert {e.at_s for e in lost} == {START + 63}


def test_a_rule_whose_turn_comes_too_rarely_loses_sight():
    _, events = take_turns(14, 60)
    reasons = {e.reason for e in events if e.kind is Kind.END}
    assert reasons == {'lost sight: nothing was read for 10 s'}


def play(watch: AlertWatch, text: str, first: int = 0, senses=BOTH, unchanged=frozenset()) -> list:
    """Let all rules read a letter a second, as `course`; return (rule, kind, at) of the events."""
    events = []
    for at_s, reading in course(text, first):
        rules = watch.begin_second(at_s - 1, set(senses), unchanged)
        events += watch.end_second({r.id: reading for r in rules})
    return [(e.rule, e.kind.name, e.at_s - START) for e in events]


def test_rules_are_told_in_the_order_of_the_user():
    watch = AlertWatch([rule('b'), rule('a')])
    assert play(watch, 'ny') == [('b', 'BEGIN', 2), ('a', 'BEGIN', 2)]
    assert [s.state for s in watch.states()] == [Condition.ACTIVE] * 2


def test_a_reset_ends_what_holds_and_what_follows_is_at_start():
    watch = AlertWatch([rule()])
    play(watch, 'nyy')
    (end,) = watch.reset('the window was reset')
    assert (end.kind, end.reason) == (Kind.END, 'lost sight: the window was reset')
    assert play(watch, 'y', 3) == [('r', 'BEGIN', 4)]


def test_sight_is_lost_after_the_newest_second_and_not_after_one_of_another_time():
    watch = AlertWatch([rule()])
    play(watch, 'ny', 500)
    before_s = watch.newest_end_s
    assert watch.expire(before_s, 3.0) == []
    play(watch, 'ny')  # the clock was set back, and who calls has not heard of it
    assert watch.expire(before_s, 10.0) == []
    assert told(watch.expire(watch.newest_end_s, 3.5)) == [('END', 5, 1, False)]
    watch.reset('time went back')
    assert watch.newest_end_s is None


def test_seconds_that_go_back_end_what_holds():
    watch = AlertWatch([rule()])
    play(watch, 'nyy', 100)
    assert play(watch, 'ny') == [('r', 'END', 103), ('r', 'BEGIN', 2)]


def test_a_dead_camera_is_not_read_as_no():
    watch = AlertWatch([rule('any'), rule('ear', senses=('audio',))])
    play(watch, 'ny')
    assert play(watch, 'yyyyy', 2, {'audio'}) == [('any', 'END', 5)]
    assert [s.state for s in watch.states()] == [Condition.UNKNOWN, Condition.ACTIVE]


def test_what_was_lost_in_a_gap_is_told_before_what_begins_behind_it():
    watch = AlertWatch([rule('a'), rule('b')])
    play(watch, 'ny')
    assert play(watch, 'y', 9) == [
        ('a', 'END', 5), ('b', 'END', 5), ('a', 'BEGIN', 10), ('b', 'BEGIN', 10),
    ]  # fmt: skip


def test_a_robot_with_one_sense_is_watched():
    assert play(AlertWatch([rule()]), 'ny', senses={'image'}) == [('r', 'BEGIN', 2)]
    assert play(AlertWatch([rule(senses=('audio',))]), 'ny', senses={'image'}) == []


def test_what_has_not_changed_is_not_evaluated_again():
    watch = AlertWatch([rule('eye', senses=('image',)), rule('both')])
    play(watch, 'n')
    play(watch, 'nnnn', 1, unchanged={'image'})
    eye, both = watch.states()
    assert (eye.evaluated, eye.reused) == (1, 4)
    assert (both.evaluated, both.reused) == (5, 0)
    play(watch, 'n' * 20, 5, unchanged=BOTH)
    assert [s.evaluated for s in watch.states()] == [3, 6]  # after ten periods


def test_what_has_changed_since_the_reading_is_evaluated_though_it_stays_now():
    watch = AlertWatch([rule('slow', period_s=2)])
    play(watch, 'n')
    play(watch, 'y', 1)  # it changes while the rule is not due
    assert play(watch, 'yy', 2, unchanged=BOTH) == [('slow', 'BEGIN', 3)]
    assert (watch.states()[0].evaluated, watch.states()[0].reused) == (2, 0)
    assert play(watch, 'nn', 4, unchanged=BOTH) == []  # from here on it has not
    assert (watch.states()[0].evaluated, watch.states()[0].reused) == (2, 1)


def test_a_change_in_a_second_that_could_not_be_read_is_evaluated_later():
    watch = AlertWatch([rule()])
    play(watch, 'n')
    assert watch.begin_second(START + 1, BOTH)  # and nothing comes of it
    assert watch.end_second({}) == []
    assert play(watch, 'y', 2, unchanged=BOTH) == [('r', 'BEGIN', 3)]


def test_a_paused_rule_ends_and_goes_on_as_new():
    watch = AlertWatch([rule('a'), rule('b')])
    play(watch, 'ny')
    (end,) = watch.pause('a')
    assert (end.rule, end.kind, end.reason) == ('a', Kind.END, 'paused')
    assert play(watch, 'yyyyyy', 2) == []
    assert [s.paused for s in watch.states()] == [True, False]
    assert watch.pause('', paused=False) == []
    assert play(watch, 'y', 8) == [('a', 'BEGIN', 9)]


def test_rules_are_added_removed_and_replaced_while_it_runs():
    watch = AlertWatch([rule('a')], most_rules=2)
    play(watch, 'ny')
    watch.add(rule('b'))
    with pytest.raises(InputError, match="There is an alert 'b' already"):
        watch.add(rule('b'))
    with pytest.raises(InputError, match='There are 3 alerts, at most 2'):
        watch.add(rule('c'))
    assert [e.reason for e in watch.add(rule('a', on=0.99), replace=True)] == ['replaced']
    assert [e.kind for e in watch.remove('b')] == []
    with pytest.raises(InputError, match="There is no alert 'b'. There are: a."):
        watch.remove('b')
    assert [(r.id, r.on) for r in watch.rules] == [('a', 0.99)]


def test_a_reading_for_a_rule_that_was_replaced_meanwhile_is_dropped():
    watch = AlertWatch([rule('a')])
    rules = watch.begin_second(START, BOTH)
    watch.add(rule('a', positive=('no',), negative=('yes',)), replace=True)
    assert watch.end_second({r.id: YES for r in rules}) == []
    assert watch.states()[0].evaluated == 0


def test_the_period_achieved_and_a_problem_are_told():
    watch = AlertWatch([rule('a'), rule('b')])
    watch.set_problem('b', 'too long')
    for second in range(START, START + 9, 3):
        asked = watch.begin_second(second, BOTH)
        assert [r.id for r in asked] == ['a']
        watch.end_second({'a': NO})
    a, b = watch.states()
    assert (a.period_s, b.period_s, b.problem) == (3.0, 0.0, 'too long')
