# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions of node `llm`: services that change the rules, topics that tell of them.

The engine evaluates the rules in its thread; what it found comes here by `post`, once for every
second that was read. All of this runs on the executor's thread.
"""

import math

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Bool

from minicpmo_ros.alerts.monitor import Condition, Event, Kind
from minicpmo_ros.alerts.reader import AlertAsker
from minicpmo_ros.alerts.rules import (
    LISTS,
    MOST_RULES,
    AlertRule,
    KeptRules,
    make_rule,
)
from minicpmo_ros.alerts.watch import AlertWatch, RuleStatus, Turns
from minicpmo_ros.config import LLM, LOOKS
from minicpmo_ros.errors import BusyError, Error
from minicpmo_ros.live.question import Question
from minicpmo_ros.msg import Alert, AlertStates
from minicpmo_ros.msg import AlertRule as RuleMessage
from minicpmo_ros.ros.framework.faults import Throttle
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.messages import alert_state_message, to_time
from minicpmo_ros.srv import AddAlert, ListAlerts, PauseAlerts, RemoveAlert
from minicpmo_ros.units import NS

ALERT_PARAMETERS = (
    Parameter('alerts.file', '', 'YAML file of standing questions; empty: none'),
    Parameter('alerts.persist', False,
              'Rules that are added or removed by a service are written to alerts.file, which '
              'need not exist before; false: they are lost when the process ends'),
    Parameter('alerts.max_rules', LLM.max_rules,
              'The most standing questions; 0 saves their memory', '', 0, MOST_RULES),
    Parameter('alerts.budget_ms', 200.0,
              'Computing time for standing questions in every second. If it is too little for '
              'all, they take turns; 0: no limit', 'ms', 0.0, 1e6, when=ANY_TIME),
    Parameter('alerts.look', LOOKS[0],
              'How describe looks at the newest image when a rule begins: live (as the window has '
              'it), sharp (with all of the area) or tiles (also in tiles)',
              choices=LOOKS, when=ANY_TIME),
    Parameter('alerts.quiet_dbfs', LLM.quiet_dbfs,
              'A second of audio below this level (root mean square, relative to full scale) is '
              'quiet. If audio stays quiet and the image is unchanged, standing questions keep '
              'their answers and are not asked again, for ten of their periods at most', 'dB',
              -200.0, 0.0),
)  # fmt: skip
EVENT_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RENAMED = {'on': 'on_threshold', 'off': 'off_threshold'}  # in the message
DESCRIBE_TOKENS, DESCRIBE_TIMEOUT_S = 40, 60.0
LATE_PERIODS = 2  # between evaluations, in the mean: it is told that a rule has less than that
KEPT_IMAGES = 16  # of as many seconds
NOT_KEPT = 'It is lost when the process ends: set alerts.file and alerts.persist to keep it.'
NO_PICTURE = (
    'has no picture: no image of its second has come on image/compressed. With several cameras '
    'remap that of llm to one of them (docs/cameras.md); or publish compressed images'
)
UNLOADED = 'the model was unloaded'  # why sight was lost
NOT_CHECKED = (
    'No model is loaded yet: whether it can read the rule, problem in ~/alerts/state will tell.'
)


class AlertServer:
    """The rules of one node and what they say.

    `node` has `engine` (or None), `topics`, `table`, `post`, `now()`, the Instant by which
    seconds wait, `notes`, and `why_not_asked`.
    """

    def __init__(self, node):
        self._node = node
        self.watch, self._rules_file = AlertWatch(), None
        # By id: rules as the file had them last; as services left them since, None: removed.
        self._read, self._changes = {}, {}
        self._events = node.topics.publish(Alert, '~/alerts', EVENT_QOS)
        self._states = node.topics.publish(AlertStates, '~/alerts/state', LATCHED)
        self._flags = {}  # by id: [publisher of a Bool, what it said last]
        self._newest = None  # (end of the newest second, Instant when it was read)
        self._images, self._image_input = {}, None  # CompressedImage by second
        self._told = {}  # by id: the problem that was logged
        self._asker, self._throttle = AlertAsker(), Throttle()
        node.create_service(AddAlert, '~/add_alert', self._on_add)
        node.create_service(RemoveAlert, '~/remove_alert', self._on_remove)
        node.create_service(ListAlerts, '~/list_alerts', self._on_list)
        node.create_service(PauseAlerts, '~/pause_alerts', self._on_pause)

    # For the node.
    def set_up(self, options) -> AlertAsker:
        """Read the rules and return what an engine asks them with; raise InputError."""
        file = self._file(options)
        is_there = file is not None and (file.path.exists() or not options.alerts_persist)
        read = {rule.id: rule for rule in file.read()} if is_there else {}
        for name in self._changes.keys() & (read.keys() | self._read.keys()):
            if read.get(name) != self._read.get(name):  # somebody has edited it since
                del self._changes[name]
        self._read = read
        rules = [rule for rule in {**read, **self._changes}.values() if rule is not None]
        self._tell(self.watch.reset('the node was configured'))
        turns = Turns(_budget_ms(options))
        self.watch = AlertWatch(rules, turns, options.alerts_max_rules)
        self._newest = None
        self._publish()
        asker = AlertAsker(
            self.watch,
            lambda events: self._node.post(lambda: self._on_events(asker, events)),
            options.alerts_quiet_dbfs,
        )
        self._asker = asker
        return asker

    def retune(self) -> None:
        """Apply the budget, which may change at any time."""
        self.watch.set_budget(_budget_ms(self._node.table.values()))

    def tick(self) -> None:
        """Lose sight if no second came for too long; once a second."""
        self.retune()
        events = []
        if self._newest is not None:
            end_s, read = self._newest
            waited_s = self._node.now().waited_s(read)
            slack_s = self._node.table.values().unit_deadline  # it may still be on its way
            events = self.watch.expire(end_s, waited_s - slack_s)
        self._tell(events)

    def release(self) -> None:
        """Lose sight because the engine ends."""
        self._newest = None
        self._asker = AlertAsker()  # the engine's own keeps its model until its thread ends
        self._tell(self.watch.reset(UNLOADED))

    def diagnose(self, report) -> None:
        """Report the rules, and those that cannot be evaluated."""
        states = self.watch.states()
        report.tell('standing questions', len(states))
        report.tell('standing questions that hold', sum(_holds(one) for one in states))
        report.tell('rows of all standing questions', self._asker.n_rows if states else 0)
        report.count(
            'seconds without standing questions by an unforeseen error',
            self._asker.failures,
            f'the newest: {self._asker.newest_failure}. The log says more',
        )
        for one in states:
            name = one.rule.id
            if one.period_s:
                report.tell(f'period of alert {name} [s]', one.period_s)
            if one.problem:
                report.warn(f'alert {name} cannot be evaluated: {one.problem}')
            elif one.period_s > LATE_PERIODS * one.rule.period_s:
                report.warn(
                    f'alert {name} is read every {one.period_s:.1f} s, not every '
                    f'{one.rule.period_s:g} s: raise alerts.budget_ms or its period_s, or remove '
                    'other alerts. Look at units dropped, too'
                )
            elif one.state is Condition.UNKNOWN and one.evaluated and not one.paused:
                report.warn(
                    f'alert {name} has lost sight: nothing is read in time, or the model would '
                    'say something else than its words. Look at ~/alerts, at units dropped and '
                    'at alerts.budget_ms'
                )

    def _on_events(self, asker: AlertAsker, events: list) -> None:
        """Tell what a second brought, or what was lost."""
        if asker.watch is not self.watch:
            return
        self._tell(events)
        if asker is self._asker:
            end_s = self.watch.newest_end_s
            self._newest = None if end_s is None else (end_s, self._node.now())
        else:  # the engine was told to end while it read this second
            self._tell(self.watch.reset(UNLOADED))

    # Services.
    def _on_add(self, request, response):
        def add():
            rule = _from_message(request.rule)
            not_checked = '' if self._asker.check(rule) else NOT_CHECKED
            not_kept = self._keep(self.watch.with_rule(rule, request.replace), rule.id)
            self._tell(self.watch.add(rule, request.replace))
            return not_checked, not_kept

        return self._changed(response, add)

    def _on_remove(self, request, response):
        def remove():
            not_kept = self._keep(self.watch.without(request.id), request.id)
            self._tell(self.watch.remove(request.id))
            return (not_kept,)

        return self._changed(response, remove)

    def _on_list(self, _, response):
        states = self.watch.states()
        response.rules = [_to_message(one.rule) for one in states]
        response.states = [alert_state_message(one) for one in states]
        return response

    def _on_pause(self, request, response):
        try:
            self._tell(self.watch.pause(request.id, request.paused))
            response.success = True
        except Error as error:
            response.reason = str(error)
        return response

    def _changed(self, response, change):
        """Let `change()` change the rules, or raise and change nothing; reply what it returns."""
        try:
            response.reason, response.success = ' '.join(filter(None, change())), True
        except Error as error:
            response.reason = str(error)
        self._publish()
        return response

    def _keep(self, rules: tuple, changed: str) -> str:
        """Write back the rules that are to be, one changed; return that nothing is kept, or ''."""
        by_id = {rule.id: rule for rule in rules}
        options = self._node.table.values()
        file = self._file(options) if options.alerts_persist else None
        if file is None:
            self._changes[changed] = by_id.get(changed)
            return NOT_KEPT
        file.write(rules)
        self._read, self._changes = by_id, {}
        return ''

    def _file(self, options) -> KeptRules | None:
        if not options.alerts_file:
            return None
        file = KeptRules(options.alerts_file)
        if self._rules_file is None or self._rules_file.path != file.path:
            self._rules_file = file
        return self._rules_file

    # Output.
    def _tell(self, events: list) -> None:
        """Publish events and what all rules say now."""
        for event in events:
            self._events.publish(self._message(event))
            rule = next((r for r in self.watch.rules if r.id == event.rule), None)
            if rule is not None:
                self._node.notes.note_alert(rule, event)
            if rule is not None and rule.describe and event.kind in (Kind.BEGIN, Kind.CHANGE):
                self._describe(rule, event)
        self._publish()

    def _publish(self) -> None:
        states = self.watch.states()
        if states or self._told:  # or there were rules the last time
            message = AlertStates(alerts=[alert_state_message(one) for one in states])
            message.header.stamp = self._node.get_clock().now().to_msg()
            self._states.publish(message)
        self._publish_flags(states)
        self._listen([one.rule for one in states])
        for one in states:
            if one.problem and self._told.get(one.rule.id) != one.problem:
                self._node.get_logger().warning(
                    f'alert {one.rule.id} cannot be evaluated: {one.problem}'
                )
        self._told = {one.rule.id: one.problem for one in states}

    def _publish_flags(self, states: list) -> None:
        """Publish a Bool for each rule with a threshold, when it changes."""
        wanted = {one.rule.id: _holds(one) for one in states if not one.rule.on_change}
        for name in self._flags.keys() - wanted.keys():
            publisher, _ = self._flags.pop(name)
            self._node.destroy_publisher(publisher)
        for name, holds in wanted.items():
            if name not in self._flags:
                publisher = self._node.topics.publish(Bool, f'~/alerts/{name}', LATCHED)
                self._flags[name] = [publisher, None]
            flag = self._flags[name]
            if flag[1] != holds:
                flag[1] = holds
                flag[0].publish(Bool(data=holds))

    def _message(self, event: Event) -> Alert:
        message = Alert(rule=event.rule, kind=int(event.kind))
        message.header.stamp = to_time(int(event.at_s * NS))
        message.probability, message.mass = event.probability, event.mass
        message.begin = to_time(int(event.begin_s * NS))
        self._set_window(message)
        message.at_start, message.text, message.reason = event.at_start, event.text, event.reason
        rule = next((rule for rule in self.watch.rules if rule.id == event.rule), None)
        if rule is not None and rule.picture and event.kind in (Kind.BEGIN, Kind.CHANGE):
            message.picture = self._picture_of(event)
        return message

    def _set_window(self, message: Alert) -> None:
        if self._node.engine is not None:
            status = self._node.engine.status()
            message.window_start = to_time(status.window_start_s * NS)
            message.window_end = to_time(status.window_end_s * NS)

    # A description.
    def _describe(self, rule: AlertRule, event: Event) -> None:
        """Ask what a rule wants described; the answer is told when it has come."""
        question = Question(
            rule.describe,
            max_tokens=DESCRIBE_TOKENS,
            timeout_s=DESCRIBE_TIMEOUT_S,
            look=self._node.get_parameter('alerts.look').value,
        )
        try:
            if reason := self._node.why_not_asked():
                raise BusyError(reason)
            self._node.looker.ask(
                question,
                CompressedImage(),
                on_delta=None,
                on_done=lambda answer: self._node.post(
                    lambda: self._tell_description(event, answer.text, answer.reason)
                ),
            )
        except Error as error:
            self._tell_description(event, '', str(error))
        except Exception as error:
            reason = self._node.faults.reason('describing an alert', error)
            self._tell_description(event, '', reason)

    def _tell_description(self, event: Event, text: str, reason: str) -> None:
        message = self._message(event)
        message.kind, message.picture = Alert.DESCRIBED, CompressedImage()
        message.text, message.reason = text, reason
        self._events.publish(message)

    # Pictures.
    def _listen(self, rules: list) -> None:
        """Subscribe to images while a rule wants them."""
        is_wanted = any(rule.picture for rule in rules) and self._node.state == 'active'
        if is_wanted and self._image_input is None:
            self._image_input = self._node.topics.subscribe(
                CompressedImage, 'image/compressed', self._on_image, qos_profile_sensor_data
            )
        elif not is_wanted and self._image_input is not None:
            self._node.topics.unsubscribe(self._image_input)
            self._image_input = None
            self._images.clear()

    def _picture_of(self, event: Event) -> CompressedImage:
        """Return the newest image of the second of an event; tell where there is none."""
        found = self._images.get(math.ceil(event.at_s) - 1)
        if found is None and self._throttle.allows('picture'):
            self._node.get_logger().warning(f'alert {event.rule} {NO_PICTURE}')
        return found or CompressedImage()

    def _on_image(self, message: CompressedImage) -> None:
        self._images[self._node.clocks.stamp_ns('image', message) // NS] = message
        while len(self._images) > KEPT_IMAGES:
            del self._images[next(iter(self._images))]


def _budget_ms(options) -> float:
    return options.alerts_budget_ms or math.inf


def _holds(status: RuleStatus) -> bool:
    return status.state is Condition.ACTIVE and not status.rule.on_change


def _from_message(message: RuleMessage) -> AlertRule:
    """Return the rule of a message; raises InputError."""
    entry = {}
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        own = next((short for short, long in RENAMED.items() if long == name), name)
        if isinstance(value, float) and math.isfinite(value):
            value = round(value, 6)  # 0.7 in 32 bits is 0.699999988
        entry[own] = list(value) if own in LISTS else value
    return make_rule(entry)


def _to_message(rule: AlertRule) -> RuleMessage:
    message = RuleMessage()
    for name in rule.__dataclass_fields__:
        value = getattr(rule, name)
        value = list(value) if name in LISTS else float(value) if type(value) is float else value
        kind = type(getattr(message, RENAMED.get(name, name)))
        setattr(message, RENAMED.get(name, name), kind(value))
    return message
