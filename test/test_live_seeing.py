# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One embedding a second: the newest picture's, decoded alone, reused where nothing changed."""

import numpy as np
import pytest

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.live.seeing import LONGEST_EMPTY_S, NS, Seeing
from minicpmo_ros.live.status import Status


class FakeEncoder:
    """Gives two rows of the mean colour for each picture."""

    max_tiles, image_size, patch_size = 2, 448, 14
    scale = 1.0

    def __init__(self):
        self.batches = []

    def encode(self, tiles, between=None):
        self.batches.append([tile.shape for tile in tiles])
        if between:
            between()
        means = [tile.reshape(-1, 3).mean(0) for tile in tiles]
        return np.repeat(np.float32(means) * np.float32(self.scale), 2, axis=0)


class Camera:
    """Makes pictures of one grey level and notes which were decoded."""

    def __init__(self):
        self.decoded = []

    def shot(self, name, grey=100, width=640, height=480):
        def make():
            self.decoded.append(name)
            return np.full((height, width, 3), grey, np.uint8)

        return make


@pytest.fixture
def camera():
    return Camera()


@pytest.fixture
def encoder():
    return FakeEncoder()


def at(second):
    return int(second * NS)


def test_newest_picture_of_a_second_is_used_and_no_other_decoded(encoder, camera):
    seeing = Seeing(encoder)
    for time_s in (7.1, 7.5, 7.9, 7.6):
        seeing.offer(at(time_s), camera.shot(time_s))
    assert seeing.advance(at(7.99)) == []
    assert camera.decoded == []
    (seen,) = seeing.advance(at(8.0))
    assert camera.decoded == [7.9]
    assert (seen.second, seen.status, seen.picture_stamp_ns) == (7, Status.OK, at(7.9))
    assert (seen.source_width, seen.source_height) == (640, 480)
    assert (seen.tiles_wide, seen.tiles_high) == (0, 0)
    assert seen.rows.dtype == np.float16 and seen.rows.shape == (2, 3)
    assert (seen.rows == 100).all()


def test_edge_of_a_second_belongs_to_the_next(encoder, camera):
    seeing = Seeing(encoder)
    seeing.offer(at(3) - 1, camera.shot('before'))
    seeing.offer(at(3), camera.shot('after'))
    assert [seen.picture_stamp_ns for seen in seeing.close(3)] == [at(3) - 1, at(3)]


def test_every_second_is_given_once_and_in_order(encoder, camera):
    seeing = Seeing(encoder)
    assert seeing.advance(at(5)) == []  # nothing is known of the stream yet
    seeing.offer(at(5.5), camera.shot(1))
    seeing.offer(at(8.5), camera.shot(2))
    first = seeing.advance(at(8))
    assert [seen.second for seen in first] == [5, 6, 7]
    assert [seen.status for seen in first] == [Status.OK, Status.EMPTY, Status.EMPTY]
    assert first[1].rows is None
    assert seeing.advance(at(8.9)) == []
    assert [seen.second for seen in seeing.close(8)] == [8]


def test_late_picture_is_counted_and_never_given(encoder, camera):
    seeing = Seeing(encoder)
    seeing.offer(at(5.5), camera.shot(1))
    seeing.close(5)
    seeing.offer(at(5.9), camera.shot('late'))
    assert seeing.close(6)[0].status == Status.EMPTY
    assert seeing.late == 1
    assert camera.decoded == [1]


def test_jump_back_restarts_the_stream(encoder, camera):
    seeing = Seeing(encoder)
    seeing.offer(at(100.5), camera.shot(1))
    seeing.close(100)
    seeing.offer(at(20.5), camera.shot(2, grey=9))
    (seen,) = seeing.close(20)
    assert (seen.second, seen.status) == (20, Status.OK)


def test_jump_ahead_does_not_give_the_seconds_between(encoder, camera):
    seeing = Seeing(encoder)
    seeing.offer(at(0.5), camera.shot(1))
    seeing.offer(at(10**9), camera.shot(2))
    assert [seen.second for seen in seeing.close(10**9 - 1)] == [0]
    assert [seen.second for seen in seeing.close(10**9)] == [10**9]
    assert [seen.second for seen in seeing.close(10**9 + LONGEST_EMPTY_S)] == list(
        range(10**9 + 1, 10**9 + LONGEST_EMPTY_S + 1)
    )


def test_unchanged_picture_reuses_the_embedding(encoder, camera):
    seeing = Seeing(encoder, unchanged_threshold=2.0)
    for second, grey in enumerate((100, 101, 103, 103)):
        seeing.offer(at(second), camera.shot(second, grey))
    seen = seeing.close(3)
    # 103 is compared with the encoded 100, not with the 101 that was reused.
    assert [one.reused for one in seen] == [False, True, False, True]
    assert [one.rows[0, 0] for one in seen] == [100, 100, 103, 103]
    assert len(encoder.batches) == 2
    assert seen[1].encode_ms == 0 and seen[1].picture_stamp_ns == at(1)
    assert seen[1].source_width == 640


@pytest.mark.parametrize(
    'before, after', [((160, 32, 240), (40, 90, 250)), ((0, 0, 0), (70, 70, 70))]
)
def test_a_small_thing_that_changes_is_seen(encoder, before, after):
    """Of about one grey level, or on a fiftieth of the picture: hardly anything in a mean."""
    pictures = np.full((2, 240, 320, 3), 120, np.uint8)
    pictures[0, 100:140, 100:140] = before
    pictures[1, 100:140, 100:140] = after
    seeing = Seeing(encoder)
    for second, picture in enumerate(pictures):
        seeing.offer(at(second), lambda picture=picture: picture)
    assert [seen.reused for seen in seeing.close(1)] == [False, False]


def test_noise_of_a_camera_is_no_change(encoder, rng):
    seeing = Seeing(encoder)
    scene = rng.integers(20, 230, (480, 640, 3))
    for second in range(3):
        noisy = np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
        seeing.offer(at(second), lambda noisy=noisy: noisy)
    assert [seen.reused for seen in seeing.close(2)] == [False, True, True]


@pytest.mark.parametrize('width,threshold', [(640, 0.0), (642, 5.0)])
def test_zero_threshold_or_another_size_is_never_reused(encoder, camera, width, threshold):
    seeing = Seeing(encoder, unchanged_threshold=threshold)
    seeing.offer(at(0), camera.shot(0))
    seeing.offer(at(1), camera.shot(1, width=width))
    assert [seen.reused for seen in seeing.close(1)] == [False, False]


def test_a_device_that_fails_costs_its_second_alone(encoder, camera):
    seeing = Seeing(encoder)
    for second in range(3):
        seeing.offer(at(second), camera.shot(second, grey=50 * second))
    encode, calls = encoder.encode, []

    def failing(tiles, between=None):
        calls.append(1)
        if len(calls) == 2:
            raise EngineError('the device is gone')
        return encode(tiles, between)

    encoder.encode = failing
    seen = seeing.close(2)
    assert [one.status for one in seen] == [Status.OK, Status.LOST, Status.OK]
    assert seen[1].rows is None and 'the device is gone' in seen[1].reason


def fail(error):
    raise error


@pytest.mark.parametrize(
    'make',
    [
        lambda: fail(InputError('cut off')),
        lambda: fail(OSError('cut off')),
        lambda: fail(MemoryError()),
        lambda: None,
        lambda: np.zeros((4, 4), np.uint8),
        lambda: np.zeros((4, 4, 3), np.float32),
        lambda: np.zeros((1, 20_000, 3), np.uint8),
    ],
)
def test_unusable_picture_is_lost_with_a_reason(encoder, camera, make):
    seeing = Seeing(encoder)
    seeing.offer(at(0), make)
    seeing.offer(at(1), camera.shot(1))
    lost, after = seeing.close(1)
    assert (lost.status, lost.rows, lost.picture_stamp_ns) == (Status.LOST, None, 0)
    assert lost.reason
    assert after.status == Status.OK
    assert encoder.batches == [[(392, 518, 3)]]


@pytest.mark.parametrize('scale', [np.nan, np.inf, 1e3])
def test_embedding_that_float16_cannot_hold_is_lost_and_not_remembered(encoder, camera, scale):
    seeing = Seeing(encoder)
    encoder.scale = scale
    seeing.offer(at(0), camera.shot(0))
    (lost,) = seeing.close(0)
    assert (lost.status, lost.rows) == (Status.LOST, None)
    assert 'not finite' in lost.reason
    encoder.scale = 1.0
    seeing.offer(at(1), camera.shot(1))
    assert seeing.close(1)[0].reused is False


def test_slow_encoder_skips_to_the_newest_pictures(encoder, camera):
    seeing = Seeing(encoder, max_behind=2)
    for second in (0, 1, 2, 4):
        seeing.offer(at(second), camera.shot(second, grey=10 * second))
    seen = seeing.close(5)
    assert [one.status for one in seen] == [
        Status.OVERLOADED,
        Status.OVERLOADED,
        Status.OK,
        Status.EMPTY,
        Status.OK,
        Status.EMPTY,
    ]
    assert camera.decoded == [2, 4]
    seeing.offer(at(6), camera.shot(6))
    assert seeing.close(6)[0].status == Status.OK


def test_a_second_whose_pictures_were_dropped_is_not_empty_nor_counted_as_work(encoder, camera):
    seeing = Seeing(encoder, max_behind=1)
    seeing.drop(0)  # nothing is known of the stream yet
    for second in (1, 4):
        seeing.offer(at(second), camera.shot(second, grey=10 * second))
    for second in (0, 2, 3, 4):
        seeing.drop(second)
    seeing.offer(at(3.5), camera.shot(3.5))
    seen = seeing.close(1) + seeing.close(2) + seeing.close(3) + seeing.close(5)
    assert [one.status.name for one in seen] == ['OK', 'OVERLOADED', 'OK', 'OK', 'EMPTY']
    assert camera.decoded == [1, 3.5, 4]
    seeing.offer(at(6), camera.shot(6))
    seeing.drop(7)
    assert [one.status.name for one in seeing.close(7)] == ['OK', 'OVERLOADED']


def test_tiles_follow_the_overview_in_batches_the_encoder_takes(encoder, camera):
    seeing = Seeing(encoder, max_tiles=9)
    seeing.offer(at(0), camera.shot(0, width=1280, height=720))
    (seen,) = seeing.close(0)
    assert (seen.tiles_wide, seen.tiles_high) == (3, 2)
    assert seen.rows.shape == ((1 + 6) * 2, 3)
    assert encoder.batches == [[(336, 602, 3)]] + [[(406, 490, 3)] * 2] * 3


def test_what_between_raises_goes_out_and_the_second_is_over(encoder, camera):
    class Stopped(Exception):
        pass

    seeing = Seeing(encoder, between=lambda: fail(Stopped()))
    seeing.offer(at(0), camera.shot(0))
    with pytest.raises(Stopped):
        seeing.close(0)
    assert [seen.second for seen in seeing.close(1)] == [1]


@pytest.mark.parametrize('rate_hz', [0.1, 0.9, 1, 30, 240])
def test_a_camera_of_any_rate_costs_one_picture_a_second(encoder, camera, rate_hz):
    encoder.image_size = 28  # little to scale
    seeing, seen, seconds = Seeing(encoder, unchanged_threshold=0), [], 30
    stamps = [round(i * NS / rate_hz) for i in range(int(seconds * rate_hz))]
    for stamp_ns in stamps:
        seen += seeing.advance(stamp_ns)
        seeing.offer(stamp_ns, camera.shot(stamp_ns, width=64, height=48))
    seen += seeing.close(seconds - 1)
    newest = {stamp_ns // NS: stamp_ns for stamp_ns in stamps}
    assert [one.second for one in seen] == list(range(seconds))
    assert camera.decoded == list(newest.values())
    for one in seen:
        assert one.picture_stamp_ns == newest.get(one.second, 0)
        assert one.status == (Status.OK if one.second in newest else Status.EMPTY)


def test_a_burst_after_a_pause_costs_one_picture_a_second(encoder, camera):
    """What a network that was away for 5 s brings at once."""
    seeing = Seeing(encoder, unchanged_threshold=0, max_behind=1)
    seeing.offer(at(0), camera.shot('before'))
    assert len(seeing.close(0)) == 1
    for i in range(5 * 240):
        seeing.offer(at(1) + i * NS // 240, camera.shot(i))
    seen = seeing.close(5)
    assert [one.second for one in seen] == [1, 2, 3, 4, 5]
    assert [one.status for one in seen] == [Status.OVERLOADED] * 4 + [Status.OK]
    assert camera.decoded == ['before', 5 * 240 - 1]


def test_two_cameras_of_different_sizes_are_one_stream(encoder, camera):
    seeing = Seeing(encoder)
    for second in range(6):
        seeing.offer(at(second + 0.4), camera.shot('wide', width=640, height=480))
        late_s = 0.6 if second % 2 else 0.2
        seeing.offer(at(second + late_s), camera.shot('tall', width=240, height=320))
    seen = seeing.close(5)
    assert [(one.source_width, one.source_height) for one in seen] == [(640, 480), (240, 320)] * 3
    assert camera.decoded == ['wide', 'tall'] * 3
    assert not any(one.reused for one in seen)
