# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a file is that should be GGUF and is not, by its first bytes: and what to do about it.

The usual ones come from downloads: a git checkout without its large files, the page of a web
site instead of the file behind it, a place on the disk that nothing was written to yet.
"""

import re

FETCH_AGAIN = 'Fetch or convert the file again'
HEAD_BYTES = 4096  # as many as are looked at
CONVERT = 'Convert it: `minicpmo convert` takes a checkpoint of Hugging Face'
# How files begin that are often given instead.
HOLLOW = (
    'it begins with zeros: the place for it was made, but not what belongs there',
    'Let the download end, or fetch it again',
)
_MAGICS = (
    (b'version https://git-lfs', 'a git-lfs pointer, not the file it stands for',
     'Run `git lfs pull` in its checkout, or fetch the file by its download link'),
    (b'version https://hawser', 'a pointer of git-lfs, as its first versions wrote it',
     'Run `git lfs pull` in its checkout, or fetch the file by its download link'),
    (b'/annex/objects/', 'a pointer of git-annex, not the file it stands for',
     'Run `git annex get` in its checkout'),
    (b'Rar!\x1a\x07', 'a RAR archive', 'Unpack it'),
    (b'PK\x03\x04', 'a ZIP archive or a PyTorch checkpoint', 'Unpack it, or convert it'),
    (b'\x1f\x8b', 'compressed by gzip', 'Unpack it: gunzip'),
    (b'\xfd7zXZ', 'compressed by xz', 'Unpack it: unxz'),
    (b'\x28\xb5\x2f\xfd', 'compressed by zstd', 'Unpack it: unzstd'),
    (b'BZh', 'compressed by bzip2', 'Unpack it: bunzip2'),
    (b'7z\xbc\xaf', 'a 7-Zip archive', 'Unpack it'),
    (b'\x80\x02', 'a pickle of Python', CONVERT),
    (b'FUGG', 'a GGUF file whose bytes are in reverse order', FETCH_AGAIN),
    *((magic, 'a file in GGML, the format before GGUF', 'Fetch the GGUF file of the model')
      for magic in (b'lmgg', b'fmgg', b'tjgg', b'algg')),
)  # fmt: skip


def recognize(head: bytes) -> tuple | None:
    """Return (problem, remedy) of what is often given instead of any file; None: not of it."""
    for magic, what, remedy in _MAGICS:
        if head.startswith(magic):
            return f'it is {what}', remedy
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head', b'<body', b'<!--')):
        return (
            'it is a web page, not the file',
            'Fetch it by its download link (at Hugging Face /resolve/ and not /blob/), logged '
            'in where the site asks for it',
        )
    return None


def is_hollow(head: bytes) -> bool:
    """Return whether nothing was written where a file begins."""
    return bool(head) and head.count(0) == len(head)


def describe(head: bytes, size_bytes: int) -> tuple:
    """Return (problem, remedy) of a file that begins with these bytes, and not as GGUF does."""
    if not size_bytes:
        return 'it is empty (0 bytes): its download has not begun, or failed', FETCH_AGAIN
    if known := recognize(head):
        return known
    if is_hollow(head):
        return HOLLOW
    if re.match(rb'.{8}\{\s*"', head, re.DOTALL) and int.from_bytes(head[:8], 'little') < 1 << 30:
        return 'it is a safetensors file', CONVERT
    if _is_text(head):
        shown = ' '.join(head[:60].decode('utf-8', 'replace').split())
        return f'it is a text and no GGUF file: {shown!r}', FETCH_AGAIN
    if size_bytes < 24:
        return f'it has only {size_bytes} bytes', FETCH_AGAIN
    return 'it does not begin as a GGUF file does', FETCH_AGAIN


def _is_text(head: bytes) -> bool:
    """Whether all of it can be read: perhaps an error message that was saved as the file."""
    try:
        text = head.decode('utf-8')
    except UnicodeDecodeError as error:  # the last character may be cut
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:
            return False
        text = head[: error.start].decode('utf-8')
    return len(text) > 7 and all(c.isprintable() or c in '\t\r\n\f' for c in text)
