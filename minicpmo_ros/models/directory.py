# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A model directory: opened once, checked by its manifest and its three file headers alone.

What is checked here never reaches the C library: missing, cut or swapped files, other models,
files of different models together. Every failure names the file and what to do.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.encoders import siglip_layout, whisper_layout
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.header import Header, read_header
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.language import llm_layout
from minicpmo_ros.language.llm_layout import LlmFacts
from minicpmo_ros.models.manifest import (
    ARCHITECTURES,
    FILE_NAME,
    ROLES,
    VISION_VERSIONS,
    Manifest,
    read_manifest,
    sha256_of,
)
from minicpmo_ros.models.tokens import REQUIRED

WHAT = {'llm': 'a language model', 'vision': 'a vision file', 'audio': 'an audio file'}
SPECIAL_TYPES = (3, 4)  # control and user-defined: what is parsed as one token
GET_THE_SET = 'Use the three files of one model'
FETCH_AGAIN = 'Fetch or convert the file again'


@dataclass(frozen=True)
class ModelDirectory:
    """A directory whose files were found to belong together."""

    path: Path
    manifest: Manifest
    headers: dict  # role: Header
    width: int  # of the LLM's embeddings
    warnings: tuple  # sentences about what works but is probably not meant

    @classmethod
    def open(cls, path) -> 'ModelDirectory':
        """Read manifest and headers and check them; raises ModelFileError."""
        path = Path(path)
        return cls.of(path, read_manifest(path))

    @classmethod
    def of(cls, path, manifest: Manifest) -> 'ModelDirectory':
        """Check the files a manifest names, before it is written; raises ModelFileError."""
        path = Path(path)
        if manifest.family not in ARCHITECTURES:
            raise ModelFileError(
                path / FILE_NAME,
                f'the family {manifest.family!r} is unknown',
                f'Known are {", ".join(ARCHITECTURES)}',
            )
        headers = {role: read_header(path / manifest.files[role].path) for role in ROLES}
        _check_roles(headers, manifest.family)
        width, llm_warnings = _check_llm(headers['llm'], manifest.family)
        vision = siglip_layout.read_facts(headers['vision'])
        _check_width(headers['vision'], vision.output_width, width)
        audio = whisper_layout.read_facts(headers['audio'])
        _check_width(headers['audio'], audio.width, width)
        warnings = (
            *llm_warnings,
            *vision.warnings,
            *_version_warnings(headers['vision'], manifest.family),
        )
        return cls(path, manifest, headers, width, warnings)

    @property
    def llm_path(self) -> Path:
        """The language model."""
        return self.headers['llm'].path

    @property
    def vision_path(self) -> Path:
        """SigLIP and resampler."""
        return self.headers['vision'].path

    @property
    def audio_path(self) -> Path:
        """The Whisper encoder and projector."""
        return self.headers['audio'].path

    @property
    def family(self) -> str:
        """For example minicpm-o-2.6."""
        return self.manifest.family

    @property
    def model_id(self) -> str:
        """The name of these weights, whatever their precision."""
        return self.manifest.model_id

    @property
    def precision(self) -> dict:
        """The precision of every role's file, as the manifest has it."""
        return {role: self.manifest.files[role].precision for role in ROLES}

    @property
    def fingerprint(self) -> dict:
        """What tells these weights from others: by role the recorded SHA-256, else the size."""
        return {
            role: self.manifest.files[role].sha256 or f'{header.path.stat().st_size} bytes'
            for role, header in self.headers.items()
        }

    @property
    def space(self) -> str:
        """The space of the embeddings: encoders and LLM of one space understand each other."""
        return f'{self.family}/{self.width}/{self.model_id}'

    def verify_hashes(self, sha256: Callable[[Path], str] = sha256_of) -> list:
        """Compare the files with their recorded SHA-256 (takes seconds per gigabyte).

        `sha256`: gives the hash of a file; HashCache.sha256 looks up what has not changed.
        Returns the roles without a record; raises ModelFileError where a file differs.
        """
        unrecorded = []
        for role, header in self.headers.items():
            recorded = self.manifest.files[role].sha256
            if not recorded:
                unrecorded.append(role)
            elif (found := sha256(header.path)) != recorded.lower():
                raise ModelFileError(
                    header.path,
                    f'its SHA-256 is {found}, the manifest has {recorded}',
                    FETCH_AGAIN,
                )
        return unrecorded


def role_of(header: Header) -> str:
    """Return what a GGUF file is, 'llm', 'vision', 'audio' or ''; its name does not matter."""
    architecture = header.require('general.architecture', str)
    if architecture in ARCHITECTURES.values():
        return 'llm'
    return {'clip': 'vision', 'whisper': 'audio'}.get(architecture, '')


def precision_of(header: Header) -> str:
    """Name the type that holds most numbers of the matrices: f16, q8_0, q4_K."""
    name = prevailing_type(header.tensors.values()).name
    return 'q' + name[1:] if name.endswith('_K') else name.lower()  # as llama.cpp writes them


def prevailing_type(tensors) -> GgmlType:
    """Give the type of most numbers of the matrices among things with a shape and a type."""
    counts = Counter()
    for each in tensors:
        if len(each.shape) > 1:
            counts[each.type] += math.prod(each.shape)
    return max(counts, key=counts.get, default=GgmlType.F32)


def _check_roles(headers: dict, family: str) -> None:
    for role, header in headers.items():
        found = role_of(header)
        if found and found != role:
            raise ModelFileError(
                header.path,
                f'it is {WHAT[found]}, {WHAT[role]} is expected',
                'Are two files swapped? Correct the paths in the manifest',
            )
        architecture = header.metadata['general.architecture']
        if not found or role == 'llm' and architecture != ARCHITECTURES[family]:
            raise ModelFileError(
                header.path,
                f'its architecture {architecture!r} is not that of {WHAT[role]} of {family}',
                GET_THE_SET,
            )


def _check_width(header: Header, found: int, width: int) -> None:
    if found != width:
        raise ModelFileError(
            header.path,
            f'its embeddings have a width of {found}, those of the language model have {width}',
            GET_THE_SET,
        )


def _version_warnings(vision: Header, family: str):
    """Tell when the vision file is likely another model's of the same width."""
    version, usual = vision.get('clip.minicpmv_version', int), VISION_VERSIONS[family]
    if version is not None and version not in usual:
        yield (
            f'{vision.path}: its minicpmv_version is {version}, that of {family} is {usual[0]}: '
            'is it the vision file of another MiniCPM-V?'
        )


def _check_llm(header: Header, family: str) -> tuple:
    """Return the embedding width and warnings."""
    facts = llm_layout.read_facts(header)
    _check_special_tokens(header, facts, REQUIRED[family])
    warnings = []
    if f'{facts.architecture}.rope.freq_base' not in header.metadata:
        warnings.append(f'{header.path}: it has no rope.freq_base, llama.cpp takes 10000')
    return facts.width, warnings


def _check_special_tokens(header: Header, facts: LlmFacts, required: tuple) -> None:
    tokens, missing, found = facts.tokens, set(required), {}
    for token_id in reversed(range(len(tokens))):  # they are near the end: the search is short
        if tokens[token_id] in missing:
            found[tokens[token_id]] = token_id
            missing.remove(tokens[token_id])
            if not missing:
                break
    if missing:
        raise ModelFileError(
            header.path,
            'its vocabulary lacks ' + ' '.join(sorted(missing)),
            'Use the language model of MiniCPM-o, not the Qwen it is made from',
        )
    ordinary = [
        text
        for text, token_id in found.items()
        if facts.token_types[token_id] not in SPECIAL_TYPES
    ]
    if ordinary:
        raise ModelFileError(
            header.path,
            'it has as ordinary text what must be special: ' + ' '.join(sorted(ordinary)),
            FETCH_AGAIN,
        )
