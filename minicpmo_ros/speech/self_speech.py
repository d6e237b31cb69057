# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the robot does not listen to: the time in which it speaks itself, by stamps.

A microphone hears the robot's own voice. So that its words are not taken for somebody's, the audio
of that time, and of TAIL_S after it in which the room still sounds, becomes silence, or what is
left of it without the echo. Only the stamps of the speaker's states and of the audio count, so
that a recording gives the same.

The echo is taken out by WebRTC's AEC3, of the optional package pywebrtc-audio. Its filter is
shorter than the tail of most rooms: what it cannot subtract it suppresses, and with it who speaks
meanwhile. So for who looks for that somebody a RoomFilter of 0.4 s subtracts the echo before it,
once it has learned the room. Both compare two sounds in blocks, so these lie on one count of
samples. Stamps say where a sound begins; within it samples are counted, because stamps jitter by
more than an echo bears.

What it leaves of the robot's words is faint, yet words. A ResidueGate makes it silence, too, where
a detector of speech hears nobody in it.
"""

import threading
from collections import deque
from functools import partial

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ
from minicpmo_ros.units import NS

ALWAYS, HALF_DUPLEX, BARGE_IN = 'always', 'half_duplex', 'barge_in'
LISTEN = (HALF_DUPLEX, ALWAYS, BARGE_IN)
TAIL_S = 0.8
KEPT = 256  # intervals
MS = 1_000_000  # ns
AEC3_BLOCK = SAMPLE_RATE_HZ // 100  # samples; it takes no others
BLOCK = 2 * AEC3_BLOCK
PARTS = 20  # of BLOCK samples: the tail of a room that is subtracted, 0.4 s
KEPT_OF_ROOM = 0.999  # from block to block: how fast the room may change
SMOOTHING = 0.7  # of the spectrum that the echo does not explain
SLOW, FAST = 0.98, 0.8  # smoothing of the levels by which it is judged: 1 s, and 0.1 s
LEARNED, LOST = 0.03, 1.0  # of the power heard, what is left from which the room is known: -15 dB
ANEW = round(0.15 * SAMPLE_RATE_HZ)  # a stamp that far from the count of samples begins it anew
AHEAD = 5 * SAMPLE_RATE_HZ  # blocks that come early wait for their turn, up to so much
FAR_CHUNKS = 1024  # kept of the robot's own sound: 40 s of blocks of 40 ms
SOMEBODY = 0.35  # probability of speech in what the echo leaves, from which somebody speaks
HOLD = 10  # frames for which the gate stays open after that
LACKING = (
    'listen is barge_in, which needs pywebrtc-audio ({}); it is half_duplex until then. Install '
    'it: pip install --no-deps -r environment/requirements-voice.txt'
)


class SelfSpeech:
    """The intervals in which the robot speaks; thread-safe."""

    def __init__(self, tail_s: float = TAIL_S):
        self._tail_ns, self._lock = round(tail_s * NS), threading.Lock()
        self._intervals = deque(maxlen=KEPT)  # [begin_ns, end_ns with tail, or None: it speaks]

    def tell(self, stamp_ns: int, is_speaking: bool) -> None:
        """Take a state of the speaker: from this stamp on it speaks, or it is silent."""
        with self._lock:
            newest = self._intervals[-1] if self._intervals else None
            if newest is not None and stamp_ns < newest[0]:
                self._intervals.clear()  # time went back: a recording begins anew
                newest = None
            is_open = newest is not None and newest[1] is None
            if is_speaking and not is_open:
                self._intervals.append([stamp_ns, None])
            elif not is_speaking and is_open:
                newest[1] = stamp_ns + self._tail_ns

    def silence(
        self, begin_ns: int, samples: np.ndarray, rate_hz: int, instead: np.ndarray | None = None
    ) -> np.ndarray:
        """Return samples (n,), the first recorded at begin_ns, with zeros for its own speech.

        instead: (n,), what comes there in place of zeros.
        """
        spans = self._spans(begin_ns, begin_ns + len(samples) * NS // rate_hz)
        if spans:
            samples = samples.copy()
        for first_ns, last_ns in spans:
            first = (first_ns - begin_ns) * rate_hz // NS
            own = slice(first, -((begin_ns - last_ns) * rate_hz // NS))
            samples[own] = 0 if instead is None else instead[own]
        return samples

    def duration_ms(self, begin_ns: int, end_ns: int) -> int:
        """Return how many milliseconds of a time became silence."""
        covered, until_ns = 0, begin_ns
        for first_ns, last_ns in self._spans(begin_ns, end_ns):
            covered += max(0, last_ns - max(first_ns, until_ns))  # tails may overlap
            until_ns = max(until_ns, last_ns)
        return covered // MS

    def speaks_at(self, stamp_ns: int) -> bool:
        """Return whether the robot speaks at a time, without the tail."""
        with self._lock:
            return any(
                first <= stamp_ns and (last is None or stamp_ns < last - self._tail_ns)
                for first, last in self._intervals
            )

    def _spans(self, begin_ns: int, end_ns: int) -> list:
        """Return (begin, end) of what of a time is its own speech."""
        with self._lock:
            spans = [
                (max(begin_ns, first), end_ns if last is None else min(end_ns, last))
                for first, last in self._intervals
            ]
        return [(first, last) for first, last in spans if first < last]


class _Count:
    """Places the chunks of one stream on the count of samples since the epoch."""

    def __init__(self, most_early: int = ANEW):
        self.end = None  # sample at which the next chunk is due
        self._most_early = most_early

    def place(self, begin_ns: int, n_samples: int) -> int:
        """Return the number of a chunk's first sample."""
        begin = begin_ns * SAMPLE_RATE_HZ // NS
        if self.end is not None and -self._most_early < begin - self.end < ANEW:
            begin = self.end
        self.end = begin + n_samples
        return begin


class ResidueGate:
    """Silences what an EchoRemover leaves, except where somebody speaks.

    detector: has `probability(frame)` of the next frame (frame_samples,) float32, and `reset()`.
    Each frame is judged by those before it, so chunks of any length give the same; the first 32 to
    64 ms of what somebody says are lost.
    """

    def __init__(self, detector, frame_samples: int):
        self._detector, self._size = detector, frame_samples
        self._frame, self._open = np.empty(0, np.float32), 0

    def reset(self) -> None:
        """Forget what was heard: the robot begins to speak."""
        self._detector.reset()
        self._frame, self._open = np.empty(0, np.float32), 0

    def listen(self, clean: np.ndarray) -> np.ndarray:
        """Return samples (n,) float32 without echo, which follow the last, zeros for its rests."""
        heard, at = np.zeros_like(clean), 0
        while at < len(clean):
            part = clean[at : at + self._size - len(self._frame)]
            if self._open:
                heard[at : at + len(part)] = part
            self._frame, at = np.concatenate([self._frame, part]), at + len(part)
            if len(self._frame) == self._size:
                is_speech = self._detector.probability(self._frame) >= SOMEBODY
                self._open = HOLD if is_speech else max(0, self._open - 1)
                self._frame = self._frame[:0]
        return heard


class RoomFilter:
    """Subtracts the echo of a known sound by a model of the room, of PARTS blocks.

    A partitioned Kalman filter in the frequency domain (Enzner and Vary 2006): it knows how much
    it doubts each part of the room, and hardly learns while somebody else speaks. `is_learned`:
    what is left has fallen to LEARNED of what was heard, and has not risen to LOST since.
    """

    def __init__(self):
        shape = (PARTS, BLOCK + 1)
        self._far = np.zeros(shape, np.complex64)  # spectra of the newest blocks, newest first
        self._room = np.zeros(shape, np.complex64)
        self._doubt = np.ones(shape, np.float32)  # variance of the room
        self._rest = np.full(BLOCK + 1, 1e-3, np.float32)  # power that the echo does not explain
        self._before = np.zeros(BLOCK, np.float32)
        # By smoothing: mean squares of what was heard and of what is left.
        self._powers = {SLOW: np.full(2, 1e-6), FAST: np.full(2, 1e-6)}
        self.is_learned = False

    def subtract(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Return what is left of a block heard, (BLOCK,) float32, without the sound `far`."""
        self._far = np.roll(self._far, 1, 0)
        self._far[0] = np.fft.rfft(np.concatenate([self._before, far]))
        self._before = far
        echo = np.fft.irfft((self._far * self._room).sum(0))[BLOCK:]
        left = (near - echo).astype(np.float32)
        self._learn(np.fft.rfft(np.concatenate([np.zeros(BLOCK, np.float32), left])))
        if far.any():
            self._judge(near, left)
        return left

    def _learn(self, left: np.ndarray) -> None:
        """Correct the room by the spectrum (BLOCK + 1,) of what is left."""
        powers = np.abs(self._far) ** 2  # (PARTS, BLOCK + 1)
        self._rest = SMOOTHING * self._rest + (1 - SMOOTHING) * np.abs(left) ** 2
        gain = self._doubt / ((powers * self._doubt).sum(0) / 2 + self._rest + 1e-6)
        change = np.fft.irfft(gain * np.conj(self._far) * left, axis=1)
        change[:, BLOCK:] = 0  # each part is one block long
        changed = self._room + np.fft.rfft(change, axis=1)
        self._room = (KEPT_OF_ROOM * changed).astype(np.complex64)
        doubt = KEPT_OF_ROOM**2 * (1 - gain * powers / 2) * self._doubt
        doubt += (1 - KEPT_OF_ROOM**2) * np.abs(self._room) ** 2
        self._doubt = doubt.astype(np.float32)

    def _judge(self, near: np.ndarray, left: np.ndarray) -> None:
        """Note whether the room is known: soon where it has changed, and slowly else."""
        new = np.array([np.mean(near**2), np.mean(left**2)])
        for smoothing, powers in self._powers.items():
            self._powers[smoothing] = smoothing * powers + (1 - smoothing) * new
        heard, left_over = self._powers[FAST if self.is_learned else SLOW]
        self.is_learned = bool(left_over < heard * (LOST if self.is_learned else LEARNED))


class EchoRemover:
    """See the module; `delay_ms`: how much later the microphone hears what was published.

    learns_room: hear who speaks meanwhile better, by a RoomFilter; more of its own words is left
    while that learns. `play` may be called from another thread than `hear`. Raises InputError
    without the library.
    """

    def __init__(self, delay_ms: int, learns_room: bool = False):
        try:
            from pywebrtc_audio import EchoCanceller
        except Exception as error:  # of the package or the loader
            raise InputError(LACKING.format(error)) from error
        make_canceller = partial(EchoCanceller, SAMPLE_RATE_HZ, 1, delay_ms)
        self._canceller, self._room = make_canceller(), None
        if learns_room:  # the second canceller hears what the filter leaves
            self._room, self._second = RoomFilter(), make_canceller()
        self._silent = PARTS  # blocks without a sound of its own, by now
        self._lock, self._far = threading.Lock(), deque(maxlen=FAR_CHUNKS)  # (begin, samples)
        self.played_s = 0.0  # sound that was taken
        self._far_count, self._near_count = _Count(AHEAD), _Count()
        self._begin_anew()

    def play(self, begin_ns: int, samples: np.ndarray) -> None:
        """Take what the robot says: samples (n,) float32 at 16 kHz that sound from begin_ns."""
        with self._lock:
            begin = self._far_count.place(begin_ns, len(samples))
            if self._far and begin < self._far[-1][0]:
                self._far.clear()  # time went back: a recording begins anew
            self._far.append((begin, samples))
            self.played_s += len(samples) / SAMPLE_RATE_HZ

    def hear(self, begin_ns: int, samples: np.ndarray) -> tuple:
        """Return what was heard and the same without echo, (n,) each, for samples (n,) float32.

        Both are late by one block, so that a chunk of any length gives as much.
        """
        expected = self._near_count.end
        begin = self._near_count.place(begin_ns, len(samples))
        if begin != expected:
            self._begin_anew()
        self._rest = np.concatenate([self._rest, samples])
        n_blocks = len(self._rest) // BLOCK
        near, self._rest = np.split(self._rest, [n_blocks * BLOCK])
        far = self._far_from(begin + len(samples) - len(self._rest) - len(near), len(near))
        clean = [
            self._cleaned(near[at : at + BLOCK], far[at : at + BLOCK])
            for at in range(0, len(near), BLOCK)
        ]
        self._heard = np.concatenate([self._heard, near])
        self._clean = np.concatenate([self._clean, *clean])
        heard, self._heard = np.split(self._heard, [len(samples)])
        clean, self._clean = np.split(self._clean, [len(samples)])
        return heard, clean

    def _cleaned(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Return a block (BLOCK,) without the echo: by AEC3 alone until the room is known."""
        if self._room is None:
            return self._process(self._canceller, near, far)
        self._silent = 0 if far.any() else self._silent + 1
        if self._silent > PARTS:  # no echo is left: nothing is to be learned
            return near
        clean = self._process(self._second, self._room.subtract(near, far), far)
        return clean if self._room.is_learned else self._process(self._canceller, near, far)

    @staticmethod
    def _process(canceller, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        blocks = [slice(at, at + AEC3_BLOCK) for at in range(0, BLOCK, AEC3_BLOCK)]
        return np.concatenate([canceller.process(near[each], far[each]) for each in blocks])

    def _begin_anew(self) -> None:
        self._rest = np.empty(0, np.float32)  # less than a block
        self._heard = np.zeros(BLOCK, np.float32)  # what is not given out yet
        self._clean = np.zeros(BLOCK, np.float32)

    def _far_from(self, begin: int, n_samples: int) -> np.ndarray:
        """Return the robot's own sound (n,) of a time, silence where there is none."""
        sound = np.zeros(n_samples, np.float32)
        with self._lock:
            while self._far and self._far[0][0] + len(self._far[0][1]) <= begin:
                self._far.popleft()
            for first, samples in self._far:
                low, high = max(first, begin), min(first + len(samples), begin + n_samples)
                if low < high:
                    sound[low - begin : high - begin] = samples[low - first : high - first]
        return sound
