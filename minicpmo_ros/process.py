# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a process must settle before llama.cpp is loaded; every entry point calls it first."""

import os
from contextlib import contextmanager

VISIBLE = 'CUDA_VISIBLE_DEVICES'
DEFAULTS = {
    # Spinning OpenMP barriers cost a factor of 5 to 60 beside any other load.
    'OMP_WAIT_POLICY': 'passive',
    # ggml starts a debugger for a backtrace before it aborts, which can hang a robot.
    'GGML_NO_BACKTRACE': '1',
}


def prepare() -> None:
    """Set the environment llama.cpp needs; what the user has set himself stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def visible_gpu(number: str | None):
    """Let a process that is started meanwhile see this GPU only; None: what this one sees."""
    before = os.environ.get(VISIBLE)
    if number is not None:
        os.environ[VISIBLE] = number
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif number is not None:
            del os.environ[VISIBLE]
