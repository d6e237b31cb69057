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

from rclpy.qos import QoSProfile

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.live.arbiter import DeviceArbiter, Priority
from minicpmo_ros.nodes.loading import model_path, open_model
from minicpmo_ros.nodes.managed import ManagedNode

EMBEDDING_QOS = QoSProfile(depth=4)
TICK_S = 0.1
TELL_PERIOD_S = 10.0


class Inbox:
    """Bounded hand-over from callbacks to one worker; the oldest goes when it is full.

    An item put under the key of one that still waits replaces it.
    """

    def __init__(self, capacity: int):
        self._capacity, self._items, self._count = capacity, {}, 0
        self._ready = threading.Condition()
        self.dropped = 0

    def put(self, item, key=None) -> None:
        """Add an item; never waits."""
        with self._ready:
            self._count += 1
            self._items[self._count if key is None else key] = item
            if len(self._items) > self._capacity:
                del self._items[next(iter(self._items))]
                self.dropped += 1
            self._ready.notify()

    def take(self, timeout_s: float) -> list:
        """Give all items in order, at once or when the first comes; [] after the timeout."""
        with self._ready:
            if not self._items:
                self._ready.wait(timeout_s)
            items = list(self._items.values())
            self._items.clear()
            return items


class EncoderNode(ManagedNode):
    """Base of the two encoder nodes.

    A subclass gives `load(options, model, between)` (in the worker; returns what `encode` and
    `tick` work with), `open_input(options)`, `encode(state, item)` and `tick(state, now_s)`.
    """

    INBOX_CAPACITY: int
    _worker = _leaving = _input = None

    def __init__(self, name: str, message_type, arbiter: DeviceArbiter | None = None):
        super().__init__(name)
        self._arbiter = arbiter or DeviceArbiter()
        self._publisher = self.create_publisher(message_type, '~/embedding', EMBEDDING_QOS)
        self._told = {}
        self.inbox = Inbox(self.INBOX_CAPACITY)

    def on_setup(self, options) -> None:
        """Check the files, then load in the worker."""
        checked = open_model(model_path(options.model_dir))
        self._stop, self.inbox = threading.Event(), Inbox(self.INBOX_CAPACITY)
        self._options = options
        self._worker = threading.Thread(
            target=self._work,
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
        if self._worker is not None:
            self._stop.set()
            self._leaving, self._worker = self._worker, None

    def join(self, timeout_s: float) -> None:
        """Wait for the worker that was told to end."""
        if self._leaving is not None:
            self._leaving.join(timeout_s)

    def publish(self, message) -> None:
        """Publish an embedding, if the node is active; for the worker."""
        self.post(lambda: self._input is not None and self._publisher.publish(message))

    def tell(self, key: str, text: str) -> None:
        """Warn at most once in ten seconds for each key."""
        now_s = time.monotonic()
        self._told = {known: s for known, s in self._told.items() if now_s - s < TELL_PERIOD_S}
        if key not in self._told:
            self._told[key] = now_s
            self.get_logger().warning(text)

    # The worker.
    def _work(self, options, checked, stop, inbox, before) -> None:
        if before is not None:
            before.join()  # two encoders at a time may not fit into memory
        try:
            model, pause = checked.result(), _Pause(stop)
            pause.check()
            state = self.load(options, model, pause)
            self.get_logger().info(f'ready: {model.space}')
            while not stop.is_set():
                self._work_once(state, inbox, pause)
        except _Stopped:
            pass
        except Error as error:
            self.post(lambda error=error: stop.is_set() or self.fail(error))
        except Exception:
            error = EngineError(f'the worker ended unexpectedly: {traceback.format_exc()}')
            self.post(lambda: stop.is_set() or self.fail(error))

    def _work_once(self, state, inbox, pause) -> None:
        items = inbox.take(TICK_S)
        with self._arbiter.hold(Priority.ENCODER) as pause.let_others:
            for item in items:
                self._attempt(self.encode, state, item)
            self._attempt(self.tick, state, time.monotonic())

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

    def __call__(self) -> None:
        """Let a question go first, or end."""
        self.check()
        self.let_others()

    def check(self) -> None:
        """End the worker, if the node is being stopped."""
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The node is being stopped; raised through an encoder between two slices."""
