# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A model directory: opened once, checked by its manifest and its three file headers alone.

What is checked here never reaches the C library: missing, cut or swapped files, other models,
files of different models together. Every failure names the file and what to do.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.config import PARTS
from minicpmo_ros.documents import told
from minicpmo_ros.encoders.siglip import model as siglip_model
from minicpmo_ros.encoders.whisper import encoder as whisper_encoder
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.families import FAMILIES
from minicpmo_ros.families.base import ARCHITECTURES
from minicpmo_ros.ggml.gguf_file import FETCH_AGAIN, Header, read_header
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.llm import layout as llm_layout
from minicpmo_ros.llm.keys import OVERRIDES
from minicpmo_ros.llm.layout import LlmFacts
from minicpmo_ros.llm.tokens import CONTROL, USER_DEFINED
from minicpmo_ros.modelset.downloads import require_finished, require_weights, require_whole
from minicpmo_ros.modelset.manifest import FILE_NAME, Manifest, read_manifest, sha256_of

WHAT = {'llm': 'a language model', 'vision': 'a vision file', 'audio': 'an audio file'}
# What else GGUF files hold, by general.type: problem and remedy.
NO_MODELS = {
    'adapter': (
        'it is an adapter (LoRA), and no model',
        'Merge it into the language model: llama-export-lora -m MODEL --lora ADAPTER -o MERGED',
    ),
    'imatrix': ('it is the importance matrix of a quantisation, and no model', 'Leave it out'),
}
SPECIAL_TYPES = (CONTROL, USER_DEFINED)  # what is parsed as one token
GET_THE_SET = 'Use the three files of one model'
LONGEST_NAME = 200
SPEECH = ('auto', 'true', 'false')  # auto: as the model was made, by its manifest


@dataclass(frozen=True)
class ModelDirectory:
    """A directory whose files were found to belong together."""

    path: Path
    manifest: Manifest
    headers: dict  # part: Header
    width: int  # of the LLM's embeddings
    warnings: tuple  # sentences about what works but is probably not meant

    @classmethod
    def open(cls, path, hollow: bool = False) -> 'ModelDirectory':
        """Read manifest and headers and check them, as `of` does; raises ModelFileError."""
        path = Path(path)
        return cls.of(path, read_manifest(path), hollow)

    @classmethod
    def of(cls, path, manifest: Manifest, hollow: bool = False) -> 'ModelDirectory':
        """Check the files a manifest names, before it is written; raises ModelFileError.

        hollow: whether the weights are there is not asked.
        """
        path = Path(path)
        if manifest.family not in FAMILIES:
            raise ModelFileError(
                path / FILE_NAME,
                f'the family {manifest.family!r} is unknown',
                f'Known are {", ".join(FAMILIES)}',
            )
        _check_texts(path / FILE_NAME, manifest)
        headers = {part: _read(path / manifest.files[part].path) for part in PARTS}
        _check_parts(headers, manifest.family)
        if manifest.pre_tokenizer not in OVERRIDES:
            raise ModelFileError(
                path / FILE_NAME,
                f'pre_tokenizer is {manifest.pre_tokenizer!r}',
                "Allowed are 'qwen2' and '', as the file says",
            )
        width, llm_warnings = _check_llm(headers['llm'], manifest)
        vision = siglip_model.read_facts(headers['vision'])
        _check_width(headers['vision'], vision.output_width, width)
        audio = whisper_encoder.read_facts(headers['audio'])
        _check_width(headers['audio'], audio.width, width)
        for header in headers.values() if not hollow else ():
            require_weights(header)
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
        """The name of its Family."""
        return self.manifest.family

    @property
    def model_id(self) -> str:
        """The name of these weights, whatever their precision."""
        return self.manifest.model_id

    @property
    def precision(self) -> dict:
        """The precision of every part's file, as the manifest has it."""
        return {part: self.manifest.files[part].precision for part in PARTS}

    def speech(self, choice: str | bool = 'auto') -> bool:
        """Whether answers open prepared for a voice: as chosen (SPEECH), else as it was made."""
        if str(choice).lower() not in SPEECH:
            raise InputError(f'speech is {choice!r}; allowed are {", ".join(SPEECH)}.')
        return self.manifest.speech if choice == 'auto' else str(choice).lower() == 'true'

    @property
    def fingerprint(self) -> dict:
        """What tells these weights from others: by part the recorded SHA-256, else the size."""
        return {
            part: self.manifest.files[part].sha256 or f'{header.path.stat().st_size} bytes'
            for part, header in self.headers.items()
        }

    @property
    def space(self) -> str:
        """The space of the embeddings: encoders and LLM of one space understand each other."""
        return f'{self.family}/{self.width}/{self.model_id}'

    @property
    def exact_space(self) -> str:
        """The space with these very weights: what is kept for long is read by them alone."""
        told = ' '.join(f'{part} {value}' for part, value in sorted(self.fingerprint.items()))
        return f'{self.space}/{hashlib.sha256(told.encode()).hexdigest()[:12]}'

    def verify_hashes(self, sha256: Callable[[Path], str] = sha256_of) -> list:
        """Compare the files with their recorded SHA-256 (takes seconds per gigabyte).

        `sha256`: gives the hash of a file; HashCache.sha256 looks up what has not changed.
        Returns the parts without a record; raises ModelFileError where a file differs.
        """
        unrecorded = []
        for part, header in self.headers.items():
            recorded = self.manifest.files[part].sha256
            if not recorded:
                unrecorded.append(part)
            elif (found := sha256(header.path)) != recorded.lower():
                raise ModelFileError(
                    header.path,
                    f'its SHA-256 is {found}, the manifest has {recorded}',
                    FETCH_AGAIN,
                )
        return unrecorded


def _read(path: Path) -> Header:
    require_finished(path)
    return read_header(path)


def part_of(header: Header) -> str:
    """Return what a GGUF file is, 'llm', 'vision', 'audio' or ''; its name does not matter."""
    require_whole(header)
    if (kind := str(header.metadata.get('general.type'))) in NO_MODELS:
        raise ModelFileError(header.path, *NO_MODELS[kind])
    architecture = header.require('general.architecture', str)
    if architecture in ARCHITECTURES:
        return 'llm'
    return {'clip': 'vision', 'whisper': 'audio'}.get(architecture, '')


def precision_of(header: Header) -> str:
    """Name the type that holds most numbers of the matrices: f16, q8_0, q4_K."""
    name = prevailing_type(header.tensors.values()).name
    return 'q' + name[1:] if name.endswith('_K') else name.lower()  # as llama.cpp writes them


def prevailing_type(tensors) -> GgmlType:
    """Return the type that most numbers of the matrices among these tensors have."""
    counts = Counter()
    for each in tensors:
        if len(each.shape) > 1:
            counts[each.type] += math.prod(each.shape)
    return max(counts, key=counts.get, default=GgmlType.F32)


def _check_texts(path: Path, manifest: Manifest) -> None:
    """Refuse a name that no line can hold, and hashes that are none."""
    name = manifest.model_id
    if not name.isprintable() or len(name) > LONGEST_NAME:
        problem = f'model_id is {told(name)}'
        remedy = f'Allowed is a line of text of at most {LONGEST_NAME} characters'
        raise ModelFileError(path, problem, remedy)
    for part, entry in manifest.files.items():
        if entry.sha256 and not re.fullmatch('[0-9a-fA-F]{64}', entry.sha256):
            problem = f'the sha256 of {part} is {told(entry.sha256)}'
            remedy = 'Allowed are its 64 hexadecimal digits, or nothing'
            raise ModelFileError(path, problem, remedy)


def _check_parts(headers: dict, family: str) -> None:
    for part, header in headers.items():
        found = part_of(header)
        if found and found != part:
            raise ModelFileError(
                header.path,
                f'it is {WHAT[found]}, {WHAT[part]} is expected',
                'Are two files swapped? Correct the paths in the manifest',
            )
        architecture = header.metadata['general.architecture']
        if not found or part == 'llm' and architecture != FAMILIES[family].architecture:
            raise ModelFileError(
                header.path,
                f'its architecture {architecture!r} is not that of {WHAT[part]} of {family}',
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
    """Return a warning if the vision file probably belongs to another model of the same width."""
    version, usual = vision.get('clip.minicpmv_version', int), FAMILIES[family].vision_versions
    if version is not None and version not in usual:
        yield (
            f'{vision.path}: its minicpmv_version is {version}, that of {family} is {usual[0]}: '
            'is it the vision file of another MiniCPM-V?'
        )


def _check_llm(header: Header, manifest: Manifest) -> tuple:
    """Return the embedding width and warnings."""
    facts = llm_layout.read_facts(header, manifest.pre_tokenizer)
    _check_special_tokens(header, facts, FAMILIES[manifest.family].required_tokens)
    warnings = [
        f'{header.path}: {", ".join(facts.unread_keys)}: llama.cpp has no use for this in a '
        f'{facts.architecture}. Does the model need it?'
    ]
    return facts.width, warnings if facts.unread_keys else []


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
