#!/usr/bin/env bash
# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Make the virtual environment .venv with everything the package needs beside a ROS 2
# distribution; without a distribution, ROS 2 itself from wheels. Doing it twice does nothing twice.
#
#   environment/setup.sh          what running needs
#   environment/setup.sh test     and what the tests need
#   environment/setup.sh web      and what the page in the browser needs
#   environment/setup.sh voice    and what node voice needs
#   environment/setup.sh fetch    and what fetches model files
#   environment/setup.sh site     and what makes a site of the pages
#   environment/setup.sh ray      and what `replay --cluster` needs (300 MB)
set -euo pipefail
cd "$(dirname "$0")/.."
source environment/env.sh

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
die() { printf '[setup] %s\n' "$*" >&2; exit 1; }

PYTHON=${PYTHON:-python3}
PIP=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

check_machine() {
  local missing=()
  command -v g++ >/dev/null || missing+=(g++)
  command -v cmake >/dev/null || missing+=(cmake)
  command -v make >/dev/null || missing+=(make)
  command -v "$PYTHON" >/dev/null || missing+=(python3)
  if command -v "$PYTHON" >/dev/null; then
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    "$PYTHON" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
      missing+=(python3-dev)
  fi
  [ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}. Install them: sudo apt install ${missing[*]}"
  [ "$MINICPMO_ROS" = distribution ] && return
  [ "$(uname -m)" = x86_64 ] ||
    die "ROS 2 comes as wheels for x86_64 only, this is $(uname -m). Install a ROS 2 distribution and source it."
  "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
    die "$($PYTHON --version) is not supported; use 3.10, 3.11 or 3.12: make PYTHON=python3.11 ..."
}

make_venv() {
  if [ -x .venv/bin/python ]; then
    local made_for
    made_for=$(cat .venv/.mode 2>/dev/null || echo "$MINICPMO_ROS")
    [ "$made_for" = "$MINICPMO_ROS" ] ||
      die ".venv was made for ROS 2 from: $made_for, now it comes from: $MINICPMO_ROS. Begin anew: make clean"
    return
  fi
  say "virtual environment .venv ($("$PYTHON" --version))"
  if [ "$MINICPMO_ROS" = distribution ]; then
    "$PYTHON" -m venv --system-site-packages .venv
    touch .venv/COLCON_IGNORE
  else
    "$PYTHON" -m venv .venv
  fi
  echo "$MINICPMO_ROS" > .venv/.mode
}

# The RPC backend computes on another process's or machine's device; nothing connects unless asked to.
llama_flags=-DGGML_RPC=on

# llama.cpp is compiled for this machine's processor, so what is kept is kept by its flags.
llama_key() {
  { grep '^llama-cpp-python' environment/requirements.txt
    grep -m1 -E '^(flags|Features)' /proc/cpuinfo | tr ' ' '\n' | sort
    .venv/bin/python -c 'import sys; print(sys.version_info[:2])'
    g++ -dumpfullversion
    printf '%s' "$llama_flags $CMAKE_ARGS"
  } | sha256sum | cut -c1-16
}

# CMAKE_ARGS holds until another is given: no later make takes the GPU away again.
install_llama() {
  local pin key cache
  export CMAKE_ARGS=${CMAKE_ARGS-$(cat .venv/.cmake-args 2>/dev/null || true)}
  pin=$(grep '^llama-cpp-python' environment/requirements.txt)
  key=$(llama_key)
  [ "$(cat .venv/.llama-key 2>/dev/null)" = "$key" ] && return
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/minicpmo_ros/llama-$key
  if ! ls "$cache"/*.whl >/dev/null 2>&1; then
    say "compiling $pin for this machine, once; about 4 minutes on two cores${CMAKE_ARGS:+ (CMAKE_ARGS=$CMAKE_ARGS)}"
    mkdir -p "$cache"
    CMAKE_ARGS="$llama_flags $CMAKE_ARGS" CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} \
      "${PIP[@]}" wheel --no-cache-dir --no-deps --no-binary llama-cpp-python "$pin" -w "$cache" ||
      die "llama.cpp did not compile; see above. A clean try: rm -r $cache"
  fi
  "${PIP[@]}" install --force-reinstall --no-deps "$cache"/*.whl
  echo "$key" > .venv/.llama-key
  printf '%s' "$CMAKE_ARGS" > .venv/.cmake-args
}

install_packages() {
  local files=(environment/requirements.txt) key
  [ "$MINICPMO_ROS" = distribution ] || files+=(environment/requirements-ros.txt)
  case "${1:-}" in
    test)
      files+=(environment/requirements-test.txt environment/requirements-web.txt)
      files+=(environment/requirements-fetch.txt environment/requirements-site.txt)
      files+=(environment/requirements-sound.txt)
      ;;
    fetch) files+=(environment/requirements-fetch.txt) ;;
    web) files+=(environment/requirements-web.txt) ;;
    site) files+=(environment/requirements-site.txt) ;;
    ray) files+=(environment/requirements-ray.txt) ;;
  esac
  key=$({ echo "${1:-}"; cat "${files[@]}" environment/requirements-voice.txt environment/setup.sh; } | sha256sum | cut -c1-16)
  grep -qx "$key" .venv/.requirements-keys 2>/dev/null && return
  say "Python packages: ${files[*]##*/}"
  "${PIP[@]}" install "${files[@]/#/-r}"
  case "${1:-}" in
    test) "${PIP[@]}" install --no-deps -r environment/requirements-voice.txt ;;
    voice)
      "${PIP[@]}" install --no-deps -r environment/requirements-voice.txt || {
        say "what node voice needs could not be installed; nothing is asked aloud"
        return
      }
      ;;
  esac
  echo "$key" >> .venv/.requirements-keys
}

# The wheels' CMake files hold the paths of the machine that built them.
patch_prefix() {
  [ "$MINICPMO_ROS" = distribution ] && return
  .venv/bin/python - <<'PATCH'
import pathlib
import sys
import sysconfig

tag = 'cp%d%d' % sys.version_info[:2]
version = 'python%d.%d' % sys.version_info[:2]
built = f'/opt/python/{tag}-{tag}'
for path in (pathlib.Path(sys.prefix) / 'share').rglob('*.cmake'):
    old = path.read_text(errors='surrogateescape')
    new = old.replace(f'{built}/include/{version}', sysconfig.get_path('include'))
    new = new.replace(f'{built}/lib/{version}/site-packages', sysconfig.get_path('purelib'))
    if new != old:
        path.write_text(new, errors='surrogateescape')
PATCH
}

check_machine
make_venv
install_llama
install_packages "$@"
patch_prefix
