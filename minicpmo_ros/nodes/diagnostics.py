# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What a node says about itself on /diagnostics, once a second, also while simulated time stands.

The node fills a `Report` (`ManagedNode.diagnose`). What all nodes have in common is told here:
the lifecycle state, how often and how long ago each input came, ends of a topic that do not fit
each other, another node of the same name, memory, and work that does not come to its end. WARN
and ERROR say what to do.
"""

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile

from minicpmo_ros.nodes.memory import rss_mib

QOS = QoSProfile(depth=10)
PERIOD_S = 1.0
RECENT_S = 10.0  # how long a loss is worth a warning
STILL_S = 5.0  # without input: a source that is on brings some each second


class Growth:
    """By how much counts have grown of late."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._histories = clock, {}  # key: [(monotonic, count)] of late

    def of(self, key: str, count: int) -> int:
        """Take a count; give by how much it has grown; one that is smaller began anew."""
        now_s = self._clock()
        history = self._histories.setdefault(key, [])
        history.append((now_s, count))
        while history[0][0] < now_s - RECENT_S or history[0][1] > count:
            history.pop(0)
        return count - history[0][1]


class Report:
    """One node's entry, as it is written."""

    def __init__(self, growth: Growth):
        self._growth = growth
        self.values = {}
        self.findings = []  # (level, text)

    def tell(self, key: str, value) -> None:
        """Add a figure."""
        self.values[key] = f'{value:.1f}' if isinstance(value, float) else str(value)

    def warn(self, text: str) -> None:
        """Say what is not as it should be, and what to do."""
        self.findings.append((DiagnosticStatus.WARN, text))

    def error(self, text: str) -> None:
        """Say what keeps the node from working, and what to do."""
        self.findings.append((DiagnosticStatus.ERROR, text))

    def count(self, key: str, count: int, text: str = '', least: int = 1) -> None:
        """Add a count; with a text, warn with it while it has grown by `least` of late."""
        self.tell(key, count)
        if text and (n := self._growth.of(key, count)) >= least:
            self.warn(f'{n} {key} of late: {text}')


class Diagnostics:
    """Publishes a node's report; `role` names the entry."""

    def __init__(self, node, role: str):
        self._node, self._role = node, role
        self._growth = Growth()
        self._is_stuck = False
        self._publisher = node.topics.publish(
            DiagnosticArray, '/diagnostics', QoSProfile(depth=10)
        )
        node.steady_timer(PERIOD_S, self._publish)

    def _publish(self) -> None:
        array = DiagnosticArray(status=[self.entry()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def entry(self) -> DiagnosticStatus:
        """Give what there is to say now."""
        node, report = self._node, Report(self._growth)
        state = node.state
        report.tell('state', state)
        node.diagnose(report)
        self._diagnose_inputs(report, state)
        for problem in node.topics.problems():
            report.warn(problem)
        self._diagnose_name(report)
        self._diagnose_work(report)
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
        flows = self._node.topics.flows
        for topic, flow in flows.items():
            report.tell(f'{topic} rate [1/s]', flow.rate_hz())
            report.tell(f'{topic} age [s]', flow.age_s() if flow.count else 'none has come')
            report.tell(f'{topic} messages', flow.count)
        if state != 'active':
            return
        if not flows:
            names = ' or '.join(map(self._node.resolve_topic_name, self._node.INPUTS))
            report.warn(f'nobody publishes {names}: start the source, or remap the name')
        elif all(flow.age_s() > STILL_S for flow in flows.values()):
            age_s = min(flow.age_s() for flow in flows.values())
            report.warn(
                f'nothing has come on {" or ".join(flows)} for {age_s:.0f} s: look at the source '
                '(ros2 topic hz), and at its quality of service (ros2 topic info -v)'
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
