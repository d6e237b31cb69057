# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A question looks at the newest image, or at one that is sent, closer than the window does."""

import numpy as np
import pytest
from ros_source import FIRST, Source, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage
from test_ros_live import play

NS = 10**9


@pytest.fixture(scope='module')
def graph(shared_graph):
    """Give the graph of this file."""
    return shared_graph


@pytest.fixture(scope='module')
def source(graph, tiny_model_dir):
    """Give a camera and a microphone whose first seconds the nodes have read."""
    process = graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'vision.area:=0.25', *graph.lossless,
        # However busy this machine is: no more is shown until the last test.
        '-p', 'max_staleness_s:=600.0', '-p', 'vision.governor:=false',
    )  # fmt: skip
    graph.wait_ready()
    source = Source(graph)
    source.wait_heard()
    begin = source.until_read(FIRST)
    play(graph, source, 3, begin)
    end_s = begin + 4
    graph.spin_until(lambda: graph.status.window_end.sec == end_s, 'the last second to be read')
    yield source
    assert process.is_running and 'Traceback' not in process.log


def sent(data: bytes, stamp_ns: int = 0) -> CompressedImage:
    image = CompressedImage(data=data)
    image.header.stamp = time_of(stamp_ns)
    return image


def test_a_sharp_look_reads_one_image_more_than_the_window_has(graph, source):
    window = graph.ask('What?', max_tokens=2)
    sharp = graph.ask('What?', max_tokens=2, look='sharp')
    tiles = graph.ask('What?', max_tokens=2, look='tiles')
    for reply in (window, sharp, tiles):
        assert reply.success and not reply.reason, reply.reason
    assert graph.status.image_area == 0.25
    assert (window.answer.look_ms, window.answer.look_stamp.sec) == (0, 0)
    costs = [reply.answer.prompt_tokens for reply in (window, sharp, tiles)]
    assert costs[0] < costs[1] <= costs[2]  # a small image has no tiles
    for reply in (sharp, tiles):
        answer = reply.answer
        assert 0 < answer.look_ms <= answer.first_token_ms
        assert answer.look_stamp.sec >= answer.window_end.sec - 1
        assert answer.seconds == window.answer.seconds
    assert graph.ask('What?', max_tokens=2).answer.prompt_tokens == costs[0], 'the window is cheap'


def test_an_image_that_is_sent_is_read_before_the_question(graph, source):
    window = graph.ask('What?', max_tokens=2)
    image = sent(jpeg(np.full((600, 800, 3), (250, 10, 10), np.uint8)), 12 * NS)
    one = graph.ask('What?', max_tokens=2, image=image)
    assert one.success and not one.reason, one.reason
    assert one.answer.look_stamp == time_of(12 * NS)
    cut = graph.ask('What?', max_tokens=2, image=image, look='tiles')
    costs = [reply.answer.prompt_tokens for reply in (window, one, cut)]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize(
    'data, told',
    [
        (b'no image', 'neither JPEG, PNG nor WebP'),
        (jpeg(picture_of(1))[:200], 'damaged'),
        (jpeg(np.zeros((8, 800, 3), np.uint8)), 'at most 20 times'),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_with_facts(graph, source, data, told):
    reply = graph.ask('What?', max_tokens=2, image=sent(data))
    assert not reply.success
    assert reply.reason.startswith('The image was not read: ') and told in reply.reason
    assert reply.reason.count(told) == 1 and not reply.answer.text


def test_a_look_that_there_is_not_is_refused(graph, source):
    reply = graph.ask('What?', max_tokens=2, look='closer')
    assert not reply.success and 'live, sharp, tiles' in reply.reason


def test_the_area_of_the_live_seconds_changes_while_the_node_runs(graph, source):
    second = graph.status.window_end.sec + 2
    client = set_parameter(graph, 'vision_encoder', 'vision.area', 0.5)
    assert client.successful, client.reason
    refused = set_parameter(graph, 'vision_encoder', 'vision.area', 0.1)
    assert not refused.successful and '0.25' in refused.reason
    play(graph, source, 4, second)
    graph.spin_until(lambda: graph.status.image_area == 0.5, 'the larger area')


def set_parameter(graph, node: str, name: str, value: float):
    """Set a parameter of a node and give the result."""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    client = graph.create_client(SetParameters, f'{node}/set_parameters')
    graph.spin_until(client.service_is_ready, 'the parameters')
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return graph.result_of(client.call_async(request), 'the parameter').results[0]


def test_without_an_encoder_the_question_is_answered_and_says_what_it_lacks(
    ros, tmp_path, tiny_model_dir
):
    from ros_graph import Graph

    alone = Graph(tmp_path, '/alone')
    try:
        alone.start('llm', '-p', f'model_dir:={tiny_model_dir}', '-p', 'required_evidence:=none')
        alone.wait_ready()
        reply = alone.ask('What?', max_tokens=2, look='sharp')
        assert reply.success and 'was not looked at closer' in reply.reason
        assert 'vision_encoder/look' in reply.reason and reply.answer.look_ms == 0
        reply = alone.ask('What?', max_tokens=2, image=sent(jpeg(picture_of(1))))
        assert not reply.success and 'The image was not read' in reply.reason
    finally:
        alone.close()
