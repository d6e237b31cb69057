# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The page in the browser and its server. Nothing here knows of ROS; `ros/web` does."""
