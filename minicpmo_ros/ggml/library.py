# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""ggml inside llama-cpp-python: one handle, typed functions, its log, its version check.

`lib.mul_mat` is `ggml_mul_mat` and so on; signatures.py lists them. Importing this module
loads llama.cpp, so minicpmo_ros.process.prepare() comes before it. All functions are found
through libllama's handle, which sees exactly the copies of ggml that llama.cpp itself uses:
the wheel holds each library three times, and opening one by its path would map a second
copy with globals of its own.

ggml ends the process on misuse, so whatever is called here has been checked before.
Neither enum values nor struct sizes are a stable ABI: the import fails with EngineError on
a ggml that this package was not made for.
"""

import atexit
import ctypes
import logging
import os
import re
import threading
import types
from collections.abc import Callable

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.ggml import signatures
from minicpmo_ros.ggml.types import GgmlType, row_bytes

__all__ = [
    'GGML_VERSION',
    'GgmlType',
    'QUANTIZABLE',
    'dequantize',
    'explain_abort',
    'lib',
    'llama_cpp_version',
    'quantize',
    'row_bytes',
    'set_log',
]

GGML_VERSION = '0.25.3'
PINNED = 'llama-cpp-python==0.3.36'  # as in environment/*.txt

try:
    import llama_cpp
    from llama_cpp import llama_cpp as _llama
except ImportError as error:
    raise EngineError(f'llama.cpp cannot be loaded ({error}). Install {PINNED}') from error

llama_cpp_version = llama_cpp.__version__
lib = types.SimpleNamespace(
    **signatures.bind(ctypes.PyDLL(_llama._lib._name), signatures.QUICK),
    **signatures.bind(ctypes.CDLL(_llama._lib._name), signatures.BLOCKING),
)


# What ggml can encode without importance weights.
QUANTIZABLE = frozenset(map(GgmlType, (0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30)))


def quantize(
    rows: np.ndarray, ggml_type: GgmlType, importance: np.ndarray | None = None
) -> np.ndarray:
    """Encode rows (n, k) float32 as (n, row_bytes(type, k)) uint8.

    importance: (k,) float32, what an error in each column counts; types of four to six bits
    choose their scales by it, others take no notice.
    ValueError: a type not in QUANTIZABLE, rows not two-dimensional, not finite, or of a
    length that is no whole number of blocks; an importance that does not fit or is not positive.
    """
    if ggml_type not in QUANTIZABLE:
        raise ValueError(f'{GgmlType(ggml_type).name} cannot be quantised to')
    rows = np.ascontiguousarray(rows, np.float32)  # (n, k)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f'rows of shape {rows.shape} cannot be quantised, (n, k) is expected')
    if not np.isfinite(rows).all():
        raise ValueError('rows with NaN or infinite numbers cannot be quantised')
    n_rows, n = rows.shape
    weights = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)  # (k,)
        # A block of zeros would be divided by their sum.
        if importance.shape != (n,) or not (np.isfinite(importance) & (importance > 0)).all():
            raise ValueError(f'the importance is not {n} positive numbers')
        weights = importance.ctypes.data
    encoded = np.empty((n_rows, row_bytes(ggml_type, n)), np.uint8)  # (n, bytes)
    written = lib.quantize_chunk(
        ggml_type, rows.ctypes.data, encoded.ctypes.data, 0, n_rows, n, weights
    )
    if written != encoded.nbytes:
        raise EngineError(
            f'quantising to {ggml_type.name} wrote {written} bytes, {encoded.nbytes} were expected'
        )
    return encoded


def dequantize(encoded: np.ndarray, ggml_type: GgmlType) -> np.ndarray:
    """Decode (n, bytes) uint8 of any type with a float meaning to (n, k) float32."""
    encoded = np.ascontiguousarray(encoded).view(np.uint8)  # (n, bytes)
    if encoded.ndim != 2 or encoded.shape[1] % GgmlType(ggml_type).block_bytes:
        raise ValueError(f'{encoded.shape} bytes are not rows of {GgmlType(ggml_type).name}')
    if ggml_type == GgmlType.F32:
        return encoded.view(np.float32).copy()
    traits = signatures.TypeTraits.from_address(lib.get_type_traits(ggml_type))
    if not traits.to_float:
        raise ValueError(f'{GgmlType(ggml_type).name} has no float meaning')
    n = encoded.shape[1] // ggml_type.block_bytes * ggml_type.block_size
    decoded = np.empty((len(encoded), n), np.float32)  # (n, k)
    to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        traits.to_float
    )
    to_float(encoded.ctypes.data, decoded.ctypes.data, decoded.size)
    return decoded


_LEVELS = {1: 'debug', 2: 'info', 3: 'warning', 4: 'error'}
_CONTINUED = 5
# What llama.cpp logs of a decode that an abort callback ended: GGML_STATUS_ABORTED is 1, and
# llama_decode returns 2. That was on purpose, so it is logged for debugging. Entries are removed
# after a decode that failed, too, but then the lines around it tell of an error.
_OF_ABORT = re.compile(
    r'graph_compute: .* failed with error 1|process_ubatch: .* compute status: 1'
    r'|decode: removing memory module entries .*|llama_decode: failed to decode, ret = 2'
)
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def _to_logging(level: str, text: str) -> None:
    # Without arguments nothing in it is a format, and each line is a message of its own.
    getattr(logging.getLogger('minicpmo_ros.llama_cpp'), level)(text)


class _Log:
    """Puts the pieces that ggml and llama.cpp log together to lines and hands them on."""

    def __init__(self):
        self.sink: Callable = _to_logging
        self._lock = threading.Lock()
        self._level, self._text = 'info', ''
        self.explain_abort: Callable[[str], str] = lambda message: ''
        self.callback = _LOG_CALLBACK(self._receive)  # C holds its address: kept for good

    def _receive(self, level: int, piece: bytes, _) -> None:
        with self._lock:
            if level != _CONTINUED:
                self._level = _LEVELS.get(level, 'info')
            *lines, self._text = (self._text + (piece or b'').decode('utf-8', 'replace')).split(
                '\n'
            )
            level = self._level
        for line in filter(None, map(str.rstrip, lines)):
            self.sink('debug' if _OF_ABORT.fullmatch(line) else level, line)


def set_log(sink: Callable | None) -> None:
    """Send every line that ggml and llama.cpp log to sink(level, text).

    level is 'debug', 'info', 'warning' or 'error'. The sink is called by whatever thread
    computes and must not block. None: the logger `minicpmo_ros.llama_cpp` of Python.
    """
    llama_log.sink = sink or _to_logging


def explain_abort(explain: Callable[[str], str]) -> None:
    """Let the last words of this process end in what explain(ggml's message) returns."""
    llama_log.explain_abort = explain


@_ABORT_CALLBACK
def _last_words(message: bytes) -> None:
    """Show why the process is about to end: abort() follows and cannot be stopped."""
    message = (message or b'').decode('utf-8', 'replace')
    told = f'ggml ends this process: {message}. {llama_log.explain_abort(message)}'
    os.write(2, told.encode() + b'\n')


def check_version() -> None:
    version = lib.version().decode()
    if version != GGML_VERSION:
        raise EngineError(
            f'ggml {version} of llama-cpp-python {llama_cpp_version} is not what '
            f'this package was made for ({GGML_VERSION}). Install {PINNED}'
        )
    # ggml keeps a 32-byte object header in front of every tensor.
    if ctypes.sizeof(signatures.TensorStruct) + 32 != lib.tensor_overhead():
        raise EngineError(f'the layout of ggml tensors has changed. Install {PINNED}')


def _route_log() -> None:
    address = ctypes.cast(llama_log.callback, ctypes.c_void_p)
    lib.log_set(address, None)
    set_llama_log = ctypes.CDLL(_llama._lib._name).llama_log_set
    set_llama_log.argtypes, set_llama_log.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    set_llama_log(address, None)
    lib.set_abort_callback(ctypes.cast(_last_words, ctypes.c_void_p))
    # What C destroys after Python has ended must not call into it.
    atexit.register(lib.set_abort_callback, None)
    atexit.register(set_llama_log, None, None)
    atexit.register(lib.log_set, None, None)


llama_log = _Log()
check_version()
_route_log()
