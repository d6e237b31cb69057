# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Source this (bash) in the repository or from anywhere: what `make build` built is then usable.
# Sets MINICPMO_ROS to 'distribution' where a ROS 2 distribution is sourced, else to 'wheels'.
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_venv=$_root/.venv

if [ -n "${ROS_DISTRO:-}" ] && [ -z "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
  export MINICPMO_ROS=distribution
  # Neither is written for `set -u`, which our own scripts use.
  case $- in *u*) _strict=u ;; *) _strict= ;; esac
  set +u
  [ -f "$_venv/bin/activate" ] && . "$_venv/bin/activate"
  [ -f "$_root/install/local_setup.bash" ] && . "$_root/install/local_setup.bash"
  [ -z "$_strict" ] || set -u
else
  export MINICPMO_ROS=wheels
  export PATH=$_venv/bin:${PATH#"$_venv/bin:"}
  # The libraries of the wheels lie in folders of their own; the guard keeps the wheels'
  # start-up hook from re-executing every Python to set this path itself.
  # What the user has in the path stays, after them: CUDA may be found by it.
  _libraries=$(printf '%s:' "$_venv"/lib "$_venv"/lib/python3.*/site-packages/ros_*.libs)
  _own=${LD_LIBRARY_PATH:-} _own=:${_own#"${_libraries%:}"} _own=${_own/#::/:}
  LD_LIBRARY_PATH=${_libraries%:}${_own%:}
  export LD_LIBRARY_PATH
  export AMENT_PREFIX_PATH=$_venv CMAKE_PREFIX_PATH=$_venv
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 ROS_DISTRO=kilted ROS_VERSION=2 ROS_PYTHON_VERSION=3
fi
unset _root _venv _libraries _own _strict
true
