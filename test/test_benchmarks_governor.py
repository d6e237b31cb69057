# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A machine that becomes four times slower loses images without the governor, and none with it."""

import pytest

from benchmarks.governor import LOAD, MACHINES, Machine, summary


@pytest.mark.parametrize('full_s, latest_s', MACHINES[1:])
def test_no_image_is_dropped_and_all_is_back_within_ten_seconds(full_s, latest_s):
    machine = Machine(full_s, latest_s, is_governed=True)
    seen = machine.live()
    dropped, _, _, back_after_s = summary(machine, seen)
    assert dropped == 0
    assert back_after_s <= 10
    assert [one.second for one in seen] == list(range(60))
    assert {one.area for one in seen if one.second + 1 < LOAD.start} == {1.0}


def test_without_the_governor_images_are_dropped():
    machine = Machine(*MACHINES[1], is_governed=False)
    assert summary(machine, machine.live())[0] > 10
