# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A vision encoder whose weights are in memory only while pictures are encoded.

What has encoded nothing for a while (no pictures, or unchanged ones) gives its weights and its
compute buffer back; the next picture that needs them has them loaded again, in slices like its
encoding, and its embedding is late by that, not lost. One thread uses it.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from minicpmo_ros.errors import ModelFileError


class VisionOnDemand:
    """Stands for the VisionEncoder that `load(between=...)` gives, and is loaded at first.

    `between()` (or None) is called between pieces of the loading and may raise.
    `release_after_s` without encoding, the weights may go; 0: never. `clock()`: monotonic.
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
        self._used_s = clock()
        self.releases = 0
        self.reload_ms = 0.0  # of the newest; 0: there was none

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._encoder is not None

    def encode(
        self, tiles: Sequence[np.ndarray], between: Callable[[], None] | None = None
    ) -> np.ndarray:
        """Encode as VisionEncoder does; ModelFileError where its file is not what it was."""
        if self._encoder is None:
            self._reload(between)
        try:
            return self._encoder.encode(tiles, between)  # (n_tiles * queries, width)
        finally:
            self._used_s = self._clock()

    def release_when_idle(self) -> bool:
        """Give the weights back if it is time; tell whether they were given back now."""
        idle_s = self._clock() - self._used_s
        if self._encoder is None or not 0 < self._release_after_s <= idle_s:
            return False
        self._encoder = None
        self.releases += 1
        return True

    def _reload(self, between: Callable[[], None] | None) -> None:
        started_s = time.perf_counter()
        encoder = self._load(between=between)
        if encoder.facts != self._facts:
            raise ModelFileError(
                encoder.path,
                'it is another model than when the node was configured',
                'Clean up the node and configure it again',
            )
        self._encoder = encoder
        self.reload_ms = 1e3 * (time.perf_counter() - started_s)
