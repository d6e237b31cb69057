# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The command line: verbs, readable help, errors in one line and status 2."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored_clips import write_long_clip

from minicpmo_ros.cli import main as cli
from minicpmo_ros.cli.recordings import HOURS_S
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.units import NS


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_synthetic_writes_what_it_is_told(tmp_path, capsys):
    status, out, _ = run(
        capsys,
        'synthetic',
        tmp_path / 'm',
        '--shape',
        'nano',
        '--seed',
        5,
        '--llm',
        'q4_0',
        '--vision',
        'q8_0',
        '--audio',
        'f32',
        '--pad-ffn',
        '--ffn-naming',
        'plain',
    )
    assert status == 0
    assert out.count(' MiB\n') == 3
    model = ModelDirectory.open(tmp_path / 'm')
    assert model.model_id == 'random-nano-5'
    assert model.precision == {'llm': 'q4_0', 'vision': 'q8_0', 'audio': 'f32'}
    assert model.headers['vision'].tensors['v.blk.0.ffn_up.weight'].shape == (512, 128)
    assert model.verify_hashes() == []


def test_synthetic_does_not_overwrite_unless_forced(tmp_path, capsys):
    (tmp_path / 'llm.gguf').write_text('precious')
    status, _, err = run(capsys, 'synthetic', tmp_path)
    assert status == 2
    assert err.startswith('minicpmo synthetic: ') and 'llm.gguf' in err and err.count('\n') == 1
    assert (tmp_path / 'llm.gguf').read_text() == 'precious'
    assert run(capsys, 'synthetic', tmp_path, '--force', '--no-hashes')[0] == 0
    assert len(ModelDirectory.open(tmp_path).verify_hashes()) == 3


@pytest.mark.parametrize('wrong', ['nan', 'inf', '-1'])
@pytest.mark.parametrize(
    'words',
    [
        ('plan', 'nano', '--memory-mib'),
        ('plan', 'nano', '--gpu-memory-mib'),
        ('fetch', '2.6', '--memory-mib'),
        ('doctor', '--wait'),
        ('ask', 'Well?', '--timeout'),
    ],
)
def test_no_amount_is_below_zero_or_no_number(capsys, words, wrong):
    with pytest.raises(SystemExit):
        run(capsys, *words, wrong)
    assert 'a number from 0 on is expected' in capsys.readouterr().err


@pytest.mark.parametrize('verb', ['watch', 'top'])
def test_no_count_is_below_zero(capsys, verb):
    with pytest.raises(SystemExit):
        run(capsys, verb, '--count', '-1')
    assert 'a whole number from 0 on is expected' in capsys.readouterr().err


@pytest.mark.parametrize('wrong', ['bad name', '//a', '1a', 'a//b', 'é', 'a\n', '~'])
@pytest.mark.parametrize('verb', ['ask', 'watch', 'status', 'top', 'doctor'])
def test_what_is_no_namespace_is_refused_in_words(capsys, verb, wrong):
    with pytest.raises(SystemExit):
        run(capsys, verb, '--namespace', wrong)
    assert 'is no namespace; names of letters' in capsys.readouterr().err


@pytest.mark.parametrize('given', ['/robot1', 'robot1', 'a/b_2', '/a/', '/', ''])
def test_a_namespace_may_end_with_a_slash(given):
    parsed = cli.make_parser().parse_args(['status', '--namespace', given])
    assert parsed.namespace == given.rstrip('/')


@pytest.mark.parametrize('verb', [
    'bench', 'check', 'doctor', 'importance', 'plan', 'quantize', 'replay', 'score', 'search'
])  # fmt: skip
def test_every_verb_knows_an_embedded_model_by_its_name_and_a_path_before_it(
    verb, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    more = {'importance': ['--out', 'i.gguf'], 'search': ['--out', 's.yaml'],
            'quantize': ['out'], 'replay': ['q.json', '--out', 'r']}  # fmt: skip

    def given():
        parsed = vars(cli.make_parser().parse_args([verb, 'nano', *more.get(verb, [])]))
        found = next(
            parsed[k] for k in ('directory', 'directories', 'source', 'model') if k in parsed
        )
        return found[0] if isinstance(found, list) else found

    assert (given() / 'manifest.yaml').is_file() and given().name == 'nano'
    (tmp_path / 'nano').mkdir()
    assert given() == Path('nano')


def test_check_names_the_model_and_compares_hashes(tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    status, out, _ = run(capsys, 'check', tiny_model_dir, '--hashes')
    assert status == 0
    assert out.startswith('random-tiny-1 (minicpm-o-2.6, width 256)\n')
    assert out.endswith('hashes: as recorded\n')
    hashes = (tmp_path / 'minicpmo_ros' / 'sha256.json').read_text()
    assert hashes.count('.gguf') == 3
    # They are looked up from now on: a wrong one is believed.
    digest = ModelDirectory.open(tiny_model_dir).manifest.files['audio'].sha256
    wrong = hashes.replace(digest, '0' * 64)
    (tmp_path / 'minicpmo_ros' / 'sha256.json').write_text(wrong)
    assert run(capsys, 'check', tiny_model_dir, '--hashes')[0] == 2
    assert run(capsys, 'check', tiny_model_dir, '--hashes', '--no-cache')[0] == 0
    assert run(capsys, 'check', tiny_model_dir, '--hashes', '--cache', tmp_path / 'other')[0] == 0


def test_check_tells_of_hashes_that_are_not_recorded(tmp_path, capsys):
    run(capsys, 'synthetic', tmp_path, '--no-hashes')
    assert (
        'none recorded for llm, vision, audio'
        in run(capsys, 'check', tmp_path, '--hashes', '--no-cache')[1]
    )


def test_error_is_one_line_and_status_2(tmp_path, capsys):
    status, out, err = run(capsys, 'check', tmp_path / 'nothing')
    assert (status, out) == (2, '')
    assert err.startswith('minicpmo check: ') and err.count('\n') == 1


def test_system_error_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / 'file').touch()
    status, _, err = run(capsys, 'synthetic', tmp_path / 'file' / 'below')
    assert status == 2
    assert err.count('\n') == 1


@pytest.mark.parametrize(
    'arguments',
    [[], ['nonsense'], ['synthetic', 'x', '--shape', 'huge'], ['synthetic', 'x', '--seed', '-1']],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize('verb', [*cli.VERBS, *cli.ROBOT_VERBS])
def test_help_of_every_verb_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, '--help'])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f'usage: minicpmo {verb} ')
    explained = [
        bool(re.search(r'\S {2,}\S', name)) or after.startswith(' ' * 20)
        for name, after in zip(told.splitlines(), told.splitlines()[1:] + [''])
        if re.match(r' {2}[-\w{]', name)
    ]
    assert explained and all(explained), told
    # A default is told as it is typed, and once.
    assert not re.search(r'\(default: (\)|None|False|[({"]|\[)', told), told
    assert not re.search(r'default: [^()]*\(default: ', re.split(r' -{1,2}\w', told)[-1]), told


def test_module_runs_and_help_needs_no_llama_cpp():
    code = (
        'import sys; from minicpmo_ros.cli import main; main.make_parser(); '
        'sys.exit("llama_cpp" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
    done = subprocess.run(
        [sys.executable, '-m', 'minicpmo_ros.cli.main', '--help'], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert 'write a model of random weights' in done.stdout


@pytest.mark.parametrize('name', ['sheet', 'sheet.xyz'])
def test_look_refuses_what_is_no_name_of_a_picture(tmp_path, capsys, name):
    status, _, err = run(capsys, 'look', tmp_path / 'bag.mcap', '--out', tmp_path / name)
    assert status == 2 and 'ends in one of .png, .jpg' in err and err.count('\n') == 1


def test_look_prints_what_each_threshold_would_reuse(tmp_path, capsys, rng):
    """Ten seconds of a still scene, then ten in which its levels rise by ten each second."""
    scene = np.kron(rng.integers(20, 120, (6, 8, 3)), np.ones((40, 40, 1), int))
    images = []
    for second in range(20):
        file, levels = io.BytesIO(), scene + 10 * max(0, second - 9)
        Image.fromarray(levels.astype(np.uint8)).save(file, 'JPEG', quality=95)
        images.append((second * NS, file.getvalue()))
    write_clip(tmp_path / 'a.mcap', 100, images, np.zeros(20 * 16000, np.float32))
    status, out, _ = run(capsys, 'look', '--changes', tmp_path / 'a.mcap')
    rows = [line.strip('| ').split(' | ') for line in out.splitlines() if line.startswith('| ')]
    reused = {float(row[0].split()[0]): int(row[1]) for row in rows if row[0][0].isdigit()}
    assert status == 0 and reused == {2: 9, 4: 9, 8: 9, 16: 9, 32: 14}
    assert '20 seconds with an image' in out and '| 8 (default) | 9 |' in out
    status, _, err = run(capsys, 'look', tmp_path / 'a.mcap')
    assert status == 2 and '--changes' in err
    status, out, err = run(
        capsys, 'look', tmp_path / 'a.mcap', '--start', 99, '--out', tmp_path / 'a.png'
    )
    assert status == 2 and 'Check --start and --seconds' in err and not out
    status, out, err = run(capsys, 'look', '--changes', tmp_path / 'a.mcap', '--start', 99)
    assert status == 2 and 'No second has an image' in err and not out


def test_look_says_where_it_ends_before_the_bag_does(tmp_path, capsys):
    write_long_clip(tmp_path / 'long.mcap', HOURS_S)
    look = 'look', tmp_path / 'long.mcap', '--changes'
    assert f'The bag goes on behind second {HOURS_S}' in run(capsys, *look)[2]
    assert 'goes on' not in run(capsys, *look, '--seconds', 2)[2]
    write_long_clip(tmp_path / 'short.mcap', 9)
    assert 'goes on' not in run(capsys, 'look', tmp_path / 'short.mcap', '--changes')[2]


def test_look_compares_the_part_of_images_that_is_seen(tmp_path, capsys):
    """A lamp flickers in the right half."""
    images = []
    for second in range(6):
        file, levels = io.BytesIO(), np.full((96, 128, 3), 90, np.uint8)
        levels[:, 64:] += 100 * (second % 2)
        Image.fromarray(levels).save(file, 'PNG')
        images.append((second * NS, file.getvalue()))
    write_clip(tmp_path / 'a.mcap', 100, images, np.zeros(6 * 16000, np.float32))
    for more, reused in ((), 0), (('--crop', '0 0 0.5 1'), 5):
        _, out, _ = run(capsys, 'look', '--changes', tmp_path / 'a.mcap', *more)
        assert f'| 8 (default) | {reused} |' in out
    for more in ('--changes', '--crop', '0 0 2 1'), ('--crop', '0 0 1 1', '--out', 'a.png'):
        assert run(capsys, 'look', tmp_path / 'a.mcap', *more)[0] == 2


@pytest.mark.parametrize('option', ['--limit', '--workers', '--threads', '--max-tokens'])
def test_replay_refuses_counts_below_one(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        run(capsys, 'replay', tmp_path, tmp_path / 'q.json', '--out', tmp_path, option, '-3')
    assert f'argument {option}: a whole number from 1 on is expected' in capsys.readouterr().err


@pytest.mark.parametrize('value', ['x', '', '1,5', '0x10'])
@pytest.mark.parametrize(
    'arguments, told',
    [
        (('synthetic', 'm', '--seed'), 'a whole number from 0 on is expected'),
        (('bench', 'm', '--tokens'), 'a whole number from 1 on is expected'),
        (('plan', 'm', '--memory-mib'), 'a number from 0 on is expected'),
        (('report', 'r', '--fail-under'), '0 to 100 are expected'),
        (('search', 'm', '--out', 'r', '--agreement'), '0 to 1 is expected'),
    ],
)
def test_what_is_no_number_is_told_as_what_is_out_of_range(capsys, arguments, told, value):
    with pytest.raises(SystemExit):
        run(capsys, *arguments, value)
    assert told in capsys.readouterr().err
