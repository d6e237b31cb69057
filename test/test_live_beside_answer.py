# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""It sees and hears while it answers: engine and encoders in lock-step, simulated time."""

import queue
import threading

import numpy as np
import pytest
from test_live_engine import ANY, WAIT_S, Asker, FakeSession, until

from minicpmo_ros.live.arbiter import ANSWER_SHARE, DeviceArbiter, Priority
from minicpmo_ros.live.engine import Engine
from minicpmo_ros.live.status import EngineOptions
from minicpmo_ros.streams.time import Instant

ROWS = np.zeros((2, 4), np.float16)
SLICE_S, TOKEN_S = 0.1, 0.1


class SlowMachine:
    """An Engine with two encoders, all of them as slow as is said, on one device."""

    def __init__(self, image_s, audio_s, unit_s, answer_share=ANSWER_SHARE):
        self.now_s, self.unit_s, self.asked_s = 0.0, unit_s, None
        self.arbiter = DeviceArbiter(answer_share, clock=lambda: self.now_s)
        self.session = FakeSession()
        self.session.at_unit, self.session.at_step = self._read, self._step
        self.read_s, self.tokens_s, self.skipped = {}, [], []
        options = EngineOptions(max_backlog=30, evidence=ANY)
        self.engine = Engine(
            lambda *_: self.session, options, self.arbiter, now=lambda: Instant(self.now_s)
        )
        self.engine.start()
        until(lambda: self.engine.status().state == 'ready')
        self.jobs, self.second, self.end_s = [], 0, 0.0
        for put, work_s in (
            (self.engine.put_image, image_s),
            (self.engine.put_audio, audio_s),
        ):
            self.jobs.append(jobs := queue.Queue())
            jobs.idle = threading.Event()
            thread = threading.Thread(target=self._encode, args=(jobs, put, work_s), daemon=True)
            thread.start()

    def _encode(self, jobs, put, work_s):
        while (second := jobs.get()) is not None:
            newest_only = put == self.engine.put_image and jobs.queue
            if newest_only or self.arbiter.is_too_late(second, self.now_s - second - 1):
                self.skipped.append(second)
                put(second, None)
            else:
                with self.arbiter.hold(Priority.ENCODER, second + 3 - work_s) as between:
                    for i in range(round(work_s / SLICE_S)):
                        if i:
                            between()
                        self.now_s += SLICE_S
                put(second, ROWS)
            jobs.task_done()

    def _read(self, unit):
        self.now_s += self.unit_s
        self.read_s[unit.second] = self.now_s

    def _step(self, answering):
        """Make a token; give out the seconds that are over, and see that they are worked at."""
        self.now_s += TOKEN_S
        self.tokens_s.append(self.now_s)
        while self.now_s >= self.second + 1:
            for jobs in self.jobs:
                jobs.put(self.second)
            self.second += 1
        until(lambda: len(self.arbiter.waiting) == sum(j.unfinished_tasks > 0 for j in self.jobs))
        if self.now_s >= self.end_s:
            answering.question.asker.asking.cancel()

    def answer(self, for_s):
        """Ask what takes so long to answer, in simulated time; give the answer."""
        self.end_s = self.now_s + for_s
        asker = Asker.__new__(Asker)
        self.session.at_step, gate = self._wait_for(asker), threading.Event()
        self._gate = gate
        Asker.__init__(asker, self.engine, max_tokens=10**6)
        gate.set()
        return asker.result()

    def _wait_for(self, asker):
        def step(answering):
            assert self._gate.wait(WAIT_S)
            object.__setattr__(answering.question, 'asker', asker)
            self._step(answering)

        return step

    def close(self):
        for jobs in self.jobs:
            jobs.put(None)
        assert self.engine.close(WAIT_S)


@pytest.fixture
def make_machine():
    machines = []

    def make(*arguments, **more):
        machines.append(SlowMachine(*arguments, **more))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def in_time(machine, seconds):
    """Say which were read within their deadline, from the end of the second on."""
    read = machine.read_s
    return [n for n in seconds if n in read and read[n] <= n + 1 + 2.0]


@pytest.mark.parametrize('work_s', [(0.1, 0.1, 0.05), (0.3, 0.2, 0.1), (0.4, 0.2, 0.1)])
def test_the_live_seconds_keep_their_deadline_and_the_answer_has_the_rest(make_machine, work_s):
    machine = make_machine(*work_s)
    answer = machine.answer(for_s=10.0)
    assert in_time(machine, range(8)) == list(range(8))  # the last two may not be due
    rest = (1 - sum(work_s)) * 10 / TOKEN_S
    assert 0.9 * rest - 10 <= len(machine.tokens_s) <= 1.1 * rest + 15
    assert answer.live_s == pytest.approx(sum(work_s) * 10, rel=0.25)
    assert machine.engine.status().answer_live_s == answer.live_s
    assert not machine.skipped and machine.engine.status().late == 0


@pytest.mark.parametrize('answer_share', [0.2, 0.4])
def test_with_more_live_work_than_time_the_answer_keeps_its_share(make_machine, answer_share):
    """1.5 s of work a second: what is too late is left out, and what is read is in time."""
    machine = make_machine(0.9, 0.4, 0.2, answer_share=answer_share)
    machine.answer(for_s=60.0)
    tokens = [now_s for now_s in machine.tokens_s if now_s >= 5]
    assert len(tokens) * TOKEN_S / 55 == pytest.approx(answer_share, rel=0.25)
    gaps_s = np.diff(tokens)
    assert gaps_s.max() <= TOKEN_S / answer_share + 0.5  # it never stands still
    assert machine.skipped and machine.session.window.seconds == sorted(machine.read_s)
    lags_s = [read_s - second - 1 for second, read_s in machine.read_s.items()]
    # Begun within two deadlines, then one more until its unit closes.
    assert max(lags_s) <= 3 * 2.0 + 1.5 / (1 - answer_share)
    assert len(machine.read_s) >= 0.7 * 60 * (1 - answer_share) / 1.5
