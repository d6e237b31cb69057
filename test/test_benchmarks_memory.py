# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/memory.py calls a kept promise is the promise."""

import pytest

from benchmarks import memory


@pytest.mark.parametrize(
    'planned, measured, kept',
    [
        (248, 200, True),
        (249, 200, False),
        (198, 200, True),
        (197, 200, False),
        (5150, 5000, True),
        (5151, 5000, False),
    ],
)
def test_within_3_percent_or_48_mib_and_never_1_percent_too_low(planned, measured, kept):
    assert memory.keeps_promise(planned, measured) == kept
