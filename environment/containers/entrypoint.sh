#!/usr/bin/env bash
# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Run a command where ROS 2 and the package are known.
set -e
for setup in /opt/ros/*/setup.bash; do source "$setup"; done
source /minicpmo_ros/environment/env.sh
exec "$@"
