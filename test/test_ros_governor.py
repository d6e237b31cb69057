# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A vision encoder whose machine becomes four times slower drops no second, and tells why."""

import threading
import time
from functools import partial
from pathlib import Path

import pytest
from rclpy.parameter import Parameter
from ros_source import decoded_of
from test_ros_faults import entry

from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.ros.image_node import VisionNode

NS = 10**9
NANO = Path(__file__).parents[1] / 'models' / 'nano'
FULL_S = 0.5  # that a full image takes on the machine without load


class Load:
    """Lets every image take as long as it would on a larger machine: it sleeps in the encoder."""

    def __init__(self, monkeypatch):
        self.slower, encode = 1.0, VisionEncoder.encode

        def slow(encoder, tiles, between=None):
            rows = encode(encoder, tiles, between)
            share = tiles[0].shape[0] * tiles[0].shape[1] / encoder.image_size**2
            end_s = time.monotonic() + self.slower * FULL_S * share
            while time.monotonic() < end_s:
                time.sleep(0.01)
                between()
            return rows

        monkeypatch.setattr(VisionEncoder, 'encode', slow)


@pytest.fixture
def eye(graph, monkeypatch):
    """Give a node that is seen images by a clock of its own, its load, and what it publishes."""
    node, seen, load = VisionNode(), [], Load(monkeypatch)
    node.set_parameters([Parameter('model_dir', value=str(NANO))])
    graph.create_subscription(ImageEmbedding, '/vision_encoder/embedding', seen.append, 50)
    graph.own_executor.add_node(node)
    graph.spin_until(lambda: node.is_loaded, 'the encoder')
    is_over = threading.Event()

    def show():
        """Publish an image in the middle of each second."""
        while not is_over.wait(max(0.0, 1 - (time.time() - 0.5) % 1)):
            second = int(time.time())
            node.on_image(int(time.time() * NS), partial(decoded_of, second))

    camera = threading.Thread(target=show)
    camera.start()
    yield node, load, seen
    is_over.set()
    camera.join()
    graph.own_executor.remove_node(node)
    node.destroy_node()


def test_a_machine_that_is_slowed_four_times_drops_no_second_and_recovers(graph, eye):
    node, load, seen = eye
    graph.spin_until(lambda: any(m.status == ImageEmbedding.OK for m in seen), 'an image')
    assert seen[-1].area == 1 and seen[-1].slowed == ''
    load.slower, first = 4.0, len(seen)
    graph.spin_until(lambda: seen[-1].area < 1 and seen[-1].slowed, 'a smaller area')
    assert 'encoding an image takes' in seen[-1].slowed
    message, values = entry(node)
    assert 'encoding an image takes' in message and 'images are seen at an area of' in message
    assert float(values['area of the overview']) < 1
    graph.spin_until(lambda: len(seen) >= first + 6, 'six seconds of load')
    load.slower, ended = 1.0, len(seen)
    graph.spin_until(lambda: seen[-1].area == 1 and seen[-1].slowed == '', 'the full area')
    assert len(seen) - ended <= 10  # seconds
    statuses = [m.status for m in seen[first:]]
    assert ImageEmbedding.OVERLOADED not in statuses, statuses
    assert entry(node)[1]['one image in seconds'] == '1'


def test_status_of_the_llm_says_what_is_seen_and_why(graph, tiny_model_dir):
    graph.start('llm', '-p', f'model_dir:={tiny_model_dir}')
    graph.wait_ready()
    assert graph.status.image_period_s == 0  # no image has come
    images = graph.create_publisher(ImageEmbedding, 'image_embedding', 10)
    graph.spin_until(images.get_subscription_count, 'the llm to listen')
    cause = 'encoding an image takes 2.4 s, there is time for 1 s'
    seen = ImageEmbedding(status=ImageEmbedding.OK, area=0.25, period_s=2, slowed=cause)
    images.publish(seen)
    for second in range(2):
        skipped = ImageEmbedding(status=ImageEmbedding.SKIPPED, second=second, period_s=3)
        images.publish(skipped)
    graph.spin_until(lambda: graph.status.image_period_s, 'what is seen')
    found = graph.status.image_area, graph.status.image_period_s, graph.status.image_slowed
    assert found == (0.25, 2, cause)
