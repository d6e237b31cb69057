# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The Starts of `launching` as actions of `launch`, which comes with a ROS 2 distribution only."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def describe(arguments: tuple, starts) -> LaunchDescription:
    """Give the description of a launch file: its arguments, and what `starts` makes of them."""

    def make_nodes(context) -> list:
        given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in arguments}
        config = Path(get_package_share_directory('minicpmo_ros')) / 'config'
        return [make_node(start, given) for start in starts(given, config)]

    return LaunchDescription(
        [DeclareLaunchArgument(n, default_value=v, description=d) for n, v, d in arguments]
        + [OpaqueFunction(function=make_nodes)]
    )


def make_node(start, given: dict) -> Node:
    """Give the action of one Start."""
    ending = {'on_exit': Shutdown()} if start.ends_all else {}
    return Node(
        package='minicpmo_ros',
        executable=start.executable,
        name=start.name,
        namespace=given['namespace'],
        parameters=[as_given(values) for values in start.parameters],
        remappings=start.remappings,
        arguments=['--ros-args', '--log-level', given['log_level']],
        respawn=start.respawn,
        respawn_delay=2.0,
        output='screen',
        **ending,
    )


def as_given(values):
    """Keep a text a text, whatever YAML would make of it: a model directory may be called 7."""
    if isinstance(values, str):
        return values
    return {name: ParameterValue(value, value_type=type(value)) for name, value in values.items()}
