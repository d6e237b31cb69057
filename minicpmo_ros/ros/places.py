# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Where the robot is, for its notes: by the topic `pose`, else by the transforms of TF.

The messages of TF come with the package tf2_msgs. tf2_ros is not needed: what it does with them is
little here (notes/frames.py), and few machines without a distribution have it. A robot publishes
transforms up to hundreds of times a second, so they are taken together, past the executor.
"""

import math

from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from minicpmo_ros.errors import InputError
from minicpmo_ros.notes.frames import FrameTree, NoTransformError, Transform
from minicpmo_ros.notes.note import Pose
from minicpmo_ros.ros.framework.threads import Poller
from minicpmo_ros.ros.messages import stamp_ns_of
from minicpmo_ros.units import NS

try:
    from tf2_msgs.msg import TFMessage
except ImportError:
    TFMessage = None

POSE_AGE_S = 2.0  # of a pose or a transform, at most, by its stamp
LOOK_PERIOD_S = 0.2
POSE_QOS = QoSProfile(depth=100)
TF_TOPICS = (
    ('/tf_static', True, QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)),
    ('/tf', False, QoSProfile(depth=1000)),  # of many publishers, between two looks
)
NO_TF2_MSGS = (
    'the package tf2_msgs is not installed: notes have a place only by the topic pose. Install '
    'it, or set memory.map_frame to an empty text'
)


class Places:
    """Listens where the robot is; for the executor's thread, but for `here`. A thread takes in."""

    def __init__(self, node):
        self._node = node
        self._poller = self._tree = self._pose = None
        self._told, self._has_tf, self._has_told_bad = set(), False, False

    def begin(self, map_frame: str, base_frame: str) -> None:
        """Listen; `map_frame` '': not to TF."""
        self.end()
        self._poller = Poller(self._node)
        self._poller.period_s = LOOK_PERIOD_S
        self._poller.subscribe(PoseStamped, 'pose', self._on_pose, POSE_QOS)
        if not map_frame:
            return
        if TFMessage is None:
            self._node.get_logger().info(NO_TF2_MSGS)
            return
        self._tree = FrameTree(map_frame, base_frame, POSE_AGE_S)
        for topic, is_static, qos in TF_TOPICS:
            take = self._on_static if is_static else self._on_moving
            self._poller.subscribe(TFMessage, topic, take, qos)

    def end(self) -> None:
        """Listen no more, and forget the place."""
        if self._poller is not None:
            self._poller.close()
        self._poller = self._tree = self._pose = None
        self._told, self._has_tf = set(), False

    def here(self, at_s: float | None = None) -> Pose | None:
        """Return where the robot was at a time, None where that is not known; from any thread.

        Without a time: the newest place.
        """
        if (poller := self._poller) is not None:
            poller.read()
        if (known := self._pose) is not None:
            stamp_s, pose = known
            if at_s is None or abs(stamp_s - at_s) <= POSE_AGE_S:
                return pose
        tree = self._tree
        if tree is None or not self._has_tf:
            return None
        try:
            found = tree.where(None if at_s is None else int(at_s * NS))
            pose = Pose(tree.target, *found.translation, found.yaw)
        except NoTransformError as error:
            if error.kind not in self._told:
                self._told.add(error.kind)
                self._node.get_logger().warning(f'notes have no place: {error}')
            return None
        except InputError as error:
            self._tell_bad(f'notes have no place: {error}')
            return None
        self._told.clear()
        return pose

    def _on_pose(self, message: PoseStamped) -> None:
        self._pose = None  # until it is known to be one
        try:
            self._pose = stamp_ns_of(message) / NS, pose_of(message)
        except InputError as error:
            self._tell_bad(f'a message of pose is left out: {error}')

    def _on_moving(self, message) -> None:
        self._add(message, is_static=False)

    def _on_static(self, message) -> None:
        self._add(message, is_static=True)

    def _add(self, message, is_static: bool) -> None:
        tree, self._has_tf = self._tree, True
        for one in message.transforms if tree is not None else ():
            move, turn = one.transform.translation, one.transform.rotation
            where = Transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
            try:
                parent, child = one.header.frame_id, one.child_frame_id
                tree.add(parent, child, stamp_ns_of(one), where, is_static)
            except ValueError as error:
                self._tell_bad(f'a transform of TF is left out: {error}')

    def _tell_bad(self, text: str) -> None:
        if not self._has_told_bad:
            self._has_told_bad = True
            self._node.get_logger().warning(text)


def pose_of(message: PoseStamped) -> Pose:
    """Return a message as a Pose; raises InputError where its numbers are none."""
    at, turn = message.pose.position, message.pose.orientation
    yaw = math.atan2(
        2 * (turn.w * turn.z + turn.x * turn.y), 1 - 2 * (turn.y * turn.y + turn.z * turn.z)
    )
    return Pose(message.header.frame_id, at.x, at.y, at.z, yaw)
