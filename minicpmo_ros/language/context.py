# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A llama.cpp context whose misuse raises: what would abort the process is checked here first.

Sequences share one pool of cells; a copy of a sequence costs nothing until it grows. A decode is
all or nothing: after an error its sequence is what it was. One thread at a time may use a
context; only the AbortFlag may be set from another.

GGML_ASSERTs of llama.cpp 0.5 guarded here: more rows than n_batch, more outputs than
n_outputs_max, fewer outputs than sequences, a sequence out of range, a copy of part of a sequence
without a unified cache, a shift that the cache cannot do.
"""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import llama_cpp.llama_cpp as llama
import numpy as np

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError, InputError
from minicpmo_ros.ggml.products import Watch
from minicpmo_ros.ggml.types import GgmlType
from minicpmo_ros.language.model import LanguageModel

# Keys that live through shifts must survive rotation: in 4 bits they do not.
KV_TYPES = {'f32': GgmlType.F32, 'f16': GgmlType.F16, 'q8_0': GgmlType.Q8_0}
FLASH_ATTENTION = 1
MAX_THREADS = 512  # ggml.h: GGML_MAX_N_THREADS
NO_SLOT, ABORTED = 1, 2  # return codes of llama_decode
_libc = ctypes.CDLL(None)


class AbortFlag:
    """Ends a decode from another thread, within milliseconds on a CPU.

    llama.cpp asks before every graph node; a Python callback would wait for the interpreter's
    lock each time. strlen of a buffer answers without it: zero for an empty text.
    """

    def __init__(self):
        self._buffer = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(_libc.strlen, llama.ggml_abort_callback)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        """Let the running decode and all later ones end with CancelledError."""
        self._buffer[0] = b'1'

    def clear(self) -> None:
        """Allow decodes again."""
        self._buffer[0] = b'\0'

    @property
    def is_set(self) -> bool:
        """Whether decodes are refused."""
        return self._buffer[0] != b'\0'


@dataclass(frozen=True)
class ContextOptions:
    """Sizes of a context."""

    n_ctx: int = 4096  # positions of all sequences together; rounded up to 256
    n_batch: int = 128  # rows of one decode at most; wider costs memory and gains nothing
    n_sequences: int = 2
    kv_type: str = 'f16'  # of keys and values: f32, f16, q8_0
    threads: int = 2
    offload_kv: bool = True  # use the accelerator where there is one, also for keys and values
    # Sees (name of a weight, rows (n, k) it is multiplied with) of every such product: slow.
    on_product: Callable[[str, np.ndarray], None] | None = None


class Context:
    """Keys and values of a few sequences over one model."""

    def __init__(
        self, model: LanguageModel, options: ContextOptions, abort: AbortFlag | None = None
    ):
        _check_options(model, options)
        self.model, self.options, self.abort = model, options, abort or AbortFlag()
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = options.n_ctx
        parameters.n_batch = parameters.n_ubatch = options.n_batch
        parameters.n_seq_max = options.n_sequences
        parameters.n_outputs_max = max(8, options.n_sequences)
        parameters.n_threads = parameters.n_threads_batch = options.threads
        parameters.kv_unified = True
        parameters.flash_attn_type = FLASH_ATTENTION
        parameters.type_k = parameters.type_v = KV_TYPES[options.kv_type]
        parameters.offload_kqv = parameters.op_offload = options.offload_kv
        parameters.no_perf = True
        parameters.abort_callback = self.abort.callback
        parameters.abort_callback_data = self.abort.data
        self._watch = options.on_product and Watch(options.on_product)
        if self._watch:
            parameters.cb_eval = ctypes.cast(
                self._watch.callback, llama.ggml_backend_sched_eval_callback
            )
        pointer = llama.llama_init_from_model(model.pointer, parameters)
        if not pointer:
            raise EngineError(
                f'llama.cpp made no context of {options.n_ctx} positions; its log '
                'names the reason. Where memory is short, lower n_ctx or use '
                'kv_type q8_0.'
            )
        self._pointer = pointer
        self._free = weakref.finalize(self, llama.llama_free, pointer)
        self._memory = llama.llama_get_memory(pointer)
        # Rounded up it may promise positions that the model does not know.
        self.n_ctx = min(llama.llama_n_ctx(pointer), model.context_length)
        self.n_batch = llama.llama_n_batch(pointer)
        if not llama.llama_memory_can_shift(self._memory):
            raise EngineError('this context cannot shift positions')
        self._batch = _Batch(self.n_batch, model.width)

    def close(self) -> None:
        """Free keys and values; the context is of no use afterwards."""
        self._free()

    def next_position(self, sequence: int) -> int:
        """Return the position behind the last one of a sequence; 0 for an empty one."""
        self._check_sequence(sequence)
        return llama.llama_memory_seq_pos_max(self._memory, sequence) + 1

    def decode(
        self,
        rows: np.ndarray,
        sequence: int,
        want_logits: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Read rows (n, width) at the end of a sequence; return the logits behind the last one.

        Logits are (vocabulary,) float32, a copy, in `out` where it is given: fresh memory for a
        large vocabulary costs a twentieth of a small model's token. Raises ValueError for rows
        that do not fit a batch, InputError for rows that are not finite, ContextFullError,
        CancelledError, and EngineError after which the context must be rebuilt.
        """
        start = self.next_position(sequence)
        self._check_rows(rows, start)
        if self.abort.is_set:
            raise CancelledError('The engine is stopping.')
        n = len(rows)
        code = llama.llama_decode(
            self._pointer, self._batch.fill(rows, start, sequence, want_logits)
        )
        watch_error = self._watch and self._watch.error
        if code != 0 or watch_error:
            self.remove(sequence, start, -1)  # of an aborted batch, finished parts stay
            raise watch_error or self._error(code, n)
        if not want_logits:
            return None
        return self._logits(n - 1, out)

    def copy(self, source: int, target: int, end: int) -> None:
        """Let an empty sequence share the positions [0, end) of another."""
        if self.next_position(target):
            raise ValueError(f'sequence {target} is not empty')
        if source == target or not 0 < end <= self.next_position(source):
            raise ValueError(f'cannot copy [0, {end}) of sequence {source} to {target}')
        llama.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Forget the positions [start, end) of a sequence; end -1: to its end."""
        self._check_sequence(sequence)
        if start < 0 or not (end == -1 or end >= start):
            raise ValueError(f'[{start}, {end}) is not a range of positions')
        if start != end and not llama.llama_memory_seq_rm(self._memory, sequence, start, end):
            raise EngineError(f'llama.cpp cannot remove positions [{start}, {end})')

    def shift(self, sequence: int, start: int, delta: int) -> None:
        """Move the positions from `start` on down by -delta, onto positions that are free.

        Refused while another sequence lives: a shared cell has one position, and the other
        sequence would read it at the wrong one.
        """
        self._check_sequence(sequence)
        if not delta < 0 <= start + delta:
            raise ValueError(f'positions from {start} cannot move by {delta}')
        for other in range(self.options.n_sequences):
            if other != sequence and self.next_position(other):
                raise ValueError(f'sequence {other} may share cells with sequence {sequence}')
        llama.llama_memory_seq_add(self._memory, sequence, start, -1, delta)

    def state_bytes(self, sequence: int) -> int:
        """Return the size of what `save` returns."""
        self._check_sequence(sequence)
        return llama.llama_state_seq_get_size(self._pointer, sequence)

    def save(self, sequence: int) -> np.ndarray:
        """Return a sequence's keys and values as bytes (n,) uint8, for `restore`.

        After a shift, read a row first: what was moved is rotated by the next decode only.
        """
        state = np.empty(self.state_bytes(sequence), np.uint8)  # (n,)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_seq_get_data(self._pointer, pointer, state.size, sequence)
        if written != state.size:
            raise EngineError(f'llama.cpp saved {written} of {state.size} bytes')
        return state

    def restore(self, sequence: int, state: np.ndarray) -> None:
        """Fill an empty sequence with what a context of the same kind has saved."""
        if self.next_position(sequence):
            raise ValueError(f'sequence {sequence} is not empty')
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not llama.llama_state_seq_set_data(self._pointer, pointer, state.size, sequence):
            raise EngineError(f'llama.cpp does not take back {state.size} bytes that it has saved')

    def clear(self) -> None:
        """Forget all sequences, and the numbers in their cells."""
        self._check_sequence(0)
        llama.llama_memory_clear(self._memory, True)

    def _check_sequence(self, sequence: int) -> None:
        if not self._free.alive:
            raise EngineError('this context is closed')
        if not 0 <= sequence < self.options.n_sequences:
            raise ValueError(f'sequence {sequence} is not in 0..{self.options.n_sequences - 1}')

    def _check_rows(self, rows: np.ndarray, start: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.model.width or rows.dtype != np.float32:
            raise ValueError(
                f'rows are {rows.dtype} {rows.shape}, the model reads float32 '
                f'(n, {self.model.width})'
            )
        if not 1 <= len(rows) <= self.n_batch:
            raise ValueError(f'{len(rows)} rows in one decode, 1 to {self.n_batch} fit')
        if not np.isfinite(rows).all():
            raise InputError(
                'An embedding is not finite; it would spoil all that follows it. '
                'Check the encoder that made it.'
            )
        if start + len(rows) > self.model.context_length:
            raise ContextFullError(
                len(rows),
                self.model.context_length - start,
                'Reset the window; the model knows no later positions.',
            )

    def _error(self, code: int, n_rows: int) -> Exception:
        if code == NO_SLOT:
            return ContextFullError(
                n_rows, self.n_ctx - self._cells_in_use(), 'Evict units, or raise n_ctx.'
            )
        if code == ABORTED:
            return CancelledError('The decode was stopped.')
        return EngineError(f'llama_decode failed (code {code})')

    def _cells_in_use(self) -> int:
        """Estimate the cells taken, for a message; shared ones are counted once."""
        return min(
            self.n_ctx,
            max(self.next_position(sequence) for sequence in range(self.options.n_sequences)),
        )

    def _logits(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        pointer = llama.llama_get_logits_ith(self._pointer, row)
        if not pointer:
            raise EngineError('llama.cpp gave no logits')
        logits = np.ctypeslib.as_array(pointer, (self.model.vocabulary.size,))
        if out is None:
            out = np.empty_like(logits)
        np.copyto(out, logits)
        if not np.isfinite(out).all():
            raise EngineError('llama.cpp gave logits that are not finite')
        return out


class _Batch:
    """A llama_batch of embeddings over arrays of our own."""

    def __init__(self, n_rows: int, width: int):
        self._rows = np.zeros((n_rows, width), np.float32)
        self._positions = np.zeros(n_rows, np.int32)
        self._n_sequences = np.ones(n_rows, np.int32)
        self._sequences = np.zeros(n_rows, np.int32)
        self._outputs = np.zeros(n_rows, np.int8)
        integers = ctypes.POINTER(ctypes.c_int32)
        address, stride = self._sequences.ctypes.data, self._sequences.itemsize
        self._sequence_pointers = (integers * n_rows)(
            *(ctypes.cast(address + stride * row, integers) for row in range(n_rows))
        )
        self._struct = llama.llama_batch(
            0,
            None,
            self._rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            self._positions.ctypes.data_as(integers),
            self._n_sequences.ctypes.data_as(integers),
            ctypes.cast(self._sequence_pointers, ctypes.POINTER(integers)),
            self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self, rows: np.ndarray, start: int, sequence: int, want_logits: bool
    ) -> llama.llama_batch:
        n = len(rows)
        self._rows[:n] = rows
        self._positions[:n] = np.arange(start, start + n)
        self._sequences[:n] = sequence
        self._outputs[:n] = 0
        self._outputs[n - 1] = want_logits
        self._struct.n_tokens = n
        return self._struct


def check_n_ctx(n_ctx: int, context_length: int) -> None:
    """Raise InputError for more positions than a model was made for."""
    if not 1 <= n_ctx <= context_length:
        raise InputError(f'n_ctx is {n_ctx}, this model allows 1 to {context_length}.')


def _check_options(model: LanguageModel, options: ContextOptions) -> None:
    check_n_ctx(options.n_ctx, model.context_length)
    if not 1 <= options.n_batch <= options.n_ctx:
        raise InputError(f'n_batch is {options.n_batch}, 1 to n_ctx ({options.n_ctx}) is allowed.')
    if not 1 <= options.n_sequences <= llama.llama_max_parallel_sequences():
        raise InputError(
            f'n_sequences is {options.n_sequences}, 1 to '
            f'{llama.llama_max_parallel_sequences()} is allowed.'
        )
    if options.kv_type not in KV_TYPES:
        raise InputError(f'kv_type is {options.kv_type}, allowed are {", ".join(KV_TYPES)}.')
    if options.kv_type == 'q8_0' and model.head_width % 32:
        raise InputError(
            f'kv_type q8_0 needs heads of a multiple of 32, this model has '
            f'{model.head_width}. Use f16.'
        )
    if not 1 <= options.threads <= MAX_THREADS:
        raise InputError(f'threads is {options.threads}, 1 to {MAX_THREADS} is allowed.')
