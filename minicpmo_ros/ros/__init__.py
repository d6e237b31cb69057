# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The nodes; beside client/ the only room that imports rclpy."""
