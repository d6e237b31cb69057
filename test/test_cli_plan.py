# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo plan`: tables and figures of a directory, and a refusal that says what to lower."""

import json
import re
from dataclasses import replace

import pytest

from minicpmo_ros.cli.main import main
from minicpmo_ros.modelset.gguf_layouts import TINY
from minicpmo_ros.synthetic.model import write_model

CPU = ('--set', 'device=cpu')


def test_the_tables_add_up(tiny_model_dir, capsys):
    assert main(['plan', str(tiny_model_dir), *CPU, '--memory-mib', '2000']) == 0
    text = capsys.readouterr().out
    parts = re.findall(r'^\| [^*|]+ \| ([\d.]+) \| ([\d.]+) \|$', text, re.MULTILINE)
    ((host, device),) = re.findall(r'\*\*all\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\*', text)
    assert sum(float(part[0]) for part in parts) == pytest.approx(int(host), abs=1)
    assert sum(float(part[1]) for part in parts) == int(device) == 0
    rows = re.findall(
        r'^\| (2048|4096|8192) \| (f16|q8_0) \| (\d+) .* yes \|$', text, re.MULTILINE
    )
    assert len(rows) == 6
    by_case = {(int(n), kv): int(mib) for n, kv, mib in rows}
    assert by_case[8192, 'f16'] > by_case[4096, 'f16'] == int(host) > by_case[4096, 'q8_0']


@pytest.mark.parametrize('given', ('a,b', '[a, a]', '[a, a/]', '[1, 2]', '2', '{a: b}'))
def test_robots_that_the_node_would_refuse_are_not_planned(tiny_model_dir, capsys, given):
    assert main(['plan', str(tiny_model_dir), *CPU, '--set', f'robots={given}']) == 2
    told = capsys.readouterr()
    assert told.err.startswith('minicpmo plan: robots is ') and not told.out


def test_only_contexts_that_the_model_has_are_planned(tmp_path, capsys):
    directory = write_model(tmp_path / 'm', replace(TINY, context_length=4096), None)
    assert main(['plan', str(directory), *CPU, '--memory-mib', '2000']) == 0
    text = capsys.readouterr().out
    assert '| 4096 | q8_0 |' in text and '| 8192 |' not in text
    assert main(['plan', str(directory), *CPU, '--set', 'n_ctx=40960']) == 2
    told = capsys.readouterr()
    assert 'n_ctx is 40960, this model allows 1 to 4096' in told.err and not told.out


def test_a_plan_that_does_not_fit_ends_with_status_2_and_the_way_out(tiny_model_dir, capsys):
    arguments = ['plan', str(tiny_model_dir), *CPU, '--json']
    assert main([*arguments, '--memory-mib', '1000']) == 0
    needed = json.loads(capsys.readouterr().out)['host_mib']
    fused = ('--set', 'attention=fused')
    large = [*arguments, *fused, '--set', 'vision.max_tiles=4', '--set', 'n_ctx=8192']
    assert main([*large, '--memory-mib', f'{needed + 6}']) == 2
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert figures['host_mib'] > figures['limit_mib'] == pytest.approx(needed + 6)
    assert figures['host_mib'] == pytest.approx(sum(p['host_mib'] for p in figures['parts']))
    assert 'MiB too many. Any one of these is enough: ' in told.err
    lowered = re.search(r'vision.batch from 4 to (\d)', told.err)
    fixed = [*large, '--set', f'vision.batch={lowered[1]}']  # what is named is enough
    assert main([*fixed, '--memory-mib', f'{needed + 6}']) == 0


def test_a_preset_is_taken_by_name_or_as_a_file_with_its_limit(tiny_model_dir, tmp_path, capsys):
    directory = str(tiny_model_dir)
    assert main(['plan', directory, '--preset', 'orin_nano_8gb', '--memory-mib', '4000']) == 0
    text = capsys.readouterr().out
    assert 'n_ctx 8192, q8_0' in text and 'GPU runtime (assumed)' in text
    mine = tmp_path / 'mine.yaml'
    values = {'n_ctx': '2048', 'device': 'cpu', 'memory_limit_mib': '50.0'}
    lines = [f'    {name}: {value}' for name, value in values.items()]
    mine.write_text('\n'.join(['/**/llm:', '  ros__parameters:', *lines]))
    assert main(['plan', directory, '--preset', str(mine), '--set', 'kv_type=q8_0']) == 2
    told = capsys.readouterr()
    assert 'n_ctx 2048, q8_0' in told.out and ', 50 MiB are to be had' in told.err
    mine.write_text('/**/llm:\n  ros__parameters:\n    memory_limit_mib: six')
    assert main(['plan', directory, '--preset', str(mine)]) == 2
    assert "memory_limit_mib is 'six'; MiB, or 0 for none" in capsys.readouterr().err
    assert main(['plan', directory, '--preset', 'orin_nano']) == 2
    assert "there is no preset 'orin_nano'; there are: agx_orin" in capsys.readouterr().err


@pytest.mark.parametrize('given', ['n_ctx', 'context=1', 'overlap=2'])
def test_what_is_no_parameter_is_refused(tiny_model_dir, capsys, given):
    assert main(['plan', str(tiny_model_dir), '--set', given]) == 2
    assert (
        'expected is NAME=VALUE, with one of device, rpc_servers, n_ctx' in capsys.readouterr().err
    )


def test_what_a_server_computes_takes_no_memory_here(tiny_model_dir, capsys):
    taken = []
    for more in ((), ('--set', 'rpc_servers=10.0.0.2:50052')):
        main(['plan', str(tiny_model_dir), '--set', 'device=gpu', *more])
        table, verdict = capsys.readouterr().out, r'MiB in all'
        taken.append(float(re.search(rf'(\d+) {verdict}', table)[1]))
    assert taken[1] < taken[0] - 512  # of a GPU's runtime


def test_values_of_another_kind_are_refused(tiny_model_dir, capsys):
    assert main(['plan', str(tiny_model_dir), '--set', 'n_ctx=many']) == 2
    assert "n_ctx is 'many'; an int is expected" in capsys.readouterr().err
    assert main(['plan', str(tiny_model_dir), '--set', 'kv_type=q4_0']) == 2
    assert "kv_type is 'q4_0'; allowed are f32, f16, q8_0" in capsys.readouterr().err


@pytest.mark.parametrize(
    'given, n_images',
    [(['cameras=[front,left]'], 2), (['vision.max_tiles=3'], 4), ([], 1)],
)
def test_words_and_figures_tell_the_same_of_a_second(tiny_model_dir, given, n_images, capsys):
    arguments = ['plan', str(tiny_model_dir), *CPU, '--memory-mib', '2000']
    for setting in given:
        arguments += ['--set', setting]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert main([*arguments, '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['images_per_s'] == n_images and f'; {n_images} image' in told
    assert f'about {figures["positions_per_s"]} positions' in told
