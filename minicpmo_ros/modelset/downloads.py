# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Downloads that did not end: unfinished files, parts of split ones, weights never written.

By name and header alone where that is enough. Where each name comes from: Hugging Face's hub
(.incomplete, in .cache/huggingface/download and in blobs), aria2 (.aria2 beside the file), Chrome
(.crdownload), Firefox and curl (.part), Safari (.download), Opera (.opdownload), WinSCP
(.filepart), qBittorrent (.!qB), llama.cpp (.downloadInProgress), ollama (sha256-...-partial), this
package (.partial).

Weights that were never written come from a download that made room for the whole file, and
stopped: aria2, torrents and some browsers do that. Such a file has its full size and a sound
header, and the model in it answers rubbish. What is not written yet is zeros, or, on erased flash
and with some downloaders, another byte again and again, such as 0xff. Three looks find it, none of
which reads the file: the end, a few places of every matrix, and the holes that the file system
knows of. Zeros that may be meant pass: biases, columns that fill up a block, the rows of tokens
that are not used. No other byte may be meant: so many of it are a whole block whose scale is no
number, or one value in a row.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from minicpmo_ros.errors import ModelFileError
from minicpmo_ros.ggml.gguf_file import Header, TensorInfo

_UNFINISHED = re.compile(
    r'\.(incomplete|part|partial|crdownload|download|opdownload|filepart|!qb|!ut|tmp|aria2__temp'
    r'|downloadinprogress)$|-partial(-\d+)?$',
    re.IGNORECASE,
)
_SPLIT = re.compile(r'^(.+)-(\d{5})-of-(\d{5})\.gguf$', re.IGNORECASE)
_CUT = re.compile(
    r'\.gguf([.-]split-[a-z]+|\.part\d+of\d+|\.part[_-]?[a-z]{1,2}|\.\d{3})$', re.IGNORECASE
)
_BLOB = re.compile(r'^(sha256[-:])?[0-9a-f]{40,64}$')
REMEDIES = {
    '.incomplete': 'Run the same `minicpmo fetch` or `hf download` again: it goes on',
    '.aria2': 'Run the same aria2c command again: it goes on where it stopped',
}
END_IT = 'Let the download end, or fetch the file again'
HOLLOW = 'minicpmo_ros.hollow'  # a key of files that have holes for weights on purpose
PIECE_BYTES = 4096  # zeros of this length are no weights; the smallest unit of a file system
FILL_BYTES = 512  # of another byte than zero: longer than a block of any type
LEAST_BYTES = 64  # of a tensor that is judged by being nothing else
LOOKS = 4  # places of a matrix
VOCABULARY_TABLES = ('token_embd.weight', 'output.weight')  # may end in rows that are not used
UNUSED_SHARE = 0.25  # of such a table
REMEDY = 'Let the download end, or fetch the file again; then run `minicpmo check --hashes`'


def is_unfinished(name: str) -> bool:
    """Whether a file is named as downloads are that have not ended."""
    return bool(_UNFINISHED.search(name))


def is_candidate(path: Path) -> bool:
    """Whether a file may be a GGUF file, or should be one, by its name or its first bytes."""
    name = path.name.lower()
    whole = _UNFINISHED.sub('', name)
    if whole.endswith('.gguf') or '.gguf?' in name or _CUT.search(name) or _BLOB.match(whole):
        return True
    try:
        with open(path, 'rb') as file:
            return file.read(4) == b'GGUF'
    except OSError:
        return False


def require_finished(path: Path) -> None:
    """Raise ModelFileError for what a download has not ended, or an old split has cut."""
    suffix = path.suffix.lower()
    if path.with_name(path.name + '.aria2').exists():
        raise ModelFileError(path, 'aria2 has not ended its download', REMEDIES['.aria2'])
    if path.exists() and is_unfinished(path.name):
        raise ModelFileError(
            path,
            f'it is an unfinished download, by its name ({path.name})',
            REMEDIES.get(suffix, END_IT) + '; if it is whole, name it .gguf',
        )
    if match := _CUT.search(path.name):
        whole = path.name[: match.start()] + '.gguf'
        raise ModelFileError(
            path,
            'it is one piece of a file that was cut',
            f'Join its pieces in order: cat PIECES > {whole}',
        )


def require_whole(header: Header) -> None:
    """Raise ModelFileError for one part of a split GGUF file; it says how to merge the parts."""
    count = header.metadata.get('split.count', 0)
    if type(count) is not int or count < 2:
        return
    path = header.path
    match = _SPLIT.match(path.name)
    if match is None:
        raise ModelFileError(
            path,
            f'it is one of {count} parts of a split model',
            'Merge its parts: llama-gguf-split --merge FIRST_PART WHOLE',
        )
    stem, _, total = match.groups()
    names = [f'{stem}-{i:05}-of-{total}.gguf' for i in range(1, count + 1)]
    missing = [name for name in names if not path.with_name(name).exists()]
    problem = f'it is one of {count} parts of a split model'
    remedy = f'llama-gguf-split --merge {names[0]} {stem}.gguf'
    if missing:
        more = ' and the others' if len(missing) > 1 else ''
        problem += f', of which {len(missing)} are missing'
        raise ModelFileError(path, problem, f'Fetch {missing[0]}{more}, then merge them: {remedy}')
    raise ModelFileError(path, problem, f'Merge them: {remedy}')


def require_weights(header: Header) -> None:
    """Raise ModelFileError where weights are missing from the file; OSError where it is gone."""
    if header.metadata.get(HOLLOW) is True:
        return
    descriptor = os.open(header.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _empty_end(descriptor, header) or _empty_within(descriptor, header)
    finally:
        os.close(descriptor)
    if found:
        tensor, start, byte = found
        fill = f'bytes of 0x{byte:02x}' if byte else 'zeros'
        raise ModelFileError(
            header.path,
            f'it has its full size, but only {fill} from byte {start} of {header.size_bytes} on, '
            f'in {tensor.name}: a download that did not end',
            REMEDY,
        )


def _matrices(header: Header) -> list:
    return [info for info in header.tensors.values() if _is_matrix(info)]


def _is_matrix(info: TensorInfo) -> bool:
    return sum(side > 1 for side in info.shape) > 1


def _allowed(info: TensorInfo, byte: int) -> int:
    """Return how many equal bytes a tensor may end in."""
    if byte:
        return FILL_BYTES - 1
    if not _is_matrix(info):
        return info.n_bytes
    if info.name in VOCABULARY_TABLES:
        return max(PIECE_BYTES, int(info.n_bytes * UNUSED_SHARE))
    return PIECE_BYTES


def _empty_end(descriptor: int, header: Header) -> tuple | None:
    """Return (tensor, begin of its fill, byte) if the file ends in more of it than is meant."""
    found = None
    for info in reversed(header.tensors.values()):
        byte, count = _fill_before(descriptor, info.offset, info.offset + info.n_bytes)
        is_whole = count == info.n_bytes
        may_be_whole = info.n_bytes < LEAST_BYTES or not (byte or _is_matrix(info))
        if count > _allowed(info, byte) or (is_whole and not may_be_whole):
            found = info, info.offset + info.n_bytes - count, byte
        if not is_whole:
            break
    return found


def _fill_before(descriptor: int, start: int, end: int) -> tuple[int, int]:
    """Return the last byte of [start, end), and how often it is repeated up to there."""
    fill = os.pread(descriptor, 1, end - 1)
    position, step = end, PIECE_BYTES
    while position > start:
        n_bytes = min(step, position - start)
        rest = os.pread(descriptor, n_bytes, position - n_bytes).rstrip(fill)
        if rest:
            return fill[0], end - (position - n_bytes + len(rest))
        position -= n_bytes
        step = min(2 * step, 1 << 20)
    return fill[0], end - start


def _empty_within(descriptor: int, header: Header) -> tuple | None:
    """Return (tensor, begin of its fill, byte) of a matrix that is not written in large parts."""
    matrices = _matrices(header)
    for info in matrices:
        if info.n_bytes < LOOKS * PIECE_BYTES:
            continue
        step = (info.n_bytes - PIECE_BYTES) // (LOOKS - 1)
        places = [info.offset + i * step for i in range(LOOKS)]
        pieces = [os.pread(descriptor, PIECE_BYTES, place) for place in places]
        fills = [piece[0] if piece == piece[:1] * PIECE_BYTES else None for piece in pieces]
        if fills == [0] * LOOKS:
            return info, info.offset, 0
        for place, fill in zip(places, fills):
            if fill:
                return info, place, fill
    for start, end in _holes(descriptor, header):
        for info in matrices:
            inside = min(end, info.offset + info.n_bytes) - max(start, info.offset)
            if inside > max(16 * PIECE_BYTES, _allowed(info, 0)):
                return info, max(start, info.offset), 0
    return None


def _holes(descriptor: int, header: Header) -> Iterator[tuple]:
    """Yield (start, end) of what the file system keeps no data for."""
    position = header.data_offset
    while position < header.size_bytes:
        try:
            start = os.lseek(descriptor, position, os.SEEK_HOLE)
        except OSError:  # a file system that does not know
            return
        if start >= header.size_bytes:
            return
        try:
            position = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no data follows
            position = header.size_bytes
        yield start, position
