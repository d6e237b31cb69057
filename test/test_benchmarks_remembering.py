# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/remembering.py calls right is right: by one who reads notes without an error."""

import re
from types import SimpleNamespace

import pytest

from benchmarks import remembering
from benchmarks.remembering import MIDNIGHT, NOW, Scene
from minicpmo_ros.notes.recall import Recaller
from minicpmo_ros.streams.pairing import Unit

SEEN = (
    ('star', 'red', 'one', 'bell'), ('ring', 'blue', 'two', 'siren'),
    ('cross', 'green', 'three', 'knock'), ('square', 'white', 'one', 'speech'),
)  # fmt: skip
SCENES = [
    Scene(Unit(n), dict(zip(NOW, seen)), dict(zip(NOW, seen))) for n, seen in enumerate(SEEN)
]


class Reader:
    """A robot that answers with the label of the newest line that is as long ago as asked."""

    space = 'reader'

    def __init__(self):
        session = SimpleNamespace(reset=lambda: None, append=lambda unit: None)
        self.core = SimpleNamespace(session=session)

    def ask(self, text, recollection=None, memory='off'):
        label, ago = re.match(r'what (\w+) was noted (.*)\?', text).groups()
        lines = (recollection.text if recollection else '').splitlines()
        line = next((line for line in lines[::-1] if f', {ago}]' in line), '')
        found = re.search(rf'{label}: (\w+)', line)
        return SimpleNamespace(text=found[1] if found else 'nothing')

    def recaller(self, store):
        return Recaller(
            lambda read: read(store),
            lambda text: len(text) // 4,
            remembering.UTC,
            space=self.space,
        )


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    return remembering.past(tmp_path_factory.mktemp('days'), Reader(), SCENES, 3, 7)


def test_who_reads_the_right_note_is_right_and_who_reads_none_is_not(found):
    assert found['past_right_oracle'] == 1 and found['past_right_without'] == 0
    assert found['past_questions'] == 3 * 4 * 4


def test_the_note_of_the_minute_is_recalled_and_the_last_sound_is_known(found):
    assert found['recall_at_8'] == {1: 1, 5: 1, 15: 1, 60: 1}
    assert found['past_right_by_minutes'] == {1: 1, 5: 1, 15: 1, 60: 1}
    assert found['when_right'] == 1


def test_an_hour_of_notes_is_small_and_finding_is_measured(tmp_path):
    cost = remembering.hour(tmp_path, SCENES, 0.1, 1)
    assert 0 < cost['file_mib_hour'] < 3 and cost['store_cpu_share'] < cost['cpu_share']
    times = remembering.queries(tmp_path, 300, 20, 1)
    assert 0 < times['query_p50_ms'] <= times['query_p90_ms'] and times['notes'] == 300
    assert MIDNIGHT % 86_400 == 0
