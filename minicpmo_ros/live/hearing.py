# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""From a microphone's samples to one embedding a second.

A second is encoded as soon as the 200 samples (12.5 ms) after it are there, which makes the
stream equal to the offline encoder. What is encoded depends on the samples of each second only,
never on how they were chunked. The encoder begins anew where the stream of sound does, in a pause
once its 30 s come to their end, and after a second it failed on; where there is no pause it is
handed over (ears.py). One thread uses a Hearing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.live.ears import Ears, Handover, power
from minicpmo_ros.live.seconds import SampledSecond, SecondSplitter
from minicpmo_ros.live.status import LARGEST, Status
from minicpmo_ros.media.log_mel import MARGIN


@dataclass(frozen=True)
class HeardSecond:
    """What was heard in one second; without rows the status says why, and the reason more."""

    second: int  # covers [second, second + 1) s of the stamps
    status: Status = Status.EMPTY
    reason: str = ''  # a sentence, for LOST
    rows: np.ndarray | None = None  # (25, width) float16
    level_dbfs: float = -math.inf  # root mean square, relative to 1; -inf: digital silence
    remembered_s: int = 0  # how much sound right before this second the encoder remembers
    restarted: bool = False  # it remembers none
    begins_stream: bool = False  # with this second the sound begins, or time has jumped to it
    preprocess_ms: float = 0.0  # log-mel spectrum
    encode_ms: float = 0.0  # of all that the encoder did in this second
    padded_samples: int = 0  # these four as in SampledSecond
    gap_samples: int = 0
    drift_samples: int = 0
    overlap_samples: int = 0


class Hearing:
    """Cuts sound into seconds and encodes them.

    audio_encoder: an AudioEncoder. isolated: prepare each second by itself, as MiniCPM-o 2.6
    does, without looking ahead. between: called between slices of the encoder's work; what it
    raises ends the push and the stream of sound with it. handover: what happens when the encoder
    is full.
    """

    def __init__(
        self,
        audio_encoder,
        isolated: bool = False,
        between: Callable[[], None] | None = None,
        handover: Handover | None = None,
    ):
        self._splitter = SecondSplitter(look_ahead_samples=0 if isolated else MARGIN)
        self._ears = Ears(audio_encoder, isolated, handover or Handover())
        self._between = between

    def push(self, stamp_ns: int | None, samples: np.ndarray) -> list[HeardSecond]:
        """Take samples (n,) float32 at 16 kHz, the first of them recorded at stamp_ns.

        stamp_ns None and errors: as SecondSplitter.push.
        """
        return [self._hear(sampled) for sampled in self._splitter.push(stamp_ns, samples)]

    def flush(self, close: bool = True) -> list[HeardSecond]:
        """Give what waits for more sound, as if silence followed; see SecondSplitter.flush."""
        return [self._hear(sampled) for sampled in self._splitter.flush(close)]

    def _hear(self, sampled: SampledSecond) -> HeardSecond:
        turning_s = perf_counter()
        self._ears.turn_to(sampled)
        turned_s = perf_counter()
        heard = HeardSecond(
            sampled.second,
            Status.OK,
            level_dbfs=level_dbfs(sampled.samples),
            remembered_s=self._ears.remembered_s,
            restarted=self._ears.remembered_s == 0,
            begins_stream=sampled.restarted,
            padded_samples=sampled.padded_samples,
            gap_samples=sampled.gap_samples,
            drift_samples=sampled.drift_samples,
            overlap_samples=sampled.overlap_samples,
        )
        mels = self._ears.spectra(sampled)
        encoding_s = perf_counter()
        rows, reason = self._encode(mels)
        heard = replace(
            heard,
            rows=rows,
            preprocess_ms=(encoding_s - turned_s) * 1e3,
            encode_ms=(turned_s - turning_s + perf_counter() - encoding_s) * 1e3,
        )
        if rows is None:
            # What the encoder remembers of this second would spoil those to come.
            self._ears.restart()
            heard = replace(heard, status=Status.LOST, reason=reason)
        return heard

    def _encode(self, mels: list) -> tuple:
        """Give the rows (25, width) float16 and '', or None and why there are none."""
        try:
            rows = self._ears.step(mels, self._between)  # (25, width) float32
        except EngineError as error:
            return None, str(error)
        if not np.abs(rows).max() < LARGEST:  # NaN is not less than anything
            return None, (
                'The embedding of the sound is not finite or not below '
                f'{LARGEST:.0f}. Are the model files intact?'
            )
        return rows.astype(np.float16), ''


def level_dbfs(samples: np.ndarray) -> float:
    """Give the root mean square of samples in decibels relative to 1; -inf for zeros."""
    mean_square = power(samples)
    return 10 * math.log10(mean_square) if mean_square else -math.inf
