# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Live eyes and ears: the three nodes in one process, or with composed:=false in three."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = (
    ('preset', 'nano', 'Name of a YAML in share/minicpmo_ros/config'),
    ('model_dir', 'nano', 'Model directory, or the name of an embedded model'),
    ('namespace', '', 'Namespace of all nodes'),
    ('use_sim_time', 'false', 'Time comes from /clock'),
    ('log_level', 'info', 'debug, info, warn, error'),
    ('composed', 'true', 'One process (true) or three (false)'),
    ('respawn', 'true', 'Start a node again that ended'),
    ('image_topic', 'image', 'Camera; compressed pictures on this name with /compressed'),
    ('audio_topic', 'audio', 'Microphone'),
    ('audio_info_topic', [LaunchConfiguration('audio_topic'), '_info'], 'Format of the sound'),
    ('play', '', 'A file to play as camera and microphone'),
)


def generate_launch_description():
    """Give the launch description; it holds no logic of its own."""
    given = LaunchConfiguration
    params_file = PathJoinSubstitution(
        [FindPackageShare('minicpmo_ros'), 'config', [given('preset'), '.yaml']]
    )
    inputs = [
        ('image', given('image_topic')),
        ('image/compressed', [given('image_topic'), '/compressed']),
        ('audio', given('audio_topic')),
        ('audio_info', given('audio_info_topic')),
    ]

    def node(executable, condition, name=None, remappings=(), parameters=()):
        return Node(
            package='minicpmo_ros',
            executable=executable,
            name=name,
            namespace=given('namespace'),
            parameters=[
                given('params_file'),
                {
                    'use_sim_time': given('use_sim_time'),
                    # Of any directory's name the text, not what YAML would make of it.
                    'model_dir': ParameterValue(given('model_dir'), value_type=str),
                },
                *parameters,
            ],
            remappings=[*inputs, *remappings],
            arguments=['--ros-args', '--log-level', given('log_level')],
            respawn=given('respawn'),
            respawn_delay=2.0,
            output='screen',
            condition=condition,
        )

    composed, apart = IfCondition(given('composed')), UnlessCondition(given('composed'))
    embeddings = [
        ('audio_embedding', 'streaming_encoder/embedding'),
        ('image_embedding', 'vision_encoder/embedding'),
    ]
    return LaunchDescription(
        [DeclareLaunchArgument(n, default_value=v, description=d) for n, v, d in ARGUMENTS]
        + [
            DeclareLaunchArgument(
                'params_file', default_value=params_file, description='Instead of a preset'
            ),
            # No name: it would rename all three nodes.
            node('live', composed),
            node('streaming_encoder', apart, name='streaming_encoder'),
            node('vision_encoder', apart, name='vision_encoder'),
            node('llm', apart, name='llm', remappings=embeddings),
            Node(
                package='minicpmo_ros',
                executable='media_player',
                name='media_player',
                namespace=given('namespace'),
                parameters=[
                    {
                        'file': given('play'),
                        'wait_for_subscribers': True,
                        # The one who plays is where simulated time comes from.
                        'publish_clock': given('use_sim_time'),
                    }
                ],
                arguments=['--ros-args', '--log-level', given('log_level')],
                remappings=inputs,
                output='screen',
                condition=IfCondition(PythonExpression(["'", given('play'), "' != ''"])),
            ),
        ]
    )
