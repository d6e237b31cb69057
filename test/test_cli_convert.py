# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`minicpmo convert`: a checkpoint in, a model directory out, progress, refusals in one line."""

import pytest
from hf_checkpoint import FOUR_FIVE, write_checkpoint

from minicpmo_ros.cli import main as cli
from minicpmo_ros.modelset.directory import ModelDirectory


@pytest.fixture
def convert(capsys):
    def run(*arguments):
        status = cli.main(['convert', *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_checkpoint_becomes_a_model_directory(tmp_path, convert):
    source = write_checkpoint(tmp_path / 'MiniCPM-o-4_5', FOUR_FIVE, shards=2)
    status, out, err = convert(source, tmp_path / 'new' / 'out', '--type', 'bf16')
    assert status == 0
    assert out.count('  bf16  ') == 3 and 'not converted: tts.* (2 tensors)' in out
    lines = err.splitlines()
    assert 4 < len(lines) < 12 and lines[-1].startswith('100 % ')
    model = ModelDirectory.open(tmp_path / 'new' / 'out')
    assert model.space == 'minicpm-o-4.5/256/MiniCPM-o-4_5'
    status, _, err = convert(source, tmp_path / 'new' / 'out')
    assert status == 2 and 'already holds llm.gguf' in err
    assert convert(source, tmp_path / 'new' / 'out', '--force', '--model-id', 'mine')[0] == 0
    assert ModelDirectory.open(tmp_path / 'new' / 'out').model_id == 'mine'


def test_refusals_are_one_line_and_leave_nothing(tmp_path, convert):
    status, out, err = convert(tmp_path / 'none', tmp_path / 'out')
    assert (status, out) == (2, '')
    assert err.startswith('minicpmo convert: ') and err.count('\n') == 1
    assert 'Give the directory of a Hugging Face checkpoint' in err
    assert not list(tmp_path.iterdir())


def test_smaller_types_are_left_to_quantize(tmp_path, convert):
    with pytest.raises(SystemExit) as caught:
        convert(tmp_path, tmp_path / 'out', '--type', 'q4_0')
    assert caught.value.code == 2


def test_weights_that_were_never_written_are_told(tmp_path, convert):
    source = write_checkpoint(tmp_path / 'hf', FOUR_FIVE)
    path = source / 'model.safetensors'
    size = path.stat().st_size
    with path.open('r+b') as file:
        file.truncate(size // 2)
        file.truncate(size)
    status, _, err = convert(source, tmp_path / 'out')
    assert status == 2 and f'So are weights of {source}: let its download end' in err
