# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several processes in one graph: one that is killed and comes again, two robots side by side."""

import signal

from ros_graph import Graph
from ros_source import FIRST, Source
from test_ros_live import play

from minicpmo_ros.msg import Answer, ImageEmbedding
from minicpmo_ros.srv import Ask

ASK_AGAIN_S = 2.0  # a request that a dead server has swallowed is never answered
REMAPPED = ('-r', 'audio_embedding:=streaming_encoder/embedding',
            '-r', 'image_embedding:=vision_encoder/embedding')  # fmt: skip


def ask_until_answered(graph):
    """Ask as a client does that waits through a restart: again, until somebody answers."""
    futures = []

    def answered():
        return next((f.result() for f in futures if f.done() and f.result().success), None)

    while answered() is None:
        futures.append(graph.ask_client.call_async(Ask.Request(question='?', max_tokens=2)))
        try:
            graph.spin_until(lambda: futures[-1].done(), 'an answer', ASK_AGAIN_S)
        except AssertionError:
            assert len(futures) < 60
    return answered()


def test_a_killed_node_that_is_started_again_serves_as_before(graph, tiny_model_dir):
    common = ('-p', f'model_dir:={tiny_model_dir}', *graph.lossless)
    graph.start('streaming_encoder', *common)
    eye = graph.start('vision_encoder', *common)
    llm = graph.start('llm', *REMAPPED, *common)
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    play(graph, source, 2)

    llm.end(signal.SIGKILL)
    graph.forget_statuses()
    graph.start('llm', *REMAPPED, *common)
    assert ask_until_answered(graph).answer.text
    # Nobody told the encoders, and they need not know.
    graph.wait_ready()
    play(graph, source, 2, FIRST + 10)

    eye.end(signal.SIGKILL)
    seen = []
    graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', seen.append, 50)
    graph.start('vision_encoder', *common)
    seconds = iter(range(FIRST + 20, FIRST + 1000))
    graph.spin_until(lambda: seen or source.second(next(seconds)), 'a picture by the new one')
    before = graph.status.units_read
    graph.spin_until(
        lambda: graph.status.units_read > before + 1 or source.second(next(seconds)), 'units of it'
    )


def test_two_robots_in_one_graph_do_not_mix(ros_domain, graph, tiny_model_dir, tmp_path):
    robots = [Graph(tmp_path, f'{graph.namespace}/robot{i}') for i in (1, 2)]
    try:
        sources, answers = [], ([], [])
        for robot, heard in zip(robots, answers, strict=True):
            robot.start('live', '-p', f'model_dir:={tiny_model_dir}', *robot.lossless)
            robot.create_subscription(Answer, 'llm/answer', heard.append, 10)
        for robot in robots:
            robot.wait_ready()
            sources.append(Source(robot))
            sources[-1].wait_heard()
        play(robots[0], sources[0], 2)
        play(robots[1], sources[1], 1, FIRST + 1000)
        for robot, first in zip(robots, (FIRST, FIRST + 1000), strict=True):
            reply = robot.ask('Who are you?', max_tokens=2)
            assert reply.success and reply.answer.window_start.sec == first
        for robot, heard, first in zip(robots, answers, (FIRST, FIRST + 1000), strict=True):
            robot.spin_until(lambda heard=heard: heard, 'the answer')
            robot.lifecycle_state('llm')  # a round trip: another's answer would be here
            assert [answer.window_start.sec for answer in heard] == [first]
    finally:
        for robot in robots:
            robot.close()
