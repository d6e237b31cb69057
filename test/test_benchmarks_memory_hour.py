# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/memory_hour.py counts: notes, and answers that differ because of them."""

from types import SimpleNamespace

import pytest

from benchmarks.memory_hour import EVERY_S, measure
from benchmarks.remembering import NOW
from minicpmo_ros.streams.pairing import Unit


class Robot:
    """Answers with the second that was read last; a forgetful one loses it to its own notes."""

    space = 'robot'

    def __init__(self, is_forgetful=False):
        self.is_forgetful, self.seconds = is_forgetful, []
        vocabulary = SimpleNamespace(encode=str.split)
        self.core = SimpleNamespace(
            session=SimpleNamespace(
                append=lambda unit: self.seconds.append(unit.second),
                reset=self.seconds.clear,
                model=SimpleNamespace(vocabulary=vocabulary),
            )
        )

    def ask(self, text, recollection=None, memory='off'):
        is_note = memory == 'off' and text in NOW.values()
        last = self.seconds[-1]
        if is_note and self.is_forgetful:
            self.seconds.append(0)
        return SimpleNamespace(text=f'{text} {last}')


@pytest.mark.parametrize('is_forgetful', [False, True])
def test_answers_that_notes_change_are_counted(tmp_path, is_forgetful):
    given = SimpleNamespace(seconds=100, questions=100, seed=1)
    found = measure(Robot(is_forgetful), [Unit(n) for n in range(5)], 0.01, tmp_path, given)
    assert found['hour_notes'] == 100 // EVERY_S - 1  # the first counts the time from then on
    assert found['hour_questions'] == 100 and found['hour_file_mib'] > 0
    # In the seconds of a note the forgetful one has forgotten the second by the time it is asked.
    assert found['hour_same'] == (1 - found['hour_notes'] / 100 if is_forgetful else 1)
    assert found['hour_cpu_of_live'] < found['hour_cpu_share'] / 0.01  # what encoding takes counts
