# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Detects model files that change under a running node, and a process that ended because of it.

The pages of a mapped file are the weights themselves: if the file is truncated or overwritten, the
next access to the lost part raises SIGBUS, which ends the process and cannot be caught. So a
change is logged as soon as it is seen. A record of the loaded files, removed at every proper end,
tells the next process of the same node that the previous one did not end properly, and whether
the files had changed. Replacing a file by another of the same name (mv) does no harm: the old one
stays until it is released.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rclpy.logging import get_logging_directory

MAX_RECORD_BYTES = 1 << 16
PUT_BACK = (
    'Write the new file beside it and rename it (mv), then start the node again; or set use_mmap '
    'false'
)


def record_path(node) -> Path:
    """Return the path of a node's record: in ROS's log folder, by domain and full name."""
    domain = node.context.get_domain_id()
    name = node.get_fully_qualified_name().strip('/').replace('/', '.')
    return get_logging_directory() / 'minicpmo_ros' / f'{domain}.{name}.json'


def facts_of(path: Path) -> list:
    """Return [device, inode, size, modification time] of a file, or [] if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


class ModelWatch:
    """Watches the files of one loaded model; `record` is kept while it is loaded."""

    def __init__(self, paths: Mapping[str, Path], mapped: frozenset, record: Path | None = None):
        self._paths, self._mapped, self._record = dict(paths), mapped, record
        self._facts = {part: facts_of(path) for part, path in self._paths.items()}
        if record is not None:
            _write(record, {
                'pid': os.getpid(),
                'started': _started(os.getpid()),
                'files': {str(path): self._facts[part] for part, path in self._paths.items()
                          if part in mapped},
            })  # fmt: skip

    def changes(self) -> list:
        """Return the changes since the last call: [(is it dangerous, a sentence)]."""
        told = []
        for part, path in self._paths.items():
            before, now = self._facts[part], facts_of(path)
            if now == before:
                continue
            self._facts[part] = now
            told.append(_change(path, before, now, part in self._mapped))
        return told

    def close(self) -> None:
        """Remove the record: what comes next ended properly."""
        if self._record is not None:
            with suppress(OSError):
                self._record.unlink()


class ModelFiles:
    """The files of the model that a node has loaded, as far as the node tells of them."""

    def __init__(self, node):
        self._node, self._watch = node, None

    def tell_last_end(self) -> None:
        """Log why the previous process ended, if it did not end properly."""
        record = record_path(self._node)
        if told := last_end(record):
            self._node.get_logger().error(told)
            record.unlink(missing_ok=True)

    def watch(self, model) -> None:
        """Watch the files of a ModelDirectory that has been loaded."""
        paths = {role: header.path for role, header in model.headers.items()}
        mapped = frozenset(['llm'] if self._node.table.values().use_mmap else [])
        self._watch = ModelWatch(paths, mapped, record_path(self._node))

    def unwatch(self) -> None:
        """Forget them: the model is unloaded."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def look(self) -> None:
        """Check whether the files have changed; runs in the memory watch's thread."""
        watch = self._watch
        for is_dangerous, told in watch.changes() if watch is not None else ():
            self._node.post(lambda how=is_dangerous, text=told: self._tell(how, text))

    def _tell(self, is_dangerous: bool, text: str) -> None:
        if is_dangerous:
            self._node.get_logger().error(text)
        else:
            self._node.get_logger().warning(text)


def _change(path: Path, before: list, now: list, is_mapped: bool) -> tuple:
    if not now:
        return False, f'{path} is no longer there; what is loaded goes on. Put it back'
    if not before or now[:2] != before[:2]:
        return False, (
            f'{path} is another file than the one that was loaded; that one stays in use until '
            'the node is configured again'
        )
    what = f'{path} was changed where it lies ({before[2]} bytes before, {now[2]} now)'
    if is_mapped:
        return True, (
            f'{what}, and its weights are mapped from there: answers may be wrong, and where it '
            f'was cut the process ends with SIGBUS. {PUT_BACK}'
        )
    return False, f'{what}; what is loaded goes on. Configure the node again to use it'


def last_end(record: Path) -> str:
    """Return how the previous process ended, by its record; '' if it ended properly.

    An unreadable record, or that of a running process, is ignored.
    """
    try:
        with open(record, encoding='utf-8') as file:
            left = json.loads(file.read(MAX_RECORD_BYTES))
        pid, started, files = int(left['pid']), left['started'], dict(left['files'])
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return ''
    if _started(pid) == started:
        return ''
    changed = [path for path, facts in files.items() if facts_of(Path(path)) != facts]
    said = f'The process before this one ({pid}) did not end properly'
    if not changed:
        return f'{said}: it crashed or was killed, perhaps for memory. The log before has more.'
    sizes = ', '.join(
        f'{path} ({_size(files[path])} bytes then, {_size(facts_of(Path(path)))} now)'
        for path in changed
    )
    return (
        f'{said}, and what it had mapped has changed since: {sizes}. A mapped file that is cut or '
        f'written over ends the process with SIGBUS (exit code -7 in the launch). {PUT_BACK}.'
    )


def _size(facts) -> str:
    return str(facts[2]) if isinstance(facts, list) and len(facts) == 4 else 'no'


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; '' where there is none. Numbers come again."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[19]
    except (OSError, IndexError):
        return ''


def _write(record: Path, content: dict) -> None:
    """Keep the record; where it cannot be written, the next process knows nothing."""
    partial = record.with_name(f'.{record.name}.{os.getpid()}')
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), encoding='utf-8')
        os.replace(partial, record)
