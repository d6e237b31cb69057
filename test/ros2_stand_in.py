# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""`ros2 launch minicpmo_ros ...` and `ros2 service call`, where there is no distribution.

Run as a program with the words behind `ros2`. It starts the executables that the launch file would
start, with the same arguments, and ends them at Ctrl-C.
"""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import rclpy
import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory

from minicpmo_ros.ros.launch.parameter_sources import write
from minicpmo_ros.ros.launch.process_specs import ARGUMENTS, process_specs


def launch(package: str, file: str, *words: str) -> int:
    """Run live.launch.py until one of its processes ends, or Ctrl-C."""
    assert (package, file) == ('minicpmo_ros', 'live.launch.py')
    given = {name: default for name, default, _ in ARGUMENTS}
    given |= dict(word.split(':=', 1) for word in words)
    config = Path(get_package_share_directory(package)) / 'config'
    folder, processes = Path(get_package_prefix(package)) / 'lib' / package, []
    for spec in process_specs(given, config):
        rules = [*spec.remappings]
        rules += [('__node', spec.name)] if spec.name else []
        rules += [('__ns', given['namespace'])] if given['namespace'] else []
        remapped = [part for old, new in rules for part in ('-r', f'{old}:={new}')]
        parameters = ['--params-file', write(spec.parameters)]
        command = [folder / spec.executable, *spec.arguments, '--ros-args', *remapped, *parameters]
        processes.append(subprocess.Popen(command))
    # Ctrl-C reaches them too: they are in the same group of the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return max(process.wait() for process in processes)


def call(word: str, name: str, kind: str, request: str) -> int:
    """Call a service once, and print its reply."""
    assert word == 'call'
    package, group, message = kind.split('/')
    made = getattr(importlib.import_module(f'{package}.{group}'), message)
    rclpy.init()
    node = rclpy.create_node('caller')
    client = node.create_client(made, name)
    client.wait_for_service()
    asked = made.Request()
    for field, value in yaml.safe_load(request).items():
        setattr(asked, field, value)
    future = client.call_async(asked)
    rclpy.spin_until_future_complete(node, future)
    print(future.result())
    rclpy.shutdown()
    return 0


if __name__ == '__main__':
    verb, *rest = sys.argv[1:]
    raise SystemExit({'launch': launch, 'service': call}[verb](*rest))
