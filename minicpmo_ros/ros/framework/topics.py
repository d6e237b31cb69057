# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A node's topics: quality of service by parameter, and a warning if two ends do not match.

Each topic made here has read-only parameters, to be given at start:

    qos_overrides.<topic>.<subscription|publisher>.<history|depth|reliability|durability>

Their values are checked here at start, because rclpy looks at a value only when that end of the
topic is made, which may be when a camera appears.

Publishers and subscriptions with incompatible quality of service silently fail to connect. Here
that gives one warning that names the other end, the policy, both values and what to change;
`problems` keeps it for /diagnostics until the other end is gone. It looks once a second which ends
are matched with fewer others than the graph has. The middleware would report a mismatch by an
event, but an rclpy executor looks at each event of each end whenever it wakes, at a third of its
cost: a node that is a `WithoutEvents` has none. `input_stats` counts the messages received.
"""

import copy
import time
from dataclasses import dataclass
from typing import Any

from rclpy.qos import QoSCompatibility, QoSPolicyKind, QoSProfile, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions

from minicpmo_ros.errors import InputError
from minicpmo_ros.ros.framework.faults import faults_of

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

PREFIX = 'qos_overrides.'
ENDS = ('subscription', 'publisher')
MAX_DEPTH = 100_000
WHOLE = f'an integer from 0 to {MAX_DEPTH}'
# By policy: the values, and how they are told.
VALUES = {
    'history': ('keep_last', 'keep_all'),
    'depth': (),
    'reliability': ('reliable', 'best_effort'),
    'durability': ('volatile', 'transient_local'),
}
# Known to the middleware too: what it takes by itself, or what the other end has.
OTHERS = {
    'history': ('system_default',),
    'depth': (),
    'reliability': ('system_default', 'best_available'),
    'durability': ('system_default', 'best_available'),
}
LOOK_PERIOD_S = 0.5  # for a publisher
LOOK_AGAIN_PERIOD_S = 2.0  # once there is one: it may come back with another type or QoS
SILENT_S = 5.0  # of a source without a message, where there is another
NAME_LOOKS = 5  # once a second, for the name of a node that discovery has not told yet
# [what is offered, what is wanted] that do not match.
WEAKER = {
    'reliability': ['best_effort', 'reliable'],
    'durability': ['volatile', 'transient_local'],
}
NO_PUBLISHER_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)
NO_SUBSCRIPTION_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)
KINDS = tuple(QoSPolicyKind[name.upper()] for name in VALUES)


def topic_of(name: str) -> str:
    """Return the topic that a parameter of quality of service is of; '/' where it is none."""
    if not name.startswith(PREFIX):
        return '/'
    return name.removeprefix(PREFIX).rsplit('.', 2)[0] or '/'


def qos_problem(name: str, value) -> str:
    """Return what is wrong with a parameter's name or value; '' if nothing, or not of QoS."""
    if not name.startswith(PREFIX):
        return ''
    topic, _, rest = name.removeprefix(PREFIX).rpartition('.')
    topic, _, end = topic.rpartition('.')
    if not topic.startswith('/'):
        return (
            f'parameter {name}: it takes {PREFIX}TOPIC.{"|".join(ENDS)}.{"|".join(VALUES)} with '
            'the whole name of the topic, from its / on, such as '
            f'{PREFIX}/image.subscription.reliability'
        )
    if end.split('_')[0] not in ENDS:  # _ and what follows: an identity, of several ends
        return f'parameter {name}: its end of the topic is {end!r}; taken are {", ".join(ENDS)}'
    if rest not in VALUES:
        return f'parameter {name}: {rest!r} is no policy; taken are {", ".join(VALUES)}'
    if rest == 'depth':
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        right = is_whole and 0 <= value <= MAX_DEPTH
        return '' if right else f'parameter {name} is {value!r}; it takes {WHOLE}'
    right = isinstance(value, str) and value.lower() in VALUES[rest] + OTHERS[rest]
    taken = ' or '.join(VALUES[rest])
    return '' if right else f'parameter {name} is {value!r}; it takes {taken}'


@dataclass(frozen=True)
class Endpoint:
    """The node's end of a topic."""

    kind: str  # subscription or publisher
    topic: str  # resolved
    qos: QoSProfile  # as it became by the parameters

    def parameter(self, policy: str) -> str:
        """Return the name of the parameter that sets a policy of this end."""
        return f'qos_overrides.{self.topic}.{self.kind}.{policy}'


class InputStats:
    """Statistics of one input: count, rate and age of its messages. Thread-safe for counting."""

    def __init__(self):
        self.count = 0
        self._newest_s = self._looked_s = time.monotonic()
        self._looked_at = 0  # count

    def arrive(self) -> None:
        """Count one."""
        self.count += 1
        self._newest_s = time.monotonic()

    def age_s(self) -> float:
        """Return the time since the newest message, or since subscribing."""
        return time.monotonic() - self._newest_s

    def rate_hz(self) -> float:
        """Return the rate of messages since the last call."""
        count, now_s = self.count, time.monotonic()
        rate_hz = (count - self._looked_at) / max(1e-3, now_s - self._looked_s)
        self._looked_at, self._looked_s = count, now_s
        return rate_hz


def type_among(types: list, taken: str, age_s: float) -> str:
    """Return as which of its types to read a topic: the first, and the next of one that is silent.

    The graph shows the publisher of a killed node for many seconds more, beside that of the same
    device started again. types: as which it is published; taken: as which it is read; age_s: the
    time since its newest message.
    """
    if taken not in types:
        return types[0]
    return types[(types.index(taken) + (age_s > SILENT_S)) % len(types)]


class WithoutEvents:
    """A node whose own ends of topics, and those of rclpy, report no events to its executor."""

    def create_publisher(self, *arguments, **options):
        """Create a publisher without events."""
        options.setdefault('event_callbacks', NO_PUBLISHER_EVENTS)
        return super().create_publisher(*arguments, **options)

    def create_subscription(self, *arguments, **options):
        """Create a subscription without events."""
        options.setdefault('event_callbacks', NO_SUBSCRIPTION_EVENTS)
        return super().create_subscription(*arguments, **options)


class Topics:
    """Makes the topics of one node; for the executor's thread."""

    def __init__(self, node):
        self._node, self._faults = node, faults_of(node)
        self._given = dict(getattr(node, '_parameter_overrides', {}))
        self._made = set()  # resolved names
        self._problems = {}  # (kind, topic): (a sentence or '', times looked at)
        self.input_stats = {}  # resolved name of what is subscribed to: InputStats

    def check(self, names: tuple = ()) -> None:
        """Raise InputError if a parameter names a quality of service that does not exist.

        names: what will be subscribed to, beside the topics there are already. Those of others'
        topics are left to them: in one process, and in one YAML, all nodes get the parameters of
        all.
        """
        topics = self._made | {self._node.resolve_topic_name(name) for name in names}
        problems = [
            text
            for name, text in self._refused().items()
            if self._node.resolve_topic_name(topic_of(name)) in topics
        ]
        if problems:
            raise InputError('; '.join(problems))

    def _refused(self) -> dict:
        given = ((name, parameter.value) for name, parameter in self._given.items())
        return {name: text for name, value in given if (text := qos_problem(name, value))}

    def subscribe(self, message_type, topic: str, callback, qos: QoSProfile, group=None):
        """Subscribe."""
        end, stats = self._end('subscription', topic, qos), InputStats()

        def take(message) -> None:
            stats.arrive()
            # Whatever a topic brings, it ends neither a node nor its reading.
            with self._faults.guard(f'{end.topic}: a message is left out', starts_anew=False):
                callback(message)

        subscription = self._make(
            end, self._node.create_subscription, message_type, topic, take, end.qos,
            callback_group=group, event_callbacks=NO_SUBSCRIPTION_EVENTS,
        )  # fmt: skip
        self.input_stats[end.topic] = stats
        return subscription

    def unsubscribe(self, subscription) -> None:
        """Remove a subscription."""
        topic = self._node.resolve_topic_name(subscription.topic)
        self.input_stats.pop(topic, None)
        self._node.destroy_subscription(subscription)

    def publish(self, message_type, topic: str, qos: QoSProfile):
        """Make a publisher."""
        end = self._end('publisher', topic, qos)
        return self._make(
            end, self._node.create_publisher, message_type, topic, end.qos,
            event_callbacks=NO_PUBLISHER_EVENTS,
        )  # fmt: skip

    def problems(self) -> tuple:
        """Return the current mismatches, one sentence each; to be called once a second."""
        before, self._problems = self._problems, {}
        for end in self._ends_short_of_others():
            if not (others := self._mismatches(end)):
                continue
            text, looks = before.get((end.kind, end.topic), ('', 0))
            # The other end may be there before the graph shows who it is.
            if looks >= NAME_LOOKS or all(map(_has_name, others)):
                text, told = self._sentence(end, others), text
                if text != told:
                    self._node.get_logger().warning(text)
            self._problems[end.kind, end.topic] = text, looks + 1
        return tuple(text for text, _ in self._problems.values() if text)

    def _ends_short_of_others(self):
        """Yield each Endpoint of the node, rclpy's own too, that lacks others the graph has.

        Two counts cost far less than the descriptions of all others.
        """
        node = self._node
        for publisher in node.publishers:
            topic = publisher.topic_name
            if publisher.get_subscription_count() < node.count_subscribers(topic):
                yield Endpoint('publisher', topic, publisher.qos_profile)
        for subscription in node.subscriptions:
            topic = subscription.topic_name
            count = getattr(subscription, 'get_publisher_count', int)  # Humble has none: 0
            if count() < node.count_publishers(topic):
                yield Endpoint('subscription', topic, subscription.qos_profile)

    def _end(self, kind: str, topic: str, qos: QoSProfile) -> Endpoint:
        # A copy: rclpy writes what the parameters say into the profile it is given.
        return Endpoint(kind, self._node.resolve_topic_name(topic), copy.copy(qos))

    def _make(self, end: Endpoint, make, *arguments, **named):
        self._made.add(end.topic)
        refused = self._refused()
        # What is wrong is the default until `check` refuses it. What was declared for an earlier
        # end of this topic and not given is the default of then; an input may have adapted to
        # another publisher since.
        kinds = [
            kind
            for kind in KINDS
            if (name := end.parameter(kind.name.lower())) not in refused
            and (name in self._given or not self._node.has_parameter(name))
        ]
        return make(*arguments, qos_overriding_options=QoSOverridingOptions(kinds), **named)

    def _mismatches(self, end: Endpoint) -> list:
        """Return what is known of the other ends that do not match this one."""
        node, is_publisher = self._node, end.kind == 'publisher'
        look = (
            node.get_subscriptions_info_by_topic
            if is_publisher
            else node.get_publishers_info_by_topic
        )
        return [
            other
            for other in look(end.topic)
            if qos_check_compatible(*_by_direction(end, other.qos_profile))[0]
            == QoSCompatibility.ERROR
        ]

    def _sentence(self, end: Endpoint, others: list) -> str:
        """Return a sentence: which ends do not match, in what, and what to change."""
        newest = others[-1].qos_profile
        policy = _mismatched_policy(*_by_direction(end, newest))
        mine, theirs = _value(end.qos, policy), _value(newest, policy)
        them = ', '.join(sorted(set(map(_name, others))))
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
        text = f'{text} Change it there'
        if self._node.has_parameter(name := end.parameter(policy)):
            text = f'{text}, or start this node with {name}:={theirs}'
        return text


def qos_mismatches(node, topic: str) -> list:
    """Return [(mismatch, what to change)] for all ends of a topic that `node` sees."""
    found = []
    for publisher in node.get_publishers_info_by_topic(topic):
        for subscription in node.get_subscriptions_info_by_topic(topic):
            offered, wanted = publisher.qos_profile, subscription.qos_profile
            if qos_check_compatible(offered, wanted)[0] != QoSCompatibility.ERROR:
                continue
            policy = _mismatched_policy(offered, wanted)
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


def _by_direction(end: Endpoint, other: QoSProfile) -> tuple:
    """Return (what the publisher offers, what the subscription wants)."""
    return (end.qos, other) if end.kind == 'publisher' else (other, end.qos)


def _mismatched_policy(offered: QoSProfile, wanted: QoSProfile) -> str:
    """Return the policy in which a publisher offers less than a subscription wants."""
    for policy, values in WEAKER.items():
        if [_value(profile, policy) for profile in (offered, wanted)] == values:
            return policy
    reason = qos_check_compatible(offered, wanted)[1].lower()
    return next(
        (policy for policy in ('deadline', 'liveliness') if policy in reason), 'durability'
    )


def _has_name(end) -> bool:
    return 'UNKNOWN' not in end.node_name  # rmw's word until discovery tells the name


def _name(end) -> str:
    return f'{end.node_namespace.rstrip("/")}/{end.node_name}'


def _value(qos: QoSProfile, policy: str) -> Any:
    value = getattr(qos, policy, 'another')
    return value.name.lower() if hasattr(value, 'name') else value
