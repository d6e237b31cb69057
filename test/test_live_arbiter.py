# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One at a time; live seconds keep their deadline, questions come first, nobody starves."""

import math
import threading

import numpy as np
import pytest

from minicpmo_ros.live.arbiter import ANSWER_SHARE, DeviceArbiter, Priority

WAIT_S = 60  # for what must happen at once; never reached unless the test fails


class Machine:
    """Simulated time and real threads, of which the arbiter lets one compute at a time.

    Time passes only while somebody computes, and while nobody wants to.
    """

    def __init__(self, answer_share=ANSWER_SHARE):
        self.now_s, self.diary = 0.0, []  # (begin, end, who)
        self.arbiter = DeviceArbiter(answer_share, clock=lambda: self.now_s)

    def compute(self, who, seconds):
        begun_s = self.now_s
        self.now_s += seconds
        self.diary.append((begun_s, self.now_s, who))

    def share(self, who, begin_s=0.0, end_s=math.inf):
        taken = {}
        for begun_s, ended_s, name in self.diary:
            overlap_s = min(ended_s, end_s) - max(begun_s, begin_s)
            taken[name] = taken.get(name, 0.0) + max(0.0, overlap_s)
        return taken.get(who, 0.0) / sum(taken.values())

    def start(self, work, *arguments):
        """Run `work` in a thread, once it holds the device or waits for it."""
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        n = len(self.arbiter.waiting)
        thread.start()
        until_waiting(self.arbiter, n + 1)
        return thread

    def work(self, who, priority, slices_s, start_by_s=math.inf):
        """Compute in slices; give when the last one ended."""
        with self.arbiter.hold(priority, start_by_s) as between:
            for index, seconds in enumerate(slices_s):
                if index:
                    between()
                self.compute(who, seconds)
            return self.now_s


def until_waiting(arbiter, n):
    """Wait until n turns are queued; polled, because nothing else shows it."""
    for _ in range(10 * 1000):
        if len(arbiter.waiting) == n:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f'{n} turns never waited')


def names(machine):
    return [who for _, _, who in machine.diary]


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def arbiter(machine):
    return machine.arbiter


def run_all(threads):
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_the_more_urgent_goes_first_whoever_came_first(machine):
    threads = []
    with machine.arbiter.hold(Priority.ENCODER):
        for priority in (Priority.ENCODER, Priority.UNIT, Priority.QUESTION):
            threads.append(machine.start(machine.work, priority.name, priority, [0.1]))
    run_all(threads)
    assert names(machine) == ['QUESTION', 'UNIT', 'ENCODER']


def test_of_two_encoders_the_one_that_must_be_ready_earlier_goes_first(machine):
    threads = []
    with machine.arbiter.hold(Priority.UNIT):
        for start_by_s in (3.0, 1.0, 2.0):
            work = (machine.work, start_by_s, Priority.ENCODER, [0.1], start_by_s)
            threads.append(machine.start(*work))
    run_all(threads)
    assert names(machine) == [1.0, 2.0, 3.0]


def test_equals_go_in_the_order_they_came(machine):
    threads = []
    with machine.arbiter.hold(Priority.UNIT):
        for n in range(4):
            machine.now_s += 0.01
            threads.append(machine.start(machine.work, n, Priority.ENCODER, [0.1]))
    run_all(threads)
    assert names(machine) == [0, 1, 2, 3]


def test_an_encoder_lets_a_question_pass_between_two_slices(machine):
    with machine.arbiter.hold(Priority.ENCODER, 1e9) as between:
        machine.compute('slice', 0.1)
        asking = machine.start(machine.work, 'question', Priority.QUESTION, [1.0] * 3)
        between()
        machine.compute('slice', 0.1)
    run_all([asking])
    assert names(machine) == ['slice', 'question', 'question', 'question', 'slice']


def test_a_question_lets_live_work_pass_that_would_miss_its_deadline(machine):
    """It may start at 2.5 s; from then on each has half of the time."""
    with machine.arbiter.hold(Priority.QUESTION) as between:
        live = machine.start(machine.work, 'live', Priority.ENCODER, [0.5] * 4, 2.5)
        for _ in range(8):
            machine.compute('question', 0.5)
            between()
    run_all([live])
    assert names(machine)[:5] == ['question'] * 5
    assert names(machine)[5:11] == ['live', 'question'] * 3
    assert machine.now_s == 12 * 0.5


@pytest.mark.parametrize('token_s', [0.01, 0.1, 1.0])
@pytest.mark.parametrize('slice_s', [0.01, 0.1, 1.0])
@pytest.mark.parametrize('answer_share', [0.05, 0.2, 0.5])
def test_an_answer_keeps_its_share_however_much_live_work_there_is(token_s, slice_s, answer_share):
    machine = Machine(answer_share)
    n_slices = round(200 / slice_s)
    with machine.arbiter.hold(Priority.ANSWER) as between:
        live = machine.start(machine.work, 'live', Priority.ENCODER, [slice_s] * n_slices)
        while machine.now_s < 150:
            between()
            machine.compute('answer', token_s)
    run_all([live])
    # In every stretch of time, up to what cannot be divided.
    for begin_s in range(0, 100, 10):
        found = machine.share('answer', begin_s, begin_s + 50)
        whole_s = token_s + slice_s * answer_share / (1 - answer_share)
        assert abs(found - answer_share) <= 2 * whole_s / 50


def test_live_work_that_fits_is_never_late_and_the_answer_has_the_rest():
    """0.6 s of work in every second: the answer has what is left, and the seconds are ready."""
    machine, ready_s = Machine(), []
    turn = machine.arbiter.acquire(Priority.ANSWER)
    threads = []

    def encode(second):
        ended_s = machine.work('live', Priority.ENCODER, [0.1] * 6, second + 1.4)
        ready_s.append(ended_s - (second + 1))

    for second in range(30):
        while machine.now_s < second + 1:
            machine.compute('answer', 0.05)
            turn.between()
        threads.append(machine.start(encode, second))
    while machine.arbiter.waiting:
        turn.between()
        machine.compute('answer', 0.05)
    turn.release()
    run_all(threads)
    assert len(ready_s) == 30 and max(ready_s) <= 0.6 / (1 - ANSWER_SHARE) + 0.1
    assert machine.share('live', 1, 30) == pytest.approx(0.6, abs=0.02)
    assert turn.live_s == pytest.approx(30 * 0.6, abs=0.5)


def test_a_first_token_is_bounded_beside_any_live_work():
    """Live work without end, all of it late: a question takes twice its time, and a slice."""
    machine, rng = Machine(), np.random.default_rng(0)
    is_queued, stop = threading.Event(), False

    def live(priority):
        while not stop:
            slices_s = rng.uniform(0.0, 0.1, 5)
            with machine.arbiter.hold(priority, machine.now_s - 1.0) as between:
                for seconds in slices_s:
                    between()
                    # Time stands still until the asking thread has come as far as the arbiter.
                    while not (stop or is_queued.is_set() or is_waiting(Priority.QUESTION)):
                        threading.Event().wait(0.001)
                    machine.compute('live', seconds)

    def is_waiting(priority):
        return priority in machine.arbiter.waiting

    kinds = (Priority.ENCODER, Priority.UNIT)
    threads = [threading.Thread(target=live, args=(kind,), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            is_queued.clear()
            asked_s, work_s = machine.now_s, 0.0
            with machine.arbiter.hold(Priority.QUESTION) as between:
                is_queued.set()
                for seconds in rng.uniform(0.0, 0.1, rng.integers(1, 8)):
                    machine.compute('question', seconds)
                    work_s += seconds
                    between()
                ended_s = machine.now_s
            # What was computed when it was asked is not its own.
            assert ended_s - asked_s <= 2 * work_s + 4 * 0.1
    finally:
        stop = True
    run_all(threads)


def test_question_after_question_does_not_starve_live_work(machine):
    """Asked without a pause, each of one slice: work that would be late has half of the time."""
    live = None
    turn = machine.arbiter.acquire(Priority.QUESTION)
    live = machine.start(machine.work, 'live', Priority.ENCODER, [0.1] * 40, 0.0)
    while live.is_alive() and machine.now_s < 60:
        machine.compute('question', 0.1)
        turn.between()
        turn.release()
        turn = machine.arbiter.acquire(Priority.QUESTION)
    turn.release()
    run_all([live])
    assert names(machine).count('live') == 40 and machine.share('live') >= 0.4


def test_units_that_an_answer_reads_are_live_work_as_any(machine):
    """It reads one whenever it may: four fifths of the time, and tells so."""
    turn = machine.arbiter.acquire(Priority.ANSWER)
    while machine.now_s < 100:
        turn.unit_waits = True
        if machine.arbiter.lets_unit(turn):
            turn.become(Priority.UNIT)
            machine.compute('unit', 0.3)
            turn.become(Priority.ANSWER)
        machine.compute('answer', 0.1)
        turn.between()
        # Nobody else waits: only what units took counts.
    assert machine.share('unit') == pytest.approx(0.75, abs=0.02)  # at least a token after each
    assert turn.live_s == pytest.approx(75, abs=2)
    turn.release()


def test_before_its_first_token_an_answer_reads_no_unit(arbiter):
    turn = arbiter.acquire(Priority.QUESTION)
    assert not arbiter.lets_unit(turn)
    turn.become(Priority.ANSWER)
    assert arbiter.lets_unit(turn)


def test_a_second_is_too_late_once_the_window_has_gone_on_without_it(arbiter):
    arbiter.unit_deadline_s = 2.0
    assert not arbiter.is_too_late(7, 3.9)  # nothing was closed yet
    arbiter.closed_second = 7
    assert arbiter.is_too_late(7, 2.0) and not arbiter.is_too_late(8, 3.9)
    assert arbiter.is_too_late(8, 4.0)  # it would stay behind for ever
    assert not arbiter.is_too_late(0, 1.9)  # a recording that begins anew


def test_between_is_free_when_nobody_waits(arbiter):
    with arbiter.hold(Priority.ENCODER) as between:
        between()
        between()


def test_the_device_is_free_after_an_error(machine):
    with pytest.raises(KeyError):
        with machine.arbiter.hold(Priority.UNIT):
            raise KeyError
    machine.work('next', Priority.ENCODER, [0.1])
    assert names(machine) == ['next']


def test_a_turn_is_released_once(arbiter):
    turn = arbiter.acquire(Priority.UNIT)
    turn.release()
    with pytest.raises(ValueError):
        turn.release()


def test_never_two_at_once():
    arbiter, inside, clashes = DeviceArbiter(), [], []

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
