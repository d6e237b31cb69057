# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A Hugging Face checkpoint: its config.json, its tensors, and what becomes of each tensor.

Reading is bounded, as in the reader of GGUF headers: every length is compared with the file before
it is believed, and no weights are read. Format: the length of a JSON header (uint64), the header
(name: dtype, shape, data_offsets), the data. Many files are joined by
model.safetensors.index.json.

`source_of` says where each tensor of the published GGUF layouts comes from. Three are not copied
as they are: the resampler's queries, keys and values are cut from one matrix (in that order, along
its rows), its last matrix is transposed (the checkpoint multiplies it from the right), and its
table of positions is computed. The vision layouts' names of the feed-forward are swapped: 'down'
is the first layer.
"""

import json
import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from minicpmo_ros.documents import told
from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.foreign import HEAD_BYTES, HOLLOW, is_hollow, recognize
from minicpmo_ros.ggml.gguf_file import MAX_TENSORS, TensorInfo
from minicpmo_ros.ggml.types import GgmlType as Type

CONFIG = 'config.json'
WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
MAX_HEADER_BYTES = 16 << 20  # of a checkpoint of 8B parameters: 0.1 MiB
MAX_JSON_BYTES = 64 << 20  # tokenizer.json of the published vocabularies: 11 MiB
WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.gguf', '.incomplete')
CHECKPOINT, MOST_SHOWN = 'Hugging Face checkpoint', 3
FETCH_AGAIN = 'Fetch the file again'
FETCH_ALL = 'Fetch the checkpoint again, whole'
TYPES = {'F32': Type.F32, 'F16': Type.F16, 'BF16': Type.BF16}
ADAPTER = 'adapter_config.json'  # of PEFT
# Names that PEFT gives to weights beside an adapter's, and to the adapter's own.
_OF_ADAPTER = re.compile(r'^base_model\.model\.|\.base_layer\.|\.lora_|\.modules_to_save\.')
MERGE = (
    'Merge it into the weights first (PEFT: merge_and_unload, then save_pretrained), and convert '
    'what that saves'
)
ATTENTION = {f'attn_{name}': f'self_attn.{name}_proj' for name in 'qkv'}
# Layers: name of the layer in the layout -> (in the checkpoint, its modules).
LAYERS = {
    'blk': (
        'llm.model.layers',
        {
            **ATTENTION,
            'attn_norm': 'input_layernorm',
            'attn_q_norm': 'self_attn.q_norm',
            'attn_k_norm': 'self_attn.k_norm',
            'attn_output': 'self_attn.o_proj',
            'ffn_norm': 'post_attention_layernorm',
            'ffn_gate': 'mlp.gate_proj',
            'ffn_up': 'mlp.up_proj',
            'ffn_down': 'mlp.down_proj',
        },
    ),
    'v.blk': (
        'vpm.encoder.layers',
        {
            **ATTENTION,
            'attn_out': 'self_attn.out_proj',
            'ln1': 'layer_norm1',
            'ln2': 'layer_norm2',
            'ffn_down': 'mlp.fc1',
            'ffn_up': 'mlp.fc2',
        },
    ),
    'encoder.blocks': (
        'apm.layers',
        {
            'attn_ln': 'self_attn_layer_norm',
            'attn.query': 'self_attn.q_proj',
            'attn.key': 'self_attn.k_proj',
            'attn.value': 'self_attn.v_proj',
            'attn.out': 'self_attn.out_proj',
            'mlp_ln': 'final_layer_norm',
            'mlp.0': 'fc1',
            'mlp.2': 'fc2',
        },
    ),
}
MODULES = {
    'token_embd': 'llm.model.embed_tokens',
    'output_norm': 'llm.model.norm',
    'output': 'llm.lm_head',
    'v.patch_embd': 'vpm.embeddings.patch_embedding',
    'v.position_embd': 'vpm.embeddings.position_embedding',
    'v.post_ln': 'vpm.post_layernorm',
    'resampler.kv': 'resampler.kv_proj',
    'resampler.attn.out': 'resampler.attn.out_proj',
    'resampler.ln_q': 'resampler.ln_q',
    'resampler.ln_kv': 'resampler.ln_kv',
    'resampler.ln_post': 'resampler.ln_post',
    'encoder.conv1': 'apm.conv1',
    'encoder.conv2': 'apm.conv2',
    'encoder.ln_post': 'apm.layer_norm',
    'audio_projector.linear1': 'audio_projection_layer.linear1',
    'audio_projector.linear2': 'audio_projection_layer.linear2',
}
COMPUTED = 'resampler.pos_embed_k'  # the checkpoint has no such tensor
# In checkpoints for training, or of the voice: no network of ours reads them.
UNUSED = re.compile(r'tts\.|.*\.rotary_emb\.inv_freq$|resampler\.pos_embed$|vpm\.head\.|'
                    r'vpm\.embeddings\.position_ids$')  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file describes it; offset and end from the file's start."""

    file: Path
    name: str
    dtype: str  # as safetensors calls it
    shape: tuple
    offset: int
    end: int

    def info(self) -> TensorInfo:
        """Return it as a tensor of ggml's; ModelFileError for numbers that are no floats."""
        if self.dtype not in TYPES:
            raise ModelFileError(
                self.file,
                f'the tensor {self.name} holds {self.dtype}, {", ".join(TYPES)} can be converted',
                'Use the checkpoint that is not quantised; `minicpmo quantize` makes files of any '
                'precision from it',
            )
        ggml_type = TYPES[self.dtype]
        n_bytes = math.prod(self.shape) * ggml_type.block_bytes
        if not n_bytes or n_bytes != self.end - self.offset:
            raise ModelFileError(
                self.file,
                f'the tensor {self.name} of shape {self.shape} in {self.dtype} should have '
                f'{n_bytes} bytes, {self.end - self.offset} are there',
                FETCH_AGAIN,
            )
        return TensorInfo(self.name, self.shape, ggml_type, self.offset, n_bytes)


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose files were found to be whole."""

    path: Path
    config: dict
    tensors: dict  # name: StoredTensor

    @classmethod
    def open(cls, path) -> 'Checkpoint':
        """Read configuration and headers; ModelFileError says what is missing or damaged."""
        path = Path(path)
        is_whole = any((path / name).exists() for name in (INDEX, WHOLE))
        if (path / ADAPTER).exists() and not is_whole:
            base = told(read_json(path / ADAPTER).get('base_model_name_or_path'))
            raise ModelFileError(path, f'it is an adapter to {base}, and no model', MERGE)
        config = read_json(path / CONFIG, f'Give the directory of a {CHECKPOINT}{_below(path)}')
        if (path / INDEX).exists():
            return cls(path, config, _sharded(path))
        if not (path / WHOLE).exists():
            there = sorted(p.name for p in path.iterdir() if p.suffix in WEIGHTS)
            raise ModelFileError(
                path,
                f'it has neither {WHOLE} nor {INDEX}'
                + (f', but {", ".join(there[:MOST_SHOWN])}' if there else ''),
                f'{FETCH_ALL}: each file with its index under its published name; weights in '
                'other formats (.bin, .pt, .gguf) cannot be read',
            )
        return cls(path, config, _read_file(path / WHOLE))

    def require_plain(self) -> None:
        """Raise ModelFileError for weights that are quantised, or that have an adapter beside."""
        for name, stored in self.tensors.items():
            if _OF_ADAPTER.search(name):
                problem = f'it has an adapter beside its weights ({name})'
                raise ModelFileError(self.path, problem, MERGE)
            if stored.dtype not in TYPES and not UNUSED.match(name):
                stored.info()

    def side(self, name: str, axis: int, n_dims: int) -> int:
        """Return the length of one side of a tensor that must be there."""
        if name not in self.tensors:
            raise ModelFileError(self.path, f'the tensor {name} is missing', FETCH_ALL)
        stored = self.tensors[name]
        if len(stored.shape) != n_dims or not all(stored.shape):
            raise ModelFileError(
                stored.file,
                f'the tensor {name} has the shape {stored.shape}, {n_dims} dimensions are '
                'expected',
                'Use the checkpoint of a MiniCPM-o',
            )
        return stored.shape[axis]


def _below(path: Path) -> str:
    """Name the checkpoint in a folder of Hugging Face's cache, or of downloads; ''."""
    found = sorted(
        p.parent for depth in ('*', 'snapshots/*') for p in path.glob(f'{depth}/{CONFIG}')
    )
    return f', such as {found[0]}' if found else ''


def require_own(path: Path, head: bytes) -> None:
    """Raise ModelFileError for what downloads leave instead of a file, by how it begins."""
    head = head[:HEAD_BYTES]
    if known := recognize(head) or (HOLLOW if is_hollow(head) else None):
        raise ModelFileError(path, *known)


def read_json(path: Path, remedy: str = FETCH_AGAIN) -> dict:
    """Read a file that holds a JSON object; ModelFileError for what is none."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            problem = f'it has {size >> 20} MiB, at most {MAX_JSON_BYTES >> 20} are read'
            raise ModelFileError(path, problem, FETCH_AGAIN)
        data = path.read_bytes()
        require_own(path, data)
        record = json.loads(data)
    except OSError as error:
        raise ModelFileError(path, f'it cannot be read ({error.strerror})', remedy) from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, f'it is no JSON ({error})', FETCH_AGAIN) from None
    if not isinstance(record, dict):
        raise ModelFileError(path, 'it holds no JSON object', FETCH_AGAIN)
    return record


def _sharded(path: Path) -> dict:
    """Join the tensors of all files the index names."""
    places = read_json(path / INDEX).get('weight_map')
    if not isinstance(places, dict) or not places or len(places) > MAX_TENSORS:
        raise ModelFileError(path / INDEX, 'its weight_map names no tensors', FETCH_AGAIN)
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or name in ('', '..'):
            problem = f'it names {told(name)}, which is no file beside it'
            raise ModelFileError(path / INDEX, problem, FETCH_AGAIN)
    names = set(places.values())
    if missing := sorted(name for name in names if not (path / name).is_file()):
        raise ModelFileError(
            path,
            f'{len(missing)} of {len(names)} weight files are missing: {", ".join(missing)}',
            FETCH_ALL,
        )
    files = {name: _read_file(path / name) for name in sorted(names)}
    for tensor, name in places.items():
        if tensor not in files[name]:
            raise ModelFileError(
                path / name, f'the tensor {tensor} is missing, {INDEX} names it', FETCH_ALL
            )
    return {tensor: files[name][tensor] for tensor, name in places.items()}


def _read_file(path: Path) -> dict:
    """Name -> StoredTensor of one safetensors file."""
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size < 10:
            raise ModelFileError(path, f'it has only {status.st_size} bytes', FETCH_AGAIN)
        head = file.read(HEAD_BYTES)
        require_own(path, head)
        (n_header,) = struct.unpack('<Q', head[:8])
        if n_header > min(MAX_HEADER_BYTES, status.st_size - 8):
            raise ModelFileError(
                path,
                f'its header claims {n_header} bytes; the file has {status.st_size}, at most '
                f'{MAX_HEADER_BYTES} are read',
                FETCH_AGAIN,
            )
        file.seek(8)
        raw = file.read(n_header)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, f'its header is no JSON ({error})', FETCH_AGAIN) from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ModelFileError(path, 'its header names no tensors', FETCH_AGAIN)
    header.pop('__metadata__', None)
    start, size = 8 + n_header, status.st_size
    stored = {name: _stored(path, name, entry, start, size) for name, entry in header.items()}
    _require_gapless(path, start, size, stored.values())
    return stored


def _require_gapless(path: Path, start: int, size_bytes: int, stored) -> None:
    """Refuse tensors that share bytes, and bytes that are of none: the format has neither."""
    at, before = start, 'the header'
    for one in sorted(stored, key=lambda one: (one.offset, one.end)):
        if one.offset != at:
            problem = f'the tensor {one.name} begins at byte {one.offset}, {before} ends at {at}'
            raise ModelFileError(path, problem, FETCH_AGAIN)
        at, before = one.end, f'the tensor {one.name}'
    if at != size_bytes:
        problem = f'it has {size_bytes} bytes, and {before}, its last, ends at {at}'
        raise ModelFileError(path, problem, FETCH_AGAIN)


def _stored(path: Path, name: str, entry, start: int, size_bytes: int) -> StoredTensor:
    """Check one entry of a header: numbers that are numbers, a place inside the file."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (entry.get(key) for key in ('dtype', 'shape', 'data_offsets'))
    if (
        not isinstance(dtype, str)
        or not _are_counts(shape)
        or not _are_counts(place)
        or len(place) != 2
    ):
        raise ModelFileError(
            path, f'its header describes the tensor {name} as {str(entry)[:80]}', FETCH_AGAIN
        )
    offset, end = (start + each for each in place)
    if not offset <= end <= size_bytes:
        raise ModelFileError(
            path,
            f'it has {size_bytes} bytes, but the tensor {name} lies at {offset} to {end}: it is '
            'cut short',
            FETCH_AGAIN,
        )
    return StoredTensor(path, name, dtype, tuple(shape), offset, end)


def _are_counts(values) -> bool:
    return isinstance(values, list) and all(type(each) is int and each >= 0 for each in values)


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, and which part of it."""

    name: str
    part: int = 0  # of `parts` equal ones along the rows
    parts: int = 1
    transposed: bool = False


SINGLE = {
    'resampler.query': Source('resampler.query'),
    'resampler.proj.weight': Source('resampler.proj', transposed=True),
    'encoder.positional_embedding': Source('apm.embed_positions.weight'),
    **{
        f'resampler.attn.{letter}.{kind}': Source(f'resampler.attn.in_proj_{kind}', i, 3)
        for i, letter in enumerate('qkv')
        for kind in ('weight', 'bias')
    },
}


def source_of(name: str) -> Source:
    """Return the source of a tensor of the layouts that is not COMPUTED."""
    if name in SINGLE:
        return SINGLE[name]
    module, _, kind = name.rpartition('.')
    match = re.fullmatch(r'(blk|v\.blk|encoder\.blocks)\.(\d+)\.(.+)', module)
    if not match:
        return Source(f'{MODULES[module]}.{kind}')
    layers, modules = LAYERS[match[1]]
    return Source(f'{layers}.{match[2]}.{modules[match[3]]}.{kind}')
