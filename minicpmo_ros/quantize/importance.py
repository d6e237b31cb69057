# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much the columns of weights matter: the mean square of what each is multiplied with.

An error in a column that meets large activations costs more than one that meets small ones. The
file is llama.cpp's imatrix in GGUF (`NAME.in_sum2`, `NAME.counts`), so that files made by either
serve both; ours hold the tensors of all three networks.
"""

from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np

from minicpmo_ros.documents import appearing
from minicpmo_ros.errors import InputError, ModelFileError
from minicpmo_ros.ggml.gguf_file import Header, read_header
from minicpmo_ros.ggml.weights import read_floats

KIND = 'imatrix'
SUMS, COUNTS = '.in_sum2', '.counts'
REMAKE = 'Make one with `minicpmo importance`'
# Of the mean: columns that met zeros only must not be free to take any value.
FLOOR = 1e-4


class Importance:
    """Sums of squares by tensor; add() takes what the tensor is multiplied with."""

    def __init__(self, datasets: Iterable[str] = ()):
        self.datasets = list(datasets)  # names of what was read
        self._sums, self._counts = {}, {}

    def __contains__(self, name: str) -> bool:
        """Whether anything is known of a tensor."""
        return name in self._sums

    @property
    def names(self) -> list:
        """The tensors something is known of."""
        return list(self._sums)

    def add(self, name: str, rows: np.ndarray) -> None:
        """Count rows (n, k) that the tensor's rows (m, k) were multiplied with."""
        self._add(name, np.square(rows, dtype=np.float64).sum(axis=0), len(rows))

    def _add(self, name: str, sums: np.ndarray, count: int) -> None:
        known = self._sums.get(name)
        if known is not None and known.shape != sums.shape:
            raise ValueError(f'{name} is multiplied with rows of {len(known)} and {len(sums)}')
        self._sums[name] = sums if known is None else known + sums  # (k,)
        self._counts[name] = self._counts.get(name, 0) + count

    def of(self, name: str, columns: int) -> np.ndarray:
        """Return the importance of a tensor's columns, (columns,) float32, all positive.

        Columns beyond those that were seen (zeros behind the rows) get the least.
        """
        mean = self._sums[name][:columns] / max(1, self._counts[name])
        least = max(FLOOR * mean.mean(), np.finfo(np.float32).tiny)
        padded = np.full(columns, least)
        padded[: len(mean)] = np.maximum(mean, least)
        return padded.astype(np.float32)

    def columns(self, name: str) -> int:
        """How many columns were seen."""
        return len(self._sums[name])

    def write(self, path) -> None:
        """Write the file, at once; InputError where there is no folder for it."""
        with appearing(Path(path)) as sink:
            self._write(sink.name)

    def _write(self, path) -> None:
        writer = gguf.GGUFWriter(path, KIND)
        writer.add_type(KIND)
        writer.add_array('imatrix.datasets', self.datasets or ['unknown'])
        writer.add_uint32('imatrix.chunk_count', 1)
        writer.add_uint32('imatrix.chunk_size', 1)
        for name in sorted(self._sums):
            writer.add_tensor(name + SUMS, self._sums[name].astype(np.float32)[None])
            writer.add_tensor(name + COUNTS, np.array([[self._counts[name]]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @classmethod
    def read(cls, path) -> 'Importance':
        """Read and check a file, ours or llama.cpp's; raises ModelFileError."""
        header = read_header(Path(path))
        if header.get('general.type', str) != KIND:
            raise ModelFileError(header.path, 'it holds no importance (imatrix)', REMAKE)
        found = cls()
        for name in header.tensors:
            if name.endswith(SUMS):
                found._add(name[: -len(SUMS)], *_read(header, name[: -len(SUMS)]))
        if not found._sums:
            raise ModelFileError(header.path, 'it knows of no tensor', REMAKE)
        return found


def _read(header: Header, name: str) -> tuple:
    """Sums (k,) and count of one tensor."""
    sums = read_floats(header, name + SUMS).astype(np.float64)
    counts = read_floats(header, name + COUNTS)
    if counts.size != 1:
        raise ModelFileError(header.path, f'{name} has {counts.size} matrices, not one', REMAKE)
    if not (np.isfinite(sums).all() and (sums >= 0).all() and 0 <= counts.item() < 2**53):
        raise ModelFileError(
            header.path, f'{name} has sums or counts that are negative or not finite', REMAKE
        )
    return sums.reshape(-1), int(counts.item())


def check_fits(importance: Importance, headers: Iterable[Header]) -> None:
    """InputError where none of the files has a tensor the importance knows of."""
    if not any(name in importance for header in headers for name in header.tensors):
        raise InputError(
            'The importance knows of no tensor of this model '
            f'(it has {importance.names[0]} and others). {REMAKE} from this one.'
        )
