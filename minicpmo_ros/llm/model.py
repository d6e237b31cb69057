# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A language model in llama.cpp: its weights, its vocabulary and its token rows.

The header is read and checked by our own reader before llama.cpp sees the file. Loading can be
watched and stopped.
"""

import ctypes
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as llama

from minicpmo_ros.config import COMPUTING, LLM
from minicpmo_ros.errors import CancelledError, ModelFileError
from minicpmo_ros.ggml import library  # noqa: F401 (routes llama.cpp's log)
from minicpmo_ros.ggml.devices import Devices
from minicpmo_ros.ggml.gguf_file import Header, read_header
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.ggml.weights import is_repacked
from minicpmo_ros.llm import layout as llm_layout
from minicpmo_ros.llm.keys import overrides, verify
from minicpmo_ros.llm.vocabulary import TABLE, TokenRows, Vocabulary

READ, MAP, LOCK = 0, 1, 2  # llama.h: enum llama_load_mode; their sums are modes too


@dataclass(frozen=True)
class ModelOptions:
    """How the weights are held, and by what."""

    gpu_layers: int = LLM.gpu_layers  # layers on the accelerator; -1: all
    device: str = COMPUTING.device  # auto, cpu, gpu; see Devices
    rpc_servers: str = COMPUTING.rpc_servers
    use_mmap: bool = LLM.use_mmap  # False: read into memory; then repacked weights are held once
    use_mlock: bool = LLM.use_mlock  # llama.cpp warns where the system refuses
    # 'qwen2': read it so, whatever the file says, if that proves right.
    pre_tokenizer: str = ''
    repack: bool = LLM.repack  # reorder weights for the CPU; not beside a GPU


class _Placed(ctypes.Structure):
    """llama.h: struct llama_model_tensor_buft_override."""

    _fields_ = (('pattern', ctypes.c_char_p), ('buffer_type', ctypes.c_void_p))


def _repacked(header: Header):
    """Return which matrices llama.cpp shall reorder for the CPU, an array that ends in NULL.

    Left to itself it would use AMX where a CPU announces that, and a virtual machine that does so
    without having it ends the process. So each kind of matrix gets its place by name.
    """
    backend = Backend('cpu')
    try:
        layouts = backend.extra_buffer_types()[:1]
        kinds, fits = {}, {}
        for name, info in header.tensors.items() if layouts else ():
            if name != TABLE and name.endswith('.weight') and len(info.shape) == 2:
                form = info.shape, info.type
                fits[form] = fits[form] if form in fits else is_repacked(backend, *form)
                kind = re.sub(r'\d+', '[0-9]+', re.escape(name))  # of all layers
                kinds[kind] = kinds.get(kind, True) and fits[form]
    finally:
        backend.close()
    patterns = [f'^{kind}$'.encode() for kind, is_fit in kinds.items() if is_fit]
    return (_Placed * (len(patterns) + 1))(*((pattern, layouts[0]) for pattern in patterns))


class _Weights:
    """A loaded llama_model, freed when nobody holds it any more; `devices` outlast it."""

    def __init__(self, pointer: int, devices: Devices | None = None):
        self.pointer, self._devices = pointer, devices
        self._finalizer = weakref.finalize(self, llama.llama_model_free, pointer)

    def free(self) -> None:
        """Free it now."""
        self._finalizer()
        self._devices = None


class LanguageModel:
    """Loaded weights; close it after every context on it, or leave it to the collector."""

    def __init__(
        self, pointer: int, path: Path, header: Header, devices: Devices, gpu_layers: int
    ):
        self.path, self.pointer = path, pointer
        self.on_gpu = bool(gpu_layers and not devices.is_cpu)  # at least a part of it
        self.is_remote = devices.is_remote
        self._weights = _Weights(pointer, devices)
        self.width = llama.llama_model_n_embd(pointer)
        self.context_length = llama.llama_model_n_ctx_train(pointer)  # positions it was made for
        heads = self.width // llama.llama_model_n_head(pointer)
        key = f'{header.metadata["general.architecture"]}.attention.key_length'
        self.head_width = header.get(key, int, heads)  # Qwen3's need not share the width
        self.size_bytes = llama.llama_model_size(pointer)
        self.vocabulary = Vocabulary(self._weights, path)
        self.token_rows = TokenRows(path, header)
        _ = self.vocabulary.trie  # a second that no question shall wait for

    @classmethod
    def load(
        cls,
        path,
        options: ModelOptions | None = None,
        on_progress: Callable[[float], bool] | None = None,
    ) -> 'LanguageModel':
        """Load a GGUF file; `on_progress(fraction)` returns False to stop.

        Raises ModelFileError for a file that is not a fit model, CancelledError when stopped, and
        as Devices where there is no such device: llama.cpp would take the CPU without a word.
        """
        path = Path(path)
        options = options or ModelOptions()
        devices = Devices(options.device, options.rpc_servers)
        header = read_header(path)
        _check(path, header, options.pre_tokenizer)
        pointer = _load_weights(path, header, options, devices, on_progress)
        model = cls(pointer, path, header, devices, options.gpu_layers)
        if options.pre_tokenizer:
            try:
                verify(model.vocabulary)
            except ModelFileError:
                model.close()
                raise
        return model

    def close(self) -> None:
        """Free the weights; no context on them may be left."""
        self._weights.free()


def _load_weights(path: Path, header: Header, options: ModelOptions, devices, on_progress):
    """Return llama.cpp's pointer to a model; raise as LanguageModel.load."""
    llama.llama_backend_init()
    stopped = []

    def progress(fraction, _):
        if on_progress is not None and not on_progress(fraction):
            stopped.append(fraction)
        return not stopped

    parameters = llama.llama_model_default_params()
    chosen = devices.for_llama()  # an array that C reads while loading, as the next one
    parameters.devices = ctypes.cast(chosen, ctypes.c_void_p)
    parameters.n_gpu_layers = options.gpu_layers
    parameters.load_mode = MAP if options.use_mmap else READ
    parameters.load_mode += LOCK if options.use_mlock else READ
    parameters.use_extra_bufts = False
    on_gpu = options.gpu_layers and not devices.is_cpu
    placed = _repacked(header) if options.repack and not on_gpu else (_Placed * 1)()
    parameters.tensor_buft_overrides = ctypes.addressof(placed)
    parameters.kv_overrides = overrides(options.pre_tokenizer)
    parameters.progress_callback = llama.llama_progress_callback(progress)
    pointer = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if stopped:
        if pointer:
            llama.llama_model_free(pointer)
        raise CancelledError('Loading was stopped.')
    if not pointer:
        raise ModelFileError(
            path,
            'llama.cpp refused to load it',
            'Its log names the reason; check that it is complete and that the memory suffices.',
        )
    return pointer


def load_vocabulary(path, pre_tokenizer: str = '') -> Vocabulary:
    """Load the vocabulary of a GGUF file without its weights; ModelFileError where it has none."""
    path = Path(path)
    _check(path, read_header(path), pre_tokenizer)
    llama.llama_backend_init()
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    parameters.kv_overrides = overrides(pre_tokenizer)
    pointer = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not pointer:
        raise ModelFileError(path, 'llama.cpp refused to load it', 'Its log names the reason.')
    vocabulary = Vocabulary(_Weights(pointer), path)
    if pre_tokenizer:
        verify(vocabulary)
    return vocabulary


def _check(path: Path, header: Header, pre_tokenizer: str = '') -> None:
    """Refuse what llama.cpp would load and then compute wrongly, or end the process over."""
    llm_layout.read_facts(header, pre_tokenizer)
