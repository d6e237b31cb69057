# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about bags, asked of the live graph in lock-step; ends when all are answered."""

from minicpmo_ros.ros.launch.actions import describe
from minicpmo_ros.ros.launch.process_specs import REPLAY_ARGUMENTS, replay_specs


def generate_launch_description():
    """Give the launch description; what is decided is decided in `launching`."""
    return describe(REPLAY_ARGUMENTS, replay_specs)
