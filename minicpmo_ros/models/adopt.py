# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Published MiniCPM-o files become a model directory: recognised by their headers, not names.

The files stay where they are; only `manifest.yaml` is written beside them. What fits no role (the
voice files, other models) is named with the reason. Where several files fit one role, those that
belong to the others are kept; of more than one, the caller chooses.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from minicpmo_ros.encoders import siglip_layout, whisper_layout
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.header import Header, read_header
from minicpmo_ros.language import llm_layout
from minicpmo_ros.models.directory import WHAT, ModelDirectory, precision_of, role_of
from minicpmo_ros.models.manifest import (
    ARCHITECTURES,
    FILE_NAME,
    ROLES,
    FileEntry,
    Manifest,
    sha256_of,
    write_manifest,
)

MAX_DEPTH = 3  # folders below the directory: llama.cpp-omni uses one
MAX_FILES = 256
FAMILIES = {architecture: family for family, architecture in ARCHITECTURES.items()}
LOOK_UP = 'Not recorded: look it up where the files were published.'


@dataclass(frozen=True)
class Candidate:
    """One file that fits a role."""

    header: Header
    role: str
    width: int  # of its embeddings
    family: str  # '' where it serves several

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.header.path

    @property
    def precision(self) -> str:
        """The type most of its weights have, as written in its header."""
        return precision_of(self.header)


@dataclass(frozen=True)
class Adoption:
    """What was found in a directory: the files of a model and those that are not used."""

    model: ModelDirectory  # checked; its manifest is not written yet
    unused: tuple  # (path, reason)


def find(
    directory,
    chosen: Mapping[str, Path] | None = None,
    model_id: str = '',
    licence: str = '',
) -> Adoption:
    """Recognise the files below a directory and check that they belong together.

    chosen: role -> file, taken from the directory as given or relative to the working folder.
    Raises ModelFileError where a role has no file or the files do not fit, InputError where
    there is a choice to make.
    """
    directory = Path(directory)
    chosen = chosen or {}
    candidates, unused = _recognise(directory)
    by_role = {role: [each for each in candidates if each.role == role] for role in ROLES}
    for role, path in chosen.items():
        by_role[role] = [_chosen(directory, role, Path(path))]
    _require_all(directory, by_role, unused)
    picked = _pick(directory, by_role)
    kept = {each.path.resolve() for each in picked.values()}
    unused += [
        (each.path, 'another was chosen') for each in candidates if each.path.resolve() not in kept
    ]
    manifest = Manifest(
        family=picked['llm'].family,
        model_id=model_id or picked['llm'].family,
        files={
            role: FileEntry(_path_from(directory, each.path), each.precision)
            for role, each in picked.items()
        },
        licence=licence or LOOK_UP,
        notes='Adopted from published files.',
    )
    return Adoption(ModelDirectory.of(directory, manifest), tuple(sorted(unused)))


def write(
    adoption: Adoption, force: bool = False, sha256: Callable[[Path], str] = sha256_of
) -> Path:
    """Hash the files and write the manifest; InputError where there is one, but for `force`."""
    model = adoption.model
    require_no_manifest(model.path, force)
    files = {
        role: replace(model.manifest.files[role], sha256=sha256(header.path))
        for role, header in model.headers.items()
    }
    return write_manifest(model.path, replace(model.manifest, files=files))


def require_no_manifest(directory: Path, force: bool) -> None:
    """Raise InputError where a manifest would be overwritten."""
    if not force and (directory / FILE_NAME).exists():
        raise InputError(
            f'{directory / FILE_NAME} is there already; `minicpmo check` tells whether it is '
            'right, --force writes it anew.'
        )


def _path_from(directory: Path, path: Path) -> str:
    """Give the path as it leads from the directory; '..' in it is of where a link leads to."""
    try:
        return str(path.relative_to(directory))
    except ValueError:
        return os.path.relpath(path.parent.resolve() / path.name, directory.resolve())


def _recognise(directory: Path) -> tuple:
    """Return candidates and, as (path, reason), the files that are none."""
    if not directory.is_dir():
        raise ModelFileError(directory, 'it is no directory', 'Give the folder of the GGUF files')
    candidates, unused = [], []
    for path in _gguf_files(directory):
        try:
            candidates.append(_candidate(read_header(path)))
        except ModelFileError as error:
            unused.append((path, error.problem))
    return candidates, unused


def _gguf_files(directory: Path) -> list:
    """Return the GGUF files of a directory and the folders in it, in the order of names."""
    found = []
    for folder, folders, names in os.walk(directory):
        depth = len(Path(folder).relative_to(directory).parts)
        folders[:] = sorted(folders) if depth < MAX_DEPTH else []
        found += [Path(folder) / name for name in sorted(names) if name.lower().endswith('.gguf')]
        if len(found) > MAX_FILES:
            raise InputError(
                f'{directory} holds more than {MAX_FILES} GGUF files. Give the folder of one '
                'model.'
            )
    return found


def _candidate(header: Header) -> Candidate:
    """Tell what a file is by the same checks a loader makes; ModelFileError says why not."""
    role = role_of(header)
    if role == 'llm':
        facts = llm_layout.read_facts(header)
        return Candidate(header, role, facts.width, FAMILIES[facts.architecture])
    if role == 'vision':
        return Candidate(header, role, siglip_layout.read_facts(header).output_width, '')
    if role == 'audio':
        return Candidate(header, role, whisper_layout.read_facts(header).width, '')
    architecture = header.metadata['general.architecture']
    raise ModelFileError(
        header.path,
        f'its architecture {architecture!r} is none that is used here (a voice, or another model)',
        'Leave it out',
    )


def _chosen(directory: Path, role: str, path: Path) -> Candidate:
    inside = directory / path
    candidate = _candidate(read_header(inside if inside.exists() else path))
    if candidate.role != role:
        raise ModelFileError(
            candidate.path,
            f'it is {WHAT[candidate.role]}, {WHAT[role]} is expected',
            f'Give it as --{candidate.role}',
        )
    return candidate


def _require_all(directory: Path, by_role: Mapping, unused: list) -> None:
    missing = [role for role in ROLES if not by_role[role]]
    if missing:
        seen = '; '.join(f'{path.name}: {reason}' for path, reason in unused)
        raise ModelFileError(
            directory,
            f'it holds no file for {" and ".join(missing)}' + (f' ({seen})' if seen else ''),
            'Put the missing files there; docs/models.md tells where they come from',
        )


def _pick(directory: Path, by_role: Mapping) -> dict:
    """Return one file for each role: the only ones whose widths agree, or none."""
    widths = set.intersection(*({each.width for each in by_role[role]} for role in ROLES))
    if not widths:
        shown = ', '.join(
            f'{each.path.name} {each.width}' for role in ROLES for each in by_role[role]
        )
        raise ModelFileError(
            directory,
            f'no three of its files belong together: their embeddings have the widths {shown}',
            'Use the three files of one model',
        )
    fitting = {role: [each for each in by_role[role] if each.width in widths] for role in ROLES}
    choices = [
        f'--{role} ' + ' or '.join(f'{_shown(each, directory)}' for each in files)
        for role, files in fitting.items()
        if len(files) > 1
    ]
    if choices:
        raise InputError(
            f'{directory} holds several files for one role. Choose: {"; ".join(choices)}.'
        )
    return {role: files[0] for role, files in fitting.items()}


def _shown(each: Candidate, directory: Path) -> str:
    mib = each.header.size_bytes / 2**20
    return f'{_path_from(directory, each.path)} ({each.precision}, {mib:.1f} MiB)'
