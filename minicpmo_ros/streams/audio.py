# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns a microphone's samples into one embedding a second.

A second is encoded as soon as the 200 samples (12.5 ms) after it have arrived, which makes the
stream equal to the offline encoder. The result depends only on the samples of each second, never
on how they were chunked. The encoder restarts where the audio stream does, and after a second it
failed on.

The encoder's memory of a second is tied to the position it was encoded at, and its 30 s of
positions run out: a full memory cannot slide, so a new one has to begin. There are two ways:

- In a pause. From its 20th second on, the encoder restarts at a second's edge that lies in a
  pause, so that no utterance is cut. It then remembers nothing, and reports so.
- With an overlap. If no pause comes, a second stream of the encoder starts 5 s before the
  first is full, and both are fed. When the first is full (or at a pause before that), the second
  takes over. It knows the shared seconds exactly as if the encoder had been given the audio from
  there on. This costs 5 extra encodings in 25, and a sixth of a stream's memory.

Each stream reads the spectrum from its own first sample on, clamped by the maximum of its own
samples; so its result equals that of the offline encoder for the same audio. Isolated seconds
follow MiniCPM-o 2.6, which drops its memory before a second that would fill the last position,
wherever that falls.
"""

import copy
import math
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from minicpmo_ros.config import AUDIO
from minicpmo_ros.errors import EngineError
from minicpmo_ros.media.audio.log_mel import (
    BANDS,
    FLOOR,
    MARGIN,
    SAMPLE_RATE_HZ,
    LogMelStream,
    clamp_and_scale,
    isolated_log_mel,
)
from minicpmo_ros.streams import LARGEST, AudioSecond, Status
from minicpmo_ros.streams.segmenter import SecondSplitter

HALF_PAUSE = SAMPLE_RATE_HZ // 5  # samples on either side of an edge: 0.4 s in all
RUNNING_S = 10


@dataclass(frozen=True)
class Handover:
    """When the encoder restarts: for 30 s of positions, and in proportion if it has fewer.

    A pause is 0.4 s long, longer than the closures and gaps inside a phrase (under 0.25 s), and
    pause_below_db quieter than the 10 s before: speech falls by 30 to 50 dB in a quiet room. If
    the noise is less than pause_below_db below the speech, no pause is found and nothing is cut.
    """

    overlap_s: int = AUDIO.overlap_s  # 0: no second stream, the encoder restarts when it is full
    pause_from_s: int = 20  # of the encoder's own seconds
    pause_below_db: float = 20.0


class AudioPipeline:
    """Cuts audio into seconds and encodes them; it belongs to one thread.

    audio_encoder: an AudioEncoder. isolated: prepare each second by itself, as MiniCPM-o 2.6
    does, without looking ahead. between: called between slices of the encoder's work; an
    exception from it ends the push and the audio stream. handover: what happens when the encoder
    is full. device(second): replaces between: a context manager to encode a second in, which
    yields it. is_too_late(second): if true, the second is not encoded but OVERLOADED.
    """

    def __init__(
        self,
        audio_encoder,
        isolated: bool = False,
        between: Callable[[], None] | None = None,
        handover: Handover | None = None,
        device: Callable | None = None,
        is_too_late: Callable[[int], bool] = lambda second: False,
    ):
        self._splitter = SecondSplitter(look_ahead_samples=0 if isolated else MARGIN)
        self._encoder = RollingEncoder(audio_encoder, isolated, handover or Handover())
        self._device = device or (lambda second: nullcontext(between))
        self._is_too_late = is_too_late

    def push(self, stamp_ns: int | None, samples: np.ndarray) -> list[AudioSecond]:
        """Take samples (n,) float32 at 16 kHz, the first of them recorded at stamp_ns.

        stamp_ns None and errors: as SecondSplitter.push.
        """
        return [self._process(second) for second in self._splitter.push(stamp_ns, samples)]

    def cut(self, stamp_ns: int) -> None:
        """Discard the samples that were pushed for later than this; see SecondSplitter.cut."""
        self._splitter.cut(stamp_ns)

    def flush(self, close: bool = True) -> list[AudioSecond]:
        """Return the seconds that wait for more audio, as if silence followed.

        See SecondSplitter.flush.
        """
        return [self._process(second) for second in self._splitter.flush(close)]

    @property
    def streams(self) -> list:
        """The encoder's streams: the current one, then the one that takes over, if any."""
        return self._encoder.streams

    @property
    def open_end_ns(self) -> int | None:
        """Where the audio of the second that has not ended ends; None: there is none of it."""
        found = self._splitter.peek()
        return None if found is None else found[1]

    def peek(self, end_ns: int | None = None) -> tuple | None:
        """Return (AudioSecond, end_ns): the second that has not ended, as `flush` would give it.

        Its audio is taken up to end_ns (None: as far as it came), silence follows, and the stream
        goes on as if nothing had been asked. None: there is no audio of it. Without rows, `reason`
        says why.
        """
        found = self._splitter.peek(end_ns)
        if found is None:
            return None
        second, end_ns = found
        with self._device(second.second) as between:
            rows, reason = self._encode(lambda: self._encoder.peek(second, between))
        return replace(second, rows=rows, reason=reason), end_ns

    def _process(self, second: AudioSecond) -> AudioSecond:
        second = replace(second, level_dbfs=level_dbfs(second.samples))
        if self._is_too_late(second.second):
            self._encoder.restart()
            return replace(second, status=Status.OVERLOADED)
        with self._device(second.second) as between:
            return self._encode_second(second, between)

    def _encode_second(self, second: AudioSecond, between) -> AudioSecond:
        preparing_s = perf_counter()
        self._encoder.prepare_for(second)
        prepared_s = perf_counter()
        remembered_s = self._encoder.remembered_s
        mels = self._encoder.mel_frames(second)
        encoding_s = perf_counter()
        rows, reason = self._encode(lambda: self._encoder.step(mels, between))
        if rows is None:
            # What the encoder remembers of this second would spoil the next ones.
            self._encoder.restart()
        return replace(
            second,
            status=Status.LOST if rows is None else Status.OK,
            reason=reason,
            rows=rows,
            remembered_s=remembered_s,
            restarted=remembered_s == 0,
            preprocess_ms=(encoding_s - prepared_s) * 1e3,
            encode_ms=(prepared_s - preparing_s + perf_counter() - encoding_s) * 1e3,
        )

    def _encode(self, step: Callable) -> tuple:
        """Return (rows (25, width) float16 that `step()` gives, ''), or (None, the reason)."""
        try:
            rows = step()  # (25, width) float32
        except EngineError as error:
            return None, str(error)
        if not np.abs(rows).max() < LARGEST:  # NaN is not less than anything
            return None, (
                'The embedding of the audio is not finite or not below '
                f'{LARGEST:.0f}. Are the model files intact?'
            )
        return rows.astype(np.float16), ''


class RollingEncoder:
    """The stream whose rows are used, and the one that will take over from it."""

    def __init__(self, audio_encoder, isolated: bool, handover: Handover):
        self._current, self._successor = (
            EncoderStream(audio_encoder.stream(isolated), isolated),
            None,
        )
        longest_s = self._current.max_seconds
        overlap_s = min(handover.overlap_s, longest_s // 2)
        self._overlap_from_s = longest_s - overlap_s
        self._pause_from_s = longest_s * handover.pause_from_s // 30
        if overlap_s and not isolated:
            self._successor = EncoderStream(audio_encoder.stream(max_seconds=overlap_s))
        self._pauses = None if isolated else Pauses(handover.pause_below_db)

    @property
    def streams(self) -> list:
        """The encoder's streams: the current one, then the one that takes over, if any."""
        return [one.stream for one in (self._current, self._successor) if one is not None]

    @property
    def remembered_s(self) -> int:
        """How many seconds before the next one the encoder remembers."""
        return self._current.seconds

    def restart(self) -> None:
        """Forget all seconds and start at the first position."""
        for stream in (self._current, self._successor):
            if stream is not None:
                stream.restart()

    def prepare_for(self, second: AudioSecond) -> None:
        """Restart or hand over before this second, if it is time to."""
        in_pause = self._pauses is not None and self._pauses.push(second.samples)
        if second.begins_stream:
            self.restart()
        elif self._current.is_full or (in_pause and self._current.seconds >= self._pause_from_s):
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand over to the second stream if it has heard anything, else restart."""
        if self._successor is None or not self._successor.seconds:
            return self.restart()
        try:
            self._current.take_over(self._successor)
        except EngineError:  # the loss is reported; the next second's encoding says why
            return self.restart()
        self._successor.restart()

    def mel_frames(self, second: AudioSecond) -> list:
        """Return the second's mel frames for each stream that takes it, the current first."""
        mels = [self._current.mel_frames(second)]
        if self._successor is not None and self._current.seconds >= self._overlap_from_s:
            mels.append(self._successor.mel_frames(second))
        return mels

    def step(self, mels: list, between) -> np.ndarray:
        """Encode the frames of `mel_frames`; return the current rows (25, width) float32."""
        rows = self._current.step(mels[0], between)
        for mel in mels[1:]:
            if between is not None:
                between()
            self._successor.step(mel, between)
        return rows

    def peek(self, second: AudioSecond, between) -> np.ndarray:
        """Return the rows (25, width) float32 of a second that has not ended; stay before it.

        What must be done before the second in any case is done now: it comes to the same.
        """
        if second.begins_stream:
            self.restart()
        elif self._current.is_full:
            self._hand_over()
        return self._current.peek(second, between)


class EncoderStream:
    """One stream of the encoder and the spectrum it reads; both restart together."""

    def __init__(self, stream, isolated: bool = False):
        self.stream, self._isolated = stream, isolated
        self.restart()

    @property
    def seconds(self) -> int:
        """How many seconds it has encoded."""
        return self.stream.seconds

    @property
    def max_seconds(self) -> int:
        """How many seconds it can encode; one less if they are isolated."""
        return self.stream.max_seconds - self._isolated

    @property
    def is_full(self) -> bool:
        """True if there is no room for another second."""
        return self.seconds >= self.max_seconds

    def restart(self) -> None:
        """Forget all seconds and start at the first position."""
        self.stream.restart()
        self._mel = LogMelStream()
        self._before = np.full((2, BANDS), FLOOR, np.float32)  # no audio yet; the encoder knows

    def take_over(self, other: 'EncoderStream') -> None:
        """Continue from another stream, which must be restarted afterwards."""
        self.stream.take_over(other.stream)
        self._mel, self._before = other._mel, other._before

    def mel_frames(self, second: AudioSecond) -> np.ndarray:
        """Return the second's frames with 2 before and 1 after them, as the encoder reads them."""
        if self._isolated:
            return isolated_log_mel(second.samples)  # (100, 80)
        # A second's last frame is exact only with what follows, so it comes with the next push.
        frames = self._mel.push(second.samples)  # (100, 80); 99 in the first second
        ahead = self._mel.peek(second.look_ahead)  # (2, 80): its last and the next one's first
        raw = np.concatenate([self._before, frames, ahead])  # (103, 80)
        self._before = frames[-1:]
        return clamp_and_scale(raw, max(self._mel.maximum, float(ahead.max())))

    def step(self, mel: np.ndarray, between) -> np.ndarray:
        """Encode the frames of a second."""
        return self.stream.step(mel, between=between)

    def peek(self, second: AudioSecond, between) -> np.ndarray:
        """Encode a second and stay before it."""
        before = copy.copy(self._mel), self._before  # their arrays are replaced, never changed
        try:
            return self.stream.peek(self.mel_frames(second), between)
        finally:
            self._mel, self._before = before


class Pauses:
    """Finds the edges between seconds that lie in a pause; see Handover."""

    def __init__(self, below_db: float):
        self._share = 10 ** (-below_db / 10)
        self._powers = deque(maxlen=RUNNING_S)  # of the newest whole seconds
        self._tail = np.empty(0, np.float32)

    def push(self, samples: np.ndarray) -> bool:
        """Take the next second (16000,); return whether a pause lies around its start."""
        around = power(np.concatenate([self._tail, samples[:HALF_PAUSE]]))
        is_pause = bool(self._powers) and around <= self._share * float(np.mean(self._powers))
        self._powers.append(power(samples))
        self._tail = samples[-HALF_PAUSE:]
        return is_pause


def level_dbfs(samples: np.ndarray) -> float:
    """Return the root mean square of samples in decibels relative to 1; -inf for zeros."""
    mean_square = power(samples)
    return 10 * math.log10(mean_square) if mean_square else -math.inf


def power(samples: np.ndarray) -> float:
    """Return the mean square of samples."""
    return float(np.mean(np.square(samples, dtype=np.float64)))
