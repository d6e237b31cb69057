# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whisper's log-mel spectrum, as a stream, of a whole clip, and of one isolated second.

Audio is 16 kHz mono float32. A frame every 160 samples: 400 samples around its centre, periodic
Hann window, power spectrum, 80 mel bands (Slaney scale and area), log10 of at least 1e-10. The
frame t of a clip of L samples is centred on sample 160 t, t < L // 160; what lies outside the
clip is mirrored at its edges (Radford et al. 2022, openai/whisper `log_mel_spectrogram`).

"Raw" frames are that log10. What the encoder reads is `clamp_and_scale` of them, which needs the
largest value of everything heard; a stream knows only the largest so far (`maximum`).
All sums are float64, whatever NumPy's FFT prefers, so that results differ between chunkings
by rounding to float32 at most.
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SAMPLE_RATE_HZ = 16000
HOP = 160  # samples from frame to frame
WINDOW = 400  # samples a frame is made of
MARGIN = WINDOW // 2  # samples a frame needs after its centre, and before it
BANDS = 80
FLOOR = -10.0  # log10 of the least power: a raw frame of digital silence
# OpenBLAS starts its threads, which spin, above 2^18 multiplications: 10 times the CPU time.
_ROWS = 16
_BLOCK = 30 * SAMPLE_RATE_HZ  # bounds the memory of long clips


def _hz_of_mel(mel: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear (3 mel per 200 Hz) to 1 kHz, then 27 mel per factor 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.lru_cache(maxsize=1)
def filter_bank() -> np.ndarray:
    """Return the (80, 201) float32 mel filters of 0..8000 Hz, each of equal area."""
    top = 15 + 27 * np.log(SAMPLE_RATE_HZ / 2 / 1000) / np.log(6.4)
    corners = _hz_of_mel(np.linspace(0, top, BANDS + 2))  # (82,) Hz
    bins = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE_HZ / WINDOW  # (201,) Hz
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]  # (80, 1)
    rising = (bins - low) / (centre - low)  # (80, 201)
    falling = (high - bins) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    bank = triangles.astype(np.float32)
    bank.setflags(write=False)
    return bank


@functools.lru_cache(maxsize=1)
def _window_and_bank() -> tuple:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # (400,) periodic Hann
    return window, np.ascontiguousarray(filter_bank().T, np.float64)  # (201, 80)


def raw_frames(samples: np.ndarray) -> np.ndarray:
    """Turn samples (n,) into every whole frame in them: ((n - 400) // 160 + 1, 80) float32."""
    window, bank = _window_and_bank()
    frames = sliding_window_view(samples, WINDOW)[::HOP] * window  # (t, 400) float64
    spectrum = np.fft.rfft(frames)  # (t, 201)
    power = spectrum.real**2 + spectrum.imag**2
    mel = np.empty((len(power), BANDS))
    for i in range(0, len(power), _ROWS):
        np.matmul(power[i : i + _ROWS], bank, out=mel[i : i + _ROWS])
    return np.log10(np.maximum(mel, 1e-10)).astype(np.float32)  # (t, 80)


def _no_frames() -> np.ndarray:
    return np.empty((0, BANDS), np.float32)


class LogMelStream:
    """Frames of a running stream, each as soon as the 200 samples after its centre are there.

    `maximum` is the largest raw value of all frames given out by `push` and `flush`.
    """

    def __init__(self):
        self.maximum = FLOOR
        self._buffer = np.empty(0, np.float32)  # from the left edge of the next frame on
        self._at_start = True

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take samples (n,); return the raw frames (t, 80) float32 that have become exact."""
        frames, self._buffer, self._at_start = self._advance(samples)
        if len(frames):
            self.maximum = max(self.maximum, float(frames.max()))
        return frames

    def peek(self, samples: np.ndarray) -> np.ndarray:
        """Return the frames `push` would give, and leave the stream (and `maximum`) as it is."""
        return self._advance(samples)[0]

    def flush(self) -> np.ndarray:
        """End the stream as a clip ends; return its last frames, L // 160 in all.

        The end is mirrored, as offline. For an end in silence push 200 zeros instead.
        """
        held = self._buffer
        before = MARGIN if self._at_start else 0  # still to be mirrored
        # The transform has one more frame if L is a multiple of the hop; Whisper drops it.
        count = (before + len(held) - MARGIN) // HOP
        if count == 0:
            return _no_frames()
        frames = raw_frames(np.pad(held, (before, MARGIN), mode='reflect'))[:count]
        self.maximum = max(self.maximum, float(frames.max()))
        return frames

    def _advance(self, samples: np.ndarray) -> tuple:
        buffer = np.concatenate([self._buffer, np.asarray(samples, np.float32)])
        at_start = self._at_start
        if at_start and len(buffer) > MARGIN:
            buffer = np.concatenate([buffer[MARGIN:0:-1], buffer])  # mirrored first samples
            at_start = False
        if at_start or len(buffer) < WINDOW:
            return _no_frames(), buffer, at_start
        frames = raw_frames(buffer)
        return frames, buffer[len(frames) * HOP :], at_start


def clamp_and_scale(raw: np.ndarray, maximum: float) -> np.ndarray:
    """Return what the encoder reads: at most 8 decades below `maximum`, then (x + 4) / 4."""
    return ((np.maximum(raw, maximum - 8) + 4) / 4).astype(np.float32)


def raw_log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the raw frames (L // 160, 80) of a whole clip (L,)."""
    stream = LogMelStream()
    blocks = [stream.push(samples[i : i + _BLOCK]) for i in range(0, len(samples), _BLOCK)]
    return np.concatenate([*blocks, stream.flush()])


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the official features (L // 160, 80) float32 of a whole clip (L,): one maximum."""
    raw = raw_log_mel(samples)
    return clamp_and_scale(raw, raw.max() if len(raw) else FLOOR)


def isolated_log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the official features of a second on its own: (16000,) to (100, 80) float32.

    As MiniCPM-o 2.6 prepares each streamed second: padded with zeros to 30 s, own maximum,
    the frames of the padding cut off (but those that reach into the second count in the
    maximum). n samples give ceil(n / 160) frames.
    """
    padded = np.concatenate([np.asarray(samples, np.float32), np.zeros(2 * WINDOW, np.float32)])
    raw = LogMelStream().push(padded)
    return clamp_and_scale(raw, raw.max())[: -(-len(samples) // HOP)]
