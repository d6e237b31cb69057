# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How the audio encoder goes on when its positions, which last for 30 s, come to their end.

What the encoder keeps of a second holds the position it was encoded at, so a full memory cannot
move on: another one has to begin. Where, and what it then knows:

- In a pause. From its 20th second on the encoder begins anew at the edge of a second that lies
  in a pause, so that no utterance is cut. It then remembers nothing, which is said.
- With an overlap. Where no pause comes, a second stream of the encoder begins 5 s before the
  positions of the first end, and both are fed. When the first is full (or at a pause before
  that) the second takes over: it knows the seconds both have heard just as if the encoder had
  been given the sound from there on. This costs 5 encodings more in 25, and a sixth of the
  memory of a stream.

Each stream reads the spectrum as it is from its own first sample on, clamped by the maximum of
what it has heard itself; so each of them is what the offline encoder makes of that sound.

Isolated seconds are as MiniCPM-o 2.6 encodes them, and so is their end: it drops its memory
before a second that would fill the last position, wherever that falls.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.errors import EngineError
from minicpmo_ros.live.seconds import SampledSecond
from minicpmo_ros.media.log_mel import (
    BANDS,
    FLOOR,
    SAMPLE_RATE_HZ,
    LogMelStream,
    clamp_and_scale,
    isolated_log_mel,
)

HALF_PAUSE = SAMPLE_RATE_HZ // 5  # samples on either side of an edge: 0.4 s in all
RUNNING_S = 10


@dataclass(frozen=True)
class Handover:
    """When the encoder begins anew; of 30 s of positions, and in proportion where it has fewer.

    A pause is 0.4 s, longer than the closures and gaps inside a phrase (under 0.25 s), and
    pause_below_db quieter than the 10 s before: speech falls by 30 to 50 dB in a quiet room. In
    noise less than pause_below_db under the speech no pause is found, and nothing is cut either.
    """

    overlap_s: int = 5  # 0: no second stream, the encoder begins anew when it is full
    pause_from_s: int = 20  # of the encoder's own seconds
    pause_below_db: float = 20.0


class Ears:
    """The stream of the encoder that is listened to, and the one that will follow it."""

    def __init__(self, audio_encoder, isolated: bool, handover: Handover):
        self._now, self._next = Ear(audio_encoder.stream(isolated), isolated), None
        longest_s = self._now.max_seconds
        overlap_s = min(handover.overlap_s, longest_s // 2)
        self._overlap_from_s = longest_s - overlap_s
        self._pause_from_s = longest_s * handover.pause_from_s // 30
        if overlap_s and not isolated:
            self._next = Ear(audio_encoder.stream(max_seconds=overlap_s))
        self._pauses = None if isolated else Pauses(handover.pause_below_db)

    @property
    def remembered_s(self) -> int:
        """How many seconds before the next one the encoder remembers."""
        return self._now.seconds

    def restart(self) -> None:
        """Begin anew."""
        for ear in (self._now, self._next):
            if ear is not None:
                ear.restart()

    def turn_to(self, sampled: SampledSecond) -> None:
        """Before a second is heard: begin anew or hand over, where it is time to."""
        in_pause = self._pauses is not None and self._pauses.hear(sampled.samples)
        if sampled.restarted:
            self.restart()
        elif self._now.is_full or (in_pause and self._now.seconds >= self._pause_from_s):
            self._go_on()

    def _go_on(self) -> None:
        """Hand over where there is somebody to, else begin anew."""
        if self._next is None or not self._next.seconds:
            return self.restart()
        try:
            self._now.take_over(self._next)
        except EngineError:  # what is lost is said as such; the next second's encoding says why
            return self.restart()
        self._next.restart()

    def spectra(self, sampled: SampledSecond) -> list:
        """Give the second's frames for each stream that hears it, this one's first."""
        mels = [self._now.spectrum(sampled)]
        if self._next is not None and self._now.seconds >= self._overlap_from_s:
            mels.append(self._next.spectrum(sampled))
        return mels

    def step(self, mels: list, between) -> np.ndarray:
        """Encode the frames of `spectra`; the rows (25, width) float32 of this stream."""
        rows = self._now.step(mels[0], between)
        for mel in mels[1:]:
            if between is not None:
                between()
            self._next.step(mel, between)
        return rows


class Ear:
    """One stream of the encoder and the spectrum it reads, which begin anew together."""

    def __init__(self, stream, isolated: bool = False):
        self._stream, self._isolated = stream, isolated
        self.restart()

    @property
    def seconds(self) -> int:
        """How many seconds it has heard."""
        return self._stream.seconds

    @property
    def max_seconds(self) -> int:
        """How many seconds it can hear; of isolated ones, one less."""
        return self._stream.max_seconds - self._isolated

    @property
    def is_full(self) -> bool:
        """True if there is no room for another second."""
        return self.seconds >= self.max_seconds

    def restart(self) -> None:
        """Begin anew."""
        self._stream.restart()
        self._mel = LogMelStream()
        self._before = np.full((2, BANDS), FLOOR, np.float32)  # nothing; the encoder knows

    def take_over(self, other: 'Ear') -> None:
        """Go on where another ear is, which is to be restarted then."""
        self._stream.take_over(other._stream)
        self._mel, self._before = other._mel, other._before

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
        """Encode the frames of a second."""
        return self._stream.step(mel, between=between)


class Pauses:
    """Finds the edges of seconds that lie in a pause; see Handover."""

    def __init__(self, below_db: float):
        self._share = 10 ** (-below_db / 10)
        self._powers = deque(maxlen=RUNNING_S)  # of the newest whole seconds
        self._tail = np.empty(0, np.float32)

    def hear(self, samples: np.ndarray) -> bool:
        """Take the next second (16000,); tell whether a pause lies around its begin."""
        around = power(np.concatenate([self._tail, samples[:HALF_PAUSE]]))
        is_pause = bool(self._powers) and around <= self._share * float(np.mean(self._powers))
        self._powers.append(power(samples))
        self._tail = samples[-HALF_PAUSE:]
        return is_pause


def power(samples: np.ndarray) -> float:
    """Give the mean square of samples."""
    return float(np.mean(np.square(samples, dtype=np.float64)))
