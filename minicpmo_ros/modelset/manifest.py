# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`manifest.yaml`: what lies in a model directory, what may be done with it, and its hashes.

A file counts as unchanged while size, time of change, inode and device are the same; the hash of
an unchanged file is looked up in a cache, not computed. The cache is one small JSON file in a
folder that the caller names; a cache that is damaged or cannot be written costs time and nothing
else. It defends against damage, not against somebody who may write it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import StrictLoader, appearing, parse_yaml, read_bounded, told
from minicpmo_ros.errors import ModelFileError, in_words

FILE_NAME = 'manifest.yaml'
HASH_CHUNK_BYTES = 1 << 22
REPAIR = 'Repair it, or write it anew: minicpmo adopt --force'
CACHE_NAME = 'sha256.json'
MAX_ENTRIES = 256  # the newest stay
MAX_CACHE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One GGUF file: its path from the directory, and what is said about it."""

    path: str
    precision: str = ''
    sha256: str = ''  # lower-case hexadecimal; empty: not recorded


@dataclass(frozen=True)
class Manifest:
    """The facts of a model directory."""

    family: str
    model_id: str
    files: dict = field(default_factory=dict)  # part: FileEntry
    licence: str = ''
    notes: str = ''
    # Whether answers open as the published models' do, prepared for a voice; nano's do not.
    speech: bool = True  # its Family says what the published model does
    # 'qwen2' where the language model does not name its way of splitting text, or wrongly.
    pre_tokenizer: str = ''


def sha256_of(path: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `on_progress(done, total)` counts bytes."""
    digest, done = hashlib.sha256(), 0
    with open(path, 'rb') as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, total)
    return digest.hexdigest()


def write_manifest(directory, manifest: Manifest, hashes: bool = True) -> Path:
    """Write the manifest into its directory; `hashes` fills in what is not recorded yet."""
    directory = Path(directory)
    record = asdict(manifest)
    for entry in record['files'].values():
        if hashes and not entry['sha256']:
            entry['sha256'] = sha256_of(directory / entry['path'])
    path = directory / FILE_NAME
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=90)
    with appearing(path) as file:
        file.write(text.encode())
    return path


EMBEDDED = (
    'The models of the package, such as nano, have names in a shell that has sourced '
    'environment/env.sh, or setup.bash'
)


def read_manifest(directory) -> Manifest:
    """Read and check the manifest of a directory; ModelFileError says what is wrong with it."""
    path = Path(directory) / FILE_NAME
    if path.parent.exists() and not path.parent.is_dir():
        raise ModelFileError(
            path.parent,
            'it is a file, and a model is a directory',
            'Give the directory that holds llm.gguf, vision.gguf, audio.gguf and manifest.yaml',
        )
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ModelFileError(path, 'it is not a file', REPAIR)
    try:
        record = parse_yaml(read_bounded(path), StrictLoader)
    except FileNotFoundError:
        is_there = path.parent.exists()
        raise ModelFileError(
            path if is_there else path.parent,
            'it is missing' if is_there else 'there is no such directory',
            'Give a directory that holds llm.gguf, vision.gguf, audio.gguf and manifest.yaml'
            + ('' if is_there else f'. {EMBEDDED}'),
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(path, f'it cannot be read ({in_words(error)})', REPAIR) from None
    entries = _checked(path, record, Manifest, 'the manifest').pop('files')
    if not isinstance(entries, dict) or set(entries) != set(PARTS):
        raise ModelFileError(
            path,
            "'files' must name exactly llm, vision and audio",
            'Add what is missing and remove the rest',
        )
    files = {
        part: FileEntry(**_checked(path, entries[part], FileEntry, f"'files: {part}'"))
        for part in PARTS
    }
    return Manifest(**{**record, 'files': files})


def _checked(path: Path, record, kind: type, where: str) -> dict:
    """Return the record's keys and values if they are those of the dataclass `kind`."""
    if not isinstance(record, dict):
        raise ModelFileError(path, f'{where} must be a mapping of keys to values', REPAIR)
    allowed = kind.__dataclass_fields__
    if unknown := [told(key).strip("'") for key in record if key not in allowed]:
        raise ModelFileError(
            path,
            f'{where} has unknown keys: {", ".join(unknown[:8])}',
            f'Allowed are {", ".join(allowed)}',
        )
    required = ('family', 'model_id', 'files') if kind is Manifest else ('path',)
    for key in required:
        if not record.get(key):
            raise ModelFileError(path, f'{where} lacks {key!r}', 'Add it')
    for key, value in record.items():
        if allowed[key].type is bool and not isinstance(value, bool):
            raise ModelFileError(
                path, f'{where}: {key!r} must be true or false, not {told(value)}', 'Correct it'
            )
        if allowed[key].type is str and not isinstance(value, str):
            raise ModelFileError(
                path,
                f'{where}: {key!r} must be text, not {told(value)}',
                'Put the value in quotes',
            )
    return dict(record)


class HashCache:
    """Recorded hashes in `folder`, which is made when something is recorded."""

    def __init__(self, folder):
        self.path = Path(folder) / CACHE_NAME
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
                entries = json.loads(file.read(MAX_CACHE_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _write(self) -> None:
        newest = dict(list(self._entries.items())[-MAX_ENTRIES:])
        partial = self.path.with_name(f'.{CACHE_NAME}.{os.getpid()}')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(newest, indent=1), encoding='utf-8')
            os.replace(partial, self.path)
        except OSError:
            pass  # a read-only home: the next start hashes again


def _facts(path: Path) -> list:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
