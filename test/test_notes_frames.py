# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where a frame is in another: as matrices say it, whatever the tree, or a reason why not.

The oracle has no quaternions: rotations are matrices made by Rodrigues' formula, put together and
inverted by NumPy; a quaternion is taken from a matrix as an eigenvector.
"""

import random

import numpy as np
import pytest

from minicpmo_ros.notes.frames import CLOSEST_NS, FrameTree, NoTransformError, Transform
from minicpmo_ros.units import NS

START_NS, STEP_NS, AGE_S = 1_700_000_000 * NS, NS // 10, 2.0


def turn(axis, angle):
    """Give the matrix (3, 3) of a rotation."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def quaternion_of(m):
    """Give (x, y, z, w) of a rotation matrix, up to its sign."""
    k = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
        [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
        [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
    ])  # fmt: skip
    return np.linalg.eigh(k)[1][:, -1]


def placed(rotation, translation):
    """Give the matrix (4, 4) of a transform."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


class Edge:
    """A frame in its parent: it jumps about, and moves steadily between two steps."""

    def __init__(self, rng, parent, is_static, n_steps):
        self.parent, self.is_static = parent, is_static
        self._moves = rng.normal(0, 3, (n_steps, 3))
        self._axes, self._angles = rng.normal(0, 1, (n_steps, 3)), rng.uniform(0, 3.1, n_steps)
        self._starts = [turn(rng.normal(0, 1, 3), rng.uniform(0, 3.1))]
        for axis, angle in zip(self._axes, self._angles):
            self._starts.append(self._starts[-1] @ turn(axis, angle))

    def at(self, steps):
        """Give the matrix (4, 4) at so many steps since the start."""
        n, share = (0, 0.0) if self.is_static else (int(steps), steps % 1)
        end = min(n + 1, len(self._moves) - 1)
        move = (1 - share) * self._moves[n] + share * self._moves[end]
        return placed(self._starts[n] @ turn(self._axes[n], share * self._angles[n]), move)

    def transform(self, step, sign):
        """Give what is published at a step; a quaternion and its negative are one rotation."""
        matrix = self.at(step)
        rotation = sign * 0.999 * quaternion_of(matrix[:3, :3])  # as drivers round them
        return Transform(tuple(matrix[:3, 3]), tuple(rotation))


@pytest.mark.parametrize('seed', range(25))
def test_random_trees_are_put_together_as_matrices_are(seed):
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    n_frames = draw.randrange(2, 13)
    n_steps = n_frames + 8
    edges = {}
    for n in range(1, n_frames):
        parent = f'f{draw.randrange(n)}'
        edges[f'f{n}'] = Edge(rng, parent, draw.random() < 0.3, n_steps)
    target, source = draw.sample(range(n_frames), 2)
    tree = FrameTree(f'/f{target}', f'f{source}', AGE_S)
    for step in range(n_steps):
        for child, edge in draw.sample(sorted(edges.items()), len(edges)):
            if not edge.is_static or step == 0:
                sign = draw.choice((-1, 1))
                stamp_ns = START_NS + step * STEP_NS
                tree.add(edge.parent, child, stamp_ns, edge.transform(step, sign), edge.is_static)

    def in_root(frame, steps):
        matrix = np.eye(4)
        while frame in edges:
            matrix, frame = edges[frame].at(steps) @ matrix, edges[frame].parent
        return matrix

    for steps in [n_steps - 1, *rng.uniform(n_frames, n_steps - 1, 20)]:
        found = tree.where(START_NS + int(steps * STEP_NS))
        steps = int(steps * STEP_NS) / STEP_NS
        expected = np.linalg.inv(in_root(f'f{target}', steps)) @ in_root(f'f{source}', steps)
        np.testing.assert_allclose(found.translation, expected[:3, 3], atol=1e-6)
        rotation = quaternion_of(expected[:3, :3])
        assert abs(np.dot(found.rotation, rotation)) > 1 - 1e-9
        np.testing.assert_allclose(np.linalg.norm(found.rotation), 1, atol=1e-9)
        x_axis = expected[:3, 0]
        if np.hypot(*x_axis[:2]) > 1e-3:
            assert np.cos(found.yaw - np.arctan2(x_axis[1], x_axis[0])) > 1 - 1e-6
    newest = tree.where()
    np.testing.assert_allclose(
        newest.translation, tree.where(START_NS + (n_steps - 1) * STEP_NS).translation
    )


def robot():
    """Give a tree map -> odom -> base_link; odom is stamped as AMCL stamps it: 1 s ahead."""
    tree = FrameTree('map', 'base_link', AGE_S)
    tree.add('base_footprint', 'base_link', 0, Transform((0, 0, 0.1)), True)
    for n in range(101):  # 50 Hz for two seconds
        at_ns = START_NS + n * NS // 50
        tree.add('odom', 'base_footprint', at_ns, Transform((n / 50, 0, 0)), False)
    return tree


def kind_of(tree, at_s):
    with pytest.raises(NoTransformError) as caught:
        tree.where(START_NS + int(at_s * NS))
    return caught.value.kind, str(caught.value)


def test_a_localisation_that_stamps_into_the_future_serves_with_a_single_transform():
    tree = robot()
    kind, text = kind_of(tree, 1)
    assert kind == 'unknown map' and 'known is odom -> base_footprint -> base_link.' in text
    tree.add('world', 'map', START_NS, Transform(), True)
    kind, text = kind_of(tree, 1)
    assert kind == 'apart' and 'world -> map and odom -> base_footprint -> base_link' in text
    tree.add('map', 'odom', START_NS + 2 * NS, Transform((10, 0, 0)), False)
    assert tree.where(START_NS + NS).translation == pytest.approx((11, 0, 0.1))
    tree.add('map', 'odom', START_NS + 3 * NS, Transform((11, 0, 0)), False)
    assert tree.where(START_NS + NS).translation == pytest.approx((11, 0, 0.1))
    assert tree.where(START_NS + 5 * NS // 2).translation == pytest.approx((12.5, 0, 0.1))
    assert tree.where().translation == pytest.approx((12, 0, 0.1))  # odometry is behind


def test_what_is_too_old_is_told_with_the_frame_and_by_how_much():
    tree = robot()
    tree.add('map', 'odom', START_NS + NS, Transform((10, 0, 0)), False)
    assert tree.where(START_NS + 3 * NS)
    kind, text = kind_of(tree, 3.5)
    assert kind == 'old odom' and 'map -> odom was published 2.5 s before' in text, text
    tree.add('map', 'odom', START_NS + 20 * NS, Transform((20, 0, 0)), False)
    tree.add('odom', 'base_footprint', START_NS + 16 * NS, Transform(), False)
    kind, text = kind_of(tree, 16)  # nobody knows what was between
    assert kind == 'old odom' and 'was published 4.0 s after' in text, text


def test_an_unknown_frame_is_named_and_a_loop_ends():
    tree = FrameTree('map', 'base_link', AGE_S)
    kind, text = kind_of(tree, 0)
    assert kind == 'unknown base_link' and 'memory.base_frame' in text
    tree.add('a', 'base_link', START_NS, Transform(), False)
    assert kind_of(tree, 0)[0] == 'unknown map'
    tree.add('base_link', 'a', START_NS, Transform(), False)
    tree.add('b', 'map', START_NS, Transform(), False)
    assert kind_of(tree, 0)[0] == 'apart'


@pytest.mark.parametrize(
    'wrong',
    [
        Transform((0, float('nan'), 0)),
        Transform((0, 0, float('inf'))),
        Transform(rotation=(0, 0, 0, 0)),
        Transform(rotation=(0, 0, 0, float('nan'))),
    ],
)
def test_what_is_no_transform_is_refused_and_changes_nothing(wrong):
    tree = robot()
    tree.add('map', 'odom', START_NS, Transform((10, 0, 0)), False)
    before = tree.where(START_NS + NS)
    for parent, child, where in (('map', 'odom', wrong), ('odom', 'odom', Transform()),
                                 ('map', '', Transform())):  # fmt: skip
        with pytest.raises(ValueError, match='is no'):
            tree.add(parent, child, START_NS + NS, where, False)
    assert tree.where(START_NS + NS) == before


def test_time_that_jumps_back_and_a_new_parent_begin_anew():
    tree = robot()
    tree.add('map', 'odom', START_NS + 2 * NS, Transform((10, 0, 0)), False)
    early_ns = START_NS - 3600 * NS
    tree.add('map', 'odom', early_ns, Transform((1, 0, 0)), False)
    tree.add('odom', 'base_footprint', early_ns, Transform((0, 5, 0)), False)
    assert tree.where(early_ns).translation == pytest.approx((1, 5, 0.1))
    assert kind_of(tree, 1)[0].startswith('old')
    tree.add('map', 'base_footprint', early_ns, Transform((7, 0, 0)), False)
    assert tree.where(early_ns).translation == pytest.approx((7, 0, 0.1))


def test_after_a_short_jump_back_a_place_is_of_the_new_time_and_not_of_the_old():
    tree = FrameTree('map', 'base_link', AGE_S)
    for begin_s, x in ((0, 100), (5, 7)):  # a simulation of 20 s that was reset to its fifth
        for n in range(80):
            at_ns = START_NS + begin_s * NS + n * NS // 4
            tree.add('map', 'base_link', at_ns, Transform((x, 0, 0)), False)
            assert tree.where(at_ns).translation[0] == tree.where().translation[0] == x


def test_stamps_out_of_order_are_put_in_order():
    tree = FrameTree('map', 'base_link', AGE_S)
    for n in (0, 3, 1, 2, 1):
        tree.add('map', 'base_link', START_NS + n * NS, Transform((n * n, 0, 0)), False)
    for at_s, x in ((0.5, 0.5), (1.5, 2.5), (2.5, 6.5)):
        assert tree.where(START_NS + int(at_s * NS)).translation[0] == pytest.approx(x)


def test_a_robot_of_many_joints_at_a_kilohertz_fills_no_memory():
    tree = FrameTree('map', 'base_link', AGE_S, keep_s=2.0)
    for n in range(10_000):
        at_ns = START_NS + n * NS // 1000
        tree.add('map', 'base_link', at_ns, Transform((n / 1000, 0, 0)), False)
        tree.add('base_link', f'finger_{n % 50}', at_ns, Transform(), False)
    assert 20 < len(tree) <= 2 * 2 * NS // CLOSEST_NS + 2
    for at_s in (8.1, 9.0333, 9.999):
        assert tree.where(START_NS + int(at_s * NS)).translation[0] == pytest.approx(
            at_s, abs=1e-4
        )
    with pytest.raises(ValueError, match='more than 10000 frames'):
        for n in range(10_001):
            tree.add('base_link', f'mast_{n}', 0, Transform(), True)
