# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a process must settle before llama.cpp is loaded; every entry point calls it first."""

import os

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
