# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What this process occupies, read beside the executor: the kernel walks all pages for it."""

import ctypes
import os
import threading

PERIOD_S = 2.0


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


def give_back() -> None:
    """Give the system what was freed and the allocator keeps; after a model was released.

    Of nano's 72 MiB that is 15. Takes some milliseconds: for a worker.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's
    if trim is not None:
        trim(0)


class MemoryWatch:
    """Keeps `mib` up to date in a thread of its own."""

    def __init__(self):
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='memory', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        while True:
            self.mib = pss_mib()
            if self._stop.wait(PERIOD_S):
                return
