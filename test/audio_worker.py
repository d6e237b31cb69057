# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The worker of `streaming_encoder`, driven by hand: what arrives, when, and what is published."""

import threading

from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.media.audio.format import AudioFormat
from minicpmo_ros.ros import encoder_node
from minicpmo_ros.ros.audio_node import AudioState, StreamingEncoder
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.streams.time import Arrival, Instant, StampGuard
from minicpmo_ros.units import NS

WAVE = AudioFormat(16_000, 1)


class AudioWorker:
    """A real node whose worker thread is the test's, at times the test says."""

    def __init__(self, model_dir, monkeypatch):
        monkeypatch.setattr(encoder_node, 'TICK_S', 0.0)
        self.encoder = AudioEncoder.load(model_dir / 'audio.gguf', Backend('cpu', threads=1))
        self.arbiter = DeviceArbiter()
        self.node = StreamingEncoder(arbiter=self.arbiter)
        self.published, self.told = [], []
        self.node.publish = self.published.append
        self.node.tell = lambda key, text: self.told.append(text)
        self.node.time = self  # which gives the test's instants
        self.begin()

    def begin(self, begin_s: float = 1000.0) -> None:
        """Forget the streams; steady time is `begin_s`."""
        self.instant = Instant(begin_s)
        self.state, self.guard = AudioState(AudioPipeline(self.encoder), 'space'), StampGuard()
        self.pause = encoder_node.SliceHook(threading.Event(), self.arbiter, self.now)
        self.published.clear()
        self.told.clear()

    def now(self) -> Instant:
        """Give the instant that it is."""
        return self.instant

    def hear(self, stamp_ns, data, audio_format=WAVE, arrived_ns=None) -> None:
        """Let a chunk arrive now, and the worker have one turn."""
        if arrived_ns is None:
            arrived_ns = int(self.instant.steady_s * NS)
        self.node.worker.inbox.put(
            Arrival(stamp_ns, self.instant, (arrived_ns, data, audio_format))
        )
        self.turn()

    def turn(self) -> None:
        """Let the worker have one turn."""
        self.node.work_once(self.state, self.guard, self.pause, self.node.worker.inbox)

    def wait(self, seconds: float, simulated_s: float | None = None, jumps: int = 0) -> None:
        """Let time pass."""
        simulated_ns = None if simulated_s is None else int(simulated_s * NS)
        self.instant = Instant(self.instant.steady_s + seconds, simulated_ns, jumps)

    @property
    def seconds(self) -> list:
        """(second, status) of what was published."""
        return [(message.second, message.status) for message in self.published]

    def close(self) -> None:
        self.node.destroy_node()
