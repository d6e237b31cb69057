# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What the two encoder nodes share: the model's file, the worker thread, the pace of seconds.

Callbacks copy what arrives into a bounded inbox. One worker thread loads the encoder and then
encodes second by second; every second of the stream is published once, in order, also when it
has nothing to give.
"""

import os
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future, TimeoutError
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rclpy.qos import QoSProfile

from minicpmo_ros.errors import EngineError, Error, ModelFileError
from minicpmo_ros.live.arbiter import DeviceArbiter
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.nodes.managed import ManagedNode
from minicpmo_ros.nodes.parameters import Parameter

# What is left of the 50 ms in which a transition answers. Headers of a real model take longer
# on a small board: then the check goes on in the worker, and a failure comes by status.
CHECK_TIMEOUT_S = 0.04
EMBEDDING_QOS = QoSProfile(depth=4)
TICK_S = 0.1

MODEL_PARAMETERS = (
    Parameter('model_dir', 'nano', 'Model directory, or the name of an embedded model'),
    Parameter('device', 'auto', 'Where this part of the model runs', choices=('auto', 'cpu', 'gpu')),
    Parameter('threads', 0, 'Of computation on the CPU; 0: one core less than there are', '',
              0, 256),
)  # fmt: skip


def thread_count(given: int) -> int:
    """Give the number of threads; the core left out is for ROS."""
    return given or max(1, len(os.sched_getaffinity(0)) - 1)


def model_path(given: str) -> Path:
    """Give the directory of a path or of an embedded model's name."""
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    embedded = Path(get_package_share_directory('minicpmo_ros')) / 'models'
    if '/' not in given and (embedded / given).is_dir():
        return embedded / given
    names = sorted(p.name for p in embedded.glob('*') if p.is_dir())
    raise ModelFileError(
        given or 'model_dir',
        'no such model directory',
        f'Set model_dir to one, or to an embedded model ({", ".join(names) or "there is none"})',
    )


def open_model(path: Path, timeout_s: float = CHECK_TIMEOUT_S) -> Future:
    """Check a model directory in a thread; raise its error if that comes within `timeout_s`."""
    checked = Future()

    def check():
        try:
            checked.set_result(ModelDirectory.open(path))
        except Exception as error:
            checked.set_exception(error)

    threading.Thread(target=check, name='check_model', daemon=True).start()
    try:
        checked.result(timeout=timeout_s)
    except TimeoutError:
        pass
    return checked


class Inbox:
    """Bounded hand-over from callbacks to one worker; the oldest goes when it is full."""

    def __init__(self, capacity: int):
        self._items = deque(maxlen=capacity)
        self._ready = threading.Condition()
        self.dropped = 0

    def put(self, item) -> None:
        """Add an item; never waits."""
        with self._ready:
            self.dropped += len(self._items) == self._items.maxlen
            self._items.append(item)
            self._ready.notify()

    def take(self, timeout_s: float) -> list:
        """Give all items, at once or when the first comes; [] after the timeout."""
        with self._ready:
            if not self._items:
                self._ready.wait(timeout_s)
            items = list(self._items)
            self._items.clear()
            return items


class EncoderNode(ManagedNode):
    """Base of the two encoder nodes.

    A subclass gives `load(options, model, between)` (in the worker; returns what `encode` and
    `tick` work with), `open_input(options)`, `encode(state, item)` and `tick(state, now_s)`.
    """

    INBOX_CAPACITY = 100

    def __init__(self, name: str, message_type, arbiter: DeviceArbiter | None = None):
        super().__init__(name)
        self._arbiter = arbiter or DeviceArbiter()
        self._publisher = self.create_publisher(message_type, '~/embedding', EMBEDDING_QOS)
        self._stop = self._worker = self._input = None
        self._told = {}
        self.inbox = Inbox(self.INBOX_CAPACITY)

    def on_setup(self, options) -> None:
        """Check the files, then load in the worker."""
        checked = open_model(model_path(options.model_dir))
        self._stop = threading.Event()
        self._options = options
        self._worker = threading.Thread(
            target=self._work, args=(options, checked, self._stop), name=self.get_name()
        )
        self._worker.daemon = True
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
        """End the worker; the encoder is freed with its last reference."""
        if self._stop is not None:
            self._stop.set()
            self._worker.join(timeout=1.0)
            self._stop = self._worker = None

    def publish(self, message) -> None:
        """Publish an embedding; for the worker."""
        self.post(lambda: self._publisher.publish(message))

    def tell(self, key: str, text: str) -> None:
        """Warn at most once in ten seconds for each key."""
        now_s = time.monotonic()
        if now_s - self._told.get(key, -60.0) > 10.0:
            self._told[key] = now_s
            self.get_logger().warning(text)

    # The worker.
    def _work(self, options, checked, stop) -> None:
        try:
            model = checked.result()
            state = self.load(options, model, self._between(stop))
            self.get_logger().info(f'ready: {model.space}')
            while not stop.is_set():
                self._work_once(state)
        except _Stopped:
            pass
        except Error as error:
            self.post(lambda error=error: stop.is_set() or self.fail(error))
        except Exception:
            error = EngineError(f'the worker ended unexpectedly: {traceback.format_exc()}')
            self.post(lambda: stop.is_set() or self.fail(error))

    def _work_once(self, state) -> None:
        for item in self.inbox.take(TICK_S):
            try:
                self.encode(state, item)
            except Error as error:
                self.tell('input', str(error))
        self.tick(state, time.monotonic())

    def _between(self, stop):
        """Give the callable that encoders call between slices: it lets questions go first."""
        let_others = self._arbiter.between

        def between():
            if stop.is_set():
                raise _Stopped
            let_others()

        return between


class _Stopped(Exception):
    """The node is being stopped; raised through an encoder between two slices."""
