# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A file is there whole or not at all; where it cannot be written is said before."""

import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.models.appearing import appearing


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
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


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match='nowhere is no folder'):
        with appearing(tmp_path / 'nowhere' / 'rules.yaml'):
            raise AssertionError('it was begun')
