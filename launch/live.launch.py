# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Live eyes and ears: the three nodes in one process, or with composed:=false in three."""

from minicpmo_ros.ros.launch.actions import describe
from minicpmo_ros.ros.launch.process_specs import ARGUMENTS, process_specs


def generate_launch_description():
    """Give the launch description; what is decided is decided in `launching`."""
    return describe(ARGUMENTS, process_specs)
