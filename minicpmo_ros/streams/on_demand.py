# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A vision encoder whose weights are in memory only while images are encoded.

If it has been idle for a while (no images, or unchanged ones), it releases its weights and its
compute buffer. The next image that needs them loads them again, in slices like its encoding; its
embedding is late by that, not lost.
"""

import time
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from minicpmo_ros.errors import ModelFileError


class VisionOnDemand:
    """Wraps the VisionEncoder that `load(between=...)` returns; loads it at once; for one thread.

    `between()` (or None) is called between slices of the loading and may raise. After
    `release_after_s` without encoding the weights may be released; 0: never. `clock()`: monotonic.
    """

    def __init__(
        self,
        load: Callable,
        release_after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._load, self._release_after_s, self._clock = load, release_after_s, clock
        self._encoder = load(between=None)
        self._facts = self._encoder.facts
        self.max_tiles, self.image_size = self._encoder.max_tiles, self._encoder.image_size
        self.takes_squares = self._encoder.takes_squares
        self._used_s = clock()
        self.releases = 0
        self.reload_ms = 0.0  # of the last reload; 0: there was none

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._encoder is not None

    def encode(
        self, tiles: Sequence[np.ndarray], between: Callable[[], None] | None = None
    ) -> np.ndarray:
        """Encode as VisionEncoder does; raise ModelFileError if its file has changed."""
        if self._encoder is None:
            self._reload(between)
        try:
            return self._encoder.encode(tiles, between)  # (n_tiles * queries, width)
        finally:
            self._used_s = self._clock()

    def release_when_idle(self) -> bool:
        """Release the weights if it is time; return whether that happened now."""
        idle_s = self._clock() - self._used_s
        if self._encoder is None or not 0 < self._release_after_s <= idle_s:
            return False
        self._encoder = None
        self.releases += 1
        return True

    def _reload(self, between: Callable[[], None] | None) -> None:
        started_s = perf_counter()
        encoder = self._load(between=between)
        if encoder.facts != self._facts:
            raise ModelFileError(
                encoder.path,
                'it is another model than when the node was configured',
                'Clean up the node and configure it again',
            )
        self._encoder = encoder
        self.reload_ms = (perf_counter() - started_s) * 1e3
