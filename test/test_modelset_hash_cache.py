# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An unchanged file is hashed once; a changed one again; a bad cache only costs time."""

import os

import pytest

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.modelset import manifest
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.manifest import HashCache, sha256_of
from minicpmo_ros.synthetic.model import write_model


@pytest.fixture
def hashed(monkeypatch):
    """Give the list of files that were really read."""
    read = []

    def counting(path, *more):
        read.append(path.name)
        return sha256_of(path, *more)

    monkeypatch.setattr(manifest, 'sha256_of', counting)
    return read


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'a.gguf'
    path.write_bytes(b'one')
    return path


def test_an_unchanged_file_is_read_once_over_processes(file, tmp_path, hashed):
    for _ in range(3):
        assert HashCache(tmp_path / 'cache').sha256(file) == sha256_of(file)
    assert hashed == ['a.gguf']


def test_a_file_of_the_same_size_and_time_but_another_inode_is_read_again(file, tmp_path, hashed):
    cache, status = HashCache(tmp_path / 'cache'), file.stat()
    first = cache.sha256(file)
    (tmp_path / 'new').write_bytes(b'two')
    os.replace(tmp_path / 'new', file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.sha256(file) == sha256_of(file) != first
    assert len(hashed) == 2


def test_a_file_written_in_place_is_read_again_even_if_its_time_was_set_back(
    file, tmp_path, hashed
):
    cache, status = HashCache(tmp_path / 'cache'), file.stat()
    first = cache.sha256(file)
    while file.stat().st_ctime_ns == status.st_ctime_ns:  # the file system's clock is coarse
        file.write_bytes(b'two')
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.sha256(file) == sha256_of(file) != first


@pytest.mark.parametrize('content', ['', '[]', '{"a": 3}', '[' * 9999, '\0', '{'])
def test_a_damaged_cache_is_written_anew(file, tmp_path, content, hashed):
    (tmp_path / manifest.CACHE_NAME).write_text(content)
    for _ in range(2):
        assert HashCache(tmp_path).sha256(file) == sha256_of(file)
    assert len(hashed) == 1


def test_a_cache_that_cannot_be_written_is_done_without(file, tmp_path):
    (tmp_path / 'file').touch()
    assert HashCache(tmp_path / 'file' / 'below').sha256(file) == sha256_of(file)


def test_a_cached_hash_is_still_compared(tmp_path, hashed):
    write_model(tmp_path / 'm', 'tiny', 1, 'q4_0', 'q4_0', 'q4_0')
    hashed.clear()  # writing the manifest hashes, too
    cache = HashCache(tmp_path / 'cache')
    model = ModelDirectory.open(tmp_path / 'm')
    assert model.verify_hashes(cache.sha256) == model.verify_hashes(cache.sha256) == []
    assert sorted(hashed) == ['audio.gguf', 'llm.gguf', 'vision.gguf']
    content = bytearray((tmp_path / 'm' / 'audio.gguf').read_bytes())
    content[-1] ^= 1
    (tmp_path / 'm' / 'audio.gguf').write_bytes(content)
    with pytest.raises(ModelFileError, match='audio.gguf: its SHA-256'):
        model.verify_hashes(cache.sha256)
