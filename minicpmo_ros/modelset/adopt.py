# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Published MiniCPM-o files become a model directory: recognised by their headers, not names.

The files stay where they are; only `manifest.yaml` is written beside them, or into another folder.
What fits no part (the voice files, other models, unfinished downloads) is named with the reason.
Where several files fit one part, those that belong to the others are kept; of more than one, the
caller chooses.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from minicpmo_ros.config import PARTS
from minicpmo_ros.encoders.siglip import model as siglip_model
from minicpmo_ros.encoders.whisper import encoder as whisper_encoder
from minicpmo_ros.errors import InputError, ModelFileError, printable
from minicpmo_ros.families import FAMILIES, recognise
from minicpmo_ros.ggml.gguf_file import Header, read_header
from minicpmo_ros.llm import layout as llm_layout
from minicpmo_ros.llm.model import load_vocabulary
from minicpmo_ros.modelset.directory import WHAT, ModelDirectory, part_of, precision_of
from minicpmo_ros.modelset.downloads import is_candidate, require_finished
from minicpmo_ros.modelset.manifest import (
    FILE_NAME,
    FileEntry,
    Manifest,
    sha256_of,
    write_manifest,
)

MAX_DEPTH = 3  # folders below the directory: llama.cpp-omni uses one
MAX_FILES = 256  # that may be GGUF files
MAX_SEEN = 20_000  # of any kind
NAMED_UNUSED = 8  # in an error; the verb lists all
LOOK_UP = 'Not recorded: look it up where the files were published.'


@dataclass(frozen=True)
class Candidate:
    """One file that fits a part."""

    header: Header
    part: str
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
    unused: tuple  # (path, reason and what to do)


def find(
    directory,
    chosen: Mapping[str, Path] | None = None,
    model_id: str = '',
    licence: str = '',
    out=None,
    pre_tokenizer: str = '',
) -> Adoption:
    """Recognise the files below a directory and check that they belong together.

    chosen: part -> file, taken from the directory as given or relative to the working folder.
    out: the folder the manifest is for, where it is not the directory itself: it will name the
    files by absolute paths.
    pre_tokenizer: 'qwen2' where the language model does not say so itself; it must prove right.
    Raises ModelFileError where a part has no file or the files do not fit, InputError where there
    is a choice to make.
    """
    directory = Path(directory)
    chosen = chosen or {}
    candidates, unused = _recognise(directory, pre_tokenizer)
    by_part = {part: [each for each in candidates if each.part == part] for part in PARTS}
    for part, path in chosen.items():
        by_part[part] = [_chosen(directory, part, Path(path), pre_tokenizer)]
    _require_all(directory, by_part, unused)
    picked = _pick(directory, by_part)
    kept = {each.path.resolve() for each in picked.values()}
    unused += [
        (each.path, 'another was chosen') for each in candidates if each.path.resolve() not in kept
    ]
    entries = _entries(picked, directory if out is None else None)
    manifest = _manifest(picked['llm'], entries, model_id, licence, pre_tokenizer)
    model = ModelDirectory.of(directory if out is None else out, manifest)
    if pre_tokenizer:
        load_vocabulary(model.llm_path, pre_tokenizer)
    return Adoption(model, tuple(sorted(unused)))


def _manifest(llm, entries: dict, model_id: str, licence: str, pre_tokenizer: str) -> Manifest:
    """Return the manifest of files, of which the language model tells the family."""
    return Manifest(
        family=llm.family,
        model_id=model_id or llm.family,
        files=entries,
        licence=licence or LOOK_UP,
        notes='Adopted from published files.',
        speech=FAMILIES[llm.family].speaks(llm.header.metadata.get('general.name')),
        pre_tokenizer=pre_tokenizer,
    )


def _entries(picked: dict, directory: Path | None) -> dict:
    """Return {part: FileEntry}, with paths from a directory, or absolute ones without it."""
    return {
        part: FileEntry(
            str(each.path.absolute()) if directory is None else _path_from(directory, each.path),
            each.precision,
        )
        for part, each in picked.items()
    }


def write(
    adoption: Adoption, force: bool = False, sha256: Callable[[Path], str] = sha256_of
) -> Path:
    """Hash the files and write the manifest; InputError where there is one, but for `force`."""
    model = adoption.model
    require_place(model.path, force)
    files = {
        part: replace(model.manifest.files[part], sha256=sha256(header.path))
        for part, header in model.headers.items()
    }
    return write_manifest(model.path, replace(model.manifest, files=files))


def require_place(directory: Path, force: bool) -> None:
    """Raise InputError where a manifest would be overwritten, or cannot be written."""
    path = directory / FILE_NAME
    if not force and path.exists():
        raise InputError(
            f'{path} is there already; `minicpmo check` tells whether it is right, --force '
            'writes it anew.'
        )
    if not directory.is_dir():
        return  # what is wrong with it is told by who looks into it
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f'{FILE_NAME} cannot be written into {directory} ({error.strerror}). Give another '
            'folder with --out: it will hold the manifest, which names the files where they lie.'
        ) from None


def _path_from(directory: Path, path: Path) -> str:
    """Return the path as it leads from the directory; '..' in it is of where a link leads to."""
    try:
        return str(path.relative_to(directory))
    except ValueError:
        return os.path.relpath(path.parent.resolve() / path.name, directory.resolve())


def _recognise(directory: Path, pre_tokenizer: str) -> tuple:
    """Return candidates and, as (path, reason), the files that are none."""
    if not directory.is_dir():
        raise ModelFileError(directory, 'it is no directory', 'Give the folder of the GGUF files')
    candidates, unused = [], []
    for path in _model_files(directory):
        try:
            require_finished(path)
            candidates.append(_candidate(read_header(path), pre_tokenizer))
        except ModelFileError as error:
            unused.append((path, f'{error.problem}. {error.remedy}'))
    return candidates, unused


def _model_files(directory: Path) -> list:
    """Return what is or should be a GGUF file, in the order of names; of links to one, the first.

    Named files come before blobs without a suffix, so that a file of a hub's cache is known by
    the name it has in its snapshot.
    """
    found, seen = [], 0
    for folder, folders, names in os.walk(directory):
        depth = len(Path(folder).relative_to(directory).parts)
        folders[:] = sorted(folders) if depth < MAX_DEPTH else []
        seen += len(names)
        if seen > MAX_SEEN:
            raise InputError(
                f'{directory} holds more than {MAX_SEEN} files. Give the folder of one model.'
            )
        found += [path for name in sorted(names) if is_candidate(path := Path(folder) / name)]
        if len(found) > MAX_FILES:
            raise InputError(
                f'{directory} holds more than {MAX_FILES} GGUF files. Give the folder of one '
                'model.'
            )
    found.sort(key=lambda path: not path.name.lower().endswith('.gguf'))  # stable
    distinct = {}
    for path in found:
        distinct.setdefault(_identity(path), path)
    return list(distinct.values())


def _identity(path: Path):
    """Return what is equal for two names of one file; a link that leads nowhere is itself."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _candidate(header: Header, pre_tokenizer: str) -> Candidate:
    """Return what a file is, by a loader's own checks; ModelFileError says why it is none."""
    part = part_of(header)
    if part == 'llm':
        facts = llm_layout.read_facts(header, pre_tokenizer)
        family = recognise(facts.architecture, lambda: list(facts.tokens))
        return Candidate(header, part, facts.width, family.name)
    if part == 'vision':
        return Candidate(header, part, siglip_model.read_facts(header).output_width, '')
    if part == 'audio':
        return Candidate(header, part, whisper_encoder.read_facts(header).width, '')
    architecture = header.metadata['general.architecture']
    raise ModelFileError(
        header.path,
        f'its architecture {architecture!r} is none that is used here (a voice, or another model)',
        'Leave it out',
    )


def _chosen(directory: Path, part: str, path: Path, pre_tokenizer: str) -> Candidate:
    inside = directory / path
    candidate = _candidate(read_header(inside if inside.exists() else path), pre_tokenizer)
    if candidate.part != part:
        raise ModelFileError(
            candidate.path,
            f'it is {WHAT[candidate.part]}, {WHAT[part]} is expected',
            f'Give it as --{candidate.part}',
        )
    return candidate


def _require_all(directory: Path, by_part: Mapping, unused: list) -> None:
    missing = [part for part in PARTS if not by_part[part]]
    if missing:
        seen = [f'{printable(path.name)}: {reason}' for path, reason in unused[:NAMED_UNUSED]]
        if len(unused) > NAMED_UNUSED:
            seen.append(f'and {len(unused) - NAMED_UNUSED} more')
        raise ModelFileError(
            directory,
            f'it holds no file for {" and ".join(missing)}'
            + (f' ({"; ".join(seen)})' if seen else ''),
            'Put the missing files there; docs/models.md tells where they come from',
        )


def _pick(directory: Path, by_part: Mapping) -> dict:
    """Return one file for each part: the only ones whose widths agree, or none."""
    widths = set.intersection(*({each.width for each in by_part[part]} for part in PARTS))
    if not widths:
        shown = ', '.join(
            f'{each.path.name} {each.width}' for part in PARTS for each in by_part[part]
        )
        raise ModelFileError(
            directory,
            f'no three of its files belong together: their embeddings have the widths {shown}',
            'Use the three files of one model',
        )
    fitting = {part: [each for each in by_part[part] if each.width in widths] for part in PARTS}
    choices = [
        f'--{part} ' + ' or '.join(f'{_shown(each, directory)}' for each in files)
        for part, files in fitting.items()
        if len(files) > 1
    ]
    if choices:
        raise InputError(
            f'{directory} holds several files for one part. Choose: {"; ".join(choices)}.'
        )
    return {part: files[0] for part, files in fitting.items()}


def _shown(each: Candidate, directory: Path) -> str:
    mib = each.header.size_bytes / 2**20
    return f'{printable(_path_from(directory, each.path))} ({each.precision}, {mib:.1f} MiB)'
