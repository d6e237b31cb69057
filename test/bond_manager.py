# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A lifecycle manager as nav2's: brings nodes up one by one, each held by a bond, and down again.

It says 'formed NAME' where a node's bond was heard, 'kept NAME' where it was still heard after
'go on' was read, and 'broken NAME' where the node said that it ended.
"""

import sys

import rclpy
from bond.msg import Status
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import QoSProfile


def main(namespace: str, *names: str) -> None:
    """Do it; ends with an error where a transition is refused."""
    rclpy.init()
    node = rclpy.create_node('lifecycle_manager', namespace=namespace)
    heard = []

    def wait_for(name: str, active: bool) -> None:
        heard.clear()
        while not any(m.id == name and m.active == active for m in heard):
            rclpy.spin_once(node, timeout_sec=0.05)
        assert len({m.instance_id for m in heard if m.id == name}) == 1

    def change(name: str, transition: str) -> None:
        client = node.create_client(ChangeState, f'{name}/change_state')
        client.wait_for_service()
        request = ChangeState.Request()
        request.transition.label = transition
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future)
        assert future.result().success, (name, transition)

    for name in names:
        change(name, 'configure')
        change(name, 'activate')
        # Made after the activation, as nav2 makes it.
        if name == names[0]:
            node.create_subscription(Status, 'bond', heard.append, QoSProfile(depth=100))
        wait_for(name, True)
        print('formed', name, flush=True)
    sys.stdin.readline()
    for name in names:
        wait_for(name, True)
        print('kept', name, flush=True)
    for name in reversed(names):
        change(name, 'deactivate')
        wait_for_end(node, heard, name)
        print('broken', name, flush=True)
        change(name, 'cleanup')


def wait_for_end(node, heard: list, name: str) -> None:
    """Wait until a node has said that its bond ends; it may have been said already."""
    while not any(m.id == name and not m.active for m in heard):
        rclpy.spin_once(node, timeout_sec=0.05)


if __name__ == '__main__':
    main(*sys.argv[1:])
