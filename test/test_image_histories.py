# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever a camera does, its worker goes on, and every second is told once and in order."""

import threading
from functools import partial

import numpy as np
import pytest

from minicpmo_ros.errors import InputError
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.ros import encoder_node
from minicpmo_ros.ros.image_node import VisionNode, VisionState
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.on_demand import VisionOnDemand
from minicpmo_ros.streams.time import Arrival, Instant, StampGuard
from minicpmo_ros.units import NS


class OneRowEncoder:
    """Stands for the encoder, whose work is not the matter here."""

    max_tiles, image_size, patch_size = 1, 56, 14
    takes_squares = False
    facts = ()

    def encode(self, tiles, between=None):
        between()
        return np.ones((len(tiles), 4), np.float32)


class Worker:
    """A real node whose worker thread is the test's, at times the test says."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(encoder_node, 'TICK_S', 0.0)
        self.arbiter = DeviceArbiter()
        self.node, self.published, self.told = VisionNode(self.arbiter), [], []
        self.node.publish = self.published.append
        self.node.tell = lambda key, text: self.told.append(text)
        self.node.time = self

    def begin(self):
        self.instant, self.guard = Instant(1000.0), StampGuard(self.node.ONE_A_SECOND)
        self.pause = encoder_node.SliceHook(threading.Event(), self.arbiter, self.now)
        encoder = VisionOnDemand(lambda between: OneRowEncoder(), 0.0)
        pipeline = ImagePipeline(encoder, 1, 8.0, max_behind=1, device=self.pause.device)
        self.state = VisionState(pipeline, encoder, 'space', self.pause)
        self.published.clear()
        self.told.clear()

    def now(self) -> Instant:
        return self.instant

    def turn(self) -> None:
        self.node.work_once(self.state, self.guard, self.pause, self.node.worker.inbox)


@pytest.fixture
def worker(graph, monkeypatch):
    worker = Worker(monkeypatch)
    yield worker
    worker.node.destroy_node()


def make_image(is_damaged: bool, grey: int, needed=None):
    """Return an image of one grey level; damaged ones raise whatever a decoder raises."""
    if is_damaged:
        raise (InputError if grey % 2 else ValueError)('damaged')
    return Decoded.whole(np.full((48, 64, 3), grey, np.uint8))


def see_a_while(worker, rng) -> int:
    """Let a camera do what it wants; return how often it or time did something odd."""
    steady_s, stamp_ns, odd, jumps = 1000.0, int(rng.integers(0, 4 * NS)), 0, 0
    simulated_s = 5000.0 if rng.random() < 0.3 else None
    period_s = rng.choice([0.03, 0.1, 0.4, 2.5])
    for i in range(rng.integers(20, 150)):
        passed_s = period_s
        if rng.random() < 0.05:
            passed_s, odd = rng.choice([1.0, 3.0, 30.0]), odd + 1
        steady_s, stamp_ns = steady_s + passed_s, stamp_ns + int(passed_s * NS)
        if simulated_s is not None:
            simulated_s += passed_s
            if rng.random() < 0.01:
                simulated_s, jumps, odd = simulated_s - rng.choice([3, 100]), jumps + 1, odd + 1
        if rng.random() < 0.03:
            stamp_ns += int(rng.choice([-100, -3, -1.2, -0.6, 0.3, 1.5, 5, 50, 1000]) * NS)
            odd += 1
        simulated_ns = None if simulated_s is None else int(simulated_s * NS)
        worker.instant = Instant(steady_s, simulated_ns, jumps)
        image = partial(make_image, rng.random() < 0.05, int(rng.integers(256)))
        if rng.random() < 0.9:
            worker.node.worker.inbox.put(
                Arrival(stamp_ns, worker.instant, image), (stamp_ns // NS, i)
            )
        worker.turn()
    return odd


def test_whatever_comes_the_worker_goes_on_and_tells_each_second_once_and_in_order(worker):
    for seed in range(50, 70):
        worker.begin()
        odd = see_a_while(worker, np.random.default_rng(seed))
        steps = np.diff([message.second for message in worker.published])
        assert (steps != 0).all() and (steps != 1).sum() <= 2 * odd, (seed, odd, steps)
        for message in worker.published:
            assert (message.status == ImageEmbedding.OK) == (message.tokens > 0)
    assert any(message.status == ImageEmbedding.OK for message in worker.published)
    assert not worker.node.faults.is_failing('encode')
