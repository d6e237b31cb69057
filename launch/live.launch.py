# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Live eyes and ears: the three nodes in one process, or with composed:=false in three."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from minicpmo_ros.nodes.launching import ARGUMENTS, starts


def generate_launch_description():
    """Give the launch description; what is decided is decided in `launching`."""
    return LaunchDescription(
        [DeclareLaunchArgument(n, default_value=v, description=d) for n, v, d in ARGUMENTS]
        + [OpaqueFunction(function=make_nodes)]
    )


def make_nodes(context):
    """Give the nodes for the arguments of this launch."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    config = Path(get_package_share_directory('minicpmo_ros')) / 'config'
    return [
        Node(
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
        )
        for start in starts(given, config)
    ]


def as_given(values):
    """Keep a text a text, whatever YAML would make of it: a model directory may be called 7."""
    if isinstance(values, str):
        return values
    return {name: ParameterValue(value, value_type=type(value)) for name, value in values.items()}
