# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about recorded clips, answered by the engine without ROS, and their score."""
