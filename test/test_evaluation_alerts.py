# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions over nano's clips, and how they are scored, fitted and told."""

import dataclasses
import json
import math
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from scored_clips import START_S, write_long_clip, write_test_clip

from benchmarks import alert_truth as demo
from benchmarks.alert_graph import joined
from minicpmo_ros.alerts.monitor import Event, Kind
from minicpmo_ros.alerts.rules import AlertRule, read_rules, write_rules
from minicpmo_ros.cli.main import main
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.alert_scores import (
    AlertTruth,
    RuleScore,
    TrueAlert,
    held_seconds,
    score,
    table,
)
from minicpmo_ros.evaluation.alerts import (
    AlertRun,
    WatchedSecond,
    blank_units,
    fit_run,
    watch_units,
)
from minicpmo_ros.evaluation.bags.clip import LONGEST_WINDOW_S
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory

CLIPS = ('002.mcap', '006.mcap', '008.mcap')  # 13 seconds


def event(at_s, kind=Kind.BEGIN, text='') -> Event:
    return Event('r', kind, at_s, 0.9, 1.0, at_s - 1, text=text)


def scored(events, spans, seconds=60) -> RuleScore:
    found = RuleScore('r')
    found.add(watched(events, seconds), [TrueAlert('r', 'c', *span) for span in spans])
    return found


def watched(events, seconds=60, rule='r', mass=1.0) -> list:
    """Return WatchedSeconds, with all events in the first of them."""
    first = WatchedSecond('c', 0, rule, 0.0, 0.5, mass, '', 'active', tuple(events))
    return [dataclasses.replace(first, second=s, events=first.events * (s == 0))
            for s in range(seconds)]  # fmt: skip


def counts(found: RuleScore) -> tuple:
    return found.right, found.late, found.missed, found.repeated, found.false


@pytest.mark.parametrize(
    'at_s, spans, expected',
    [
        ([11], [(10, 20)], (1, 0, 0, 0, 0)),
        ([12], [(10, 20)], (1, 0, 0, 0, 0)),
        ([13], [(10, 20)], (0, 1, 0, 0, 0)),
        ([8], [(10, 20)], (1, 0, 0, 0, 0)),
        ([7], [(10, 20)], (0, 0, 1, 0, 1)),
        ([11, 16], [(10, 20)], (1, 0, 0, 1, 0)),
        ([11, 13], [(10, 11), (12, 13)], (2, 0, 0, 0, 0)),
        ([13], [(10, 11), (12, 13)], (1, 0, 1, 0, 0)),
        ([5, 40], [], (0, 0, 0, 0, 2)),
        ([], [(10, 20)], (0, 0, 1, 0, 0)),
    ],
)
def test_begins_are_right_within_two_seconds_and_each_is_counted_once(at_s, spans, expected):
    assert counts(scored([event(at) for at in at_s], spans)) == expected


def test_truth_of_seconds_that_were_not_watched_is_told():
    found = scored([event(11)], [(10, 20), (59, 70), (60, 70), (-5, 0), (-5, 1)])
    assert (found.begins, found.missed, found.outside) == (5, 4, 2)
    assert 'r: of 2 of 5 begins no second was watched' in table([found])
    assert 'no second was watched' not in table([scored([], [(10, 20)])])


def test_truth_that_is_told_twice_counts_once():
    found = scored([event(11)], [(10, 20), (10, 20)])
    assert (found.begins, *counts(found)) == (1, 1, 0, 0, 0, 0)


def test_only_begins_and_changes_are_counted():
    kinds = (Kind.END, Kind.ONGOING, Kind.UNKNOWN)
    assert counts(scored([event(30, kind) for kind in kinds], [])) == (0, 0, 0, 0, 0)


def test_a_change_is_right_if_it_tells_the_right_answer():
    truth = [TrueAlert('r', 'c', 10, 20, answer='bell')]
    for text, expected in (('bell', (1, 0, 0, 0, 0)), ('siren', (0, 0, 1, 0, 1))):
        found = RuleScore('r')
        found.add(watched([event(11, Kind.CHANGE, text)]), truth)
        assert counts(found) == expected


def test_answers_of_which_the_truth_says_nothing_are_not_judged():
    rule = AlertRule('r', 'Q?', on_change=True, answers=('bell', 'siren'))
    seconds = watched([event(11, Kind.CHANGE, 'bell')])
    (found,) = score((rule,), AlertTruth((), ('c',), Path()), seconds)
    assert not found.false and '| r | - | - |' in table([found])
    assert 'r: alerts_truth says nothing of it' in table([found])


def test_words_that_the_model_would_not_say_are_told_and_nothing_is_fitted_to_them():
    rule, truth = AlertRule('r', 'Q?'), AlertTruth((), ('c',), Path())
    seconds = watched([], mass=0.2)
    told = table(score((rule,), truth, seconds))
    assert (
        'r: in 60 of 60 seconds the model would say something else' in told and 'nan' not in told
    )
    assert not len(held_seconds(truth, rule, seconds)[0])
    (fitted,) = fit_run(AlertRun((rule,), seconds, truth, {'r': 3.0}, {})).fitted
    assert fitted.after == rule and 'the rule stays as it is' in '\n'.join(fitted.lines())
    assert 'something else' not in table(score((rule,), truth, watched([])))


def test_false_alerts_have_an_interval_even_if_there_are_none():
    rate, low, high = scored([], [], 3600).false_per_hour
    assert (rate, low) == (0, 0) and high == pytest.approx(3.0, abs=0.01)
    rate, low, high = scored([event(5)] * 10, [], 7200).false_per_hour
    assert rate == 5 and low == pytest.approx(4.795 / 2, abs=0.01)
    assert high == pytest.approx(18.39 / 2, abs=0.01)


@pytest.fixture
def truth_file(tmp_path):
    write_test_clip(tmp_path / 'a.mcap', 3)
    write_test_clip(tmp_path / 'b.mcap', 2)

    def write(entries, **more):
        path = tmp_path / 'truth.yaml'
        path.write_text(
            yaml.safe_dump({'format': 'minicpmo_ros questions 1', 'alerts_truth': entries, **more})
        )
        return path

    return write


FALL = {'id': 'fall', 'clip': 'a.mcap', 'begin_s': 1, 'end_s': 2, 'relative': True}


def test_clips_where_nothing_happens_are_watched_too(truth_file):
    truth = AlertTruth.read(truth_file([FALL], clips={'b.mcap': 'nothing'}))
    assert truth.clips == ('b.mcap', 'a.mcap')
    (alert,) = truth.of('fall', 'a.mcap', START_S)
    assert (alert.begin_s, alert.end_s) == (START_S + 1, START_S + 2)
    assert truth.of('fall', 'b.mcap', START_S) == []


def test_a_single_bag_may_be_given(truth_file, tmp_path):
    entry = {name: value for name, value in FALL.items() if name != 'clip'}
    truth = AlertTruth.read(truth_file([entry]), tmp_path / 'a.mcap')
    assert (truth.clips, truth.folder) == (('a.mcap',), tmp_path)


@pytest.mark.parametrize(
    'entries, told',
    [
        (None, 'alerts_truth is None, a list of objects'),
        ([5], 'alerts_truth 1 is 5, an object'),
        ([{**FALL, 'end_s': 'later'}], "end_s is 'later', a number of seconds"),
        ([{**FALL, 'end_s': 10**400}], 'a number of seconds is expected'),
        ([{**FALL, 'end_s': math.nan}], 'a number of seconds is expected'),
        ([{**FALL, 'end_s': 1}], 'begin_s must be before end_s'),
        ([{**FALL, 'until': 1}], "has 'until'; known are id"),
        ([{'id': 'fall'}], 'has no clip'),
        ([{**FALL, 'clip': 'c.mcap'}], 'the clip c.mcap is not in'),
        ([{**FALL, 'clip': '../c.mcap'}], 'a path relative to the file'),
        ([], 'it names no clip'),
    ],
)
def test_what_is_wrong_in_the_truth_is_named(truth_file, entries, told):
    with pytest.raises(InputError, match=told):
        AlertTruth.read(truth_file(entries))


@pytest.mark.parametrize('more', [{'questions': 5}, {'clips': 5}, {'clips': ['a.mcap']}])
def test_what_is_wrong_beside_the_truth_is_named(truth_file, more):
    with pytest.raises(InputError, match=f'{next(iter(more))} is .* is expected'):
        AlertTruth.read(truth_file([FALL], **more))


def test_truth_of_an_unknown_rule_is_told(truth_file):
    truth = AlertTruth.read(truth_file([FALL]))
    with pytest.raises(InputError, match="has the id 'fall'; the rules have fire"):
        truth.check((AlertRule('fire', 'Q?'),))


# --- with nano ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    """Give the folder of a run of `replay --alerts` over three clips, and what it printed."""
    folder = tmp_path_factory.mktemp('alerts')
    demo.write_truth(folder / 'truth.yaml', CLIPS)
    write_rules(folder / 'rules.yaml', demo.RULES)
    return folder


def replay(folder, out, *more) -> int:
    return main(
        [
            'replay', str(demo.NANO), str(folder / 'truth.yaml'), '--bag', str(demo.CLIPS),
            '--alerts', str(folder / 'rules.yaml'), '--device', 'cpu', '--out', str(folder / out),
            *more,
        ]
    )  # fmt: skip


def test_nano_tells_what_begins_and_two_runs_are_equal_to_the_byte(run_folder, capsys):
    assert replay(run_folder, 'one') == 0
    printed = capsys.readouterr().out
    summary = json.loads((run_folder / 'one' / 'alerts.json').read_text())
    figures = {one['rule']: one for one in summary['alerts']}
    assert set(figures) == {rule.id for rule in demo.RULES}
    for name, one in figures.items():
        assert one['right'] == one['begins'] and one['false'] == 0, (name, one)
        assert f'| {name} | {one["begins"]} | {one["right"]} |' in printed
    assert sum(one['begins'] for one in figures.values()) >= 5
    assert all(log_odds < 0 for log_odds in summary['blank_log_odds'].values())
    assert (run_folder / 'one' / 'probabilities.svg').read_text().startswith('<svg')
    assert replay(run_folder, 'two') == 0
    names = sorted(path.name for path in (run_folder / 'one').iterdir())
    assert len(names) == 4
    for name in names:
        assert (run_folder / 'one' / name).read_bytes() == (run_folder / 'two' / name).read_bytes()


def test_fit_writes_rules_that_are_read_again(run_folder, capsys):
    if not (run_folder / 'one').exists():
        replay(run_folder, 'one')
    before = (run_folder / 'one' / 'probabilities.csv').read_bytes()
    capsys.readouterr()
    assert (
        main(['alerts', 'fit', str(run_folder / 'one'), '--write', str(run_folder / 'f.yaml')])
        == 0
    )
    printed = capsys.readouterr().out
    fitted = read_rules(run_folder / 'f.yaml')
    assert [rule.id for rule in fitted] == [rule.id for rule in demo.RULES]
    assert all(0.5 <= rule.on <= 0.95 and rule.off < rule.on for rule in fitted)
    errors = re.findall(r'error ([\d.]+)% before, ([\d.]+)% after', printed)
    assert len(errors) == len(fitted) and all(float(b) <= float(a) for a, b in errors)
    assert (run_folder / 'one' / 'reliability.svg').read_text().startswith('<svg')
    assert (run_folder / 'one' / 'probabilities.csv').read_bytes() == before
    (run_folder / 'one' / 'reliability.svg').unlink()


def test_what_a_run_wrote_is_scored_the_same_when_it_is_read(run_folder):
    if not (run_folder / 'one').exists():
        replay(run_folder, 'one')
    run = AlertRun.read(run_folder / 'one')
    assert run.rules == demo.RULES and len(run.watched) == 13 * len(run.rules)
    assert not any(math.isnan(second.log_odds) for second in run.watched)


@pytest.mark.parametrize('more', ['--workers=2', '--runner=graph', '--input=no_sound'])
def test_options_that_do_not_go_with_alerts_are_refused(run_folder, capsys, more):
    assert replay(run_folder, 'not', more) == 2
    assert f'{more.split("=")[0]} is for questions' in capsys.readouterr().err
    assert not (run_folder / 'not').exists()


def test_what_is_left_out_of_a_bag_of_more_than_a_day_is_told(run_folder, tmp_path, capsys):
    write_long_clip(tmp_path / 'long.mcap', LONGEST_WINDOW_S + 5)
    head = {'format': 'minicpmo_ros questions 1', 'clips': {'long.mcap': ''}, 'alerts_truth': []}
    (tmp_path / 'truth.yaml').write_text(yaml.safe_dump(head))
    rules, out = str(run_folder / 'rules.yaml'), str(tmp_path / 'out')
    watch = ['--alerts', rules, '--device', 'cpu', '--out', out]
    assert main(['replay', str(demo.NANO), str(tmp_path / 'truth.yaml'), *watch]) == 0
    assert 'long.mcap: its first 24 h are read; it goes on for 8 s' in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main(['alerts', 'fit', str(tmp_path)]) == 2
    assert 'is not the folder of a run of replay --alerts' in capsys.readouterr().err


def test_a_run_that_was_cut_or_mixed_is_told(tmp_path):
    truth = AlertTruth((TrueAlert('r', 'c', 1, 2),), ('c',), Path())
    AlertRun((AlertRule('r', 'Q?'),), watched([], 3), truth, {'r': 0.0}, {}).write(tmp_path)
    assert len(AlertRun.read(tmp_path).watched) == 3
    for name, old, new, told in (
        ('probabilities.csv', ',active,\nc,2,r,0.000000', ',active,\nc,2', 'middle of a row'),
        ('rules.yaml', 'id: r', 'id: other', "has the rule 'r', rules.yaml has other"),
        ('alerts.json', '"begin_s": 1', '"begin_s": "1"', 'is no time'),
    ):
        whole = (tmp_path / name).read_text()
        assert old in whole
        end = '' if name.endswith('.csv') else whole[whole.index(old) + len(old) :]
        (tmp_path / name).write_text(whole[: whole.index(old)] + new + end)
        with pytest.raises(InputError, match=told):
            AlertRun.read(tmp_path)
        (tmp_path / name).write_text(whole)


def test_words_that_a_model_would_not_say_in_any_second_end_no_run(tmp_path, capsys):
    """nano does not answer such a question by yes and no."""
    write_test_clip(tmp_path / 'a.mcap', 4)
    truth = {'format': 'minicpmo_ros questions 1', 'clips': {'a.mcap': 'x'}, 'alerts_truth': []}
    (tmp_path / 'truth.yaml').write_text(json.dumps(truth))
    write_rules(tmp_path / 'rules.yaml', [AlertRule('red', 'is it red?')])
    assert replay(tmp_path, 'out', '--bag', str(tmp_path)) == 0
    captured = capsys.readouterr()
    assert 'would the model say a word of an alert' in captured.err and '| red |' in captured.out
    assert not (tmp_path / 'out' / 'probabilities.svg').exists()
    assert main(['alerts', 'fit', str(tmp_path / 'out')]) == 0
    (tmp_path / 'out' / 'probabilities.csv').write_text('another table\n1\n')
    capsys.readouterr()
    assert main(['alerts', 'fit', str(tmp_path / 'out')]) == 2
    assert 'probabilities.csv has other columns' in capsys.readouterr().err


def test_fitted_rules_are_written_over_nothing_but_rules(run_folder, tmp_path, capsys):
    if not (run_folder / 'one').exists():
        replay(run_folder, 'one')
    target = tmp_path / 'monday.mcap'
    target.write_bytes(b'\x89MCAP0\r\n' * 9)
    fit = ['alerts', 'fit', str(run_folder / 'one'), '--write']
    assert (
        main([*fit, str(target)]) == 2 and 'monday.mcap: it is not YAML' in capsys.readouterr().err
    )
    assert target.read_bytes() == b'\x89MCAP0\r\n' * 9
    for _ in range(2):
        assert main([*fit, str(tmp_path / 'rules.yaml')]) == 0


def test_a_rule_that_this_model_cannot_read_is_told(run_folder, capsys, tmp_path):
    demo.write_truth(tmp_path / 'truth.yaml', CLIPS[:1], ())
    rule = AlertRule('long', 'what? ' * 400)
    write_rules(tmp_path / 'rules.yaml', [rule])
    assert replay(tmp_path, 'out') == 2
    assert 'at most 384 are allowed' in capsys.readouterr().err


def test_clips_are_encoded_once_and_strung_to_a_stream_of_any_length(tmp_path):
    told = {name: lines for name, lines in demo.told_of(demo.CLIPS).items() if name in CLIPS}
    (tmp_path / 'questions.json').write_text(json.dumps({'clips': told}))
    for name in CLIPS:
        (tmp_path / name).symlink_to(demo.CLIPS / name)
    core = Core(ModelDirectory.open(demo.NANO), CoreOptions(device='cpu', n_ctx=1024, max_forks=4))
    try:
        clips = demo.encode(core, tmp_path)
        in_order = list(demo.strung(clips))
        assert [line for _, line in in_order] == [
            line for lines in told.values() for line in lines
        ]
        at_random = list(islice(demo.strung(clips, np.random.default_rng(3)), 40))
        seconds = [unit.second for unit, _ in at_random]
        assert seconds == list(range(seconds[0], seconds[0] + 40))
        assert {line for _, line in at_random} == {line for _, line in in_order}
        found = demo.begins(core, at_random, blank_s=20)
        assert found['begins_right'] == found['begins_within_1_s'] == 1 and found['begins'] > 10
        assert (found['false'], found['watched_s']) == (0, 60)
        wrong = [(unit, '1 green circle; bell') for unit, _ in at_random]
        wrong[5] = wrong[5][0], '1 red circle; bell'
        assert demo.begins(core, wrong)['false'] >= 10
        asked = demo.yes_no(core, clips, 26)
        assert asked['ece_of'] == 26 and asked['yes_no_clips'] == 3
        assert all(0 <= asked[name] <= 1 for name in ('ece', 'yes_no_right', 'yes_no_mass'))
    finally:
        core.close()


def test_clips_are_joined_to_one_stream_without_a_gap():
    told = {name: lines for name, lines in demo.told_of(demo.CLIPS).items() if name in CLIPS}
    clip, shown = joined(demo.CLIPS, told, 15, START_S)  # two seconds of the first one again
    lines = [line for name in CLIPS for line in told[name]]
    assert shown == [*lines, *lines[:2]] and len(shown) == 15
    core = Core(ModelDirectory.open(demo.NANO), CoreOptions(device='cpu', n_ctx=1024, max_forks=4))
    try:
        units = list(core.stream(clip))
        assert [unit.second for unit in units] == list(range(START_S, START_S + 15))
        assert all(u.image_rows is not None and u.audio_rows is not None for u in units)
        seconds = list(watch_units(core, demo.RULES, units, demo.STREAM))
        found = demo.judged(seconds, shown)
        assert found['begins_right'] == 1 and not found['false']
    finally:
        core.close()


def test_a_minute_of_blank_and_silence_tells_nothing():
    core = Core(ModelDirectory.open(demo.NANO), CoreOptions(device='cpu', n_ctx=512, max_forks=4))
    try:
        blank = blank_units(core, 60)
        watched = list(watch_units(core, demo.RULES, blank, 'blank', every_second=True))
    finally:
        core.close()
    assert len(watched) == 60 * len(demo.RULES)
    assert not any(math.isnan(second.log_odds) for second in watched)
    assert not [event for second in watched for event in second.events]
    truth = AlertTruth((), ('blank',), demo.CLIPS)
    assert all(one.false == 0 for one in score(demo.RULES, truth, watched))
