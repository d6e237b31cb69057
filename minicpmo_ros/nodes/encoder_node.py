# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the two encoder nodes share: the model's file, the worker thread, the pace of seconds.

Callbacks copy what arrives into a bounded inbox. One worker thread loads the encoder and then
encodes second by second; every second of the stream is published once, in order, also when it
has nothing to give.
"""

import threading
import time
import traceback
from collections import Counter

from rclpy.qos import QoSProfile

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority
from minicpmo_ros.live.pacing import NS, Arrival, StampGuard
from minicpmo_ros.live.status import Status
from minicpmo_ros.nodes.loading import model_path, open_model
from minicpmo_ros.nodes.logs import Throttle
from minicpmo_ros.nodes.managed import ManagedNode
from minicpmo_ros.nodes.memory import give_back
from minicpmo_ros.nodes.memory_room import Room
from minicpmo_ros.nodes.node_time import NodeTime

EMBEDDING_QOS = QoSProfile(depth=4)
TICK_S = 0.1
TOO_SLOW = (
    'encoding takes longer than the seconds do. Raise threads, lower vision.max_tiles, raise '
    'vision.unchanged_threshold, or use the GPU (device) or a smaller model'
)
STRAYS = (
    'Messages come whose stamps are far from those around them. Do two publishers with different '
    'clocks share the topic? Remap one of them away, or let it stamp by the same clock.'
)


class Inbox:
    """Bounded hand-over from callbacks to one worker; the oldest goes when it is full.

    An item put under the key of one that still waits replaces it. Items cost what `put` says,
    and together at most the capacity; the newest stays whatever it costs.
    """

    def __init__(self, capacity: float):
        self._capacity, self._items, self._count = capacity, {}, 0
        self._cost = 0.0
        self._ready = threading.Condition()
        self.dropped, self.dropped_cost = 0, 0.0

    def put(self, item, key=None, cost: float = 1.0) -> list:
        """Add an item, never waits; give the items that went for it."""
        with self._ready:
            self._count += 1
            key = self._count if key is None else key
            self._cost += cost - self._items.get(key, (None, 0.0))[1]
            self._items[key] = item, cost
            dropped = []
            while self._cost > self._capacity and len(self._items) > 1:
                old, old_cost = self._items.pop(next(iter(self._items)))
                dropped.append(old)
                self._cost -= old_cost
                self.dropped_cost += old_cost
            self.dropped += len(dropped)
            self._ready.notify()
            return dropped

    def take(self, timeout_s: float) -> list:
        """Give all items in order, at once or when the first comes; [] after the timeout."""
        with self._ready:
            if not self._items:
                self._ready.wait(timeout_s)
            items = [item for item, _ in self._items.values()]
            self._items.clear()
            self._cost = 0.0
            return items


class EncoderNode(ManagedNode):
    """Base of the two encoder nodes.

    A subclass gives `load(options, model, between)` (in the worker; has the room load its encoder,
    returns the state that the others work with), `open_input(options)`, `encode(state, arrival)`,
    `tick(state, now)` and `restart(state, second)` where what follows is of another time. It puts
    every `arrival` into the inbox.
    """

    INBOX_CAPACITY: float
    MODEL_ROLE: str  # of its file in the model directory
    ROLE = 'encoder'
    ONE_A_SECOND = False  # of what arrives, only the newest of a second matters
    is_doubting = False  # something came that the stream may have jumped to; it is not silent
    _worker = _leaving = _input = None

    def __init__(
        self,
        name: str,
        message_type,
        arbiter: DeviceArbiter | None = None,
        room: Room | None = None,
    ):
        super().__init__(name)
        self._arbiter, self._room = arbiter or DeviceArbiter(), room or Room()
        self._room.enter(self.MODEL_ROLE, self.table)
        self._publisher = self.topics.publish(message_type, '~/embedding', EMBEDDING_QOS)
        self._throttle, self._given, self._newest = Throttle(), Counter(), None
        self._pause = None  # of the worker, once it has loaded
        self.time = NodeTime(self)
        self.inbox = Inbox(self.INBOX_CAPACITY)

    def on_setup(self, options) -> None:
        """Check the files, then load in the worker."""
        checked = open_model(model_path(options.model_dir))
        self._stop, self.inbox = threading.Event(), Inbox(self.INBOX_CAPACITY)
        self._options = options
        self._worker = threading.Thread(
            target=self._run,
            args=(options, checked, self._stop, self.inbox, self._leaving),
            name=self.get_name(),
            daemon=True,
        )
        self._worker.start()

    def on_start(self) -> None:
        """Subscribe."""
        self._input = self.open_input(self._options)

    def on_stop(self) -> None:
        """Unsubscribe."""
        if self._input is not None:
            self._input.close()
            self._input = None

    def on_release(self) -> None:
        """Tell the worker to end; the encoder is freed with its last reference."""
        self._pause = None
        if self._worker is not None:
            self._stop.set()
            self._leaving, self._worker = self._worker, None

    def join(self, timeout_s: float) -> None:
        """Wait for the worker that was told to end."""
        if self._leaving is not None:
            self._leaving.join(timeout_s)

    def arrival(self, stamp_ns: int | None, content) -> Arrival:
        """Give what has arrived now."""
        return Arrival(stamp_ns, self.time.now(), content)

    def publish(self, message) -> None:
        """Publish an embedding, if the node is active; for the worker."""
        self.post(lambda: self._input is not None and self._publish_now(message))

    def _publish_now(self, message) -> None:
        self._newest = message
        self._given[message.status] += 1
        self._publisher.publish(message)

    def busy_s(self) -> float:
        """Give for how long the worker has been at one slice of its work, or waits for it."""
        begun_s = self._pause and self._pause.begun_s
        return time.monotonic() - begun_s if begun_s else 0.0

    def diagnose(self, report) -> None:
        """Write how many seconds were given and lost, and how long the newest took."""
        if self._worker is not None and self._pause is None:
            report.warn('loading')
        report.tell('seconds published', sum(self._given.values()))
        report.tell('seconds without input', self._given[Status.EMPTY])
        report.count(
            'seconds lost',
            self._given[Status.LOST],
            'what came could not be used; the log says why',
        )
        report.count('seconds overloaded', self._given[Status.OVERLOADED], TOO_SLOW)
        report.count('inputs dropped', self.inbox.dropped, TOO_SLOW)
        if self._newest is not None:
            report.tell('newest second', self._newest.second)
            report.tell('encoding of the newest [ms]', float(self._newest.encode_ms))

    def tell(self, key: str, text: str) -> None:
        """Warn at most once in ten seconds for each key."""
        if self._throttle.lets(key):
            self.get_logger().warning(text)

    # The worker.
    def _run(self, *arguments) -> None:
        self._work(*arguments)
        give_back()

    def _work(self, options, checked, stop, inbox, before) -> None:
        if before is not None:
            before.join()  # two encoders at a time may not fit into memory
        try:
            model, pause = checked.result(), _Pause(stop)
            pause.check()
            state = self.load(options, model, pause)
            self._pause = pause
            self.get_logger().info(f'ready: {model.space}')
            guard = StampGuard(self.ONE_A_SECOND)
            while not stop.is_set():
                self._work_once(state, inbox, guard, pause)
        except _Stopped:
            pass
        except Error as error:
            self.post(lambda error=error: stop.is_set() or self.fail(error))
        except Exception:
            error = EngineError(f'the worker ended unexpectedly: {traceback.format_exc()}')
            self.post(lambda: stop.is_set() or self.fail(error))

    def _work_once(self, state, inbox, guard, pause) -> None:
        # The instant until which all that came is in hand below, however long the device is
        # waited for: a source must not seem silent because its reader was busy.
        now = self.time.now()
        items = inbox.take(TICK_S)
        pause.begun_s = time.monotonic()
        with self._arbiter.hold(Priority.ENCODER) as pause.let_others:
            strays = guard.strays
            believed = [arrival for item in items for arrival in guard.sort(item)]
            for arrival in believed + guard.settle(now):
                if arrival.jumped_from_ns is not None:
                    self._tell_jump(arrival)
                    self._attempt(self.restart, state, arrival.stamp_ns // NS)
                self._attempt(self.encode, state, arrival)
            if guard.strays > strays:
                self.tell('stray', f'{STRAYS} Left out until now: {guard.strays}.')
            self.is_doubting = guard.is_doubting
            self._attempt(self.tick, state, now)
        pause.begun_s = None

    def _tell_jump(self, arrival) -> None:
        went = 'back' if arrival.stamp_ns < arrival.jumped_from_ns else 'ahead'
        self.get_logger().warning(
            f'time went {went}: the stamps jump from {arrival.jumped_from_ns / NS:.3f} s to '
            f'{arrival.stamp_ns / NS:.3f} s; the stream starts anew there'
        )

    def _attempt(self, work, *arguments) -> None:
        """Do a piece of work; what is wrong with its input ends this piece alone."""
        try:
            work(*arguments)
        except Error as error:
            self.tell('input', str(error))


class _Pause:
    """What one worker does between two slices of its encoder's work."""

    def __init__(self, stop: threading.Event):
        self._stop, self.let_others = stop, None
        self.begun_s = None  # monotonic: the slice at hand

    def __call__(self) -> None:
        """Let a question go first, or end."""
        self.check()
        self.let_others()
        self.begun_s = time.monotonic()

    def check(self) -> None:
        """End the worker, if the node is being stopped."""
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The node is being stopped; raised through an encoder between two slices."""
