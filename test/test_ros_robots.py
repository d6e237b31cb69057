# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several robots of one `llm`: each in its own namespace is answered as by a node of its own."""

import signal
from pathlib import Path

import pytest
import yaml
from rclpy.qos import QoSProfile
from ros_graph import BLIND, Process

from minicpmo_ros.errors import InputError
from minicpmo_ros.msg import Answer, AudioEmbedding, ImageEmbedding, Status
from minicpmo_ros.ros.framework.lifecycle import LATCHED
from minicpmo_ros.ros.robots import robot_namespaces
from minicpmo_ros.srv import AddAlert, Ask, ListAlerts

CLIPS = Path(__file__).parents[1] / 'demo' / 'clips'
ASKED = (
    'what color is the shape now?',
    'what shape is shown now?',
    'how many shapes are shown now?',
    'what do you hear now?',
    'what color was the shape one second ago?',
)
# Nothing of the stream is lost or left out, however busy the machine is.
PATIENT = ('-p', 'unit_deadline:=60.0', '-p', 'wait_for:=both', '-p', 'max_backlog:=100')
COMMON = ('-p', 'n_ctx:=2048', '-p', 'threads:=1', '-p', 'max_tokens:=16', *PATIENT)


def start(graph, executable, *arguments, below=''):
    """Start an executable in a namespace below the graph's."""
    namespace = f'{graph.namespace}{below}'
    common = ('-r', f'__ns:={namespace}', '--params-file', str(BLIND))
    process = Process(graph.log_dir, executable, *common, *arguments)
    graph.processes.append(process)
    return process


def start_robots(graph, *arguments):
    return start(graph, 'llm', '-p', 'robots:=[a, b]', *COMMON, *arguments)


class Llm:
    """What the test knows of one node llm."""

    def __init__(self, graph, name):
        self._graph, self.name, self.statuses = graph, name, []
        graph.create_subscription(Status, f'{name}/status', self.statuses.append, LATCHED)
        self._client = graph.create_client(Ask, f'{name}/ask', qos_profile=QoSProfile(depth=256))

    @property
    def seconds(self):
        return tuple(self.statuses[-1].seconds) if self.statuses else ()

    def wait(self, state=Status.READY):
        self._graph.spin_until(
            lambda: self.statuses and self.statuses[-1].state == state, f'{self.name}: {state}'
        )
        return self.statuses[-1]

    def ask(self, question):
        self._graph.spin_until(self._client.service_is_ready, f'{self.name}/ask')
        return self._client.call_async(Ask.Request(question=question))

    def call(self, kind, service, request):
        client = self._graph.create_client(kind, f'{self.name}/{service}')
        self._graph.spin_until(client.service_is_ready, service)
        return self._graph.result_of(client.call_async(request), service)


def lossless(graph, below):
    topics = {
        'image/compressed': ('depth:=20', 'reliability:=reliable'),
        'audio': ('reliability:=reliable',),
    }
    return [
        part
        for topic, policies in topics.items()
        for policy in policies
        for part in ('-p', f'qos_overrides.{graph.namespace}{below}/{topic}.subscription.{policy}')
    ]  # fmt: skip


def start_player(graph, below, clip):
    return start(
        graph, 'media_player', '-p', f'file:={CLIPS / clip}', '-p', 'exit_at_end:=true', '-p',
        'wait_for_subscribers:=true', below=below,
    )  # fmt: skip


def ask_on_the_same(graph, llms, question):
    """Ask all, again where a second has come between, and give the answers."""
    while True:
        asked = [llm.ask(question) for llm in llms]
        replies = [graph.result_of(future, question) for future in asked]
        assert all(reply.success for reply in replies), replies
        answers, n = [reply.answer for reply in replies], len(llms) // 2
        rests_on = [(answer.units, answer.window_end) for answer in answers]
        if rests_on[:n] == rests_on[n:]:
            return answers


def compare(graph, alone, robots):
    """Ask all at once when they have seen the same; return the texts of each robot."""
    for one, other in zip(alone, robots):
        graph.spin_until(
            lambda one=one, other=other: one.seconds == other.seconds and len(one.seconds) > 1,
            f'the same seconds, {one.seconds} and {other.seconds}',
        )
    said = []
    for question in ASKED:
        texts = [answer.text for answer in ask_on_the_same(graph, (*alone, *robots), question)]
        assert texts[: len(alone)] == texts[len(alone) :]
        said.append(texts[: len(alone)])
    return list(zip(*said))


def test_two_robots_of_one_engine_get_the_answers_that_they_get_alone(graph):
    """Each has a `live` of its own, whose llm hears and sees the same embeddings."""
    encoders = []
    for below in ('/a', '/b'):
        arguments = ('-r', 'llm:__node:=alone', *COMMON, *lossless(graph, below))
        encoders.append(start(graph, 'live', *arguments, below=below))
    server = start_robots(graph)
    alone, robots = [
        [Llm(graph, f'{robot}/{name}') for robot in 'ab'] for name in ('alone', 'llm')
    ]
    for llm in (*alone, *robots):
        llm.wait()
    answers = []
    graph.create_subscription(Answer, 'b/llm/answer', answers.append, 100)
    clips = {'/a': '000.mcap', '/b': '005.mcap'}
    players = [start_player(graph, below, clip) for below, clip in clips.items()]
    for player in players:
        graph.spin_until(lambda player=player: not player.is_running, 'the end of a clip')
        assert player.popen.returncode == 0, player.log
    said = compare(graph, alone, robots)
    assert said[0] != said[1] and len({*said[0], *said[1]}) > 3
    graph.spin_until(lambda: len(answers) >= len(ASKED), 'the answers of b on its topic')
    assert set(said[1]) <= {answer.text for answer in answers}

    # The rules of one are not those of the other.
    request = AddAlert.Request()
    request.rule.id, request.rule.question = 'red', 'is the shape red?'
    request.rule.positive, request.rule.negative = ['yes'], ['no']
    added = robots[0].call(AddAlert, 'add_alert', request)
    assert added.success, added.reason
    listed = [llm.call(ListAlerts, 'list_alerts', ListAlerts.Request()) for llm in robots]
    assert [len(reply.rules) for reply in listed] == [1, 0]

    # Without the encoders of a, b goes on.
    encoders[0].end(signal.SIGKILL)
    player = start_player(graph, '/b', '007.mcap')
    seconds, before = len(robots[1].seconds), robots[0].seconds
    graph.spin_until(lambda: not player.is_running, 'the end of a clip')
    graph.spin_until(lambda: len(robots[1].seconds) > seconds + 1, 'more seconds of b')
    compare(graph, alone[1:], robots[1:])
    assert robots[0].seconds == before
    assert server.end() == 0 and 'Traceback' not in server.log


def test_a_robot_is_released_and_comes_back_while_another_is_asked(graph):
    server = start_robots(graph)
    first, second = Llm(graph, 'a/llm'), Llm(graph, 'b/llm')
    for llm in (first, second):
        llm.wait()
    before = graph.result_of(second.ask('what?'), 'an answer').answer.text
    for transition in ('deactivate', 'cleanup'):
        assert graph.change_state('a/llm', transition)
    first.wait(Status.UNLOADED)
    assert not graph.result_of(first.ask('what?'), 'a refusal').success
    assert graph.result_of(second.ask('what?'), 'an answer').answer.text == before
    for transition in ('configure', 'activate'):
        assert graph.change_state('a/llm', transition)
    first.wait()
    assert graph.result_of(first.ask('what?'), 'an answer').answer.text == before
    assert server.end() == 0 and 'Traceback' not in server.log


def test_embeddings_of_another_model_are_their_robots_alone(graph, tmp_path):
    start_robots(graph)
    first, second = Llm(graph, 'a/llm'), Llm(graph, 'b/llm')
    for llm in (first, second):
        llm.wait()
    publishers = [
        graph.create_publisher(kind, f'a/{topic}/embedding', 10)
        for kind, topic in (
            (AudioEmbedding, 'streaming_encoder'),
            (ImageEmbedding, 'vision_encoder'),
        )
    ]
    graph.spin_until(
        lambda: all(publisher.get_subscription_count() for publisher in publishers), 'the llm'
    )
    publishers[0].publish(AudioEmbedding(model='another', second=7))
    publishers[1].publish(ImageEmbedding(model='another', second=7))
    graph.spin_until(lambda: first.statuses[-1].refused == 2, 'two refusals')
    assert second.statuses[-1].refused == 0


def reason_of_the_one_that_is_refused(graph):
    """Wait until one of the two robots is ready and the other has failed; return why."""
    llms = [Llm(graph, f'{robot}/llm') for robot in 'ab']

    def both():
        newest = [llm.statuses[-1] for llm in llms if llm.statuses]
        states = {status.state: status for status in newest}
        return states if set(states) == {Status.READY, Status.FAILED} else None

    return graph.spin_until(both, 'one that is ready, one that is refused')[Status.FAILED].reason


@pytest.mark.parametrize(
    'given',
    [
        ('memory.enabled:=true', 'memory.path:={}/notes.db'),
        ('memory.black_box_s:=10', 'memory.black_box_path:={}/box.session'),
    ],
)
def test_two_robots_do_not_write_one_file(graph, tmp_path, given):
    start_robots(graph, *(part for one in given for part in ('-p', one.format(tmp_path))))
    assert 'a file has one writer' in reason_of_the_one_that_is_refused(graph)


@pytest.mark.parametrize('spelling', ['link/rules.yaml', 'one/../one/rules.yaml'])
def test_a_file_that_is_spelled_in_two_ways_has_one_writer(graph, tmp_path, spelling):
    (tmp_path / 'one').mkdir()
    (tmp_path / 'link').symlink_to('one')
    paths = {'a': tmp_path / 'one' / 'rules.yaml', 'b': tmp_path / spelling}
    given = {
        f'/**/{robot}/llm': {'ros__parameters': {'alerts.persist': True, 'alerts.file': str(path)}}
        for robot, path in paths.items()
    }
    (tmp_path / 'robots.yaml').write_text(yaml.safe_dump(given))
    start_robots(graph, '--params-file', str(tmp_path / 'robots.yaml'))
    assert 'a file has one writer' in reason_of_the_one_that_is_refused(graph)


def test_what_robots_share_must_be_given_to_all_alike(graph, tmp_path):
    path = tmp_path / 'given.yaml'
    path.write_text(f'{graph.namespace}/b/llm:\n  ros__parameters:\n    n_ubatch: 64\n')
    start_robots(graph, '--params-file', str(path))
    reason = reason_of_the_one_that_is_refused(graph)
    assert 'n_ubatch is ' in reason and '/**/llm' in reason


def test_a_process_that_encodes_refuses_several_robots(graph):
    start(graph, 'live', '-p', 'robots:=[a, b]')
    llm = Llm(graph, 'llm')
    reason = llm.wait(Status.FAILED).reason
    assert "robots is ['a', 'b']" in reason and 'Start executable llm' in reason


@pytest.mark.parametrize(
    'given, base, found',
    [
        ([''], '/', ()),
        (['a', 'b'], '/', ('/a', '/b')),
        (['a', '/b', ''], '/site', ('/site/a', '/b')),
        (['a/left'], '/', ('/a/left',)),
    ],
)
def test_namespaces_are_those_below_the_process(given, base, found):
    assert robot_namespaces(given, base) == found


@pytest.mark.parametrize('given, why', [(['a b'], 'no namespace'), (['a', '/a'], 'twice')])
def test_namespaces_that_cannot_be_are_refused(given, why):
    with pytest.raises(InputError, match=why):
        robot_namespaces(given, '/')
