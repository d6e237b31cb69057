# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What people have instead of a model file is named, and what to do; nothing half is adopted."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys

import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.downloads import require_weights
from minicpmo_ros.synthetic.model import write_model

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of prctl(2) and capabilities(7)
LLM = 'Model-7.6B-Q4_K_M.gguf'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Give a small model without a manifest of use to adopt."""
    return write_model(tmp_path_factory.mktemp('source') / 'm', 'tiny', 1, hashes=False)


@pytest.fixture
def folder(source, tmp_path):
    """Give a folder that lacks nothing but the language model."""
    folder = tmp_path / 'm'
    folder.mkdir()
    for part in ('vision', 'audio'):
        shutil.copy(source / f'{part}.gguf', folder)
    return folder


def adopt(capsys, *arguments):
    status = cli.main(['adopt', *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


def text(value):
    return struct.pack('<Q', len(value)) + value


def part_of(count, first=True):
    """Give a part of a split model as llama-gguf-split writes them."""
    entries = [text(b'split.count') + struct.pack('<IH', 2, count)]
    if first:
        entries.append(text(b'general.architecture') + struct.pack('<I', 8) + text(b'qwen2'))
    return b'GGUF' + struct.pack('<IQQ', 3, 0, len(entries)) + b''.join(entries)


INSTEAD = {
    'git-lfs pointer': (
        LLM,
        lambda llm: b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64
        + b'\nsize 4683073184\n',
        'git-lfs pointer', 'git lfs pull',
    ),
    'web page': (
        LLM, lambda llm: b'\n<!DOCTYPE html>\n<html>' + b' ' * 3000, 'web page', '/resolve/',
    ),
    'a web page saved by its address': (
        LLM + '?download=true', lambda llm: b'<html><head>', 'web page', 'download link',
    ),
    'message of a server': (LLM, lambda llm: b'Entry not found', 'Entry not found', 'Fetch'),
    'message as JSON': (
        LLM, lambda llm: b'{"error":"Repository not found"}', 'Repository not found', 'Fetch',
    ),
    'nothing yet': (LLM, lambda llm: b'', 'it is empty', 'Fetch'),
    'zeros': (LLM, lambda llm: bytes(len(llm)), 'begins with zeros', 'download end'),
    'hub download under way': (
        LLM + '.incomplete', lambda llm: llm[:300_000], 'unfinished download', 'hf download',
    ),
    'hub download, hidden': (
        '.cache/huggingface/download/k3jf9=.0a1b.incomplete',
        lambda llm: llm[:300_000], 'unfinished download', 'hf download',
    ),
    'browser download under way': (
        LLM + '.crdownload', lambda llm: llm[:300_000], 'unfinished download', 'download end',
    ),
    'Firefox download under way': (
        LLM + '.part', lambda llm: llm[:300_000], 'unfinished download', 'download end',
    ),
    'pull of ollama under way': (
        'blobs/sha256-' + '0a' * 32 + '-partial', lambda llm: llm[:300_000],
        'unfinished download', 'download end',
    ),
    'big-endian': (
        LLM, lambda llm: llm[:4] + struct.pack('>I', 3) + llm[8:], 'big-endian', 'convert-endian',
    ),
    'first part': (
        'M-00001-of-00003.gguf', lambda llm: part_of(3), '3 parts of a split model, of which 2',
        'llama-gguf-split --merge M-00001-of-00003.gguf M.gguf',
    ),
    'later part': (
        'M-00002-of-00002.gguf', lambda llm: part_of(2, first=False), 'of which 1 are missing',
        'Fetch M-00001-of-00002.gguf',
    ),
    'a piece that was cut': (
        LLM + '.part1of2', lambda llm: llm[:300_000], 'one piece of a file', 'cat PIECES',
    ),
    'an older format': (LLM, lambda llm: b'tjgg' + llm[4:], 'before GGUF', 'GGUF file'),
    'safetensors': (
        LLM, lambda llm: struct.pack('<Q', 90) + b'{"__metadata__":{}}', 'safetensors', 'convert',
    ),
    'checkpoint': (LLM, lambda llm: b'PK\x03\x04' + llm, 'PyTorch checkpoint', 'convert'),
    'compressed': (LLM, lambda llm: b'\x1f\x8b' + llm, 'gzip', 'gunzip'),
    'cut short': (LLM, lambda llm: llm[:300_000], 'cut short', 'Fetch'),
}  # fmt: skip


@pytest.mark.parametrize('case', INSTEAD)
def test_what_lies_there_instead_is_named_with_what_to_do(folder, source, capsys, case):
    name, content, what, remedy = INSTEAD[case]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content((source / 'llm.gguf').read_bytes()))
    status, _, err = adopt(capsys, folder)
    assert status == 2 and not (folder / 'manifest.yaml').exists()
    assert 'no file for llm' in err and path.name in err
    assert what in err and remedy in err


def test_a_control_file_of_aria2_tells_that_its_file_is_unfinished(folder, source, capsys):
    shutil.copy(source / 'llm.gguf', folder / LLM)
    (folder / f'{LLM}.aria2').write_bytes(b'\0\1')
    _, _, err = adopt(capsys, folder)
    assert 'aria2 has not ended its download' in err and 'aria2c' in err
    (folder / f'{LLM}.aria2').unlink()
    assert adopt(capsys, folder)[0] == 0
    (folder / f'{LLM}.aria2').touch()
    with pytest.raises(ModelFileError, match='aria2 has not ended'):
        ModelDirectory.open(folder)


def test_a_link_to_what_is_not_there_says_so(folder, capsys):
    (folder / LLM).symlink_to('../blobs/0a1b')
    assert 'a link to ../blobs/0a1b, which is not there' in adopt(capsys, folder)[2]


def test_blobs_without_a_suffix_are_recognised_and_files_of_a_hub_by_their_names(
    source, tmp_path, capsys
):
    hub = tmp_path / 'models--openbmb--MiniCPM-o-2_6-gguf'
    snapshot = hub / 'snapshots/5a1b'
    snapshot.mkdir(parents=True)
    (hub / 'blobs').mkdir()
    for i, part in enumerate(('llm', 'vision', 'audio')):
        blob = hub / 'blobs' / f'{i}{"0a" * 31}f'
        shutil.copy(source / f'{part}.gguf', blob)
        (snapshot / f'{part}-Q4.gguf').symlink_to(os.path.relpath(blob, snapshot))
    assert adopt(capsys, snapshot)[0] == 0
    assert ModelDirectory.open(snapshot).llm_path.name == 'llm-Q4.gguf'
    (snapshot / 'manifest.yaml').unlink()
    status, out, err = adopt(capsys, hub)
    assert (status, err) == (0, '') and 'not used' not in out and 'llm-Q4.gguf' in out
    shutil.rmtree(hub / 'snapshots')
    (hub / 'manifest.yaml').unlink()
    status, out, _ = adopt(capsys, hub / 'blobs')
    assert status == 0 and 'blobs' not in out.split('wrote')[0]
    assert ModelDirectory.open(hub / 'blobs').family == 'minicpm-o-2.6'


def give_up_writing_everywhere():
    """Take from root, in a child, the right to write where no mode allows it."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)  # others have it not


def test_a_folder_that_cannot_be_written_is_adopted_from_elsewhere(folder, source, tmp_path):
    shutil.copy(source / 'llm.gguf', folder / LLM)
    folder.chmod(0o555)

    def child(*arguments):
        return subprocess.run(
            [sys.executable, '-m', 'minicpmo_ros.cli.main', *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
            preexec_fn=give_up_writing_everywhere,
        )

    refused = child('adopt', folder)
    assert refused.returncode == 2 and '--out' in refused.stderr, refused.stderr
    assert 'Traceback' not in refused.stderr
    out = tmp_path / 'mine'
    done = child('adopt', folder, '--out', out)
    assert done.returncode == 0, done.stderr
    assert child('check', out, '--hashes', '--no-cache').returncode == 0
    assert ModelDirectory.open(out).llm_path == folder / LLM
    assert sorted(path.name for path in folder.iterdir()) == [LLM, 'audio.gguf', 'vision.gguf']
    folder.chmod(0o755)


def with_zeros(path, start, end=None, fill=b'\0'):
    content = bytearray(path.read_bytes())
    end = len(content) if end is None else end
    content[start:end] = fill * (end - start)
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize('part', ['llm', 'vision', 'audio'])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_download_that_stopped_is_refused_wherever_it_did(source, tmp_path, capsys, part, share):
    directory = shutil.copytree(source, tmp_path / 'm')
    path = directory / f'{part}.gguf'
    header = read_header(path)
    with_zeros(path, header.data_offset + int(share * (header.size_bytes - header.data_offset)))
    for verb in (['adopt', directory, '--force'], ['check', directory]):
        assert cli.main([str(word) for word in verb]) == 2
        err = capsys.readouterr().err
        assert 'only zeros from byte' in err and 'did not end' in err and path.name in err


def test_where_the_zeros_begin_is_told(source, tmp_path):
    directory = shutil.copytree(source, tmp_path / 'm')
    path = directory / 'llm.gguf'
    begin = read_header(path).data_offset + 100_001
    with_zeros(path, begin)
    with pytest.raises(ModelFileError) as caught:
        ModelDirectory.open(directory)
    told = int(caught.value.problem.split('from byte ')[1].split()[0])
    assert begin - 16 <= told <= begin


def test_a_hole_in_the_middle_is_found(source, tmp_path):
    directory = shutil.copytree(source, tmp_path / 'm')
    path = directory / 'llm.gguf'
    info = read_header(path).tensors['blk.0.ffn_up.weight']
    with_zeros(path, info.offset, info.offset + info.n_bytes)
    with pytest.raises(ModelFileError, match='blk.0.ffn_up.weight: a download'):
        ModelDirectory.open(directory)


@pytest.mark.parametrize('fill', [b'\xff', b'\xcc'])
@pytest.mark.parametrize('types', ['f16', 'q8_0', 'q4_K'])
def test_what_was_filled_with_another_byte_is_not_written_either(tmp_path, capsys, types, fill):
    directory = write_model(tmp_path / 'm', 'tiny', 1, types, 'f16', 'f16')
    path = directory / 'llm.gguf'
    header, written = read_header(path), path.read_bytes()
    size = header.size_bytes - header.data_offset
    begins = [header.data_offset + int(share * size) for share in (0.0, 0.02, 0.5, 0.97)]
    for begin in (
        *begins,
        header.size_bytes - 600,
    ):  # the last: a page of a file system is missing
        with_zeros(path, begin, fill=fill)
        assert cli.main(['adopt', str(directory), '--force']) == 2
        err = capsys.readouterr().err
        assert f'only bytes of 0x{fill.hex()} from byte' in err and 'did not end' in err, err
        path.write_bytes(written)
    info = header.tensors['blk.0.ffn_up.weight']
    with_zeros(path, info.offset, info.offset + info.n_bytes // 2, fill)
    with pytest.raises(ModelFileError, match='blk.0.ffn_up.weight: a download'):
        ModelDirectory.open(directory)
    path.write_bytes(written)
    ModelDirectory.open(directory)


def test_zeros_that_may_be_meant_pass(source, tmp_path):
    """Biases, tokens that are not used, and columns that fill up a block."""
    directory = shutil.copytree(source, tmp_path / 'm')
    for part in ('llm', 'vision', 'audio'):
        path = directory / f'{part}.gguf'
        header = read_header(path)
        for name, info in header.tensors.items():
            if name.endswith('.bias'):
                with_zeros(path, info.offset, info.offset + info.n_bytes)
            if name in ('token_embd.weight', 'output.weight'):
                with_zeros(path, info.offset + info.n_bytes * 9 // 10, info.offset + info.n_bytes)
    ModelDirectory.open(directory)
    padded = write_model(tmp_path / 'p', 'tiny', 1, 'q4_0', 'q4_0', 'q4_0', pad_ffn=True)
    ModelDirectory.open(padded)


def test_looking_for_weights_reads_little(source):
    header = read_header(source / 'llm.gguf')
    before = _read_bytes()
    require_weights(header)
    assert _read_bytes() - before <= 4096 * (4 * len(header.tensors) + 1)


def _read_bytes():
    with open('/proc/self/io') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('rchar'))


def test_nano_and_its_quantised_sister_have_their_weights():
    root = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'models')
    for name in ('nano', 'nano_q4'):
        model = ModelDirectory.open(os.path.join(root, name))
        assert not model.warnings
