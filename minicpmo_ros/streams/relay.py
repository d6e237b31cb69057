# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a weak robot sends over a thin network: an image a second, audio in pieces, not too much.

NewestOfSecond chooses the newest image before the end of each second, by the stamps. JpegFitter
makes it small enough: it lowers quality and size step by step and remembers the step, so that one
image in a second is encoded once. Rechunker cuts audio into pieces that fit into one packet.
RateRule says how many bytes may be sent now; its count has what the network adds to them.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.streams.time import Arrival, Instant, StampGuard, StreamClock
from minicpmo_ros.units import NS

LATE_S = 0.05  # how long after the end of a second its newest image may still come
# A camera that has about one image a second: each is sent at once.
SLOW_S = 0.8
PERIODS = 5  # between the newest images, the least of which is the camera's
CANDIDATES = 2  # images of a second that are kept, the newest: one may be damaged
TOLERANCE_NS = 5_000_000  # by which the stamps of audio may be off the count of samples
PACKET_BYTES = 1300  # of content
PACKET_HEAD_BYTES = 150  # Ethernet, IP, UDP, RTPS
BURST_S = 1.0  # of the rate may be sent at once
# Shares of the wanted side and quality, the best first; each has 0.6 to 0.8 of the bytes before.
STEPS = (
    (1.0, 1.0), (1.0, 0.85), (1.0, 0.7), (1.0, 0.55), (0.75, 0.7), (0.75, 0.5), (0.5, 0.6),
    (0.5, 0.4), (0.35, 0.4), (0.25, 0.3), (0.15, 0.25),
)  # fmt: skip
BETTER_BELOW = 0.6  # of what is allowed: the step before is tried again


class NewestOfSecond:
    """Chooses among images: of each second the newest, when the second is over.

    It is over before its end if the camera's next image is to come in the second after it: the
    sooner an image is sent, the less it lags behind the audio.
    """

    def __init__(self):
        self._periods_ns, self._newest_ns = deque(maxlen=PERIODS), None
        self._guard, self._clock = StampGuard(one_a_second=True), StreamClock()
        self._second, self._held = None, []  # the open second, and its newest images
        self.late = 0  # images of a second that was over, or with stray stamps
        self._over = None  # the newest second that is over

    def offer(self, arrival: Arrival) -> list:
        """Take an image; return the seconds that are over: of each its Arrivals, newest first."""
        strays = self._guard.strays
        over = [done for each in self._guard.sort(arrival) for done in self._believe(each)]
        self.late += self._guard.strays - strays
        return over

    def due(self, now: Instant) -> list:
        """Return the seconds that are over now although no image of a later one has come."""
        over = [done for each in self._guard.settle(now) for done in self._believe(each)]
        if self._held and self._clock.time_ns(now) >= (self._second + 1 + LATE_S) * NS:
            over += self._close()
        return over

    def _believe(self, arrival: Arrival) -> list:
        stamp_ns, over = arrival.stamp_ns, []
        if arrival.jumped_from_ns is not None:  # to another time, in which nothing is over
            over, self._over = self._close(), None
        if self._clock.stands_still(stamp_ns, arrival.at):
            stamp_ns = self._clock.time_ns(arrival.at)
        self._clock.arrive(arrival.stamp_ns, arrival.at)
        second = stamp_ns // NS
        if self._over is not None and second <= self._over:
            self.late += 1
            return over
        if self._held and second > self._second:
            over += self._close()
        if self._held and second < self._second:
            self.late += 1
            return over
        self._second, self._held = second, [*self._held, arrival][-CANDIDATES:]
        return over + (self._close() if self._is_last(stamp_ns) else [])

    def _is_last(self, stamp_ns: int) -> bool:
        """Return whether no other image is to come in the second of this one."""
        before_ns, self._newest_ns = self._newest_ns, stamp_ns
        if before_ns is not None and stamp_ns > before_ns:
            self._periods_ns.append(stamp_ns - before_ns)
        if len(self._periods_ns) < PERIODS:
            return False
        period_ns, end_ns = min(self._periods_ns), (stamp_ns // NS + 1) * NS
        return period_ns > SLOW_S * NS or stamp_ns + period_ns >= end_ns + LATE_S * NS

    def _close(self) -> list:
        if not self._held:
            return []
        self._over, held = self._second, self._held[::-1]
        self._held = []
        return [held]


@dataclass(frozen=True)
class SmallJpeg:
    """A JPEG that is small enough."""

    data: bytes
    width: int
    height: int
    quality: int


class JpegFitter:
    """Encodes images within a size; `step` of STEPS is the one that the newest took."""

    def __init__(self, quality: int, longest_side: int):
        self._quality, self.longest_side = quality, longest_side
        self.step = 0
        self._share = 1.0  # of what was allowed, that the newest took

    def size(self, width: int, height: int) -> tuple:
        """Return (width, height) of an image at the best step."""
        return self._scaled(width, height, 1.0)

    def fit(self, pixels: np.ndarray, most_bytes: float) -> SmallJpeg | None:
        """Return an image (H, W, 3) uint8 at the best step that is at most so large; None: none.

        A better step than the newest is tried if that left room.
        """
        begin = self.step - (self.step > 0 and self._share < BETTER_BELOW)
        for step in range(begin, len(STEPS)):
            fitted = self._encode(pixels, *STEPS[step])
            if len(fitted.data) <= most_bytes:
                self.step, self._share = step, len(fitted.data) / most_bytes
                return fitted
        self.step = len(STEPS) - 1
        return None

    def _encode(self, pixels: np.ndarray, of_side: float, of_quality: float) -> SmallJpeg:
        height, width = pixels.shape[:2]
        size, quality = (
            self._scaled(width, height, of_side),
            max(1, round(self._quality * of_quality)),
        )
        if size != (width, height):
            pixels = np.asarray(
                Image.fromarray(pixels).resize(size, Image.BICUBIC, reducing_gap=3)
            )
        return SmallJpeg(encode_jpeg(pixels, quality), *size, quality)

    def _scaled(self, width: int, height: int, of_side: float) -> tuple:
        share = min(1.0, self.longest_side * of_side / max(width, height))
        return tuple(max(2, round(side * share)) for side in (width, height))


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Return samples (n,) float32 in [-1, 1] as int16; what came as int16 is the same again."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype('<i2')


class Rechunker:
    """Cuts a stream of audio, (n,) each, into pieces of equal length; a gap ends one."""

    def __init__(self, rate_hz: int, chunk_ms: int):
        self._rate_hz, self._chunk = rate_hz, max(1, rate_hz * chunk_ms // 1000)
        self._held, self._held_ns = None, 0

    def push(self, stamp_ns: int, samples: np.ndarray) -> list:
        """Take samples; return [(stamp_ns, samples)] of the pieces that are complete."""
        pieces = []
        if self._held is not None:
            expected_ns = self._held_ns + len(self._held) * NS // self._rate_hz
            if abs(stamp_ns - expected_ns) > TOLERANCE_NS:
                pieces = self.flush()
        if self._held is None:
            self._held, self._held_ns = samples[:0], stamp_ns
        self._held = np.concatenate((self._held, samples))
        while len(self._held) >= self._chunk:
            pieces.append((self._held_ns, self._held[: self._chunk]))
            self._held = self._held[self._chunk :]
            self._held_ns += self._chunk * NS // self._rate_hz
        return pieces

    def flush(self) -> list:
        """Return what is left as a piece, if anything is."""
        held, self._held = self._held, None
        return [(self._held_ns, held)] if held is not None and len(held) else []


def wire_bytes(size: int) -> int:
    """Return about how many bytes a message of `size` bytes takes on an Ethernet."""
    return size + PACKET_HEAD_BYTES * max(1, math.ceil(size / PACKET_BYTES))


def content_bytes(wire: float) -> float:
    """Return how large a message may be that takes so many bytes on the wire; may be negative."""
    return wire * PACKET_BYTES / (PACKET_BYTES + PACKET_HEAD_BYTES) - PACKET_HEAD_BYTES


class RateRule:
    """Says how much may be sent: `mbit` on average, and at most BURST_S of it at once.

    Audio goes first: an image may take what audio leaves of a second. `now_s` is steady time.
    """

    def __init__(self, mbit: float, now_s: float):
        self._audio_bytes_per_s, self._at_s = 0.0, now_s
        self.set_rate(mbit)
        self._left = self._most

    def set_rate(self, mbit: float) -> None:
        """Change the rate."""
        self._bytes_per_s = mbit * 1e6 / 8
        self._most = self._bytes_per_s * BURST_S

    def audio_takes(self, bytes_per_s: float) -> None:
        """Set what audio needs; 0: there is none."""
        self._audio_bytes_per_s = bytes_per_s

    def image_bytes(self, now_s: float) -> float:
        """Return how large an image may be that is sent now, bytes."""
        beside_audio = self._bytes_per_s - self._audio_bytes_per_s
        return content_bytes(min(self._refilled(now_s), beside_audio))

    def spend(self, size: int, now_s: float) -> bool:
        """Note a message of `size` bytes that is sent; return False if it must not be sent."""
        wire = wire_bytes(size)
        if wire > self._refilled(now_s):
            return False
        self._left -= wire
        return True

    def _refilled(self, now_s: float) -> float:
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._bytes_per_s)
        self._at_s = now_s
        return self._left
