# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark measures what it says, tells what it did not measure, and no zero passes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from minicpmo_ros.encoders.whisper import AudioEncoder
from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation import timing
from minicpmo_ros.evaluation.bench_ratios import Clip, random_mel
from minicpmo_ros.evaluation.bench_report import BASELINES, RATIOS, shape_of
from minicpmo_ros.evaluation.timing import Meter, compare
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.tools import cli


def test_bench_measures_a_model_and_leaves_no_figure_out(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / 'bench.json'
    few = ('--pairs', '1', '--units', '1', '--tokens', '2', '--n-ctx', '4096')
    assert cli.main(['bench', str(tiny_model_dir), *few, '--json', str(out)]) == 0
    report, printed = json.loads(out.read_text()), capsys.readouterr().out
    (entry,) = report['configurations'].values()
    assert entry['unit_ms']['whole'] > entry['unit_ms']['compute'] > 0
    parts = ('preprocessing', 'vision', 'audio', 'prefill')
    assert 0 < sum(entry['unit_ms'][part] for part in parts) <= entry['unit_ms']['whole'] * 1.01
    assert min(entry['first_token_ms'], entry['tokens_per_s']) > 0
    pss = entry['pss_mib']
    assert 0 < pss['python'] < pss['weights'] < pss['inference']
    assert all(ms > 0 for curve in entry['calibration'].values() for ms in curve.values())
    ratios, pairs = report['ratios']['tiny'], report['pairs']['tiny']
    assert tuple(ratios) == RATIOS
    assert all(ratios[name] > 0 and name in printed for name in set(RATIOS) - set(BASELINES))
    for name in BASELINES:
        assert ratios[name] is None and 'make bench' in pairs[name]['not_measured']
    assert printed.count('| not measured |') == len(BASELINES)
    told = report['machine']
    assert all(told[name] for name in ('power mode', 'clock MHz', 'versions', 'load average'))


def test_only_what_is_asked_for_is_measured(tiny_model_dir, tmp_path, capsys):
    out, one = tmp_path / 'bench.json', 'audio_stream_over_reencode_1s'
    measure = ('bench', str(tiny_model_dir), '--pairs', '1', '--json', str(out))
    assert cli.main([*measure, '--only', one]) == 0
    report = json.loads(out.read_text())
    assert list(report['ratios']['tiny']) == [one]
    assert all('unit_ms' not in entry for entry in report['configurations'].values())
    assert cli.main([*measure, '--only', 'speed']) == 2
    assert f'{one},' in capsys.readouterr().err


def test_a_shape_is_known_by_its_sizes(tiny_model_dir):
    assert shape_of(ModelDirectory.open(tiny_model_dir)) == 'tiny'


def test_a_ratio_is_the_median_of_pairs_that_take_turns():
    calls, ones, others = [], iter([99.0, 2.0, 8.0, 3.0]), iter([1.0, 1.0, 2.0, 1.0])

    def told(name, times):
        return lambda: calls.append(name) or next(times)

    found = compare(told('one', ones), told('other', others), ('a', 'b'), 3)
    assert (found.value, found.one_ms, found.other_ms, found.pairs) == (3.0, 3.0, 1.0, 3)
    assert calls == ['one', 'other', 'other', 'one'] * 2


@pytest.mark.parametrize('ms', [0.0, -1.0, float('nan'), float('inf')])
@pytest.mark.parametrize('place', [0, 1])
def test_a_pair_in_which_nothing_was_measured_is_refused(ms, place):
    times = [1.0, 1.0]
    times[place] = ms
    with pytest.raises(EngineError, match='way took .* nothing was measured'):
        compare(lambda: times[0], lambda: times[1], ('one way', 'the other way'), 1)


def test_time_within_time_counts_once(monkeypatch):
    clock = SimpleNamespace(s=0.0)
    monkeypatch.setitem(timing.CLOCKS, 'cpu', lambda: clock.s)

    def pass_s(seconds):
        clock.s += seconds

    meter = Meter()
    inner = meter.timed('inner', pass_s)
    outer = meter.timed('outer', lambda: (pass_s(1.0), inner(2.0)))
    outer()
    assert meter.ms == {'inner': 2000.0, 'outer': 1000.0}
    owner = SimpleNamespace(work=pass_s)
    with meter.wrapped(owner, 'work', 'inner'):
        owner.work(1.0)
    assert owner.work is pass_s and meter.ms['inner'] == 3000.0


@pytest.mark.parametrize('kind', ['flash', 'mul_mat'])
def test_a_clip_of_one_second_is_the_first_second_of_a_stream(tiny_model_dir, kind):
    encoder = AudioEncoder.load(tiny_model_dir / 'audio.gguf', Backend('cpu'))
    mel = random_mel(1, encoder.facts.mel_bins)
    wanted = encoder.stream().step(mel)
    found = Clip(encoder, kind, 1).encode(mel, 1)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2e-3
