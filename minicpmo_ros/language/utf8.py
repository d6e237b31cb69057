# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Text from bytes that arrive in pieces: a character split over two tokens appears once whole."""

import codecs


class Utf8Stream:
    """An incremental decoder; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, data: bytes) -> str:
        """Return the characters that are complete with these bytes."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what is left: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b'', final=True)
