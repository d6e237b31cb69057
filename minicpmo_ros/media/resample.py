# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A running change of sample rate (soxr), the same for every chunking of the same sound."""

import numpy as np
import soxr

from minicpmo_ros.errors import InputError

RATES_HZ = (4000, 384000)  # allowed, both inclusive


class Resampler:
    """Turns a stream of one rate into another; output sample k lies at k / rate_out_hz.

    The filter needs sound from after a sample to make it, so output comes later than input (by
    about 40 ms; at 8 kHz by 115 ms). `lag_ns` says by how much.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int = 16000):
        for rate_hz in (rate_in_hz, rate_out_hz):
            if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
                raise InputError(
                    f'A sample rate of {rate_hz} Hz; allowed are {RATES_HZ[0]} to '
                    f'{RATES_HZ[1]} Hz. Set the rate to what the driver sends.'
                )
        self.rate_in_hz, self.rate_out_hz = rate_in_hz, rate_out_hz
        self._taken = self._given = 0
        self._soxr = None
        if rate_in_hz != rate_out_hz:
            self._soxr = soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, 'float32', 'HQ')

    @property
    def lag_ns(self) -> int:
        """How much earlier the next sample out lies than the next sample in, nanoseconds.

        Read before `push(chunk)`: what comes out begins at the chunk's stamp minus this.
        """
        return self._taken * 10**9 // self.rate_in_hz - self._given * 10**9 // self.rate_out_hz

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take samples (n,) float32 at rate_in_hz; give (m,) float32 at rate_out_hz."""
        return self._resample(np.asarray(samples, np.float32), last=False)

    def flush(self) -> np.ndarray:
        """End the stream; give what is still inside, (m,) float32."""
        return self._resample(np.empty(0, np.float32), last=True)

    def _resample(self, samples: np.ndarray, last: bool) -> np.ndarray:
        self._taken += len(samples)
        if self._soxr is not None:
            samples = self._soxr.resample_chunk(np.ascontiguousarray(samples), last=last)
        self._given += len(samples)
        return samples
