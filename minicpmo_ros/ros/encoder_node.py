# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The base of the two encoder nodes: model file, worker thread, pace of seconds.

Callbacks put what arrives into a bounded inbox. One worker thread loads the encoder and then
encodes second by second; every second of the stream is published once, in order, even if it is
empty.
"""

import array
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

from rclpy.qos import QoSProfile

from minicpmo_ros.errors import Error
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority
from minicpmo_ros.ros.framework.clock import NodeTime, read_until
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import ManagedNode
from minicpmo_ros.ros.framework.loading import model_path, open_model
from minicpmo_ros.ros.framework.threads import TICK_S, Stopped, Worker
from minicpmo_ros.ros.memory import MemoryBudget
from minicpmo_ros.ros.stamps import Stamps
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.time import Arrival, Instant, StampGuard
from minicpmo_ros.units import NS

EMBEDDING_QOS, REPORT_QOS = QoSProfile(depth=4), QoSProfile(depth=10)
REPORTS = {'image': '~/seen', 'audio': '~/heard'}  # by input: topic of the embeddings without data
TOO_SLOW = (
    'encoding takes longer than the seconds do. Raise threads, lower vision.area or '
    'vision.max_tiles, raise vision.unchanged_threshold, or use the GPU (device) or a smaller '
    'model'
)
STRAYS = (
    'Messages come whose stamps are far from those around them. Do two publishers with different '
    'clocks share the topic? Remap one of them away, or let it stamp by the same clock.'
)


class EncoderNode(ManagedNode):
    """Base of the two encoder nodes.

    A subclass defines, to run in the worker: `load(options, model, pause)`, which loads its
    encoder through the memory budget and returns the state that the other methods get (encoding
    holds `pause.device(second)`, unless `pause.is_too_late(second)`); `encode(state, arrival)`;
    `tick(state, now)`; and `restart(state, second)`, called when time has jumped. It also defines
    `open_input(options)`, and puts every `arrival` into the inbox.
    """

    INBOX_CAPACITY: float
    INPUT_NAME: str  # image or audio
    MODEL_ROLE: str  # of its file in the model directory
    ROLE = 'encoder'
    ONE_A_SECOND = False  # only the newest input of a second matters
    holds_back_input = False  # arrivals with implausible stamps are being verified
    input = stamps = None  # while the node is active, its input and a Stamps

    def __init__(
        self,
        name: str,
        message_type,
        arbiter: DeviceArbiter | None = None,
        budget: MemoryBudget | None = None,
    ):
        super().__init__(name)
        self._arbiter, self._budget = arbiter or DeviceArbiter(), budget or MemoryBudget()
        self._budget.register(self.MODEL_ROLE, self.table)
        self._publisher = self.topics.publish(message_type, '~/embedding', EMBEDDING_QOS)
        self._reports = self.topics.publish(message_type, REPORTS[self.INPUT_NAME], REPORT_QOS)
        self._throttle, self._given, self._newest = Throttle(), Counter(), None
        self._pause = None  # of the worker, once it has loaded
        self.time = NodeTime(self)
        self.worker = Worker(self, self.INBOX_CAPACITY)

    @property
    def is_loaded(self) -> bool:
        """Whether the worker has loaded the model."""
        return self._pause is not None

    def on_setup(self, options) -> None:
        """Check the files, then load in the worker."""
        checked = open_model(model_path(options.model_dir))
        self._options = options
        self.worker.start(partial(self._begin, options, checked))

    def on_start(self) -> None:
        """Subscribe."""
        mode = getattr(self._options, f'{self.INPUT_NAME}_stamps')
        if self.stamps is not None:  # of a start that failed
            self.stamps.close()
        self.stamps = Stamps(self, self.INPUT_NAME, mode)
        self.input = self.open_input(self._options)

    def on_stop(self) -> None:
        """Unsubscribe."""
        if self.input is not None:
            self.input.close()
            self.input = None
        if self.stamps is not None:
            self.stamps.close()
            self.stamps = None

    def on_release(self) -> None:
        """Stop the worker; the encoder is freed with its last reference."""
        super().on_release()
        self._pause = None

    def arrival(self, stamp_ns: int | None, content) -> Arrival:
        """Return an Arrival of now."""
        return Arrival(stamp_ns, self.time.now(), content)

    def publish(self, message) -> None:
        """Publish an embedding, if the node is active; for the worker."""
        self.post(lambda: self.input is not None and self._publish_now(message))

    def _publish_now(self, message) -> None:
        self._newest = message
        self._given[message.status] += 1
        self._publisher.publish(message)
        # Who shows what is seen and heard need not take the data, of which there is the most.
        message.data = array.array('B')
        self._reports.publish(message)

    def is_ready(self) -> bool:
        """Return whether the node is ready and the encoder loaded."""
        return super().is_ready() and self._pause is not None

    def busy_s(self) -> float:
        """Return how long the worker has worked on, or waited for, its current slice; seconds."""
        begun_s = self._pause and self._pause.begun_s
        return time.monotonic() - begun_s if begun_s else 0.0

    def diagnose(self, report) -> None:
        """Report how many seconds were published and lost, and how long the newest took."""
        if self.worker.is_running and not self.is_loaded:
            report.warn('loading')
        report.tell('seconds published', sum(self._given.values()))
        report.tell('seconds without input', self._given[Status.EMPTY])
        report.count(
            'seconds lost',
            self._given[Status.LOST],
            'what came could not be used; the log says why',
        )
        report.count('seconds overloaded', self._given[Status.OVERLOADED], TOO_SLOW)
        report.count('inputs dropped', self.worker.inbox.dropped, TOO_SLOW)
        if self.stamps is not None:
            self.stamps.diagnose(report)
        if self._newest is not None:
            report.tell('newest second', self._newest.second)
            report.tell('encoding of the newest [ms]', float(self._newest.encode_ms))

    def _on_loaded(self, pause: 'SliceHook', space: str) -> None:
        self._pause = pause
        self.get_logger().info(f'ready: {space}')

    def tell(self, key: str, text: str) -> None:
        """Warn at most once in ten seconds for each key."""
        if self._throttle.allows(key):
            self.get_logger().warning(text)

    # The worker.
    def _begin(self, options, checked, stop: threading.Event) -> Callable:
        """Load; return a step of the work."""
        model, pause = checked.result(), SliceHook(stop, self._arbiter, self.time.now)
        pause.check()
        state = self.load(options, model, pause)
        self.post(lambda: stop.is_set() or self._on_loaded(pause, model.space))
        return partial(self.work_once, state, StampGuard(self.ONE_A_SECOND), pause)

    def work_once(self, state, guard, pause, inbox) -> None:
        """Wait for input for a moment, and process what has come."""
        # All that came until this instant is processed below, however long the device is waited
        # for or reading was held up: a source must not seem silent because its reader was busy.
        now = read_until(self.input, self.time)
        items = inbox.take(TICK_S)
        pause.begun_s = time.monotonic()
        strays = guard.strays
        believed = [arrival for item in items for arrival in guard.sort(item)]
        for arrival in believed + guard.settle(now):
            pause.over = arrival.at
            if arrival.jumped_from_ns is not None:
                self._tell_jump(arrival)
                self._attempt(self.restart, state, arrival.stamp_ns // NS)
            self._attempt(self.encode, state, arrival)
        if guard.strays > strays:
            self.tell('stray', f'{STRAYS} Left out until now: {guard.strays}.')
        self.holds_back_input = guard.holds_back_input
        pause.over = now
        self._attempt(self.tick, state, now)
        pause.begun_s = None

    def _tell_jump(self, arrival) -> None:
        went = 'back' if arrival.stamp_ns < arrival.jumped_from_ns else 'ahead'
        self.get_logger().warning(
            f'time went {went}: the stamps jump from {arrival.jumped_from_ns / NS:.3f} s to '
            f'{arrival.stamp_ns / NS:.3f} s; the stream starts anew there'
        )

    def _attempt(self, work, *arguments) -> None:
        """Run a piece of work; an input error skips only this item."""
        with self.faults.guard(work.__qualname__):
            try:
                work(*arguments)
            except Error as error:
                self.tell('input', str(error))


class SliceHook:
    """Called between slices of the encoder's work: yields the device, stops the worker.

    `over`: the Instant at which the seconds being encoded were over.
    """

    def __init__(self, stop: threading.Event, arbiter: DeviceArbiter, now: Callable[[], Instant]):
        self._stop, self._arbiter, self._now = stop, arbiter, now
        self._let_others = None  # while the device is held
        self._waited_s = self._work_s = 0.0  # in the second at hand; that the newest one took
        self._held_s = 0.0  # monotonic: since when the device is held for it
        self.over = now()
        self.begun_s = None  # monotonic: the slice at hand

    @contextmanager
    def device(self, second: int):
        """Hold the device to encode a second; yield the hook to call between slices."""
        deadline_s = self.over.steady_s + self._arbiter.unit_deadline_s
        with self._arbiter.hold(Priority.ENCODER, deadline_s - self._work_s) as self._let_others:
            self._held_s = self.begun_s = time.monotonic()
            self._waited_s = 0.0
            yield self
            self._work_s = self.worked_s

    @property
    def worked_s(self) -> float:
        """How long the second at hand has been worked on."""
        return time.monotonic() - self._held_s - self._waited_s

    @property
    def late_s(self) -> float:
        """How long ago the seconds being encoded were over."""
        return self._now().waited_s(self.over)

    @contextmanager
    def device_for_question(self):
        """Hold the device as a question does; yield the hook to call between slices."""
        with self._arbiter.hold(Priority.QUESTION) as self._let_others:
            yield self

    def is_too_late(self, second: int) -> bool:
        """Return whether a second, encoded now, would come too late to be used."""
        return self._arbiter.is_too_late(second, self.late_s)

    def __call__(self) -> None:
        """Let others go first, or end."""
        self.check()
        begun_s = time.monotonic()
        self._let_others()
        self.begun_s = time.monotonic()
        self._waited_s += self.begun_s - begun_s

    def check(self) -> None:
        """Raise Stopped if the node is being stopped."""
        if self._stop.is_set():
            raise Stopped
