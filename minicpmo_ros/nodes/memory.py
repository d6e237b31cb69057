# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What this process occupies and what the machine has left.

What takes long is read beside the executor: the kernel walks all pages for it. `root` is where
the machine's files lie.
"""

import ctypes
import math
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

PERIOD_S = 2.0
MIB = 2**20
# Of a control group (a container, a service), version 2 and 1: where it lies, what bounds it, what
# it has, and what of that is file cache.
GROUPS = (
    (
        r'0::/(\S*)', 'sys/fs/cgroup',
        'memory.max', 'memory.current', 'inactive_file',
    ),
    (
        r'\d+:memory:/(\S*)', 'sys/fs/cgroup/memory',
        'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file',
    ),
)  # fmt: skip
# What only a Jetson has: its GPU computes in the machine's own memory.
JETSON_FILES = ('etc/nv_tegra_release', 'dev/nvmap')


def rss_mib() -> float:
    """Give what of this process is in memory, MiB, shared pages counted whole; costs nothing."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def pss_mib() -> float:
    """Give the proportional set size of this process, MiB (Linux, /proc/self/smaps_rollup)."""
    with open('/proc/self/smaps_rollup') as file:
        for line in file:
            if line.startswith('Pss:'):
                return int(line.split()[1]) / 1024
    return 0.0


def meminfo_mib(root='/') -> dict:
    """Give the table of /proc/meminfo, MiB by name."""
    table = {}
    for line in (Path(root) / 'proc/meminfo').read_text().splitlines():
        name, _, rest = line.partition(':')
        if rest.endswith(' kB'):
            table[name] = int(rest.split()[0]) / 1024
    return table


def available_mib(root='/') -> float:
    """Give what programs can still take without swapping, MiB: here, and in this control group."""
    return min(meminfo_mib(root)['MemAvailable'], _group_room_mib(Path(root)))


def _group_room_mib(root: Path) -> float:
    """Give what the control groups of this process leave, MiB; inf where they bound nothing."""
    try:
        own = (root / 'proc/self/cgroup').read_text()
    except OSError:
        own = ''
    rooms = [math.inf]
    for line, folder, *names in GROUPS:
        paths = re.findall(f'^{line}$', own, re.MULTILINE)
        # In a container its own group is the root of what is there.
        rooms += [_room_mib(root / folder / path, *names) for path in {*paths, ''}]
    return min(rooms)


def _room_mib(folder: Path, bound: str, usage: str, cache: str) -> float:
    try:
        limit, used = (int((folder / name).read_text()) for name in (bound, usage))
        counts = (folder / 'memory.stat').read_text().split()
    except (OSError, ValueError):  # not there, or 'max'
        return math.inf
    cached = int(dict(zip(counts[::2], counts[1::2])).get(cache, 0))
    return (limit - used + cached) / MIB


def shares_memory_with_gpu(root='/') -> bool:
    """Tell whether the GPU, where there is one, computes in the machine's own memory."""
    return any((Path(root) / name).exists() for name in JETSON_FILES)


def give_back() -> None:
    """Give the system what was freed and the allocator keeps; after a model was released.

    Of nano's 72 MiB that is 15. Takes some milliseconds: for a worker.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's
    if trim is not None:
        trim(0)


class MemoryWatch:
    """Keeps `mib` up to date in a thread of its own.

    `on_look(begun_s, used_mib, available_mib)` is called there after every look; `begun_s` is
    time.monotonic() before it.
    """

    def __init__(self, on_look: Callable[[float, float, float], None]):
        self.mib = 0.0
        self._on_look = on_look
        self._closing, self._wanted = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, name='memory', daemon=True)
        self._thread.start()

    def look_now(self) -> None:
        """Look again at once, because something was freed, which is given back before."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._wanted.set()
        self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        while not self._closing:
            if self._wanted.is_set():
                self._wanted.clear()
                give_back()
            begun_s = time.monotonic()
            self.mib = pss_mib()
            self._on_look(begun_s, self.mib, available_mib())
            self._wanted.wait(PERIOD_S)
