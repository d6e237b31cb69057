# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files read safely, and written whole or not at all.

YAML and JSON that a person or another program wrote gives a value, or a reason in one line. PyYAML
raises a dozen kinds of errors beside its own, of a date that is none, of an int without digits, of
a value that is nested too deep: nobody who reads a file shall have to know them.

A file that is written appears under its name when all of it is on the disk, whatever ends its
writer.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import Repr

import yaml

from minicpmo_ros.errors import BusyError, InputError

MOST_TOLD = 100  # characters of a value
_OF_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_SHORT = Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 80, 80, 3
MAX_FILE_BYTES = 2**28  # a bag that is taken for questions is not read into memory
SQLITE = b'SQLite format 3\0'  # how its files begin
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_utf8(value) -> bool:
    """Return whether it is a text that UTF-8 can hold: JSON may have halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def without_repeats(pairs: list) -> dict:
    """Return the dict of these pairs; ValueError for a name that occurs twice."""
    read = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f'the name {name!r} occurs twice')
        read[name] = value
    return read


class StrictLoader(yaml.SafeLoader):
    """Refuse a name that occurs twice, of which YAML keeps the last one without a word."""

    def construct_mapping(self, node, deep=False):
        """Return the dict of a mapping."""
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        without_repeats([(name, None) for name in names if name != '<<'])
        return super().construct_mapping(node, deep)


def parse_yaml(data: str | bytes, loader: type = yaml.SafeLoader):
    """Return what a YAML document says; raise ValueError, with one line, where it is none."""
    try:
        return yaml.load(data, loader)
    except RecursionError:
        raise ValueError('lists or objects are nested too deep') from None
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except _OF_VALUES as error:
        raise ValueError(f'a value is not what it is written as: {_one_line(error)}') from None


def told(value) -> str:
    """Return a value of any type, size and depth in a few words, for a sentence about it."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        return f'a very long {type(value).__name__}'
    return text if len(text) <= MOST_TOLD else text[: MOST_TOLD - 3] + '...'


def differences(mine: dict, other: dict) -> str:
    """Say how one record differs from another, field by field; '' where it does not."""
    found = []
    for name in dict.fromkeys([*mine, *other]):
        a, b = mine.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f'{name} {inner}' for inner in filter(None, [differences(a, b)])]
        elif a != b:
            found.append(f'{name} {_short(b)} instead of {_short(a)}')
    return ', '.join(found)


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + '...'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())


def read_bounded(path) -> bytes:
    """Return what a file holds; OSError also where it is too large for what people write."""
    with Path(path).open('rb') as file:
        if os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
            data = bytearray()  # a device has no size, and perhaps no end
            while len(data) <= MAX_FILE_BYTES:
                if not (piece := file.read(2**20)):
                    return bytes(data)
                data += piece
    raise OSError(errno.EFBIG, f'it is larger than {MAX_FILE_BYTES >> 20} MiB')


def read_json(path: Path, expected_format: str) -> dict:
    """Read a JSON or YAML object that says it is of this format; raises InputError."""
    is_yaml = path.suffix.lower() in ('.yaml', '.yml')
    kind = 'YAML' if is_yaml else 'JSON'
    try:
        data = read_bounded(path)
        if not data.strip():
            raise InputError(f'{path}: it is empty.')
        data = parse_yaml(data, StrictLoader) if is_yaml else _parsed(data)
    except OSError as error:
        raise InputError(f'{path}: it cannot be read ({error.strerror}).') from error
    except RecursionError as error:
        raise InputError(
            f'{path}: it is not {kind} that can be read: lists or objects are nested too deep.'
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f'{path}: it is no text in UTF-8 (byte {error.start}). Save it in UTF-8, if it is the '
            'right file.'
        ) from error
    except ValueError as error:  # or a repeated name
        raise InputError(f'{path}: it is not {kind} ({error}).') from error
    if not isinstance(data, dict) or 'format' not in data:
        raise InputError(
            f'{path}: it does not say what it is; an object with "format": "{expected_format}" is '
            f'expected, and {_kind(data)} is there. It is a file of something else, or lacks this.'
        )
    if data['format'] != expected_format:
        raise InputError(
            f'{path}: its format is {told(data["format"])}, {expected_format!r} is expected.'
        )
    return data


def _kind(data) -> str:
    """Return what a document is, in words."""
    if isinstance(data, dict):
        return f'one with {", ".join(told(name) for name in list(data)[:5]) or "nothing"}'
    return f'a list of {len(data)}' if isinstance(data, list) else told(data)


def _parsed(data: bytes):
    return json.loads(data, object_pairs_hook=without_repeats)


def require_place(target: Path, begins: bytes = b'') -> None:
    """Raise InputError where no file can be written there; for before what takes long.

    begins: how what is written begins; a file that begins otherwise is not written over.
    """
    if target.exists() and not target.is_file():  # a folder, a device, a pipe
        raise InputError(f'{target} is there, and no file; write elsewhere.')
    if begins and target.exists() and is_of_another_kind(target, begins):
        raise InputError(f'{target} is a file of another kind; write elsewhere.')
    if not target.parent.is_dir():
        raise InputError(
            f'{target.parent} is no folder; make it, or write {target.name} elsewhere.'
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; InputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{folder}: no folder can be made there ({error.strerror}). Name another one.'
        ) from error


def make_place(target: Path, begins: bytes = b'') -> None:
    """Make the folder of a file that will be written, before what takes long; or InputError."""
    make_folder(target.parent)
    require_place(target, begins)


def write_text(target: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all, into a folder that is made if it is missing."""
    make_place(target)
    with appearing(target) as file:
        file.write(text.encode())


def require_other(target: Path, *sources) -> None:
    """Raise InputError where a file to be written is one of those that are read for it."""
    if target.exists() and any(Path(s).exists() and target.samefile(s) for s in sources):
        raise InputError(f'{target} is one of the files to be read; write elsewhere.')


def is_of_another_kind(path: Path, magic: bytes) -> bool:
    """Return whether a file never began with these bytes: of one that was cut, a part is left.

    Zeros are what a power failure leaves of a page.
    """
    with open(path, 'rb') as file:
        head = file.read(len(magic))
    return bool(head.strip(b'\0')) and not magic.startswith(head)


def put_aside(path: Path, beside: tuple = ()) -> Path:
    """Give a file that is of no use another name, and those whose names go on; return its name."""
    number = 1
    while (aside := Path(f'{path}.damaged-{number}')).exists():
        number += 1
    for end in ('', *beside):
        if (part := Path(f'{path}{end}')).exists():
            part.rename(f'{aside}{end}')
    return aside


def hold_for_writing(path: Path) -> int:
    """Return a descriptor that keeps a file for one writer, by a lock beside it; to be closed.

    Raises BusyError with the process that writes it, OSError where there can be no lock, and
    InputError where a folder, a device or a pipe is there, which nobody shall write over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    require_place(path)
    descriptor = os.open(f'{path}.lock', os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors='replace').strip()
        os.close(descriptor)
        raise BusyError(f'process {owner or "of another user"}') from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


@contextmanager
def appearing(target: Path, n_bytes: int = 0) -> Iterator:
    """Open a file for writing that gets its name if all went well, and vanishes otherwise.

    Others may open it by its `name` meanwhile. It has no entry in the folder until it is whole, so
    that not even a killed writer leaves one; where the file system cannot do that it has a hidden
    one, which the next writer of the file removes.
    n_bytes: what it will take; InputError where the disk has no room for it, or no such folder.
    """
    require_place(target)
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise InputError(
            f'{target} will have {n_bytes / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB '
            'free. Free some, or write elsewhere.'
        )
    _remove_left(target)
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    descriptor = _nameless(partial)
    try:
        name = partial if descriptor is None else f'/proc/self/fd/{descriptor}'
        with open(name, 'w+b') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if descriptor is not None:
            _link(descriptor, partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno in (*FULL, None):  # None: NumPy tells only how much was written
            raise InputError(
                f'{target} could not be written: {error.strerror or error}. Free some room, or '
                'write elsewhere.'
            ) from error
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
        partial.unlink(missing_ok=True)


def _nameless(partial: Path) -> int | None:
    """Open a file in that folder that has no name yet; None where none could be given one."""
    try:
        probe = os.open(partial.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:
        return None
    try:  # one file can be given a name once only: another is tried
        _link(probe, partial)
        partial.unlink()
        return os.open(partial.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:
        return None
    finally:
        os.close(probe)


def _link(descriptor: int, path: Path) -> None:
    """Give an open file a name. Python follows the link only if it is told of a folder, too."""
    path.unlink(missing_ok=True)
    os.link(f'/proc/self/fd/{descriptor}', path, src_dir_fd=descriptor, follow_symlinks=True)


def _remove_left(target: Path) -> None:
    """Remove what writers of this file left that are no more."""
    start, end = f'.{target.name}.', '.partial'
    for entry in os.scandir(target.parent):
        pid = entry.name[len(start) : -len(end)]
        if entry.name.startswith(start) and entry.name.endswith(end) and pid.isdigit():
            if not Path(f'/proc/{pid}').exists():
                Path(entry.path).unlink(missing_ok=True)
