# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Decodes MP3 that arrives in pieces, as a stream of samples.

Pieces may end anywhere, also within a frame. Samples keep the position they were encoded at: the
delay of LAME and of the decoder is cut off at the start. A damaged frame becomes silence of its
length, so that damage moves nothing.
"""

from collections.abc import Callable

import av
import numpy as np

from minicpmo_ros.errors import InputError, in_words

# LAME's encoder takes 576 samples, the decoder's filter bank 529 (LAME's technical FAQ).
DELAY = 1105
# No frame is longer than 2881 bytes; what holds none in that many is no MP3.
LONGEST_JUNK_BYTES = 8192
LONGEST_DAMAGE_FRAMES = 50
# Frames in a row of another rate than the stream's, after which the stream begins anew.
STRANGE_FRAMES = 8
# Where a tag for players may stand in the first frame, which is no audio then: behind the header
# and the side information of MPEG 1 and 2, mono and stereo.
TAG_OFFSETS = (13, 21, 36)


class Mp3Stream:
    """Decodes one stream; `rate_hz` is known once the first frame is."""

    def __init__(self, mix: Callable[[np.ndarray], np.ndarray]):
        """mix: makes one row of samples (n,) of channels (n, channels) float32."""
        self._mix = mix
        self.problem = ''  # what was wrong with the last piece, a sentence
        self._begin()

    def _begin(self) -> None:
        self.rate_hz = None
        self._decoder = av.CodecContext.create('mp3float', 'r')
        self.pending_bytes = 0  # of a frame that is not whole yet
        self._frames = self._frame_samples = 0
        self._frame_bytes = 0.0  # mean of the frames
        self._taken = self._given = 0  # samples: decoded, and given
        self._strange = 0
        self.early_ns = 0  # by how much the last samples begin earlier than the bytes pushed

    @property
    def lag_ns(self) -> int:
        """How much earlier the next sample out lies than the next byte in, nanoseconds."""
        return self._lag_ns(self.pending_bytes, self._taken - self._given)

    def _lag_ns(self, pending_bytes: int, delay: int) -> int:
        if not self._frames:
            return 0
        part = min(1.0, pending_bytes / self._frame_bytes)  # of a frame that waits
        return int((delay + part * self._frame_samples) * 1e9 / self.rate_hz)

    def push(self, data) -> np.ndarray:
        """Take bytes; return the samples (n,) float32 mono that are complete with them.

        Raises InputError where there is no frame, and goes on with what comes next.
        """
        data, self.problem = bytes(data), ''
        before = self.pending_bytes, self._taken - self._given
        self.pending_bytes += len(data)
        samples = self._decode(self._decoder.parse(data) if data else [])
        self.early_ns = self._lag_ns(*before)  # now that the frames are known
        if self.pending_bytes > LONGEST_JUNK_BYTES:
            self.problem = (
                f'{self.pending_bytes} bytes of audio hold no MP3 frame. Set coding_format to '
                'what the driver sends.'
            )
            self._begin()
        if self._strange >= STRANGE_FRAMES:
            self._begin()
        if self.problem and not len(samples):
            raise InputError(self.problem)
        return samples

    def flush(self) -> np.ndarray:
        """End the stream, give what is still inside; another stream may follow."""
        samples = self._decode(self._decoder.parse(None))
        self._begin()
        return samples

    def _decode(self, packets) -> np.ndarray:
        parts = [self._packet(packet) for packet in packets]
        samples = np.concatenate([np.empty(0, np.float32), *parts])  # (n,)
        early = min(len(samples), max(0, DELAY - self._taken))
        self._taken += len(samples)
        self._given += len(samples) - early
        return samples[early:]

    def _packet(self, packet) -> np.ndarray:
        """Return the samples of one frame, (n,) float32; zeros where it is damaged."""
        self.pending_bytes -= packet.size
        data = bytes(packet)
        if any(data[i : i + 4] in (b'Xing', b'Info') for i in TAG_OFFSETS):
            return np.empty(0, np.float32)
        try:
            samples = [self._frame(frame) for frame in self._decoder.decode(packet)]
        except (av.error.FFmpegError, InputError) as error:
            return self._damage(packet.size, error)
        if samples:
            self._frames += 1
            self._frame_bytes += (packet.size - self._frame_bytes) / self._frames
        return np.concatenate([np.empty(0, np.float32), *samples])

    def _frame(self, frame) -> np.ndarray:
        if self.rate_hz not in (None, frame.sample_rate):
            self._strange += 1
            raise InputError(f'a frame of {frame.sample_rate} Hz among {self.rate_hz} Hz')
        self._strange = 0
        self.rate_hz, self._frame_samples = frame.sample_rate, frame.samples
        values = frame.to_ndarray()  # (channels, n) float32
        return self._mix(values.T)

    def _damage(self, size: int, error) -> np.ndarray:
        self.problem = (
            f'MP3 audio is damaged: {size} bytes are left out as silence ({in_words(error)}).'
        )
        if not self._frames:
            return np.empty(0, np.float32)
        frames = min(LONGEST_DAMAGE_FRAMES, max(1, round(size / self._frame_bytes)))
        return np.zeros(frames * self._frame_samples, np.float32)
