# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Turns ProcessSpecs into actions of `launch`, which only a ROS 2 distribution has."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, LogInfo, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from minicpmo_ros.ros.launch.parameter_sources import ParameterSource, write
from minicpmo_ros.ros.launch.process_specs import Around, namespace


def describe(arguments: tuple, make_specs) -> LaunchDescription:
    """Return the description of a launch file: its arguments, and what `make_specs` makes of them.

    They are scoped, so that our defaults do not leak into a file that includes this one.
    """

    def make_nodes(context) -> list:
        given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in arguments}
        config = Path(get_package_share_directory('minicpmo_ros')) / 'config'
        around = around_of(context)
        given['namespace'] = namespace(given)
        if given['namespace'].strip('/') == around.namespace.strip('/'):
            given['namespace'] = ''  # the same one, pushed and handed on
        actions = []
        for spec in make_specs(given, config, around):
            if spec.told:
                actions.append(LogInfo(msg=f'{spec.executable}: {spec.told}'))
            actions.append(make_node(spec, given))
        return actions

    declared = [DeclareLaunchArgument(n, default_value=v, description=d) for n, v, d in arguments]
    return LaunchDescription([GroupAction([*declared, OpaqueFunction(function=make_nodes)])])


def around_of(context) -> Around:
    """Return what the including files set for all nodes (SetParameter and the like)."""
    found = []
    for parameter in context.launch_configurations.get('global_params', ()):
        if isinstance(parameter, str):
            found.append(ParameterSource('file of the including launch file', parameter))
        else:
            name, value = parameter
            found.append(
                ParameterSource('the including launch file', values=((str(name), value),))
            )
    return Around(tuple(found), context.launch_configurations.get('ros_namespace', '') or '')


def make_node(spec, given: dict) -> Node:
    """Return the launch action of one ProcessSpec."""
    ending = {'on_exit': Shutdown()} if spec.shutdown_on_exit else {}
    return Node(
        package='minicpmo_ros',
        executable=spec.executable,
        name=spec.name,
        namespace=given['namespace'],
        parameters=[write(spec.parameters)],
        remappings=spec.remappings,
        arguments=[*spec.arguments, '--ros-args', '--log-level', given['log_level']],
        respawn=spec.respawn,
        respawn_delay=2.0,
        output='screen',
        **ending,
    )
