# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What this process occupies and what the machine has left.

What takes long is read beside the executor: the kernel walks all pages for it. `root` is where
the machine's files lie.
"""

import ctypes
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from minicpmo_ros.units import MIB

log = logging.getLogger(__name__)

PERIOD_S = 2.0
# Of a control group (a container, a service), version 2 and 1: where it lies, what bounds it, what
# it has, and what of that are pages of files: touched once, touched again, mapped.
GROUPS = (
    (
        r'0::/(\S*)', 'sys/fs/cgroup',
        'memory.max', 'memory.current', ('inactive_file', 'active_file', 'file_mapped'),
    ),
    (
        r'\d+:memory:/(\S*)', 'sys/fs/cgroup/memory',
        'memory.limit_in_bytes', 'memory.usage_in_bytes',
        ('total_inactive_file', 'total_active_file', 'total_mapped_file'),
    ),
)  # fmt: skip
# What only a Jetson has: its GPU computes in the machine's own memory.
JETSON_FILES = ('etc/nv_tegra_release', 'dev/nvmap')


def rss_mib() -> float:
    """Return what of this process is in memory, MiB, shared pages counted whole; cheap."""
    return resident_mib()['VmRSS']


def pss_mib() -> float:
    """Return the proportional set size of this process, MiB (Linux, /proc/self/smaps_rollup)."""
    with open('/proc/self/smaps_rollup') as file:
        for line in file:
            if line.startswith('Pss:'):
                return int(line.split()[1]) / 1024
    return 0.0


def meminfo_mib(root='/') -> dict:
    """Return the table of /proc/meminfo, MiB by name."""
    return _table_mib(Path(root) / 'proc/meminfo')


def available_mib(root='/', beside: tuple = ()) -> float:
    """Return what programs can still take without swapping, MiB: here, and in this control group.

    beside: processes (numbers, or 'self') that are to go on. Linux counts as available the pages
    of files that they have mapped, weights above all, though they would have to be read again.
    """
    mapped_mib = sum(resident_mib(process, root)['RssFile'] for process in beside)
    return max(
        0.0, min(meminfo_mib(root)['MemAvailable'] - mapped_mib, _group_room_mib(Path(root)))
    )


def resident_mib(process='self', root='/') -> dict:
    """Return what a process has, MiB by name: VmRSS in memory, of it RssFile of files; cheap.

    Zeros for a process that has ended.
    """
    none = {'VmRSS': 0.0, 'RssFile': 0.0}
    try:
        return none | _table_mib(Path(root) / f'proc/{process}/status')
    except OSError:
        return none


def _table_mib(path: Path) -> dict:
    """Read the rows of one of the kernel's tables that are in kB, as MiB by name."""
    table = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(':')
        if rest.endswith(' kB'):
            table[name] = int(rest.split()[0]) / 1024
    return table


def _group_room_mib(root: Path) -> float:
    """Return what the control groups of this process leave, MiB; inf where they bound nothing."""
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


def _room_mib(folder: Path, bound: str, usage: str, of_files: tuple) -> float:
    try:
        limit, used = (int((folder / name).read_text()) for name in (bound, usage))
        counts = (folder / 'memory.stat').read_text().split()
    except (OSError, ValueError):  # not there, or 'max'
        return math.inf
    found = dict(zip(counts[::2], counts[1::2]))
    idle, active, mapped = (int(found.get(name, 0)) for name in of_files)
    cached = max(0, min(idle, idle + active - mapped))  # what is mapped is in use
    return (limit - used + cached) / MIB


def shares_memory_with_gpu(root='/') -> bool:
    """Return whether the GPU, where there is one, computes in the machine's own memory."""
    return any((Path(root) / name).exists() for name in JETSON_FILES)


def give_back() -> None:
    """Return freed memory that the allocator keeps to the system, after a model was released.

    Of nano's 72 MiB that is 15. Takes some milliseconds: for a worker.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's
    if trim is not None:
        trim(0)


class MemoryWatch:
    """Keeps `mib` up to date in a thread of its own.

    `on_look(begun_s, used_mib, available_mib)` is called there after every look; `begun_s` is
    time.monotonic() before it. A look that fails is told to `on_error`, and the next one comes.
    """

    def __init__(
        self,
        on_look: Callable[[float, float, float], None],
        on_error: Callable[[Exception], None] = lambda error: log.error(
            'the memory cannot be looked at: %r', error
        ),
    ):
        self.mib = 0.0
        self._on_look, self._on_error = on_look, on_error
        self._closing, self._wanted = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, name='memory', daemon=True)
        self._thread.start()

    def look_now(self) -> None:
        """Measure again at once, because something was freed, which is given back before."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._wanted.set()
        self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        while not self._closing:
            try:
                self._look()
            except Exception as error:
                self._on_error(error)
            self._wanted.wait(PERIOD_S)

    def _look(self) -> None:
        if self._wanted.is_set():
            self._wanted.clear()
            give_back()
        begun_s = time.monotonic()
        self.mib = pss_mib()
        self._on_look(begun_s, self.mib, available_mib(beside=('self',)))
