# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A robot's TF, as nav2 and its drivers publish it, with the stamps that a test wants.

Static frames are latched, as robot_state_publisher does; for every line `SECOND` that is read, the
odometry of that second comes at 50 Hz, and for `SECOND localised` also map -> odom as AMCL sends
it: stamped a second into the future. The robot goes 0.5 m in a second, and turns.
"""

import math
import sys

import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

RATE_HZ = 50
AHEAD_S = 1  # AMCL's transform_tolerance


def transform(parent: str, child: str, stamp_s: float, x=0.0, y=0.0, z=0.0, yaw=0.0):
    """Give a TransformStamped."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(round(stamp_s * 1e9), 10**9)
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = float(x), float(y), float(z)
    turn.z, turn.w = math.sin(yaw / 2), math.cos(yaw / 2)
    return message


def main(first: int) -> None:
    """Publish until there is nothing more to read."""
    rclpy.init()
    node = rclpy.create_node('robot')
    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    static = node.create_publisher(TFMessage, '/tf_static', latched)
    moving = node.create_publisher(TFMessage, '/tf', QoSProfile(depth=200))
    static.publish(TFMessage(transforms=[
        transform('base_footprint', 'base_link', 0, z=0.1),
        transform('base_link', 'camera', 0, x=0.2),
    ]))  # fmt: skip
    while moving.get_subscription_count() == 0:
        rclpy.spin_once(node, timeout_sec=0.05)
    print('heard', flush=True)
    for line in sys.stdin:
        second, *localised = line.split()
        for n in range(RATE_HZ):
            at_s = int(second) + n / RATE_HZ
            odometry = transform('odom', 'base_footprint', at_s, x=(at_s - first) / 2)
            wheel = transform('base_link', 'wheel', at_s, yaw=at_s - first)
            moving.publish(TFMessage(transforms=[wheel, odometry]))
        if localised:
            at_s = int(second) + AHEAD_S
            moving.publish(
                TFMessage(transforms=[transform('map', 'odom', at_s, x=10, yaw=math.pi / 2)])
            )
        print(second, flush=True)
    rclpy.shutdown()


if __name__ == '__main__':
    main(int(sys.argv[1]))
