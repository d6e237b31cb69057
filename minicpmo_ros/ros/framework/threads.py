# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The threads of a node beside the executor's: a poller takes messages, a worker works on them.

A poller looks at its subscriptions several times a second and puts what came into the inbox of the
worker.

For every message, an rclpy executor rebuilds its wait set over all entities of its nodes, which
takes about a millisecond. A camera and a microphone send dozens of messages a second and none is
urgent, so they are taken together, without the executor.

Such a subscription must not be in the executor's wait set: while a message is unread, it would
make the executor's wait return at once, again and again.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rclpy.callback_groups import CallbackGroup
from rclpy.exceptions import InvalidHandle

from minicpmo_ros.errors import EngineError, Error
from minicpmo_ros.memory.proc import give_back
from minicpmo_ros.ros.framework.faults import faults_of, place_of

PERIOD_S = 0.05
TICK_S = 0.1  # after which a worker looks at an inbox that nothing woke it for


class NotExecuted(CallbackGroup):
    """A callback group that no executor executes: keeps its subscriptions out of all wait sets."""

    def can_execute(self, entity) -> bool:
        """Return False: nothing is to be waited for."""
        return False

    def beginning_execution(self, entity) -> bool:
        """Return False: nothing may begin."""
        return False

    def ending_execution(self, entity) -> None:
        """Do nothing."""


class Poller:
    """Subscribes for a node and calls back from one thread, in the order of subscribing.

    All that had arrived at the instant `read_until`, by `now()`, has been called back; None: the
    first look is not over. It lags behind while this thread is held up. `period_s`, between two
    looks, may be changed by any thread.
    """

    def __init__(self, node, now=time.monotonic):
        self._node, self._subscriptions = node, []
        self._now, self.read_until, self.period_s = now, None, PERIOD_S
        self._faults = faults_of(node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name='poller', daemon=True)
        self._thread.start()

    def subscribe(self, message_type, topic: str, callback, qos):
        """Subscribe and return the subscription; `callback(message)` must return soon."""
        subscription = self._node.topics.subscribe(
            message_type, topic, callback, qos, NotExecuted()
        )
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription) -> None:
        """Stop reading a subscription; for the executor's thread."""
        self._subscriptions.remove(subscription)
        self._node.topics.unsubscribe(subscription)

    def read(self) -> None:
        """Call back all that has arrived; for the poller's thread, and any that cannot wait."""
        for subscription in list(self._subscriptions):
            if not self._node.context.ok():
                return  # a signal has shut the context down
            # Without this the node has no input: it must go on.
            with self._faults.guard(f'{subscription.topic}: nothing can be taken'):
                self._drain(subscription)

    def close(self) -> None:
        """End the thread and unsubscribe."""
        self._stop.set()
        self._thread.join(timeout=1.0)
        for subscription in self._subscriptions:
            self._node.topics.unsubscribe(subscription)

    def _poll(self) -> None:
        while not self._stop.wait(self.period_s) and self._node.context.ok():
            began = self._now()
            self.read()
            self.read_until = began

    def _drain(self, subscription) -> None:
        try:
            call_back(subscription, self._stop)
        except Exception:
            if self._node.context.ok():
                raise


def call_back(subscription, stop: threading.Event | None = None) -> None:
    """Call back what a subscription of the group NotExecuted has received by now."""
    with suppress(InvalidHandle), subscription.handle:  # or it is unsubscribed meanwhile
        while stop is None or not stop.is_set():
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if taken is None:
                return
            subscription.callback(taken[0])


class Worker:
    """The worker of one node: a new thread, with a new inbox, from each `start` to `stop`.

    A thread that is told to stop may still be at work; the next one waits for its end, as what
    both have loaded may not fit into memory. What fails is told and counted by the node, and what
    the thread cannot begin makes the node fail, or start anew (lifecycle.py).
    """

    def __init__(self, node, capacity: float):
        self._node, self._capacity = node, capacity
        self.inbox = Inbox(capacity)
        self._thread = self._leaving = self._stop = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None

    def start(self, begin: Callable) -> None:
        """Start a thread: `begin(stop)` returns the `step(inbox)` that is repeated until `stop`.

        `stop`, an Event, may also end both from within, by raising Stopped.
        """
        self._stop, self.inbox = threading.Event(), Inbox(self._capacity)
        self._thread = threading.Thread(
            target=self._run,
            args=(begin, self._stop, self.inbox, self._leaving),
            name=self._node.get_name(),
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to stop; what it holds is freed with it."""
        if self._thread is not None:
            self._stop.set()
            self.inbox.wake()
            self._leaving, self._thread = self._thread, None

    def join(self, timeout_s: float) -> None:
        """Wait for the thread that was stopped."""
        if self._leaving is not None:
            self._leaving.join(timeout_s)

    def _run(self, begin, stop, inbox, before) -> None:
        if before is not None:
            before.join()
        self._work(begin, stop, inbox)
        give_back()

    def _work(self, begin, stop, inbox) -> None:
        node = self._node
        try:
            step = begin(stop)
            while not stop.is_set():
                with node.faults.guard('the worker'):
                    step(inbox)
        except Stopped:
            pass
        except Error as error:
            node.post(lambda error=error: stop.is_set() or node.fail(error))
        except Exception as error:
            node.faults.tell('loading', error, starts_anew=False)
            ended = EngineError(f'the worker ended unexpectedly: {error!r} ({place_of(error)})')
            node.post(lambda: stop.is_set() or node.start_anew(ended))


class Stopped(BaseException):
    """The worker is being stopped; raised past all guards."""


class Inbox:
    """Bounded queue from callbacks to one worker; when it is full, the oldest is dropped.

    An item replaces a waiting one of the same key. The costs passed to `put` add up to at most the
    capacity; the newest item is kept whatever it costs.
    """

    def __init__(self, capacity: float):
        self._capacity, self._items, self._count = capacity, {}, 0
        self._cost = 0.0
        self._ready = threading.Condition()
        self.dropped, self.dropped_cost = 0, 0.0

    def put(self, item, key=None, cost: float = 1.0, wakes: bool = True) -> list:
        """Add an item without waiting; return the items dropped for it.

        wakes: wake the worker at once; else it finds the item within TICK_S.
        """
        with self._ready:
            self._count += 1
            key = self._count if key is None else key
            self._cost += cost - self._items.pop(key, (None, 0.0))[1]
            self._items[key] = item, cost
            dropped = []
            while self._cost > self._capacity and len(self._items) > 1:
                old, old_cost = self._items.pop(next(iter(self._items)))
                dropped.append(old)
                self._cost -= old_cost
                self.dropped_cost += old_cost
            self.dropped += len(dropped)
            if wakes:
                self._ready.notify()
            return dropped

    def wake(self) -> None:
        """Wake the worker, although nothing has come."""
        with self._ready:
            self._ready.notify()

    def take(self, timeout_s: float) -> list:
        """Return all items in order: at once if there are any, else on a wake or a timeout."""
        with self._ready:
            if not self._items:
                self._ready.wait(timeout_s)
            items = [item for item, _ in self._items.values()]
            self._items.clear()
            self._cost = 0.0
            return items
