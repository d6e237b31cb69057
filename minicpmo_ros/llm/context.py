# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A llama.cpp context whose misuse raises: what would abort the process is checked here first.

Sequences share one pool of cells; a copy of a sequence costs nothing until it grows. Several
sequences are read in one decode, and rows may belong to several of them. A decode is all or
nothing: after an error its sequences are what they were. One thread at a time may use a context;
only the AbortFlag may be set from another.

GGML_ASSERTs of llama.cpp 0.5 guarded here: more rows than n_batch, more outputs than
n_outputs_max, fewer outputs than sequences, a sequence out of range, a copy of part of a sequence
without a unified cache, a shift that the cache cannot do.
"""

import ctypes
import weakref
from typing import NamedTuple

import llama_cpp.llama_cpp as llama
import numpy as np

from minicpmo_ros.errors import CancelledError, ContextFullError, EngineError, InputError
from minicpmo_ros.ggml.graph import ProductWatch
from minicpmo_ros.llm.context_options import (
    KV_TYPES,
    ContextOptions,
    cells,
    check_options,
    is_fused,
)
from minicpmo_ros.llm.model import LanguageModel
from minicpmo_ros.process import graph_reuse

PLAIN, FUSED = 0, 1  # llama.h: enum llama_flash_attn_type
NO_SLOT, ABORTED = 1, 2  # return codes of llama_decode
TILE_ROWS = 16  # a multiple of it costs no more than a few rows less: batches are cut there
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


class Piece(NamedTuple):
    """Rows that are read at the end of some sequences, which must end at the same position.

    The rows look back on what the first of the sequences holds, and belong to all of them.
    """

    rows: np.ndarray  # (n, width) float32
    sequences: tuple
    n_logits: int = 0  # of that many of the last rows logits are wanted


def copies(logits: list) -> list:
    """Return copies, which outlast the next decode; None stays None."""
    return [found if found is None else found.copy() for found in logits]


class Context:
    """Keys and values of a few sequences over one model."""

    def __init__(
        self, model: LanguageModel, options: ContextOptions, abort: AbortFlag | None = None
    ):
        check_options(options, model)
        self.model, self.options, self.abort = model, options, abort or AbortFlag()
        self.is_fused = is_fused(options.attention, options.kv_type, model.on_gpu)
        self._n_outputs = max(options.n_outputs, options.n_sequences)
        self._watch = options.on_product and ProductWatch(options.on_product)
        with graph_reuse(not model.is_remote):
            pointer = llama.llama_init_from_model(model.pointer, self._parameters())
        if not pointer:
            raise EngineError(
                f'llama.cpp made no context of {options.n_ctx} positions; its log '
                'names the reason. Where memory is short, lower n_ctx or use '
                'kv_type q8_0.'
            )
        self.pointer = pointer
        self._free = weakref.finalize(self, llama.llama_free, pointer)
        self.memory = llama.llama_get_memory(pointer)
        # Of a window; rounded up it may promise positions that the model does not know.
        self.n_ctx = min(llama.llama_n_ctx(pointer) // options.n_windows, model.context_length)
        self.n_batch = llama.llama_n_batch(pointer)
        if not llama.llama_memory_can_shift(self.memory):
            raise EngineError('this context cannot shift positions')
        self._batch = _Batch(self.n_batch, model.width, options.n_sequences)
        self._logits = np.empty((self._n_outputs, model.vocabulary.size), np.float32)

    def _parameters(self):
        """Return llama.cpp's parameters for a context with these options."""
        options = self.options
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = options.n_ctx
        if options.n_windows > 1:
            parameters.n_ctx = options.n_windows * cells(options.n_ctx)
        parameters.n_batch = parameters.n_ubatch = options.n_batch
        parameters.n_seq_max = options.n_sequences
        parameters.n_outputs_max = self._n_outputs
        parameters.n_threads = parameters.n_threads_batch = options.threads
        parameters.kv_unified = True
        parameters.flash_attn_type = FUSED if self.is_fused else PLAIN
        parameters.type_k = parameters.type_v = KV_TYPES[options.kv_type]
        parameters.offload_kqv = parameters.op_offload = options.offload_kv
        parameters.no_perf = True
        parameters.abort_callback = self.abort.callback
        parameters.abort_callback_data = self.abort.data
        if self._watch:
            parameters.cb_eval = ctypes.cast(
                self._watch.callback, llama.ggml_backend_sched_eval_callback
            )
        return parameters

    def close(self) -> None:
        """Free keys and values; the context is of no use afterwards."""
        self._free()

    def next_position(self, sequence: int) -> int:
        """Return the position behind the last one of a sequence; 0 for an empty one."""
        self._check_sequence(sequence)
        return llama.llama_memory_seq_pos_max(self.memory, sequence) + 1

    def decode(self, pieces) -> list:
        """Read pieces, one after the other; return the logits (n_logits, vocabulary) of each.

        They are valid until the next decode. All pieces take one llama_decode, or one for every
        n_batch rows. Raises ValueError for pieces that do not fit their sequences, InputError for
        rows that are not finite, ContextFullError, CancelledError, and EngineError after which
        the context must be rebuilt.
        """
        starts = self._check_pieces(pieces)
        if self.abort.is_set:
            raise CancelledError('The engine is stopping.')
        n_logits = sum(piece.n_logits for piece in pieces)
        if n_logits > len(self._logits):
            self._logits = np.empty((n_logits, self.model.vocabulary.size), np.float32)
        positions, n_done = dict(starts), 0
        try:
            for batch in _batches(pieces, self.n_batch, self._n_outputs):
                n_done += self._decode_batch(batch, positions, self._logits[n_done:])
        except BaseException:
            for sequence, start in starts.items():  # of an aborted batch, finished rows stay
                self.remove(sequence, start, -1)
            raise
        found, end = [], 0
        for piece in pieces:
            found.append(self._logits[end : end + piece.n_logits])
            end += piece.n_logits
        return found

    def read(self, rows: np.ndarray, sequence: int, want_logits: bool = False):
        """Read rows (n, width) of one sequence; return a copy of the last one's logits, or None.

        The logits are (vocabulary,) float32. Raises as `decode`.
        """
        (logits,) = self.decode([Piece(rows, (sequence,), int(want_logits))])
        return logits[0].copy() if want_logits else None

    def copy(self, source: int, target: int, end: int) -> None:
        """Let an empty sequence share the positions [0, end) of another."""
        if self.next_position(target):
            raise ValueError(f'sequence {target} is not empty')
        if source == target or not 0 < end <= self.next_position(source):
            raise ValueError(f'cannot copy [0, {end}) of sequence {source} to {target}')
        llama.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Forget the positions [start, end) of a sequence; end -1: to its end."""
        self._check_sequence(sequence)
        if start < 0 or not (end == -1 or end >= start):
            raise ValueError(f'[{start}, {end}) is not a range of positions')
        if start != end and not llama.llama_memory_seq_rm(self.memory, sequence, start, end):
            raise EngineError(f'llama.cpp cannot remove positions [{start}, {end})')

    def close_gap(self, start: int, end: int, source: int, forks: dict, strangers=()) -> None:
        """Forget the positions [start, end) of a sequence and its forks, and move up what follows.

        A shared cell has one position, and is moved once for all that share it. `forks` has of
        each other sequence that lives the position from which on it shares nothing with the
        source: what is its own moves by what it loses before. ValueError where one is missing,
        but for `strangers`, the sequences of other windows.
        """
        for other in range(self.options.n_sequences):
            if other not in (source, *forks, *strangers) and self.next_position(other):
                raise ValueError(f'sequence {other} may share cells with sequence {source}')
        if not 0 <= start < end <= self.next_position(source):
            raise ValueError(f'[{start}, {end}) is no gap in sequence {source}')
        moved = {sequence: own for sequence, own in {source: end, **forks}.items() if own > start}
        for sequence, own in moved.items():  # before any cell moves into the gap
            self.remove(sequence, start, min(end, own))
        for sequence, own in moved.items():
            if own < self.next_position(sequence):
                delta = start - min(end, own)
                llama.llama_memory_seq_add(self.memory, sequence, own, -1, delta)

    def state_bytes(self, sequence: int) -> int:
        """Return the size of what `save` returns."""
        self._check_sequence(sequence)
        return llama.llama_state_seq_get_size(self.pointer, sequence)

    def save(self, sequence: int) -> np.ndarray:
        """Return a sequence's keys and values as bytes (n,) uint8, for `restore`.

        After a shift, read a row first: what was moved is rotated by the next decode only.
        """
        state = np.empty(self.state_bytes(sequence), np.uint8)  # (n,)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_seq_get_data(self.pointer, pointer, state.size, sequence)
        if written != state.size:
            raise EngineError(f'llama.cpp saved {written} of {state.size} bytes')
        return state

    def restore(self, sequence: int, state: np.ndarray) -> None:
        """Fill an empty sequence with what a context of the same kind has saved."""
        if self.next_position(sequence):
            raise ValueError(f'sequence {sequence} is not empty')
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not llama.llama_state_seq_set_data(self.pointer, pointer, state.size, sequence):
            raise EngineError(f'llama.cpp does not take back {state.size} bytes that it has saved')

    def clear(self) -> None:
        """Forget all sequences, and the numbers in their cells."""
        self._check_sequence(0)
        llama.llama_memory_clear(self.memory, True)

    def _check_sequence(self, sequence: int) -> None:
        if not self._free.alive:
            raise EngineError('this context is closed')
        if not 0 <= sequence < self.options.n_sequences:
            raise ValueError(f'sequence {sequence} is not in 0..{self.options.n_sequences - 1}')

    def _check_pieces(self, pieces) -> dict:
        """Raise if a piece cannot be read; return {sequence: its next position} of all in them."""
        starts = {}
        for sequence in (sequence for piece in pieces for sequence in piece.sequences):
            if sequence not in starts:
                starts[sequence] = self.next_position(sequence)
        ends = dict(starts)
        for rows, sequences, n_logits in pieces:
            starts_at = {ends[sequence] for sequence in sequences}
            if len(starts_at) != 1 or len(set(sequences)) < len(sequences):
                raise ValueError(f'sequences {sequences} do not end at the same position')
            self._check_rows(rows, start := starts_at.pop())
            if not 0 <= n_logits <= len(rows):
                raise ValueError(f'logits of {n_logits} of {len(rows)} rows are wanted')
            ends.update(dict.fromkeys(sequences, start + len(rows)))
        return starts

    def _check_rows(self, rows: np.ndarray, start: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.model.width or rows.dtype != np.float32:
            raise ValueError(
                f'rows are {rows.dtype} {rows.shape}, the model reads float32 '
                f'(n, {self.model.width})'
            )
        if not len(rows):
            raise ValueError('0 rows in a piece, at least one is needed')
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

    def _decode_batch(self, batch: list, positions: dict, out: np.ndarray) -> int:
        """Read one batch of pieces; advance `positions`, put logits into `out`, count them."""
        outputs = self._batch.fill(batch, positions)
        code = llama.llama_decode(self.pointer, self._batch.struct)
        watch_error = self._watch and self._watch.error
        if code != 0 or watch_error:
            raise watch_error or self._error(code, self._batch.struct.n_tokens)
        for index, row in enumerate(outputs):
            pointer = llama.llama_get_logits_ith(self.pointer, row)
            if not pointer:
                raise EngineError('llama.cpp gave no logits')
            np.copyto(out[index], np.ctypeslib.as_array(pointer, out[index].shape))
            if not np.isfinite(out[index]).all():
                raise EngineError('llama.cpp gave logits that are not finite')
        return len(outputs)

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


class _Batch:
    """A llama_batch of embeddings over arrays of our own."""

    def __init__(self, n_rows: int, width: int, n_sequences: int):
        self._rows = np.zeros((n_rows, width), np.float32)
        self._positions = np.zeros(n_rows, np.int32)
        self._n_sequences = np.ones(n_rows, np.int32)
        self._sequences = np.zeros((n_rows, n_sequences), np.int32)
        self._outputs = np.zeros(n_rows, np.int8)
        integers = ctypes.POINTER(ctypes.c_int32)
        address, stride = self._sequences.ctypes.data, self._sequences.strides[0]
        self._sequence_pointers = (integers * n_rows)(
            *(ctypes.cast(address + stride * row, integers) for row in range(n_rows))
        )
        self.struct = llama.llama_batch(
            0,
            None,
            self._rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            self._positions.ctypes.data_as(integers),
            self._n_sequences.ctypes.data_as(integers),
            ctypes.cast(self._sequence_pointers, ctypes.POINTER(integers)),
            self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, pieces: list, positions: dict) -> list:
        """Fill in pieces and advance the positions of their sequences; return rows with logits."""
        outputs, begin = [], 0
        for rows, sequences, n_logits in pieces:
            n, start = len(rows), positions[sequences[0]]
            end = begin + n
            self._rows[begin:end] = rows
            self._positions[begin:end] = np.arange(start, start + n)
            self._n_sequences[begin:end] = len(sequences)
            self._sequences[begin:end, : len(sequences)] = sequences
            self._outputs[begin:end] = 0
            self._outputs[end - n_logits : end] = 1
            outputs += range(end - n_logits, end)
            positions.update(dict.fromkeys(sequences, start + n))
            begin = end
        self.struct.n_tokens = begin
        return outputs


def _batches(pieces, n_rows: int, n_outputs: int):
    """Yield lists of pieces with at most so many rows and logits; cut where there are more."""
    n_all = sum(len(piece.rows) for piece in pieces)
    if n_all <= n_rows and sum(piece.n_logits for piece in pieces) <= n_outputs:
        yield pieces
        return
    if n_all > n_rows >= TILE_ROWS:
        n_rows -= n_rows % TILE_ROWS
    batch, rows_left, outputs_left = [], n_rows, n_outputs
    for rows, sequences, n_logits in pieces:
        while len(rows):
            n_plain = len(rows) - n_logits
            n = min(len(rows), rows_left, n_plain + outputs_left)
            if n:
                n_wanted = max(0, n - n_plain)
                batch.append(Piece(rows[:n], sequences, n_wanted))
                rows, n_logits = rows[n:], n_logits - n_wanted
                rows_left, outputs_left = rows_left - n, outputs_left - n_wanted
            if len(rows):
                yield batch
                batch, rows_left, outputs_left = [], n_rows, n_outputs
    if batch:
        yield batch
