# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Reads a microphone of this machine by PortAudio (ALSA, PulseAudio, PipeWire).

`Microphone` opens one and gives its blocks, dated by LiveClock from the count of its samples and
from PortAudio's word on how long ago a block was captured. Whatever goes wrong raises an
InputError that says what to do; another Microphone finds the device again when it is back.
"""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.live_clock import LiveClock
from minicpmo_ros.units import NS

BLOCK_S = 0.1
MOST_BLOCKS = 100  # that wait to be taken
LONGEST_LATENCY_S = 5.0  # that is believed
HIGHEST_RATE_HZ = 48_000  # of those that are chosen without being asked for


def portaudio(what: str, instead: str) -> ModuleType:
    """Return sounddevice; raise InputError if it or PortAudio is missing.

    `what` needs it, such as 'device is 1, and the loudspeaker'; `instead`: what else can be done.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: without PortAudio
        raise InputError(
            f'{what} needs sounddevice and PortAudio ({error}). Install them (pip install '
            f'sounddevice; sudo apt install libportaudio2), or {instead}'
        ) from None
    return sounddevice


def device_of(name: str) -> int | str | None:
    """Return a device as sounddevice takes it; `name`: default, or a name or number of it."""
    if name == 'default':
        return None
    return int(name) if name.isdigit() else name


@dataclass(frozen=True)
class AudioBlock:
    """Samples as they were captured."""

    stamp_ns: int  # of the first one
    samples: np.ndarray  # (n, channels) int16


class Microphone:
    """An open microphone.

    `device`: `default`, or a name or number of those that `python -m sounddevice` lists.
    `rate_hz`: 0 for the device's own. `silence_s`: nothing in so long means that it is gone.
    `now_ns()`: the time in which blocks are dated; it is called in PortAudio's thread.
    """

    def __init__(
        self,
        device: str,
        rate_hz: int,
        now_ns: Callable[[], int],
        latency_ms: float = 0.0,
        silence_s: float = 3.0,
    ):
        self._library = library = portaudio(
            f'microphone is {device!r}, and it', 'leave microphone empty'
        )
        self._name, self._now_ns, self._silence_s = device, now_ns, silence_s
        self._blocks = queue.Queue(MOST_BLOCKS)
        self._latency_ns = int(latency_ms * 1e6)
        self._clock, self._count = LiveClock(self._latency_ns), 0
        self.lost = self._noted = 0  # times that the machine was too slow for it
        # PortAudio looks for devices once, when it is initialised; a device may have come since.
        library._terminate()
        library._initialize()
        try:
            facts = library.query_devices(device_of(device), 'input')
            self.rate_hz = rate_hz or int(min(facts['default_samplerate'], HIGHEST_RATE_HZ))
            self._stream = self._opened(device_of(device), facts['max_input_channels'])
            self.channels = self._stream.channels
            self._stream.start()
        except (ValueError, library.PortAudioError) as error:
            raise InputError(
                f'microphone is {device!r}: {error}. python -m sounddevice lists the devices; '
                'another program may hold it, or its rate may be another (microphone_rate_hz)'
            ) from None

    def read(self) -> Iterator[AudioBlock]:
        """Yield the blocks as they come; raise InputError when none comes any more."""
        while True:
            try:
                data, captured_ns = self._blocks.get(timeout=self._silence_s)
            except queue.Empty:
                raise InputError(
                    f'microphone {self._name!r}: nothing has come for {self._silence_s:g} s. Was '
                    'it unplugged? python -m sounddevice lists the devices'
                ) from None
            samples = np.frombuffer(data, '<i2').reshape(-1, self.channels)
            if self.lost > self._noted:  # the count is no longer that of the device
                self._noted, self._clock = self.lost, LiveClock(self._latency_ns)
            count_ns = self._count * NS // self.rate_hz
            self._count += len(samples)
            self._clock.note(count_ns, captured_ns)
            yield AudioBlock(self._clock.stamp_ns(count_ns), samples)

    def close(self) -> None:
        """Give the device back."""
        self._stream.abort(ignore_errors=True)
        self._stream.close(ignore_errors=True)

    def _opened(self, device, most_channels: int):
        """Return a stream of one channel or, where the device has none, of all."""
        settings = dict(
            samplerate=self.rate_hz, device=device, dtype='int16', callback=self._take,
            blocksize=int(self.rate_hz * BLOCK_S),
        )  # fmt: skip
        try:
            return self._library.RawInputStream(channels=1, **settings)
        except self._library.PortAudioError:
            if most_channels < 2:
                raise
            return self._library.RawInputStream(channels=most_channels, **settings)

    def _take(self, data, n_frames: int, times, status) -> None:
        """Take a block; called by PortAudio, in a thread of its own."""
        now_ns = self._now_ns()
        # Some devices do not say when they captured it; then it was over just now.
        block_s, passed_s = n_frames / self.rate_hz, times.currentTime - times.inputBufferAdcTime
        passed_s = passed_s if block_s < passed_s < LONGEST_LATENCY_S else block_s
        self.lost += bool(status.input_overflow)
        try:
            self._blocks.put_nowait((bytes(data), now_ns - int(passed_s * NS)))
        except queue.Full:
            self.lost += 1
