# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What every process settles first."""

import subprocess
import sys
from functools import cache

import pytest

ARENAS = """
import ctypes, threading
from minicpmo_ros.process import prepare
prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(6)
def take():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(b'/dev/stdout', b'w'))
libc.malloc_info(0, file)
libc.fflush(file)
"""


@pytest.mark.parametrize('given, count', [(None, 2), ('4', 4)])
def test_many_threads_share_few_arenas_unless_the_user_says_otherwise(monkeypatch, given, count):
    monkeypatch.delenv('MALLOC_ARENA_MAX', raising=False)
    if given:
        monkeypatch.setenv('MALLOC_ARENA_MAX', given)
    told = subprocess.run([sys.executable, '-c', ARENAS], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count('<heap nr=') == count


@cache
def loaded_with(statements: str) -> frozenset:
    """Give the names of all modules that a new process has after it has run some statements."""
    return frozenset(
        subprocess.run(
            [sys.executable, '-c', f'import sys; {statements}; print(*sys.modules)'],
            capture_output=True, text=True, check=True,
        ).stdout.split()
    )  # fmt: skip


PREPARED = 'from minicpmo_ros.process import prepare; prepare(); '


def test_a_robot_does_not_load_the_library_for_video_until_an_image_needs_it():
    """PyAV takes 15 MiB and 30 ms, and hardly any camera sends PNG with 16 bits a colour."""
    told = loaded_with('import minicpmo_ros.ros.live')
    assert 'PIL.Image' in told and 'av' not in told


def test_a_verb_loads_neither_numpy_nor_the_modules_of_other_verbs():
    given = PREPARED + 'from minicpmo_ros.cli import main; main.make_parser("plan")'
    verbs = {name for name in loaded_with(given) if name.startswith('minicpmo_ros.cli.')}
    assert verbs == {'minicpmo_ros.cli.main', 'minicpmo_ros.cli.plan', 'minicpmo_ros.cli.options'}
    assert 'numpy' not in loaded_with(given)


def test_who_asks_a_robot_does_not_load_llama_cpp():
    """It would take a third of the CPU time that `minicpmo ask` takes to load."""
    told = loaded_with('import minicpmo_ros.client')
    assert 'rclpy' in told and 'llama_cpp' not in told
