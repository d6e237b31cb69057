# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Tells others how a node is: its state on /diagnostics, and the bond of nav2's lifecycle manager.

The node fills a `Report` (`ManagedNode.diagnose`) once a second, also while simulated time stands
still. This module adds what all nodes have in common: the lifecycle state, the rate and age of
each input, topic ends with incompatible quality of service, another node of the same name, memory,
and work that does not finish. WARN and ERROR say what to do.

A player waits before it begins until the named nodes report there that they are ready, and
subscribe. A subscription alone is not enough: a recorder subscribes at once, and an encoder before
its model is loaded.

While a node is active, it publishes heartbeats on `bond`, in the namespace of node and manager,
with its name as the bond's id; when it becomes inactive, it announces that once. A manager that
receives neither for its `bond_timeout` (4 s) assumes that the node has died. The messages come
from the package `bond`, which nav2 installs; without it there is no bond, and the manager's
bond_timeout must be 0. Only the node's end is needed, so bondpy, which few distributions have, is
not used.
"""

import time
import uuid

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile

from minicpmo_ros.memory.proc import rss_mib

try:
    from bond.msg import Status as BondStatus
except ImportError:
    BondStatus = None

QOS = QoSProfile(depth=10)
PERIOD_S = 1.0
RECENT_S = 10.0  # how long a loss is warned of
STILL_S = 5.0  # without input: a source that is on brings some each second
READY = 'ready'  # of a node's values on /diagnostics: yes or no
BOND_TOPIC = 'bond'
BOND_QOS = QoSProfile(depth=1)
# A manager waits half its timeout for the first one, and has to discover us first.
BOND_PERIOD_S, BOND_TIMEOUT_S = 0.5, 4.0
NO_BOND = (
    'the package bond is not installed: where a lifecycle manager of nav2 drives this node, set '
    'its bond_timeout to 0'
)


class RecentIncrease:
    """Computes by how much counters have grown in the last RECENT_S seconds."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._histories = clock, {}  # key: [(monotonic, count)]

    def of(self, key: str, count: int) -> int:
        """Take a count; return its recent increase. A smaller count means that it was reset."""
        now_s = self._clock()
        history = self._histories.setdefault(key, [])
        history.append((now_s, count))
        while history[0][0] < now_s - RECENT_S or history[0][1] > count:
            history.pop(0)
        return count - history[0][1]


class Report:
    """One node's entry while it is being filled."""

    def __init__(self, increase: RecentIncrease):
        self._increase = increase
        self.values = {}
        self.findings = []  # (level, text)

    def tell(self, key: str, value) -> None:
        """Add a figure."""
        self.values[key] = f'{value:.1f}' if isinstance(value, float) else str(value)

    def warn(self, text: str) -> None:
        """Add a warning: what is wrong, and what to do."""
        self.findings.append((DiagnosticStatus.WARN, text))

    def error(self, text: str) -> None:
        """Add an error: what keeps the node from working, and what to do."""
        self.findings.append((DiagnosticStatus.ERROR, text))

    def count(self, key: str, count: int, text: str = '', least: int = 1) -> None:
        """Add a count; warn with the text while the recent increase is at least `least`."""
        self.tell(key, count)
        if text and (n := self._increase.of(key, count)) >= least:
            self.warn(f'{n} {key} in the last {RECENT_S:.0f} s: {text}')


class Diagnostics:
    """Publishes a node's report; `role` names the entry."""

    def __init__(self, node, role: str):
        self._node, self._role = node, role
        self._increase = RecentIncrease()
        self._is_stuck = False
        self._publisher = node.topics.publish(
            DiagnosticArray, '/diagnostics', QoSProfile(depth=10)
        )
        node.ticks.every(PERIOD_S, self._publish)

    def _publish(self) -> None:
        array = DiagnosticArray(status=[self.entry()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def entry(self) -> DiagnosticStatus:
        """Return the entry as of now."""
        node, report = self._node, Report(self._increase)
        state = node.state
        report.tell('state', state)
        report.tell(READY, 'yes' if node.is_ready() else 'no')
        node.diagnose(report)
        self._diagnose_inputs(report, state)
        told = any('/clock is missing' in text for _, text in report.findings)  # by an input
        if node.clock_problem and not told:
            report.warn(node.clock_problem)
        for problem in node.topics.problems():
            report.warn(problem)
        self._diagnose_name(report)
        self._diagnose_work(report)
        node.faults.diagnose(report)
        report.count(
            'starts by itself',
            node.restarts.count,
            'it had failed several times in a row, or a worker had ended; the log says where',
        )
        if (due_s := node.restart_due_s) is not None:
            wait_s = max(0.0, due_s - time.monotonic())
            report.error(f'the node starts itself anew in {wait_s:.0f} s')
        report.tell('resident memory [MiB]', rss_mib())
        if node.failure is not None:
            report.error(str(node.failure))
        findings = sorted(report.findings, key=lambda finding: -finding[0][0])
        return DiagnosticStatus(
            level=findings[0][0] if findings else DiagnosticStatus.OK,
            name=f'{node.get_fully_qualified_name()[1:]}: {self._role}',
            message=' | '.join(text for _, text in findings) or state,
            values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
        )

    def _diagnose_inputs(self, report: Report, state: str) -> None:
        input_stats = self._node.topics.input_stats
        for topic, stats in input_stats.items():
            report.tell(f'{topic} rate [1/s]', stats.rate_hz())
            report.tell(f'{topic} age [s]', stats.age_s() if stats.count else 'none has come')
            report.tell(f'{topic} messages', stats.count)
        if state != 'active' or not self._node.INPUTS:
            return
        own = {self._node.resolve_topic_name(name) for name in self._node.INPUTS}
        input_stats = {topic: stats for topic, stats in input_stats.items() if topic in own}
        if not input_stats:
            names = ' or '.join(map(self._node.resolve_topic_name, self._node.INPUTS))
            report.warn(f'nobody publishes {names}: start the source, or remap the name')
        elif all(stats.age_s() > STILL_S for stats in input_stats.values()):
            age_s = min(stats.age_s() for stats in input_stats.values())
            report.warn(
                f'nothing has come on {" or ".join(input_stats)} for {age_s:.0f} s: look at the '
                'source (ros2 topic hz), and at its quality of service (ros2 topic info -v)'
            )

    def _diagnose_name(self, report: Report) -> None:
        node = self._node
        own = node.get_name(), node.get_namespace()
        count = node.get_node_names_and_namespaces().count(own)
        if count > 1:
            report.warn(
                f'{count} nodes are named {node.get_fully_qualified_name()}, and whoever asks one '
                'asks any: end all but one, or give each a namespace (one that was killed is '
                'named here for some seconds more)'
            )

    def _diagnose_work(self, report: Report) -> None:
        busy_s, limit_s = self._node.busy_s(), self._node.get_parameter('watchdog').value
        was_stuck, self._is_stuck = self._is_stuck, busy_s > limit_s
        if self._is_stuck:
            text = (
                f'one piece of work has not come to its end for {busy_s:.0f} s, allowed are '
                f'{limit_s:g} (parameter watchdog): end the process, so that it is started again '
                '(respawn), and use a smaller model or more threads if this comes back'
            )
            report.error(text)
            if not was_stuck:
                self._node.get_logger().error(text)


class Awaited:
    """The nodes of these names in a node's own namespace; for the executor's thread."""

    def __init__(self, node, names: tuple):
        self._node, self._told = node, {}  # name: what it says of being ready
        self._names = names
        self._outside = node.get_namespace().strip('/')
        if names:
            node.create_subscription(
                DiagnosticArray, '/diagnostics', self._hear, QoSProfile(depth=50)
            )

    def _hear(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.partition(':')[0]
            values = {pair.key: pair.value for pair in status.values}
            if READY in values:
                self._told[name] = values[READY]

    def missing(self, publishers) -> str:
        """Return what is waited for, or ''; publishers: those of the played streams."""
        whole = [f'{self._outside}/{name}'.lstrip('/') for name in self._names]
        late = [f'/{name}' for name in whole if self._told.get(name) != 'yes']
        if late:
            return f'{", ".join(late)} to be ready'
        unheard = [
            publisher.topic_name for publisher in publishers if not self._is_heard(publisher)
        ]
        return f'somebody to listen on {", ".join(unheard)}' if unheard else ''

    def _is_heard(self, publisher) -> bool:
        """Return whether a publisher has a subscriber, among the awaited nodes if any."""
        if not self._names:
            return publisher.get_subscription_count() > 0
        ends = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
        names = {f'{end.node_namespace.strip("/")}/{end.node_name}'.lstrip('/') for end in ends}
        return any(f'{self._outside}/{name}'.lstrip('/') in names for name in self._names)


class Bond:
    """A node's end of the bond; for the executor's thread."""

    def __init__(self, node):
        self._node, self._tick = node, None
        self._publisher = None
        if BondStatus is not None:
            self._publisher = node.topics.publish(BondStatus, BOND_TOPIC, BOND_QOS)

    @property
    def is_possible(self) -> bool:
        """Return whether the package of its messages is installed."""
        return self._publisher is not None

    def begin(self) -> None:
        """Announce from now on that the node is active, unless that is announced already."""
        if self.is_possible and self._tick is None:
            self._instance = str(uuid.uuid4())
            self._tick = self._node.ticks.every(BOND_PERIOD_S, lambda: self._say(True))
            self._say(True)

    def end(self) -> None:
        """Announce that the node is no longer active."""
        if self._tick is not None:
            self._node.ticks.end(self._tick)
            self._tick = None
            self._say(False)

    def _say(self, active: bool) -> None:
        if not self._publisher.get_subscription_count():
            return
        message = BondStatus(id=self._node.get_name(), instance_id=self._instance, active=active)
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.heartbeat_timeout, message.heartbeat_period = BOND_TIMEOUT_S, BOND_PERIOD_S
        self._publisher.publish(message)
