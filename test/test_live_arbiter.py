# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One at a time, the more urgent first, and nobody waits for ever."""

import threading

import pytest

from minicpmo_ros.live.arbiter import DeviceArbiter, Priority

WAIT_S = 10  # for what must happen at once; never reached unless the test fails


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Worker(threading.Thread):
    """Holds the device for `slices` slices; writes its name at the start of each."""

    def __init__(self, arbiter, name, priority, slices, diary):
        super().__init__(daemon=True)
        self.arbiter, self.word, self.priority = arbiter, name, priority
        self.slices, self.diary = slices, diary
        self.start()

    def run(self):
        with self.arbiter.hold(self.priority) as between:
            for index in range(self.slices):
                if index:
                    between()
                self.diary.append(self.word)


def until_waiting(arbiter, n):
    """Wait until n turns are queued; polled, because nothing else shows it."""
    for _ in range(1000):
        with arbiter._granted:
            if len(arbiter._waiting) == n:
                return
        threading.Event().wait(0.001)
    raise AssertionError(f'{n} turns never waited')


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def arbiter(clock):
    return DeviceArbiter(patience_s=0.3, clock=clock)


def run_all(workers):
    for worker in workers:
        worker.join(WAIT_S)
        assert not worker.is_alive()


def test_the_more_urgent_goes_first_whoever_came_first(arbiter):
    diary, workers = [], []
    with arbiter.hold(Priority.ENCODER):
        for n, priority in enumerate((Priority.ENCODER, Priority.UNIT, Priority.QUESTION)):
            workers.append(Worker(arbiter, priority.name, priority, 1, diary))
            until_waiting(arbiter, n + 1)
    run_all(workers)
    assert diary == ['QUESTION', 'UNIT', 'ENCODER']


def test_equals_go_in_the_order_they_came(arbiter, clock):
    diary, workers = [], []
    with arbiter.hold(Priority.UNIT):
        for n in range(4):
            clock.now_s += 0.01
            workers.append(Worker(arbiter, n, Priority.ENCODER, 1, diary))
            until_waiting(arbiter, n + 1)
    run_all(workers)
    assert diary == [0, 1, 2, 3]


def test_an_encoder_lets_a_question_pass_between_two_slices(arbiter):
    diary = []
    with arbiter.hold(Priority.ENCODER) as between:
        diary.append('slice')
        worker = Worker(arbiter, 'question', Priority.QUESTION, 3, diary)
        until_waiting(arbiter, 1)
        between()
        diary.append('slice')
    run_all([worker])
    assert diary == ['slice', 'question', 'question', 'question', 'slice']


def test_a_question_keeps_the_device_from_encoders_within_their_patience(arbiter, clock):
    diary = []
    with arbiter.hold(Priority.QUESTION) as between:
        worker = Worker(arbiter, 'slice', Priority.ENCODER, 2, diary)
        until_waiting(arbiter, 1)
        for _ in range(2):
            clock.now_s += 0.1
            between()
            diary.append('token')
    run_all([worker])
    assert diary == ['token', 'token', 'slice', 'slice']


def test_an_encoder_gets_one_slice_each_time_its_patience_ends(clock):
    """Tokens of 1 s, slices of no time and a patience of 3 s: one slice after three tokens."""
    arbiter, diary = DeviceArbiter(patience_s=3.0, clock=clock), []
    with arbiter.hold(Priority.QUESTION) as between:
        worker = Worker(arbiter, 'slice', Priority.ENCODER, 50, diary)
        until_waiting(arbiter, 1)
        for _ in range(12):
            diary.append('token')
            clock.now_s += 1.0
            between()
    run_all([worker])
    assert diary[:16] == ['token', 'token', 'token', 'slice'] * 4


def test_between_is_free_when_nobody_waits(arbiter):
    with arbiter.hold(Priority.ENCODER) as between:
        between()
        between()


def test_the_device_is_free_after_an_error(arbiter):
    with pytest.raises(KeyError):
        with arbiter.hold(Priority.UNIT):
            raise KeyError
    diary = []
    run_all([Worker(arbiter, 'next', Priority.ENCODER, 1, diary)])
    assert diary == ['next']


def test_a_turn_is_released_once(arbiter):
    turn = arbiter.acquire(Priority.UNIT)
    turn.release()
    with pytest.raises(ValueError):
        turn.release()


def test_never_two_at_once():
    arbiter, inside, clashes = DeviceArbiter(patience_s=0.0), [], []

    def work(priority):
        for _ in range(30):
            with arbiter.hold(priority) as between:
                for _ in range(3):
                    inside.append(priority)
                    clashes.extend(inside[1:])
                    inside.pop()
                    between()

    workers = [
        threading.Thread(target=work, args=(priority,), daemon=True)
        for priority in [*Priority] * 2
    ]
    for worker in workers:
        worker.start()
    run_all(workers)
    assert not clashes
