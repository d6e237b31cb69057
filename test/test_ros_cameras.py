# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Two cameras through the live graph with nano: one unit has the images of both, by name."""

import time
from functools import partial
from pathlib import Path

import numpy as np
from ros_source import DEEP, FIRST, jpeg, time_of
from sensor_msgs.msg import CompressedImage

from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.msg import ImageEmbedding
from minicpmo_ros.units import NS
from minicpmo_ros.verbs.robot import rows_of

CLIPS = Path(__file__).parents[1] / 'demo' / 'clips'
QUESTION, CHOICES = 'what shape is shown now?', ['star', 'ring', 'circle', 'square']
CAMERAS = ('front', 'left')


def shown_in(clip: str, second: int):
    """Give an image of a demo clip, (H, W, 3) uint8."""
    found = read_clip(CLIPS / clip)
    return next(s for s in found.images if s.stamp_ns // NS == found.first_s + second).rgb()


class TwoCameras:
    """Publishes a second after the other, of the cameras that are on."""

    def __init__(self, graph):
        self._graph, self._second, self.embeddings = graph, FIRST, []
        self._publishers = {
            name: graph.create_publisher(CompressedImage, f'{name}/image/compressed', DEEP)
            for name in CAMERAS
        }
        graph.create_subscription(
            ImageEmbedding, 'vision_encoder/embedding', self.embeddings.append, DEEP
        )
        for publisher in self._publishers.values():
            graph.spin_until(publisher.get_subscription_count, 'the encoder')

    def show(self, condition, what: str, **images):
        """Publish second after second of {camera: image} until `condition()`; give its result."""
        next_s = 0.0

        def holds():
            nonlocal next_s
            if time.monotonic() >= next_s:
                next_s, self._second = time.monotonic() + 0.5, self._second + 1
                for name, image in images.items():
                    message = CompressedImage(format='jpeg')
                    message.header.stamp = time_of(self._second * NS + NS // 2)
                    message.data.frombytes(jpeg(image))
                    self._publishers[name].publish(message)
            return condition()

        return self._graph.spin_until(holds, what)

    def newest(self, cameras) -> ImageEmbedding | None:
        """Return the newest embedding, if it is of these cameras."""
        newest = self.embeddings[-1] if self.embeddings else None
        return newest if newest is not None and tuple(newest.cameras) == cameras else None


def halves(message) -> tuple:
    rows = np.frombuffer(bytes(message.data), '<f2').reshape(2, -1, message.width)
    return rows[0], rows[1]


def test_nano_reads_two_cameras_in_one_unit_and_says_what_each_lacks(graph):
    stars, ring = shown_in('004.mcap', 2), shown_in('005.mcap', 0)
    process = graph.start(
        'live', '-p', 'model_dir:=nano', '-p', 'cameras:=[front, left]', '-p', 'wait_for:=image',
        '-p', 'vision.unchanged_threshold:=0.0', '-p', 'max_staleness_s:=3600.0',
    )  # fmt: skip
    graph.wait_ready()
    cameras = TwoCameras(graph)
    both = partial(cameras.newest, CAMERAS)
    message = cameras.show(both, 'both cameras', front=stars, left=ring)
    assert message.tokens % 2 == 0 and (message.tiles_wide, message.tiles_high) == (0, 0)
    of_stars, of_ring = halves(message)
    assert not np.array_equal(of_stars, of_ring)
    # The order is that of the names, whatever they show.
    n = len(cameras.embeddings)
    swapped = cameras.show(
        lambda: both() if len(cameras.embeddings) > n + 3 else None,
        'both again', front=ring, left=stars,
    )  # fmt: skip
    np.testing.assert_array_equal(halves(swapped)[0], of_ring)
    np.testing.assert_array_equal(halves(swapped)[1], of_stars)
    # What is answered rests on both: the left one alone makes a difference.
    probabilities = []
    for left in (stars, ring):
        assert graph.reset().success
        cameras.show(lambda: graph.status.units >= 3, 'three seconds', front=stars, left=left)
        reply = graph.ask(QUESTION, choices=CHOICES)
        assert reply.success, reply.reason
        assert tuple(reply.answer.cameras) == CAMERAS and not reply.answer.stale
        assert [end.sec for end in reply.answer.camera_ends] == [reply.answer.image_end.sec] * 2
        probabilities.append(np.array(reply.answer.probabilities))
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.01
    # Two images a second: more positions than one takes.
    per_second = graph.status.positions / graph.status.units
    assert per_second > swapped.tokens
    # One camera fails; the other goes on, and the lack is told.
    alone = cameras.show(partial(cameras.newest, ('front',)), 'one camera', front=stars)
    assert alone.tokens == message.tokens // 2 and alone.status == ImageEmbedding.OK
    graph.spin_until(lambda: 'camera left has no image for a second' in process.log, 'the words')


def test_a_camera_that_dies_is_named_and_a_question_that_wants_all_fresh_is_refused(
    graph, tiny_model_dir
):
    graph.start(
        'live', '-p', f'model_dir:={tiny_model_dir}', '-p', 'cameras:=[front, left]', '-p',
        'wait_for:=image', '-p', 'required_evidence:=fresh', '-p', 'n_ctx:=8192',
    )  # fmt: skip
    graph.wait_ready()
    cameras, grey = TwoCameras(graph), np.full((48, 64, 3), 128, np.uint8)
    cameras.show(lambda: graph.status.units >= 2, 'both', front=grey, left=grey)
    assert tuple(graph.status.cameras) == CAMERAS
    both_s = [end.sec for end in graph.status.camera_ends]
    assert both_s[0] == both_s[1] == graph.status.image_end.sec
    plain, sharp = (graph.ask('What is it?', max_tokens=1, look=look) for look in ('', 'sharp'))
    if plain.success and sharp.success:  # a slow machine may find both old by now
        assert not sharp.reason and sharp.answer.look_ms
        more = sharp.answer.prompt_tokens - plain.answer.prompt_tokens
        assert more > cameras.embeddings[-1].tokens  # of both cameras, behind their names
    cameras.show(lambda: 'of camera left is' in graph.status.stale, 'the status', front=grey)
    front, left = graph.status.camera_ends
    told = dict(rows_of(graph.status))['cameras']
    behind_s = graph.status.window_end.sec - graph.status.camera_ends[1].sec
    assert told == f'front 0 s ago, left {behind_s} s ago'
    assert front.sec > left.sec and left.sec >= both_s[1]
    reply = graph.ask('What is it?', max_tokens=1)
    assert not reply.success and reply.answer.stale
    assert 'newest image of camera left is' in reply.reason
    assert 'required_evidence is fresh' in reply.reason
    cameras.show(lambda: not graph.status.stale, 'the end of it', front=grey, left=grey)
    assert graph.status.camera_ends[1].sec > front.sec


def test_cameras_in_tiles_are_refused(graph, tiny_model_dir):
    process = graph.start(
        'vision_encoder', '-p', f'model_dir:={tiny_model_dir}', '-p', 'cameras:=front,left', '-p',
        'vision.max_tiles:=4',
    )  # fmt: skip
    graph.spin_until(lambda: 'are not cut into tiles' in process.log, 'the words')
    assert process.is_running
