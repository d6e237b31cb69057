# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Subscriptions that are read by a thread of their own, a few times a second.

An rclpy executor builds its wait set anew for every message, over all that its nodes have: about
a millisecond each time. A camera and a microphone bring dozens of messages a second and none of
them is urgent, so they are taken together, past the executor.
"""

import threading
import traceback

from rclpy.callback_groups import CallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.subscription import Subscription

from minicpmo_ros.nodes.logs import TELL_PERIOD_S

PERIOD_S = 0.05


class _Apart(CallbackGroup):
    """Keeps subscriptions out of every executor's wait set, but not their events."""

    def can_execute(self, entity) -> bool:
        return not isinstance(entity, Subscription)

    def beginning_execution(self, entity) -> bool:
        return self.can_execute(entity)

    def ending_execution(self, entity) -> None:
        pass


class Poller:
    """Subscribes for a node and calls back from one thread, in the order of subscribing."""

    def __init__(self, node):
        self._node, self._subscriptions = node, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name='poller', daemon=True)
        self._thread.start()

    def subscribe(self, message_type, topic: str, callback, qos):
        """Subscribe; `callback(message)` must return soon. Give the subscription."""
        subscription = self._node.topics.subscribe(message_type, topic, callback, qos, _Apart())
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription) -> None:
        """Read a subscription no more; for the executor's thread."""
        self._subscriptions.remove(subscription)
        self._node.topics.unsubscribe(subscription)

    def close(self) -> None:
        """End the thread and unsubscribe."""
        self._stop.set()
        self._thread.join(timeout=1.0)
        for subscription in self._subscriptions:
            self._node.topics.unsubscribe(subscription)

    def _poll(self) -> None:
        while not self._stop.wait(PERIOD_S):
            for subscription in list(self._subscriptions):
                try:
                    self._drain(subscription)
                except InvalidHandle:
                    continue  # unsubscribed in this moment
                except Exception:  # this thread is the node's eyes or ears: it goes on
                    if not self._node.context.ok():
                        return  # a signal came
                    self._node.get_logger().error(
                        f'{subscription.topic}: nothing can be taken: {traceback.format_exc()}',
                        throttle_duration_sec=TELL_PERIOD_S,
                    )

    def _drain(self, subscription) -> None:
        with subscription.handle:
            while not self._stop.is_set():
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if taken is None:
                    return
                subscription.callback(taken[0])
