# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are there whole or not at all, whatever ends their writer."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minicpmo_ros.errors import InputError


def require_folder(target: Path) -> None:
    """Raise InputError where there is no folder to write a file in; for before what takes long."""
    if not target.parent.is_dir():
        raise InputError(
            f'{target.parent} is no folder; make it, or write {target.name} elsewhere.'
        )


@contextmanager
def appearing(target: Path, n_bytes: int = 0) -> Iterator:
    """Give a file to write that gets its name when all went well, and vanishes otherwise.

    n_bytes: what it will take; InputError where the disk has no room for it, or no such folder.
    """
    require_folder(target)
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise InputError(
            f'{target} will have {n_bytes / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB '
            'free. Free some, or write elsewhere.'
        )
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    try:
        with open(partial, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
