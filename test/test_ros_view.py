# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""~/view of node `web`: the encoded image with the newest answer drawn on it, while it is wanted.

The test's own node plays the camera, the encoder and the llm: no model is needed.
"""

import io

import numpy as np
import pytest
from PIL import Image
from rclpy.qos import qos_profile_sensor_data
from ros_source import FIRST, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.msg import Answer, ImageEmbedding
from minicpmo_ros.units import NS

pytest.importorskip('aiohttp')


class Sender:
    """A camera, an encoder and an llm, each with one topic."""

    def __init__(self, graph):
        self.graph = graph
        self._camera = graph.create_publisher(CompressedImage, 'image/compressed', 10)
        self._seen = graph.create_publisher(ImageEmbedding, 'vision_encoder/seen', 10)
        self._answers = graph.create_publisher(Answer, 'llm/answer', 10)

    @property
    def is_heard(self) -> bool:
        """Whether the node has subscribed to what it always reads."""
        return bool(self._seen.get_subscription_count() and self._answers.get_subscription_count())

    @property
    def is_watched(self) -> bool:
        return self._camera.get_subscription_count() > 0

    def show(self, second: int) -> None:
        """Send the image of a second, and that it was encoded, in two tiles."""
        image = CompressedImage(format='jpeg')
        image.header.stamp = time_of(second * NS)
        image.data.frombytes(jpeg(picture_of(second)))
        self._camera.publish(image)
        seen = ImageEmbedding(second=second, status=ImageEmbedding.OK, tiles_wide=2, tiles_high=1)
        seen.source_width, seen.source_height = 160, 120
        seen.picture_stamp = image.header.stamp
        self._seen.publish(seen)

    def answer(self, second: int) -> None:
        """Send an answer that rests on one second."""
        self._answers.publish(Answer(question='what is it?', text='a square', seconds=[second]))


def pixels_of(message) -> np.ndarray:
    """Give (H, W, 3) int of a JPEG."""
    return np.asarray(Image.open(io.BytesIO(bytes(message.data)))).astype(int)


def test_the_view_is_made_while_somebody_subscribes_and_shows_the_newest_answer(graph):
    web = graph.start('web', '-p', 'port:=0')
    sender, views = Sender(graph), []
    graph.spin_until(lambda: sender.is_heard, 'the node')
    assert not sender.is_watched  # nobody looks: it does not even read the camera

    subscription = graph.create_subscription(
        CompressedImage, 'web/view', views.append, qos_profile_sensor_data
    )
    graph.spin_until(lambda: sender.is_watched, 'the node to read the camera')
    graph.spin_until(lambda: sender.show(FIRST) or views, 'the view')
    view = views[0]
    assert view.format == 'jpeg' and view.header.stamp == time_of(FIRST * NS)
    shown, sent = pixels_of(view), picture_of(FIRST).astype(int)
    assert shown.shape == sent.shape
    assert np.abs(shown[20:, :75] - sent[20:, :75]).mean() < 8  # as it was, below the caption
    assert np.abs(shown[30:90, 80] - sent[30:90, 80]).mean() > 30  # the edge of a tile

    def is_framed() -> bool:  # by green, as the answer rests on this second
        left = pixels_of(views[-1])[30:90, 0]
        return bool((left[:, 1] - left[:, 0]).mean() > 80)

    assert not is_framed()
    graph.spin_until(lambda: sender.answer(FIRST) or is_framed(), 'the answer on it')
    told = pixels_of(views[-1])[100:, :120]
    assert np.abs(told - sent[100:, :120]).mean() > 30  # the words
    graph.spin_until(
        lambda: sender.show(FIRST + 1) or views[-1].header.stamp.sec == FIRST + 1, 'the next one'
    )
    assert not is_framed()

    graph.destroy_subscription(subscription)
    graph.spin_until(lambda: not sender.is_watched, 'the node to leave the camera')
    assert web.end() == 0 and 'Traceback' not in web.log


def test_a_font_that_is_none_ends_the_node_with_a_sentence(graph, tmp_path):
    web = graph.start('web', '-p', 'port:=0', '-p', f'view_font:={tmp_path / "no.ttf"}')
    assert web.wait() == 1
    assert 'TrueType' in web.log and 'Traceback' not in web.log
