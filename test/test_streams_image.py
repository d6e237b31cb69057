# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One embedding a second: the newest picture's, decoded alone, reused where nothing changed."""

import io

import numpy as np
import pytest
from PIL import Image

from minicpmo_ros.config import TILE_RULES
from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.media.image.compressed import decode_as_needed
from minicpmo_ros.media.image.raw import decode_raw
from minicpmo_ros.media.image.tiling import Crop, Decoded, TileRule, plan_tiles
from minicpmo_ros.pace.governor import Governor
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.time import LIMITS
from minicpmo_ros.units import NS


class FakeEncoder:
    """Gives two rows of the mean colour for each picture."""

    max_tiles, image_size, patch_size = 2, 448, 14
    takes_squares = False
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
    pipeline = ImagePipeline(encoder)
    for time_s in (7.1, 7.5, 7.9, 7.6):
        pipeline.offer(at(time_s), camera.shot(time_s))
    assert pipeline.advance(at(7.99)) == []
    assert camera.decoded == []
    (seen,) = pipeline.advance(at(8.0))
    assert camera.decoded == [7.9]
    assert (seen.second, seen.status, seen.image_stamp_ns) == (7, Status.OK, at(7.9))
    assert (seen.source_width, seen.source_height) == (640, 480)
    assert (seen.tiles_wide, seen.tiles_high) == (0, 0)
    assert seen.rows.dtype == np.float16 and seen.rows.shape == (2, 3)
    assert (seen.rows == 100).all()


def test_edge_of_a_second_belongs_to_the_next(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(3) - 1, camera.shot('before'))
    pipeline.offer(at(3), camera.shot('after'))
    assert [seen.image_stamp_ns for seen in pipeline.close(3)] == [at(3) - 1, at(3)]


def test_every_second_is_given_once_and_in_order(encoder, camera):
    pipeline = ImagePipeline(encoder)
    assert pipeline.advance(at(5)) == []  # nothing is known of the stream yet
    pipeline.offer(at(5.5), camera.shot(1))
    pipeline.offer(at(8.5), camera.shot(2))
    first = pipeline.advance(at(8))
    assert [seen.second for seen in first] == [5, 6, 7]
    assert [seen.status for seen in first] == [Status.OK, Status.EMPTY, Status.EMPTY]
    assert first[1].rows is None
    assert pipeline.advance(at(8.9)) == []
    assert [seen.second for seen in pipeline.close(8)] == [8]


def test_late_picture_is_counted_and_never_given(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(5.5), camera.shot(1))
    pipeline.close(5)
    pipeline.offer(at(5.9), camera.shot('late'))
    assert pipeline.close(6)[0].status == Status.EMPTY
    assert pipeline.late == 1
    assert camera.decoded == [1]


def test_jump_back_restarts_the_stream(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(100.5), camera.shot(1))
    pipeline.close(100)
    pipeline.offer(at(20.5), camera.shot(2, grey=9))
    (seen,) = pipeline.close(20)
    assert (seen.second, seen.status) == (20, Status.OK)


def test_jump_ahead_does_not_give_the_seconds_between(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(0.5), camera.shot(1))
    pipeline.offer(at(10**9), camera.shot(2))
    assert [seen.second for seen in pipeline.close(10**9 - 1)] == [0]
    assert [seen.second for seen in pipeline.close(10**9)] == [10**9]
    assert [seen.second for seen in pipeline.close(10**9 + LIMITS.longest_empty_s)] == list(
        range(10**9 + 1, 10**9 + LIMITS.longest_empty_s + 1)
    )


def test_unchanged_picture_reuses_the_embedding(encoder, camera):
    pipeline = ImagePipeline(encoder, unchanged_threshold=2.0)
    for second, grey in enumerate((100, 101, 103, 103)):
        pipeline.offer(at(second), camera.shot(second, grey))
    seen = pipeline.close(3)
    # 103 is compared with the encoded 100, not with the 101 that was reused.
    assert [one.reused for one in seen] == [False, True, False, True]
    assert [one.rows[0, 0] for one in seen] == [100, 100, 103, 103]
    assert len(encoder.batches) == 2
    assert seen[1].encode_ms == 0 and seen[1].image_stamp_ns == at(1)
    assert seen[1].source_width == 640


@pytest.mark.parametrize(
    'before, after', [((160, 32, 240), (40, 90, 250)), ((0, 0, 0), (70, 70, 70))]
)
def test_a_small_thing_that_changes_is_seen(encoder, before, after):
    """Of about one grey level, or on a fiftieth of the picture: hardly anything in a mean."""
    pictures = np.full((2, 240, 320, 3), 120, np.uint8)
    pictures[0, 100:140, 100:140] = before
    pictures[1, 100:140, 100:140] = after
    pipeline = ImagePipeline(encoder)
    for second, picture in enumerate(pictures):
        pipeline.offer(at(second), lambda picture=picture: picture)
    assert [seen.reused for seen in pipeline.close(1)] == [False, False]


def test_noise_of_a_camera_is_no_change(encoder, rng):
    pipeline = ImagePipeline(encoder)
    scene = rng.integers(20, 230, (480, 640, 3))
    for second in range(3):
        noisy = np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
        pipeline.offer(at(second), lambda noisy=noisy: noisy)
    assert [seen.reused for seen in pipeline.close(2)] == [False, True, True]


def seen_of(encoder, pictures) -> list:
    """Whether each of these pictures, one a second, reused the embedding of an earlier one."""
    pipeline = ImagePipeline(encoder)
    for second, picture in enumerate(pictures):
        pipeline.offer(at(second), lambda picture=picture: picture)
    return [seen.reused for seen in pipeline.close(len(pictures) - 1)]


def room(rng, low=0, high=256) -> np.ndarray:
    """A scene (480, 640, 3) of flat things of all the levels in a range."""
    return np.kron(rng.integers(low, high, (6, 8, 3)), np.ones((80, 80, 1), int))


@pytest.mark.parametrize('low, high', [(0, 256), (60, 160)])
def test_a_small_thing_is_noticed_in_its_second_in_a_still_scene_of_noise(encoder, rng, low, high):
    empty = room(rng, low, high)
    entered = empty.copy()
    entered[217:249, 301:333] += 40  # 32 pixels, across four cells of the thumbnail
    noisy = [
        np.clip(scene + rng.normal(0, 5, scene.shape), 0, 255).astype(np.uint8)
        for scene in [empty] * 30 + [entered] * 10
    ]
    reused = seen_of(encoder, noisy)
    assert (reused[0], reused[30]) == (False, False)
    assert sum(reused) >= 0.95 * 38


@pytest.mark.parametrize('scale, encoding', [(1, 'mono16'), (1 / 40, 'rgb8')])
def test_what_changes_is_measured_by_the_range_that_the_image_uses(encoder, rng, scale, encoding):
    """A sensor of 10 bits in 16, or the night in 8 bits, would look still by absolute levels."""
    pictures = np.repeat(rng.integers(0, 900, (1, 6, 8)), 4, axis=0)
    pictures = np.kron(pictures, np.ones((1, 20, 20), int))
    pictures[2:, 40:80, 60:100] += 120
    pictures = (pictures * scale).astype(np.uint16)
    if encoding == 'rgb8':
        decoded = [np.repeat(one.astype(np.uint8)[..., None], 3, axis=2) for one in pictures]
    else:
        decoded = [decode_raw(encoding, 120, 160, 320, one.tobytes()) for one in pictures]
    assert seen_of(encoder, decoded) == [False, True, False, True]


@pytest.mark.parametrize('width,threshold', [(640, 0.0), (642, 5.0)])
def test_zero_threshold_or_another_size_is_never_reused(encoder, camera, width, threshold):
    pipeline = ImagePipeline(encoder, unchanged_threshold=threshold)
    pipeline.offer(at(0), camera.shot(0))
    pipeline.offer(at(1), camera.shot(1, width=width))
    assert [seen.reused for seen in pipeline.close(1)] == [False, False]


def test_a_device_that_fails_costs_its_second_alone(encoder, camera):
    pipeline = ImagePipeline(encoder)
    for second in range(3):
        pipeline.offer(at(second), camera.shot(second, grey=50 * second))
    encode, calls = encoder.encode, []

    def failing(tiles, between=None):
        calls.append(1)
        if len(calls) == 2:
            raise EngineError('the device is gone')
        return encode(tiles, between)

    encoder.encode = failing
    seen = pipeline.close(2)
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
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(0), make)
    pipeline.offer(at(1), camera.shot(1))
    lost, after = pipeline.close(1)
    assert (lost.status, lost.rows, lost.image_stamp_ns) == (Status.LOST, None, 0)
    assert lost.reason
    assert after.status == Status.OK
    assert encoder.batches == [[(392, 518, 3)]]


@pytest.mark.parametrize('max_tiles, left', [(1, (1080, 1920, 3)), (9, (2160, 3840, 3))])
def test_a_large_jpeg_is_decoded_as_large_as_it_is_needed(encoder, max_tiles, left):
    file, shapes = io.BytesIO(), []
    Image.new('RGB', (3840, 2160)).save(file, 'JPEG')

    def make(needed):
        decoded = decode_as_needed(file.getvalue(), 'jpeg', needed)
        shapes.append(decoded.pixels.shape)
        return decoded

    pipeline = ImagePipeline(encoder, max_tiles)
    pipeline.offer(at(0), make, as_needed=True)
    (second,) = pipeline.close(0)
    assert (second.source_width, second.source_height, shapes) == (3840, 2160, [left])
    plan = plan_tiles(3840, 2160, max_tiles)
    assert encoder.batches[0] == [(plan.source_height, plan.source_width, 3)]
    assert second.tiles_wide == plan.tiles_wide


@pytest.mark.parametrize('scale', [np.nan, np.inf, 1e3])
def test_embedding_that_float16_cannot_hold_is_lost_and_not_remembered(encoder, camera, scale):
    pipeline = ImagePipeline(encoder)
    encoder.scale = scale
    pipeline.offer(at(0), camera.shot(0))
    (lost,) = pipeline.close(0)
    assert (lost.status, lost.rows) == (Status.LOST, None)
    assert 'not finite' in lost.reason
    encoder.scale = 1.0
    pipeline.offer(at(1), camera.shot(1))
    assert pipeline.close(1)[0].reused is False


def test_slow_encoder_skips_to_the_newest_pictures(encoder, camera):
    pipeline = ImagePipeline(encoder, max_behind=2)
    for second in (0, 1, 2, 4):
        pipeline.offer(at(second), camera.shot(second, grey=10 * second))
    seen = pipeline.close(5)
    assert [one.status for one in seen] == [
        Status.OVERLOADED,
        Status.OVERLOADED,
        Status.OK,
        Status.EMPTY,
        Status.OK,
        Status.EMPTY,
    ]
    assert camera.decoded == [2, 4]
    pipeline.offer(at(6), camera.shot(6))
    assert pipeline.close(6)[0].status == Status.OK


def test_a_second_whose_pictures_were_dropped_is_not_empty_nor_counted_as_work(encoder, camera):
    pipeline = ImagePipeline(encoder, max_behind=1)
    pipeline.drop(0)  # nothing is known of the stream yet
    for second in (1, 4):
        pipeline.offer(at(second), camera.shot(second, grey=10 * second))
    for second in (0, 2, 3, 4):
        pipeline.drop(second)
    pipeline.offer(at(3.5), camera.shot(3.5))
    seen = pipeline.close(1) + pipeline.close(2) + pipeline.close(3) + pipeline.close(5)
    assert [one.status.name for one in seen] == ['OK', 'OVERLOADED', 'OK', 'OK', 'EMPTY']
    assert camera.decoded == [1, 3.5, 4]
    pipeline.offer(at(6), camera.shot(6))
    pipeline.drop(7)
    assert [one.status.name for one in pipeline.close(7)] == ['OK', 'OVERLOADED']


def test_tiles_follow_the_overview_in_batches_the_encoder_takes(encoder, camera):
    pipeline = ImagePipeline(encoder, max_tiles=9)
    pipeline.offer(at(0), camera.shot(0, width=1280, height=720))
    (seen,) = pipeline.close(0)
    assert (seen.tiles_wide, seen.tiles_high) == (3, 2)
    assert seen.rows.shape == ((1 + 6) * 2, 3)
    assert encoder.batches == [[(336, 602, 3)]] + [[(406, 490, 3)] * 2] * 3


def test_the_tile_rule_chooses_the_grid(encoder, camera):
    grids = {}
    for name in TILE_RULES:
        pipeline = ImagePipeline(encoder, max_tiles=9, tile_rule=TileRule(name))
        pipeline.offer(at(0), camera.shot(0, width=640, height=480))
        (seen,) = pipeline.close(0)
        assert len(seen.rows) == (1 + seen.tiles_wide * seen.tiles_high) * 2
        grids[name] = seen.tiles_wide, seen.tiles_high
    assert grids == {
        'minicpm': (2, 1),
        'relaxed': (2, 2),
        'llava_next': (2, 2),
        'internvl': (3, 2),
    }


def test_a_second_that_is_too_late_is_not_even_decoded(encoder, camera):
    pipeline = ImagePipeline(
        encoder, unchanged_threshold=0, is_too_late=lambda second: second == 1
    )
    for second in range(3):
        pipeline.offer(at(second), camera.shot(second))
    assert [seen.status.name for seen in pipeline.close(2)] == ['OK', 'OVERLOADED', 'OK']
    assert camera.decoded == [0, 2]


def test_what_between_raises_goes_out_and_the_second_is_over(encoder, camera):
    class Stopped(Exception):
        pass

    pipeline = ImagePipeline(encoder, between=lambda: fail(Stopped()))
    pipeline.offer(at(0), camera.shot(0))
    with pytest.raises(Stopped):
        pipeline.close(0)
    assert [seen.second for seen in pipeline.close(1)] == [1]


@pytest.mark.parametrize('rate_hz', [0.1, 0.9, 1, 30, 240])
def test_a_camera_of_any_rate_costs_one_picture_a_second(encoder, camera, rate_hz):
    encoder.image_size = 28  # little to scale
    pipeline, seen, seconds = ImagePipeline(encoder, unchanged_threshold=0), [], 30
    stamps = [round(i * NS / rate_hz) for i in range(int(seconds * rate_hz))]
    for stamp_ns in stamps:
        seen += pipeline.advance(stamp_ns)
        pipeline.offer(stamp_ns, camera.shot(stamp_ns, width=64, height=48))
    seen += pipeline.close(seconds - 1)
    newest = {stamp_ns // NS: stamp_ns for stamp_ns in stamps}
    assert [one.second for one in seen] == list(range(seconds))
    assert camera.decoded == list(newest.values())
    for one in seen:
        assert one.image_stamp_ns == newest.get(one.second, 0)
        assert one.status == (Status.OK if one.second in newest else Status.EMPTY)


def test_a_burst_after_a_pause_costs_one_picture_a_second(encoder, camera):
    """What a network that was away for 5 s brings at once."""
    pipeline = ImagePipeline(encoder, unchanged_threshold=0, max_behind=1)
    pipeline.offer(at(0), camera.shot('before'))
    assert len(pipeline.close(0)) == 1
    for i in range(5 * 240):
        pipeline.offer(at(1) + i * NS // 240, camera.shot(i))
    seen = pipeline.close(5)
    assert [one.second for one in seen] == [1, 2, 3, 4, 5]
    assert [one.status for one in seen] == [Status.OVERLOADED] * 4 + [Status.OK]
    assert camera.decoded == ['before', 5 * 240 - 1]


def test_two_cameras_of_different_sizes_are_one_stream(encoder, camera):
    pipeline = ImagePipeline(encoder)
    for second in range(6):
        pipeline.offer(at(second + 0.4), camera.shot('wide', width=640, height=480))
        late_s = 0.6 if second % 2 else 0.2
        pipeline.offer(at(second + late_s), camera.shot('tall', width=240, height=320))
    seen = pipeline.close(5)
    assert [(one.source_width, one.source_height) for one in seen] == [(640, 480), (240, 320)] * 3
    assert camera.decoded == ['wide', 'tall'] * 3
    assert not any(one.reused for one in seen)


def test_a_damaged_picture_is_replaced_by_the_one_before(encoder, camera):
    def damaged():
        raise InputError('It is damaged')

    pipeline = ImagePipeline(encoder)
    for i, make in enumerate((camera.shot('first'), camera.shot('before'), damaged)):
        pipeline.offer(at(5) + i, make)
    (seen,) = pipeline.close(5)
    assert camera.decoded == ['before'] and seen.status == Status.OK
    assert seen.image_stamp_ns == at(5) + 1 and seen.rows is not None
    assert seen.reason == 'It is damaged. The image before it is used.'
    for stamp_ns in (at(6) + 2, at(6) + 1):
        pipeline.offer(stamp_ns, damaged)
    (lost,) = pipeline.close(6)
    assert lost.status == Status.LOST and lost.image_stamp_ns == at(6) + 2


def pixels(encoder):
    """Give the area in pixels of the first tile of each run of the encoder."""
    return [batch[0][0] * batch[0][1] for batch in encoder.batches]


def test_area_changes_from_one_second_to_the_next_and_is_told(encoder, camera):
    pipeline = ImagePipeline(encoder, area=0.4)
    for second, grey in ((1, 10), (2, 60), (3, 110)):
        pipeline.offer(at(second), camera.shot(second, grey))
    seen = pipeline.close(1)
    pipeline.area = 1.0
    seen += pipeline.close(2)
    pipeline.area = 0.25
    seen += pipeline.close(3)
    assert [one.area for one in seen] == [0.4, 1.0, 0.25]
    shares = [count / 448**2 for count in pixels(encoder)]
    assert shares == pytest.approx([0.4, 1.0, 0.25], rel=0.08)
    for wrong in (0.2, 1.1):
        with pytest.raises(InputError, match='0.25 to 1 of the area'):
            pipeline.area = wrong
    assert pipeline.area == 0.25


def test_an_area_beyond_the_memory_that_is_reserved_is_refused(encoder):
    pipeline = ImagePipeline(encoder, area=0.4, largest_area=0.5)
    with pytest.raises(InputError, match='0.25 to 0.5 of the area'):
        pipeline.area = 0.6


def test_a_sharper_embedding_is_used_again_and_a_less_sharp_one_is_not(encoder, camera):
    pipeline = ImagePipeline(encoder, area=0.4)
    seen = []
    for second, area in ((1, 0.4), (2, 1.0), (3, 0.4)):  # of one still scene
        pipeline.area = area
        pipeline.offer(at(second), camera.shot(second))
        seen += pipeline.close(second)
    assert [one.reused for one in seen] == [False, False, True]
    assert [one.area for one in seen] == [0.4, 1.0, 1.0]


def test_every_few_seconds_the_overview_is_sharp(encoder, camera):
    pipeline = ImagePipeline(encoder, unchanged_threshold=0, area=0.25, sharp_every=3)
    for second in range(6, 13):
        pipeline.offer(at(second), camera.shot(second))
    assert [one.area for one in pipeline.close(12)] == [1.0, 0.25, 0.25, 1.0, 0.25, 0.25, 1.0]


def test_what_is_outside_of_the_crop_is_neither_seen_nor_compared(encoder):
    def halves(left, right):
        image = np.full((480, 640, 3), left, np.uint8)
        image[:, 320:] = right
        return lambda: image

    pipeline = ImagePipeline(encoder, crop=Crop.parse('0.5 0 1 1'))
    for second, (left, right) in enumerate([(0, 100), (255, 100), (255, 200)]):
        pipeline.offer(at(second), halves(left, right))
    seen = pipeline.close(2)
    assert [one.reused for one in seen] == [False, True, False]
    assert [one.rows.mean() for one in seen] == [100, 100, 200]
    assert (seen[0].source_width, seen[0].source_height) == (640, 480)
    height, width, _ = encoder.batches[0][0]
    assert height > width  # of the half


class Slow(FakeEncoder):
    """Raises GaveUp for overviews above an area, as a device does that is told to."""

    def __init__(self, governor, most):
        super().__init__()
        self._governor, self._most = governor, most

    def encode(self, tiles, between=None):
        if tiles[0].shape[0] * tiles[0].shape[1] > self._most * 448**2:
            self._governor.check(99.0)
        return super().encode(tiles, between)


def test_an_image_that_takes_too_long_is_encoded_anew_at_the_smallest_area(camera):
    governor = Governor()
    encoder = Slow(governor, 0.5)
    pipeline = ImagePipeline(encoder, max_tiles=9, governor=governor)
    pipeline.offer(at(0), camera.shot(0))
    (seen,) = pipeline.close(0)
    assert (seen.status, seen.area, seen.tiles_wide) == (Status.OK, 0.25, 0)
    assert encoder.batches == [[(196, 252, 3)]] or encoder.batches == [[(196, 266, 3)]]
    assert camera.decoded == [0]  # once


def test_a_lowered_pace_leaves_seconds_and_tiles_out_by_rule(encoder, camera):
    governor = Governor()
    pipeline = ImagePipeline(encoder, 9, unchanged_threshold=0, governor=governor, sharp_every=2)
    governor.note(5.0, 5.0)
    for second in range(4):
        pipeline.offer(at(second), camera.shot(second))
    seen = pipeline.close(3)
    assert [one.status.name for one in seen] == ['OK', 'SKIPPED', 'OK', 'SKIPPED']
    assert {(one.area, one.tiles_wide) for one in seen[::2]} == {(0.25, 0)}  # not even sharp ones
    assert camera.decoded == [0, 2]


def test_a_still_scene_raises_the_pace_and_is_then_seen_anew(encoder, camera):
    governor = Governor()
    pipeline = ImagePipeline(encoder, governor=governor)
    governor.note(2.0, 1.0)
    areas = []
    for second in range(6):
        pipeline.offer(at(second), camera.shot(second))
        areas += [(one.area, one.reused) for one in pipeline.close(second)]
    assert areas[0] == (0.25, False) and areas[-1][0] == 1.0
    assert [reused for _, reused in areas].count(False) == 2  # at the small and the full area


def test_the_area_that_is_wanted_is_the_governors_best(encoder, camera):
    pipeline = ImagePipeline(encoder, area=0.5, governor=(governor := Governor()))
    assert governor.pace.area == 0.5
    pipeline.area = 0.4
    assert governor.pace.area == 0.4


def test_a_look_is_sharp_and_leaves_the_stream_as_it_is(encoder, camera):
    pipeline = ImagePipeline(encoder, area=0.25)
    with pytest.raises(InputError, match='No image has come'):
        pipeline.look(1)
    pipeline.offer(at(1.5), camera.shot('one', 50))
    (live,) = pipeline.close(1)
    seen = pipeline.look(1)
    assert (seen.image_stamp_ns, seen.area, seen.status) == (at(1.5), 1.0, Status.OK)
    assert pixels(encoder)[1] > 3.5 * pixels(encoder)[0]
    pipeline.offer(at(2.5), camera.shot('two', 50))
    assert pipeline.look(1).image_stamp_ns == at(2.5)  # also of a second that has not ended
    (again,) = pipeline.close(2)
    assert again.reused and again.area == 0.25 and again.rows is live.rows


def test_a_look_in_tiles_has_the_overview_and_the_tiles(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(1), camera.shot(1, width=1280, height=720))
    seen = pipeline.look(9)
    assert (seen.tiles_wide, seen.tiles_high) == (3, 2) and len(seen.rows) == 2 * 7
    assert len(encoder.batches) == 4  # the overview, and two tiles at a time


def test_a_look_at_what_the_window_has_as_sharply_costs_nothing(encoder, camera):
    pipeline = ImagePipeline(encoder)
    pipeline.offer(at(1), camera.shot(1))
    (live,) = pipeline.close(1)
    assert pipeline.look(1).rows is live.rows and len(encoder.batches) == 1


def test_an_image_that_is_sent_is_seen_whole_and_a_damaged_one_refused(encoder, camera):
    pipeline = ImagePipeline(encoder, crop=Crop.parse('0 0 0.5 1'))
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 320:] = 200
    seen = pipeline.look(1, lambda needed: Decoded.whole(image), 7)
    assert seen.rows.mean() == pytest.approx(100, abs=1) and seen.image_stamp_ns == 7
    with pytest.raises(InputError, match='neither JPEG'):
        pipeline.look(1, lambda needed: decode_as_needed(b'nothing', '', needed))
