# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a process must settle before llama.cpp is loaded (every entry point calls `prepare` first),
and with what it ends.
"""

import ctypes
import importlib.util
import os
import signal
import sys
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
# Packages that load more than is wanted of them, and where names are that are wanted of them.
PARTLY = {
    # Its own API in Python, which needs jinja2, a cache on the disk and more: 40 ms of CPU time.
    'llama_cpp': {},
    # What makes Python of .msg files, with its parser, beside what loads it: 20 ms.
    'rosidl_generator_py': {'import_type_support': 'import_type_support_impl'},
}


def prepare() -> None:
    """Settle it all; what the user has set or loaded himself stays."""
    for package, homes in PARTLY.items():
        load_partly(package, homes)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # glibc gives every thread an arena, which keeps what was freed in it: 30 to 45 MiB, once three
    # have read the header of a vocabulary of 151,700 tokens.
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None and 'MALLOC_ARENA_MAX' not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


def load_partly(name: str, homes: dict) -> None:
    """Let the modules of a package be imported without its __init__, which may load much more.

    It runs once a name of it is wanted that is none of `homes`: {name: its module}.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return
    package = importlib.util.module_from_spec(spec)

    def missing(wanted: str):
        if wanted in homes:
            module = importlib.import_module(f'{name}.{homes[wanted]}')
            setattr(package, wanted, getattr(module, wanted))
        else:
            del package.__getattr__
            spec.loader.exec_module(package)
        return getattr(package, wanted)

    package.__getattr__ = missing
    sys.modules[name] = package


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
