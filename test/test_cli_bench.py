# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark measures what it says, tells what it did not measure, and no zero passes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.bench import baselines_of
from minicpmo_ros.cli import main as cli
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import EngineError
from minicpmo_ros.evaluation.bench import bench
from minicpmo_ros.evaluation.bench.bench import Meter, compare
from minicpmo_ros.evaluation.bench.ratios import WholeClip, random_mel
from minicpmo_ros.evaluation.bench.report import (
    BASELINES,
    RATIOS,
    BenchReport,
    measure_ratios,
    shape_of,
)
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.modelset.directory import ModelDirectory


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


def test_two_directories_of_one_name_are_two_configurations(tiny_model_dir, tmp_path):
    paths = [str(tmp_path / folder / 'model') for folder in 'ab']
    for path in paths:
        shutil.copytree(tiny_model_dir, path)
    out, one = tmp_path / 'bench.json', 'audio_stream_over_reencode_1s'
    assert cli.main(['bench', *paths, '--pairs', '1', '--only', one, '--json', str(out)]) == 0
    names = [f'{path} (f16/f16/f16)' for path in paths]
    assert list(json.loads(out.read_text())['configurations']) == names


@pytest.mark.parametrize(
    'device, threads, clock', [('cpu', 1, 'CPU '), ('cpu', 2, ''), ('gpu', 1, '')]
)
def test_the_clock_is_the_processors_for_one_thread_of_a_cpu_alone_and_is_told(
    device, threads, clock
):
    core = SimpleNamespace(is_cpu=device == 'cpu', options=SimpleNamespace(threads=threads))
    assert bench.clock_of(core) == ('cpu' if clock else 'wall')
    report = BenchReport({}, bench.BenchOptions(device, threads), 'minicpmo bench')
    numbers = dict.fromkeys((*bench.PARTS, 'whole'), 1.0)
    entry = {'unit_ms': numbers, 'first_token_ms': 1.0, 'tokens_per_s': 1.0, 'calibration': None}
    report.add('m', {**entry, 'pss_mib': {'weights': 1.0, 'inference': 1.0}})
    text = report.markdown()
    assert f'whole unit {clock}ms' in text and f'tokens/{clock}s' in text
    assert ('CPU time' in text) == bool(clock) and f'{threads} thread' in text


def test_what_needs_pytorch_says_that_there_is_none(tiny_model_dir, tmp_path):
    model, options = ModelDirectory.open(tiny_model_dir), bench.BenchOptions(pairs=1)
    (tmp_path / 'without').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path / 'without').chmod(0o755)
    for python in (tmp_path / 'none', tmp_path / 'without'):
        found = measure_ratios(
            model, options, baselines_of(python, model, options), ('audio_over_torch_30s',)
        )
        assert found == {
            'audio_over_torch_30s': f'{python} has no PyTorch; give a python that has it (--torch)'
        }


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
    monkeypatch.setitem(bench.CLOCKS, 'cpu', lambda: clock.s)

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
    found = WholeClip(encoder, kind, 1).encode(mel, 1)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2e-3
