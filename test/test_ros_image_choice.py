# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Whichever transport gives a readable colour image is taken, or the log says what to set."""

import time

import numpy as np
import pytest
from image_encodings import encode
from PIL import Image as PillowImage
from ros_source import DEEP, jpeg, picture_of, time_of
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.ros.image_input import BAD, GOOD, GREY, ImageChoice, is_grey_of_color

RAW_WIDTH, COMPRESSED_WIDTH = 80, 160  # tell what was taken
COMPRESSED, RAW = ('image/compressed', 'compressed'), ('image', 'raw')


def raw(second: int, encoding='yuv422_yuy2') -> Image:
    fields = encode(picture_of(second)[:60, :RAW_WIDTH], encoding)
    message = Image(encoding=encoding, height=fields.height, width=fields.width, step=fields.step)
    message.data.frombytes(fields.data)
    return message


def compressed(data: bytes, name: str) -> CompressedImage:
    message = CompressedImage(format=name)
    message.data.frombytes(data)
    return message


def grey(second: int) -> bytes:
    return jpeg(np.array(PillowImage.fromarray(picture_of(second)).convert('L')))


def of_yuy2(second):
    return compressed(grey(second), 'yuv422_yuy2; jpeg compressed mono8')


def unstated(second):
    return compressed(grey(second), 'jpeg')


def depth(second):
    return compressed(bytes(12) + jpeg(picture_of(second)), '16UC1; compressedDepth png')


def empty(second):
    return compressed(b'', 'rgb8; jpeg compressed bgr8')


def nothing(second):
    return None


class Camera:
    """Publishes on topics, each time it is asked to."""

    def __init__(self, graph, **topics):
        self.graph, self.seen = graph, []
        kinds = {'image': Image, 'compressed': CompressedImage}
        names = {'image': 'image', 'compressed': 'image/compressed'}
        self.publishers = [
            (graph.create_publisher(kinds[key], names[key], DEEP), make)
            for key, make in topics.items()
        ]
        graph.create_subscription(ImageEmbedding, 'vision_encoder/embedding', self.seen.append, 50)

    def show(self) -> None:
        now_ns = time.time_ns()
        for publisher, make in self.publishers:
            if (message := make(now_ns // 10**9)) is not None:
                message.header.stamp = time_of(now_ns)
                publisher.publish(message)

    def show_until(self, condition, what: str) -> None:
        self.graph.spin_until(lambda: condition() or self.show(), what)

    def sees(self, width: int) -> bool:
        return bool(self.seen) and self.seen[-1].tokens and self.seen[-1].source_width == width


def start(graph, tiny_model_dir, *arguments):
    return graph.start('vision_encoder', '-p', f'model_dir:={tiny_model_dir}', *arguments)


@pytest.mark.parametrize(
    'make, words',
    [
        (of_yuy2, 'the images are grey, of a colour camera (yuv422_yuy2; jpeg compressed mono8)'),
        (unstated, 'the images are grey'),
        (depth, 'compressed depth image'),
        (empty, 'has 0 bytes'),
        (nothing, 'no image has come'),
    ],
)
def test_the_other_transport_is_taken(graph, tiny_model_dir, make, words):
    camera = Camera(graph, compressed=make, image=raw)
    process = start(graph, tiny_model_dir)
    camera.show_until(lambda: camera.sees(RAW_WIDTH), 'the raw image')
    assert words in process.log and f'{graph.namespace}/image (raw) is taken' in process.log
    assert process.end() == 0 and 'Traceback' not in process.log


def test_a_grey_image_of_a_colour_camera_alone_is_taken_and_told(graph, tiny_model_dir):
    camera = Camera(graph, compressed=of_yuy2)
    process = start(graph, tiny_model_dir)
    camera.show_until(lambda: camera.sees(COMPRESSED_WIDTH), 'the grey image')
    camera.show_until(lambda: 'set the encoding (pixel_format)' in process.log, 'the words')


def test_compressed_images_on_the_name_of_raw_ones_are_read(graph, tiny_model_dir):
    camera = Camera(graph)
    publisher = graph.create_publisher(CompressedImage, 'image', DEEP)
    camera.publishers = [(publisher, lambda second: compressed(jpeg(picture_of(second)), 'jpeg'))]
    process = start(graph, tiny_model_dir)
    camera.show_until(lambda: camera.sees(COMPRESSED_WIDTH), 'the image')
    assert process.end() == 0
    told = start(graph, tiny_model_dir, '-p', 'image_transport:=raw')
    graph.spin_until(lambda: 'image_transport is raw: set it to auto' in told.log, 'the words')


def test_thermal_images_are_seen_and_depth_is_refused_by_the_name_of_the_topic(
    graph, tiny_model_dir
):
    def thermal(second):
        message = raw(second, '16UC1 (grey)')
        message.encoding = '16UC1'
        return message

    camera = Camera(graph, image=thermal)
    process = start(graph, tiny_model_dir)
    camera.show_until(lambda: camera.sees(RAW_WIDTH), 'the thermal image')
    assert process.end() == 0
    camera.seen.clear()
    camera.publishers = [(graph.create_publisher(Image, 'depth/image', DEEP), thermal)]
    remap = ('-r', 'image:=depth/image')
    process = start(graph, tiny_model_dir, *remap)
    camera.show_until(lambda: "'16UC1', which is depth" in process.log, 'the refusal')
    assert 'image.single_channel to grey' in process.log and not camera.sees(RAW_WIDTH)
    assert process.end() == 0
    start(graph, tiny_model_dir, *remap, '-p', 'image.single_channel:=grey')
    camera.show_until(lambda: camera.sees(RAW_WIDTH), 'the image of this name')


def test_a_topic_of_no_image_is_told(graph, tiny_model_dir):
    graph.create_publisher(String, 'image', DEEP)
    process = start(graph, tiny_model_dir)
    graph.spin_until(lambda: 'is published as std_msgs/msg/String' in process.log, 'the words')
    assert 'image_transport republish' in process.log


def test_grey_is_kept_where_nothing_gives_colour():
    choice = ImageChoice()
    first = choice.choose([COMPRESSED, RAW])
    assert (first.topic, first.kind) == COMPRESSED and choice.choose([COMPRESSED, RAW]) is first
    assert choice.judge(first, GREY)
    second = choice.choose([COMPRESSED, RAW])
    assert second.kind == 'raw' and choice.judge(second, GREY)
    for _ in range(3):
        assert choice.choose([COMPRESSED, RAW]) is first
        assert not choice.judge(first, GREY)


def test_one_damaged_image_changes_nothing_and_all_that_fail_are_tried_in_turn():
    choice = ImageChoice()
    first = choice.choose([COMPRESSED, RAW])
    assert not choice.fail(first, 'damaged') and choice.choose([COMPRESSED, RAW]) is first
    choice.judge(first, GOOD)
    assert not choice.fail(first, 'damaged') and choice.fail(first, 'damaged')
    second = choice.choose([COMPRESSED, RAW])
    assert second.kind == 'raw'
    for tried, other in ((second, first), (first, second), (second, first)):
        assert choice.choose([COMPRESSED, RAW]) is tried
        choice.judge(tried, BAD, 'silent')
        assert choice.choose([COMPRESSED, RAW]) is other
    assert choice.choose([]) is None
    assert choice.choose([RAW]).verdict == GOOD  # it came back


def test_a_camera_that_starts_again_is_read_by_the_subscription_that_it_had():
    choice = ImageChoice()
    taken = choice.choose([COMPRESSED])
    choice.judge(taken, BAD, 'unreadable')
    assert choice.choose([]) is None and choice.choose([COMPRESSED]) is taken
    assert taken.verdict == GOOD and not taken.reason  # it may have been mended
    choice.choose([])
    assert choice.choose([RAW]) is not taken  # another came in its place


@pytest.mark.parametrize(
    'stated, of_color',
    [
        ('yuv422_yuy2; jpeg compressed mono8', True),
        ('bayer_grbg8; jpeg compressed mono8', True),
        ('rgb8; jpeg compressed bgr8', True),
        ('mono8; jpeg compressed ', False),
        ('mono16; png compressed ', False),
        ('8UC1; jpeg compressed mono8', False),
        ('jpeg', False),
        ('', False),
        ('; jpeg compressed', False),
    ],
)
def test_what_a_format_says_of_the_camera(stated, of_color):
    assert is_grey_of_color(stated) is of_color
