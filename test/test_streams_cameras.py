# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Several cameras: a second has the image of each, in their order; none holds up the others."""

import numpy as np
import pytest
from test_streams_image import FakeEncoder, at

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.image.tiling import Decoded
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.cameras import CameraPipelines
from minicpmo_ros.streams.image import ImagePipeline
from minicpmo_ros.streams.pairing import MOST_CAMERAS, cameras_of

NAMES, LEVELS = ('front', 'left', 'arm/wrist'), {'front': 40, 'left': 120, 'arm/wrist': 200}


@pytest.fixture
def pipelines():
    encoder = FakeEncoder()
    return CameraPipelines(NAMES, lambda: ImagePipeline(encoder, unchanged_threshold=0.0))


def offer(pipelines, name, time_s, level=None):
    """Offer an image of one level, or a damaged one."""

    def make():
        if level == 'damaged':
            raise InputError('it is cut off')
        return np.full((48, 64, 3), LEVELS[name] if level is None else level, np.uint8)

    pipelines.offer(at(time_s), (name, make))


def test_the_images_of_a_second_follow_one_another_in_the_order_of_the_names(pipelines):
    for name in reversed(NAMES):
        offer(pipelines, name, 7.2, level=0)
        offer(pipelines, name, 7.8)
    assert pipelines.next_second == 7
    (seen,) = pipelines.close(7)
    assert seen.second == 7 and seen.status == Status.OK and seen.cameras == NAMES
    assert seen.rows.dtype == np.float16 and seen.rows.shape == (6, 3) and not seen.reason
    np.testing.assert_array_equal(seen.rows[:, 0], np.repeat(list(LEVELS.values()), 2))


@pytest.mark.parametrize('how', ['never', 'not now', 'damaged'])
def test_a_camera_without_an_image_is_left_out_and_told_and_the_others_go_on(pipelines, how):
    for second in (6, 7):
        for name in NAMES:
            if name != 'left' or (how == 'not now' and second == 6):
                offer(pipelines, name, second + 0.5)
            elif how == 'damaged':
                offer(pipelines, name, second + 0.5, 'damaged')
    *_, seen = pipelines.close(7)
    assert seen.cameras == ('front', 'arm/wrist') and len(seen.rows) == 4
    why = {'never': 'none has come yet', 'not now': 'none came', 'damaged': 'it is cut off'}[how]
    assert seen.reason == f'camera left has no image for a second: {why}'


def test_a_second_in_which_no_camera_has_an_image_says_why(pipelines):
    for name in NAMES:
        offer(pipelines, name, 6.5)
    offer(pipelines, 'left', 7.5, 'damaged')
    _, lost, empty = pipelines.close(8)
    assert (lost.status, empty.status) == (Status.LOST, Status.EMPTY)
    assert lost.rows is None and 'cut off' in lost.reason


def test_a_look_is_at_the_newest_image_of_every_camera_that_is_not_long_past(pipelines):
    with pytest.raises(InputError, match='No image has come yet'):
        pipelines.look(1)
    offer(pipelines, 'left', 1.5)
    offer(pipelines, 'front', 7.2)
    offer(pipelines, 'arm/wrist', 7.5)
    offer(pipelines, 'front', 8.1, level=90)
    seen = pipelines.look(1)
    assert seen.status == Status.OK and seen.cameras == ('front', 'arm/wrist')
    np.testing.assert_array_equal(seen.rows[:, 0], [90, 90, 200, 200])
    assert seen.image_stamp_ns == at(7.5)  # nothing in it is older
    with pytest.raises(InputError, match='not cut into tiles'):
        pipelines.look(4)
    sent = pipelines.look(1, lambda _: Decoded(np.full((48, 64, 3), 7, np.uint8), 64, 48), at(3))
    assert sent.cameras == () and set(sent.rows[:, 0]) == {7}
    (*_, last) = pipelines.close(8)
    assert last.cameras == ('front',)  # the stream goes on as if nothing had been looked at


@pytest.mark.parametrize(
    'text', ['front, front', 'fr ont', '/front', 'front/', '<image>', 'f' * 33, '1st',
             ','.join(f'c{n}' for n in range(MOST_CAMERAS + 1))],
)  # fmt: skip
def test_what_is_no_name_of_a_camera_is_refused(text):
    with pytest.raises(InputError, match='letters, digits, _ and / are allowed'):
        cameras_of(text)
    assert cameras_of(' front,left ,') == ('front', 'left') and cameras_of('') == ()
