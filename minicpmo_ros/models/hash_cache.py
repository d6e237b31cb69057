# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SHA-256 of files that have not changed since they were hashed: looked up, not computed.

A file counts as unchanged while size, time of change, inode and device are the same. The cache
is one small JSON file in a folder the caller names; one that is damaged or cannot be written
costs time and nothing else. It defends against damage, not against somebody who may write it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from minicpmo_ros.models.manifest import sha256_of

FILE_NAME = 'sha256.json'
MAX_ENTRIES = 256  # the newest stay
MAX_BYTES = 1 << 20


class HashCache:
    """Recorded hashes in `folder`, which is made when something is recorded."""

    def __init__(self, folder):
        self.path = Path(folder) / FILE_NAME
        self._entries = self._read()

    def sha256(self, path, on_progress: Callable[[int, int], None] | None = None) -> str:
        """Return the SHA-256 of a file; `on_progress(done, total)` in bytes while it is read."""
        path = Path(path)
        key, facts = str(path.resolve()), _facts(path)
        known = self._entries.get(key)
        if isinstance(known, list) and known[:-1] == facts:
            return known[-1]
        digest = sha256_of(path, on_progress)
        if _facts(path) == facts:  # else it was written while it was read
            self._entries.pop(key, None)
            self._entries[key] = [*facts, digest]
            self._write()
        return digest

    def _read(self) -> dict:
        try:
            with open(self.path, encoding='utf-8') as file:
                entries = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _write(self) -> None:
        newest = dict(list(self._entries.items())[-MAX_ENTRIES:])
        partial = self.path.with_name(f'.{FILE_NAME}.{os.getpid()}')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(newest, indent=1), encoding='utf-8')
            os.replace(partial, self.path)
        except OSError:
            pass  # a read-only home: the next start hashes again


def _facts(path: Path) -> list:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
