# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A node's topics: quality of service by parameter, and words where two ends do not fit.

Each topic made here has read-only parameters, to be given at start:

    qos_overrides.<topic>.<subscription|publisher>.<history|depth|reliability|durability>

Publishers and subscriptions of incompatible quality of service do not find each other, in
silence. Here that is one warning that names the other end, the policy, both values and what to
change; `problems` keeps it for /diagnostics until the other end is gone. `flows` counts what
comes.
"""

import copy
import time
import traceback
from dataclasses import dataclass
from typing import Any

from rclpy.exceptions import InvalidParameterTypeException
from rclpy.qos import (
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from minicpmo_ros.errors import InputError
from minicpmo_ros.nodes.logs import TELL_PERIOD_S

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

KINDS = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)


@dataclass(frozen=True)
class _End:
    """The node's end of a topic."""

    kind: str  # subscription or publisher
    topic: str  # resolved
    qos: QoSProfile  # as it became by the parameters

    def parameter(self, policy: str) -> str:
        return f'qos_overrides.{self.topic}.{self.kind}.{policy}'


class Flow:
    """Messages of one input: how many, how often, how long ago. Any thread counts."""

    def __init__(self):
        self.count = 0
        self._newest_s = self._looked_s = time.monotonic()
        self._looked_at = 0  # count

    def arrive(self) -> None:
        """Count one."""
        self.count += 1
        self._newest_s = time.monotonic()

    def age_s(self) -> float:
        """Give the time since the newest came, or since the subscription."""
        return time.monotonic() - self._newest_s

    def rate_hz(self) -> float:
        """Give how many came in a second, since this was asked before."""
        count, now_s = self.count, time.monotonic()
        rate_hz = (count - self._looked_at) / max(1e-3, now_s - self._looked_s)
        self._looked_at, self._looked_s = count, now_s
        return rate_hz


class Topics:
    """Makes the topics of one node; for the executor's thread."""

    def __init__(self, node):
        self._node = node
        self._problems = {}  # (kind, topic): (_End, a sentence)
        self._new = []  # (_End, policy, times looked at)
        self.flows = {}  # resolved name of what is subscribed to: Flow

    def subscribe(self, message_type, topic: str, callback, qos: QoSProfile, group=None):
        """Subscribe; InputError where the parameters give a quality that there is not."""
        end, flow = self._end('subscription', topic, qos), Flow()

        def take(message) -> None:
            flow.arrive()
            try:
                callback(message)
            except Exception:  # whatever a topic brings, it ends neither a node nor its reading
                if self._node.context.ok():
                    self._node.get_logger().error(
                        f'{end.topic}: a message is left out: {traceback.format_exc()}',
                        throttle_duration_sec=TELL_PERIOD_S,
                    )

        events = SubscriptionEventCallbacks(incompatible_qos=lambda event: self._tell(end, event))
        subscription = self._make(
            end, self._node.create_subscription, message_type, topic, take, end.qos,
            callback_group=group, event_callbacks=events,
        )  # fmt: skip
        self.flows[end.topic] = flow
        return subscription

    def unsubscribe(self, subscription) -> None:
        """Take a subscription back."""
        topic = self._node.resolve_topic_name(subscription.topic)
        self.flows.pop(topic, None)
        self._problems.pop(('subscription', topic), None)
        self._node.destroy_subscription(subscription)

    def publish(self, message_type, topic: str, qos: QoSProfile):
        """Make a publisher; InputError where the parameters give a quality that there is not."""
        end = self._end('publisher', topic, qos)
        events = PublisherEventCallbacks(incompatible_qos=lambda event: self._tell(end, event))
        return self._make(
            end, self._node.create_publisher, message_type, topic, end.qos, event_callbacks=events
        )

    def problems(self) -> tuple:
        """Give what does not fit now, a sentence each; to be asked once a second."""
        new, self._new = self._new, []
        for end, policy, looks in new:
            others = self._misfits(end)
            if not others and not looks:
                # The middleware tells of the other end before the graph shows who it is.
                self._new.append((end, policy, looks + 1))
                continue
            text = _sentence(end, policy, others)
            self._problems[end.kind, end.topic] = end, text
            self._node.get_logger().warning(text)
        self._problems = {
            key: (end, text) for key, (end, text) in self._problems.items() if self._misfits(end)
        }
        return tuple(text for _, text in self._problems.values())

    def _end(self, kind: str, topic: str, qos: QoSProfile) -> _End:
        # A copy: rclpy writes what the parameters say into the profile it is given.
        return _End(kind, self._node.resolve_topic_name(topic), copy.copy(qos))

    def _make(self, end: _End, make, *arguments, **named):
        given = getattr(self._node, '_parameter_overrides', {})
        # What was declared for an earlier end of this topic and not given is the default of
        # then; an input may have adapted to another publisher since.
        kinds = [
            kind
            for kind in KINDS
            if (name := end.parameter(kind.name.lower())) in given
            or not self._node.has_parameter(name)
        ]
        try:
            return make(*arguments, qos_overriding_options=QoSOverridingOptions(kinds), **named)
        except (RuntimeError, ValueError, AssertionError, InvalidParameterTypeException) as error:
            if not self._node.context.ok():
                raise
            raise InputError(
                f'parameters {end.parameter("*")}: {error}; taken are history (keep_last, '
                'keep_all), depth (an integer from 0 on), reliability (reliable, best_effort) '
                'and durability (volatile, transient_local)'
            ) from error

    def _tell(self, end: _End, event) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        self._new.append((end, policy, 0))

    def _misfits(self, end: _End) -> list:
        """Give what is known of the other ends that do not fit this one."""
        if end.kind == 'subscription':
            others = self._node.get_publishers_info_by_topic(end.topic)
            pairs = [(other, (other.qos_profile, end.qos)) for other in others]
        else:
            others = self._node.get_subscriptions_info_by_topic(end.topic)
            pairs = [(other, (end.qos, other.qos_profile)) for other in others]
        return [
            other
            for other, profiles in pairs
            if qos_check_compatible(*profiles)[0] == QoSCompatibility.ERROR
        ]


def misfits(node, topic: str) -> list:
    """Give (what does not fit, what to change) for all ends of a topic that `node` sees."""
    found = []
    for publisher in node.get_publishers_info_by_topic(topic):
        for subscription in node.get_subscriptions_info_by_topic(topic):
            offered, wanted = publisher.qos_profile, subscription.qos_profile
            if qos_check_compatible(offered, wanted)[0] != QoSCompatibility.ERROR:
                continue
            policy = 'reliability' if _is_weaker(offered, wanted, 'reliability') else 'durability'
            mine, theirs = _value(offered, policy), _value(wanted, policy)
            fact = (
                f'{topic}: {_name(publisher)} publishes with {policy} {mine}, '
                f'{_name(subscription)} subscribes with {policy} {theirs}, so that nothing '
                'arrives there'
            )
            remedy = (
                f'Start one of them with qos_overrides.{topic}.subscription.{policy}:={mine} or '
                f'qos_overrides.{topic}.publisher.{policy}:={theirs}, if it has such parameters; '
                'else change its source'
            )
            found.append((fact, remedy))
    return found


def _is_weaker(offered: QoSProfile, wanted: QoSProfile, policy: str) -> bool:
    values = [_value(profile, policy) for profile in (offered, wanted)]
    return values in (['best_effort', 'reliable'], ['volatile', 'transient_local'])


def _name(end) -> str:
    return f'{end.node_namespace.rstrip("/")}/{end.node_name}'


def _sentence(end: _End, policy: str, others: list) -> str:
    """Say who does not fit, in what, and what to change."""
    mine = _value(end.qos, policy)
    them = 'another node'
    theirs = 'another'
    if others:
        them = ', '.join(sorted(set(map(_name, others))))
        theirs = _value(others[-1].qos_profile, policy)
    if end.kind == 'subscription':
        text = (
            f'{end.topic}: {them} publishes with {policy} {theirs}, this node subscribes with '
            f'{policy} {mine}, so that nothing comes from there.'
        )
    else:
        text = (
            f'{end.topic}: {them} subscribes with {policy} {theirs}, this node publishes with '
            f'{policy} {mine}, so that nothing arrives there.'
        )
    if policy in ('reliability', 'durability'):
        return f'{text} Change it there, or start this node with {end.parameter(policy)}:={theirs}'
    return f'{text} Change it there'


def _value(qos: QoSProfile, policy: str) -> Any:
    value = getattr(qos, policy, 'another')
    return value.name.lower() if hasattr(value, 'name') else value
