# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Standing questions on the real graph: what the core says of a recording, the nodes say of it."""

import dataclasses
import math
import signal
import time
from types import SimpleNamespace

import pytest
import yaml
from rclpy.clock import Clock
from rclpy.qos import QoSProfile
from ros_source import FIRST, SimulatedTime, Source
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from test_nano_graph import play

from benchmarks import alert_truth as demo
from minicpmo_ros.alerts.monitor import AlertReading, Condition
from minicpmo_ros.alerts.rules import AlertRule, make_rule, read_rules, write_rules
from minicpmo_ros.evaluation.alerts import watch_units
from minicpmo_ros.evaluation.bags.clip import Clip
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.runner import Core, CoreOptions
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.msg import (
    Alert,
    AlertState,
    AlertStates,
    AudioEmbedding,
    ImageEmbedding,
    InputClock,
    Status,
)
from minicpmo_ros.msg import AlertRule as RuleMessage
from minicpmo_ros.notes.store import NoteStore
from minicpmo_ros.ros.alerts import EVENT_QOS, AlertServer
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.messages import put_rows
from minicpmo_ros.srv import AddAlert, ListAlerts, PauseAlerts, RemoveAlert

NS = 10**9
CLIPS = ('002.mcap', '006.mcap', '008.mcap')  # 13 seconds
SHOWN = 'what color is the shape now?'
RULES = (
    dataclasses.replace(demo.RULES[0], picture=True, describe=SHOWN),  # square
    *demo.RULES[1:],
    AlertRule('shape', 'what shape is shown now?', on_change=True, answers=demo.SHAPES),
)


@pytest.fixture(scope='module')
def recording():
    """Give some clips as one, without a gap, from second FIRST on."""
    pictures, sound, begin_s = [], [], FIRST
    for name in CLIPS:
        clip = read_clip(demo.CLIPS / name)
        shift_ns = (begin_s - clip.first_s) * NS
        pictures += [dataclasses.replace(s, stamp_ns=s.stamp_ns + shift_ns) for s in clip.images]
        sound += [(stamp_ns + shift_ns, samples) for stamp_ns, samples in clip.audio]
        begin_s += math.ceil((clip.audio[-1][0] - clip.first_s * NS + 1) / NS)
    return Clip(tuple(pictures), tuple(sound))


@pytest.fixture(scope='module')
def core():
    core = Core(ModelDirectory.open(demo.NANO), CoreOptions(device='cpu', max_forks=8))
    yield core
    core.close()


@pytest.fixture(scope='module')
def watched(core, recording):
    """Give the core's WatchedSeconds of it."""
    return list(watch_units(core, RULES, core.stream(recording)))


@pytest.fixture(scope='module')
def expected(watched):
    """Give what the core tells: (rule, kind, end of the second, begin, at_start, text)."""
    return [
        (e.rule, int(e.kind), e.at_s, e.begin_s, e.at_start, e.text)
        for second in watched
        for e in second.events
    ]


class Listener:
    """Everything that an llm node tells of its standing questions, and its services."""

    def __init__(self, graph):
        self._graph = graph
        self.alerts, self.states, self.flags = [], [], {}
        graph.create_subscription(Alert, 'llm/alerts', self.alerts.append, EVENT_QOS)
        graph.create_subscription(AlertStates, 'llm/alerts/state', self.states.append, LATCHED)
        for rule in demo.RULES:
            heard = self.flags.setdefault(rule.id, [])
            topic = f'llm/alerts/{rule.id}'
            graph.create_subscription(Bool, topic, lambda m, h=heard: h.append(m.data), LATCHED)
        self._clients = {
            name: graph.create_client(kind, f'llm/{name}')
            for name, kind in (
                ('add_alert', AddAlert), ('remove_alert', RemoveAlert),
                ('list_alerts', ListAlerts), ('pause_alerts', PauseAlerts), ('reset', Trigger),
            )
        }  # fmt: skip

    def call(self, name: str, **fields):
        client = self._clients[name]
        self._graph.spin_until(client.service_is_ready, name)
        request = client.srv_type.Request(**fields)
        return self._graph.result_of(client.call_async(request), name)

    def find_again(self) -> None:
        """Wait until the node that follows a killed one answers."""
        self._graph.until_answered(self._clients['list_alerts'])

    def of_kind(self, *kinds) -> list:
        return [alert for alert in self.alerts if alert.kind in kinds]

    def state(self, rule: str) -> AlertState:
        return next(one for one in self.states[-1].alerts if one.rule == rule)


def seconds(time) -> float:
    return time.sec + time.nanosec / NS


def facts(alert: Alert) -> tuple:
    return (
        alert.rule, alert.kind, seconds(alert.header.stamp), seconds(alert.begin), alert.at_start,
        alert.text,
    )  # fmt: skip


def check_states(listener, watched) -> None:
    """Every state that was published is that of the core after as many seconds."""
    of_core = {rule.id: [one for one in watched if one.rule == rule.id] for rule in RULES}
    n_compared = 0
    for message in listener.states:
        for one in message.alerts:
            if n_seconds := one.evaluated + one.reused:
                core = of_core[one.rule][n_seconds - 1]
                assert one.state == getattr(AlertState, Condition(core.state).name), (one, core)
                assert (one.probability, one.mass) == pytest.approx(
                    (core.probability, core.mass), abs=1e-3
                )
                n_compared += 1
    assert n_compared >= len(RULES) * 2


def test_the_graph_tells_what_the_core_tells_and_survives_a_kill(
    graph, recording, watched, expected, tmp_path
):
    path = tmp_path / 'rules.yaml'
    write_rules(path, RULES)
    rules = ('-p', f'alerts.file:={path}', '-p', 'alerts.persist:=true')
    arguments = ('-p', 'model_dir:=nano', '-p', 'use_sim_time:=true', '-p', 'unit_deadline:=30.0')
    unlimited = ('-p', 'alerts.budget_ms:=0.0')
    # Refused by the encoder, which the description tells.
    looks = ('-p', 'alerts.look:=sharp', '-p', 'vision.look_tiles:=0')
    database = tmp_path / 'day.db'
    notes = '-p', 'memory.enabled:=true', '-p', f'memory.path:={database}'
    more = *unlimited, *looks, *notes, '-p', 'memory.every_s:=0'
    live = graph.start('live', *arguments, *rules, *more, *graph.lossless)
    listener = Listener(graph)
    graph.wait_ready()
    source, simulated = Source(graph), SimulatedTime(graph)
    source.wait_heard()
    simulated.wait_known()

    play(graph, source, simulated, recording, FIRST)
    described = Alert.DESCRIBED
    n_described = sum((rule, kind) == ('square', 0) for rule, kind, *_ in expected)
    simulated.until(lambda: len(listener.of_kind(described)) == n_described, 'the descriptions')
    simulated.until(lambda: len(listener.alerts) == len(expected) + n_described, 'all events')
    told = [facts(alert) for alert in listener.alerts if alert.kind != described]
    assert told == expected
    n_each = len(watched) // len(RULES)

    def are_judged() -> bool:
        states = listener.states[-1].alerts
        return all(one.evaluated + one.reused == n_each for one in states)

    simulated.until(are_judged, 'all seconds to be judged')
    check_states(listener, watched)
    assert sum(kind == Alert.BEGIN for _, kind, *_ in told) >= 5
    assert [one.rule for one in listener.states[-1].alerts] == [rule.id for rule in RULES]
    for rule in demo.RULES:  # without them, a robot's conditions would need our messages
        holds = listener.state(rule.id).state == AlertState.ACTIVE
        simulated.until(lambda r=rule, h=holds: listener.flags[r.id][-1:] == [h], 'the flag')

    begins = [a for a in listener.of_kind(Alert.BEGIN) if a.rule == 'square']
    sent = {shot.stamp_ns: shot.compressed()[1] for shot in recording.images}
    for alert in begins:
        second = alert.header.stamp.sec - 1
        newest = max(stamp_ns for stamp_ns in sent if stamp_ns // NS == second)
        assert bytes(alert.picture.data) == sent[newest]
    assert not any(len(a.picture.data) for a in listener.alerts if a.rule != 'square')
    texts = {seconds(a.begin): a.text for a in listener.of_kind(described)}
    assert texts.keys() == {seconds(a.begin) for a in begins}
    assert all(text in demo.COLORS for text in texts.values())
    assert all('not looked at closer' in a.reason for a in listener.of_kind(described))

    check_services(listener, path)

    listener.alerts.clear()
    active = {r.id for r in RULES[1:] if listener.state(r.id).state == AlertState.ACTIVE}
    assert listener.call('reset').success
    simulated.until(
        lambda: {alert.rule for alert in listener.alerts} >= active, 'what the reset ends'
    )
    ended = {a.rule: a for a in listener.alerts if a.rule in active}
    assert all(a.reason == 'lost sight: the window was reset' for a in ended.values())
    assert all(a.kind == (3 if name == 'shape' else 2) for name, a in ended.items())

    live.end(signal.SIGKILL)
    check_notes(database, expected)
    before = read_rules(path)
    graph.forget_statuses()
    graph.start('llm', '-p', 'model_dir:=nano', *rules)
    graph.wait_ready()
    listener.find_again()
    assert [rule.id for rule in before] == [r.id for r in RULES[1:]] + ['late']
    listed = listener.call('list_alerts')
    assert [rule.id for rule in listed.rules] == [rule.id for rule in before]
    assert all(one.state == AlertState.UNKNOWN for one in listed.states)


def check_notes(database, expected) -> None:
    """Each alert is a note; those that begin can be looked at again."""
    with NoteStore(database, is_read_only=True) as store:
        notes = store.list()
        assert len(notes) >= len(expected)
        kept = [note for note in notes if note.snapshot]
        assert len(kept) >= 5 and all(' begin' in note.text for note in kept)
        assert all(store.snapshot(note.id).unit.second + 1 == note.end_s for note in kept)


class Encoders:
    """Stands for both encoders of a live graph: gives the llm what the core has encoded."""

    def __init__(self, graph, core):
        self._graph, self._core = graph, core
        self._space = core.model.space
        self._images, self._audio = (
            graph.create_publisher(kind, f'{sense}_embedding', QoSProfile(depth=32))
            for kind, sense in ((ImageEmbedding, 'image'), (AudioEmbedding, 'audio'))
        )
        for publisher in (self._images, self._audio):
            graph.spin_until(publisher.get_subscription_count, 'the llm')

    def play(self, units, begin_s: int) -> int:
        """Give units as those of the seconds from begin_s on, each when the last one is read."""
        for second, unit in enumerate(units, begin_s):
            before = self._graph.status.units_read
            image = ImageEmbedding(model=self._space, second=second)
            image.tiles_wide, image.tiles_high = unit.tiles
            audio = AudioEmbedding(model=self._space, second=second)
            audio.level_dbfs = unit.level_dbfs
            for message, rows, publisher in (
                (image, unit.image_rows, self._images),
                (audio, unit.audio_rows, self._audio),
            ):
                put_rows(message, rows)
                publisher.publish(message)
            self._graph.spin_until(
                lambda n=before: self._graph.status.units_read > n, f'second {second} to be read'
            )
        return begin_s + len(units)


def test_of_gaps_clocks_that_jump_and_scenes_that_stay_exactly_this_is_told(graph, core, tmp_path):
    path = tmp_path / 'rules.yaml'
    write_rules(path, demo.RULES)
    rules = ('-p', f'alerts.file:={path}', '-p', 'alerts.budget_ms:=0.0')
    graph.start('llm', '-p', 'model_dir:=nano', '-p', 'unit_deadline:=30.0', *rules)
    graph.wait_ready()
    listener, encoders = Listener(graph), Encoders(graph, core)
    hour_s, n_seconds = 3600, 0

    def play(clip: str, begin_s: int, n_still: int = 0) -> tuple:
        nonlocal n_seconds
        units = list(core.stream(read_clip(demo.CLIPS / f'{clip}.mcap')))
        units += [dataclasses.replace(units[-1], level_dbfs=-70.0)] * n_still
        n_seconds += len(units)
        return begin_s, encoders.play(units, begin_s)

    star_s, gone_s = play('021', FIRST)  # a yellow star, a blue one, and nothing for a while
    square_s, set_back_s = play('013', gone_s + 9)  # squares, white and black
    black_s, set_ahead_s = play('010', set_back_s - hour_s)  # a black triangle, then
    red_s = black_s + 1  # a red square, a black one, and a cross
    # A red circle for 7 s, a blue one, and it stays there for 8 s without a sound.
    circle_s, _ = play('016', set_ahead_s + hour_s, n_still=8)
    blue_s = circle_s + 7
    begin, end, unknown = Alert.BEGIN, Alert.END, Alert.UNKNOWN
    unread, went_back = 'lost sight: nothing was read for 3 s', 'lost sight: time went back'
    expected = [  # rule, kind, end of the second, begin of the condition, at_start, reason
        ('star', begin, star_s + 1, star_s, True, ''),
        ('blue', begin, star_s + 2, star_s + 1, False, ''),
        ('square', unknown, gone_s + 3, 0, False, unread),
        ('star', end, gone_s + 3, star_s, False, unread),
        ('red', unknown, gone_s + 3, 0, False, unread),
        ('blue', end, gone_s + 3, star_s + 1, False, unread),
        ('square', begin, square_s + 1, square_s, True, ''),
        ('square', end, set_back_s, square_s, False, went_back),
        ('star', unknown, set_back_s, 0, False, went_back),
        ('red', unknown, set_back_s, 0, False, went_back),
        ('blue', unknown, set_back_s, 0, False, went_back),
        ('square', begin, red_s + 1, red_s, False, ''),
        ('red', begin, red_s + 1, red_s, False, ''),
        ('red', end, red_s + 2, red_s, False, ''),
        ('square', end, red_s + 3, red_s, False, ''),
        ('square', unknown, set_ahead_s + 3, red_s, False, unread),
        ('star', unknown, set_ahead_s + 3, 0, False, unread),
        ('red', unknown, set_ahead_s + 3, red_s, False, unread),
        ('blue', unknown, set_ahead_s + 3, 0, False, unread),
        ('red', begin, circle_s + 1, circle_s, True, ''),
        ('red', end, blue_s + 1, circle_s, False, ''),
        ('blue', begin, blue_s + 1, blue_s, False, ''),
    ]

    def are_judged() -> bool:
        states = listener.states[-1].alerts
        return all(one.evaluated + one.reused == n_seconds for one in states)

    graph.spin_until(are_judged, 'all seconds to be judged')
    graph.spin_until(lambda: len(listener.alerts) >= len(expected), 'all events')
    assert [(*facts(alert)[:5], alert.reason) for alert in listener.alerts] == expected
    # Of the quiet seconds only the first, in which the sound ended, was asked about.
    assert [one.reused for one in listener.states[-1].alerts] == [7] * len(demo.RULES)


def test_a_rule_that_is_added_to_a_node_without_any_is_asked(graph, core):
    llm = graph.start('llm', '-p', 'model_dir:=nano', '-p', 'unit_deadline:=30.0')
    graph.wait_ready()
    listener, encoders = Listener(graph), Encoders(graph, core)
    square = RuleMessage(id='square', question=demo.RULES[0].question)
    square.positive, square.negative = demo.RULES[0].positive, demo.RULES[0].negative
    square.picture = True
    assert listener.call('add_alert', rule=square).success
    encoders.play(list(core.stream(read_clip(demo.CLIPS / '013.mcap')))[:1], FIRST)
    graph.spin_until(lambda: listener.alerts, 'an event')
    assert [(one.rule, one.kind) for one in listener.alerts] == [('square', Alert.BEGIN)]
    graph.spin_until(lambda: listener.state('square').evaluated == 1, 'the state')
    assert 'alert square has no picture' in llm.log and not listener.alerts[0].picture.data


def test_a_picture_is_of_the_second_in_which_its_encoder_has_it(graph, core):
    """The stamps of this camera are of another clock, so its encoder dates it by arrival."""
    graph.start('llm', '-p', 'model_dir:=nano', '-p', 'unit_deadline:=30.0')
    graph.wait_ready()
    listener, encoders = Listener(graph), Encoders(graph, core)
    clock = graph.create_publisher(InputClock, 'input_clock', QoSProfile(depth=10))
    images = graph.create_publisher(CompressedImage, 'image/compressed', QoSProfile(depth=10))
    square = RuleMessage(id='square', question=demo.RULES[0].question, picture=True)
    square.positive, square.negative = demo.RULES[0].positive, demo.RULES[0].negative
    assert listener.call('add_alert', rule=square).success
    for publisher in (clock, images):
        graph.spin_until(publisher.get_subscription_count, 'the llm to listen')
    clock.publish(InputClock(input='image', arrival=True))
    begin_s, shown = int(time.time()), CompressedImage(format='jpeg', data=b'shown')
    graph.spin_until(lambda: images.publish(shown) or time.time() > begin_s + 4, 'some seconds')
    encoders.play(list(core.stream(read_clip(demo.CLIPS / '013.mcap')))[:1], begin_s + 2)
    graph.spin_until(lambda: listener.alerts, 'an event')
    assert bytes(listener.alerts[0].picture.data) == b'shown'


def test_a_rule_that_the_model_cannot_read_is_refused_and_leaves_the_others(graph):
    graph.start('llm', '-p', 'model_dir:=nano')
    graph.wait_ready()
    listener = Listener(graph)
    assert listener.call('add_alert', rule=RuleMessage(id='one', question='Is it?')).success
    long = RuleMessage(id='one', question='Is it so? ' * 400)
    refused = listener.call('add_alert', rule=long, replace=True)
    assert not refused.success and 'at most 384 are allowed' in refused.reason
    assert [rule.question for rule in listener.call('list_alerts').rules] == ['Is it?']
    graph.change_state('llm', 'deactivate')
    graph.change_state('llm', 'cleanup')
    unknown = listener.call('add_alert', rule=long, replace=True)
    assert unknown.success and 'No model is loaded yet' in unknown.reason


def check_services(listener, path) -> None:
    """Change the rules by services; the file follows."""
    late = RuleMessage(id='late', question='what shape is shown now?', on_threshold=0.9)
    late.positive, late.negative = ['ring'], ['star']
    refused = listener.call('add_alert', rule=RuleMessage(id='square', question='x'))
    assert not refused.success and "an alert 'square' already" in refused.reason
    wrong = listener.call('add_alert', rule=RuleMessage(id='a b', question='x'))
    assert not wrong.success and "id is 'a b', a name of letters" in wrong.reason
    assert [rule.id for rule in read_rules(path)] == [rule.id for rule in RULES]
    assert listener.call('add_alert', rule=late).success
    assert read_rules(path)[-1] == AlertRule(
        'late', 'what shape is shown now?', ('ring',), ('star',), on=0.9
    )
    listed = listener.call('list_alerts')
    newest = listed.rules[-1]
    assert (newest.id, newest.positive, newest.period_s) == ('late', ['ring'], 1.0)
    assert newest.on_threshold == pytest.approx(0.9) and len(listed.states) == len(RULES) + 1
    assert listener.call('remove_alert', id='square').success
    missing = listener.call('remove_alert', id='square')
    assert not missing.success and "There is no alert 'square'" in missing.reason
    assert 'square' not in path.read_text().split('question')[0]
    assert listener.call('pause_alerts', id='late', paused=True).success
    assert listener.call('list_alerts').states[-1].paused
    assert not listener.call('pause_alerts', id='none', paused=True).success


def test_rules_that_are_wrong_are_told_and_leave_the_node_unconfigured(graph, tmp_path):
    path = tmp_path / 'rules.yaml'
    path.write_text('format: minicpmo_ros alerts 1\nalerts: [{id: fall, question: Q, on: high}]\n')
    graph.start('llm', '-p', 'model_dir:=nano', '-p', f'alerts.file:={path}')
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'the refusal'
    )
    assert "alert 1 ('fall'): on is 'high', a number from 0 to 1" in graph.status.reason
    listener = Listener(graph)
    added = listener.call('add_alert', rule=RuleMessage(id='other', question='Is it?'))
    assert added.success and 'It is lost when the process ends' in added.reason
    path.write_text(yaml.safe_dump({'format': 'minicpmo_ros alerts 1', 'alerts': []}))
    assert graph.change_state('llm', 'configure')
    graph.wait_ready()
    assert [rule.id for rule in listener.call('list_alerts').rules] == ['other']


def test_a_change_that_is_not_kept_holds_until_the_file_says_something_else(tmp_path):
    path = tmp_path / 'rules.yaml'
    rules = [make_rule({'id': name, 'question': f'{name}?'}) for name in 'abc']
    write_rules(path, rules)
    node = Services(alerts_file=str(path), alerts_persist=False)

    def configured() -> dict:
        node.server.set_up(node.table.values())
        return {rule.id: rule.question for rule in node.server.watch.rules}

    for name in 'ad':
        rule = RuleMessage(id=name, question='other?')
        assert node.calls['~/add_alert'](rule=rule, replace=True).success
    assert node.calls['~/remove_alert'](id='b').success
    for _ in range(2):
        assert configured() == {'a': 'other?', 'c': 'c?', 'd': 'other?'}
    write_rules(path, [dataclasses.replace(rule, question='edited?') for rule in rules])
    assert configured() == {'a': 'edited?', 'b': 'edited?', 'c': 'edited?', 'd': 'other?'}


class Services:
    """Stands for a node whose alert services the test calls, and what it publishes."""

    engine, state, notes = None, 'active', SimpleNamespace(note_alert=print)

    def __init__(self, **options):
        self.published, self.calls, self.topics = [], {}, self
        options = SimpleNamespace(
            alerts_max_rules=8, alerts_budget_ms=0, alerts_quiet_dbfs=-60, **options
        )
        self.table = SimpleNamespace(values=lambda: options)
        self.publish = lambda kind, name, qos: SimpleNamespace(publish=self.published.append)
        self.server = AlertServer(self)
        self.server.set_up(options)

    def create_service(self, kind, name, callback):
        self.calls[name] = lambda **fields: callback(kind.Request(**fields), kind.Response())

    def destroy_publisher(self, publisher):
        pass

    def get_clock(self):
        return Clock()


def test_a_change_that_cannot_be_kept_is_refused_and_ends_goes_on_and_moves_nothing(tmp_path):
    path = tmp_path / 'rules.yaml'
    write_rules(path, [make_rule({'id': name, 'question': 'Q'}) for name in 'abc'])
    node = Services(alerts_file=str(path), alerts_persist=True)
    watch = node.server.watch
    node.calls['~/pause_alerts'](id='b', paused=True)
    watch.begin_second(FIRST, {'image'})
    watch.end_second({'a': AlertReading(3.0)})
    before, told = watch.states(), [m for m in node.published if type(m) is Alert]
    assert before[0].state is Condition.ACTIVE and before[1].paused
    path.write_text(path.read_text() + '# edited by hand')
    changes = [('remove_alert', dict(id=name)) for name in 'ab']
    changes += [
        ('add_alert', dict(rule=RuleMessage(id=name, question='other'), replace=True))
        for name in 'abd'
    ]
    for name, fields in changes:
        reply = node.calls[f'~/{name}'](**fields)
        assert not reply.success and 'Nothing is written over it' in reply.reason
        assert repr(watch.states()) == repr(before)  # nan is not nan
    assert [m for m in node.published if type(m) is Alert] == told


def test_a_service_writes_nothing_over_rules_that_could_not_be_read(graph, tmp_path):
    path = tmp_path / 'rules.yaml'
    path.write_text('format: minicpmo_ros alerts 1\nalerts: [{id: fall, question: Q, on: high}]\n')
    mine = path.read_bytes()
    keep = ('-p', f'alerts.file:={path}', '-p', 'alerts.persist:=true')
    graph.start('llm', '-p', 'model_dir:=nano', *keep)
    graph.spin_until(
        lambda: graph.status is not None and graph.status.state == Status.FAILED, 'the refusal'
    )
    listener = Listener(graph)
    added = listener.call('add_alert', rule=RuleMessage(id='other', question='Is it?'))
    assert not added.success and f'{path} holds what this node has not read' in added.reason
    assert path.read_bytes() == mine and not listener.call('list_alerts').rules
