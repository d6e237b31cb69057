# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`manifest.yaml`: what lies in a model directory, and what may be done with it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from minicpmo_ros.errors import ModelFileError

FILE_NAME = 'manifest.yaml'
ROLES = ('llm', 'vision', 'audio')
ARCHITECTURES = {'minicpm-o-2.6': 'qwen2', 'minicpm-o-4.5': 'qwen3'}  # of the LLM, by family
# llama.cpp's numbers for the vision files of a family; the first is the published one.
VISION_VERSIONS = {'minicpm-o-2.6': (4,), 'minicpm-o-4.5': (100045, 45, 451)}
HASH_CHUNK_BYTES = 1 << 22


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
    files: dict = field(default_factory=dict)  # role: FileEntry
    licence: str = ''
    notes: str = ''


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
    path.write_text(text, encoding='utf-8')
    return path


def read_manifest(directory) -> Manifest:
    """Read and check the manifest of a directory; ModelFileError says what is wrong with it."""
    path = Path(directory) / FILE_NAME
    try:
        record = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ModelFileError(
            path,
            'it is missing',
            'Give a directory that holds llm.gguf, vision.gguf, audio.gguf and manifest.yaml',
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelFileError(
            path, f'it cannot be read ({_one_line(error)})', 'Repair it or write it anew'
        ) from None
    entries = _checked(path, record, Manifest, 'the manifest', {'files'}).pop('files')
    if not isinstance(entries, dict) or set(entries) != set(ROLES):
        raise ModelFileError(
            path,
            "'files' must name exactly llm, vision and audio",
            'Add what is missing and remove the rest',
        )
    files = {
        role: FileEntry(**_checked(path, entries[role], FileEntry, f"'files: {role}'"))
        for role in ROLES
    }
    return Manifest(**{**record, 'files': files})


def _checked(path: Path, record, kind: type, where: str, nested: set = frozenset()) -> dict:
    """Return the record's keys and values if they are those of the dataclass `kind`."""
    if not isinstance(record, dict):
        raise ModelFileError(
            path, f'{where} must be a mapping of keys to values', 'Repair it or write it anew'
        )
    allowed = kind.__dataclass_fields__
    if unknown := [str(key) for key in record if key not in allowed]:
        raise ModelFileError(
            path,
            f'{where} has unknown keys: {", ".join(unknown)}',
            f'Allowed are {", ".join(allowed)}',
        )
    required = ('family', 'model_id', 'files') if kind is Manifest else ('path',)
    for key in required:
        if not record.get(key):
            raise ModelFileError(path, f'{where} lacks {key!r}', 'Add it')
    for key, value in record.items():
        if key not in nested and not isinstance(value, str):
            raise ModelFileError(
                path, f'{where}: {key!r} must be text, not {value!r}', 'Put the value in quotes'
            )
    return dict(record)


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
