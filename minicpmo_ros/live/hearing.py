# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""From a microphone's samples to one embedding a second.

A second is encoded as soon as the 200 samples (12.5 ms) after it are there, which makes the
stream equal to the offline encoder. What is encoded depends on the samples of each second only,
never on how they were chunked. The encoder begins anew where the stream of sound does, where its
30 s are full, and after a second it failed on. One thread uses a Hearing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.live.seconds import SampledSecond, SecondSplitter
from minicpmo_ros.live.status import LARGEST, Status
from minicpmo_ros.media.log_mel import (
    BANDS,
    FLOOR,
    MARGIN,
    LogMelStream,
    clamp_and_scale,
    isolated_log_mel,
)


@dataclass(frozen=True)
class HeardSecond:
    """What was heard in one second; without rows the status says why, and the reason more."""

    second: int  # covers [second, second + 1) s of the stamps
    status: Status = Status.EMPTY
    reason: str = ''  # a sentence, for LOST
    rows: np.ndarray | None = None  # (25, width) float16
    level_dbfs: float = -math.inf  # root mean square, relative to 1; -inf: digital silence
    restarted: bool = False  # the encoder begins with this second
    preprocess_ms: float = 0.0  # log-mel spectrum
    encode_ms: float = 0.0
    padded_samples: int = 0  # these four as in SampledSecond
    gap_samples: int = 0
    drift_samples: int = 0
    overlap_samples: int = 0


class Hearing:
    """Cuts sound into seconds and encodes them.

    audio_encoder: an AudioEncoder. isolated: prepare each second by itself, as MiniCPM-o 2.6
    does, without looking ahead. between: called between slices of the encoder's work; what it
    raises ends the push and the stream of sound with it.
    """

    def __init__(
        self, audio_encoder, isolated: bool = False, between: Callable[[], None] | None = None
    ):
        self._splitter = SecondSplitter(look_ahead_samples=0 if isolated else MARGIN)
        self._ear = _Ear(audio_encoder, isolated)
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
        if sampled.restarted or self._ear.is_full:
            self._ear.restart()
        heard = HeardSecond(
            sampled.second,
            Status.OK,
            level_dbfs=level_dbfs(sampled.samples),
            restarted=self._ear.is_fresh,
            padded_samples=sampled.padded_samples,
            gap_samples=sampled.gap_samples,
            drift_samples=sampled.drift_samples,
            overlap_samples=sampled.overlap_samples,
        )
        started_s = perf_counter()
        mel = self._ear.spectrum(sampled)
        encoding_s = perf_counter()
        rows, reason = self._encode(mel)
        heard = replace(
            heard,
            rows=rows,
            preprocess_ms=(encoding_s - started_s) * 1e3,
            encode_ms=(perf_counter() - encoding_s) * 1e3,
        )
        if rows is None:
            # What the encoder remembers of this second would spoil those to come.
            self._ear.restart()
            heard = replace(heard, status=Status.LOST, reason=reason)
        return heard

    def _encode(self, mel: np.ndarray) -> tuple:
        """Give the rows (25, width) float16 and '', or None and why there are none."""
        try:
            rows = self._ear.step(mel, self._between)  # (25, width) float32
        except EngineError as error:
            return None, str(error)
        if not np.abs(rows).max() < LARGEST:  # NaN is not less than anything
            return None, (
                'The embedding of the sound is not finite or not below '
                f'{LARGEST:.0f}. Are the model files intact?'
            )
        return rows.astype(np.float16), ''


class _Ear:
    """One stream of the encoder and the spectrum it reads, which begin anew together."""

    def __init__(self, audio_encoder, isolated: bool):
        self._stream, self._isolated = audio_encoder.stream(isolated), isolated
        self.restart()

    def restart(self) -> None:
        self._stream.restart()
        self._mel = LogMelStream()
        self._before = np.full((2, BANDS), FLOOR, np.float32)  # nothing; the encoder knows

    @property
    def is_fresh(self) -> bool:
        return self._stream.seconds == 0

    @property
    def is_full(self) -> bool:
        # MiniCPM-o 2.6 drops its cache before a second that would fill the last position.
        return self._stream.seconds + self._isolated >= self._stream.max_seconds

    def spectrum(self, sampled: SampledSecond) -> np.ndarray:
        """Give the second's frames with 2 before and 1 after them, as the encoder reads them."""
        if self._isolated:
            return isolated_log_mel(sampled.samples)  # (100, 80)
        # A second's last frame is exact only with what follows, so it comes with the next push.
        frames = self._mel.push(sampled.samples)  # (100, 80); 99 in the first second
        ahead = self._mel.peek(sampled.look_ahead)  # (2, 80): its last and the next one's first
        raw = np.concatenate([self._before, frames, ahead])  # (103, 80)
        self._before = frames[-1:]
        return clamp_and_scale(raw, max(self._mel.maximum, float(ahead.max())))

    def step(self, mel: np.ndarray, between) -> np.ndarray:
        return self._stream.step(mel, between=between)


def level_dbfs(samples: np.ndarray) -> float:
    """Give the root mean square of samples in decibels relative to 1; -inf for zeros."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10 * math.log10(power) if power else -math.inf
