# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo quantize`: files and directories, rules, the table, refusals in one line."""

import json

import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.modelset.directory import ModelDirectory


@pytest.fixture
def quantize(capsys):
    def run(*arguments):
        status = cli.main(['quantize', *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_file(tiny_model_dir, tmp_path, quantize):
    path = tmp_path / 'q.gguf'
    rule = 'blk.*.attn_v.weight=q8_0'
    status, out, _ = quantize(
        tiny_model_dir / 'llm.gguf', path, '--type', 'q4_0', '--rule', rule, '--threads', 1
    )
    assert status == 0
    assert out.startswith(f'{path}  q4_0  2.9 -> 0.9 MiB  error ') and out.count('\n') == 1
    tensors = read_header(path).tensors
    assert tensors['blk.0.attn_v.weight'].type == Type.Q8_0
    assert tensors['blk.0.attn_k.weight'].type == Type.Q4_0


def test_a_directory(tiny_model_dir, tmp_path, quantize):
    status, out, _ = quantize(
        tiny_model_dir, tmp_path / 'new' / 'q', '--llm', 'q4_0', '--type', 'q8_0', '--vision',
        'keep')  # fmt: skip
    assert status == 0
    assert out.count(' MiB  error ') == 3
    model, before = (
        ModelDirectory.open(each) for each in (tmp_path / 'new' / 'q', tiny_model_dir)
    )
    assert model.precision == {'llm': 'q4_0', 'vision': 'f16', 'audio': 'q8_0'}
    assert model.model_id == before.model_id
    assert model.vision_path.read_bytes() == before.vision_path.read_bytes()


def test_report_has_a_row_for_every_tensor(tiny_model_dir, tmp_path, quantize):
    source = tiny_model_dir / 'audio.gguf'
    _, out, _ = quantize(source, tmp_path / 'q', '--rule', '*.attn.*=q5_0', '--report')
    rows = [line.split(' | ') for line in out.splitlines() if line.startswith('| ')]
    names = [row[0].removeprefix('| ') for row in rows[1:]]
    assert names == list(read_header(source).tensors)
    (row,) = (row for row in rows if row[0] == '| encoder.blocks.1.attn.value.weight')
    assert row[1:4] == ['128x128', 'F16', 'Q5_0']
    assert row[4:6] == ['0.03', '0.01'] and 3 < float(row[6].removesuffix(' |')) < 6


def test_the_report_is_written_as_its_name_says(tiny_model_dir, tmp_path, quantize):
    source = tiny_model_dir / 'audio.gguf'
    for suffix in ('json', 'md'):
        path = tmp_path / f'r.{suffix}'
        status, out, _ = quantize(source, tmp_path / suffix, '--type', 'q4_0', '--report', path)
        assert status == 0 and out.count('\n') == 1
    (told,) = json.loads((tmp_path / 'r.json').read_text()).values()
    tensors = read_header(tmp_path / 'json').tensors
    assert [each['name'] for each in told] == list(tensors)
    for each in told:
        info = tensors[each['name']]
        assert (each['to'], tuple(each['shape'])) == (info.type.name, info.shape)
        assert each['bytes_after'] == info.n_bytes and each['weighted_error'] is None
        assert (each['relative_error'] > 0) == (each['to'] != each['from'])
    assert all(f'| {name} | ' in (tmp_path / 'r.md').read_text() for name in tensors)
    status, _, err = quantize(source, tmp_path / 'q', '--type', 'q4_0', '--report', 'r.txt')
    assert status == 2 and 'must end in .json or .md' in err and not (tmp_path / 'q').exists()


def test_no_pad_keeps_odd_rows(tiny_model_dir, tmp_path, quantize):
    path = tmp_path / 'v.gguf'
    quantize(tiny_model_dir / 'vision.gguf', path, '--type', 'q4_0', '--no-pad')
    info = read_header(path).tensors['v.blk.0.ffn_up.weight']
    assert (info.shape, info.type) == ((160, 538), Type.F16)


@pytest.mark.parametrize('source, options, words', [
    ('llm.gguf', [], 'give --type, --rule or --rules'),
    ('llm.gguf', ['--type', 'q4_0', '--llm', 'q4_0'], 'are for directories'),
    ('llm.gguf', ['--rule', 'blk'], 'PATTERN=TYPE'),
    ('llm.gguf', ['--rule', 'encoder.*=q4_0'], 'no matrix that fits'),
    ('', [], 'give --llm'),
    ('none.gguf', ['--type', 'q4_0'], 'cannot be opened'),
    ('llm.gguf', ['--type', 'q4_0', '--report', '/no/where/r.md'], '/no/where is no folder'),
    ('', ['--type', 'q4_0', '--write-rules', '/no/where/r.yaml'], '/no/where is no folder'),
])  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(
    tiny_model_dir, tmp_path, quantize, source, options, words
):
    status, out, err = quantize(tiny_model_dir / source, tmp_path / 'q', *options)
    assert (status, out) == (2, '')
    assert err.startswith('minicpmo quantize: ') and words in err and err.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_forced(tiny_model_dir, tmp_path, quantize):
    (tmp_path / 'q').write_text('precious')
    source = tiny_model_dir / 'audio.gguf'
    status, _, err = quantize(source, tmp_path / 'q', '--type', 'q4_0')
    assert status == 2 and 'already exists' in err
    assert (tmp_path / 'q').read_text() == 'precious'
    assert quantize(source, tmp_path / 'q', '--type', 'q4_0', '--force')[0] == 0
    before = source.read_bytes()
    assert quantize(source, source, '--type', 'q4_0', '--force')[0] == 2
    assert source.read_bytes() == before


@pytest.mark.parametrize('wrong', [['--type', 'q3'], ['--threads', '0']])
def test_wrong_usage_is_status_2(tiny_model_dir, tmp_path, quantize, wrong):
    with pytest.raises(SystemExit) as caught:
        quantize(tiny_model_dir / 'llm.gguf', tmp_path / 'q', *wrong)
    assert caught.value.code == 2
