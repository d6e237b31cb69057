#!/usr/bin/env bash
# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Build the interfaces and install the package: by colcon into install/ where a ROS 2
# distribution is sourced, else into .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source environment/env.sh

# has_package NAME: is it installed in this environment?
has_package() {
  python -c 'import sys
from ament_index_python.packages import get_package_prefix
get_package_prefix(sys.argv[1])' "$1" 2>/dev/null
}

# into_venv SOURCE NAME: configure, build and install one CMake package into .venv.
into_venv() {
  local log=build/$2.log
  mkdir -p "build/$2"
  printf '\033[1m[build]\033[0m %s\n' "$2"
  { cmake -S "$1" -B "build/$2" -DCMAKE_INSTALL_PREFIX="$PWD/.venv" -DBUILD_TESTING=OFF \
      -DPython3_EXECUTABLE="$PWD/.venv/bin/python" &&
    cmake --build "build/$2" -j"$(nproc)" --target install; } > "$log" 2>&1 ||
    { tail -n 40 "$log"; echo "[build] $2 failed; the whole log: $log" >&2; exit 1; }
}

if [ "$MINICPMO_ROS" = distribution ]; then
  has_package audio_common_msgs ||
    python -m colcon build --base-paths overlay/audio_common_msgs
  python -m colcon build --packages-select minicpmo_ros
else
  has_package audio_common_msgs || into_venv overlay/audio_common_msgs audio_common_msgs
  rm -rf .venv/lib/python3*/site-packages/minicpmo_ros  # modules that have moved would stay
  into_venv . minicpmo_ros
fi
