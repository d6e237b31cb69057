# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A file is there whole or not at all; where it cannot be written is said before."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from minicpmo_ros.documents import appearing
from minicpmo_ros.errors import InputError
from minicpmo_ros.synthetic.model import write_model

MOST_BYTES = 2 << 20  # of a file, as if the disk ended there
ENVIRONMENT = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}


def verb(*arguments, **options):
    """Start a verb of `minicpmo`."""
    return subprocess.Popen(
        [sys.executable, '-m', 'minicpmo_ros.cli.main', *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def open_named(system_open, path, flags, *more, **options):
    """Open as where the file system has no files without a name, such as over NFS."""
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
    return system_open(path, flags, *more, **options)


@pytest.fixture(params=['nameless', 'hidden'])
def kind(request, monkeypatch):
    """Write with either kind of file that is not there yet."""
    if request.param == 'hidden':
        monkeypatch.setattr(os, 'open', partial(open_named, os.open))
    return request.param


def test_a_writer_that_fails_leaves_what_was_there(tmp_path, kind):
    target = tmp_path / 'rules.yaml'
    target.write_text('before')
    with pytest.raises(ZeroDivisionError), appearing(target) as sink:
        sink.write(b'half')
        raise ZeroDivisionError
    assert target.read_text() == 'before' and list(tmp_path.iterdir()) == [target]
    with appearing(target) as sink:
        sink.write(b'after')
        assert target.read_text() == 'before'
    assert target.read_text() == 'after' and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo, lambda path: os.symlink('/dev/null', path)])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    target = tmp_path / 'rules.yaml'
    make(target)
    before = target.lstat()
    with pytest.raises(InputError, match='rules.yaml is there, and no file; write elsewhere'):
        with appearing(target) as sink:
            sink.write(b'after')
    assert target.lstat() == before and list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match='nowhere is no folder'):
        with appearing(tmp_path / 'nowhere' / 'rules.yaml'):
            raise AssertionError('it was begun')


def test_a_file_may_be_written_by_its_name(tmp_path, kind):
    target = tmp_path / 'm.gguf'
    with appearing(target) as sink:
        Path(sink.name).write_bytes(b'first ')
        sink.seek(0, os.SEEK_END)
        sink.write(b'second')
    assert target.read_bytes() == b'first second' and os.listdir(tmp_path) == ['m.gguf']
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, kind):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    left, other = tmp_path / f'.m.gguf.{gone.pid}.partial', tmp_path / '.m.gguf.x.partial'
    alive = tmp_path / f'.m.gguf.{os.getppid()}.partial'
    for path in (left, other, alive):
        path.touch()
    with appearing(tmp_path / 'm.gguf'):
        pass
    assert not left.exists() and other.exists() and alive.exists()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Give a model whose files are larger than what may be written, but for the audio file."""
    return write_model(tmp_path_factory.mktemp('source') / 'm', 'tiny', 1, hashes=False)


@pytest.mark.parametrize('name', ['synthetic', 'quantize'])
def test_a_disk_that_is_full_leaves_no_file_and_is_told(source, tmp_path, name):
    target = tmp_path / 'm'
    arguments = {
        'synthetic': ['synthetic', target],
        'quantize': ['quantize', source, target, '--type', 'f32'],
    }[name]
    child = verb(
        *arguments,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES)),
    )
    err = child.communicate()[1]
    assert child.returncode == 2 and 'Traceback' not in err
    assert 'llm.gguf could not be written: ' in err and 'Free some room' in err, err
    assert os.listdir(target) == []


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_synthetic_leaves_no_file(tmp_path, number):
    target = tmp_path / 'm'
    child = verb('synthetic', target, '--shape', '2.6', '--llm', 'q4_0')
    try:
        while _written_bytes(child.pid) < 4 << 20:
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.send_signal(number)
        child.wait()
    assert [name for name in os.listdir(target) if not name.endswith('.partial')] == []
    write_model(target, 'tiny', 1, hashes=False)  # which removes what a file system keeps
    assert sorted(os.listdir(target)) == ['audio.gguf', 'llm.gguf', 'manifest.yaml', 'vision.gguf']


def _written_bytes(pid: int) -> int:
    with open(f'/proc/{pid}/io') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('wchar'))
