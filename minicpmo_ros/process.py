# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a process must settle before llama.cpp is loaded (every entry point calls `prepare` first),
and with what it ends.
"""

import ctypes
import os
import signal
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # of prctl(2)
M_ARENA_MAX, ARENAS = -8, 2  # of mallopt(3)
VISIBLE = 'CUDA_VISIBLE_DEVICES'
NO_REUSE = 'LLAMA_GRAPH_REUSE_DISABLE'
DEFAULTS = {
    # Spinning OpenMP barriers cost a factor of 5 to 60 beside any other load.
    'OMP_WAIT_POLICY': 'passive',
    # ggml starts a debugger for a backtrace before it aborts, which can hang a robot.
    'GGML_NO_BACKTRACE': '1',
    # NumPy multiplies little here, and its threads spin: 40 ms of CPU time when it is loaded.
    'OPENBLAS_NUM_THREADS': '1',
}


def prepare() -> None:
    """Settle it all; what the user has set or loaded himself stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # glibc gives every thread an arena, which keeps what was freed in it: 30 to 45 MiB, once three
    # have read the header of a vocabulary of 151,700 tokens.
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None and 'MALLOC_ARENA_MAX' not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


def visible_gpu(number: str | None):
    """Let a process that is started meanwhile see this GPU only; None: what this one sees."""
    return _set(VISIBLE, number)


def graph_reuse(is_allowed: bool):
    """Let a context of llama.cpp that is made meanwhile send its graph again for every decode.

    Unless it `is_allowed` to compute the last one again: an RPC server has one last graph for all
    parts of a process, and forgets it when any of them frees memory; asked for it, it hangs up.
    """
    return _set(NO_REUSE, None if is_allowed else '1')


@contextmanager
def _set(name: str, value: str | None):
    """Set a variable of the environment meanwhile; None: leave it."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            os.environ.pop(name, None)


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends; called in the new process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
